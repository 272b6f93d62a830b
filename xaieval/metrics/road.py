"""Remove and debias (ROAD): pixels are removed in the order of a map, and imputed so that the removed shape reveals little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from xaieval.config.protocol import plain
from xaieval.errors import MetricError
from xaieval.masking.linear_imputation import linear_imputation
from xaieval.masking.segments import Segments, check_segments
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import perturbed_pixels
from xaieval.metrics.segments import Order, order_of

__all__ = ["linear_imputation", "road", "road_lerf", "road_morf"]

First = Literal["most", "least"]

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
        segments: What is removed at once, see `label_maps`; None for single pixels.
    """

    fractions: Sequence[float]
    noise: float
    keep_curve: bool
    orders: Sequence[First]
    segments: Segments = None

    def __post_init__(self) -> None:
        check_segments(self.segments)
        rising = list(self.fractions) == sorted(set(self.fractions))
        if not self.fractions or not rising or not 0 < self.fractions[0] <= self.fractions[-1] < 1:
            raise MetricError(f"fractions are increasing shares of pixels, each above 0 and below 1; got {self.fractions}")
        if self.noise < 0:
            raise MetricError(f"noise is a standard deviation, 0 for none; got {self.noise}")

    def __call__(
        self, confidence: Tensor, maps: Tensor, images: Tensor, ask: Any, draw: Any, segment: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return values `[N]`, and with `keep_curve` the curves `[N, S]`."""
        order = order_of(maps, None if self.segments is None else segment(self.segments))
        confidences = ask(self._blocks(order, images, draw)).view(len(self.orders), len(self.fractions), len(images))
        if len(self.orders) == 2:
            curves = (confidences[1] - confidences[0]) / 2
            values = curves.mean(dim=0)
        else:
            curves = confidences[0]
            values = curves.mean(dim=0) - confidence
        return (values, curves.T) if self.keep_curve else values

    def _blocks(self, order: Order, images: Tensor, draw: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """All images of the batch with a share of their pixels imputed, for each order and each share."""
        numbers = torch.arange(len(images), device=images.device)
        noise = self.noise * _normal(draw, images) if self.noise else None
        units = order.units.tolist()
        counts = torch.stack([perturbed_pixels(number, self.fractions).clamp(max=number - 1) for number in units])
        for first in self.orders:
            ordered = order if first == "most" else order.reversed()
            for count in counts.to(images.device).unbind(dim=1):
                missing = ordered.first(count)
                imputed = linear_imputation(images, missing)
                yield imputed if noise is None else imputed + noise * missing[:, None], numbers


def road(
    fractions: Sequence[float] = FRACTIONS,
    noise: float = 0.01,
    keep_curve: bool = False,
    *,
    segments: Segments = None,
    name: str = "road",
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
        segments: What is removed at once, as in `insertion`; fractions are then shares of the segments, and at least one
            segment stays. None for single pixels.
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
    return _metric(name, RemoveAndDebias(tuple(fractions), noise, keep_curve, ("most", "least"), segments), True, "ROAD")


def road_morf(
    fractions: Sequence[float] = FRACTIONS,
    noise: float = 0.01,
    keep_curve: bool = False,
    *,
    segments: Segments = None,
    name: str = "road_morf",
) -> Metric:
    """ROAD, most relevant pixels first: the mean change of the confidence, -1 to 1 for softmax, lower is better.

    Each image and map takes one forward pass and one imputation for each share of removed pixels.

    Args:
        fractions: As in `road`.
        noise: As in `road`.
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        segments: As in `road`.
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
    return _metric(name, RemoveAndDebias(tuple(fractions), noise, keep_curve, ("most",), segments), False, "ROAD MoRF")


def road_lerf(
    fractions: Sequence[float] = FRACTIONS,
    noise: float = 0.01,
    keep_curve: bool = False,
    *,
    segments: Segments = None,
    name: str = "road_lerf",
) -> Metric:
    """ROAD, least relevant pixels first: the mean change of the confidence, -1 to 1 for softmax, higher is better.

    Each image and map takes one forward pass and one imputation for each share of removed pixels.

    Args:
        fractions: As in `road`.
        noise: As in `road`.
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        segments: As in `road`.
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
    return _metric(name, RemoveAndDebias(tuple(fractions), noise, keep_curve, ("least",), segments), True, "ROAD LeRF")


def _normal(draw: Any, images: Tensor) -> Tensor:
    """Normal noise of the shape of the images, from uniform numbers in [0, 1) by the Box-Muller transform."""
    size, angle = draw((2, *images.shape[1:]), "noise of an imputation").to(images.dtype).unbind(dim=1)
    return (-2 * torch.log1p(-size)).sqrt() * torch.cos(2 * torch.pi * angle)


def _metric(name: str, removal: RemoveAndDebias, higher_is_better: bool, label: str) -> Metric:
    settings = {"fractions": list(removal.fractions), "noise": removal.noise, "keep_curve": removal.keep_curve}
    in_segments = removal.segments is not None
    return Metric(
        name,
        removal,
        higher_is_better,
        label=label,
        needs=("confidence", "maps", "images", "ask", "draw", *(["segment"] if in_segments else [])),
        settings={**settings, "segments": plain(removal.segments)} if in_segments else settings,
        passes="one for each share removed" if len(removal.orders) == 1 else "two for each share removed",
        paper=RONG,
        divides=False,
        family="faithfulness",
        bounds=(-1.0, 1.0),
    )


METRICS = (road(), road_morf(), road_lerf())
