"""The attention weights of all blocks of a vision transformer, their gradients, and the row of them that makes a map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, size_of_images
from xaieval.explainers.eager_attention import Call, EagerAttention, is_attention
from xaieval.probe.layouts import Layout, token_layout

__all__ = [
    "AttentionRows",
    "ReadsRows",
    "Rows",
    "WeightKeeper",
    "gradients_of",
    "grid_of",
    "image_axis",
    "no_attention",
    "reads_class_token",
    "wide",
]

SUMS = ("add", "iadd", "radd")

Rows = Literal["auto", "class", "mean"]


class WeightKeeper:
    """Keeps the attention weights of each block while a model runs under `EagerAttention`.

    Args:
        images: The number of images of the pass.
        name: The name of the method, for errors.
        of_last: The number of images whose tokens a pooling query pools. Default: `images`.
        call: Calls each function, as by rules. Default: as it is.

    Attributes:
        blocks: Weights of the blocks in order, `[N, heads, T, T]` each; the last may be `[N, heads, 1, T]`, of a query that
            pools the tokens.
    """

    def __init__(self, images: int, name: str, of_last: int | None = None, call: Call | None = None) -> None:
        self.images = images
        self.inner = call
        self.of_last = images if of_last is None else of_last
        self.name = name
        self.blocks: list[Tensor] = []

    def run(self, call: Callable[[], Any]) -> Any:
        """Run a model, and keep its weights.

        Raises:
            ExplainerError: It has no attention over tokens, or not of all tokens to all tokens.
        """
        with EagerAttention(self.call):
            result = call()
        if not self.blocks:
            raise no_attention(self.name)
        return result

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function, and keep its result if that is a block's attention weights."""
        result = function(*args, **kwargs) if self.inner is None else self.inner(function, args, kwargs)
        if is_attention(function, result, args, kwargs):
            self._keep(result)
        return result

    def _keep(self, weights: Tensor) -> None:
        """Keep the weights of a block.

        Raises:
            ExplainerError: Their tokens are not those of the blocks before, so they cannot be multiplied.
        """
        queries, tokens = weights.shape[-2:]
        first = self.blocks[0].shape[-1] if self.blocks else tokens
        pooled = bool(self.blocks) and self.blocks[-1].shape[-2] == 1
        fits = queries == tokens or (queries == 1 and bool(self.blocks))
        images = self.of_last if queries == 1 else self.images
        if len(weights) != images or tokens != first or pooled or not fits:
            raise ExplainerError(
                f"method '{self.name}' needs attention of all tokens to all tokens, the same ones in every block; this model "
                f"has weights {list(weights.shape)} for {self.images} images, as with windows or stages; method 'gradcam' "
                "explains any model"
            )
        self.blocks.append(weights)


def image_axis(context: Context) -> int:
    """The axis of the images in the tokens of a model's blocks: 0 for `[N, T, C]`, or 1 for `[T, N, C]`.

    The sums of the residual connections tell, and one image tells the axes apart, whatever the number of tokens is.
    """
    sums, tokens = set[tuple[int, ...]](), set[int]()

    def call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        if is_attention(function, result, args, kwargs):
            tokens.add(result.shape[-1])
        elif getattr(function, "__name__", "").strip("_") in SUMS and isinstance(result, Tensor) and result.ndim == 3:
            sums.add(tuple(result.shape[:2]))
        return result

    with torch.no_grad(), EagerAttention(call):
        context.read(context.images[:1])
    return 1 if any((count, 1) in sums for count in tokens if count > 1) else 0


def no_attention(name: str) -> ExplainerError:
    """The error of a model without attention."""
    return ExplainerError(
        f"method '{name}' saw no attention over tokens in this model; it explains vision transformers, and method 'gradcam' "
        "any model"
    )


