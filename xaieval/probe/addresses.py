"""Layer addresses `path[key]#call`: parsing them, finding what they name in a model, listing them all.

A module path alone cannot name every tensor: torchvision's FPN returns a mapping, and a detector's head runs once per level.
So a model is traced: one forward pass with a hook on every module records each tensor that leaves a module, in order of
execution, and addresses are matched against that record.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xaieval.errors import AddressError
from xaieval.probe.detector_frames import Frame, frame_of
from xaieval.probe.layouts import Layout, image_layout, token_layout

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Address",
    "Layer",
    "Trace",
    "expand",
    "layout_of",
    "parse",
    "pick",
    "table",
    "trace",
]

Forward = Callable[[Tensor], Any]

SIDES = ("depth", "height", "width")

_ADDRESS = re.compile(r"(?P<path>[^\[\]#]*)(?P<keys>(\[[^\[\]]+\])*)(#(?P<call>\d{1,999}|\*))?")


@dataclass(frozen=True)
class Address:
    """A tensor inside a model: the module, which part of its output, and which of its calls.

    Attributes:
        path: a name from `model.named_modules()`; may hold the wildcards `*` and `?`, which do not match a dot.
        keys: the keys or indices into an output that is a mapping, tuple or list, outermost first; `*` is any.
        call: number of the call from 0, "*" for all, None where the module runs once.
    """

    path: str
    keys: tuple[str, ...] = ()
    call: int | str | None = None

    def __str__(self) -> str:
        keys = "".join(f"[{key}]" for key in self.keys)
        return f"{self.path}{keys}{'' if self.call is None else f'#{self.call}'}"


def parse(text: str) -> Address:
    """Read an address or a pattern of addresses.

    Raises:
        AddressError: the text is empty or not of the form `path[key]#call`.

    Example:
        >>> parse("backbone.fpn[pool]")
        Address(path='backbone.fpn', keys=('pool',), call=None)
        >>> parse("rpn.head.conv#2").call
        2
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or not (match["path"] or match["keys"]):
        raise AddressError(f"{text!r} is not a layer address; one looks like 'layer4', 'fpn[p2]' or 'rpn.head.conv#2'")
    keys = tuple(re.findall(r"\[([^\[\]]+)\]", match["keys"]))
    call = match["call"]
    return Address(match["path"], keys, int(call) if call is not None and call != "*" else call)


@dataclass(frozen=True)
class Layer:
    """One tensor that a forward pass makes inside a model.

    Attributes:
        address: its full address as text, with `#call` only where the module runs several times.
        path: of the module.
        keys: into the module's output.
        call: number of the call, from 0.
        module_type: class name of the module.
        shape: of the tensor; the first number is the batch.
        parameters: number of parameters of the module.
    """

    address: str
    path: str
    keys: tuple[str, ...]
    call: int
    module_type: str
    shape: tuple[int, ...]
    parameters: int

    def __str__(self) -> str:
        return f"{self.address} {_show(self.shape)}"


@dataclass
class Trace:
    """What one forward pass made: every tensor in order of execution, and what did not run.

    Attributes:
        layers: in the order in which they were finished.
        batch: number of images of the pass.
        image_size: height and width of the images; of volumes depth, height and width.
        unused: paths of modules that the pass never ran.
        aliases: further names of modules that the model holds twice, and the names under which they are recorded.
        channels: of the images.
        returned: shapes of the tensors in the model's own output.
        frame: of the images in what the model works on, if it resizes and pads them itself.
    """

    layers: list[Layer]
    batch: int
    image_size: tuple[int, ...]
    unused: list[str]
    aliases: dict[str, str] = field(default_factory=dict)
    channels: int = 3
    returned: list[tuple[int, ...]] = field(default_factory=list)
    frame: Frame | None = None

    @property
    def inner_size(self) -> tuple[int, ...]:
        """Height and width of the images that layers see."""
        return self.image_size if self.frame is None else self.frame.outer


