"""Maps from the attention weights of a vision transformer of any library, the same for every target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from xaieval.explainers.attention_weights import ReadsRows, Rows, WeightKeeper
from xaieval.explainers.base import Context, size_of_images

__all__ = ["ROLLOUT", "AttentionMap", "last_block", "rollout"]


@dataclass(frozen=True)
class AttentionMap(ReadsRows):
    """A map from the attention weights of all blocks: a function combines them into one matrix; one row of it is the map.

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

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`.

        Raises:
            ExplainerError: The model has no attention of all tokens to all tokens.
        """
        size_of_images(context, self.name)
        keeper = WeightKeeper(len(context.images), self.name)
        with torch.no_grad():
            keeper.run(lambda: (context.call or context.model)(context.images))
        blocks = [block.float().mean(dim=1) for block in keeper.blocks]
        if self.rows != "auto":
            blocks = [block for block in blocks if block.shape[1] > 1]
        return self._rows.map_of(self.function(blocks), context, self.name)


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
