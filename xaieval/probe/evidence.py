"""Which cells or tokens of a layer's output are places of the image: a test in a few passes, where shapes leave it open.

100 tokens can be a grid of 10 x 10 or 100 object queries, and a class token can stand before the grid, behind it or in its
middle. So a small patch of the image is altered, at eight positions in turn. Places follow: where the patch is, their values
change more than elsewhere, and more than for the other positions. Queries, words, latents and class tokens do not.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.inference.batch_limit import is_out_of_memory
from xaieval.probe.addresses import Layer, Trace, tensors_of
from xaieval.probe.fits import LEARNED, Fit, Share, best_fit
from xaieval.probe.layouts import FITS, MOST_PREFIX, Layout, doubts_axes, image_layout, misfits

__all__ = ["follow_places", "is_doubtful"]

POSITIONS = ((2, 6, 3), (5, 1, 6), (7, 4, 1), (0, 3, 4), (4, 0, 7), (1, 7, 2), (6, 2, 0), (3, 5, 5))  # each row, column once
PATCH = 1 / 14  # of the image's sides: a patch of a vision transformer at 224 pixels
PASSES = (5, 2)  # images in a pass: the image itself, and altered ones

Changes = dict[str, dict[str, Tensor]]  # by address and kind of layout: how much each cell changed, [positions, cells]


def is_doubtful(layer: Layer, traced: Trace) -> bool:
    """Whether the shape of a layer's output leaves its layout open: tokens always, and maps with axes of like lengths."""
    axes, shape = len(traced.image_size), layer.shape
    if len(shape) == 3:
        return traced.batch in shape[:2] and math.prod(shape[:2]) > traced.batch
    if len(shape) != 2 + axes or shape[0] != traced.batch or traced.convolutional:
        return False
    return doubts_axes(shape, traced.inner_size) or _is_attention(shape, traced)


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
    """Find the layouts of layers by altering the first image, first at half of the positions, and at all if that is not enough.

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
    moved: Changes = {}
    for count in (len(POSITIONS) // 2, len(POSITIONS)):
        done = next((len(change) for kinds in moved.values() for change in kinds.values()), 0)
        moved = _joined(moved, _changes(model, images, layers, POSITIONS[done:count], forward))
        shares = tuple(_in_frame(_share(position, images.shape[2:]), traced) for position in POSITIONS[:count])
        fits = {
            one.address: best_fit(moved.get(one.address, {}), one.shape, traced.inner_size, shares, grid, prefix)
            for one in layers
        }
        if not moved or all((fit := fits[one.address]) is not None and fit.clear for one in wanted):
            break
    return _decided(traced, layers, moved, fits, grid is not None)


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
    """How much the cells of layers change for each position; nothing if the model takes no other number of images."""
    altered = [_altered(images[:1], position) for position in positions]
    for size in PASSES:
        try:
            return _measured(model, images[:1], altered, size, layers, forward)
        except Exception as error:  # a model can raise anything
            if is_out_of_memory(error) and size == PASSES[-1]:
                raise
    return {}


def _decided(
    traced: Trace, layers: Sequence[Layer], moved: Changes, fits: dict[str, Fit | None], given: bool
) -> dict[str, Layout | str]:
    """The layouts of layers that follow, or of their kin; or the reasons why they have none, unless a grid is given."""
    if not moved:
        return {layer.address: why for layer in layers if (why := _open_axes(layer, traced, tested=False)) is not None}
    _agree(fits, layers)
    found = {address: fit.layout for address, fit in fits.items() if fit is not None and fit.follows}
    others: dict[str, Layout | str | None] = {}
    for layer in layers:
        if layer.address in found:
            continue
        if len(layer.shape) != 3:
            others[layer.address] = _open_axes(layer, traced, tested=True)
        elif not given:
            kin = _of_its_block(layer, traced, found) or _of_its_number(layer, layers, found, moved)
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
    """The changes from the image to each altered one, in passes of `size` images, the first of which is the image itself."""
    doubtful = {(layer.path, layer.call, layer.keys): layer for layer in layers}
    names = {module: name for name, module in model.named_modules()}
    parts: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    calls: Counter[str] = Counter()

    def record(module: nn.Module, _: Any, output: Any) -> None:
        path = names[module]
        for keys, tensor in tensors_of(output):
            layer = doubtful.get((path, calls[path], keys))
            if layer is not None and tensor.is_floating_point():
                for kind, change in _by_cell(tensor, size, len(layer.shape)):
                    parts[layer.address][kind].append(change)
        calls[path] += 1

    paths = {path for path, _, _ in doubtful}
    handles = [module.register_forward_hook(record) for module, name in names.items() if name in paths]
    try:
        with torch.no_grad():
            for start in range(0, len(altered), size - 1):
                calls.clear()
                (model if forward is None else forward)(torch.cat([image, *altered[start : start + size - 1]]))
    finally:
        for handle in handles:
            handle.remove()
    joined = {address: {kind: torch.cat(several) for kind, several in kinds.items()} for address, kinds in parts.items()}
    return {a: {k: c for k, c in kinds.items() if len(c) == len(altered)} for a, kinds in joined.items()}


def _by_cell(tensor: Tensor, size: int, ndim: int) -> Iterator[tuple[str, Tensor]]:
    """How much each cell changed under each possible layout, `[size - 1, cells]`."""
    if tensor.ndim != ndim:
        return
    if ndim == 3 and tensor.shape[0] != size == tensor.shape[1]:
        tensor = tensor.transpose(0, 1)
        kinds = {"sequence_first": 2}
    elif ndim == 3:
        kinds = {"tokens": 2}
    else:
        kinds = {"channels_first": 1, "channels_last": -1}
    if len(tensor) == size:
        difference = tensor[1:].float() - tensor[:1].float()
        for kind, channels in kinds.items():
            yield kind, difference.norm(dim=channels).flatten(1).cpu()
        if ndim == 3 and not difference.any() and tensor.any():
            yield LEARNED, difference.new_zeros(size - 1, 1).cpu()


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
        around = {_as_tokens(one, traced, found, layer) for one in traced.layers if one.path == path and one.path}
        around.discard(None)
        if around:
            return around.pop() if len(around) == 1 else None
    return None


def _as_tokens(block: Layer, traced: Trace, found: Mapping[str, Layout], layer: Layer) -> Layout | None:
    """The layout of a layer's tokens if its block returns the same tokens, or a map of as many cells."""
    if block.shape[:2] == layer.shape[:2] and len(block.shape) == 3:
        return found.get(block.address)
    if len(block.shape) != 2 + len(traced.image_size) or block.shape[0] != layer.shape[0] or layer.shape[0] != traced.batch:
        return None
    layout = found.get(block.address) or image_layout(block.shape, traced.inner_size)
    return Layout("tokens", layout.size) if math.prod(layout.size) == layer.shape[1] else None