def trace(model: nn.Module, images: Tensor, forward: Forward | None = None) -> Trace:
    """Run the model once and record every tensor that leaves one of its modules.

    Args:
        model: is run as it is: in its mode and on its device.
        images: `[N, C, H, W]` or volumes `[N, C, D, H, W]`, on the model's device; two are enough.
        forward: how to run the model; `model(images)` unless told.
    """
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    made: list[tuple[str, int, tuple[str, ...], nn.Module, tuple[int, ...]]] = []
    calls: Counter[str] = Counter()
    frames: list[Frame] = []

    def record(module: nn.Module, _: Any, output: Any) -> None:
        path = names[module]
        made.extend((path, calls[path], keys, module, tuple(t.shape)) for keys, t in _tensors(output))
        calls[path] += 1
        frames.extend(frame for frame in [frame_of(output)] if frame)

    handles = [module.register_forward_hook(record) for module in names]
    try:
        with torch.no_grad():  # not inference_mode: what a model caches now has to be fit for gradients in the next pass
            output = (model if forward is None else forward)(images)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(
        layers=[
            Layer(
                address=str(Address(path, keys, call if calls[path] > 1 else None)),
                path=path,
                keys=keys,
                call=call,
                module_type=type(module).__name__,
                shape=shape,
                parameters=sum(p.numel() for p in module.parameters()),
            )
            for path, call, keys, module, shape in made
            if path or keys
        ],
        batch=len(images),
        image_size=tuple(images.shape[2:]),
        unused=[name for name in names.values() if name and not calls[name]],
        aliases={name: names[module] for name, module in model.named_modules(remove_duplicate=False) if names[module] != name},
        channels=images.shape[1],
        returned=[tuple(tensor.shape) for _, tensor in _tensors(output)],
        frame=frames[0] if frames else None,
    )


def expand(patterns: Iterable[str], traced: Trace) -> list[Layer]:
    """The layers that addresses and patterns name: in the order given, a pattern's in order of execution, each once.

    Raises:
        AddressError: a pattern names nothing, or a module that ran several times or returns several tensors without saying
            which is meant; the message lists them.
    """
    found = {layer.address: layer for pattern in patterns for layer in _matches(pattern, traced)}
    return list(found.values())


def pick(output: Any, keys: Sequence[str]) -> Tensor:
    """The tensor at `keys` of a module's output."""
    for key in keys:
        named = isinstance(output, Mapping) and key in output
        output = output[key if named else int(key)]
    return output


def layout_of(
    layer: Layer,
    traced: Trace,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
) -> Layout:
    """Where the height and width of a layer's output are, and the depth of volumes.

    Args:
        layer: of the trace.
        traced: the pass that made it.
        grid: height and width of the token grid, for outputs `[N, T, C]` where it cannot be inferred; three numbers of volumes.
        prefix_tokens: number of tokens before the grid, likewise; with both, tokens that are left over come after the grid.

    Raises:
        AddressError: the output has no map: it is a vector, its first axis is not the batch, or its tokens fit no grid.
    """
    layout, axes = None, len(traced.image_size)
    if layer.shape[:1] == (traced.batch,) and len(layer.shape) == 2 + axes:
        layout = image_layout(layer.shape, traced.inner_size)
    elif layer.shape[:1] == (traced.batch,) and len(layer.shape) == 3:
        layout = token_layout(layer.shape[1], traced.inner_size, grid, prefix_tokens)
        if layout is None:
            raise AddressError(
                f"layer '{layer.address}' has {layer.shape[1]} tokens, which fit no grid of a "
                f"{' x '.join(map(str, traced.image_size))} image; give grid=({', '.join(SIDES[-axes:])}) and prefix_tokens="
            )
    if layout is None:
        raise AddressError(
            f"layer '{layer.address}' has no map: its output is {list(layer.shape)} for {traced.batch} images, and "
            "[N, C, H, W], [N, H, W, C] or tokens [N, T, C] were expected; 'xaieval-bench layers' lists all"
        )
    return layout


