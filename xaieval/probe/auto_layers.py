"""Choose layers of an unknown model: the rule behind `layers="auto"`.

The rule needs no list of architectures. It reads a trace of one forward pass (`addresses.Trace`) as a tree of modules:

1. A module that returns several maps of different sizes (a feature pyramid, a backbone with `features_only`) is a pyramid. The
   rule takes all levels of the last pyramid that the prediction depends on. The levels are also known where a head returns the
   prediction from maps of several sizes (YOLO, Segformer): the last stages of these sizes before it.
2. Without levels, the model is divided into stages, from the top of the tree. A module is a stage if all its blocks return
   maps of one size. Otherwise its blocks are examined in the same way. A block is a module with parameters in a module below
   it. If there are no blocks (a plain sequence of convolutions), single layers are used instead. The rule takes the last stage
   of each of the four coarsest sizes.
3. If all maps have one size, as in a plain vision transformer, the rule takes at most four blocks of the longest row of blocks
   of one class, evenly spaced, including the last one.

Excluded are padded maps, maps with a single cell, the image itself, the prediction itself (of segmentation networks), modules
that run several times, and layers that the prediction does not depend on. Dependence is measured per cell: if only the class
token of the last block is read, the other tokens of its output explain nothing, so the block before it is the last one that
counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from xaieval.errors import ALL_LAYERS, AddressError, advice
from xaieval.probe.addresses import Layer, Trace, layout_of
from xaieval.probe.layouts import Layout, fits_image
from xaieval.probe.module_tree import ModuleTree, Node, dense_classes

__all__ = ["AUTO", "Shortlist", "choose", "shortlist"]

AUTO = "auto"
PADDING = re.compile(r"Pad[123]d$")  # torch's layers that widen a map for the next layer, whose size is that of no stage
MOST = 4  # largest number of stages or blocks; most pyramids of convolutional networks have as many levels


@dataclass(frozen=True)
class Shortlist:
    """The candidate layers of a model, from which `choose` selects.

    Attributes:
        layouts: The layouts of all candidates, by address.
        pyramids: Groups of levels, the best group last.
        stages: The blocks of each stage, followed by its own output, in order of execution.
        row: The longest row of blocks of one class.
        repeated: What would be chosen if modules that run several times counted by their first run; for models that have no
            other candidates.
    """

    layouts: dict[str, Layout]
    pyramids: list[list[Layer]]
    stages: list[list[Layer]]
    row: list[Layer] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        """All candidates, each once."""
        groups = [*self.pyramids, *self.stages, self.row]
        return list({layer.address: layer for group in groups for layer in group}.values())


def shortlist(traced: Trace, grid: tuple[int, ...] | None = None, prefix_tokens: int | None = None) -> Shortlist:
    """Find the candidate layers of a model.

    Args:
        traced: The trace of one forward pass.
        grid: Height and width of the token grid, if it cannot be inferred.
        prefix_tokens: Number of tokens before the grid, if it cannot be inferred.
    """
    layouts = _maps(traced, grid, prefix_tokens)
    tree = ModuleTree(traced, layouts)
    head = tree.head()
    stages = [stage for stage in tree.stages() if not _inside(stage[-1], head)]
    pyramids = [levels for levels in _pyramids(traced, tree) if not _inside(levels[0], head)]
    if head is not None:
        pyramids.insert(0, tree.levels_before(head, [stage[-1] for stage in stages]))
    found = Shortlist(layouts, pyramids, stages, tree.longest_row())
    if not found.layers and any("#" in layer.address for layer in traced.layers):
        return replace(found, repeated=_repeated(traced, grid, prefix_tokens))
    return replace(found, layouts={layer.address: layouts[layer.address] for layer in found.layers})


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
    last = _last_of_each_size([stage[-1] for stage in stages if stage], candidates.layouts)
    if len(last) > 1:
        coarsest = sorted(last, key=math.prod)[:MOST]
        return [layer for size, layer in last.items() if size in coarsest]
    row = [layer for layer in candidates.row if layer.address not in silent]
    if len(row) < 2:
        row = [layer for layer in _longest_group(candidates.stages) if layer.address not in silent] or list(last.values())
    if not row:
        raise AddressError(_no_layer(candidates))
    return evenly(row)


def evenly(row: list[Layer], most: int = MOST) -> list[Layer]:
    """Select at most `most` layers of a row, evenly spaced, including the last one."""
    count = min(most, len(row))
    return [row[math.ceil((i + 1) * len(row) / count) - 1] for i in range(count)]


def _no_layer(candidates: Shortlist) -> str:
    """The reason why there is no choice."""
    if candidates.repeated:
        return (
            "layers='auto' takes no module that runs several times in a forward pass, as in a siamese network, because its "
            f"runs may see different images; name the runs to explain, such as layers={candidates.repeated}"
        )
    return (
        "layers='auto' found no layer of this model that returns maps [N, C, H, W], [N, H, W, C] or tokens [N, T, C] and "
        f"that the prediction depends on; name the layers: {advice(*ALL_LAYERS)}"
    )


def _repeated(traced: Trace, grid: tuple[int, ...] | None, prefix: int | None) -> list[str]:
    """The addresses that would be chosen if each module had run only the first time."""
    once = [replace(layer, address=layer.address.partition("#")[0]) for layer in traced.layers if layer.call == 0]
    try:
        chosen = choose(shortlist(replace(traced, layers=once), grid, prefix))
    except AddressError:
        return []
    repeated = {layer.address for layer in traced.layers}
    return [f"{layer.address}#0" for layer in chosen if f"{layer.address}#0" in repeated]


def _maps(traced: Trace, grid: tuple[int, ...] | None, prefix: int | None) -> dict[str, Layout]:
    """Addresses and layouts of all outputs that are maps of the image, in order of execution."""
    dense, maps = dense_classes(traced), {}
    for layer in traced.layers:
        if PADDING.search(layer.module_type):
            continue
        try:
            layout = layout_of(layer, traced, grid, prefix)
        except AddressError:
            continue
        channels = _channels(layer, layout)
        is_image = layout.size == traced.image_size and channels == traced.channels
        if "#" not in layer.address and not is_image and channels not in dense and fits_image(layout, traced.inner_size):
            maps[layer.address] = layout
    return _without_prediction(maps, traced)


def _without_prediction(maps: dict[str, Layout], traced: Trace) -> dict[str, Layout]:
    """The maps without the last ones if the model returns them, as segmentation networks that predict few pixels do.

    They are features, not a prediction, if no other module returns maps of this size with other channels.
    """
    inside = [layer for layer in traced.layers if layer.address in maps and layer.path]
    if not inside or len(inside[-1].shape) < 4 or inside[-1].shape not in traced.returned:
        return maps
    last = inside[-1]
    others = {layer.shape for layer in inside if not f"{layer.path}.".startswith(f"{last.path}.")}
    if not any(shape[2:] == last.shape[2:] and shape != last.shape for shape in others):
        return maps
    predictions = {layer.address for layer in inside if layer.shape == last.shape}
    return {address: layout for address, layout in maps.items() if address not in predictions}


def _channels(layer: Layer, layout: Layout) -> int:
    return layer.shape[1] if layout.kind == "channels_first" else layer.shape[-1]


def _pyramids(traced: Trace, tree: ModuleTree) -> list[list[Layer]]:
    """The levels of modules that return maps of several sizes; without modules that pass on another's levels.

    Where maps lie deeper in the output, as in a tuple of hidden states, they are levels if they have equally many channels.
    Otherwise they are outputs of stages, which have addresses of their own.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[Layer]] = {}
    for layer in traced.layers:
        if layer.address in tree.layouts and layer.keys and tree.layouts[layer.address].token_axis is None:
            groups.setdefault((layer.path, layer.keys[:-1]), []).append(layer)
    plain: list[list[Layer]] = []
    nested: list[list[Layer]] = []
    for (_, keys), levels in groups.items():
        pyramids = nested if keys else plain
        is_neck = not keys or len({_channels(level, tree.layouts[level.address]) for level in levels}) == 1
        several = len({tree.size(level) for level in levels}) > 1
        if several and is_neck and not any(_passes_on(levels, inner) for inner in pyramids):
            pyramids.append(levels)
    return [[level for level in levels if math.prod(tree.size(level)) > 1] for levels in [*nested, *plain]]


