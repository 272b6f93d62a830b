"""Layer addresses `path[key]#call`: parse them, find their tensors in a model, and list all of them.

A module path alone cannot name every tensor: torchvision's FPN returns a mapping, and a detector's head runs once per level. So
one forward pass traces the model: hooks record each tensor that a module returns, in order of execution, and addresses are
matched against that trace.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from fnmatch import fnmatchcase
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from xaieval.errors import ALL_LAYERS, AddressError, advice
from xaieval.probe.detector_frames import Frame, frame_of
from xaieval.probe.layouts import Layout, image_layout, token_layout

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Address",
    "Layer",
    "Trace",
    "expand",
    "is_record",
    "key_of",
    "layout_of",
    "parse",
    "pick",
    "table",
    "tensors_of",
    "trace",
]

SIDES = ("depth", "height", "width")
CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)

_ADDRESS = re.compile(r"(?P<path>[^\[\]#]*)(?P<keys>(\[[^\[\]]+\])*)(#(?P<call>\d{1,999}|\*))?")


@dataclass(frozen=True)
class Address:
    """The address of a tensor inside a model: a module, a part of its output, and one of its calls.

    Attributes:
        path: A name from `model.named_modules()`. The wildcards `*` and `?` match anything but a dot.
        keys: Keys, indices or names in an output that is a mapping, tuple, list or dataclass, outermost first; `*` matches
            any.
        call: Number of the call from 0, "*" for all calls, or None for a module that runs once.
    """

    path: str
    keys: tuple[str, ...] = ()
    call: int | str | None = None

    def __str__(self) -> str:
        keys = "".join(f"[{key}]" for key in self.keys)
        return f"{self.path}{keys}{'' if self.call is None else f'#{self.call}'}"


def parse(text: str) -> Address:
    """Parse an address or a pattern of addresses.

    Raises:
        AddressError: The text is empty or not of the form `path[key]#call`.

    Example:
        >>> parse("backbone.fpn[pool]")
        Address(path='backbone.fpn', keys=('pool',), call=None)
        >>> parse("rpn.head.conv#2").call
        2
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or not (match["path"] or match["keys"]):
        raise AddressError(f"{text!r} is not a layer address; examples are 'layer4', 'fpn[p2]' and 'rpn.head.conv#2'")
    keys = tuple(re.findall(r"\[([^\[\]]+)\]", match["keys"]))
    call = match["call"]
    # The name under which a compiled module holds the original, which takes its place when a model is borrowed.
    path = ".".join(name for name in match["path"].split(".") if name != "_orig_mod")
    return Address(path, keys, int(call) if call is not None and call != "*" else call)