def table(traced: Trace) -> pd.DataFrame:
    """All layers: columns `address`, `module_type`, `output_shape`, `stride` (of maps; else missing), `parameters`."""
    import pandas as pd  # half a second, which not every caller needs

    def stride(layer: Layer) -> float | None:
        try:
            return traced.inner_size[-2] / layout_of(layer, traced).size[-2]
        except AddressError:
            return None

    return pd.DataFrame(
        {
            "address": [layer.address for layer in traced.layers],
            "module_type": [layer.module_type for layer in traced.layers],
            "output_shape": [layer.shape for layer in traced.layers],
            "stride": pd.array([stride(layer) for layer in traced.layers], dtype="Float64"),
            "parameters": [layer.parameters for layer in traced.layers],
        }
    )


def _tensors(output: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """All tensors inside a module's output, each with the keys that lead to it."""
    if isinstance(output, Tensor):
        yield keys, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from _tensors(value, (*keys, str(key)))
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from _tensors(value, (*keys, str(index)))


def _show(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape[1:])])}]"


def _matches(pattern: str, traced: Trace) -> list[Layer]:
    wanted = parse(pattern)
    path = traced.aliases.get(wanted.path, wanted.path)
    at_path = [layer for layer in traced.layers if _like(path, layer.path)]
    found = [layer for layer in at_path if _keys_like(wanted.keys, layer.keys)]
    if not found:
        raise AddressError(_nothing_found(pattern, path, at_path, traced))
    if wanted.call is None:
        repeated = [layer for layer in found if "#" in layer.address]
        if repeated:
            raise AddressError(
                f"layer '{repeated[0].path}' runs several times: {_some(repeated)}; "
                f"pick one of them, or all with '{Address(wanted.path, wanted.keys, '*')}'"
            )
    elif wanted.call != "*":
        chosen = [layer for layer in found if layer.call == wanted.call]
        if not chosen:
            raise AddressError(f"no call '{pattern}'; there are {_some(found)}")
        return chosen
    return found


def _like(pattern: str, text: str) -> bool:
    """Whether a text fits a pattern with `*` and `?`, which stand for anything but a dot."""
    parts, words = pattern.split("."), text.split(".")
    return len(parts) == len(words) and all(map(fnmatchcase, words, parts))  # neither holds brackets


def _keys_like(patterns: tuple[str, ...], keys: tuple[str, ...]) -> bool:
    return len(patterns) == len(keys) and all(_like(p, k) or p == "*" for p, k in zip(patterns, keys, strict=True))


def _nothing_found(pattern: str, path: str, at_path: list[Layer], traced: Trace) -> str:
    if path in traced.unused:
        return f"layer '{path}' was not run by this forward pass, so it explains nothing of the output"
    if at_path and not parse(pattern).keys:
        everything = Address(path, ("*",) * len(at_path[0].keys))
        return f"layer '{path}' returns several tensors: {_some(at_path)}; pick one of them, or all with '{everything}'"
    near = _nearest(pattern, [layer.address for layer in at_path or traced.layers], cutoff=0.0 if at_path else 0.5)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return f"no layer {pattern!r}; {hint}'xaieval-bench layers' lists all"


def _nearest(pattern: str, addresses: list[str], cutoff: float, most: int = 4) -> list[str]:
    """The addresses most like a pattern; equally near ones in order of execution."""
    likeness = {address: difflib.SequenceMatcher(None, pattern, address).ratio() for address in addresses}
    return sorted((a for a in addresses if likeness[a] >= cutoff), key=lambda a: -likeness[a])[:most]


def _some(layers: list[Layer], most: int = 12) -> str:
    rest = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(str(layer) for layer in layers[:most]) + rest
