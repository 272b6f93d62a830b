"""Which cells or tokens of a layer's output are places of the image: a test by a few passes, for shapes that do not tell.

100 tokens can be a grid of 10 x 10 or 100 object queries, and a class token can stand before the grid, behind it or in its
middle. So a small patch of the image is altered, at eight positions in turn. Places follow: where the patch is, their values
change more than elsewhere, and more than for the other positions. Queries, words, latents and class tokens do not.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.inference.batch_limit import is_out_of_memory
from xaieval.probe.addresses import Layer, Trace, tensors_of
from xaieval.probe.fits import LEARNED, Fit, Share, best_fit
from xaieval.probe.layouts import FITS, Layout, doubts_axes, image_layout, misfits

__all__ = ["follow_places", "is_doubtful"]

POSITIONS = ((2, 6, 3), (5, 1, 6), (7, 4, 1), (0, 3, 4), (4, 0, 7), (1, 7, 2), (6, 2, 0), (3, 5, 5))  # each row, column once
PATCH = 1 / 14  # of the image's sides: a patch of a vision transformer at 224 pixels
STAGES = (2, 4, 8)  # positions after which the layouts may be clear

Changes = dict[str, dict[str, Tensor]]  # by address and kind of layout: how much each cell changed, [positions, cells]


def is_doubtful(layer: Layer, traced: Trace) -> bool:
    """Whether the shape of a layer's output leaves its layout open: tokens always, and maps with axes of like lengths."""
    axes, shape = len(traced.image_size), layer.shape
    if len(shape) == 3:
        return traced.batch in shape[:2] and math.prod(shape[:2]) > traced.batch
    if len(shape) != 2 + axes or shape[0] != traced.batch:
        return False
    return doubts_axes(shape, traced.inner_size) or _is_attention(layer, traced)


def follow_places(
    model: nn.Module,
    images: Tensor,
    traced: Trace,
    layers: Sequence[Layer],
    wanted: Sequence[Layer],
    *,
    forward: Callable[[Tensor], Any] | None = None,
    grid: tuple[int, ...] | None = None,
    prefix: int | None = None,
) -> dict[str, Layout | str]:
    """Find the layouts of layers by altering the first image, at two positions, and at more as long as that is not enough.

    Args:
        model: The borrowed model.
        images: Images on its device; the first one is used.
        traced: The trace of one pass.
        layers: Doubtful layers.
        wanted: Those of them whose layouts are needed.
        forward: Runs the model on images. Default: `model(images)`.
        grid: Height and width of the token grid, if the user gave it.
        prefix: Number of tokens before it, if the user gave it.

    Returns:
        The layouts, or the reasons why layers have none, by address. Layers that stay open are left out.
    """
    maps = _first_maps(traced)
    moved: Changes = {}
    for done, count in pairwise((0, *STAGES)):
        moved = _joined(moved, _changes(model, images, [*layers, *maps.values()], POSITIONS[done:count], forward))
        if not moved:
            break
        shares = tuple(_in_frame(_share(position, images.shape[2:]), traced) for position in POSITIONS[:count])
        fit = partial(_fit, moved=moved, traced=traced, shares=shares, maps=maps, grid=grid, prefix=prefix)
        fits = {one.address: fit(one) for one in wanted}
        clear = {address: one.layout for address, one in fits.items() if one is not None and one.clear}
        if len(clear) == len(fits):
            return dict(clear)
    fits = {one.address: fit(one) for one in layers} if moved else {}
    return _decided(traced, layers, moved, fits, grid is not None)


def _first_maps(traced: Trace) -> dict[tuple[int, ...], Layer]:
    """The first map of each size, with channels first beyond doubt, by size."""
    maps: dict[tuple[int, ...], Layer] = {}
    for layer in traced.layers:
        if len(layer.shape) == 2 + len(traced.image_size) and layer.shape[0] == traced.batch and not is_doubtful(layer, traced):
            first, last = misfits(layer.shape, traced.inner_size)
            if first <= last and first < len(FITS) and math.prod(layer.shape[2:]) > 1:
                maps.setdefault(layer.shape[2:], layer)
    return maps


