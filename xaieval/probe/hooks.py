"""Activations and gradients of many layers in one forward and one backward pass of a borrowed model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xaieval.data.batches import check_images
from xaieval.errors import AddressError, ModelError, TargetError
from xaieval.inference.borrowing import borrow, check_open
from xaieval.inference.forward_passes import Forward, called
from xaieval.inference.model_failures import failures_are_model_errors
from xaieval.inference.options import LayerLayout
from xaieval.inference.plain_passes import network_of
from xaieval.probe.addresses import Layer, Trace, expand, layout_of, parse, table, trace
from xaieval.probe.auto_layers import AUTO, Shortlist, choose, shortlist
from xaieval.probe.capturing import Captured, CapturingHook, derivative_errors_are_model_errors, put
from xaieval.probe.detector_frames import Frame
from xaieval.probe.layout_choice import settled
from xaieval.probe.layouts import Layout
from xaieval.probe.other_sizes import Origin, Sizes, layout_now, origin_of, sizes_seen
from xaieval.probe.requested_layers import Layers, to_addresses

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Pass", "ProbeLayer", "Probed", "list_layers", "locate", "probe", "put", "run", "to_device"]

Score = Callable[[Any], Tensor]


@dataclass(frozen=True)
class ProbeLayer:
    """A layer to probe.

    Attributes:
        layer: The layer.
        layout: The axes of its output on the first images.
        origin: These images; other images can give other layouts.
        by_name: Whether the layer was given by its address, not by a pattern.
    """

    layer: Layer
    layout: Layout
    origin: Origin
    by_name: bool = True

    @property
    def address(self) -> str:
        """The address of the layer, as text."""
        return self.layer.address

    def layout_on(self, tensor: Tensor, sizes: Sizes, batch: int) -> Layout:
        """The layout of the layer's output in a pass."""
        return layout_now(self.layer, self.layout, self.origin, sizes, tensor, batch)

    def frame_on(self, sizes: Sizes) -> Frame | None:
        """The position of a pass's images in the model's padded input."""
        return self.origin.frame if sizes.image_size == self.origin.image_size else sizes.frame


@dataclass(frozen=True)
class Probed:
    """The result of `probe`.

    Attributes:
        output: The model's output, unchanged.
        activations: Activations by address, `[N, C, h, w]`, detached.
        gradients: Gradients of the score by address, with the same shapes; empty without a score.
    """

    output: Any
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


