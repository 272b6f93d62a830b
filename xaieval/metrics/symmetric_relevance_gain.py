"""The area between the two curves of pixel flipping, AbPC and SRG, and what the fill does to the model without any map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.masking.segments import Segments
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import Baseline, Perturbation, Steps, area_under

__all__ = ["abpc", "r_oms", "symmetric_relevance_gain"]

BLUECHER = "Bluecher et al. 2024, arXiv 2401.06654"
PNPXAI = "Kim et al. 2025, arXiv 2505.10515 (PnPXAI)"


@dataclass(frozen=True)
class BetweenCurves:
    """The function of `abpc` and `symmetric_relevance_gain`.

    Attributes:
        made: How the images of both curves are made.
        keep_curve: Return the difference of the curves with the values.
    """

    made: Perturbation
    keep_curve: bool

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs of the metric."""
        return self.made.needs

    def __call__(
        self, confidence: Tensor, maps: Tensor, images: Tensor, ask: Any, protocol: Protocol, draw: Any, segment: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return values `[N]`, and with `keep_curve` the differences `[N, S]`."""
        order = self.made.order(maps, segment)
        [most, least], shares = self.made.curves(images, [order, order.reversed()], ask, protocol, draw)
        values = area_under(least - most, shares)
        return (values, least - most) if self.keep_curve else values


@dataclass(frozen=True)
class RandomOrder:
    """The function of `r_oms`.

    Attributes:
        made: How the images of the curve are made.
        keep_curve: Return the curves with the values.
    """

    made: Perturbation
    keep_curve: bool

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs of the metric: no maps, so it has no matched controls, which would have the same values."""
        return tuple(need for need in self.made.needs if need != "maps")

    def __call__(
        self, confidence: Tensor, images: Tensor, ask: Any, protocol: Protocol, draw: Any, segment: Any = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return values `[N]`, and with `keep_curve` the curves `[N, S]`."""
        numbers = draw(images.shape[2:], "order of r_oms")
        if self.made.segments is not None:  # one number for all pixels of a segment
            labels = segment(self.made.segments)
            numbers = numbers.flatten(1).gather(1, labels.flatten(1)).view(numbers.shape)
        [curves], shares = self.made.curves(images, [self.made.order(numbers, segment)], ask, protocol, draw)
        values = area_under(curves, shares)
        return (values, curves) if self.keep_curve else values


def abpc(
    steps: Steps = 10,
    baseline: Baseline = "zero",
    keep_curve: bool = False,
    *,
    segments: Segments = None,
    name: str = "abpc",
) -> Metric:
    """Area between perturbation curves (AbPC), in the confidence's unit, -1 to 1 for softmax, higher is better.

    The confidence after the least relevant pixels are removed minus that after the most relevant ones are, as a mean over the
    share of removed pixels: `morf - lerf` with equal settings. Each image and map takes `2 * (steps + 1)` forward passes.

    Args:
        steps: As in `insertion`, from the image to the baseline.
        baseline: As in `insertion`.
        keep_curve: Keep each image's difference of the curves in the rows, as `<name>_curve`.
        segments: As in `insertion`.
        name: Name of the column.

    Raises:
        MetricError: Steps, baseline or segments are invalid.

    Reference:
        As `AbPC` of PnPXAI (arXiv 2505.10515), with its defaults; there the mean is over points, here over the axis.

    Example:
        >>> abpc(steps=20).settings["steps"]
        20
    """
    return _metric(name, BetweenCurves(Perturbation(steps, baseline, segments), keep_curve), True, "AbPC", PNPXAI)


def symmetric_relevance_gain(
    segments: Segments = "slic-25",
    baseline: Baseline = "zero",
    steps: Steps | None = None,
    keep_curve: bool = False,
    *,
    name: str = "symmetric_relevance_gain",
) -> Metric:
    """Symmetric relevance gain (SRG), in the confidence's unit, -1 to 1 for softmax, higher is better.

    The area under the curve with the least influential superpixel first minus that with the most influential first. What a
    random order would lose, which depends on the fill more than on the map (`r_oms`), is in both and falls out. Each image and
    map takes two forward passes for each superpixel, and two more.

    Args:
        segments: What is removed at once, as in `insertion`; about 25 superpixels as in the authors' settings, which needs
            scikit-image. None for single pixels, with `steps`.
        baseline: As in `insertion`; "zero" as the constant fill of the authors' settings.
        steps: As in `insertion`; None for one superpixel at a time.
        keep_curve: Keep each image's difference of the curves in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: A setting is invalid, or scikit-image is not installed.

    Reference:
        Bluecher, Vielhaben and Strodthoff, "Decoupling pixel flipping and occlusion strategy for consistent XAI benchmarks",
        TMLR 2024 (arXiv 2401.06654): LIF - MIF.

    Example:
        >>> symmetric_relevance_gain(baseline="telea").settings["baseline"]
        'telea'
    """
    made = Perturbation(steps, baseline, segments)
    return _metric(name, BetweenCurves(made, keep_curve), True, "SRG", BLUECHER)


def r_oms(
    segments: Segments = "slic-25",
    baseline: Baseline = "zero",
    steps: Steps | None = None,
    keep_curve: bool = False,
    *,
    name: str = "r_oms",
) -> Metric:
    """Reference out-of-model-scope score (R-OMS), in the confidence's unit, 0 to 1 for softmax; it describes the fill.

    Area under the confidence while superpixels are removed in a random order, which is drawn for each image by the run's seed.
    It does not use a map, so all methods have the same value. It is high if the fill disturbs the model little.
    `morf`, `lerf` and their kin can be read against it. Each image takes one forward pass for each superpixel, and one more.

    Args:
        segments: As in `symmetric_relevance_gain`.
        baseline: As in `symmetric_relevance_gain`.
        steps: As in `symmetric_relevance_gain`.
        keep_curve: Keep each image's curve in the rows, as `<name>_curve`.
        name: Name of the column.

    Raises:
        MetricError: A setting is invalid, or scikit-image is not installed.

    Reference:
        Bluecher et al., TMLR 2024 (arXiv 2401.06654), with a random order as the reference.

    Example:
        >>> r_oms().higher_is_better is None
        True
    """
    return _metric(name, RandomOrder(Perturbation(steps, baseline, segments), keep_curve), None, "R-OMS", BLUECHER)


def _metric(name: str, function: BetweenCurves | RandomOrder, better: bool | None, label: str, paper: str) -> Metric:
    points = "steps" if function.made.steps is not None else "superpixels"
    return Metric(
        name,
        function,
        better,
        label=label,
        needs=function.needs,
        settings={**function.made.settings, "keep_curve": function.keep_curve},
        passes=f"{points} + 1" if isinstance(function, RandomOrder) else f"2 ({points} + 1)",
        paper=paper,
        divides=False,
        family="faithfulness",
        bounds=(-1.0, 1.0),
        altered_by="a random order" if isinstance(function, RandomOrder) else "",
    )


METRICS = (abpc(), symmetric_relevance_gain(), r_oms())
