"""Metrics that remove one region after another, most relevant first: region perturbation, selectivity, IROF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.errors import MetricError
from xaieval.masking.segments import Segments
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import Baseline, Perturbation, area_under

__all__ = ["irof", "region_perturbation", "selectivity"]

SAMEK = "Samek et al. 2017, arXiv 1509.06321"
MONTAVON = "Montavon et al. 2018, arXiv 1706.07979"
RIEGER = "Rieger and Hansen 2020, arXiv 2003.08747"

Summary = Callable[[Tensor, Tensor, Tensor], Tensor]  # of Y [N], curves [N, S] and their axis [N, S]


def _mean_fall(confidence: Tensor, curves: Tensor, shares: Tensor) -> Tensor:
    """The mean of `Y - curve` over the points; an image whose last region is gone has no further points."""
    gone = torch.cat([torch.zeros_like(shares[:, :1]), shares[:, :-1]], dim=1) >= 1
    falls = (confidence[:, None] - curves).masked_fill(gone, torch.nan)
    return falls.double().nansum(dim=1) / (~gone).sum(dim=1) + 0 * curves.sum(dim=1)  # NaN in a curve stays NaN


def _area_over_share(confidence: Tensor, curves: Tensor, shares: Tensor) -> Tensor:
    """The area over `curve / Y`; NaN where Y is not positive."""
    positive = torch.where(confidence > 0, confidence.double(), torch.nan)
    return 1 - area_under(curves.double() / positive[:, None], shares)


def _area(confidence: Tensor, curves: Tensor, shares: Tensor) -> Tensor:
    return area_under(curves, shares)


@dataclass(frozen=True)
class RemovedRegions:
    """The function of a metric of this module.

    Attributes:
        made: How the images of the curve are made, one region at a time.
        summary: From Y and the curve to the value.
        keep_curve: Return the curves (confidences) with the values.
        least_first: The least relevant region is removed first.
    """

    made: Perturbation
    summary: Summary
    keep_curve: bool
    least_first: bool = False

    def __call__(
        self, confidence: Tensor, maps: Tensor, images: Tensor, ask: Any, protocol: Protocol, draw: Any, segment: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return values `[N]`, and with `keep_curve` the curves `[N, S]`."""
        order = self.made.order(maps, segment)
        order = order.reversed() if self.least_first else order
        [curves], shares = self.made.curves(images, [order], ask, protocol, draw)
        values = self.summary(confidence, curves, shares)
        return (values, curves) if self.keep_curve else values


def region_perturbation(
    regions: int = 100,
    segments: Segments = 9,
    baseline: Baseline = "noise",
    order: Literal["morf", "lerf"] = "morf",
    keep_curve: bool = False,
    *,
    name: str = "region_perturbation",
) -> Metric:
    """Region perturbation (AOPC): the mean fall of the confidence, -1 to 1 for softmax, higher is better.

    `1 / (L + 1) * sum_k (Y - f(x_k))` for k = 0 to L, where `x_k` is the image without its k most relevant regions. In the
    order "lerf" the least relevant regions go first, and lower is better. Each image and map takes `regions + 1` forward
    passes.

    Args:
        regions: L, the number of regions that are removed; all, if there are fewer.
        segments: The side of square regions in pixels, "slic", or a function; see `label_maps`. They are ranked by the mean of
            the map over each.
        baseline: What replaces a region, as in `insertion`; "noise" (uniform) as in the paper.
        order: "morf", most relevant first, or "lerf".
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: A setting is invalid.

    Reference:
        Samek et al., "Evaluating the visualization of what a deep neural network has learned", TNNLS 2017 (arXiv 1509.06321),
        AOPC: 100 steps, regions of 9 x 9 pixels, random values.

    Example:
        >>> region_perturbation(regions=30, segments=16).settings["regions"]
        30
    """
    if order not in ("morf", "lerf"):
        raise MetricError(f"order is 'morf' or 'lerf', got {order!r}")
    if regions < 1:
        raise MetricError(f"regions is at least 1, got {regions}")
    removed = RemovedRegions(_one_by_one(segments, baseline, regions), _mean_fall, keep_curve, least_first=order == "lerf")
    return _metric(name, removed, order == "morf", "Region perturbation", SAMEK, "regions + 1")


def selectivity(
    segments: Segments = 8, baseline: Baseline = "zero", keep_curve: bool = False, *, name: str = "selectivity"
) -> Metric:
    """Selectivity: area under the confidence while all regions are removed one by one, in its unit, lower is better.

    0 to 1 for softmax. Each image and map takes one forward pass for each region and one more: 785 for patches of 8 pixels in
    an image of 224 x 224. `deletion(steps=32, segments=8)` measures the same with 33.

    Args:
        segments: As in `region_perturbation`; patches of 8 pixels as in Quantus, since the paper's 4 are for digits of 28
            pixels.
        baseline: What replaces a region, as in `insertion`.
        keep_curve: Keep each image's curve in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: A setting is invalid.

    Reference:
        Montavon, Samek and Mueller, "Methods for interpreting and understanding deep neural networks", Digital Signal
        Processing 2018 (arXiv 1706.07979), section 7.2.

    Example:
        >>> selectivity(segments=16).higher_is_better
        False
    """
    removed = RemovedRegions(_one_by_one(segments, baseline), _area, keep_curve)
    return _metric(name, removed, False, "Selectivity", MONTAVON, "regions + 1")


def irof(segments: Segments = "slic", baseline: Baseline = "mean", keep_curve: bool = False, *, name: str = "irof") -> Metric:
    """Iterative removal of features (IROF): the area over the curve `f(x_k) / Y`, at most 1, higher is better.

    `x_k` is the image without its k most relevant superpixels, for k from 0 to all of them, on an axis from 0 to 1. It is
    negative if the confidence rises, and NaN where Y is not positive. Each image and map takes one forward pass for each
    superpixel and one more.

    Args:
        segments: As in `region_perturbation`; "slic" (about 100 superpixels) needs scikit-image.
        baseline: What replaces a superpixel, as in `insertion`; "mean" is the mean colour of the image, as in the paper.
        keep_curve: Keep each image's curve (confidences, not divided) in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: A setting is invalid, or scikit-image is not installed.

    Reference:
        Rieger and Hansen, "IROF: a low resource evaluation metric for explanation methods", ICLR workshop 2020 (arXiv
        2003.08747).

    Example:
        >>> irof(segments=16).is_quotient
        True
    """
    removed = RemovedRegions(_one_by_one(segments, baseline), _area_over_share, keep_curve)
    return _metric(name, removed, True, "IROF", RIEGER, "superpixels + 1", divides=True)


def _one_by_one(segments: Segments, baseline: Baseline, most: int | None = None) -> Perturbation:
    if segments is None:
        raise MetricError(
            "segments are regions: the side of square patches, 'slic' or a function; for pixels there is deletion"
        )
    return Perturbation(None, baseline, segments, most=most)


def _metric(
    name: str, removed: RemovedRegions, better: bool, label: str, paper: str, passes: str, divides: bool = False
) -> Metric:
    made = removed.made.settings
    limit = (
        {} if removed.made.most is None else {"regions": removed.made.most, "order": "lerf" if removed.least_first else "morf"}
    )
    return Metric(
        name,
        removed,
        better,
        label=label,
        needs=removed.made.needs,
        settings={**limit, "segments": made["segments"], "baseline": made["baseline"], "keep_curve": removed.keep_curve},
        passes=passes,
        paper=paper,
        divides=divides,
        family="faithfulness",
        bounds=None if divides else (-1.0, 1.0),
    )


METRICS = (region_perturbation(), selectivity(), irof())