def _passes_on(levels: list[Layer], inner: list[Layer]) -> bool:
    """Whether a module returns the levels of a module inside it, or, without own parameters, of a module before it."""
    below = f"{levels[0].path}." if levels[0].path else ""
    owned = levels[0].parameters == 0 or inner[0].path.startswith(below)
    return owned and [one.shape for one in levels] == [one.shape for one in inner]


def _inside(layer: Layer, head: Node | None) -> bool:
    return head is not None and f"{layer.path}.".startswith(f"{head.path}.")


def _longest_group(stages: list[list[Layer]]) -> list[Layer]:
    """The largest group of modules with the same parent; ties go to the group nearest to the top."""
    groups: dict[str, dict[str, Layer]] = {}
    for layer in (layer for stage in stages for layer in stage):
        groups.setdefault(layer.path.rpartition(".")[0], {})[layer.address] = layer
    longest = max(groups, key=lambda parent: (len(groups[parent]), -parent.count(".")), default=None)
    return [] if longest is None else list(groups[longest].values())


def _last_of_each_size(layers: list[Layer], layouts: dict[str, Layout]) -> dict[tuple[int, ...], Layer]:
    """The last layer of each size, in order of execution."""
    last: dict[tuple[int, ...], Layer] = {}
    for layer in layers:
        size = layouts[layer.address].size
        last.pop(size, None)
        last[size] = layer
    return last