class Pass:
    """One forward pass and the tensors at the probed layers. Gradients can be computed once.

    Attributes:
        output: The model's output, unchanged.
        activations: Activations by address, `[N, C, h, w]`, detached.
        layouts: Layouts of the layers' outputs on these images, by address.
        frame: Position of these images in the model's padded input, for detectors that resize and pad images themselves.
    """

    def __init__(
        self,
        output: Any,
        captured: dict[str, Captured],
        layers: Sequence[ProbeLayer],
        sizes: Sizes,
        batch: int,
        model: nn.Module,
    ) -> None:
        self.output = output
        self._model = model
        self.layouts = {at.address: at.layout_on(captured[at.address].value, sizes, batch) for at in layers}
        self.frame = next((at.frame_on(sizes) for at in layers), None)
        self.activations = {a: layout.maps_of(captured[a].value, batch, a) for a, layout in self.layouts.items()}
        self._captured = captured
        self._layers = layers

    def gradients(self, score: Tensor) -> dict[str, Tensor]:
        """Compute the gradients of `score` (`[N]`, one number per image) at every layer, `[N, C, h, w]` by address.

        At a layer that was matched by a pattern, and that the score does not depend on, they are NaN.

        Raises:
            AddressError: The score does not depend on a layer that was given by its address, or on any layer.
            TargetError: The score is not one number per image.
        """
        gradients = self.reached(score)
        missing = [at.address for at in self._layers if gradients[at.address] is None]
        if any(at.by_name and at.address in missing for at in self._layers) or (missing and len(missing) == len(gradients)):
            raise AddressError(
                f"the target does not depend on {_quoted(missing)}: it has no gradient there{self._reason(missing)}; "
                "choose a layer that the prediction depends on, or a method that needs no gradient"
            )
        return {a: torch.full_like(self.activations[a], torch.nan) if g is None else g for a, g in gradients.items()}

    def _reason(self, missing: Sequence[str]) -> str:
        if any(self._captured[address].in_inference_mode for address in missing):
            return " (the model itself runs it under torch.inference_mode, where torch.no_grad() would do)"
        quantised = _first_quantised(self._model)
        return f" (the model has quantised layers, such as '{quantised}', without derivatives)" if quantised else ""

    def reached(self, score: Tensor) -> dict[str, Tensor | None]:
        """Compute the gradients, with None at layers that the score does not depend on.

        Raises:
            ModelError: An operation between layer and score, such as a quantised layer, has no derivative.
            TargetError: The score is not one number per image.
        """
        if score.ndim != 1:
            raise TargetError(f"a score is one number per image, [N]; got {list(score.shape)}")
        gradients: dict[str, Tensor | None] = dict.fromkeys(self._captured)
        if self._captured and score.requires_grad:
            tensors: list[Any] = [captured.in_graph for captured in self._captured.values()]
            with derivative_errors_are_model_errors():
                found = torch.autograd.grad(score.sum(), tensors, allow_unused=True)
            gradients = dict(zip(gradients, found, strict=True))
        return {a: None if gradient is None else self.layouts[a].to_maps(gradient) for a, gradient in gradients.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, without its graph. Inference tensors are cloned, so that they support gradients."""
    moved = tensor.to(device, non_blocking=True)  # has an effect only for pinned memory
    return moved.clone() if moved.is_inference() else moved.detach()


def locate(
    model: nn.Module,
    images: Tensor,
    layers: Iterable[str],
    *,
    forward: Callable[[Tensor], Any] | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
    layout: LayerLayout | Mapping[str, LayerLayout] | None = None,
    score: Score | None = None,
) -> list[ProbeLayer]:
    """Find the layers of addresses and patterns, with one forward pass over the first two images.

    Where shapes leave a layer's layout open, a few more passes show which of its cells or tokens are places of the image.

    Args:
        model: The borrowed model.
        images: Images `[N, C, H, W]`, on the model's device.
        layers: Addresses and patterns; "auto" for the layers that `xaieval.probe.auto_layers` chooses, with a second pass.
        forward: Runs the model on images. Default: `model(images)`.
        grid: Height and width of the token grid of `[N, T, C]` outputs, if it cannot be inferred.
        prefix_tokens: Number of tokens before that grid, if it cannot be inferred.
        layout: Layouts of the layers, if they cannot be inferred, as in `Inference`.
        score: A function from the model's output to one number per image. "auto" excludes layers that it does not depend on.

    Raises:
        AddressError: An address matches nothing, several tensors, or a tensor that is not a map.
        ModelError: The layers of the model cannot be probed.
    """
    layers = list(layers)
    if not layers:
        return []
    check_open(model)
    traced = trace(model, images[:2], forward)
    patterns = [pattern for pattern in layers if pattern != AUTO]
    for pattern in patterns:
        check_open(model, parse(pattern).path)
    wanted = traced.layers if AUTO in layers else expand(patterns, traced)
    traced = settled(
        traced,
        model,
        images[:2],
        wanted,
        forward=forward,
        grid=grid,
        prefix_tokens=prefix_tokens,
        layout=layout,
        strict=AUTO not in layers,
    )
    chosen: dict[str, None] = {}
    if AUTO in layers:
        candidates = shortlist(traced, grid, prefix_tokens)
        silent = _silent(model, images[:2], candidates, traced, score, forward)
        chosen = dict.fromkeys(layer.address for layer in choose(candidates, silent))
        layers = [address for pattern in layers for address in (chosen if pattern == AUTO else [pattern])]
    named = {traced.aliases.get(pattern, pattern) for pattern in layers if not {"*", "?"} & {*pattern}} - chosen.keys()
    located = []
    for layer in expand(layers, traced):
        axes = layout_of(layer, traced, grid, prefix_tokens)
        located.append(ProbeLayer(layer, axes, origin_of(layer, axes, traced), bool({layer.address, layer.path} & named)))
    return located


def _silent(
    model: nn.Module,
    images: Tensor,
    candidates: Shortlist,
    traced: Trace,
    score: Score | None,
    forward: Callable[[Tensor], Any] | None,
) -> set[str]:
    """Addresses of the layers whose cells have no influence on the score; none if that is unknown.

    The cells of a map can have no gradient or, in a transformer that reads only the class token, a gradient of zero. Other
    zeros occur by chance, such as a dead channel, or a pyramid level where a detector finds nothing on these images.
    """
    if score is None:
        return set()
    origin = Origin(traced.image_size, traced.frame)
    layers = [ProbeLayer(layer, candidates.layouts[layer.address], origin) for layer in candidates.layers]
    try:
        forward_pass = run(model, images, layers, forward=forward)
        gradients = forward_pass.reached(score(forward_pass.output))
    except (AddressError, ModelError):  # quantised layers have no gradients, which not all methods need
        return set()
    silent = {address for address, gradient in gradients.items() if gradient is None}
    if any(gradient is not None and gradient.any() for gradient in gradients.values()):
        silent |= {a for a, g in gradients.items() if g is not None and candidates.layouts[a].prefix and not g.any()}
    return silent if len(silent) < len(layers) else set()


def run(
    model: nn.Module,
    images: Tensor,
    layers: Sequence[ProbeLayer],
    differentiable: bool = True,
    forward: Callable[[Tensor], Any] | None = None,
) -> Pass:
    """Run one forward pass that can be differentiated down to the shallowest layer.

    Args:
        model: The borrowed model.
        images: Images `[N, C, H, W]`, on the model's device.
        layers: The layers to probe.
        differentiable: Whether gradients are needed.
        forward: Runs the model on images. Default: `model(images)`.

    Raises:
        AddressError: A layer did not run, or ran more often than on the first images, or its output cannot have a gradient.
    """
    captured: dict[str, Captured] = {}
    hooks = {path: CapturingHook(at_path, captured, differentiable) for path, at_path in _by_path(layers).items()}
    with ExitStack() as undo:
        for path, hook in hooks.items():
            if differentiable:
                undo.callback(model.get_submodule(path).register_forward_pre_hook(hook.in_place.before).remove)
            # Before any other hook: a tensor that another hook stores for later modules, as transformers does with hidden
            # states, has to be part of the graph that starts here.
            undo.callback(model.get_submodule(path).register_forward_hook(hook, prepend=True).remove)
        sizes = undo.enter_context(sizes_seen(model, [at.origin for at in layers], images))
        undo.enter_context(torch.set_grad_enabled(differentiable))
        output = (model if forward is None else forward)(images)
    missing = [item.address for item in layers if item.address not in captured]
    if missing:
        raise AddressError(f"{_quoted(missing)} ran on the first images of the data, but not on these images")
    for hook in hooks.values():
        hook.check_calls()
    return Pass(output, captured, layers, sizes, len(images), model)


def probe(
    model: nn.Module,
    images: Tensor,
    layers: Layers,
    score: Score | None = None,
    *,
    forward: Forward | None = None,
    device: torch.device | str | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
    layout: LayerLayout | Mapping[str, LayerLayout] | None = None,
) -> Probed:
    """Compute activations of any layers of a model, and the gradients of a score at these layers, all `[N, C, h, w]`.

    The model is given back unchanged: mode, hooks, gradients, device.

    Args:
        model: Any module.
        images: Images `[N, C, H, W]`, normalised as the model expects.
        layers: Addresses or patterns such as "layer4", "fpn[*]", "rpn.head.conv#2", or modules such as `model.layer4`.
        score: A function from the model's output to one number per image, `[N]`; without it there are no gradients.
        forward: A function `(model, images) -> output` that runs a model which takes more than images. Default:
            `model(images)`.
        device: The device to use. Default: the model's device.
        grid: Height and width of the token grid of `[N, T, C]` outputs, if it cannot be inferred; three numbers for volumes.
        prefix_tokens: Number of tokens before that grid, if it cannot be inferred. With both, the remaining tokens come after
            the grid.
        layout: Layouts of the layers, if they cannot be inferred, as in `xaieval.Inference`.

    Raises:
        AddressError: An address matches nothing, several tensors, or a tensor that is not a map; or the score does not depend
            on it.
        ModelError: The model has no layers that can be probed, as a function or an exported program.

    Example:
        >>> import torch, torchvision
        >>> model = torchvision.models.resnet18()
        >>> probed = probe(model, torch.rand(2, 3, 64, 64), ["layer3", "layer4"], score=lambda logits: logits[:, 0])
        >>> {address: tuple(gradient.shape) for address, gradient in probed.gradients.items()}
        {'layer3': (2, 256, 4, 4), 'layer4': (2, 512, 2, 2)}
    """
    model, images = _network_of(model), check_images(images)
    addresses, call = to_addresses(layers, model), called(model, forward)
    with borrow(model, device) as used_device:
        images = to_device(images, used_device)
        where: Any = {"grid": grid, "prefix_tokens": prefix_tokens, "layout": layout}
        located = locate(model, images, addresses, forward=call, **where, score=score)
        forward_pass = run(model, images, located, differentiable=score is not None, forward=call)
        gradients = forward_pass.gradients(score(forward_pass.output)) if score is not None else {}
        return Probed(forward_pass.output, forward_pass.activations, gradients)


def list_layers(
    model: nn.Module,
    images: Tensor,
    *,
    forward: Forward | None = None,
    grid: tuple[int, ...] | None = None,
    prefix_tokens: int | None = None,
) -> pd.DataFrame:
    """List all addresses of a model in order of execution.

    Args:
        model: Any module.
        images: Images `[N, C, H, W]`; one or two are enough.
        forward: A function `(model, images) -> output` that runs a model which takes more than images. Default:
            `model(images)`.
        grid: Height and width of the token grid of `[N, T, C]` outputs, if it cannot be inferred; three numbers for volumes.
        prefix_tokens: Number of tokens before that grid, if it cannot be inferred.

    Returns:
        Columns `address`, `module_type`, `output_shape` (for these images), `stride` (input pixels per cell; missing if the
        output is not a map) and `parameters`.

    Example:
        >>> import torch, torchvision
        >>> listing = list_layers(torchvision.models.resnet18(), torch.rand(1, 3, 64, 64))
        >>> listing.set_index("address").loc["layer4", "output_shape"]
        (1, 512, 2, 2)
    """
    model, images = _network_of(model), check_images(images)
    with borrow(model) as device:
        check_open(model)
        images, call = to_device(images, device), called(model, forward)
        with failures_are_model_errors(images):
            traced = trace(model, images, call)
        where: Any = {"grid": grid, "prefix_tokens": prefix_tokens}
        return table(settled(traced, model, images, traced.layers, forward=call, **where), **where)


def _network_of(model: Any) -> nn.Module:
    network = network_of(model)
    if not isinstance(network, nn.Module):
        raise ModelError(f"a model with layers is a torch.nn.Module, got a {type(network).__name__}")
    return network


def _first_quantised(model: nn.Module) -> str:
    return next((path for path, module in model.named_modules() if ".quantized." in type(module).__module__), "")


def _by_path(layers: Iterable[ProbeLayer]) -> Mapping[str, list[Layer]]:
    grouped: defaultdict[str, list[Layer]] = defaultdict(list)
    for item in layers:
        grouped[item.layer.path].append(item.layer)
    return grouped


def _quoted(addresses: list[str]) -> str:
    return f"layer{'s' if len(addresses) > 1 else ''} {', '.join(map(repr, addresses))}"
