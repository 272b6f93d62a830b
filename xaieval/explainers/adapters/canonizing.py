"""What a model has to be like for the LRP rules of zennit: found by one pass of any network, without a list of its classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from xaieval.errors import ExplainerError
from xaieval.explainers.adapters.function_calls import ADDITIONS, POOLINGS, PRODUCTS, RELUS
from xaieval.inference.borrowing import python_modules

__all__ = ["Gate", "Negative", "Structure", "TokenMean", "functions_for_rules", "structure_of"]

LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
# Subclasses of linear layers that compute what the base does, with other padding or in other types.
ALIKE = ("timm.layers.conv2d_same.Conv2dSame", "timm.layers.linear.Linear")
# Functions that only move numbers, keep some of them, or leave them in eval mode.
KEEPING = frozenset(
    [
        "reshape",
        "view",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "getitem",
        "get",
        "unbind",
        "chunk",
        "split",
        "cat",
        "stack",
        "expand",
        "contiguous",
        "clone",
        "unsqueeze",
        "squeeze",
        "pad",
        "dropout",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_dropout",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "adaptive_max_pool2d",
        "boolean_dispatch",
        "max_pool2d_with_indices",
        "channel_shuffle",
        "pixel_shuffle",
        "to",
        "type",
        "float",
        "double",
    ]
)


@dataclass
class Structure:
    """What the first pass of a network has shown.

    Attributes:
        merged: Names of linear layers and of the batch norms that follow them at once.
        affine: Names of the other batch norms.
        first: Name of the linear layer that runs first.
    """

    merged: list[tuple[str, str]] = field(default_factory=list)
    affine: list[str] = field(default_factory=list)
    first: str = ""


class TokenMean(nn.Module):
    """A mean over places, as a module."""

    def __init__(self, dim: Any = None, keepdim: bool = False) -> None:
        super().__init__()
        self.dim, self.keepdim = dim, keepdim

    def forward(self, value: Tensor) -> Tensor:
        """The mean over `dim`."""
        return value.mean(self.dim, self.keepdim)

    def extra_repr(self) -> str:
        """Its settings, by which one call is told from another."""
        return f"{self.dim}, {self.keepdim}"


class _ToSignal(torch.autograd.Function):
    """A product that hands what is passed back to its signal unchanged."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, other: Any) -> Tensor:
        return signal * other

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        return relevance, None


class Gate(nn.Module):
    """A product as a module: all relevance goes to the signal, none to the factor, a constant or a gate (squeeze-excitation).

    Reference:
        Arras et al., "Explaining and Interpreting LSTMs" (arXiv 1909.12114), section 3.3: the signal takes all.
    """

    def __init__(self, factor: Any = None) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, *values: Tensor) -> Tensor:
        """The product."""
        pair = [*values, *([] if self.factor is None else [self.factor])]
        signals = [value for value in pair if isinstance(value, Tensor) and value.requires_grad]
        whole = [signal for signal in signals if signal.shape == torch.broadcast_shapes(*(v.shape for v in values))]
        if len(whole) > 1:  # the gate is the one that a sigmoid has made
            whole = [signal for signal in whole if "sigmoid" not in type(signal.grad_fn).__name__.lower()]
        if len(whole) != 1:
            raise ValueError("it multiplies two activations of one size, and none of them is the gate")
        (other,) = [value for value in pair if value is not whole[0]]
        return _ToSignal.apply(whole[0], other.detach() if isinstance(other, Tensor) else other)

    def extra_repr(self) -> str:
        """Its factor, by which one call is told from another."""
        return str(self.factor)


class Negative(nn.Module):
    """A change of sign as a module, which hands on all relevance."""

    def forward(self, value: Tensor) -> Tensor:
        """The negative."""
        return _ToSignal.apply(value, -1)


def functions_for_rules(addition: type[nn.Module]) -> dict[Any, type[nn.Module]]:
    """The functions that become modules, with the class of each; `addition` is that of a sum of two activations."""
    return {
        **RELUS,
        **POOLINGS,
        **dict.fromkeys((F.silu,), nn.SiLU),
        **dict.fromkeys((F.gelu,), nn.GELU),
        **dict.fromkeys((F.relu6,), nn.ReLU6),
        **dict.fromkeys((F.hardswish,), nn.Hardswish),
        **dict.fromkeys((F.hardsigmoid,), nn.Hardsigmoid),
        **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid), nn.Sigmoid),
        **dict.fromkeys((torch.mean, Tensor.mean), TokenMean),
        **dict.fromkeys(PRODUCTS, Gate),
        **dict.fromkeys((torch.neg, Tensor.neg, Tensor.__neg__), Negative),
        **dict.fromkeys(ADDITIONS, addition),
    }


def structure_of(model: nn.Module, run: Callable[[], Any], covered: Sequence[type[nn.Module]], name: str) -> Structure:
    """Find out in one pass how a network is built, and whether each of its steps has a rule.

    Args:
        model: A network that is lent, with modules in place of functions.
        run: Makes one pass, with gradients.
        covered: Classes of modules that have a rule.
        name: The name of the method, for errors.

    Raises:
        ExplainerError: A step has no rule, or a layer runs several times.
    """
    names = {module: path for path, module in model.named_modules()}
    watch = _Watch(name)
    found = Structure()
    outputs: list[tuple[nn.Module, Tensor]] = []
    calls: Counter[nn.Module] = Counter()

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        watch.inside.append(module)
        if isinstance(module, NORMS):
            source = next((layer for layer, output in outputs if output is inputs[0]), None)
            if source is None:
                found.affine.append(names[module])
            else:
                found.merged.append((names[source], names[module]))

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        watch.inside.remove(module)
        if isinstance(module, LINEAR):
            calls[module] += 1
            outputs.append((module, output))

    with _hooked([module for module in python_modules(model) if isinstance(module, tuple(covered))], before, after), watch:
        run()
    _check_layers(calls, names, name)
    found.first = names[outputs[0][0]] if outputs else ""
    return found


def _check_layers(calls: Counter[nn.Module], names: dict[nn.Module, str], name: str) -> None:
    for layer, count in calls.items():
        kind = type(layer)
        if count > 1:
            raise ExplainerError(
                f"method '{name}' needs layers that run once, and '{names[layer]}' runs {count} times; take 'gradcam'"
            )
        if kind.forward not in {base.forward for base in LINEAR} and f"{kind.__module__}.{kind.__qualname__}" not in ALIKE:
            raise ExplainerError(
                f"method '{name}' has no rule for the {kind.__name__} '{names[layer]}', which computes its weights itself; "
                "take 'gradcam'"
            )


class _Watch(TorchFunctionMode):
    """Refuses functions without a rule that are called outside of modules with one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.inside: list[nn.Module] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        word = str(getattr(function, "__name__", function)).strip("_")
        if self.inside or word in KEEPING or word == "add":  # a sum with a constant hands on all relevance
            return result
        if any(isinstance(value, Tensor) and value.requires_grad for value in tree_leaves(result)):
            raise ExplainerError(
                f"method '{self.name}' has no rule for the function {word} of this model; it explains networks of "
                "convolutions, linear layers, batch norms, activations, poolings, sums and gates; 'attn-lrp' explains "
                "transformers, and 'gradcam' any model"
            )
        return result


@contextmanager
def _hooked(modules: Sequence[nn.Module], before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