@dataclass(frozen=True)
class AttentionRows:
    """How a matrix over tokens becomes a map: which row the prediction is read from, and where the grid is.

    The row is that of the class token if there is one, or else the mean over the tokens of the grid. If the model pools its
    tokens by a query of its own, as SigLIP does, that query is the only row.

    Args:
        rows: "class", "mean", or "auto": the class token if there are tokens before the grid, unless the model says otherwise
            (`global_pool` and `has_class_token` of timm's models).
        grid: Height and width of the token grid. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.

    Raises:
        ExplainerError: There is no such choice of rows.
    """

    rows: Rows = "auto"
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.rows not in get_args(Rows):
            raise ExplainerError(f"rows is one of {', '.join(get_args(Rows))}, got {self.rows!r}")

    def map_of(self, weights: Tensor, context: Context, name: str) -> Tensor:
        """The map `[N, h, w]` of a matrix `[N, T, T]` or, of a pooling query, `[N, 1, T]`."""
        layout = self.layout(weights.shape[-1], size_of_images(context, name), name)
        row = weights[:, 0] if weights.shape[1] == 1 else self._row(weights, layout.prefix, context.model, name)
        return grid_of(row, layout)

    def layout(self, tokens: int, size: tuple[int, int], name: str) -> Layout:
        """Where the grid is among the tokens of an image of this size.

        Raises:
            ExplainerError: No grid fits.
        """
        layout = token_layout(tokens, size, self.grid, self.prefix_tokens)
        if layout is None:
            raise ExplainerError(
                f"method '{name}' saw attention over {tokens} tokens, which fit no grid of a {size[0]} x {size[1]} image; "
                "give grid=(height, width) and prefix_tokens= to the explainer"
            )
        return layout

    def _row(self, weights: Tensor, prefix: int, model: nn.Module, name: str) -> Tensor:
        """The row `[N, T]` of `[N, T, T]` that the prediction is read from."""
        from_class = prefix > 0 and reads_class_token(model) if self.rows == "auto" else self.rows == "class"
        if from_class and prefix == 0:
            raise ExplainerError(f"method '{name}' with rows='class' needs a token before the grid, and there is none")
        return weights[:, 0] if from_class else weights[:, prefix:].mean(dim=1)


class ReadsRows:
    """What explainers have in common whose fields say which row of a matrix over tokens they read.

    Attributes:
        rows: As of `AttentionRows`, as are the others.
        grid: See there.
        prefix_tokens: See there.
    """

    rows: Rows
    grid: tuple[int, int] | None
    prefix_tokens: int | None

    def __post_init__(self) -> None:
        self._rows  # noqa: B018  # refuses wrong settings at once

    @property
    def _rows(self) -> AttentionRows:
        return AttentionRows(self.rows, self.grid, self.prefix_tokens)


def grid_of(row: Tensor, layout: Layout) -> Tensor:
    """The tokens of the grid, `[N, h, w]`, out of all tokens `[N, T]`."""
    cells = layout.size[0] * layout.size[1]
    return row[:, layout.prefix : layout.prefix + cells].unflatten(1, layout.size)


def reads_class_token(model: Any) -> bool:
    """Whether the model reads the class token, by the attributes of timm's and OpenCLIP's vision transformers.

    The transformer may be inside the model; a model without these attributes reads the class token.
    """
    for module in model.modules():
        pools = getattr(module, "global_pool", None)
        if isinstance(pools, str):
            return getattr(module, "has_class_token", True) is not False and pools in ("token", "")
        if getattr(module, "pool_type", None) in ("tok", "avg", "last") and hasattr(module, "class_embedding"):
            return module.pool_type == "tok"
    return getattr(model, "has_class_token", True) is not False


def gradients_of(score: Tensor, blocks: list[Tensor], name: str, keep: bool = False) -> list[Tensor]:
    """The gradients of the images' scores `[N]` with respect to the weights of each block; `keep` keeps the graph.

    Raises:
        ExplainerError: The score does not depend on them.
    """
    if not score.requires_grad:
        raise ExplainerError(f"method '{name}' needs a score that depends on the attention, and this one does not")
    found = torch.autograd.grad(score.sum(), blocks, allow_unused=True, retain_graph=keep)
    return [torch.zeros_like(block) if gradient is None else gradient for gradient, block in zip(found, blocks, strict=True)]


def wide(step: Tensor) -> Tensor:
    """A matrix over tokens in float64 where the device supports it: beside the identity, small values would be lost."""
    return step if step.device.type == "mps" else step.double()
