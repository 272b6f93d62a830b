"""Maps from the attention weights of a vision transformer of any library.

Functions are watched instead of modules: attention is a call of `scaled_dot_product_attention`, of
`multi_head_attention_forward`, or a softmax over the last axis of `[N, heads, T, T]`. So timm, torchvision and transformers
work in the same way, with fused attention or without, and no list of classes is needed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, size_of_images
from xaieval.probe.layouts import Layout, token_layout

__all__ = ["ROLLOUT", "AttentionMap", "last_block", "rollout"]

Rows = Literal["auto", "class", "mean"]

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


@dataclass(frozen=True)
class AttentionMap:
    """A map from the attention weights of all blocks: a function combines them into one matrix, of which one row is the map.

    The row is that of the class token if there is one, or else the mean over the tokens of the grid. If the model pools its
    tokens by a query of its own, as SigLIP does, that query is the last block and has one row. The map is the same for every
    target.

    Args:
        name: Name in tables and rows.
        function: Combines the weights of the blocks, `[N, T, T]` each, averaged over heads, into `[N, T, T]`.
        paper: Reference of the method.
        rows: "class", "mean", or "auto": the class token if there are tokens before the grid, unless the model says otherwise
            (`global_pool` and `has_class_token` of timm's models).
        grid: Height and width of the token grid. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.

    Raises:
        ExplainerError: There is no such choice of rows.

    Example:
        >>> import timm, xaieval
        >>> model = timm.create_model("test_vit", img_size=64)
        >>> xaieval.explain(model, torch.rand(2, 3, 64, 64), method="attention-rollout")["input"].shape
        torch.Size([2, 64, 64])
    """

    name: str
    function: Callable[[Sequence[Tensor]], Tensor]
    paper: str
    rows: Rows = "auto"
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = True
    passes: str = "1"

    def __post_init__(self) -> None:
        if self.rows not in get_args(Rows):
            raise ExplainerError(f"rows is one of {', '.join(get_args(Rows))}, got {self.rows!r}")

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`.

        Raises:
            ExplainerError: The model has no attention of all tokens to all tokens.
        """
        size = size_of_images(context, self.name)
        blocks = self._watch(context)
        if self.rows != "auto":
            blocks = [block for block in blocks if block.shape[1] > 1]
        layout = self._layout(blocks[0].shape[-1], size)
        weights = self.function(blocks)
        row = weights[:, 0] if weights.shape[1] == 1 else self._row(weights, layout.prefix, context.model)
        return row[:, layout.prefix :].unflatten(1, layout.size)

    def _watch(self, context: Context) -> list[Tensor]:
        watch = _Watch(len(context.images), self.name)
        with torch.no_grad(), watch:
            (context.call or context.model)(context.images)
        if not watch.blocks:
            raise ExplainerError(
                f"method '{self.name}' saw no attention over tokens in this model; it explains vision transformers, and method "
                "'gradcam' any model"
            )
        return watch.blocks

    def _layout(self, tokens: int, size: tuple[int, int]) -> Layout:
        """Where the grid is among the tokens of an image of this size."""
        layout = token_layout(tokens, size, self.grid, self.prefix_tokens)
        if layout is None:
            raise ExplainerError(
                f"method '{self.name}' saw attention over {tokens} tokens, which fit no grid of a {size[0]} x {size[1]} image; "
                "give grid=(height, width) and prefix_tokens= to the explainer"
            )
        return layout

    def _row(self, weights: Tensor, prefix: int, model: nn.Module) -> Tensor:
        """The row `[N, T]` of `[N, T, T]` that the prediction is read from."""
        from_class = prefix > 0 and _reads_class_token(model) if self.rows == "auto" else self.rows == "class"
        if from_class and prefix == 0:
            raise ExplainerError(f"method '{self.name}' with rows='class' needs a token before the grid, and there is none")
        return weights[:, 0] if from_class else weights[:, prefix:].mean(dim=1)


def rollout(blocks: Sequence[Tensor]) -> Tensor:
    """Attention rollout: the product over blocks of `(W + I) / 2`, the last block leftmost.

    The identity I stands for the residual connection. The rows of W sum to 1, so those of the product do too. A pooling
    query, `[N, 1, T]`, has no residual connection.

    Reference:
        Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020 (arXiv 2005.00928), section 3.

    Example:
        >>> rollout([torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])] * 2)
        tensor([[[0.3750, 0.6250],
                 [0.3125, 0.6875]]])
    """
    identity = torch.eye(blocks[0].shape[-1], device=blocks[0].device)
    steps = [(block + identity) / 2 if block.shape[1] > 1 else block for block in blocks]
    return reduce(lambda product, step: step @ product, steps[1:], steps[0])


def last_block(blocks: Sequence[Tensor]) -> Tensor:
    """Raw attention: the weights of the last block."""
    return blocks[-1]


ROLLOUT = (
    AttentionMap("attention-rollout", rollout, "Abnar and Zuidema 2020, arXiv 2005.00928"),
    AttentionMap("raw-attention", last_block, "Abnar and Zuidema 2020, arXiv 2005.00928, the baseline"),
)


def _reads_class_token(model: Any) -> bool:
    """Whether the model reads the class token, by its attributes; a model without them does."""
    pools = getattr(model, "global_pool", "token")
    return getattr(model, "has_class_token", True) is not False and pools in ("token", "", None)


class _Watch(TorchFunctionMode):
    """Intercepts every torch function, and keeps the attention weights, averaged over heads.

    Attributes:
        blocks: Weights of the blocks in order, `[N, T, T]` each; the last may be `[N, 1, T]`, of a query that pools the tokens.
    """

    def __init__(self, images: int, name: str) -> None:
        super().__init__()
        self.images = images
        self.name = name
        self.blocks: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is WHOLE:  # the functions that it calls are not intercepted
            return self._whole(args, kwargs)
        result = function(*args, **kwargs)
        if function is FUSED:
            self._keep(_weights(**_bound(FUSED, args, kwargs)).mean(dim=1))
        elif function in SOFTMAXES and _is_attention(result, args, kwargs):
            self._keep(result.mean(dim=1))
        return result

    def _whole(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """Have `multi_head_attention_forward` return its weights too, and return what the caller expects."""
        arguments = _bound(WHOLE, args, kwargs)
        both: Any = WHOLE(**arguments | {"need_weights": True, "average_attn_weights": False})
        output, weights = both
        self._keep(weights.mean(dim=-3))
        if not arguments["need_weights"]:
            return output, None
        return output, weights.mean(dim=-3) if arguments["average_attn_weights"] else weights

    def _keep(self, weights: Tensor) -> None:
        """Keep the weights `[N, queries, T]` of a block.

        Raises:
            ExplainerError: Their tokens are not those of the blocks before, so they cannot be multiplied.
        """
        queries, tokens = weights.shape[-2:]
        first = self.blocks[0].shape[-1] if self.blocks else tokens
        pooled = bool(self.blocks) and self.blocks[-1].shape[1] == 1
        fits = queries == tokens or (queries == 1 and bool(self.blocks))
        if weights.ndim != 3 or len(weights) != self.images or tokens != first or pooled or not fits:
            raise ExplainerError(
                f"method '{self.name}' needs attention of all tokens to all tokens, the same ones in every block; this model "
                f"has weights {list(weights.shape)} for {self.images} images, as with windows or stages; method 'gradcam' "
                "explains any model"
            )
        self.blocks.append(weights.float())


def _bound(function: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with defaults."""
    bound = SIGNATURES[function].bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _is_attention(result: Tensor, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a softmax gives attention weights `[N, heads, T, T]` or, of a pooling query, `[N, heads, 1, T]`."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return result.ndim == 4 and axis in (-1, 3) and result.shape[-2] in (1, result.shape[-1])


def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """The weights `[N, heads, queries, keys]` that `scaled_dot_product_attention` uses and does not return."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1)
