"""The confidence while pixels are put in or taken away in the order of a map: curves, and the areas under and over them.

The pixels of a map are put in order once; each step of a curve is then a comparison of ranks with a number, for all images of
the batch at a time. The passes of all images and steps are made together, as full as can be.
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
    "BASELINES",
    "CURVE_METRICS",
    "CurveOfPixels",
    "area_under",
    "deletion",
    "insertion",
    "lerf",
    "morf",
    "perturbation_curves",
    "perturbed_pixels",
    "pixel_ranks",
]

Baseline = str | Callable[[Tensor], Tensor]
Steps = int | Sequence[float]

BASELINES = ("zero", "black", "mean", "blur", "noise")

RISE = "Petsiuk et al. 2018, arXiv 1806.07421"
SAMEK = "Samek et al. 2017, arXiv 1509.06321"


def pixel_ranks(maps: Float[Tensor, " n *space"]) -> Int[Tensor, " n *space"]:
    """The place of each pixel in its map's order: 0 for the largest value; of equal values the one that is read first.

    The order is that of a stable sort, so that it is the same on all devices: where a map is flat, pixels come row by row
    from the upper left. The least relevant first is this order read backwards, `pixels - 1 - ranks`.

    Args:
        maps: `[N, H, W]`, of volumes `[N, D, H, W]`.

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
    """How many pixels are changed at each point of a curve, `[S]`; divided by `pixels` they are the curve's axis.

    Args:
        pixels: of an image.
        steps: how many equal steps, which makes one point more; or the shares themselves, rising in [0, 1]. Both are rounded
            to whole pixels.
        pixels_per_step: instead of `steps`; the last step takes what is left.

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
    """The area under each curve by the trapezoidal rule, divided by the width of its axis: the curve's mean height.

    In the unit of the curve. On an axis from 0 to 1 it is the area itself. NaN where the axis has no width, and for a curve
    with NaN.

    Args:
        curves: `[N, S]`.
        fractions: the axis, the shares of pixels that really were changed, `[S]`; the steps need not be equal.

    Raises:
        MetricError: there is not one share for each of at least two points.

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


def perturbation_curves(
    ask: Callable[[Iterator[tuple[Tensor, Tensor]]], Tensor],
    images: Float[Tensor, "n c *space"],
    ranks: Int[Tensor, " n *space"],
    replacement: Float[Tensor, "#n c *#space"],
    counts: Int[Tensor, " s"],
    inserts: bool = False,
) -> Float[Tensor, "n s"]:
    """The confidences `[N, S]` where the pixels of the lowest ranks are replaced, or are all that is left of the image.

    Args:
        ask: from blocks of images `[G, C, H, W]` and the numbers `[G]` of the batch's images to confidences; see `NEEDS`.
        images: `[N, C, H, W]`, of volumes `[N, C, D, H, W]`.
        ranks: of their pixels, 0 for the one that changes first.
        replacement: what pixels are replaced by, broadcastable to the images.
        counts: how many pixels have changed at each point.
        inserts: start from the replacement and put pixels of the image in; else the other way round.
    """
    numbers = torch.arange(len(images), device=images.device)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for count in counts.tolist():
            changed = (ranks < count)[:, None]
            yield torch.where(changed if inserts else ~changed, images, replacement), numbers

    return ask(blocks()).view(len(counts), len(images)).T


