"""Layer-wise relevance propagation through the attention of vision transformers: AttnLRP and transformer attribution."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xaieval.errors import ExplainerError
from xaieval.explainers.attention_gradients import attribution_rollout
from xaieval.explainers.attention_weights import ReadsRows, Rows, WeightKeeper, gradients_of, image_axis, no_attention
from xaieval.explainers.base import Context, size_of_images
from xaieval.explainers.eager_attention import EagerAttention
from xaieval.explainers.relevance_rules import ATTN_LRP, Rule, alpha_beta, ruled

__all__ = ["ATTENTION_RELEVANCE", "AttnLRP", "TransformerAttribution"]


@dataclass(frozen=True)
class AttnLRP:
    """AttnLRP: the relevance of each pixel for the target's score, summed over channels.

    Relevance is conserved in linear layers, layer norms, activations and products; biases, also those of the softmax's Taylor
    expansion, take some of it. Windows and stages, as in Swin, are explained too.

    Args:
        name: Name in tables and rows.

    Raises:
        ExplainerError: When called: there is no rule for a function of the model, or the model has no attention.

    Reference:
        Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024 (arXiv
        2402.05602), section 3, with the epsilon rule in linear layers, epsilon near 0.

    Example:
        >>> import timm, xaieval
        >>> model = timm.create_model("test_vit", img_size=64)
        >>> xaieval.explain(model, torch.rand(2, 3, 64, 64), method="attn-lrp")["input"].shape
        torch.Size([2, 64, 64])
    """

    name: str = "attn-lrp"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = True
    takes_gradients: bool = True
    passes: str = "1"
    paper: str = "Achtibat et al. 2024, arXiv 2402.05602"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`."""
        size_of_images(context, self.name)
        images = context.images.detach().clone().requires_grad_()
        softmaxes: list[Any] = []
        rules = ATTN_LRP | {"softmax": _noting(softmaxes)}
        with torch.enable_grad():
            with EagerAttention(ruled(rules, self.name)):
                read = context.read(images)
            if not softmaxes:
                raise no_attention(self.name)
            (gradient,) = torch.autograd.grad(_score(read, context, self.name).sum(), images)
        return (images.detach() * gradient).sum(dim=1)


@dataclass(frozen=True)
class TransformerAttribution(ReadsRows):
    """Transformer attribution: a rollout of attention weights' relevance times their gradient, positive part.

    Which row of the matrix is the map is chosen as for `attention-rollout`.

    Args:
        rows: "class", "mean", or "auto", as of `AttentionRows`.
        grid: Height and width of the token grid. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.
        name: Name in tables and rows.

    Raises:
        ExplainerError: There is no such choice of rows; when called: there is no rule for a function of the model, or the model
            has no attention of all tokens to all tokens.

    Reference:
        Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention Visualization", CVPR 2021 (arXiv 2012.09838), eq.
        13 and 14.

    Example:
        >>> import timm, xaieval
        >>> model = timm.create_model("test_vit", img_size=64)
        >>> xaieval.explain(model, torch.rand(2, 3, 64, 64), method="transformer-attribution")["input"].shape
        torch.Size([2, 64, 64])
    """

    rows: Rows = "auto"
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    name: str = "transformer-attribution"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = True
    takes_gradients: bool = True
    passes: str = "2"
    paper: str = "Chefer et al. 2021, arXiv 2012.09838"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        size_of_images(context, self.name)
        of_blocks, axis = [], image_axis(context)
        with torch.enable_grad():
            for rules in (None, alpha_beta(axis)):
                call = None if rules is None else ruled(rules, self.name)
                keeper = WeightKeeper(len(context.images), self.name, call=call)
                images = context.images.detach().clone().requires_grad_()
                read = keeper.run(partial(context.read, images))
                of_blocks.append(gradients_of(_score(read, context, self.name), keeper.blocks, self.name))
        steps = [(one * other).clamp(min=0).mean(dim=1) for one, other in zip(*of_blocks, strict=True)]
        return self._rows.map_of(attribution_rollout(steps), context, self.name)


ATTENTION_RELEVANCE = (TransformerAttribution(), AttnLRP())


def _noting(softmaxes: list[Any]) -> Rule:
    """The rule of a softmax, its gradient, which notes that there was one."""

    def call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        softmaxes.append(function)
        return function(*args, **kwargs)

    return call


def _score(read: Any, context: Context, name: str) -> Tensor:
    """The targets' scores `[N]` of what a pass by rules gave.

    Raises:
        ExplainerError: The model's output is another by rules, or no tensor.
    """
    if not isinstance(read, Tensor):
        raise ExplainerError(f"method '{name}' explains models that give one tensor; 'generic-attention' explains any")
    _check_same(read, context, name)
    return context.score_of(read, context.everywhere)


def _check_same(read: Tensor, context: Context, name: str) -> None:
    expected: Any = context.logits
    if expected is None or expected.shape != read.shape or expected.dtype != read.dtype:
        return
    finite = expected.flatten(1).isfinite().all(dim=1)
    if not torch.allclose(read[finite], expected[finite], rtol=1e-2, atol=1e-3):
        raise ExplainerError(
            f"method '{name}' would explain another output than the model's, which writes into its activations in a way that "
            "rules cannot follow; take 'generic-attention'"
        )
