"""Choose layers of an unknown model: the rule behind `layers="auto"`.

The rule needs no list of architectures. It reads a trace of one forward pass (`addresses.Trace`) as a tree of modules:

1. A module that returns several maps of different sizes (a feature pyramid, a backbone with `features_only`) is a pyramid. The
   rule takes all levels of the last pyramid that the prediction depends on.
2. Without a pyramid, the model is divided into stages, from the top of the tree. A module is a stage if all its blocks return
   maps of one size, or of two alternating sizes (branches of a block that downsamples). Otherwise its blocks are examined in
   the same way. A block is a module with parameters in a module below it. If there are no blocks (a plain sequence of
   convolutions), single layers are used instead. The rule takes the last stage of each of the four coarsest sizes.
3. If all maps have one size, as in a plain vision transformer, the rule takes at most four blocks of the longest row of blocks,
   evenly spaced, including the last one.

Excluded are maps with a single cell, the image itself, the prediction itself (of segmentation networks), modules that run
several times, and layers that the prediction does not depend on. Dependence is measured per cell: if only the class token of
the last block is read, the other tokens of its output explain nothing, so the block before it is the last one that counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from xaieval.errors import AddressError
from xaieval.probe.addresses import Layer, Trace, layout_of
from xaieval.probe.layouts import Layout, fits_image

__all__ = ["AUTO", "Shortlist", "choose", "shortlist"]

AUTO = "auto"
MOST = 4  # largest number of stages or blocks; most pyramids of convolutional networks have as many levels


@dataclass(frozen=True)
class Shortlist:
    """The candidate layers of a model, from which `choose` selects.

    Attributes:
        layouts: The layouts of all candidates, by address.
        pyramids: The levels of each module that returns several sizes, in order of execution.
        stages: The blocks of each stage, followed by its own output, in order of execution.
    """

    layouts: dict[str, Layout]
    pyramids: list[list[Layer]]
    stages: list[list[Layer]]

    @property
    def layers(self) -> list[Layer]:
        """All candidates, each once."""
        return list({layer.address: layer for group in [*self.pyramids, *self.stages] for layer in group}.values())


@dataclass
class _Node:
    """A node in the tree of modules that ran. A container such as a `ModuleList` does not run itself, but is a node too.

    Attributes:
        layer: The module's output, if it is one map.
        parametric: Whether a module below it has parameters.
        children: The child nodes by name.
    """

    layer: Layer | None = None
    parametric: bool = False
    children: dict[str, _Node] = field(default_factory=dict)


def shortlist(traced: Trace, grid: tuple[int, ...] | None = None, prefix_tokens: int | None = None) -> Shortlist:
    """Find the candidate layers of a model.

    Args:
        traced: The trace of one forward pass.
        grid: Height and width of the token grid, if it cannot be inferred.
        prefix_tokens: Number of tokens before the grid, if it cannot be inferred.
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
    candidates = {layer.address for group in [*pyramids, *stages] for layer in group}
    return Shortlist({address: layout for address, layout in layouts.items() if address in candidates}, pyramids, stages)


def choose(candidates: Shortlist, silent: Collection[str] = ()) -> list[Layer]:
    """Choose the layers for "auto", in order of execution.

    Args:
        candidates: The candidate layers of the model.
        silent: Addresses of layers that the prediction does not depend on.

    Raises:
        AddressError: No layer is left.

    Example:
        >>> import torch, torchvision
        >>> from xaieval.probe.addresses import trace
        >>> traced = trace(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 64, 64))
        >>> [layer.address for layer in choose(shortlist(traced))]
        ['layer1', 'layer2', 'layer3', 'layer4']
    """
    for pyramid in reversed(candidates.pyramids):
        levels = [level for level in pyramid if level.address not in silent]
        if len(levels) > 1:
            return levels
    stages = [[layer for layer in stage if layer.address not in silent] for stage in candidates.stages]
    last = _sizes([stage[-1] for stage in stages if stage], candidates.layouts)
    if len(last) > 1:
        coarsest = sorted(last, key=math.prod)[:MOST]
        return [layer for size, layer in last.items() if size in coarsest]
    row = [layer for layer in _longest_row(candidates.stages) if layer.address not in silent] or list(last.values())
    if not row:
        raise AddressError(
            "layers='auto' found no layer of this model that returns maps [N, C, H, W], [N, H, W, C] or tokens [N, T, C] and "
            "that the prediction depends on; name the layers: 'xaieval-bench layers' lists all"
        )
    return evenly(row)


