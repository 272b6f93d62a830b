"""Which layers of an unknown model are worth a look: what `layers="auto"` stands for.

The rule needs no list of architectures. It reads the record of one forward pass (`layers.Trace`) as a tree of modules:

1. A module that returns several maps of different sizes (a feature pyramid, a backbone with `features_only`) is a pyramid. The
   last one whose levels the prediction depends on is taken, all such levels of it.
2. Else the model is cut into stages. Beginning at the top, a module is one stage if the blocks in it all give maps of one size
   (or of two that take turns: branches of a block that shrinks them), and is looked into if they do not. A block is a module
   with parameters below it; where there are none (a plain sequence of convolutions), single layers take their place. At each
   size the last stage is taken, of the four coarsest sizes.
3. Else everything has one size, as in a plain vision transformer: of the longest row of blocks at most four are taken, evenly
   spread, the last one among them.

Left out throughout: maps of a single cell, the image itself, the prediction itself (of segmentation networks), modules that run
several times, and what the prediction does not depend on. The last counts cell by cell: where only the class token of the last
block is read, the other tokens of its output explain nothing, so the block before is the last that counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from xaieval.errors import AddressError
from xaieval.probe.addresses import Layer, Trace, layout_of
from xaieval.probe.layouts import Layout, fits_image

__all__ = ["AUTO", "MOST", "Shortlist", "choose", "shortlist"]

AUTO = "auto"
MOST = 4  # layers that are taken of stages and of blocks; pyramids of convolutional networks have as many


@dataclass(frozen=True)
class Shortlist:
    """Layers from which `choose` takes some, by what a model's modules return.

    Attributes:
        layouts: of all layers in the other attributes, by address.
        pyramids: the levels of each module that returns several sizes, in order of execution.
        stages: of each stage its blocks and, last, its own output, in order of execution.
    """

    layouts: dict[str, Layout]
    pyramids: list[list[Layer]]
    stages: list[list[Layer]]

    @property
    def layers(self) -> list[Layer]:
        """All of them, each once."""
        return list({layer.address: layer for group in [*self.pyramids, *self.stages] for layer in group}.values())


@dataclass
class _Node:
    """A module in the tree of those that ran, or a list of modules, which does not run itself.

    Attributes:
        layer: its output, if that is one map.
        parametric: whether a module below it has parameters.
    """

    layer: Layer | None = None
    parametric: bool = False
    children: dict[str, _Node] = field(default_factory=dict)


def shortlist(traced: Trace, grid: tuple[int, ...] | None = None, prefix_tokens: int | None = None) -> Shortlist:
    """What there is to choose from in a model.

    Args:
        traced: one forward pass.
        grid: height and width of the token grid, where it cannot be inferred.
        prefix_tokens: number of tokens before the grid, likewise.
    """
    layouts = dict(_maps(traced, grid, prefix_tokens))
    by_path: dict[str, list[Layer]] = {}
    for layer in traced.layers:
        if layer.address in layouts:
            by_path.setdefault(layer.path, []).append(layer)
    pyramids = [_with_cells(levels, layouts) for levels in _pyramids(list(by_path.values()), layouts)]
    by_path = {path: several for path, layers in by_path.items() if (several := _with_cells(layers, layouts))}
    root = _tree(traced, {path: layers[0] for path, layers in by_path.items() if path})
    stages = [_with_blocks(node) for node in _stages(root, layouts, top=True)]
    wanted = {layer.address for group in [*pyramids, *stages] for layer in group}
    return Shortlist({address: layout for address, layout in layouts.items() if address in wanted}, pyramids, stages)


def choose(found: Shortlist, silent: Collection[str] = ()) -> list[Layer]:
    """The layers that "auto" stands for, in order of execution.

    Args:
        found: in the model.
        silent: addresses of layers that the prediction does not depend on.

    Raises:
        AddressError: there are none.

    Example:
        >>> import torch, torchvision
        >>> from xaieval.probe.addresses import trace
        >>> traced = trace(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 64, 64))
        >>> [layer.address for layer in choose(shortlist(traced))]
        ['layer1', 'layer2', 'layer3', 'layer4']
    """
    for pyramid in reversed(found.pyramids):
        levels = [level for level in pyramid if level.address not in silent]
        if len(levels) > 1:
            return levels
    heard = [[layer for layer in stage if layer.address not in silent] for stage in found.stages]
    last = _sizes([stage[-1] for stage in heard if stage], found.layouts)
    if len(last) > 1:
        coarsest = sorted(last, key=math.prod)[:MOST]
        return [layer for size, layer in last.items() if size in coarsest]
    row = [layer for layer in _longest_row(found.stages) if layer.address not in silent] or list(last.values())
    if not row:
        raise AddressError(
            "layers='auto' found no layer in this model that gives maps [N, C, H, W], [N, H, W, C] or tokens [N, T, C] on "
            "which the prediction depends; name layers: 'xaieval-bench layers' lists all"
        )
    return evenly(row)


def evenly(row: list[Layer], most: int = MOST) -> list[Layer]:
    """At most so many of a row, evenly spread, the last one among them."""
    count = min(most, len(row))
    return [row[math.ceil((i + 1) * len(row) / count) - 1] for i in range(count)]


def _maps(traced: Trace, grid: tuple[int, ...] | None, prefix: int | None) -> Iterator[tuple[str, Layout]]:
    """Addresses of all outputs that are maps of the image inside the model."""
    predictions = {shape[1] for shape in traced.returned if len(shape) > 2 and shape[2:] == traced.image_size}
    for layer in traced.layers:
        try:
            layout = layout_of(layer, traced, grid, prefix)
        except AddressError:
            continue
        channels = layer.shape[1] if layout.kind == "channels_first" else layer.shape[-1]
        is_image = layout.size == traced.image_size and channels == traced.channels
        if "#" not in layer.address and not is_image and channels not in predictions and fits_image(layout, traced.inner_size):
            yield layer.address, layout


def _with_cells(layers: list[Layer], layouts: dict[str, Layout]) -> list[Layer]:
    """Without maps of a single cell, which show nothing."""
    return [layer for layer in layers if math.prod(_size(layer, layouts)) > 1]


def _pyramids(modules: list[list[Layer]], layouts: dict[str, Layout]) -> list[list[Layer]]:
    """Modules that return maps of several sizes under one key each, by their innermost names."""
    found: list[list[Layer]] = []
    for layers in modules:
        levels = [layer for layer in layers if len(layer.keys) == 1 and layouts[layer.address].kind != "tokens"]
        if len(_sizes(levels, layouts)) > 1 and not any(_hands_on(levels, inner) for inner in found):
            found.append(levels)
    return found


def _hands_on(levels: list[Layer], inner: list[Layer]) -> bool:
    """Whether a module returns what a module inside it returned, or one before it, if it has nothing to change it by."""
    below = f"{levels[0].path}." if levels[0].path else ""
    owned = levels[0].parameters == 0 or inner[0].path.startswith(below)
    return owned and [one.shape for one in levels] == [one.shape for one in inner]


def _tree(traced: Trace, outputs: dict[str, Layer]) -> _Node:
    """The modules that ran, by the parts of their paths, in order of execution."""
    root = _Node()
    for layer in traced.layers:
        node, parts = root, layer.path.split(".") if layer.path else []
        for part in parts:
            node.parametric |= layer.parameters > 0
            node = node.children.setdefault(part, _Node())
        node.layer = outputs.get(layer.path) if parts else None
    return root


def _stages(node: _Node, layouts: dict[str, Layout], top: bool = False) -> list[_Node]:
    """A module as one stage, or the stages inside it if it changes the maps' size."""
    parts = list(_parts(node, blocks=True))
    enough = 2  # sizes of blocks
    if not parts:
        parts, enough = list(_parts(node, blocks=False)), 3  # a single block may shrink the maps between two of its layers
    areas = [math.prod(_size(part.layer, layouts)) for part in parts if part.layer is not None]
    branches = len(set(areas)) == 2 and areas != sorted(areas, reverse=True)  # side by side in a block that shrinks the maps
    if not parts or (not top and (len(set(areas)) < enough or branches)):
        return [node] if node.layer is not None else []
    return [stage for part in parts for stage in _stages(part, layouts)]


