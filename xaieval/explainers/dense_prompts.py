"""Maps of prompts of CLIP and SigLIP: how similar each token of the image is to the prompt, read as the model reads an image.

Attention mixes information from distant places into a token. MaskCLIP and CLIP Surgery mix the values of the last
attentions in another way, so that a token keeps its own place, and neither takes gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.attention_weights import AttentionRows, grid_of, image_axis
from xaieval.explainers.base import Context, size_of_images
from xaieval.explainers.eager_attention import PRODUCTS, EagerAttention, is_attention
from xaieval.explainers.transformer_blocks import BlockFinder

__all__ = ["DENSE_PROMPTS", "CLIPSurgery", "MaskCLIP", "without_redundant"]

Mix = Callable[[Tensor], Tensor]  # of the values of an attention, [N, heads, T, D]


@dataclass(frozen=True)
class MaskCLIP:
    """MaskCLIP: the similarity of each token to the prompt, the tokens being the values of the last attention.

    The last attention gives each token its own value, independent of queries and keys; later layers are applied to each token
    alone. In CLIP it is that of the last block, in SigLIP that of the query that pools the tokens. The map is the score of the
    prompt, which is the cosine similarity by the scale and the bias of the model.

    Args:
        grid: Height and width of the token grid. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.
        name: Name in tables and rows.

    Raises:
        ExplainerError: When called: the classes of the model are no prompts, or it has no blocks with attention of all tokens
            to all tokens.

    Reference:
        Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022 (arXiv 2112.01071), section 3.2, without key smoothing and
        prompt denoising.

    Example:
        >>> from xaieval.explainers import METHODS
        >>> METHODS["maskclip"] == MaskCLIP()
        True
    """

    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    name: str = "maskclip"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = True
    passes: str = "2"
    paper: str = "Zhou et al. 2022, arXiv 2112.01071"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        dense = _Dense(context, self.name)
        with torch.no_grad(), ExitStack() as stack:
            if not dense.pooled:
                stack.enter_context(_handle(dense.attentions[-1], lambda *call: _mixed(lambda value: value, *call)))
            stack.enter_context(_handle(dense.blocks[-1], lambda _module, _args, _kwargs, output: _alone(output, dense.axis)))
            read = context.read(context.images)
            scores = context.score_of(read, context.everywhere.repeat_interleave(dense.tokens))
        return dense.map_of(scores.unflatten(0, (-1, dense.tokens)), self.grid, self.prefix_tokens)


@dataclass(frozen=True)
class CLIPSurgery:
    """CLIP Surgery: the similarity of each token to the prompt by attention of values to values, less what all prompts share.

    A second path through the last blocks adds up what their attentions give if values take the place of queries and keys. The
    blocks themselves run as they are, and the feed-forward layers take no part in the second path.

    Args:
        layers: How many of the last blocks have the second path; all if the model has fewer.
        grid: Height and width of the token grid. Default: inferred.
        prefix_tokens: Number of tokens before the grid. Default: inferred.
        name: Name in tables and rows.

    Raises:
        ExplainerError: `layers` is below 1; when called: the classes of the model are not two prompts or more, or it has no
            blocks with attention of all tokens to all tokens.

    Reference:
        Li et al., "A Closer Look at the Explainability of Contrastive Language-Image Pre-training" (arXiv 2304.05653), sections
        3.2 and 3.3. Similarities are cosines; the authors' code divides by the norm along the tokens.

    Example:
        >>> from xaieval.explainers import METHODS
        >>> METHODS["clip-surgery"].layers
        6
    """

    layers: int = 6
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    name: str = "clip-surgery"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = True
    passes: str = "2"
    paper: str = "Li et al. 2023, arXiv 2304.05653"

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ExplainerError(f"layers is a number of blocks, 1 or more, got {self.layers}")

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        model: Any = context.model
        dense = _Dense(context, self.name)
        if len(model.prompts) < 2:
            raise ExplainerError(
                f"method '{self.name}' takes away what all prompts share, and needs two or more; add one such as 'a photo', or "
                "take 'maskclip'"
            )
        second: list[Tensor] = []  # what the second path adds up

        def add(*call: Any) -> None:
            second.append(_first(_mixed(_by_values, *call)))

        def start(_module: nn.Module, args: Any, kwargs: Any) -> None:
            second.append(next(iter((*args, *kwargs.values()))))  # the tokens come first

        with torch.no_grad(), ExitStack() as stack:
            first = dense.blocks[-self.layers :][0]
            stack.callback(first.register_forward_pre_hook(start, with_kwargs=True).remove)
            for attention in dense.attentions[-self.layers :]:
                stack.enter_context(_handle(attention, add))
            stack.enter_context(
                _handle(dense.blocks[-1], lambda *call: _alone(call[-1], dense.axis, torch.stack(second).sum(dim=0)))
            )
            read = context.read(context.images)
        tokens = model.similarities(read).unflatten(0, (-1, dense.tokens))
        similarity = without_redundant(tokens, model.similarities(dense.logits))
        return dense.map_of(similarity[context.everywhere, :, context.targets], self.grid, self.prefix_tokens)


def without_redundant(tokens: Float[Tensor, "n t k"], images: Float[Tensor, "n k"]) -> Float[Tensor, "n t k"]:
    """Similarities of tokens to prompts, less the mean of all prompts: feature surgery.

    Prompts are weighted by `softmax(2 s)` of the image's similarities s, over its mean, so that a clear class does not show
    under the others.

    Args:
        tokens: Cosine similarity of each token to each prompt.
        images: That of the whole image.

    Reference:
        Li et al. 2023 (arXiv 2304.05653), section 3.3; the products of features are added up, so similarities suffice.

    Example:
        >>> without_redundant(torch.tensor([[[0.3, 0.1], [0.2, 0.2]]]), torch.zeros(1, 2))
        tensor([[[ 0.1000, -0.1000],
                 [ 0.0000,  0.0000]]])
    """
    chances = (2 * images).softmax(dim=1)
    weighted = tokens * (chances / chances.mean(dim=1, keepdim=True))[:, None]
    return weighted - weighted.mean(dim=2, keepdim=True)


class _Dense:
    """What both methods find out of a model of prompts by one pass.

    Attributes:
        blocks: The blocks in order.
        attentions: Their attentions.
        pooled: Whether a query pools the tokens after the last block.
        tokens: The number of tokens.
        axis: The axis of the images in the tokens of the blocks.
        logits: The output for the images.
    """

    def __init__(self, context: Context, name: str) -> None:
        self.size, self.name = size_of_images(context, name), name
        if not hasattr(context.model, "similarities"):
            raise ExplainerError(
                f"method '{name}' compares tokens with prompts, and the classes of this model are none; it explains "
                "xaieval.models.ZeroShot of CLIP or SigLIP, and 'generic-attention' other transformers"
            )
        self.axis = image_axis(context)
        finder = BlockFinder(len(context.images), name)
        with torch.no_grad(), finder.watching(context.model):
            self.logits: Tensor = finder.run(lambda: context.read(context.images))
        self.blocks, self.attentions, self.pooled = finder.found(), finder.attentions(), finder.pooled
        self.tokens = finder.blocks[-1].shape[-1]
        if any(block is attention for block, attention in zip(self.blocks, self.attentions, strict=True)):
            raise ExplainerError(f"method '{name}' needs attentions that are modules; 'generic-attention' does not")

    def map_of(self, row: Tensor, grid: tuple[int, int] | None, prefix_tokens: int | None) -> Tensor:
        """The map `[N, h, w]` of numbers of the tokens, `[N, T]`.

        Raises:
            ExplainerError: The model makes nothing of a token alone.
        """
        if not row.isfinite().all() and self.logits.isfinite().all():
            raise ExplainerError(
                f"method '{self.name}' reads each token alone, and this model averages those that are not its class token; "
                "'generic-attention' explains it"
            )
        return grid_of(row, AttentionRows("auto", grid, prefix_tokens).layout(self.tokens, self.size, self.name))


def _handle(module: nn.Module, hook: Callable[..., Any]) -> ExitStack:
    """Call a hook after the module, with its arguments and its output."""
    stack = ExitStack()
    stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
    return stack


def _mixed(mix: Mix, module: nn.Module, args: Any, kwargs: Any, _output: Any) -> Any:
    """What an attention gives for the same input if its values are mixed in another way."""
    ready = False

    def call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal ready
        result = function(*args, **kwargs)
        if is_attention(function, result, args, kwargs):
            ready = True
        elif ready and function in PRODUCTS:
            ready = False
            return mix(args[1])
        return result

    with EagerAttention(call):
        return module.forward(*args, **kwargs)


def _by_values(value: Tensor) -> Tensor:
    """Values mixed by how like each other they are."""
    return (value @ value.mT / math.sqrt(value.shape[-1])).softmax(dim=-1) @ value


def _first(output: Any) -> Tensor:
    tokens: Tensor = output if isinstance(output, Tensor) else output[0]
    return tokens


def _alone(output: Any, axis: int, tokens: Tensor | None = None) -> Any:
    """A block's output, each token as the only one of an image: `[N * T, 1, C]`, or `[1, N * T, C]` where images are axis 1."""
    alone = (_first(output) if tokens is None else tokens).movedim(axis, 0).flatten(0, 1).unsqueeze(1 - axis)
    return alone if isinstance(output, Tensor) else (alone, *output[1:])


DENSE_PROMPTS = (MaskCLIP(), CLIPSurgery())
