"""Perturbation curves: the confidence while pixels are inserted or removed in the order of a map, and the areas they enclose.

The pixels of each map are ranked once; each step of a curve is then a comparison of ranks with a count, for the whole batch at
once. The images of all steps share forward passes, which are filled as far as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xaieval import masking
from xaieval.config.protocol import Protocol, plain
from xaieval.errors import MetricError, choose_from
from xaieval.metrics.metric import Metric

__all__ = [
    "area_under",
    "deletion",
    "insertion",
    "lerf",
    "morf",
    "perturbed_pixels",
    "pixel_ranks",
]

Baseline = str | Callable[[Tensor], Tensor]
Steps = int | Sequence[float]

BASELINES = ("zero", "black", "mean", "blur", "noise")

RISE = "Petsiuk et al. 2018, arXiv 1806.07421"
SAMEK = "Samek et al. 2017, arXiv 1509.06321"


def pixel_ranks(maps: Float[Tensor, " n *space"]) -> Int[Tensor, " n *space"]:
    """The rank of each pixel in its map, from 0 for the largest value.

    Equal values are ranked row by row from the upper left, by a stable sort, so that the ranks are the same on all devices. The
    order with the least relevant pixels first is the reverse, `pixels - 1 - ranks`.

    Args:
        maps: Explanation maps, `[N, H, W]`, of volumes `[N, D, H, W]`.

    Example:
        >>> pixel_ranks(torch.tensor([[[0.1, 0.9], [0.5, 0.1]]]))
        tensor([[[2, 0],
                 [1, 3]]])
    """
    flat = maps.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)


def perturbed_pixels(pixels: int, steps: Steps, pixels_per_step: int | None = None) -> Int[Tensor, " s"]:
    """The number of changed pixels at each point of a curve, `[S]`; divided by `pixels` it is the axis of the curve.

    Args:
        pixels: Number of pixels of an image.
        steps: Number of equal steps, for a curve of `steps + 1` points; or the shares of pixels, increasing, in [0, 1]. Both
            are rounded to whole pixels.
        pixels_per_step: Pixels of each step, instead of `steps`; the last step takes the remaining ones.

    Example:
        >>> perturbed_pixels(10, 4)
        tensor([ 0,  2,  5,  8, 10])
        >>> perturbed_pixels(10, (0, 0.1, 1)), perturbed_pixels(10, 0, pixels_per_step=4)
        (tensor([ 0,  1, 10]), tensor([ 0,  4,  8, 10]))
    """
    if pixels_per_step is not None:
        return torch.arange(0, pixels + pixels_per_step, pixels_per_step).clamp(max=pixels)
    shares = torch.arange(steps + 1).double() / steps if isinstance(steps, int) else torch.tensor(list(steps)).double()
    return (shares * pixels).round().long()


def area_under(curves: Float[Tensor, "n s"], fractions: Float[Tensor, " s"]) -> Float[Tensor, " n"]:
    """Mean height of each curve, in its unit: the area under it by the trapezoidal rule, divided by the width of its axis.

    On an axis from 0 to 1 it is the area itself. NaN if the axis has no width, and for a curve with NaN.

    Args:
        curves: Curves, `[N, S]`.
        fractions: Axis of the curves: the shares of pixels that were changed, `[S]`. The steps need not be equal.

    Raises:
        MetricError: There is not one share for each point, or there are fewer than two points.

    Example:
        >>> area_under(torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([0.0, 0.25, 1.0]))
        tensor([0.3750], dtype=torch.float64)
    """
    if curves.ndim != 2 or curves.shape[1:] != fractions.shape or len(fractions) < 2:
        raise MetricError(
            "curves are [N, S] and fractions [S], S at least 2, "
            f"got {list(curves.shape)} and {list(fractions.shape)}; perturbed_pixels(...) / pixels are the fractions"
        )
    axis = fractions.to(curves.device).double()
    return torch.trapezoid(curves.double(), axis, dim=1) / (axis[-1] - axis[0])


def _perturbation_curves(
    ask: Callable[[Iterator[tuple[Tensor, Tensor]]], Tensor],
    images: Float[Tensor, "n c *space"],
    ranks: Int[Tensor, " n *space"],
    replacement: Float[Tensor, "#n c *#space"],
    counts: Int[Tensor, " s"],
    inserts: bool = False,
) -> Float[Tensor, "n s"]:
    """The confidences `[N, S]` while the pixels of the lowest ranks are replaced, or inserted.

    Args:
        ask: Function from blocks (images `[G, C, H, W]`, indices `[G]` into the batch) to confidences; see `NEEDS`.
        images: Images, `[N, C, H, W]`, of volumes `[N, C, D, H, W]`.
        ranks: Ranks of their pixels, 0 for the pixel that changes first.
        replacement: Values that replace the pixels, broadcastable to the images.
        counts: Number of changed pixels at each point.
        inserts: Start from the replacement and insert pixels of the image; otherwise start from the image and replace them.
    """
    indices = torch.arange(len(images), device=images.device)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for count in counts.tolist():
            changed = (ranks < count)[:, None]
            yield torch.where(changed if inserts else ~changed, images, replacement), indices

    return ask(blocks()).view(len(counts), len(images)).T


@dataclass(frozen=True)
class CurveOfPixels:
    """The function of a metric of this module; `insertion`, `deletion`, `morf` and `lerf` make them.

    Attributes:
        steps: See `perturbed_pixels`.
        pixels_per_step: See `perturbed_pixels`.
        baseline: One of `BASELINES`, or a function from images to their replacement.
        keep_curve: Return the curves with the values.
        least_first: The least relevant pixels change first.
        inserts: Go from the baseline to the image; otherwise from the image to the baseline.
        over: The value is the area between the curve and the confidence on the original image; otherwise the area under the
            curve.
    """

    steps: Steps
    pixels_per_step: int | None
    baseline: Baseline
    keep_curve: bool
    least_first: bool = False
    inserts: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        check_steps(self.steps, self.pixels_per_step)
        check_baseline(self.baseline)

    def __call__(
        self, confidence: Tensor, maps: Tensor, images: Tensor, ask: Any, protocol: Protocol, draw: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return values `[N]`, and with `keep_curve` the curves `[N, S]`."""
        pixels, ranks = maps[0].numel(), pixel_ranks(maps)
        counts = perturbed_pixels(pixels, self.steps, self.pixels_per_step)
        replacement = replacement_for(images, self.baseline, protocol, draw)
        order = pixels - 1 - ranks if self.least_first else ranks
        curves = _perturbation_curves(ask, images, order, replacement, counts, self.inserts)
        area = area_under(curves, counts / pixels)
        values = confidence - area if self.over else area
        return (values, curves) if self.keep_curve else values


