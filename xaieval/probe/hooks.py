"""Activations and gradients of many layers in one forward and one backward pass of a borrowed model."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xaieval.data.batches import check_images
from xaieval.errors import AddressError, TargetError
from xaieval.inference.borrowing import borrow, check_open
from xaieval.probe.addresses import Forward, Layer, expand, layout_of, pick, table, trace
from xaieval.probe.auto_layers import AUTO, Shortlist, choose, shortlist
from xaieval.probe.detector_frames import Frame
from xaieval.probe.layouts import Layout

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Pass", "ProbeLayer", "Probed", "list_layers", "locate", "probe", "put", "run", "to_device"]

Score = Callable[[Any], Tensor]


@dataclass(frozen=True)
class ProbeLayer:
    """A layer to probe.

    Attributes:
        layer: what to look at.
        layout: where the spatial axes of its output are.
        by_name: it was asked for by its address, not by a pattern that happens to fit.
        frame: of the images in what the layer sees, if the model resizes and pads them itself.
    """

    layer: Layer
    layout: Layout
    by_name: bool = True
    frame: Frame | None = None

    @property
    def address(self) -> str:
        """Of the layer, as text."""
        return self.layer.address


@dataclass(frozen=True)
class Probed:
    """What one pass gave.

    Attributes:
        output: the model's output, as it is.
        activations: by address, `[N, C, h, w]`, detached.
        gradients: of the score, by address, of the same shapes; empty if no score was given.
    """

    output: Any
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Pass:
    """One forward pass with the tensors that it left at the layers; gradients can be asked for once.

    Attributes:
        output: the model's output, as it is.
        activations: by address, `[N, C, h, w]`, detached.
    """

    def __init__(self, output: Any, captured: dict[str, Tensor], layers: Sequence[ProbeLayer]) -> None:
        self.output = output
        self.activations = {at.address: at.layout.to_maps(captured[at.address].detach()) for at in layers}
        self._captured = captured
        self._layers = layers

    def gradients(self, score: Tensor) -> dict[str, Tensor]:
        """Gradients of `score` (`[N]`, one number an image) at every layer, `[N, C, h, w]` by address.

        At a layer that a pattern happened to fit, and that the score does not depend on, they are NaN.

        Raises:
            AddressError: the score does not depend on one of the layers that were asked for by name, or on none at all.
            TargetError: the score is not one number an image.
        """
        found = self.reached(score)
        missing = [at.address for at in self._layers if found[at.address] is None]
        if any(at.by_name and at.address in missing for at in self._layers) or (missing and len(missing) == len(found)):
            raise AddressError(
                f"the target does not depend on {_quoted(missing)}: it has no gradient there; choose a layer that the "
                "prediction passes through, or a method that needs no gradient"
            )
        return {a: torch.full_like(self.activations[a], torch.nan) if g is None else g for a, g in found.items()}

    def reached(self, score: Tensor) -> dict[str, Tensor | None]:
        """The same, with None where the score does not depend on a layer.

        Raises:
            TargetError: the score is not one number an image.
        """
        if score.ndim != 1:
            raise TargetError(f"a score is one number an image, [N]; got {list(score.shape)}")
        found: dict[str, Tensor | None] = dict.fromkeys(self._captured)
        if self._captured and score.requires_grad:
            tensors = list(self._captured.values())
            found = dict(zip(found, torch.autograd.grad(score.sum(), tensors, allow_unused=True), strict=True))
        layouts = {at.address: at.layout for at in self._layers}
        return {a: None if gradient is None else layouts[a].to_maps(gradient) for a, gradient in found.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, fit for gradients also if it was made in inference mode."""
    moved = tensor.to(device, non_blocking=True)  # which makes a difference for pinned memory alone
    return moved.clone() if moved.is_inference() else moved.detach()


