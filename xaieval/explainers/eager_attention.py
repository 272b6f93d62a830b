"""Attention as single steps: a model's calls of fused attention become matrix products and a softmax that can be watched.

Functions are watched instead of modules: attention is a call of `scaled_dot_product_attention`, of
`multi_head_attention_forward`, or a softmax over the last axis of `[N, heads, T, T]`. So timm, torchvision and transformers
work in the same way, with fused attention or without, and no list of classes is needed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from xaieval.errors import ExplainerError

__all__ = ["PRODUCTS", "SOFTMAXES", "Call", "EagerAttention", "is_attention"]

Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]

PRODUCTS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
SOFTMAXES = {torch.softmax, Tensor.softmax, functional.softmax}
FUSED = functional.scaled_dot_product_attention
WHOLE = functional.multi_head_attention_forward
SIGNATURES = {
    WHOLE: inspect.signature(WHOLE),
    FUSED: inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
            for name, default in {
                **dict.fromkeys(("query", "key", "value"), inspect.Parameter.empty),
                **{"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False},
            }.items()
        ]
    ),
}
# Arguments of multi_head_attention_forward that no vision transformer uses, and that the single steps below leave out.
UNUSED = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "static_k", "static_v", "use_separate_proj_weight")


class EagerAttention(TorchFunctionMode):
    """Intercepts every torch function: fused attention becomes its steps, and each step and other function goes to `call`.

    Args:
        call: What a call does: takes a function, its arguments and its keywords, and returns what the model gets.
    """

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is FUSED:
            with self:  # its steps are intercepted
                return _attention(**_bound(FUSED, args, kwargs))[0]
        if function is WHOLE:
            with self:
                return _multi_head_attention(_bound(WHOLE, args, kwargs))
        return self.call(function, args, kwargs)


def is_attention(function: Any, result: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call gives attention weights `[N, heads, T, T]` or, of a pooling query, `[N, heads, 1, T]`."""
    if function not in SOFTMAXES or result.ndim != 4:
        return False
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return axis in (-1, 3) and result.shape[-2] in (1, result.shape[-1])


def _bound(function: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with defaults."""
    bound = SIGNATURES[function].bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """What `scaled_dot_product_attention` computes, step by step, and the weights; without dropout, as in eval mode."""
    if enable_gqa:
        key, value = (one.repeat_interleave(query.shape[-3] // one.shape[-3], dim=-3) for one in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1), -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(dim=-1)
    return weights @ value, weights


def _multi_head_attention(given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """What `multi_head_attention_forward` computes for tokens `[T, N, C]`, step by step.

    Raises:
        ExplainerError: The call has arguments of sequence models.
    """
    found = [name for name in UNUSED if given.get(name) is not None and given[name] is not False]
    if found or given["query"].ndim != 3:
        reason = found[0] if found else f"tokens {list(given['query'].shape)}"
        raise ExplainerError(f"this model's attention has {reason}, which is not watched; 'gradcam' explains any model")
    heads, weight, bias = given["num_heads"], given["in_proj_weight"], given["in_proj_bias"]
    if given["query"] is given["key"] and given["key"] is given["value"]:
        projected = list(functional.linear(given["query"], weight, bias).chunk(3, dim=-1))
    else:
        biases = [None] * 3 if bias is None else bias.chunk(3)
        tokens = [given[name] for name in ("query", "key", "value")]
        projected = [functional.linear(*step) for step in zip(tokens, weight.chunk(3), biases, strict=True)]
    query, key, value = (one.unflatten(2, (heads, -1)).permute(1, 2, 0, 3) for one in projected)  # [N, heads, T, C / heads]
    mask = given["attn_mask"]
    if mask is not None:
        mask = ~mask if mask.dtype == torch.bool else mask  # True means left out here, and kept in the function above
        mask = mask.unflatten(0, (-1, heads)) if mask.ndim == 3 else mask
    attended, weights = _attention(query, key, value, mask)
    output = functional.linear(attended.permute(2, 0, 1, 3).flatten(2), given["out_proj_weight"], given["out_proj_bias"])
    if not given["need_weights"]:
        return output, None
    return output, weights.mean(dim=1) if given["average_attn_weights"] else weights