@dataclass(frozen=True)
class Layer:
    """A tensor that a module returns in a forward pass.

    Attributes:
        address: The full address as text, with `#call` only if the module runs several times.
        path: Path of the module.
        keys: Keys into the module's output.
        call: Number of the call, from 0.
        module_type: Class name of the module.
        shape: Shape of the tensor, starting with the batch size.
        parameters: Number of parameters of the module.
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
    """The record of one forward pass: all tensors in order of execution, and the modules that did not run.

    Attributes:
        layers: The layers, in the order in which their calls ended.
        batch: Number of images in the pass.
        image_size: Height and width of the images; depth, height and width of volumes.
        unused: Paths of modules that did not run.
        aliases: Other names of modules that the model contains twice, with the names under which they are recorded.
        channels: Number of channels of the images.
        returned: Shapes of the tensors in the model's output, as the model itself returns it, without features: tensors that a
            module with parameters reads too.
        frame: Position of the image in the model's padded input, for detectors that resize and pad images themselves.
        frame_path: Path of the module that gives it.
        convolutional: Whether only convolutions and the norms that go with them return maps, all with channels first.
        found: Layouts that more than the shapes has settled, or why a layer has none, by address.
    """

    layers: list[Layer]
    batch: int
    image_size: tuple[int, ...]
    unused: list[str]
    aliases: dict[str, str] = field(default_factory=dict)
    channels: int = 3
    returned: list[tuple[int, ...]] = field(default_factory=list)
    frame: Frame | None = None
    frame_path: str | None = None
    convolutional: bool = False
    found: dict[str, Layout | str] = field(default_factory=dict)

    @property
    def inner_size(self) -> tuple[int, ...]:
        """Height and width of the images inside the model, after its own resizing and padding."""
        return self.image_size if self.frame is None else self.frame.outer


def trace(model: nn.Module, images: Tensor, forward: Callable[[Tensor], Any] | None = None) -> Trace:
    """Run the model once and record every tensor that its modules return.

    Args:
        model: The model, in its current mode and on its current device.
        images: Images `[N, C, H, W]` or volumes `[N, C, D, H, W]`, on the model's device; two are enough.
        forward: Runs the model on images. Default: `model(images)`.
    """
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    records: list[tuple[str, int, tuple[str, ...], nn.Module, tuple[int, ...]]] = []
    calls: Counter[str] = Counter()
    frames: list[tuple[str, Frame]] = []
    others: list[nn.Module] = []
    read: dict[int, ReferenceType[Tensor]] = {}
    own_output: list[Any] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        path = names[module]
        own_output[:] = [] if path else [output]  # where the pass ends with the model, not with what is made of its output
        if path and next(module.parameters(), None) is not None:
            read.update((id(tensor), ref(tensor)) for _, tensor in tensors_of(inputs))
        lasting = [(keys, tensor) for keys, tensor in tensors_of(output) if 0 not in tensor.shape[1:]]  # an empty one is none
        records.extend((path, calls[path], keys, module, tuple(tensor.shape)) for keys, tensor in lasting)
        calls[path] += 1
        frames.extend((path, frame) for frame in [frame_of(output)] if frame)
        if module._parameters and getattr(output, "ndim", 0) > 2 and not isinstance(module, CHANNELS_FIRST):
            others.append(module)

    # TorchScript takes no Python hooks.
    handles = [module.register_forward_hook(record) for module in names if not isinstance(module, torch.jit.ScriptModule)]
    try:
        with torch.no_grad():  # not inference_mode: tensors that the model caches must support gradients in the next pass
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
            for path, call, keys, module, shape in records
            if path or keys
        ],
        batch=len(images),
        image_size=tuple(images.shape[2:]),
        unused=[name for name in names.values() if name and not calls[name]],
        aliases={name: names[module] for name, module in model.named_modules(remove_duplicate=False) if names[module] != name},
        channels=images.shape[1],
        returned=[
            tuple(tensor.shape)
            for _, tensor in tensors_of(*(own_output or [output]))
            if id(tensor) not in read or read[id(tensor)]() is not tensor
        ],
        frame=frames[0][1] if frames else None,
        frame_path=frames[0][0] if frames else None,
        convolutional=not others,
    )


def expand(patterns: Iterable[str], traced: Trace) -> list[Layer]:
    """Find the layers that addresses and patterns match.

    Layers are in the order of the patterns, those of one pattern in order of execution, each layer once.

    Raises:
        AddressError: A pattern matches nothing, or does not say which call or which tensor of a module is meant; the message
            lists them.
    """
    layers = {layer.address: layer for pattern in patterns for layer in _matches(pattern, traced)}
    return list(layers.values())


def pick(output: Any, keys: Sequence[str]) -> Tensor:
    """Return the tensor at `keys` of a module's output."""
    for key in keys:
        if isinstance(output, Mapping):
            output = output[key_of(output, key)]
        else:
            output = getattr(output, key) if is_record(output) else output[int(key)]
    return output


def key_of(output: Mapping[Any, Any], text: str) -> Any:
    """The key of a mapping whose text is given in an address."""
    return text if text in output else next(key for key in output if str(key) == text)


def is_record(output: Any) -> bool:
    """Whether an output holds tensors as attributes: a dataclass, or a namespace."""
    return (is_dataclass(output) or isinstance(output, SimpleNamespace)) and not isinstance(output, Mapping | type)


def layout_of(
    layer: Layer,
    traced: Trace,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
) -> Layout:
    """Find the spatial axes of a layer's output: height and width, and depth for volumes.

    Args:
        layer: A layer of the trace.
        traced: The trace.
        grid: Height and width of the token grid of outputs `[N, T, C]`, if it cannot be inferred; three numbers for volumes.
        prefix_tokens: Number of tokens before the grid, if it cannot be inferred. With both, the remaining tokens come after
            the grid.

    Raises:
        AddressError: The output is not a map: it is a vector, its first axis is not the batch, or its tokens fit no grid.
    """
    found = traced.found.get(layer.address)
    if isinstance(found, str):
        raise AddressError(found)
    if found is not None:
        return found
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
            f"layer '{layer.address}' has no map: its output is {list(layer.shape)} for {traced.batch} images, but "
            f"[N, C, H, W], [N, H, W, C] or tokens [N, T, C] are expected; {advice(*ALL_LAYERS)}"
        )
    return layout


