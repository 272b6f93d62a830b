"""Missing pixels as weighted means of their neighbours: the imputation of ROAD, without its noise."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from xaieval.errors import MetricError, RunError

__all__ = ["linear_imputation"]

# For a grid and each coarser grid: missing cells (1 or 0), and sums of the neighbours' weights.
Levels = list[tuple[Tensor, Tensor]]


def linear_imputation(
    images: Float[Tensor, "n c *space"], missing: Bool[Tensor, " n *space"], tolerance: float = 1e-6, most: int = 200
) -> Float[Tensor, "n c *space"]:
    """The images with their missing pixels imputed from the known ones (noisy linear imputation, without the noise).

    Each missing pixel becomes the weighted mean of its eight neighbours: 1/6 for the four beside it, 1/12 for the four at its
    corners, 0 beyond the border. As neighbours may be missing too, this is a system of linear equations. It is solved for all
    images at once by conjugate gradients, with one sweep over coarser and coarser grids (multigrid) as the preconditioner; this
    takes 10 to 20 iterations at any size.

    Args:
        images: Images, `[N, C, H, W]`, in any unit.
        missing: Which pixels are missing, `[N, H, W]`; at least one pixel of each image is known.
        tolerance: Largest difference between a pixel and the mean of its neighbours, as a share of the largest absolute value
            of the known pixels of its image.
        most: Largest number of iterations.

    Returns:
        Images `[N, C, H, W]` of the same type, computed in at least float32. Where a known pixel of an image is NaN
        or inf, its missing pixels are NaN.

    Raises:
        MetricError: The images have the wrong shape, or all pixels of an image are missing.
        RunError: The tolerance was not reached; float32 reaches about 1e-7.

    Reference:
        Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022 (arXiv
        2202.00449); weights as in the authors' `imputations.py`.

    Example:
        >>> image, missing = torch.tensor([[[[1.0, 9.0, 2.0]]]]), torch.tensor([[[False, True, False]]])
        >>> linear_imputation(image, missing)
        tensor([[[[1.0000, 1.5000, 2.0000]]]])
    """
    if images.ndim != 4:
        raise MetricError(
            f"imputation takes images [N, C, H, W], got {list(images.shape)}; for volumes no weights are published"
        )
    if missing.flatten(1).all(dim=1).any():
        raise MetricError("all pixels of an image are missing, so there is nothing to impute them from; remove fewer")
    given = images.masked_fill(missing[:, None], 0)  # what is hidden decides nothing, not even how exact the solution is
    largest = given.abs().amax(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(
        largest.isfinite() & (largest > 0), largest, 1
    )  # squares do not overflow, images do not affect each other
    known = (given / scale).to(torch.promote_types(images.dtype, torch.float32))
    levels = _levels(missing[:, None].to(known.dtype))
    gaps = levels[0][0]
    solution = torch.zeros_like(known)
    residual = gaps * _neighbours(known)
    direction, before = torch.zeros_like(known), None
    for _ in range(most):
        if not (residual.abs() > tolerance).any():
            return torch.where(missing[:, None], (solution * scale).to(images.dtype), images)
        better = _sweep(levels, residual)
        now = _dot(residual, better)
        direction = better if before is None else direction.mul_(_ratio(now, before)).add_(better)
        changed = _applied(levels[0], direction)
        step = _ratio(now, _dot(direction, changed))
        solution.add_(step * direction)
        residual.sub_(changed.mul_(step))
        before = now
    raise RunError(f"the imputation of missing pixels did not reach its tolerance of {tolerance} in {most} iterations")


def _neighbours(grid: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours of each pixel, 0 beyond the border.

    The weights are the binomial kernel (1, 2, 1) in both directions without its centre, divided by 12.
    """
    padded = functional.pad(grid, (1, 1, 1, 1))  # in place from here on: most of the time goes into memory
    lines = torch.add(padded[..., :-2, :], padded[..., 1:-1, :], alpha=2).add_(padded[..., 2:, :])
    sums = torch.add(lines[..., :-2], lines[..., 1:-1], alpha=2).add_(lines[..., 2:])
    return sums.sub_(grid, alpha=4).div_(12)


def _applied(level: tuple[Tensor, Tensor], grid: Tensor) -> Tensor:
    """The left-hand side of the equations, which is symmetric and positive definite."""
    gaps, weights = level
    return (weights * grid).sub_(_neighbours(grid)).mul_(gaps)


def _levels(gaps: Tensor) -> Levels:
    """The grid and coarser grids; a cell of a coarser grid is missing if all its pixels are."""
    levels = [(gaps, _neighbours(torch.ones_like(gaps[:1])))]
    while min(gaps.shape[2:]) >= 4:
        gaps = (functional.avg_pool2d(gaps, 2, ceil_mode=True) == 1).to(gaps.dtype)
        levels.append((gaps, _neighbours(torch.ones_like(gaps[:1]))))
    return levels


def _sweep(levels: Levels, residual: Tensor) -> Tensor:
    """An approximate solution: a step of Jacobi's method, a correction from the coarser grids, and another Jacobi step.

    The same equations hold on a coarser grid, because in two dimensions they do not depend on the spacing. Summing cells on the
    way down and copying them on the way up keeps the preconditioner symmetric, as conjugate gradients require.
    """
    gaps, weights = levels[0]
    solution = (gaps * residual).div_(weights)
    if len(levels) > 1:
        left = (residual - _applied(levels[0], solution)).mul_(gaps)
        coarse = _sweep(levels[1:], functional.avg_pool2d(left, 2, ceil_mode=True, divisor_override=1))
        fine = functional.interpolate(coarse, scale_factor=2)[..., : gaps.shape[2], : gaps.shape[3]]
        solution.add_(gaps * fine)
    return solution.add_((residual - _applied(levels[0], solution)).mul_(gaps).div_(weights))


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(dim=(2, 3), keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """The quotient; 0 for a channel that is already solved, where both are 0."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))