def _fit(
    layer: Layer,
    *,
    moved: Changes,
    traced: Trace,
    shares: tuple[Share, ...],
    maps: Mapping[tuple[int, ...], Layer],
    grid: tuple[int, ...] | None,
    prefix: int | None,
) -> Fit | None:
    """The best layout of a layer."""
    at = traced.layers.index(layer)
    before = {size for size, one in maps.items() if one.address in moved and traced.layers.index(one) < at}
    patterns = {size: moved[maps[size].address]["channels_first"] for size in before}
    return best_fit(moved.get(layer.address, {}), layer.shape, traced.inner_size, shares, grid, prefix, patterns)


def _joined(first: Changes, second: Changes) -> Changes:
    """The changes of more positions."""
    if not first:
        return second
    return {
        address: {kind: torch.cat([change, second[address][kind]]) for kind, change in kinds.items() if kind in second[address]}
        for address, kinds in first.items()
        if address in second
    }


def _changes(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[Layer],
    positions: Sequence[Sequence[int]],
    forward: Callable[[Tensor], Any] | None,
) -> Changes:
    """How much the cells of layers change for each position; nothing if the model refuses other batch sizes."""
    altered = [_altered(images[:1], position) for position in positions]
    for size in (1 + len(altered), 2, len(images), 1):  # some models take only as many images as they are used with
        try:
            return _measured(model, images[:1], altered, size, layers, forward)
        except Exception as error:  # a model can raise anything
            if is_out_of_memory(error) and size == 1:
                raise
    return {}


def _decided(
    traced: Trace, layers: Sequence[Layer], moved: Changes, fits: dict[str, Fit | None], given: bool
) -> dict[str, Layout | str]:
    """The layouts of layers that follow, or of their kin; or the reasons why they have none, unless a grid is given."""
    if not moved:
        untested = {layer.address: _untested(layer, traced, given) for layer in layers}
        return {address: why for address, why in untested.items() if why is not None}
    _agree(fits, layers)
    found = {address: fit.layout for address, fit in fits.items() if fit is not None and fit.follows}
    others: dict[str, Layout | str | None] = {}
    for layer in layers:
        if layer.address in found:
            continue
        if len(layer.shape) != 3:
            others[layer.address] = _open_axes(layer, traced, tested=True)
        elif not given:
            kin = _of_its_block(layer, traced, found) or _of_its_row(layer, found, layers, moved)
            others[layer.address] = kin or _no_places(layer, moved.get(layer.address, {}))
    return {**found, **{address: other for address, other in others.items() if other is not None}}


def _share(position: Sequence[int], size: Sequence[int]) -> Share:
    """The share of each side of the image that the patch at a position takes, in whole pixels."""
    shares = []
    for side, number in zip(size, position[: len(size)], strict=True):
        middle = (number + 0.5) / len(POSITIONS)
        start = math.floor((middle - PATCH / 2) * side)
        shares.append((start / side, max(start + 1, math.ceil((middle + PATCH / 2) * side)) / side))
    return tuple(shares)


def _altered(image: Tensor, position: Sequence[int]) -> Tensor:
    """A copy of the image with a patch of the opposite extreme."""
    image = image.clone()
    size = image.shape[2:]
    where = [slice(round(a * side), round(b * side)) for (a, b), side in zip(_share(position, size), size, strict=True)]
    low, high = image.min(), image.max()
    patch = image[:, :, *where]
    patch.copy_(torch.where(patch > (low + high) / 2, low, high) if low < high else patch + 1)
    return image


def _measured(
    model: nn.Module,
    image: Tensor,
    altered: list[Tensor],
    size: int,
    layers: Sequence[Layer],
    forward: Callable[[Tensor], Any] | None,
) -> Changes:
    """The changes from the image to each altered one, in passes of `size` images, the first of which is the image itself.

    A pass of one image is compared with the pass before all others.
    """
    wanted = {(layer.path, layer.call, layer.keys): layer for layer in layers}
    names = {module: name for name, module in model.named_modules()}
    parts: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    alone: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def record(module: nn.Module, _: Any, output: Any) -> None:
        path = names[module]
        for keys, tensor in tensors_of(output):
            layer = wanted.get((path, calls[path], keys))
            if layer is None or not tensor.is_floating_point() or tensor.ndim != len(layer.shape):
                continue
            for kind, values in _readings(tensor, size):
                first = values[:1] if size > 1 else alone.setdefault(f"{layer.address} {kind}", values.clone())
                for name, change in _by_cell(kind, first, values[min(1, size - 1) :]):
                    parts[layer.address][name].append(change)
        calls[path] += 1

    paths = {path for path, _, _ in wanted}
    handles = [module.register_forward_hook(record) for module, name in names.items() if name in paths]
    try:
        with torch.no_grad():
            for images in _passes(image, altered, size):
                calls.clear()
                (model if forward is None else forward)(images)
    finally:
        for handle in handles:
            handle.remove()
    skip = size == 1
    joined = {address: {kind: torch.cat(several)[skip:] for kind, several in kinds.items()} for address, kinds in parts.items()}
    count = len(altered)
    return {a: {k: c[:count] for k, c in kinds.items() if len(c) >= count} for a, kinds in joined.items()}


