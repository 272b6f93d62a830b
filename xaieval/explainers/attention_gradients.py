"""Maps from attention weights and their gradients: which part of the attention supports the score of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.attention_weights import (
    AttentionRows,
    ReadsRows,
    Rows,
    WeightKeeper,
    gradients_of,
    grid_of,
    image_axis,
    wide,
)
from xaieval.explainers.base import Context, size_of_images
from xaieval.explainers.transformer_blocks import BlockFinder

__all__ = ["ATTENTION_GRADIENTS", "AttentionGradient", "LeGrad", "generic_attention", "gradient_rollout"]

Weights = Sequence[Float[Tensor, "n heads q t"]]
Matrix = Float[Tensor, "n q t"]


@dataclass(frozen=True)
class AttentionGradient(ReadsRows):
    """A map from the attention weights of all blocks and the gradients of the target's score with respect to them.

    Which row of the matrix is the map is chosen as for `attention-rollout`.

    Args:
        name: Name in tables and rows.
        function: Makes a matrix `[N, T, T]` of weights and gradients, for each block `[N, heads, T, T]`.
        paper: Reference of the method.
        rows: "class", "mean", or "auto", as of `AttentionRows`.
        grid: Height and width of the token grid. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.

    Raises:
        ExplainerError: There is no such choice of rows; when called: the model has no attention of all tokens to all tokens.

    Example:
        >>> import timm, xaieval
        >>> model = timm.create_model("test_vit", img_size=64)
        >>> xaieval.explain(model, torch.rand(2, 3, 64, 64), method="generic-attention")["input"].shape
        torch.Size([2, 64, 64])
    """

    name: str
    function: Callable[[Weights, Weights], Tensor]
    paper: str
    rows: Rows = "auto"
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = True
    takes_gradients: bool = True
    passes: str = "1"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        size_of_images(context, self.name)
        keeper = WeightKeeper(len(context.images), self.name)
        with torch.enable_grad():
            images = context.images.detach().clone().requires_grad_()
            read = keeper.run(lambda: context.read(images))
            gradients = gradients_of(context.score_of(read, context.everywhere), keeper.blocks, self.name)
        weights = [block.detach() for block in keeper.blocks]
        return self._rows.map_of(self.function(weights, gradients), context, self.name)


def generic_attention(weights: Weights, gradients: Weights) -> Matrix:
    """Generic attention explainability: `R = I`, and for each block `R = R + mean_h(relu(G * A)) R`.

    A pooling query, `[N, heads, 1, T]`, has no residual connection: `R = mean_h(relu(G * A)) R`.

    Reference:
        Chefer, Gur and Wolf, "Generic Attention-model Explainability", ICCV 2021 (arXiv 2103.15679), eq. 5 and 6.

    Example:
        >>> weights, gradients = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[2.0, -1.0], [0.0, 4.0]]]])
        >>> generic_attention([weights], [gradients])
        tensor([[[2., 0.],
                 [0., 3.]]], dtype=torch.float64)
    """
    steps = [(gradient * weight).clamp(min=0).mean(dim=1) for weight, gradient in zip(weights, gradients, strict=True)]
    return attribution_rollout(steps)


def gradient_rollout(weights: Weights, gradients: Weights) -> Matrix:
    """Gradient rollout: attention rollout of `relu(mean_h(G * A))`, whose rows are scaled to the sum 1 once I is added.

    Reference:
        Gildenblat, "Exploring Explainability for Vision Transformers", 2020, without leaving out the lowest values; after Abnar
        and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020 (arXiv 2005.00928), section 3.

    Example:
        >>> weights, gradients = torch.full((1, 1, 2, 2), 0.5), torch.tensor([[[[2.0, -1.0], [0.0, 2.0]]]])
        >>> gradient_rollout([weights], [gradients])
        tensor([[[1., 0.],
                 [0., 1.]]], dtype=torch.float64)
    """
    steps = [(gradient * weight).mean(dim=1).clamp(min=0) for weight, gradient in zip(weights, gradients, strict=True)]
    return reduce(lambda product, step: step @ product, [_scaled_rows(with_residual(step)) for step in steps])


def attribution_rollout(steps: Sequence[Matrix]) -> Matrix:
    """The product over blocks of `I + step`, the last block leftmost; a pooling query's step is a factor without I."""
    return reduce(lambda product, step: step @ product, [with_residual(step) for step in steps])


