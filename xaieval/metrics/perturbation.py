"""What all perturbation curves share: the order of pixels or segments, the points of a curve, and the area under it.

The pixels of each map are ranked once; each step of a curve is then a comparison of ranks with a count, for the whole batch at
once. The images of all steps share forward passes, which are filled as far as memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xaieval.config.protocol import Protocol, plain
from xaieval.errors import MetricError, choose_from
from xaieval.masking import FILLS, filling
from xaieval.masking.segments import Segments, check_segments
from xaieval.metrics.segments import Order, order_of, ranks_of

__all__ = ["area_under", "perturbed_pixels", "pixel_ranks"]

Baseline = str | Callable[..., Tensor]
Steps = int | Sequence[float]

BASELINES = (*FILLS[:4], "noise", *FILLS[4:])
NEEDED = ("confidence", "maps", "images", "ask", "protocol", "draw")  # the inputs of a curve


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
    return ranks_of(maps.flatten(1)).view(maps.shape)


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
        fractions: Axis of the curves: the shares of pixels or segments that were changed, `[S]`, or `[N, S]` where they differ
            between images. The steps need not be equal.

    Raises:
        MetricError: There is not one share for each point, or there are fewer than two points.

    Example:
        >>> area_under(torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([0.0, 0.25, 1.0]))
        tensor([0.3750], dtype=torch.float64)
    """
    if curves.ndim != 2 or fractions.shape not in (curves.shape, curves.shape[1:]) or curves.shape[1] < 2:
        raise MetricError(
            "curves are [N, S] and fractions [S] or [N, S], S at least 2, "
            f"got {list(curves.shape)} and {list(fractions.shape)}; perturbed_pixels(...) / pixels are the fractions"
        )
    axis = fractions.to(curves.device).double()
    return torch.trapezoid(curves.double(), axis, dim=1) / (axis[..., -1] - axis[..., 0])


@dataclass(frozen=True)
class Perturbation:
    """How the images of a curve are made.

    Attributes:
        steps: See `perturbed_pixels`; None for one unit at a time.
        baseline: One of `BASELINES`, or a function from images, or from images and what is kept of them, to their replacement.
        segments: What is changed at once: see `label_maps`; None for single pixels.
        pixels_per_step: See `perturbed_pixels`.
        most: Of one unit at a time, the largest number of units.
    """

    steps: Steps | None
    baseline: Baseline
    segments: Segments = None
    pixels_per_step: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        check_segments(self.segments)
        if self.steps is not None:
            check_steps(self.steps, self.pixels_per_step)
        if self.pixels_per_step is not None and self.segments is not None:
            raise MetricError("pixels_per_step is for curves of pixels; with segments, give steps")
        check_baseline(self.baseline)

    @property
    def needs(self) -> tuple[str, ...]:
        """The inputs of a metric with such a curve."""
        return NEEDED if self.segments is None else (*NEEDED, "segment")

    @property
    def settings(self) -> dict[str, Any]:
        """What the manifest says of it; segments only where there are some."""
        chosen = {"steps": plain(self.steps), "pixels_per_step": self.pixels_per_step, "baseline": plain(self.baseline)}
        return chosen if self.segments is None else {**chosen, "segments": plain(self.segments)}

    def order(self, maps: Float[Tensor, " n *space"], segment: Callable[[Segments], Tensor] | None) -> Order:
        """The order of the pixels, or of the segments that `segment` makes (see `NEEDS`)."""
        return order_of(maps, None if self.segments is None or segment is None else segment(self.segments))

    def points(self, units: Int[Tensor, " n"]) -> tuple[Int[Tensor, "n s"], Float[Tensor, "n s"]]:
        """The number of changed units at each point of each image's curve, and their share.

        One unit at a time, the curve of an image with fewer units than others stays at its end.
        """
        numbers = units.tolist()
        if self.steps is None:
            last = min(max(numbers), self.most or max(numbers))
            rows = {number: torch.arange(last + 1).clamp(max=number) for number in set(numbers)}
        else:
            rows = {number: perturbed_pixels(number, self.steps, self.pixels_per_step) for number in set(numbers)}
        counts = torch.stack([rows[number] for number in numbers])
        return counts.to(units.device), torch.stack([rows[number] / number for number in numbers]).to(units.device)

    def curves(
        self, images: Tensor, orders: Sequence[Order], ask: Any, protocol: Protocol, draw: Any, inserts: bool = False
    ) -> tuple[list[Float[Tensor, "n s"]], Float[Tensor, "n s"]]:
        """For each order the confidences `[N, S]` while the first units are replaced, or inserted; and the shares of units.

        Args:
            images: Images, `[N, C, H, W]`, of volumes `[N, C, D, H, W]`.
            orders: Orders of the same units.
            ask: Function from blocks (images `[G, C, H, W]`, indices `[G]` into the batch) to confidences; see `NEEDS`.
            protocol: Of the run; black needs its `mean` and `std`.
            draw: Function that draws random numbers; see `NEEDS`.
            inserts: Start from the replacement and insert units of the image; otherwise start from the image and replace them.
        """
        counts, shares = self.points(orders[0].units)
        fill = filling_by(self.baseline, images, protocol, draw)
        indices = torch.arange(len(images), device=images.device)

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for order, count in product(orders, counts.unbind(dim=1)):
                changed = order.first(count)
                kept = changed if inserts else ~changed
                yield torch.where(kept[:, None], images, fill(kept.to(images.dtype))), indices

        curves = ask(blocks()).view(len(orders), counts.shape[1], len(images))
        return [curve.T for curve in curves], shares


