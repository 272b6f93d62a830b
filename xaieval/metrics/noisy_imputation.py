"""Missing pixels from those that are there: each is the weighted mean of its neighbours, whether these are known or not."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from xaieval.errors import MetricError, RunError

__all__ = ["linear_imputation"]

Levels = list[tuple[Tensor, Tensor]]  # of a grid and coarser ones: what is missing (1 or 0), sums of the neighbours' weights


def linear_imputation(
    images: Float[Tensor, "n c h w"], missing: Bool[Tensor, "n h w"], tolerance: float = 1e-6, most: int = 200
) -> Float[Tensor, "n c h w"]:
    """The images with their missing pixels imputed.

    Each missing pixel becomes the mean of its neighbours, of which those beside it weigh 1/6, those at its corners 1/12, and
    those beyond the border nothing; where neighbours are missing too, this is a system of equations. It is solved for all
    images at a time by conjugate gradients, with one sweep over ever coarser grids as preconditioner, which takes some 10 to 20
    rounds whatever the size.

    Args:
        images: `[N, C, H, W]`, in any unit.
        missing: `[N, H, W]`; at least one pixel of each image is there.
        tolerance: how far a pixel may be from its neighbours' mean, as a share of the largest absolute value in its image.
        most: rounds.

    Returns:
        `[N, C, H, W]` of the images' type; float32 is computed in where that is less. An image that holds NaN or inf has NaN
        in its missing pixels.

    Raises:
        MetricError: the images are no images, or nothing of one is there.
        RunError: the tolerance was not reached, which float32 allows down to about 1e-7.

    Reference:
        Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022 (arXiv
        2202.00449), noisy linear imputation, without the noise; weights as in the authors' `imputations.py`.

    Example:
        >>> image, missing = torch.tensor([[[[1.0, 9.0, 2.0]]]]), torch.tensor([[[False, True, False]]])
        >>> linear_imputation(image, missing)
        tensor([[[[1.0000, 1.5000, 2.0000]]]])
    """
    if images.ndim != 4:
        raise MetricError(f"imputation takes images [N, C, H, W], got {list(images.shape)}; volumes have no weights published")
    if missing.flatten(1).all(dim=1).any():
        raise MetricError("all pixels of an image are missing, so there is nothing to impute them from; take fewer away")
    largest = images.abs().amax(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(largest.isfinite() & (largest > 0), largest, 1)  # no square overflows, no image decides for others
    known = (images / scale).to(torch.promote_types(images.dtype, torch.float32))
    levels = _levels(missing[:, None].to(known.dtype))
    gaps = levels[0][0]
    solution = torch.zeros_like(known)
    residual = gaps * _neighbours(known.masked_fill(missing[:, None], 0))
    direction, before = torch.zeros_like(known), None
    for _ in range(most):
        if not (residual.abs() > tolerance).any():
            return torch.where(missing[:, None], (solution * scale).to(images.dtype), images)
        better = _sweep(levels, residual)
        now = _dot(residual, better)
        direction = better if before is None else better + _ratio(now, before) * direction
        changed = _applied(levels[0], direction)
        step = _ratio(now, _dot(direction, changed))
        solution, residual, before = solution + step * direction, residual - step * changed, now
    raise RunError(f"the imputation of missing pixels did not come to its tolerance of {tolerance} in {most} rounds")


def _neighbours(grid: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours of each pixel; nothing is beyond the border.

    The weights are those of the binomial kernel (1, 2, 1) in both directions, without its middle, over 12.
    """
    padded = functional.pad(grid, (1, 1, 1, 1))
    lines = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (lines[..., :-2] + 2 * lines[..., 1:-1] + lines[..., 2:] - 4 * grid) / 12


def _applied(level: tuple[Tensor, Tensor], grid: Tensor) -> Tensor:
    """The left side of the equations, which is symmetric and positive definite."""
    gaps, weights = level
    return gaps * (weights * grid - _neighbours(grid))


def _levels(gaps: Tensor) -> Levels:
    """The grid, and coarser ones on which a cell is missing if all of its pixels are."""
    levels = [(gaps, _neighbours(torch.ones_like(gaps[:1])))]
    while min(gaps.shape[2:]) >= 4:
        gaps = (functional.avg_pool2d(gaps, 2, ceil_mode=True) == 1).to(gaps.dtype)
        levels.append((gaps, _neighbours(torch.ones_like(gaps[:1]))))
    return levels


def _sweep(levels: Levels, residual: Tensor) -> Tensor:
    """An approximate solution: one round of Jacobi's method, a correction from the coarser grids, and another round.

    The same equations hold on a coarser grid, since in two dimensions they do not depend on its spacing. Sums of cells on the
    way down, and equal shares on the way up, keep the whole symmetric, as conjugate gradients need it.
    """
    gaps, weights = levels[0]
    solution = gaps * residual / weights
    if len(levels) > 1:
        left = residual - _applied(levels[0], solution)
        coarse = _sweep(levels[1:], functional.avg_pool2d(gaps * left, 2, ceil_mode=True, divisor_override=1))
        fine = coarse.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        solution = solution + gaps * fine[..., : gaps.shape[2], : gaps.shape[3]]
    return solution + gaps * (residual - _applied(levels[0], solution)) / weights


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(dim=(2, 3), keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Zero where a channel is solved already, so that both are zero."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))