def with_residual(step: Matrix) -> Matrix:
    """A step plus the residual connection, which a pooling query has not."""
    step = wide(step)
    return step + torch.eye(step.shape[-1], device=step.device, dtype=step.dtype) if step.shape[1] > 1 else step


def _scaled_rows(step: Matrix) -> Matrix:
    return step / step.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class LeGrad:
    """LeGrad: the positive gradients of each block's score at its attention, averaged over heads, queries and blocks.

    The score of a block is what the model makes of the block's tokens after the last block, once each is replaced by the mean
    of all. Where the model pools its tokens by a query of its own, as SigLIP does, that query pools them, and the gradient is
    taken with respect to its weights.

    Args:
        layers: How many of the last blocks are used. Default: all.
        grid: Height and width of the token grid. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.
        name: Name in tables and rows.

    Raises:
        ExplainerError: `layers` is below 1; when called: the model has no blocks with attention of all tokens to all tokens.

    Reference:
        Bousselham et al., "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity", ICCV
        2025 (arXiv 2404.03214), section 3.

    Example:
        >>> import timm, xaieval
        >>> model = timm.create_model("test_vit", img_size=64)
        >>> xaieval.explain(model, torch.rand(2, 3, 64, 64), method=LeGrad(layers=1))["input"].shape
        torch.Size([2, 64, 64])
    """

    layers: int | None = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    name: str = "legrad"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = True
    takes_gradients: bool = True
    passes: str = "2"
    paper: str = "Bousselham et al. 2024, arXiv 2404.03214"

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 1:
            raise ExplainerError(f"layers is a number of blocks, 1 or more, got {self.layers}")

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        size, count = size_of_images(context, self.name), len(context.images)
        axis = image_axis(context)
        finder = BlockFinder(count, self.name)
        with torch.no_grad(), finder.watching(context.model):
            finder.run(lambda: context.read(context.images))
        blocks = finder.found()[-(self.layers or 0) :]
        pooled = finder.pooled
        with torch.enable_grad():
            keeper = WeightKeeper(count, self.name, of_last=len(blocks) * count if pooled else None)
            with _tokens_of_all(blocks, axis, mean=not pooled):
                read = keeper.run(lambda: context.read(context.images.detach().clone().requires_grad_()))
            score = context.score_of(read, context.everywhere.repeat(len(blocks)))
            gradients = self._gradients(score, keeper.blocks, len(blocks), pooled)
        row = torch.stack([gradient.clamp(min=0).mean(dim=(1, 2)) for gradient in gradients]).mean(dim=0)
        layout = AttentionRows("auto", self.grid, self.prefix_tokens).layout(row.shape[1], size, self.name)
        return grid_of(row, layout)

    def _gradients(self, score: Tensor, weights: list[Tensor], count: int, pooled: bool) -> list[Tensor]:
        """The gradient of each block's score with respect to its weights, or to those with which the query pools its tokens."""
        if pooled:
            return list(gradients_of(score, weights[-1:], self.name)[0].chunk(count))
        pairs = zip(score.chunk(count), weights[-count:], strict=True)
        return [gradients_of(one, [block], self.name, keep=True)[0] for one, block in pairs]


@contextmanager
def _tokens_of_all(blocks: Sequence[nn.Module], axis: int, mean: bool) -> Iterator[None]:
    """Let the last block hand on the tokens of all these blocks, one after another along the batch.

    Args:
        blocks: The blocks; the last is that of the model.
        axis: The axis of the images in their tokens.
        mean: Whether each token is replaced by the mean of all.
    """
    tokens: list[Tensor] = []

    def hand_on(module: nn.Module, _: Any, output: Any) -> Any:
        whole = output if isinstance(output, Tensor) else output[0]
        tokens.append(whole.mean(dim=1 - axis, keepdim=True).expand_as(whole) if mean else whole)
        if module is not blocks[-1]:
            return None
        every = torch.cat(tokens, dim=axis)
        return every if isinstance(output, Tensor) else (every, *output[1:])

    handles = [block.register_forward_hook(hand_on) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


ATTENTION_GRADIENTS = (
    AttentionGradient("generic-attention", generic_attention, "Chefer et al. 2021, arXiv 2103.15679"),
    AttentionGradient("gradient-rollout", gradient_rollout, "Gildenblat 2020, after arXiv 2005.00928"),
    LeGrad(),
)
