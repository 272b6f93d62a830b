"""Insertion, deletion and pixel flipping: areas of the confidence while pixels or segments change in the order of a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.masking.segments import Segments
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import Baseline, Perturbation, Steps, area_under

__all__ = ["deletion", "insertion", "lerf", "morf"]

RISE = "Petsiuk et al. 2018, arXiv 1806.07421"
SAMEK = "Samek et al. 2017, arXiv 1509.06321"


@dataclass(frozen=True)
class Curve:
    """The function of a metric of this module; `insertion`, `deletion`, `morf` and `lerf` make them.

    Attributes:
        made: How the images of the curve are made.
        keep_curve: Return the curves with the values.
        least_first: The least relevant pixels change first.
        inserts: Go from the baseline to the image; otherwise from the image to the baseline.
        over: The value is the area between the curve and the confidence on the original image; otherwise the area under the
            curve.
    """

    made: Perturbation
    keep_curve: bool
    least_first: bool = False
    inserts: bool = False
    over: bool = False

    def __call__(
        self, confidence: Tensor, maps: Tensor, images: Tensor, ask: Any, protocol: Protocol, draw: Any, segment: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return values `[N]`, and with `keep_curve` the curves `[N, S]`."""
        order = self.made.order(maps, segment)
        order = order.reversed() if self.least_first else order
        [curves], shares = self.made.curves(images, [order], ask, protocol, draw, self.inserts)
        area = area_under(curves, shares)
        values = confidence - area if self.over else area
        return (values, curves) if self.keep_curve else values


def insertion(
    steps: Steps = 32,
    baseline: Baseline = "blur",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
    segments: Segments = None,
    name: str = "insertion",
) -> Metric:
    """Insertion: area under the confidence while pixels are inserted, most relevant first, in its unit, higher is better.

    0 to 1 for softmax. Each image and map takes `steps + 1` forward passes.

    Args:
        steps: Number of equal steps from the baseline to the image; or shares of pixels, increasing, in [0, 1].
        baseline: The start: "zero" (in the model's input space), "black" (needs the protocol's `mean` and `std`), "noise"
            (uniform between the image's smallest and largest value of each channel, by the run's seed), the name of any other
            fill of `Protocol`, or a function from images `[N, C, H, W]`, or from images and masks (1 for what is kept), to
            their replacement.
        keep_curve: Keep each image's curve in the rows, as `<name>_curve`.
        pixels_per_step: Pixels of each step, instead of `steps`, as in the authors' code.
        segments: What is inserted at once, ranked by the mean of the map over it: None for single pixels, the side of square
            patches in pixels, "slic" (or "slic-25") for superpixels, or a function from images to label maps `[N, H, W]`. Steps
            are then shares of the segments.
        name: Name of the column; two metrics with different settings need two names.

    Raises:
        MetricError: Steps, baseline or segments are invalid.

    Reference:
        Petsiuk et al., "RISE", BMVC 2018 (arXiv 1806.07421), the insertion metric; steps and area as in the authors'
        `evaluation.py`.

    Example:
        >>> insertion(steps=8, baseline="mean").settings["steps"]
        8
    """
    made = Perturbation(steps, baseline, segments, pixels_per_step)
    curve = Curve(made, keep_curve, inserts=True)
    return _metric(name, curve, higher_is_better=True, label="Insertion", paper=RISE)


def deletion(
    steps: Steps = 32,
    baseline: Baseline = "zero",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
    segments: Segments = None,
    name: str = "deletion",
) -> Metric:
    """Deletion: area under the confidence while pixels are removed, most relevant first, in its unit, lower is better.

    0 to 1 for softmax. Each image and map takes `steps + 1` forward passes.

    Args:
        steps: As in `insertion`, from the image to the baseline.
        baseline: As in `insertion`; "zero" is 0 in the model's input space, as in the authors' code.
        keep_curve: Keep each image's curve in the rows, as `<name>_curve`.
        pixels_per_step: Pixels of each step, instead of `steps`.
        segments: As in `insertion`.
        name: Name of the column.

    Raises:
        MetricError: Steps, baseline or segments are invalid.

    Reference:
        Petsiuk et al., "RISE", BMVC 2018 (arXiv 1806.07421), the deletion metric.

    Example:
        >>> deletion(steps=(0, 0.05, 0.1, 0.5, 1)).needs[:3]
        ('confidence', 'maps', 'images')
    """
    made = Perturbation(steps, baseline, segments, pixels_per_step)
    curve = Curve(made, keep_curve)
    return _metric(name, curve, higher_is_better=False, label="Deletion", paper=RISE)


def morf(
    steps: Steps = 32,
    baseline: Baseline = "noise",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
    segments: Segments = None,
    name: str = "morf",
) -> Metric:
    """Pixel flipping, most relevant pixels first: the mean fall of the confidence, -1 to 1 for softmax, higher is better.

    It is the area between the confidence on the original image and the curve (area over the perturbation curve, AOPC). The
    paper flips squares of 9 x 9 pixels and averages over the points of the curve; here single pixels are flipped and the mean
    is by the trapezoidal rule. Each image and map takes `steps + 1` forward passes.

    Args:
        steps: As in `insertion`, from the image to the baseline.
        baseline: As in `insertion`; "noise" as in the paper.
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        pixels_per_step: Pixels of each step, instead of `steps`.
        segments: As in `insertion`.
        name: Name of the column.

    Raises:
        MetricError: Steps, baseline or segments are invalid.

    Reference:
        Samek et al., "Evaluating the visualization of what a deep neural network has learned", TNNLS 2017 (arXiv 1509.06321),
        AOPC in the most relevant first order; single pixels as in Bach et al., PLoS ONE 2015.

    Example:
        >>> morf(baseline="mean").higher_is_better
        True
    """
    made = Perturbation(steps, baseline, segments, pixels_per_step)
    curve = Curve(made, keep_curve, over=True)
    return _metric(name, curve, higher_is_better=True, label="MoRF", paper=SAMEK)


def lerf(
    steps: Steps = 32,
    baseline: Baseline = "noise",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
    segments: Segments = None,
    name: str = "lerf",
) -> Metric:
    """Pixel flipping, least relevant pixels first: the mean fall of the confidence, -1 to 1 for softmax, lower is better.

    Like `morf`, in the reverse order. `morf - lerf` with equal settings is the area between the two curves.

    Args:
        steps: As in `insertion`, from the image to the baseline.
        baseline: As in `insertion`.
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        pixels_per_step: Pixels of each step, instead of `steps`.
        segments: As in `insertion`.
        name: Name of the column.

    Raises:
        MetricError: Steps, baseline or segments are invalid.

    Reference:
        Samek et al., TNNLS 2017 (arXiv 1509.06321), the least relevant first order.

    Example:
        >>> lerf().higher_is_better
        False
    """
    made = Perturbation(steps, baseline, segments, pixels_per_step)
    curve = Curve(made, keep_curve, least_first=True, over=True)
    return _metric(name, curve, higher_is_better=False, label="LeRF", paper=SAMEK)


def _metric(name: str, curve: Curve, *, higher_is_better: bool, label: str, paper: str) -> Metric:
    return Metric(
        name,
        curve,
        higher_is_better,
        label=label,
        needs=curve.made.needs,
        settings={**curve.made.settings, "keep_curve": curve.keep_curve},
        passes="steps + 1",
        paper=paper,
        divides=False,
        family="faithfulness",
        bounds=(-1.0, 1.0) if curve.over else (0.0, 1.0),
    )


METRICS = (insertion(), deletion(), morf(), lerf())
