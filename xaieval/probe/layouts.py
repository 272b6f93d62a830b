"""The axes of a layer's output: which are height and width, and where the grid is among tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import torch
from torch import Tensor

from xaieval.config.axes import Axes, parse_axes
from xaieval.errors import AddressError

__all__ = [
    "FITS",
    "Layout",
    "doubts_axes",
    "fits_image",
    "image_layout",
    "misfits",
    "on_other_images",
    "token_grids",
    "token_layout",
    "worded",
]

MOST_PREFIX = 8  # class and distillation tokens, registers
MOST_EXTRA = 256  # tokens besides the grid, where a test shows which they are; prompts are the most numerous
SIDES = ("d", "h", "w")
WORDS = {"tokens": "N T C", "sequence_first": "T N C"}


@dataclass(frozen=True)
class Layout:
    """The axes of a layer's output: two are places for images, three for volumes.

    Attributes:
        kind: "channels_first" `[N, C, h, w]`, "channels_last" `[N, h, w, C]`, "tokens" `[N, T, C]`, "sequence_first"
            `[T, N, C]`, "function", or words for the axes as in `xaieval.config.axes`.
        size: Size of the map, `(h, w)` or `(d, h, w)`.
        prefix: Number of tokens before the grid (class, distillation, registers). They are dropped, like tokens after it.
        middle: Number of tokens in the middle of the grid, which are dropped too.
        views: Number of views or frames of each image, which become further channels.
        function: Converts the output to `[N, C, h, w]`, if the user gave one.
    """

    kind: str
    size: tuple[int, ...]
    prefix: int = 0
    middle: int = 0
    views: int = 1
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def axes(self) -> Axes:
        """The names of the axes, but for a function."""
        places = SIDES[-len(self.size) :]
        known = {"channels_first": ("N", "C", *places), "channels_last": ("N", *places, "C")}
        names = known.get(self.kind)
        return parse_axes(WORDS.get(self.kind, self.kind)) if names is None else tuple((name,) for name in names)

    @property
    def channel_axis(self) -> int | None:
        """The axis of the output that holds the channels alone; None if only a function knows, or with several views."""
        return None if self.function or self.views > 1 else self.axes.index(("C",))

    @property
    def token_axis(self) -> int | None:
        """The axis of the output that holds all places, if there is one."""
        return None if self.function else _token_axis(self.axes)

    @property
    def _token_order(self) -> tuple[str, ...]:
        """The names of the sides in the order in which tokens count them, the fastest last."""
        sides = SIDES[-len(self.size) :]
        names = () if self.token_axis is None else self.axes[self.token_axis]
        return sides if names in ((), ("T",)) else names

    @property
    def token_sides(self) -> tuple[int, ...]:
        """The size of the map, its sides in the order in which tokens count them."""
        sides = SIDES[-len(self.size) :]
        return tuple(self.size[sides.index(name)] for name in self._token_order)

    def in_token_order(self, cells: Tensor) -> Tensor:
        """The cells `[..., d * h * w]` of a map in the order of the tokens, such as place by place.

        Example:
            >>> Layout("N h*w*d C", (2, 1, 3)).in_token_order(torch.arange(6))
            tensor([0, 3, 1, 4, 2, 5])
        """
        sides, first = SIDES[-len(self.size) :], cells.ndim - 1
        order = [first + sides.index(name) for name in self._token_order]
        return cells.unflatten(-1, self.size).permute(*range(first), *order).flatten(first)

    def to_maps(self, tensor: Tensor) -> Tensor:
        """Convert the output to `[N, C, h, w]`; for volumes `[N, C, d, h, w]`. Gradients are converted the same way."""
        if self.function is not None:
            return self.function(tensor)
        if self.kind == "channels_first":
            return tensor
        names: list[str] = []
        for number, axis in enumerate(self.axes):
            at = len(names)
            if number == self.token_axis:
                order = self._token_order
                tensor = self._grid(tensor, at).unflatten(at, self.token_sides)
            else:
                order = axis
                tensor = tensor if len(axis) == 1 else tensor.unflatten(at, [self.views if n == "V" else -1 for n in axis])
            names += order
        wanted = ["N", *(["V"] if "V" in names else []), "C", *SIDES[-len(self.size) :]]
        tensor = tensor.permute([names.index(name) for name in wanted])
        return tensor.flatten(1, 2) if "V" in names else tensor

    def maps_of(self, tensor: Tensor, batch: int, address: str) -> Tensor:
        """The output of the layer at `address` as maps, checked where a function of the user makes them.

        Raises:
            AddressError: The function gave something else than `[N, C, h, w]`.
        """
        maps = self.to_maps(tensor)
        if self.function is not None and (
            not isinstance(maps, Tensor) or len(maps) != batch or maps.ndim != 2 + len(self.size)
        ):
            came = list(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise AddressError(
                f"the function layout= made {came} of the output {list(tensor.shape)} of layer '{address}' for {batch} images; "
                f"[N, C, {', '.join(SIDES[-len(self.size) :])}] is expected"
            )
        return maps

    def _grid(self, tensor: Tensor, axis: int) -> Tensor:
        """The tokens of the grid."""
        cells = math.prod(self.size)
        if not self.middle:
            return tensor.narrow(axis, self.prefix, cells)
        half = cells // 2
        parts = [(self.prefix, half), (self.prefix + half + self.middle, cells - half)]
        return torch.cat([tensor.narrow(axis, start, length) for start, length in parts], dim=axis)


def worded(
    words: str,
    shape: tuple[int, ...],
    batch: int,
    image_size: tuple[int, ...],
    grid: tuple[int, ...] | None = None,
    prefix: int | None = None,
) -> Layout | None:
    """The layout of an output `shape` whose axes the user has named; None if the words do not fit.

    Args:
        words: As `parse_axes` takes them.
        shape: Shape of the output.
        batch: Number of images.
        image_size: Height and width of the images inside the model.
        grid: Height and width of the token grid. Default: inferred.
        prefix: Number of tokens before it. Default: inferred.
    """
    axes = parse_axes(words)
    if len(axes) != len(shape) or (("d",) in axes and len(image_size) == 2):
        return None
    lengths = {axis[0]: length for axis, length in zip(axes, shape, strict=True) if len(axis) == 1}
    views = lengths.get("V", 1)
    for axis, length in zip(axes, shape, strict=True):
        if set(axis) == {"N", "V"}:
            lengths["N"], views = batch, length // batch
            if views * batch != length:
                return None
    if lengths["N"] != batch:
        return None
    at = _token_axis(axes)
    if at is None:
        sizes = [lengths[side] for side in SIDES[-len(image_size) :] if side in lengths]
        kind = {"N C h w": "channels_first", "N h w C": "channels_last"}.get(" ".join("*".join(axis) for axis in axes), words)
        return Layout(kind, tuple(sizes), views=views) if len(sizes) == len(image_size) else None
    found = token_layout(shape[at], image_size, grid, prefix)
    kind = {parse_axes(known): kind for kind, known in WORDS.items()}.get(axes, words)
    return None if found is None else replace(found, kind=kind, views=views)


def on_other_images(
    layout: Layout, before: tuple[int, ...], shape: tuple[int, ...], sizes: tuple[tuple[int, ...], tuple[int, ...]], batch: int
) -> Layout | None:
    """The same layout of an output on images of another size; None if the tokens fit no grid.

    Args:
        layout: The layout on the first images.
        before: The output's shape on the first images.
        shape: Its shape on these images.
        sizes: Height and width of something that the grid is a fixed share of, on the first images and on these: a map of the
            same pass, or the images.
        batch: Number of these images.
    """
    if layout.function is not None:
        return layout
    lengths = dict(zip(layout.axes, shape, strict=True))
    views = next((length // batch for names, length in lengths.items() if set(names) == {"N", "V"}), 1)
    if layout.token_axis is None:
        return replace(layout, size=tuple(lengths[side,] for side in SIDES[-len(layout.size) :]), views=views)
    cells = shape[layout.token_axis] - before[layout.token_axis] + math.prod(layout.size)
    sides = [{now * g // first, -(-now * g // first)} for g, first, now in zip(layout.size, *sizes, strict=True)]
    fitting = [grid for grid in product(*sides) if math.prod(grid) == cells]
    if fitting:
        return replace(layout, size=min(fitting, key=lambda grid: _distortion(grid, layout.size, *sizes)), views=views)
    # A model that brings all images to one size itself keeps its grid.
    return replace(layout, views=views) if cells == math.prod(layout.size) else None


def _distortion(grid: tuple[int, ...], grid_before: tuple[int, ...], before: tuple[int, ...], now: tuple[int, ...]) -> float:
    """How much the cells' aspect ratio changes: the side with the largest stretch over the one with the smallest."""
    stretch = [cells * side / (first * other) for cells, side, first, other in zip(grid, before, grid_before, now, strict=True)]
    return max(stretch) / min(stretch)


