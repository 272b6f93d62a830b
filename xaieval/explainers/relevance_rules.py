"""Rules of layer-wise relevance propagation for the functions that a transformer calls.

A set of rules defines what each function passes back instead of its gradient; its output does not change. Functions
that only move numbers (reshape, cat, ...) need no rule. A function that is neither among them nor among the rules is an error,
because its plain gradient would silently give a wrong map. There are two sets. With `ATTN_LRP`, the relevance is the
passed-back value times the activation, so linear functions keep their gradient. With `alpha_beta`, the relevance itself is
passed back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from xaieval.errors import ExplainerError

__all__ = ["ATTN_LRP", "Rule", "alpha_beta", "ruled"]

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

# Names of functions without underscores, as torch.add, Tensor.add_ and + have the same rule.
MOVES = frozenset(
    [
        "reshape",
        "view",
        "flatten",
        "unflatten",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
        "getitem",
        "get",
        "unbind",
        "chunk",
        "split",
        "tensor_split",
        "cat",
        "stack",
        "expand",
        "expand_as",
        "contiguous",
        "clone",
        "unsqueeze",
        "squeeze",
        "repeat",
        "roll",
        "flip",
        "index_select",
        "narrow",
        "select",
        "to",
        "type",
        "float",
        "double",
        "half",
        "pad",
        "type_as",
        "dropout",
        "repeat_interleave",
        "masked_fill",
        "view_as",
        "reshape_as",
    ]
)
SMALL = 1e-9  # keeps quotients finite, as in the code of Chefer et al.


def ruled(rules: Mapping[str, Rule], name: str) -> Rule:
    """A call of functions by rules, for `EagerAttention`.

    Args:
        rules: For the names of functions, what is called in their place.
        name: The name of the method, for errors.

    Returns:
        Calls a function with its arguments and keywords.

    Raises:
        ExplainerError: When called: there is no rule for a function.
    """

    def call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        word = str(getattr(function, "__name__", function)).strip("_")
        if word in rules and _needs_rule([*args, *kwargs.values()]):
            return rules[word](function, args, kwargs)
        result = function(*args, **kwargs)
        if word not in MOVES and _needs_rule(result):
            raise ExplainerError(
                f"method '{name}' has no rule for the function {word} of this model; it explains vision transformers of linear "
                "layers, layer norms, attention and activations; 'generic-attention' explains any with attention, 'gradcam' "
                "any model"
            )
        return result

    return call


def _needs_rule(values: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in tree_leaves(values))


def _differentiable(args: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in tree_leaves(args) if isinstance(value, Tensor) and value.requires_grad]


class _Scaled(torch.autograd.Function):
    """A value, whose gradient is multiplied by a factor on the way back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Any) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor, None


# ---- AttnLRP, whose rules change gradients