def _parts(node: _Node, blocks: bool) -> Iterator[_Node]:
    """The nearest modules below that give a map: the blocks, or all."""
    for child in node.children.values():
        if child.layer is not None and (child.parametric or not blocks):
            yield child
        elif child.layer is None:
            yield from _parts(child, blocks)


def _with_blocks(stage: _Node) -> list[Layer]:
    """The blocks of a stage, and its output."""
    parts = list(_parts(stage, blocks=True))
    while len(parts) == 1:
        inner = list(_parts(parts[0], blocks=True))
        if len(inner) == 0:
            break
        parts = inner
    return [node.layer for node in [*parts, stage] if node.layer is not None]


def _longest_row(stages: list[list[Layer]]) -> list[Layer]:
    """The most modules that stand side by side; of equally many those nearest to the top."""
    rows: dict[str, dict[str, Layer]] = {}
    for layer in (layer for stage in stages for layer in stage):
        rows.setdefault(layer.path.rpartition(".")[0], {})[layer.address] = layer
    longest = max(rows, key=lambda parent: (len(rows[parent]), -parent.count(".")), default=None)
    return [] if longest is None else list(rows[longest].values())


def _size(layer: Layer, layouts: dict[str, Layout]) -> tuple[int, ...]:
    return layouts[layer.address].size


def _sizes(layers: list[Layer], layouts: dict[str, Layout]) -> dict[tuple[int, ...], Layer]:
    """The last layer of each size, in order of execution."""
    last = {_size(layer, layouts): layer for layer in layers}
    order = {layer.address: number for number, layer in enumerate(layers)}
    return dict(sorted(last.items(), key=lambda item: order[item[1].address]))
