"""Capture tensors of a module's calls, so that a gradient can be taken of them, and change outputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from xaieval.errors import ALL_METHODS, AddressError, ModelError, advice
from xaieval.probe.addresses import Layer, is_record, key_of, pick

__all__ = ["Captured", "CapturingHook", "InPlaceWatch", "derivative_errors_are_model_errors", "put"]


@dataclass(frozen=True)
class Captured:
    """A tensor at a probed layer.

    Attributes:
        value: Its values when the module returned it, detached.
        in_graph: What the gradient is taken of.
        in_inference_mode: Whether the model itself runs the layer in inference mode, where no graph is kept.
    """

    value: Tensor
    in_graph: Tensor | GradientEdge
    in_inference_mode: bool = False


class InPlaceWatch:
    """Tells whether a module has changed one of its inputs in place and returned it."""

    def __init__(self) -> None:
        self.versions: list[tuple[Tensor, int]] = []

    def before(self, module: nn.Module, inputs: Any) -> None:
        """Note the versions of the module's inputs; a hook before the module's forward."""
        self.versions = [(t, t._version) for t in inputs if isinstance(t, Tensor) and not t.is_inference()]

    def changed(self, output: Tensor) -> bool:
        """Whether this output is an input that has changed since."""
        return any(output is given and given._version > version for given, version in self.versions)


class CapturingHook:
    """Captures tensors of a module's calls, and passes clones of them on to the rest of the model.

    If nothing before a captured tensor needs a gradient, it becomes a leaf, so that the backward pass ends at the shallowest
    layer. Later in-place operations change only the clone. Parts that the model runs under `no_grad`, such as a frozen
    backbone, keep a graph from the layer on.
    """

    def __init__(self, layers: list[Layer], captured: dict[str, Captured], differentiable: bool) -> None:
        self.layers = layers
        self.captured = captured
        self.differentiable = differentiable
        self.calls = 0
        self.in_place = InPlaceWatch()

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """The module's output with clones of the captured tensors."""
        call, self.calls = self.calls, self.calls + 1
        for layer in self.layers:
            if layer.call == call:
                output = self._capture(layer, inputs, output)
        self.in_place.versions = []  # frees the inputs
        return output

    def check_calls(self) -> None:
        """Check that a module that was found to run once has not run more often in this pass.

        Raises:
            AddressError: It has.
        """
        for layer in self.layers:
            if "#" not in layer.address and self.calls > 1:
                raise AddressError(
                    f"layer '{layer.address}' ran {self.calls} times on these images, but once on the first ones; if the model "
                    "takes a batch in parts, give a smaller batch_size="
                )

    def _capture(self, layer: Layer, inputs: Any, output: Any) -> Any:
        tensor = pick(output, layer.keys)
        if not self.differentiable:
            if tensor.is_quantized:
                values = tensor.dequantize()
                self.captured[layer.address] = Captured(values, values)
                return output
            tensor = tensor.clone() if _shares_memory(tensor, inputs) else tensor
            self.captured[layer.address] = Captured(tensor.detach(), tensor)
            return put(output, layer.keys, tensor.clone())
        if not tensor.is_floating_point():
            raise AddressError(f"layer '{layer.address}' returns {tensor.dtype}, which has no gradient")
        inference = torch.is_inference_mode_enabled()
        if not inference:
            torch.set_grad_enabled(True)  # until the end of the model's own no_grad, if there is one
        with torch.inference_mode(False):
            if self.in_place.changed(tensor):
                self.captured[layer.address] = _captured_in_place(tensor)
                return output
            if tensor.is_inference() or _shares_memory(tensor, inputs) or (layer.keys and tensor.requires_grad):
                # A later module may change the input in place. One of several outputs may also be used inside the module:
                # the gradient must be that of this output alone, whichever other layers are probed.
                tensor = tensor.clone()
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
            self.captured[layer.address] = Captured(tensor.detach(), tensor, inference)
            return put(output, layer.keys, tensor.clone())


def _captured_in_place(tensor: Tensor) -> Captured:
    """Capture a tensor that a module changed in place; the model may use it further, whatever the module returns.

    The tensor itself has to stay. If it is in no graph yet, zeros are added to it, whose gradient is that of the tensor.
    """
    value = tensor.detach().clone()
    if tensor.requires_grad:
        return Captured(value, get_gradient_edge(tensor))
    zeros = torch.zeros_like(value).requires_grad_()
    tensor.add_(zeros)
    return Captured(value, zeros)


@contextmanager
def derivative_errors_are_model_errors() -> Iterator[None]:
    """Raise torch's error about an operation without derivative as a `ModelError`."""
    try:
        yield
    except RuntimeError as error:
        if "derivative" not in str(error) and "not implemented for autograd" not in str(error).lower():
            raise
        reason = str(error).split(".")[0]
        raise ModelError(
            f"the score has no gradient at these layers: {reason}; give the model before quantisation, or use methods that "
            f"need no gradient ({advice(*ALL_METHODS)})"
        ) from error


def _shares_memory(tensor: Tensor, inputs: Sequence[Any]) -> bool:
    return any(
        isinstance(given, Tensor) and given.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
        for given in inputs
    )


def put(output: Any, keys: Sequence[str], tensor: Tensor) -> Any:
    """Return a shallow copy of a module's output with another tensor at `keys`."""
    if not keys:
        return tensor
    if isinstance(output, Mapping):
        key = key_of(output, keys[0])
        changed: Any = copy.copy(output)
        changed[key] = put(output[key], keys[1:], tensor)
        return changed
    if is_record(output):
        changed = copy.copy(output)
        object.__setattr__(changed, keys[0], put(getattr(output, keys[0]), keys[1:], tensor))  # it may be frozen
        return changed
    index = int(keys[0])
    items = list(output)
    items[index] = put(items[index], keys[1:], tensor)
    if hasattr(output, "_fields"):
        return type(output)(*items)
    return type(output)(items)
