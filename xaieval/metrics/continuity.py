"""Continuity: whether the map changes little when the image moves a little."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.metric import Inspection, Metric
from xaieval.metrics.robustness import shifted

__all__ = ["continuity"]

FILLS = ("edge", "minimum")


def continuity(steps: int = 28, share: float = 1.0, fill: str = "edge") -> Metric:
    """Continuity: the strongest change of the map per change of the image while the image moves, 0 or more, lower is better.

    `max_k |phi(x_k) - phi(x)|_1 / |x_k - x|_2` over copies `x_k` of the image that are shifted along its last axis, step by
    step in both directions, up to a share of its width. Maps are in [0, 1], and are not shifted back, so a map that moves with
    the image also counts as changing: the metric measures whether it moves as smoothly as the image. `stability_shift` measures
    whether it moves with the image. NaN if a map has NaN or inf, or if no shift changes the image. The sum over pixels grows
    with the image: compare only values of one image size and the same settings.

    Args:
        steps: Shifted copies of each image, an even number, half of them in each direction.
        share: Share of the width of the farthest shift, in (0, 1]. Steps that are the same number of pixels are one step.
        fill: The new pixels: "edge" repeats the edge, "minimum" is the smallest value of the image, as Quantus' "black".

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Montavon, Samek and Mueller, "Methods for interpreting and understanding deep neural networks", Digital Signal
        Processing 73, 2018 (arXiv 1706.07979), section 7.1; shifts of the whole width and 28 steps as in Quantus' `Continuity`.

    Example:
        >>> continuity(steps=4, share=0.25).passes
        'the method 4 times'
    """
    if steps < 2 or steps % 2:
        raise MetricError(f"steps is an even number of at least 2, half in each direction, got {steps}")
    if not 0 < share <= 1:
        raise MetricError(f"share of the width lies in (0, 1], got {share}")
    if fill not in FILLS:
        raise MetricError(f"no fill {fill!r}; {choose_from(fill, FILLS)}")
    return Metric(
        "continuity",
        partial(_continuity, steps=steps, share=share, fill=fill),
        higher_is_better=False,
        needs=("maps", "images", "inspect_maps"),
        settings={"steps": steps, "share": share, "fill": fill},
        passes=f"the method {steps} times",
        paper="Montavon et al. 2018, arXiv 1706.07979",
        family="robustness",
        bounds=None,
        altered_by="shifts of continuity",
    )


def _continuity(
    maps: Tensor, images: Tensor, inspect: Callable[[Tensor], Inspection], *, steps: int, share: float, fill: str
) -> Tensor:
    quotients = []
    for step in _shifts(images.shape[-1], steps, share):
        moved = shifted(images, -1, step, None if fill == "edge" else images.flatten(1).amin(dim=1))
        difference = (inspect(moved).maps.double() - maps.double()).abs().flatten(1).sum(dim=1)
        distance = (moved.double() - images.double()).flatten(1).norm(dim=1)
        quotients.append(torch.where(distance > 0, difference / distance, -torch.inf))
    largest = reduce(torch.maximum, quotients)
    return largest.masked_fill(largest == -torch.inf, torch.nan)


def _shifts(width: int, steps: int, share: float) -> list[int]:
    """Whole pixels in both directions, without 0, each once."""
    half = steps // 2
    right = dict.fromkeys(max(1, round(share * width * number / half)) for number in range(1, half + 1))
    return [sign * pixels for pixels in right for sign in (1, -1)]


METRICS = (continuity(),)