def table(traced: Trace, grid: tuple[int, ...] | None = None, prefix_tokens: int | None = None) -> pd.DataFrame:
    """List all layers: columns `address`, `module_type`, `output_shape`, `stride` (NaN if not a map), `parameters`."""
    import pandas as pd  # takes half a second, and not every caller needs it

    def stride(layer: Layer) -> float:
        try:
            return traced.inner_size[-2] / layout_of(layer, traced, grid, prefix_tokens).size[-2]
        except AddressError:
            return math.nan

    return pd.DataFrame(
        {
            "address": [layer.address for layer in traced.layers],
            "module_type": [layer.module_type for layer in traced.layers],
            "output_shape": [layer.shape for layer in traced.layers],
            "stride": [stride(layer) for layer in traced.layers],
            "parameters": [layer.parameters for layer in traced.layers],
        }
    )


def tensors_of(output: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """All tensors inside a module's output, with their keys."""
    if isinstance(output, Tensor):
        yield keys, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_of(value, (*keys, str(key)))
    elif isinstance(output, tuple | list):
        for index, value in enumerate(output):
            yield from tensors_of(value, (*keys, str(index)))
    elif is_record(output):
        names = [each.name for each in fields(output)] if is_dataclass(output) else vars(output)
        for name in names:
            yield from tensors_of(getattr(output, name), (*keys, name))


def _show(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape[1:])])}]"


def _matches(pattern: str, traced: Trace) -> list[Layer]:
    address = parse(pattern)
    path = traced.aliases.get(address.path, address.path)
    at_path = [layer for layer in traced.layers if _like(path, layer.path)]
    layers = [layer for layer in at_path if _keys_like(address.keys, layer.keys)]
    if not layers and not address.keys:
        layers = _only_tensors(at_path)
    if not layers:
        raise AddressError(_no_match(pattern, path, at_path, traced))
    if address.call is None:
        repeated = [layer for layer in layers if "#" in layer.address]
        if repeated:
            raise AddressError(
                f"layer '{repeated[0].path}' runs several times: {_listed(repeated)}; "
                f"choose one of them, or all with '{Address(address.path, address.keys, '*')}'"
            )
    elif address.call != "*":
        chosen = [layer for layer in layers if layer.call == address.call]
        if not chosen:
            raise AddressError(f"no call '{pattern}'; known: {_listed(layers)}")
        return chosen
    return layers


def _only_tensors(layers: list[Layer]) -> list[Layer]:
    """The layers, if each of their modules returns a single tensor, whose keys then need not be given; otherwise none."""
    keys: dict[str, set[tuple[str, ...]]] = {}
    for layer in layers:
        keys.setdefault(layer.path, set()).add(layer.keys)
    return layers if all(len(of_path) == 1 for of_path in keys.values()) else []


def _like(pattern: str, text: str) -> bool:
    """Whether a text matches a pattern; `*` and `?` match anything but a dot."""
    parts, words = pattern.split("."), text.split(".")
    return len(parts) == len(words) and all(map(fnmatchcase, words, parts))  # neither contains brackets


def _keys_like(patterns: tuple[str, ...], keys: tuple[str, ...]) -> bool:
    return len(patterns) == len(keys) and all(_like(p, k) or p == "*" for p, k in zip(patterns, keys, strict=True))


def _no_match(pattern: str, path: str, at_path: list[Layer], traced: Trace) -> str:
    if path in traced.unused:
        return f"layer '{path}' did not run in this forward pass, so it cannot explain the output"
    if at_path and not parse(pattern).keys:
        everything = Address(path, ("*",) * len(at_path[0].keys))
        return f"layer '{path}' returns several tensors: {_listed(at_path)}; choose one of them, or all with '{everything}'"
    near = _nearest(pattern, [layer.address for layer in at_path or traced.layers], cutoff=0.0 if at_path else 0.5)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return f"no layer {pattern!r}; {hint}{advice(*ALL_LAYERS)}"


def _nearest(pattern: str, addresses: list[str], cutoff: float, most: int = 4) -> list[str]:
    """The addresses most similar to a pattern; ties are in order of execution."""
    similarity = {address: difflib.SequenceMatcher(None, pattern, address).ratio() for address in addresses}
    return sorted((a for a in addresses if similarity[a] >= cutoff), key=lambda a: -similarity[a])[:most]


def _listed(layers: list[Layer], most: int = 12) -> str:
    rest = f" and {len(layers) - most} more" if len(layers) > most else ""
    return ", ".join(str(layer) for layer in layers[:most]) + rest