def insertion(
    steps: Steps = 32,
    baseline: Baseline = "blur",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
    name: str = "insertion",
) -> Metric:
    """Insertion: area under the confidence while pixels are inserted, most relevant first, in its unit, higher is better.

    0 to 1 for softmax. Each image and map takes `steps + 1` forward passes.

    Args:
        steps: Number of equal steps from the baseline to the image; or shares of pixels, increasing, in [0, 1].
        baseline: The start: "blur" (Gaussian, sigma a tenth of the shorter side), "zero" (in the model's input space), "black"
            (needs the protocol's `mean` and `std`), "mean" (the image's mean colour), "noise" (uniform between the image's
            smallest and largest value of each channel, by the run's seed), or a function from images `[N, C, H, W]` to their
            replacement.
        keep_curve: Keep each image's curve in the rows, as `<name>_curve`.
        pixels_per_step: Pixels of each step, instead of `steps`, as in the authors' code.
        name: Name of the column; two metrics with different settings need two names.

    Raises:
        MetricError: Steps or baseline are invalid.

    Reference:
        Petsiuk et al., "RISE", BMVC 2018 (arXiv 1806.07421), the insertion metric; steps and area as in the authors'
        `evaluation.py`.

    Example:
        >>> insertion(steps=8, baseline="mean").settings["steps"]
        8
    """
    curve = CurveOfPixels(steps, pixels_per_step, baseline, keep_curve, inserts=True)
    return _metric(name, curve, higher_is_better=True, label="Insertion", paper=RISE)


def deletion(
    steps: Steps = 32,
    baseline: Baseline = "zero",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
    name: str = "deletion",
) -> Metric:
    """Deletion: area under the confidence while pixels are removed, most relevant first, in its unit, lower is better.

    0 to 1 for softmax. Each image and map takes `steps + 1` forward passes.

    Args:
        steps: As in `insertion`, from the image to the baseline.
        baseline: As in `insertion`; "zero" is 0 in the model's input space, as in the authors' code.
        keep_curve: Keep each image's curve in the rows, as `<name>_curve`.
        pixels_per_step: Pixels of each step, instead of `steps`.
        name: Name of the column.

    Raises:
        MetricError: Steps or baseline are invalid.

    Reference:
        Petsiuk et al., "RISE", BMVC 2018 (arXiv 1806.07421), the deletion metric.

    Example:
        >>> deletion(steps=(0, 0.05, 0.1, 0.5, 1)).needs[:3]
        ('confidence', 'maps', 'images')
    """
    curve = CurveOfPixels(steps, pixels_per_step, baseline, keep_curve)
    return _metric(name, curve, higher_is_better=False, label="Deletion", paper=RISE)


