"""The modules that ran in a forward pass as a tree, its stages, and the head that makes the prediction."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from torch import nn

from xaieval.probe.addresses import Layer, Trace
from xaieval.probe.layouts import Layout

__all__ = ["ModuleTree", "Node", "dense_classes"]

Size = tuple[int, ...]


@dataclass
class Node:
    """A module that ran. A container such as a `ModuleList` does not run itself, but is a node too.

    Attributes:
        path: Path of the module.
        layer: The module's output, if it is one map.
        is_output: Whether the module returns a tensor of the model's output.
        is_block: Whether a module below it has parameters.
        parameters: Number of its parameters.
        maps: All maps of the modules below it, in order of execution, followed by its own.
        children: The child nodes by name.
    """

    path: str = ""
    layer: Layer | None = None
    is_output: bool = False
    is_block: bool = False
    parameters: int = 0
    maps: list[Layer] = field(default_factory=list)
    children: dict[str, Node] = field(default_factory=dict)


def dense_classes(traced: Trace) -> set[int]:
    """The numbers of channels of outputs of the model that are as large as the image, as those of segmentation networks."""
    return {shape[1] for shape in traced.returned if len(shape) > 2 and shape[2:] == traced.image_size}


class ModuleTree:
    """The tree of the modules that ran.

    Args:
        traced: The trace of one forward pass.
        layouts: The layouts of the outputs that are maps, by address.
    """

    def __init__(self, traced: Trace, layouts: dict[str, Layout]) -> None:
        self.layouts = layouts
        self.root = Node()
        self._order: dict[str, int] = {}
        self._maps: list[Layer] = []
        paths: defaultdict[str, set[str]] = defaultdict(set)
        for layer in traced.layers:
            self._add(layer, traced)
            paths[layer.module_type].add(layer.path)
        self._modules_of = Counter({kind: len(of_kind) for kind, of_kind in paths.items()})

    def size(self, layer: Layer) -> Size:
        """Height and width of a map."""
        return self.layouts[layer.address].size

    def stages(self) -> list[list[Layer]]:
        """The blocks of each stage, followed by the output of the stage, in order of execution.

        A last block with coarser maps than the output is left out: it makes those of the next stage.
        """
        stages = [_with_blocks(node) for node in self._stages(self.root)]
        for stage in stages:
            if len(stage) > 1 and math.prod(self.size(stage[-2])) < math.prod(self.size(stage[-1])):
                del stage[-2]
        return sorted(stages, key=lambda stage: self._order[stage[-1].address])

    def longest_row(self) -> list[Layer]:
        """The longest row of blocks of one class in one module, all of one size; ties go to the one nearest to the top."""
        rows = [row for node in _walk(self.root) for row in self._rows(node) if len(row) > 1]
        return max(rows, key=lambda row: (len(row), -row[0].path.count(".")), default=[])

    def head(self) -> Node | None:
        """The module that makes the model's output from maps of several sizes, beginning with the finest; None without one."""
        return next((node for node in _walk(self.root) if node.is_output and self._reads_levels(node)), None)

    def levels_before(self, head: Node, layers: list[Layer]) -> list[Layer]:
        """The last of these layers of each size that the head reads."""
        sizes = self._sizes_read(head)
        before = [layer for layer in layers if self._order[layer.address] < self._start(head)]
        last = {self.size(layer): layer for layer in before if self.size(layer) in sizes}
        return sorted(last.values(), key=lambda layer: self._order[layer.address])

    def _add(self, layer: Layer, traced: Trace) -> None:
        names = layer.path.split(".") if layer.path else []
        is_map = layer.address in self.layouts and math.prod(self.size(layer)) > 1
        node = self.root
        for depth, name in enumerate(names, start=1):
            node.is_block |= layer.parameters > 0
            node = node.children.setdefault(name, Node(".".join(names[:depth])))
            node.maps += [layer] if is_map else []
        node.is_output |= len(layer.shape) > 2 and (layer.shape in traced.returned or layer.shape[1] in dense_classes(traced))
        node.parameters = layer.parameters
        if is_map and names:
            node.layer = node.layer or layer
            self._order[layer.address] = len(self._maps)
            self._maps.append(layer)

    def _start(self, node: Node) -> int:
        """The number of maps before the first one of a node."""
        return self._order[node.maps[0].address]

    def _map_before(self, node: Node) -> Layer | None:
        """The last map before a node runs, which is usually its input."""
        start = self._start(node)
        return self._maps[start - 1] if start else None

    def _stages(self, node: Node, is_main: bool = True) -> list[Node]:
        """A module as one stage, or the stages inside it if it changes the size of the maps.

        Args:
            node: The module.
            is_main: Whether it holds most of the model's parameters. Then it is examined although it may look like a stage
                from outside, unless there are several of its class.
        """
        inner = list(_nodes_with_maps(node, blocks=True))
        if not inner:  # one block may downsample between two of its layers, but not twice
            inner = list(_nodes_with_maps(node, blocks=False))
            if node.path and len({self.size(child.layer) for child in inner if child.layer}) < 3:
                return [node] if node.layer is not None else []
        looks_inside = is_main and not self._is_one_of_several(node)
        if (
            node.layer is not None
            and not looks_inside
            and self._is_one_stage(node, [child.layer for child in inner if child.layer])
        ):
            return [node]
        total = sum(child.parameters for child in inner)
        stages = [stage for child in inner for stage in self._stages(child, is_main and 2 * child.parameters > total)]
        if node.layer is None:
            return stages
        stages = [stage for stage in stages if not self._is_inside(stage, node)]
        return [node] if {self.size(stage.layer) for stage in stages if stage.layer} <= {self.size(node.layer)} else stages

    def _is_one_stage(self, node: Node, blocks: list[Layer]) -> bool:
        """Whether a module is a stage or a block.

        All its blocks return maps of one size, or of two alternating sizes, as the branches of a block that downsamples. Or it
        is one of several modules of its class and returns the size that it is given: smaller maps inside are side branches,
        such as the keys of an attention with spatial reduction.
        """
        areas = [math.prod(self.size(block)) for block in blocks]
        if len(set(areas)) == 1 or (len(set(areas)) == 2 and areas != sorted(areas, reverse=True)):
            return True
        before = self._map_before(node)
        if before is None or node.layer is None or not self._is_one_of_several(node):
            return False
        return self.size(before) == self.size(node.maps[0]) == self.size(node.layer)

    def _is_inside(self, stage: Node, node: Node) -> bool:
        """Whether something that looks like a stage is only a layer before the stride of a block that downsamples.

        A stage consists of blocks and goes on with the maps that it is given, so it returns equally many channels. The
        expansion of an inverted residual does not.
        """
        before = self._map_before(node)
        if before is None or stage.layer is None or node.layer is None or not self._is_one_of_several(node):
            return False
        given = self.size(before)
        changes = self.size(stage.layer) == self.size(node.maps[0]) == given != self.size(node.layer)
        has_blocks = any(_nodes_with_maps(stage, blocks=True))
        return changes and (not has_blocks or self._channels(stage.layer) != self._channels(before))

    def _is_one_of_several(self, node: Node) -> bool:
        """Whether a module has a class of its own that other modules have too."""
        kind = "" if node.layer is None else node.layer.module_type
        return kind != nn.Sequential.__name__ and self._modules_of[kind] > 1

    def _channels(self, layer: Layer) -> int:
        return layer.shape[1] if self.layouts[layer.address].kind == "channels_first" else layer.shape[-1]

    def _rows(self, node: Node) -> list[list[Layer]]:
        rows: defaultdict[tuple[str, Size], list[Layer]] = defaultdict(list)
        for child in node.children.values():
            if child.layer is not None and child.is_block:
                rows[child.layer.module_type, self.size(child.layer)].append(child.layer)
        return list(rows.values())

    def _reads_levels(self, node: Node) -> bool:
        """Whether a module reads several sizes of maps that ran before it, beginning with the finest."""
        return bool(node.path and node.maps) and len(set(self._sizes_read(node))) > 1

    def _sizes_read(self, node: Node) -> list[Size]:
        """The sizes of the maps in a module that ran before it too, until one is finer than the first.

        From there on the module makes maps larger, such as the prototypes of masks, and reads no further level.
        """
        before = {self.size(layer) for layer in self._maps[: self._start(node)]}
        sizes = [self.size(layer) for layer in node.maps if self.size(layer) in before]
        return list(takewhile(lambda size: math.prod(size) <= math.prod(sizes[0]), sizes))


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children.values():
        yield from _walk(child)


def _nodes_with_maps(node: Node, blocks: bool) -> Iterator[Node]:
    """The nearest nodes below that return a map: only blocks, or all."""
    for child in node.children.values():
        if child.layer is not None and (child.is_block or not blocks):
            yield child
        elif child.layer is None:
            yield from _nodes_with_maps(child, blocks)


def _with_blocks(stage: Node) -> list[Layer]:
    """The outputs of a stage's blocks, followed by the output of the stage."""
    blocks = list(_nodes_with_maps(stage, blocks=True))
    chain = [stage]
    while len(blocks) == 1:
        chain = [*blocks, *chain]
        blocks = list(_nodes_with_maps(blocks[0], blocks=True))
    return [node.layer for node in [*blocks, *chain] if node.layer is not None]