def _token_axis(axes: Axes) -> int | None:
    return next((i for i, names in enumerate(axes) if names == ("T",) or (len(names) > 1 and set(names) <= set(SIDES))), None)


def image_layout(shape: tuple[int, ...], image_size: tuple[int, ...]) -> Layout:
    """Find the layout of a map. Channels are last only if that fits the aspect ratio of the image better."""
    first, last = misfits(shape, image_size)
    return Layout("channels_last", shape[1:-1]) if last < first else Layout("channels_first", shape[2:])


def misfits(shape: tuple[int, ...], image_size: tuple[int, ...]) -> tuple[int, int]:
    """How well a map fits the image with channels first and with channels last: the number of the first rule of `FITS`."""
    return _misfit(shape[2:], image_size), _misfit(shape[1:-1], image_size)


def doubts_axes(shape: tuple[int, ...], image_size: tuple[int, ...]) -> bool:
    """Whether the lengths of the axes alone leave open which of them are places, as in `[N, 96, 96, 96]`."""
    first, last = misfits(shape, image_size)
    none = len(FITS)
    return not ((first == 0 < last) or (first < none == last) or (last <= 1 and first == none))


@cache
def token_grids(tokens: int, image_size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All grids that have the image's aspect ratio and leave few tokens over; each depth that divides that of a volume."""
    found: list[tuple[int, ...]] = []
    least = max(tokens - MOST_EXTRA, -(-tokens // 2), 2)
    *depth, high, wide = image_size
    for d in (d for d in range(1, depth[0] + 1) if depth[0] % d == 0) if depth else [1]:
        for height in range(1, tokens // d + 1):
            near = height * wide // high
            for width in range(max(1, near - wide // high - 1), near + wide // high + 3):
                size = (height, width)
                if least <= d * height * width <= tokens and min(_misfit(size, (high, wide)), 2) < 2:
                    found.append((d, *size) if depth else size)
    return found


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


FITS = (_divides, _proportional, _divides_each)


def _misfit(size: tuple[int, ...], image_size: tuple[int, ...]) -> int:
    """The number of the first rule of `FITS` by which a map fits the image; their number if none does."""
    return next((number for number, fits in enumerate(FITS) if fits(size, image_size)), len(FITS))


def _rectangles(cells: int) -> list[tuple[int, int]]:
    return [(height, cells // height) for height in range(1, cells + 1) if cells % height == 0]