def filling_by(
    baseline: Baseline, images: Tensor, protocol: Protocol, draw: Any, name: str = "noise of a curve"
) -> Callable[[Tensor], Tensor]:
    """The replacement as a function of what is kept, as `xaieval.masking.filling`; noise needs random numbers.

    Args:
        baseline: One of `BASELINES`, or a function.
        images: Images, `[N, C, H, W]`.
        protocol: Of the run; black needs its `mean` and `std`.
        draw: Function that draws random numbers; see `NEEDS`.
        name: By which noise is drawn.
    """
    fill: Any = baseline
    if fill == "noise":
        flat, ones = images.flatten(2), (1,) * (images.ndim - 2)
        low, high = (end.view(*end.shape, *ones) for end in (flat.amin(dim=2), flat.amax(dim=2)))
        noise = low + (high - low) * draw(images.shape[1:], name).to(images.dtype)
        return lambda kept: noise
    return filling(images, replace(protocol, fill=fill, space="model"))


def check_baseline(baseline: Baseline) -> None:
    """Refuse a baseline that `filling_by` does not know.

    Raises:
        MetricError: It is neither one of `BASELINES` nor a function.
    """
    if not callable(baseline) and baseline not in BASELINES:
        raise MetricError(
            f"no baseline {baseline!r}; {choose_from(baseline, BASELINES)}; or give a function from images "
            "[N, C, H, W], or from images and masks [N, H, W], to their replacement"
        )


def check_steps(steps: Steps, pixels_per_step: int | None = None) -> None:
    """Refuse steps that `perturbed_pixels` does not know.

    Raises:
        MetricError: They are out of range.
    """
    if pixels_per_step is not None:
        if pixels_per_step < 1:
            raise MetricError(f"pixels_per_step is at least 1, got {pixels_per_step}")
    elif isinstance(steps, int):
        if steps < 1:
            raise MetricError(f"steps is at least 1, got {steps}")
    elif len(steps) < 2 or list(steps) != sorted(set(steps)) or not 0 <= steps[0] < steps[-1] <= 1:
        raise MetricError(f"steps is a number of steps, or two or more increasing shares of pixels in [0, 1]; got {steps}")
