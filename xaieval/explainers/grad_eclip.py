"""Grad-ECLIP: which values of the last attention raise the score, by the gradient at what the attention gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ExplainerError
from xaieval.explainers.attention_weights import AttentionRows, WeightKeeper, gradients_of, grid_of, reads_class_token
from xaieval.explainers.base import Context, size_of_images
from xaieval.explainers.eager_attention import PRODUCTS, is_attention

__all__ = ["GRAD_ECLIP", "GradECLIP"]


@dataclass(frozen=True)
class GradECLIP:
    """Grad-ECLIP: the values of the last attention, weighted by the gradient at its output and by how like the query they are.

    The query is that of the class token, or the one with which the model pools its tokens. Prompts of CLIP and SigLIP are the
    classes of `xaieval.models.ZeroShot`; other transformers that read the class token are explained too.

    Args:
        grid: Height and width of the token grid. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.
        name: Name in tables and rows.

    Raises:
        ExplainerError: When called: the model has no attention of all tokens to all tokens, or averages its tokens.

    Reference:
        Zhao et al., "Gradient-based Visual Explanation for CLIP", ICML 2024, and "Grad-ECLIP" (arXiv 2502.18816), section 3.2.
        The likeness is that of queries and keys themselves; the authors' code projects both first.

    Example:
        >>> import timm, xaieval
        >>> model = timm.create_model("test_vit", img_size=64)
        >>> xaieval.explain(model, torch.rand(2, 3, 64, 64), method="grad-eclip")["input"].shape
        torch.Size([2, 64, 64])
    """

    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    name: str = "grad-eclip"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = True
    takes_gradients: bool = True
    passes: str = "1"
    paper: str = "Zhao et al. 2025, arXiv 2502.18816"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        size = size_of_images(context, self.name)
        keeper = _StepKeeper(len(context.images), self.name)
        with torch.enable_grad():
            images = context.images.detach().clone().requires_grad_()
            read = keeper.run(lambda: context.read(images))
            (gradient,) = gradients_of(context.score_of(read, context.everywhere), [keeper.output], self.name)
        layout = AttentionRows("auto", self.grid, self.prefix_tokens).layout(keeper.blocks[-1].shape[-1], size, self.name)
        if gradient.shape[2] > 1 and not (layout.prefix and reads_class_token(context.model)):
            raise ExplainerError(
                f"method '{self.name}' needs a class token or a pooling query, whose attention the model reads, and this model "
                "averages its tokens; 'generic-attention' explains it"
            )
        query, key, value = (one.detach() for one in keeper.steps)
        likeness = functional.cosine_similarity(_by_token(query)[:, :1], _by_token(key), dim=2)
        contribution = (_by_token(gradient)[:, :1] * _by_token(value)).sum(dim=2)
        cells = grid_of(likeness, layout)
        low, high = (part((1, 2), keepdim=True) for part in (cells.amin, cells.amax))
        return (grid_of(contribution, layout) * (cells - low) / (high - low)).clamp(min=0)


def _by_token(heads: Tensor) -> Tensor:
    """`[N, heads, T, D]` as `[N, T, heads * D]`."""
    return heads.transpose(1, 2).flatten(2)


class _StepKeeper(WeightKeeper):
    """Keeps queries, keys and values of the last attention, and what it gives.

    Attributes:
        steps: Queries, keys and values, `[N, heads, T, D]` each.
        output: The values of the tokens summed by weight, `[N, heads, T, D]`, part of the graph.
    """

    def __init__(self, images: int, name: str) -> None:
        super().__init__(images, name)
        self.steps: tuple[Tensor, ...] = ()
        self.output = torch.empty(0)
        self.factors: tuple[Tensor, Tensor] | None = None  # of the last product of matrices

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function, and keep it if it is a step of attention."""
        result = super().call(function, args, kwargs)
        if is_attention(function, result, args, kwargs) and self.factors is not None:
            query, key = self.factors
            self.steps = (query, key.mT)
        elif function in PRODUCTS:
            self.factors = args
            if len(self.steps) == 2 and args[0].shape == self.blocks[-1].shape:
                self.steps = (*self.steps, args[1])
                self.output = result
        return result


GRAD_ECLIP = (GradECLIP(),)
