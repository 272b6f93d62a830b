"""Zero-shot classification with CLIP, SigLIP and similar models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from xaieval.errors import ModelError, TargetError, choose_from
from xaieval.inference.borrowing import borrow

__all__ = ["ZeroShot"]

Tokens = Int[Tensor, "k t"] | Mapping[str, Tensor] | Callable[..., Mapping[str, Tensor]]


class ZeroShot(nn.Module):
    """Zero-shot classifier: an image-text model whose classes are prompts.

    Text features are computed once and stored in a buffer, so a forward pass only encodes the images. Layer addresses start
    with `model`, such as `model.vision_model.encoder.layers.11`.

    Args:
        model: A CLIPModel or SiglipModel of transformers, or a module with the same `get_text_features`, `get_image_features`,
            `logit_scale` and optional `logit_bias`. It is not copied.
        prompts: One text per class, without duplicates.
        tokens: A tokenizer of transformers for the prompts, its output (`input_ids` and optionally `attention_mask`), or token
            ids `[K, T]`.

    Raises:
        ModelError: The model lacks one of these methods, or the numbers of tokens and prompts differ.
        TargetError: There are no prompts, or a prompt occurs twice.

    Reference:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020), section 3.1;
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (arXiv 2303.15343), for SigLIP, whose confidence is
        `Protocol(confidence="sigmoid")`.

    Example:
        >>> class Tiny(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words, self.pixels = nn.Embedding(9, 4), nn.Linear(12, 4)
        ...         self.logit_scale = nn.Parameter(torch.tensor(1.0))
        ...     def get_text_features(self, input_ids):
        ...         return self.words(input_ids).mean(dim=1)
        ...     def get_image_features(self, pixel_values):
        ...         return self.pixels(pixel_values.flatten(1))
        >>> classifier = ZeroShot(Tiny(), ["a cat", "a dog"], torch.tensor([[1, 2], [1, 3]]))
        >>> classifier(torch.rand(5, 3, 2, 2)).shape, classifier.index("a dog")
        (torch.Size([5, 2]), 1)
    """

    text_features: Tensor

    def __init__(self, model: Any, prompts: Sequence[str], tokens: Tokens) -> None:
        super().__init__()
        missing = [name for name in ("get_text_features", "get_image_features", "logit_scale") if not hasattr(model, name)]
        if missing:
            raise ModelError(f"a {type(model).__name__} has no {missing[0]}; a CLIPModel or SiglipModel is expected")
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise TargetError(f"prompts are one or more, each once; got {self.prompts}")
        self.model = model
        with borrow(model) as device, torch.no_grad():
            inputs = {key: value.to(device) for key, value in _inputs(model, self.prompts, tokens).items()}
            features = _pooled(model.get_text_features(**inputs))
        if len(features) != len(self.prompts):
            raise ModelError(f"{len(self.prompts)} prompts come with the tokens of {len(features)}; one row each is expected")
        self.register_buffer("text_features", functional.normalize(features, dim=1))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the prompts, equal to the model's `logits_per_image`."""
        model: Any = self.model
        features = functional.normalize(_pooled(model.get_image_features(pixel_values=images)), dim=1)
        logits = features @ self.text_features.T * model.logit_scale.exp()
        bias = getattr(model, "logit_bias", None)
        return logits if bias is None else logits + bias

    def similarities(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Cosine similarities of images and prompts, in [-1, 1], from the logits of `forward`."""
        model: Any = self.model
        bias = getattr(model, "logit_bias", None)
        return (logits if bias is None else logits - bias) / model.logit_scale.exp()

    def index(self, prompt: str) -> int:
        """Class index of a prompt, for use as target.

        Raises:
            TargetError: There is no such prompt.
        """
        if prompt not in self.prompts:
            raise TargetError(f"no prompt {prompt!r}; {choose_from(prompt, self.prompts)}")
        return self.prompts.index(prompt)


def _inputs(model: Any, prompts: list[str], tokens: Tokens) -> dict[str, Tensor]:
    """Inputs of the model for texts."""
    if isinstance(tokens, Tensor):
        return {"input_ids": tokens}
    if not isinstance(tokens, Mapping):
        # Padded to the full length: SigLIP was trained that way, and CLIP ignores what follows the end of a text.
        longest = model.config.text_config.max_position_embeddings
        tokens = tokens(prompts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
    return {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}


def _pooled(output: Any) -> Tensor:
    """Features `[N, D]`, which some models return directly and others in an object."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
