"""Remove and debias (ROAD): pixels are taken away in the order of a map, and imputed so that their shape tells little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from xaieval.errors import MetricError
from xaieval.metrics.curves import perturbed_pixels, pixel_ranks
from xaieval.metrics.metric import Metric
from xaieval.metrics.noisy_imputation import linear_imputation

__all__ = ["FRACTIONS", "ROAD_METRICS", "RemoveAndDebias", "road", "road_lerf", "road_morf"]

First = Literal["most", "least"]

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RONG = "Rong et al. 2022, arXiv 2202.00449"


@dataclass(frozen=True)
class RemoveAndDebias:
    """One of the metrics of this module as a function of what it needs; `road` and its neighbours make them.

    Attributes:
        fractions: shares of pixels that are removed, each in (0, 1).
        noise: standard deviation, in the unit of the model's input; 0 for none.
        keep_curve: give the curves beside the values.
        orders: which pixels are removed first; of two, half of the second minus the first.
    """

    fractions: Sequence[float]
    noise: float
    keep_curve: bool
    orders: Sequence[First]

    def __post_init__(self) -> None:
        rising = list(self.fractions) == sorted(set(self.fractions))
        if not self.fractions or not rising or not 0 < self.fractions[0] <= self.fractions[-1] < 1:
            raise MetricError(f"fractions are rising shares of pixels, each above 0 and below 1; got {self.fractions}")
        if self.noise < 0:
            raise MetricError(f"noise is a standard deviation, 0 for none; got {self.noise}")

    def __call__(self, confidence: Tensor, maps: Tensor, images: Tensor, ask: Any, draw: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Values `[N]`, with the curves `[N, S]` if they are to be kept."""
        found = ask(self._blocks(maps, images, draw)).view(len(self.orders), len(self.fractions), len(images))
        if len(self.orders) == 2:
            curves = (found[1] - found[0]) / 2
            values = curves.mean(dim=0)
        else:
            curves = found[0]
            values = curves.mean(dim=0) - confidence
        return (values, curves.T) if self.keep_curve else values

    def _blocks(self, maps: Tensor, images: Tensor, draw: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """All images with a share of their pixels imputed, order by order, share by share."""
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
    """ROAD, both orders: half of what more of the confidence stays if the least relevant pixels go first; higher is better.

    In the unit of the confidence, so -0.5 to 0.5 for softmax.

    `(lerf - morf) / 2` of `road_lerf` and `road_morf`, averaged over the shares of pixels removed. Each image and map takes two
    forward passes and two imputations a share; `docs/curves.md` says what an imputation costs.

    Args:
        fractions: shares of pixels that are removed, rising, each above 0 and below 1.
        noise: standard deviation of the normal noise on imputed pixels, in the unit of the model's input; one draw an image by
            the run's seed, the same for all maps and shares, so that maps are compared under equal noise. 0 for none.
        keep_curve: keep each image's curve (half the difference of the confidences) in the rows, as `<name>_curve`.
        name: of the column; two that differ in settings need two names.

    Raises:
        MetricError: fractions or noise that there cannot be.

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
    """ROAD, most relevant first: the confidence's mean change where pixels are imputed; -1 to 1, lower is better.

    Each image and map takes a forward pass and an imputation a share.

    Args:
        fractions: as in `road`.
        noise: as in `road`.
        keep_curve: keep each image's curve (confidences) in the rows, as `<name>_curve`.
        name: of the column.

    Raises:
        MetricError: fractions or noise that there cannot be.

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
    """ROAD, least relevant first: the confidence's mean change where pixels are imputed; -1 to 1, higher is better.

    Each image and map takes a forward pass and an imputation a share.

    Args:
        fractions: as in `road`.
        noise: as in `road`.
        keep_curve: keep each image's curve (confidences) in the rows, as `<name>_curve`.
        name: of the column.

    Raises:
        MetricError: fractions or noise that there cannot be.

    Reference:
        Rong et al., ICML 2022 (arXiv 2202.00449), the LeRF order; mean change over shares as in pytorch-grad-cam's
        `ROADLeastRelevantFirstAverage`.

    Example:
        >>> road_lerf().higher_is_better
        True
    """
    return _metric(name, RemoveAndDebias(tuple(fractions), noise, keep_curve, ("least",)), True, "ROAD LeRF")


def _normal(draw: Any, images: Tensor) -> Tensor:
    """Normal noise of the images' shape, by Box and Muller's formula from uniform numbers in [0, 1)."""
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
    )


ROAD_METRICS = (road(), road_morf(), road_lerf())