def _of_its_number(layer: Layer, layers: Sequence[Layer], found: Mapping[str, Layout], moved: Changes) -> Layout | None:
    """The layout of the other layers with as many tokens, or half the grid of a stage before.

    Learned tokens, which begin without the image, can be as many as there are places by chance.
    """
    like = [one for one in layers if one.shape[:2] == layer.shape[:2] and len(one.shape) == 3]
    if any(LEARNED in moved.get(one.address, {}) for one in like):
        return None
    layouts = {found[one.address] for one in like if one.address in found}
    layouts = {layout for layout in layouts if layer.shape[1] - math.prod(layout.size) <= MOST_PREFIX}
    if not layouts:
        earlier = {found[one.address] for one in layers if one.address in found and len(one.shape) == 3}
        whole = [layout.size for layout in earlier if layout.kind == "tokens" and not layout.prefix]
        halved = {tuple(-(-side // 2) for side in size) for size in whole}
        layouts = {Layout("tokens", size) for size in halved if math.prod(size) == layer.shape[1]}
    return layouts.pop() if len(layouts) == 1 else None


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


def _open_axes(layer: Layer, traced: Trace, tested: bool) -> str | None:
    """Why a map is refused where neither its shape nor the test says which axes are places; None where its shape does."""
    shape = ", ".join(("N", *map(str, layer.shape[1:])))
    places = " ".join(("d", "h", "w")[-len(traced.image_size) :])
    ways = f"give layout='N C {places}' or 'N {places} C', or a function to [N, C, h, w]"
    first, last = misfits(layer.shape, traced.inner_size)
    if tested and (_is_attention(layer.shape, traced) or first == last == len(FITS)):
        return f"layer '{layer.address}' has no map: no axes of its output [{shape}] follow places of the image; or else {ways}"
    if first == last < len(FITS):
        return f"layer '{layer.address}' returns [{shape}], and nothing shows which axes are height and width; {ways}"
    return None


def _is_attention(shape: tuple[int, ...], traced: Trace) -> bool:
    """Whether an output could be weights of attention, `[N, heads, T, T]`."""
    tokens = {layer.shape[1] for layer in traced.layers if len(layer.shape) == 3}
    return len(shape) == 4 and shape[-1] == shape[-2] and shape[-1] in tokens