def evenly(row: list[Layer], most: int = MOST) -> list[Layer]:
    """Select at most `most` layers of a row, evenly spaced, including the last one."""
    count = min(most, len(row))
    return [row[math.ceil((i + 1) * len(row) / count) - 1] for i in range(count)]


def _maps(traced: Trace, grid: tuple[int, ...] | None, prefix: int | None) -> Iterator[tuple[str, Layout]]:
    """Addresses and layouts of all outputs that are maps of the image."""
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
    """Exclude maps with a single cell."""
    return [layer for layer in layers if math.prod(_size(layer, layouts)) > 1]


def _pyramids(modules: list[list[Layer]], layouts: dict[str, Layout]) -> list[list[Layer]]:
    """The levels of modules that return maps of several sizes, one per key; without modules that pass on another's levels."""
    pyramids: list[list[Layer]] = []
    for layers in modules:
        levels = [layer for layer in layers if len(layer.keys) == 1 and layouts[layer.address].kind != "tokens"]
        if len(_sizes(levels, layouts)) > 1 and not any(_passes_on(levels, inner) for inner in pyramids):
            pyramids.append(levels)
    return pyramids


def _passes_on(levels: list[Layer], inner: list[Layer]) -> bool:
    """Whether a module returns the levels of a module inside it, or, without own parameters, of a module before it."""
    below = f"{levels[0].path}." if levels[0].path else ""
    owned = levels[0].parameters == 0 or inner[0].path.startswith(below)
    return owned and [one.shape for one in levels] == [one.shape for one in inner]


def _tree(traced: Trace, outputs: dict[str, Layer]) -> _Node:
    """The tree of the modules that ran, in order of execution."""
    root = _Node()
    for layer in traced.layers:
        node, names = root, layer.path.split(".") if layer.path else []
        for name in names:
            node.parametric |= layer.parameters > 0
            node = node.children.setdefault(name, _Node())
        node.layer = outputs.get(layer.path) if names else None
    return root


def _stages(node: _Node, layouts: dict[str, Layout], top: bool = False) -> list[_Node]:
    """A module as one stage, or the stages inside it if it changes the size of the maps."""
    inner = list(_nodes_with_maps(node, blocks=True))
    enough = 2  # different sizes of blocks
    if not inner:
        inner, enough = list(_nodes_with_maps(node, blocks=False)), 3  # one block may downsample between two of its layers
    areas = [math.prod(_size(child.layer, layouts)) for child in inner if child.layer is not None]
    branches = len(set(areas)) == 2 and areas != sorted(areas, reverse=True)  # parallel branches of a block that downsamples
    if not inner or (not top and (len(set(areas)) < enough or branches)):
        return [node] if node.layer is not None else []
    return [stage for child in inner for stage in _stages(child, layouts)]


def _nodes_with_maps(node: _Node, blocks: bool) -> Iterator[_Node]:
    """The nearest nodes below that return a map: only blocks, or all."""
    for child in node.children.values():
        if child.layer is not None and (child.parametric or not blocks):
            yield child
        elif child.layer is None:
            yield from _nodes_with_maps(child, blocks)


def _with_blocks(stage: _Node) -> list[Layer]:
    """The outputs of a stage's blocks, followed by the output of the stage."""
    blocks = list(_nodes_with_maps(stage, blocks=True))
    while len(blocks) == 1:
        inner = list(_nodes_with_maps(blocks[0], blocks=True))
        if len(inner) == 0:
            break
        blocks = inner
    return [node.layer for node in [*blocks, stage] if node.layer is not None]


def _longest_row(stages: list[list[Layer]]) -> list[Layer]:
    """The largest group of modules with the same parent; ties go to the group nearest to the top."""
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
