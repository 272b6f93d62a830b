"""Subsets of an image's pixels that are replaced one subset at a time: what a map gives them, and what the confidence does.

Metrics that compare the two share this module. A subset is a bool tensor `[N, H, W]`, one for each image of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xaieval.errors import MetricError
from xaieval.masking import FLAT

__all__ = [
    "ROUNDING",
    "cells",
    "check_least",
    "check_subset",
    "correlation",
    "grid_cells",
    "pixels_of",
    "random_pixels",
    "ranked_groups",
    "sums_and_falls",
]

ROUNDING = 1e-6  # differences of confidences up to this share of the confidence are float32's rounding

Subset = Bool[Tensor, " n *space"]
Filling = Callable[[Tensor], Tensor]
Ask = Callable[[Iterator[tuple[Tensor, Tensor]]], Tensor]


def sums_and_falls(
    confidence: Tensor, attributions: Tensor, images: Tensor, ask: Ask, changes: Iterable[tuple[Subset, Filling]]
) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
    """For each of S subsets the sum of the attributions in it, and the fall of the confidence if it is replaced, `[N, S]` each.

    Args:
        confidence: On the images, `[N]`.
        attributions: Maps, `[N, H, W]`.
        images: Images, `[N, C, H, W]`.
        ask: Function from blocks of images to confidences; see `NEEDS`.
        changes: Each subset with what replaces its pixels, as `xaieval.masking.filling`; only one exists at a time.
    """
    indices = torch.arange(len(images), device=images.device)
    values, sums = attributions.double(), []

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for subset, fill in changes:
            sums.append((values * subset).flatten(1).sum(dim=1))
            yield torch.where(subset[:, None], fill((~subset).to(images.dtype)), images), indices

    confidences = ask(blocks()).double().view(-1, len(images))
    return torch.stack(sums, dim=1), confidence.double()[:, None] - confidences.T


def correlation(
    alike: Callable[[Tensor, Tensor], Tensor], sums: Float[Tensor, "n s"], falls: Float[Tensor, "n s"]
) -> Float[Tensor, " n"]:
    """The correlation of the two for each image; NaN if one does not vary.

    Sums that differ by rounding alone, as those of a constant map after interpolation, do not vary.
    """
    low, high = sums.amin(dim=1), sums.amax(dim=1)
    constant = high - low <= FLAT * torch.maximum(low.abs(), high.abs())
    return alike(sums, falls).masked_fill(constant, torch.nan)


def random_pixels(draw: Any, images: Tensor, count: int, name: str) -> Subset:
    """A subset of exactly `count` pixels of each image, each pixel with the same probability."""
    space = images.shape[2:]
    drawn = draw((space.numel(),), name)
    order = torch.arange(space.numel(), device=drawn.device)
    keys = (drawn.double() * 2**24).long() * space.numel() + order  # whole numbers without ties, so equal on all devices
    chosen = keys.topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, chosen, True).view(len(images), *space)


def ranked_groups(ranks: Int[Tensor, " n *space"], counts: Int[Tensor, " s"]) -> Iterator[Subset]:
    """The pixels with a rank from one count to the next, count by count; groups without pixels are left out."""
    for start, end in pairwise(counts.unique_consecutive().tolist()):
        yield (ranks >= start) & (ranks < end)


def grid_cells(space: Sequence[int], grid: int, device: torch.device) -> Int[Tensor, " *space"]:
    """The number of the cell that each pixel lies in, with `grid` cells along each axis, or one for each pixel if it has fewer.

    Example:
        >>> grid_cells((2, 4), 2, torch.device("cpu"))
        tensor([[0, 0, 1, 1],
                [2, 2, 3, 3]])
    """
    numbers = torch.zeros(tuple(space), dtype=torch.long, device=device)
    for axis, side in enumerate(space):
        count = min(grid, side)
        along = (torch.arange(side, device=device) + 0.5) * count / side
        numbers = numbers * count + along.long().view(-1, *(1 for _ in space[axis + 1 :]))
    return numbers


def cells(chosen: Bool[Tensor, "n cells"], numbers: Int[Tensor, " *space"]) -> Subset:
    """The pixels of the chosen cells of each image."""
    return chosen[:, numbers.flatten()].view(len(chosen), *numbers.shape)


def pixels_of(subset: float, pixels: int) -> int:
    """The size of a subset that is given as a number of pixels or as a share of them; a share is at least one pixel.

    Raises:
        MetricError: It is as large as the image.

    Example:
        >>> pixels_of(0.1, 256), pixels_of(3, 256)
        (26, 3)
    """
    count = subset if isinstance(subset, int) else max(1, round(subset * pixels))
    if count >= pixels:
        raise MetricError(f"a subset of {count} pixels is no part of an image of {pixels}; give fewer, or a share such as 0.1")
    return count


def check_subset(subset: float) -> None:
    """Refuse a subset that `pixels_of` does not know.

    Raises:
        MetricError: It is neither a number of pixels nor a share of them.
    """
    if not (subset >= 1 if isinstance(subset, int) else 0 < subset < 1):
        raise MetricError(f"a subset is a number of pixels, at least 1, or a share of them, in (0, 1); got {subset}")


def check_least(**numbers: tuple[float, float]) -> None:
    """Refuse numbers below their smallest value.

    Raises:
        MetricError: One is smaller.
    """
    for name, (number, least) in numbers.items():
        if not number >= least:
            raise MetricError(f"{name} is at least {least}, got {number}")