def _passes(image: Tensor, altered: list[Tensor], size: int) -> Iterator[Tensor]:
    """The images of each pass, filled up with copies of the image itself."""
    if size == 1:
        yield from (image, *altered)
        return
    for start in range(0, len(altered), size - 1):
        images = [image, *altered[start : start + size - 1]]
        yield torch.cat([*images, *[image] * (size - len(images))])


def _by_cell(kind: str, first: Tensor, others: Tensor) -> Iterator[tuple[str, Tensor]]:
    """How much each cell changed, `[images, cells]`, of values with the images first."""
    difference = others.float() - first.float()
    yield kind, difference.norm(dim=1 if kind in ("channels_first", "N C T") else -1).flatten(1).cpu()
    if kind in ("tokens", "sequence_first") and not difference.any() and first.any():
        yield LEARNED, difference.new_zeros(len(others), 1).cpu()


def _readings(tensor: Tensor, size: int) -> Iterator[tuple[str, Tensor]]:
    """The layouts that the axes allow, with the values, images first."""
    shape = tensor.shape
    if tensor.ndim > 3 and shape[0] == size:
        yield from (("channels_first", tensor), ("channels_last", tensor))
    elif tensor.ndim == 3 and shape[0] == size:
        yield "tokens", tensor
        if shape[1] == shape[2]:
            yield "N C T", tensor
    if tensor.ndim == 3 and shape[1] == size:
        yield "sequence_first", tensor.transpose(0, 1)


def _agree(fits: dict[str, Fit | None], layers: Sequence[Layer]) -> None:
    """Layers with the same number of tokens have the same grid: where one says otherwise, the clearer ones decide."""
    weights: defaultdict[tuple[str, int], defaultdict[Layout, float]] = defaultdict(lambda: defaultdict(float))
    following: list[tuple[str, Fit, tuple[str, int]]] = []
    for layer in layers:
        fit = fits[layer.address]
        if fit is not None and fit.follows and fit.layout.token_axis is not None:
            following.append((layer.address, fit, (fit.layout.kind, layer.shape[fit.layout.token_axis])))
            weights[following[-1][2]][fit.layout] += fit.correlation
    for address, fit, key in following:
        layout = max(weights[key], key=lambda one: weights[key][one])
        if weights[key][layout] > 2 * weights[key][fit.layout]:
            fits[address] = replace(fit, layout=layout)


def _in_frame(share: Share, traced: Trace) -> Share:
    """The share of each side of the padded image, for detectors that pad images."""
    if traced.frame is None:
        return share
    sides = zip(share, traced.frame.inner, traced.frame.outer, strict=True)
    return tuple((start * inner / outer, end * inner / outer) for (start, end), inner, outer in sides)


def _of_its_block(layer: Layer, traced: Trace, found: Mapping[str, Layout]) -> Layout | None:
    """The layout of the block around a layer whose own tokens all change alike, as attention does with random weights."""
    path = layer.path
    while path:
        path = path.rpartition(".")[0]
        around = [one for one in traced.layers if one.path == path and one.path and _is_around(one, layer)]
        if around:
            layouts = {_as_tokens(one, traced, found, layer) for one in around}
            return layouts.pop() if len(layouts) == 1 and layer.shape[1] != layer.shape[2] else None
    return None


def _is_around(block: Layer, layer: Layer) -> bool:
    """Whether a module around a layer returns as many tokens, or a map of as many cells."""
    tokens = len(block.shape) == 3 and block.shape[:2] == layer.shape[:2]
    return tokens or (len(block.shape) > 3 and layer.shape[1] in (math.prod(block.shape[2:]), math.prod(block.shape[1:-1])))