def _plain(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _shared(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A product: two factors share the relevance evenly; a constant factor has no part in it (eq. 7 and 15 of the paper)."""
    result: Tensor = function(*args, **kwargs)
    return _Scaled.apply(result, 0.5) if len(_differentiable(args)) > 1 else result


def _identity(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """An activation hands on all relevance (eq. 9), which the gradient `output / input` does."""
    value = args[0] if args else kwargs["input"]
    with torch.no_grad():
        output = function(*args, **{**kwargs, **({"inplace": False} if kwargs.get("inplace") else {})})
        ratio = output / torch.where(value == 0, 1, value)
    return _Ratio.apply(value, output, ratio)


class _Ratio(torch.autograd.Function):
    """An output in place of a value, with a given gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, output: Tensor, ratio: Any) -> Tensor:
        ctx.ratio = ratio
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.ratio, None, None


def _layer_norm(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A layer norm is linear once its standard deviation is a constant (eq. 10)."""
    named = dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args, strict=False)) | kwargs
    value, axes = named["input"], tuple(range(-len(named["normalized_shape"]), 0))
    centred = value - value.mean(dim=axes, keepdim=True)
    variance = centred.detach().square().mean(dim=axes, keepdim=True)
    normed = centred / (variance + named.get("eps", 1e-5)).sqrt()
    normed = normed if named.get("weight") is None else normed * named["weight"]
    return normed if named.get("bias") is None else normed + named["bias"]


def _normalize(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A vector over its length, which is a constant, as of a layer norm."""
    value = args[0] if args else kwargs["input"]
    with torch.no_grad():
        output = function(*args, **kwargs)
        ratio = output / torch.where(value == 0, 1, value)
    return _Ratio.apply(value, output, ratio)


def _quotient(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A quotient by a constant."""
    if len(_differentiable(args)) > 1:
        raise ExplainerError("this model divides an activation by an activation, for which relevance has no rule")
    return function(*args, **kwargs)


ACTIVATIONS = "gelu relu relu6 silu sigmoid tanh hardswish hardsigmoid hardtanh leaky_relu elu softplus mish"

ATTN_LRP: dict[str, Rule] = {
    **dict.fromkeys(
        [
            "linear",
            "conv2d",
            "add",
            "radd",
            "iadd",
            "neg",
            "sub",
            "rsub",
            "isub",
            "sum",
            "mean",
            "addmm",
            "softmax",
            "batch_norm",
            "avg_pool2d",
        ],
        _plain,
    ),
    **dict.fromkeys(["adaptive_avg_pool2d"], _plain),
    **dict.fromkeys(["matmul", "rmatmul", "bmm", "baddbmm", "einsum", "mul", "rmul", "imul"], _shared),
    **dict.fromkeys(["div", "truediv", "true_divide"], _quotient),
    **dict.fromkeys(ACTIVATIONS.split(), _identity),
    "layer_norm": _layer_norm,
    "normalize": _normalize,
}


# ---- the rules of Chefer et al., which pass back relevance


def _same(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """An activation, a layer norm, a softmax, or a constant factor or term: the relevance stays as it is."""
    value = next(iter(_differentiable((args, kwargs))))
    with torch.no_grad():
        output = function(*args, **{**kwargs, **({"inplace": False} if kwargs.get("inplace") else {})})
    if output.shape != value.shape:
        raise ExplainerError(f"this model's {function.__name__} changes the shape of an activation, for which there is no rule")
    return _Ratio.apply(value, output, 1.0)


class _Positive(torch.autograd.Function):
    """A linear layer: relevance goes to positive contributions (eq. 4 with alpha = 1, and 5)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor, bias: Any) -> Tensor:
        ctx.save_for_backward(value, weight)
        return functional.linear(value, weight, bias)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        value, weight = ctx.saved_tensors
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        high, low = value.clamp(min=0), value.clamp(max=0)
        share = _safe_quotient(relevance, high @ up.mT + low @ down.mT)
        return high * (share @ up) + low * (share @ down), None, None


class _Product(torch.autograd.Function):
    """A product of two activations, matrices or numbers: each has half of the relevance (eq. 9 and 10, of equal sums)."""

    @staticmethod
    def forward(ctx: Any, function: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.function, ctx.share = function, 1.0 / (ctx.needs_input_grad[1] + ctx.needs_input_grad[2])
        ctx.save_for_backward(left, right)
        return function(left, right)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        pair = [one.detach().requires_grad_() for one in ctx.saved_tensors]
        with torch.enable_grad():
            output = ctx.function(*pair)
        found = torch.autograd.grad(output, pair, _safe_quotient(relevance, output.detach()))
        return None, *(one.detach() * gradient * ctx.share for one, gradient in zip(pair, found, strict=True))


class _Sum(torch.autograd.Function):
    """A sum of two activations: each has the share of its absolute sum over the image (eq. 9 and 10)."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, axis: int) -> Tensor:
        ctx.axis = axis
        ctx.save_for_backward(left, right)
        return left + right

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        left, right = ctx.saved_tensors
        share = _safe_quotient(relevance, left + right)
        parts = [left * share, right * share]
        sums = [_image_sum(part, ctx.axis) for part in parts]
        whole, all_parts = _image_sum(relevance, ctx.axis), sum(one.abs() for one in sums)
        found = (
            part * _safe_quotient(_safe_quotient(one.abs(), all_parts) * whole, one)
            for part, one in zip(parts, sums, strict=True)
        )
        return *found, None


def _image_sum(relevance: Tensor, axis: int) -> Tensor:
    return relevance.sum(dim=tuple(one for one in range(relevance.ndim) if one != axis), keepdim=True)


def _safe_quotient(one: Tensor, other: Any) -> Tensor:
    moved = other + SMALL
    return torch.where(other == 0, 0, one / torch.where(moved == 0, SMALL, moved))


def _linear(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    named = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    return _Positive.apply(named["input"], named["weight"], named.get("bias"))


def _product(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    left, right = args
    if left.requires_grad and not right.requires_grad and right.ndim == 2:
        return _Positive.apply(left, right.mT, None)
    return _Product.apply(function, left, right)


def _scaled(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _Product.apply(function, *args) if len(_differentiable(args)) > 1 else _same(function, args, kwargs)


def _sum(axis: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if kwargs or len(_differentiable(args)) < 2 or args[0].shape != args[1].shape:
        return _same(function, args, kwargs)
    return _Sum.apply(*args, axis if args[0].ndim == 3 else 0)


class _Mean(torch.autograd.Function):
    """A mean: relevance is shared out by the values."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, average: Any) -> Tensor:
        ctx.average = average
        ctx.save_for_backward(value)
        return average(value)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> Any:
        (value,) = ctx.saved_tensors
        value = value.detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.average(value)
        (gradient,) = torch.autograd.grad(output, value, _safe_quotient(relevance, output.detach()))
        return value.detach() * gradient, None


def _mean(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _Mean.apply(args[0], lambda value: function(value, *args[1:], **kwargs))


def alpha_beta(axis: int = 0) -> dict[str, Rule]:
    """The rules, for blocks whose tokens have the images in this axis."""
    return _ALPHA_BETA | dict.fromkeys(["add", "iadd", "radd"], partial(_sum, axis))


_ALPHA_BETA: dict[str, Rule] = {
    "linear": _linear,
    "conv2d": _plain,  # before the first attention, where no relevance is asked for
    **dict.fromkeys(["matmul", "bmm"], _product),
    **dict.fromkeys(["mul", "rmul", "imul"], _scaled),
    **dict.fromkeys(f"{ACTIVATIONS} softmax layer_norm normalize div truediv sub neg batch_norm".split(), _same),
    "mean": _mean,
}