def locate(
    model: nn.Module,
    images: Tensor,
    layers: Iterable[str],
    *,
    forward: Forward | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
    score: Score | None = None,
) -> list[ProbeLayer]:
    """Find the layers that addresses name, by one pass over the first two images.

    Args:
        model: borrowed.
        images: `[N, C, H, W]`, on the model's device.
        layers: addresses and patterns; "auto" stands for those that `xaieval.probe.auto_layers` chooses, by a second pass.
        forward: how to run the model; `model(images)` unless told.
        grid: height and width of the token grid of `[N, T, C]` outputs, where it cannot be inferred.
        prefix_tokens: number of tokens before that grid, likewise.
        score: from the model's output to one number an image: "auto" leaves out what it does not depend on.

    Raises:
        AddressError: an address names nothing, several tensors, or a tensor without a map.
        ModelError: nobody can look inside the model.
    """
    layers = list(layers)
    if not layers:
        return []
    check_open(model)
    traced = trace(model, images[:2], forward)
    chosen: dict[str, None] = {}
    if AUTO in layers:
        found = shortlist(traced, grid, prefix_tokens)
        silent = _silent(model, images[:2], found, score, forward)
        chosen = dict.fromkeys(layer.address for layer in choose(found, silent))
        layers = [name for given in layers for name in (chosen if given == AUTO else [given])]
    named = {given for given in layers if "*" not in given and "?" not in given} - chosen.keys()
    return [
        ProbeLayer(layer, layout_of(layer, traced, grid, prefix_tokens), layer.address in named, traced.frame)
        for layer in expand(layers, traced)
    ]


def _silent(model: nn.Module, images: Tensor, found: Shortlist, score: Score | None, forward: Forward | None) -> set[str]:
    """Addresses of the layers on whose cells the score does not depend; none where that cannot be told.

    The cells of a map may have no gradient at all or, in a transformer of which only the class token is read, one that is zero.
    Other zeros are chance: a dead channel, a level of a pyramid in which a detector finds nothing on these images.
    """
    if score is None:
        return set()
    layers = [ProbeLayer(layer, found.layouts[layer.address]) for layer in found.layers]
    seen = run(model, images, layers, forward=forward)
    gradients = seen.reached(score(seen.output))
    silent = {address for address, gradient in gradients.items() if gradient is None}
    if any(gradient is not None and gradient.any() for gradient in gradients.values()):
        silent |= {a for a, g in gradients.items() if g is not None and found.layouts[a].prefix and not g.any()}
    return silent if len(silent) < len(layers) else set()


def run(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[ProbeLayer],
    differentiable: bool = True,
    forward: Forward | None = None,
) -> Pass:
    """One forward pass that can be differentiated down to the shallowest of the layers.

    Args:
        model: borrowed.
        images: `[N, C, H, W]`, on the model's device.
        layers: where to look.
        differentiable: whether gradients will be asked for.
        forward: how to run the model; `model(images)` unless told.

    Raises:
        AddressError: a layer did not run, or its output cannot have a gradient.
    """
    captured: dict[str, Tensor] = {}
    with ExitStack() as undo:
        for path, watched in _by_path(layers).items():
            hook = _Hook(watched, captured, differentiable)
            # Before any other hook: what one of them keeps and a later module uses, as transformers does with hidden states,
            # has to be on the way from here to the score.
            undo.callback(model.get_submodule(path).register_forward_hook(hook, prepend=True).remove)
        undo.enter_context(torch.set_grad_enabled(differentiable))
        output = (model if forward is None else forward)(images)
    missing = [item.address for item in layers if item.address not in captured]
    if missing:
        raise AddressError(f"{_quoted(missing)} ran on the first images of the data but not on these")
    return Pass(output, captured, layers)


