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

POOLS = {4: functional.avg_pool2d, 5: functional.avg_pool3d}  # by the number of axes of the images
LEAST_SIDE = 4  # cells; a shorter side is not halved


def linear_imputation(
    images: Float[Tensor, "n c *space"], missing: Bool[Tensor, " n *space"], tolerance: float = 1e-6, most: int = 200
) -> Float[Tensor, "n c *space"]:
    """The images with their missing pixels imputed from the known ones (noisy linear imputation, without the noise).

    Each missing pixel becomes the weighted mean of its eight neighbours: 1/6 for the four beside it, 1/12 for the four at its
    corners, 0 beyond the border. A missing voxel has 26 neighbours: those that share a face count twice as much as those that
    share an edge, and these twice as much as those that share a corner (1/14, 1/28 and 1/56), so that in a volume of one slice
    the pixels have the values that they have in the image. As neighbours may be missing too, this is a system of linear
    equations. It is solved for all images at once by conjugate gradients, with one sweep over coarser and coarser grids
    (multigrid) as the preconditioner; this takes 10 to 20 iterations at any size.

    Args:
        images: Images `[N, C, H, W]` or volumes `[N, C, D, H, W]`, in any unit.
        missing: Which pixels are missing, `[N, H, W]` or `[N, D, H, W]`; at least one pixel of each image is known.
        tolerance: Largest difference between a pixel and the mean of its neighbours, as a share of the largest absolute value
            of the known pixels of its image.
        most: Largest number of iterations.

    Returns:
        Images of the same shape and type, computed in at least float32. Where a known pixel of an image is NaN
        or inf, its missing pixels are NaN.

    Raises:
        MetricError: The images have the wrong shape, or all pixels of an image are missing.
        RunError: The tolerance was not reached; float32 reaches about 1e-7.

    Reference:
        Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022 (arXiv
        2202.00449); weights as in the authors' `imputations.py`, which has none for volumes.

    Example:
        >>> image, missing = torch.tensor([[[[1.0, 9.0, 2.0]]]]), torch.tensor([[[False, True, False]]])
        >>> linear_imputation(image, missing)
        tensor([[[[1.0000, 1.5000, 2.0000]]]])
    """
    if images.ndim not in POOLS:
        raise MetricError(f"imputation takes images [N, C, H, W] or volumes [N, C, D, H, W], got {list(images.shape)}")
    if missing.flatten(1).all(dim=1).any():
        raise MetricError("all pixels of an image are missing, so there is nothing to impute them from; remove fewer")
    given = images.masked_fill(missing[:, None], 0)  # what is hidden decides nothing, not even how exact the solution is
    largest = given.abs().amax(dim=tuple(range(1, images.ndim)), keepdim=True)
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
    """The weighted sum of the neighbours of each pixel, 0 beyond the border.

    The weights are the binomial kernel (1, 2, 1) along all axes without its centre, divided by their sum.
    """
    axes = grid.ndim - 2
    sums = functional.pad(grid, (1, 1) * axes)
    for axis in range(2, grid.ndim):  # in place: most of the time goes into memory
        side = sums.shape[axis] - 2
        before, here, after = (sums.narrow(axis, start, side) for start in range(3))
        sums = torch.add(before, here, alpha=2).add_(after)
    return sums.sub_(grid, alpha=2**axes).div_(4**axes - 2**axes)


def _applied(level: tuple[Tensor, Tensor], grid: Tensor) -> Tensor:
    """The left-hand side of the equations, which is symmetric and positive definite."""
    gaps, weights = level
    return (weights * grid).sub_(_neighbours(grid)).mul_(gaps)


def _levels(gaps: Tensor) -> Levels:
    """The grid and coarser grids; a cell of a coarser grid is missing if all its pixels are."""
    levels = [(gaps, _neighbours(torch.ones_like(gaps[:1])))]
    while max(_halving(gaps)) == 2:
        pool, step = POOLS[gaps.ndim], _halving(gaps)
        gaps = (pool(gaps, step, ceil_mode=True) == 1).to(gaps.dtype)
        levels.append((gaps, _neighbours(torch.ones_like(gaps[:1]))))
    return levels


def _halving(grid: Tensor) -> list[int]:
    """How many cells of each side become one of the coarser grid: two, or one of a short side."""
    return [2 if side >= LEAST_SIDE else 1 for side in grid.shape[2:]]


def _sweep(levels: Levels, residual: Tensor) -> Tensor:
    """An approximate solution: a step of Jacobi's method, a correction from the coarser grids, and another Jacobi step.

    In two dimensions the same equations hold on a coarser grid, because they do not depend on the spacing. With each further
    side that is halved, what flows between two cells doubles, and the correction is half as large. Summing cells on the way
    down and copying them on the way up keeps the preconditioner symmetric, as conjugate gradients require.
    """
    gaps, weights = levels[0]
    solution = (gaps * residual).div_(weights)
    if len(levels) > 1:
        left, step = (residual - _applied(levels[0], solution)).mul_(gaps), _halving(gaps)
        coarse = _sweep(levels[1:], POOLS[gaps.ndim](left, step, ceil_mode=True, divisor_override=1))
        fine = functional.interpolate(coarse, scale_factor=[float(count) for count in step])
        for axis, side in enumerate(gaps.shape[2:], start=2):
            fine = fine.narrow(axis, 0, side)
        solution.add_(gaps * fine, alpha=2.0 ** (2 - sum(count == 2 for count in step)))
    return solution.add_((residual - _applied(levels[0], solution)).mul_(gaps).div_(weights))


def _dot(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(dim=tuple(range(2, first.ndim)), keepdim=True)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """The quotient; 0 for a channel that is already solved, where both are 0."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))
