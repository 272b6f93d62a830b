"""Remove and debias (ROAD): pixels are removed in the order of a map, and imputed so that the removed shape reveals little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from xaieval.errors import MetricError, RunError
from xaieval.metrics.curves import perturbed_pixels, pixel_ranks
from xaieval.metrics.metric import Metric

__all__ = ["linear_imputation", "road", "road_lerf", "road_morf"]

First = Literal["most", "least"]
Levels = list[
    tuple[Tensor, Tensor]
]  # for a grid and each coarser grid: missing cells (1 or 0), sums of the neighbours' weights

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RONG = "Rong et al. 2022, arXiv 2202.00449"


@dataclass(frozen=True)
class RemoveAndDebias:
    """The function of a ROAD metric; `road`, `road_morf` and `road_lerf` make them.

    Attributes:
        fractions: Shares of pixels to remove, each in (0, 1).
        noise: Standard deviation of the noise, in the unit of the model's input; 0 for none.
        keep_curve: Return the curves with the values.
        orders: Which pixels are removed first; for two orders the value is half of the second minus the first.
    """

    fractions: Sequence[float]
    noise: float
    keep_curve: bool
    orders: Sequence[First]

    def __post_init__(self) -> None:
        rising = list(self.fractions) == sorted(set(self.fractions))
        if not self.fractions or not rising or not 0 < self.fractions[0] <= self.fractions[-1] < 1:
            raise MetricError(f"fractions are increasing shares of pixels, each above 0 and below 1; got {self.fractions}")
        if self.noise < 0:
            raise MetricError(f"noise is a standard deviation, 0 for none; got {self.noise}")

    def __call__(self, confidence: Tensor, maps: Tensor, images: Tensor, ask: Any, draw: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Return values `[N]`, and with `keep_curve` the curves `[N, S]`."""
        confidences = ask(self._blocks(maps, images, draw)).view(len(self.orders), len(self.fractions), len(images))
        if len(self.orders) == 2:
            curves = (confidences[1] - confidences[0]) / 2
            values = curves.mean(dim=0)
        else:
            curves = confidences[0]
            values = curves.mean(dim=0) - confidence
        return (values, curves.T) if self.keep_curve else values

    def _blocks(self, maps: Tensor, images: Tensor, draw: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of the batch with a share of their pixels imputed, for each order and each share."""
        if images.ndim != 4:
            raise MetricError(
                f"ROAD imputes images [N, C, H, W], got {list(images.shape)}; insertion and deletion also take volumes"
            )
        ranks, pixels = pixel_ranks(maps), maps[0].numel()
        numbers = torch.arange(len(images), device=images.device)
        noise = self.noise * _normal(draw, images) if self.noise else None
        for first in self.orders:
            order = ranks if first == "most" else pixels - 1 - ranks
            for count in perturbed_pixels(pixels, self.fractions).tolist():
                missing = order < count
                imputed = linear_imputation(images, missing)
                yield imputed if noise is None else imputed + noise * missing[:, None], numbers


def road(
    fractions: Sequence[float] = FRACTIONS, noise: float = 0.01, keep_curve: bool = False, *, name: str = "road"
) -> Metric:
    """ROAD, both orders: `(road_lerf - road_morf) / 2`, in the confidence's unit, -0.5 to 0.5 for softmax, higher is better.

    Half the difference between the confidence after the least relevant pixels are removed and the confidence after the most
    relevant ones are, averaged over the shares of removed pixels. Each image and map takes two forward passes and two
    imputations for each share; `docs/curves.md` says what an imputation costs.

    Args:
        fractions: Shares of pixels to remove, increasing, each above 0 and below 1.
        noise: Standard deviation of the normal noise on imputed pixels, in the unit of the model's input. It is drawn once for
            each image by the run's seed, and is the same for all maps and shares. 0 for none.
        keep_curve: Keep each image's curve (half the difference of the confidences) in the rows, as `<name>_curve`.
        name: Name of the column; two metrics with different settings need two names.

    Raises:
        MetricError: Fractions or noise are out of range.

    Reference:
        Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022 (arXiv 2202.00449); the
        combination of both orders is that of pytorch-grad-cam's `ROADCombined`.

    Example:
        >>> road(fractions=(0.25, 0.5), noise=0).settings["fractions"]
        [0.25, 0.5]
    """
    return _metric(name, RemoveAndDebias(tuple(fractions), noise, keep_curve, ("most", "least")), True, "ROAD")


def road_morf(
    fractions: Sequence[float] = FRACTIONS, noise: float = 0.01, keep_curve: bool = False, *, name: str = "road_morf"
) -> Metric:
    """ROAD, most relevant pixels first: the mean change of the confidence, -1 to 1 for softmax, lower is better.

    Each image and map takes one forward pass and one imputation for each share of removed pixels.

    Args:
        fractions: As in `road`.
        noise: As in `road`.
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: Fractions or noise are out of range.

    Reference:
        Rong et al., ICML 2022 (arXiv 2202.00449), the MoRF order; mean change over shares as in pytorch-grad-cam's
        `ROADMostRelevantFirstAverage`.

    Example:
        >>> road_morf().higher_is_better
        False
    """
    return _metric(name, RemoveAndDebias(tuple(fractions), noise, keep_curve, ("most",)), False, "ROAD MoRF")


def road_lerf(
    fractions: Sequence[float] = FRACTIONS, noise: float = 0.01, keep_curve: bool = False, *, name: str = "road_lerf"
) -> Metric:
    """ROAD, least relevant pixels first: the mean change of the confidence, -1 to 1 for softmax, higher is better.

    Each image and map takes one forward pass and one imputation for each share of removed pixels.

    Args:
        fractions: As in `road`.
        noise: As in `road`.
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: Fractions or noise are out of range.

    Reference:
        Rong et al., ICML 2022 (arXiv 2202.00449), the LeRF order; mean change over shares as in pytorch-grad-cam's
        `ROADLeastRelevantFirstAverage`.

    Example:
        >>> road_lerf().higher_is_better
        True
    """
    return _metric(name, RemoveAndDebias(tuple(fractions), noise, keep_curve, ("least",)), True, "ROAD LeRF")


def _normal(draw: Any, images: Tensor) -> Tensor:
    """Normal noise of the shape of the images, from uniform numbers in [0, 1) by the Box-Muller transform."""
    size, angle = draw((2, *images.shape[1:]), "noise of an imputation").to(images.dtype).unbind(dim=1)
    return (-2 * torch.log1p(-size)).sqrt() * torch.cos(2 * torch.pi * angle)


def _metric(name: str, removal: RemoveAndDebias, higher_is_better: bool, label: str) -> Metric:
    return Metric(
        name,
        removal,
        higher_is_better,
        label=label,
        needs=("confidence", "maps", "images", "ask", "draw"),
        settings={"fractions": list(removal.fractions), "noise": removal.noise, "keep_curve": removal.keep_curve},
        passes="one for each share removed" if len(removal.orders) == 1 else "two for each share removed",
        paper=RONG,
        divides=False,
        family="faithfulness",
    )


METRICS = (road(), road_morf(), road_lerf())


def linear_imputation(
    images: Float[Tensor, "n c h w"], missing: Bool[Tensor, "n h w"], tolerance: float = 1e-6, most: int = 200
) -> Float[Tensor, "n c h w"]:
    """The images with their missing pixels imputed from the known ones (noisy linear imputation, without the noise).

    Each missing pixel becomes the weighted mean of its eight neighbours: 1/6 for the four beside it, 1/12 for the four at its
    corners, 0 beyond the border. As neighbours may be missing too, this is a system of linear equations. It is solved for all
    images at once by conjugate gradients, with one sweep over coarser and coarser grids (multigrid) as the preconditioner; this
    takes 10 to 20 iterations at any size.

    Args:
        images: Images, `[N, C, H, W]`, in any unit.
        missing: Which pixels are missing, `[N, H, W]`; at least one pixel of each image is known.
        tolerance: Largest difference between a pixel and the mean of its neighbours, as a share of the largest absolute value
            in its image.
        most: Largest number of iterations.

    Returns:
        Images `[N, C, H, W]` of the same type, computed in at least float32. Where an image has NaN or inf, its missing pixels
        are NaN.

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
    largest = images.abs().amax(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(
        largest.isfinite() & (largest > 0), largest, 1
    )  # squares do not overflow, images do not affect each other
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
    raise RunError(f"the imputation of missing pixels did not reach its tolerance of {tolerance} in {most} iterations")


def _neighbours(grid: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours of each pixel, 0 beyond the border.

    The weights are the binomial kernel (1, 2, 1) in both directions without its centre, divided by 12.
    """
    padded = functional.pad(grid, (1, 1, 1, 1))
    lines = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    return (lines[..., :-2] + 2 * lines[..., 1:-1] + lines[..., 2:] - 4 * grid) / 12


def _applied(level: tuple[Tensor, Tensor], grid: Tensor) -> Tensor:
    """The left-hand side of the equations, which is symmetric and positive definite."""
    gaps, weights = level
    return gaps * (weights * grid - _neighbours(grid))


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
    """The quotient; 0 for a channel that is already solved, where both are 0."""
    return torch.where(below > 0, above / below, torch.zeros_like(above))