@dataclass(frozen=True)
class CurveOfPixels:
    """One of the metrics of this module as a function of what it needs; `insertion` and its neighbours make them.

    Attributes:
        steps: as `perturbed_pixels` has it.
        pixels_per_step: likewise.
        baseline: one of `BASELINES`, or a function from images to what replaces them.
        keep_curve: give the curves beside the values.
        least_first: the least relevant pixels change first.
        inserts: from the baseline to the image; else from the image to the baseline.
        over: the value is what lies between the curve and the confidence on the whole image; else what lies below the curve.
    """

    steps: Steps
    pixels_per_step: int | None
    baseline: Baseline
    keep_curve: bool
    least_first: bool = False
    inserts: bool = False
    over: bool = False

    def __post_init__(self) -> None:
        _check_steps(self.steps, self.pixels_per_step)
        if not callable(self.baseline) and self.baseline not in BASELINES:
            raise MetricError(
                f"no baseline {self.baseline!r}; {choose_from(self.baseline, BASELINES)}; or give a function from images "
                "[N, C, H, W] to what replaces them"
            )

    def __call__(
        self, confidence: Tensor, maps: Tensor, images: Tensor, ask: Any, protocol: Protocol, draw: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Values `[N]`, with the curves `[N, S]` if they are to be kept."""
        pixels, ranks = maps[0].numel(), pixel_ranks(maps)
        counts = perturbed_pixels(pixels, self.steps, self.pixels_per_step)
        replacement = _replacement(images, self.baseline, protocol, draw)
        order = pixels - 1 - ranks if self.least_first else ranks
        curves = perturbation_curves(ask, images, order, replacement, counts, self.inserts)
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
    """Insertion: the area under the confidence while pixels are put in, most relevant first; 0 to 1, higher is better.

    The range is that of the confidence, so 0 to 1 for softmax. Each image and map takes `steps + 1` forward passes.

    Args:
        steps: how many equal steps from the baseline to the image; or shares of pixels, rising in [0, 1].
        baseline: what the image starts from: "blur" (Gaussian, sigma a tenth of the shorter side), "zero" (in the model's
            input space), "black" (needs the protocol's `mean` and `std`), "mean" (the image's mean colour), "noise" (uniform
            between the image's smallest and largest value of each channel, by the run's seed), or a function from images
            `[N, C, H, W]` to their replacement.
        keep_curve: keep each image's curve in the rows, as `<name>_curve`.
        pixels_per_step: instead of `steps`, as the authors' own code counts.
        name: of the column; two that differ in settings need two names.

    Raises:
        MetricError: steps or baseline that there cannot be.

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
    """Deletion: the area under the confidence while pixels are taken away, most relevant first; 0 to 1, lower is better.

    The range is that of the confidence, so 0 to 1 for softmax. Each image and map takes `steps + 1` forward passes.

    Args:
        steps: as in `insertion`, from the image to the baseline.
        baseline: as in `insertion`; "zero" is 0 in the model's input space, as in the authors' code.
        keep_curve: keep each image's curve in the rows, as `<name>_curve`.
        pixels_per_step: instead of `steps`.
        name: of the column.

    Raises:
        MetricError: steps or baseline that there cannot be.

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
    """Pixel flipping, most relevant first: the confidence's mean fall along the curve, -1 to 1, higher is better.

    The area between the confidence on the whole image and the curve (area over the perturbation curve, AOPC). Single pixels
    are flipped, where the paper flips squares of 9 x 9, and the mean is by the trapezoidal rule, where the paper's is over the
    points. Each image and map takes `steps + 1` forward passes.

    Args:
        steps: as in `insertion`, from the image to the baseline.
        baseline: as in `insertion`; "noise" as in the paper.
        keep_curve: keep each image's curve (confidences) in the rows, as `<name>_curve`.
        pixels_per_step: instead of `steps`.
        name: of the column.

    Raises:
        MetricError: steps or baseline that there cannot be.

    Reference:
        Samek et al., "Evaluating the visualization of what a deep neural network has learned", TNNLS 2017 (arXiv 1509.06321),
        AOPC of the most relevant first order; pixels as in Bach et al., PLoS ONE 2015.

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
    """Pixel flipping, least relevant first: the confidence's mean fall along the curve, -1 to 1, lower is better.

    As `morf`, in the same order read backwards. `morf - lerf` at equal settings is the area between the two curves.

    Args:
        steps: as in `insertion`, from the image to the baseline.
        baseline: as in `insertion`.
        keep_curve: keep each image's curve (confidences) in the rows, as `<name>_curve`.
        pixels_per_step: instead of `steps`.
        name: of the column.

    Raises:
        MetricError: steps or baseline that there cannot be.

    Reference:
        Samek et al., TNNLS 2017 (arXiv 1509.06321), the least relevant first order.

    Example:
        >>> lerf().higher_is_better
        False
    """
    curve = CurveOfPixels(steps, pixels_per_step, baseline, keep_curve, least_first=True, over=True)
    return _metric(name, curve, higher_is_better=False, label="LeRF", paper=SAMEK)


def _replacement(images: Tensor, baseline: Baseline, protocol: Protocol, draw: Any) -> Tensor:
    if callable(baseline):
        return baseline(images)
    if baseline == "noise":
        flat, ones = images.flatten(2), (1,) * (images.ndim - 2)
        low, high = (end.view(*end.shape, *ones) for end in (flat.amin(dim=2), flat.amax(dim=2)))
        return low + (high - low) * draw(images.shape[1:], "noise of a curve").to(images.dtype)
    fill: Any = baseline
    return masking.baseline(images, replace(protocol, fill=fill, space="model"))


def _check_steps(steps: Steps, pixels_per_step: int | None) -> None:
    if pixels_per_step is not None:
        if pixels_per_step < 1:
            raise MetricError(f"pixels_per_step is at least 1, got {pixels_per_step}")
    elif isinstance(steps, int):
        if steps < 1:
            raise MetricError(f"steps is at least 1, got {steps}")
    elif len(steps) < 2 or list(steps) != sorted(set(steps)) or not 0 <= steps[0] < steps[-1] <= 1:
        raise MetricError(f"steps is a number of steps, or two or more rising shares of pixels in [0, 1]; got {steps}")


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
    )


CURVE_METRICS = (insertion(), deletion(), morf(), lerf())