def _as_tokens(block: Layer, traced: Trace, found: Mapping[str, Layout], layer: Layer) -> Layout | None:
    """The layout of a layer's tokens if its block returns the same tokens, or a map of as many cells."""
    if block.shape[:2] == layer.shape[:2] and len(block.shape) == 3:
        return found.get(block.address)
    if len(block.shape) != 2 + len(traced.image_size) or block.shape[0] != layer.shape[0] or layer.shape[0] != traced.batch:
        return None
    layout = found.get(block.address) or image_layout(block.shape, traced.inner_size)
    return Layout("tokens", layout.size) if math.prod(layout.size) == layer.shape[1] else None


def _of_its_row(layer: Layer, found: Mapping[str, Layout], layers: Sequence[Layer], moved: Changes) -> Layout | None:
    """The layout of the other blocks of a row, such as `blocks.0` of `blocks.1`, with as many tokens."""
    row = [one for one in layers if _row(one) == _row(layer) and one.shape == layer.shape]
    if any(LEARNED in moved.get(one.address, {}) for one in row) or layer.shape[1] == layer.shape[2]:
        return None
    layouts = {found[one.address] for one in row if one.address in found}
    return layouts.pop() if len(layouts) == 1 else None


def _row(layer: Layer) -> tuple[str, tuple[str, ...], str]:
    return re.sub(r"(?<![^._])\d+(?![^._])", "*", layer.path), layer.keys, layer.module_type


def _no_places(layer: Layer, kinds: Mapping[str, Tensor]) -> str:
    ways = "if they are, give grid=(height, width), or layout= with words for the axes or a function to [N, C, h, w]"
    if not kinds:
        return (
            f"layer '{layer.address}' has no map: neither of the first two axes of its output {list(layer.shape)} is the "
            "batch in a pass of more images; give layout= with words for the axes or a function to [N, C, h, w]"
        )
    tokens = next(iter(kinds.values())).shape[1]
    learned = "which do not depend on the image, such as words or learned queries"
    others = "that do not follow places of the image, such as object queries, words, latents or class tokens"
    return (
        f"layer '{layer.address}' has no map: its output {list(layer.shape)} holds {tokens} tokens "
        f"{learned if LEARNED in kinds else others}; {ways}"
    )


def _untested(layer: Layer, traced: Trace, given: bool) -> str | None:
    """Why a layer is refused if the model runs on no altered images."""
    if len(layer.shape) != 3:
        return _open_axes(layer, traced, tested=False)
    shape, ways = (
        list(layer.shape),
        "give grid=(height, width), or layout= with words for the axes or a function to [N, C, h, w]",
    )
    return None if given else f"layer '{layer.address}' returns {shape}, and nothing shows which tokens are places; {ways}"


def _open_axes(layer: Layer, traced: Trace, tested: bool) -> str | None:
    """Why a map is refused where neither its shape nor the test says which axes are places; None where its shape does."""
    if traced.convolutional:
        return None
    shape = ", ".join(("N", *map(str, layer.shape[1:])))
    places = " ".join(("d", "h", "w")[-len(traced.image_size) :])
    ways = f"give layout='N C {places}' or 'N {places} C', or a function to [N, C, h, w]"
    first, last = misfits(layer.shape, traced.inner_size)
    if tested and (_is_attention(layer, traced) or first == last == len(FITS)):
        return f"layer '{layer.address}' has no map: no axes of its output [{shape}] follow places of the image; or else {ways}"
    if first == last < len(FITS):
        return f"layer '{layer.address}' returns [{shape}], and nothing shows which axes are height and width; {ways}"
    return None


def _is_attention(layer: Layer, traced: Trace) -> bool:
    """Whether an output could be weights of attention, `[N, heads, T, T]`; a module with parameters returns maps."""
    shape = layer.shape
    if len(shape) != 4 or shape[-1] != shape[-2] or traced.convolutional:
        return False
    if layer.parameters and not layer.keys and misfits(shape, traced.inner_size)[0] == 0:
        return False
    return shape[-1] in {one.shape[1] for one in traced.layers if len(one.shape) == 3}