def probe(
    model: nn.Module,
    images: Tensor,
    layers: str | Iterable[str],
    score: Score | None = None,
    *,
    device: torch.device | str | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
) -> Probed:
    """Activations of any layers of a model, and the gradients of a score there, all `[N, C, h, w]`.

    The model is given back as it was: mode, hooks, gradients, device.

    Args:
        model: any module.
        images: `[N, C, H, W]`, normalised as the model expects.
        layers: addresses or patterns such as "layer4", "fpn[*]", "rpn.head.conv#2".
        score: from the model's output to one number an image, `[N]`; without it there are no gradients.
        device: where to work; the model's own unless told.
        grid: height and width of the token grid of `[N, T, C]` outputs, where it cannot be inferred; three numbers of
            volumes.
        prefix_tokens: number of tokens before that grid, likewise; with both, what is left over comes after the grid.

    Raises:
        AddressError: an address names nothing, several tensors or one without a map, or the score does not depend on it.

    Example:
        >>> import torch, torchvision
        >>> model = torchvision.models.resnet18()
        >>> seen = probe(model, torch.rand(2, 3, 64, 64), ["layer3", "layer4"], score=lambda logits: logits[:, 0])
        >>> {address: tuple(gradient.shape) for address, gradient in seen.gradients.items()}
        {'layer3': (2, 256, 4, 4), 'layer4': (2, 512, 2, 2)}
    """
    images = check_images(images)
    layers = [layers] if isinstance(layers, str) else layers
    with borrow(model, device) as there:
        images = to_device(images, there)
        found = locate(model, images, layers, grid=grid, prefix_tokens=prefix_tokens, score=score)
        seen = run(model, images, found, differentiable=score is not None)
        gradients = seen.gradients(score(seen.output)) if score is not None else {}
        return Probed(seen.output, seen.activations, gradients)


def list_layers(model: nn.Module, images: Tensor) -> pd.DataFrame:
    """Every address of a model in order of execution.

    Args:
        model: any module.
        images: `[N, C, H, W]`; one or two are enough.

    Returns:
        Columns `address`, `module_type`, `output_shape` (for these images), `stride` (input pixels per cell of a map; missing
        where the output is no map) and `parameters`.

    Example:
        >>> import torch, torchvision
        >>> listing = list_layers(torchvision.models.resnet18(), torch.rand(1, 3, 64, 64))
        >>> listing.set_index("address").loc["layer4", "output_shape"]
        (1, 512, 2, 2)
    """
    images = check_images(images)
    with borrow(model) as device:
        check_open(model)
        return table(trace(model, to_device(images, device)))


def put(output: Any, keys: Sequence[str], tensor: Tensor) -> Any:
    """A shallow copy of a module's output with another tensor at `keys`."""
    if not keys:
        return tensor
    if isinstance(output, Mapping):
        key = keys[0] if keys[0] in output else int(keys[0])
        changed: Any = copy.copy(output)
        changed[key] = put(output[key], keys[1:], tensor)
        return changed
    index = int(keys[0])
    items = list(output)
    items[index] = put(items[index], keys[1:], tensor)
    if hasattr(output, "_fields"):
        return type(output)(*items)
    return type(output)(items)


class _Hook:
    """Keeps the wanted tensors of a module's calls, and hands the module's users clones of them.

    What is kept starts the graph where nothing before it needs a gradient, so that the backward pass ends at the shallowest
    layer. The clone is what later in-place operations work on.
    """

    def __init__(self, layers: list[Layer], captured: dict[str, Tensor], differentiable: bool) -> None:
        self.layers = layers
        self.captured = captured
        self.differentiable = differentiable
        self.calls = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        call, self.calls = self.calls, self.calls + 1
        for layer in self.layers:
            if layer.call == call:
                tensor = pick(output, layer.keys)
                if _shares_memory(tensor, inputs) or (layer.keys and tensor.requires_grad):
                    # Its user may change the input in place. One of several outputs may have been used inside the module too:
                    # what is wanted is the gradient of this output alone, whichever other layers are looked at.
                    tensor = tensor.clone()
                if self.differentiable and not tensor.requires_grad:
                    if not tensor.is_floating_point():
                        raise AddressError(f"layer '{layer.address}' gives {tensor.dtype}, which has no gradient")
                    tensor = tensor.detach().requires_grad_()
                self.captured[layer.address] = tensor
                output = put(output, layer.keys, tensor.clone())
        return output


def _shares_memory(tensor: Tensor, inputs: Sequence[Any]) -> bool:
    return any(
        isinstance(given, Tensor) and given.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        for given in inputs
    )


def _by_path(layers: Iterable[ProbeLayer]) -> Mapping[str, list[Layer]]:
    grouped: defaultdict[str, list[Layer]] = defaultdict(list)
    for item in layers:
        grouped[item.layer.path].append(item.layer)
    return grouped


def _quoted(addresses: list[str]) -> str:
    return f"layer{'s' if len(addresses) > 1 else ''} {', '.join(map(repr, addresses))}"