def morf(
    steps: Steps = 32,
    baseline: Baseline = "noise",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
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
        name: Name of the column.

    Raises:
        MetricError: Steps or baseline are invalid.

    Reference:
        Samek et al., "Evaluating the visualization of what a deep neural network has learned", TNNLS 2017 (arXiv 1509.06321),
        AOPC in the most relevant first order; single pixels as in Bach et al., PLoS ONE 2015.

    Example:
        >>> morf(baseline="mean").higher_is_better
        True
    """
    curve = CurveOfPixels(steps, pixels_per_step, baseline, keep_curve, over=True)
    return _metric(name, curve, higher_is_better=True, label="MoRF", paper=SAMEK)


def lerf(
    steps: Steps = 32,
    baseline: Baseline = "noise",
    keep_curve: bool = False,
    *,
    pixels_per_step: int | None = None,
    name: str = "lerf",
) -> Metric:
    """Pixel flipping, least relevant pixels first: the mean fall of the confidence, -1 to 1 for softmax, lower is better.

    Like `morf`, in the reverse order. `morf - lerf` with equal settings is the area between the two curves.

    Args:
        steps: As in `insertion`, from the image to the baseline.
        baseline: As in `insertion`.
        keep_curve: Keep each image's curve (confidences) in the rows, as `<name>_curve`.
        pixels_per_step: Pixels of each step, instead of `steps`.
        name: Name of the column.

    Raises:
        MetricError: Steps or baseline are invalid.

    Reference:
        Samek et al., TNNLS 2017 (arXiv 1509.06321), the least relevant first order.

    Example:
        >>> lerf().higher_is_better
        False
    """
    curve = CurveOfPixels(steps, pixels_per_step, baseline, keep_curve, least_first=True, over=True)
    return _metric(name, curve, higher_is_better=False, label="LeRF", paper=SAMEK)


def replacement_for(
    images: Tensor, baseline: Baseline, protocol: Protocol, draw: Any, name: str = "noise of a curve"
) -> Tensor:
    """The values that replace pixels of the images, broadcastable to them; noise is drawn by the name."""
    if callable(baseline):
        return baseline(images)
    if baseline == "noise":
        flat, ones = images.flatten(2), (1,) * (images.ndim - 2)
        low, high = (end.view(*end.shape, *ones) for end in (flat.amin(dim=2), flat.amax(dim=2)))
        return low + (high - low) * draw(images.shape[1:], name).to(images.dtype)
    fill: Any = baseline
    return masking.baseline(images, replace(protocol, fill=fill, space="model"))


def check_baseline(baseline: Baseline) -> None:
    """Refuse a baseline that `replacement_for` does not know."""
    if not callable(baseline) and baseline not in BASELINES:
        raise MetricError(
            f"no baseline {baseline!r}; {choose_from(baseline, BASELINES)}; or give a function from images "
            "[N, C, H, W] to their replacement"
        )


def check_steps(steps: Steps, pixels_per_step: int | None) -> None:
    """Refuse steps that `perturbed_pixels` does not know."""
    if pixels_per_step is not None:
        if pixels_per_step < 1:
            raise MetricError(f"pixels_per_step is at least 1, got {pixels_per_step}")
    elif isinstance(steps, int):
        if steps < 1:
            raise MetricError(f"steps is at least 1, got {steps}")
    elif len(steps) < 2 or list(steps) != sorted(set(steps)) or not 0 <= steps[0] < steps[-1] <= 1:
        raise MetricError(f"steps is a number of steps, or two or more increasing shares of pixels in [0, 1]; got {steps}")


def _metric(name: str, curve: CurveOfPixels, *, higher_is_better: bool, label: str, paper: str) -> Metric:
    chosen = asdict(curve)
    return Metric(
        name,
        curve,
        higher_is_better,
        label=label,
        needs=("confidence", "maps", "images", "ask", "protocol", "draw"),
        settings={choice: plain(chosen[choice]) for choice in ("steps", "pixels_per_step", "baseline", "keep_curve")},
        passes="steps + 1",
        paper=paper,
        divides=False,
        family="faithfulness",
    )


METRICS = (insertion(), deletion(), morf(), lerf())
