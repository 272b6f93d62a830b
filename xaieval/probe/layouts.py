"""The spatial axes of a layer's output, and the token grid of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

__all__ = ["Layout", "fits_image", "image_layout", "token_layout"]

MOST_PREFIX = 8  # class and distillation tokens, registers


@dataclass(frozen=True)
class Layout:
    """The spatial axes of a layer's output: two for images, three for volumes.

    Attributes:
        kind: "channels_first" `[N, C, h, w]`, "channels_last" `[N, h, w, C]`, or "tokens" `[N, T, C]`.
        size: Size of the map, `(h, w)` or `(d, h, w)`.
        prefix: Number of tokens before the grid (class, distillation, registers). They are dropped, like tokens after it.
    """

    kind: str
    size: tuple[int, ...]
    prefix: int = 0

    def to_maps(self, tensor: Tensor) -> Tensor:
        """Convert the output to `[N, C, h, w]`; for volumes `[N, C, d, h, w]`."""
        if self.kind == "channels_first":
            return tensor
        if self.kind == "tokens":
            grid = tensor[:, self.prefix : self.prefix + math.prod(self.size)]
            tensor = grid.unflatten(1, self.size)
        return tensor.movedim(-1, 1)


def image_layout(shape: tuple[int, ...], image_size: tuple[int, ...]) -> Layout:
    """Find the layout of a map. Channels are last only if that fits the aspect ratio of the image better."""
    first, last = shape[2:], shape[1:-1]
    for fits in (_divides, _proportional, _divides_each):
        if fits(first, image_size):
            break
        if fits(last, image_size):
            return Layout("channels_last", last)
    return Layout("channels_first", first)


def token_layout(tokens: int, image_size: tuple[int, ...], grid: tuple[int, ...] | None, prefix: int | None) -> Layout | None:
    """Find the token grid with the fewest prefix tokens that has the image's aspect ratio; None if there is none.

    For a volume the grid must be given: too many grids fit, because its three strides can differ.
    """
    if grid is not None:
        rest = tokens - math.prod(grid)
        before = rest if prefix is None else prefix
        return Layout("tokens", tuple(grid), before) if len(grid) == len(image_size) and 0 <= before <= rest else None
    counts = range(min(tokens, MOST_PREFIX + 1)) if prefix is None else [prefix]
    for fits in (_divides, _proportional) if len(image_size) == 2 else ():
        for count in counts:
            for size in _rectangles(tokens - count):
                if fits(size, image_size):
                    return Layout("tokens", size, count)
    return None


def fits_image(layout: Layout, image_size: tuple[int, ...]) -> bool:
    """Whether a map has the aspect ratio of the image, up to rounding.

    In a volume one side may have its own stride: time in a video, or the slices of a scan, which lie further apart than pixels.
    """
    if len(image_size) == 2:
        return _divides(layout.size, image_size) or _proportional(layout.size, image_size)
    pairs = list(zip(layout.size, image_size, strict=True))
    planes = [(cells <= side, pairs[:own] + pairs[own + 1 :]) for own, (cells, side) in enumerate(pairs)]
    return any(
        smaller and fits_image(replace(layout, size=size), other)
        for smaller, plane in planes
        for size, other in [zip(*plane, strict=True)]
    )


def _divides(size: tuple[int, ...], image_size: tuple[int, ...]) -> bool:
    """Whether one integer stride explains all sides exactly."""
    stride = image_size[0] // size[0]
    return tuple(cells * stride for cells in size) == image_size


def _divides_each(size: tuple[int, ...], image_size: tuple[int, ...]) -> bool:
    """Whether each side has its own integer stride, as in video networks, where time and space are pooled differently."""
    return all(side % cells == 0 for side, cells in zip(image_size, size, strict=True))


def _proportional(size: tuple[int, ...], image_size: tuple[int, ...]) -> bool:
    """Whether one stride explains all sides, either with all rounded down or with all rounded up."""
    down = [(side / (cells + 1), side / cells) for side, cells in zip(image_size, size, strict=True)]
    up = [(side / cells, side / (cells - 1) if cells > 1 else math.inf) for side, cells in zip(image_size, size, strict=True)]
    return any(max(low for low, _ in strides) < min(high for _, high in strides) for strides in (down, up))


def _rectangles(cells: int) -> list[tuple[int, int]]:
    return [(height, cells // height) for height in range(1, cells + 1) if cells % height == 0]
