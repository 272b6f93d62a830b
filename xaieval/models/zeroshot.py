"""Zero-shot classification with CLIP, SigLIP and similar models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from xaieval.errors import ModelError, TargetError, choose_from
from xaieval.inference.borrowing import borrow

__all__ = ["ZeroShot"]

Tokens = Int[Tensor, "k t"] | Mapping[str, Tensor] | Callable[..., Mapping[str, Tensor] | Tensor]

TEXT, IMAGE = ("get_text_features", "encode_text"), ("get_image_features", "encode_image")  # of transformers, of OpenCLIP


class ZeroShot(nn.Module):
    """Zero-shot classifier: an image-text model whose classes are prompts.

    Text features are computed once and stored in a buffer, so a forward pass only encodes the images. Layer addresses start
    with `model`, such as `model.vision_model.encoder.layers.11`.

    Args:
        model: A CLIPModel or SiglipModel of transformers, a model of OpenCLIP, or a module with the same `get_text_features`
            and `get_image_features` (or `encode_text` and `encode_image`), `logit_scale` and optional `logit_bias`. It is not
            copied.
        prompts: One text per class, without duplicates.
        tokens: The tokenizer of the model for the prompts, its output (of transformers `input_ids` and optionally
            `attention_mask`), or token ids `[K, T]`.

    Raises:
        ModelError: The model lacks one of these methods, the numbers of tokens and prompts differ, a prompt is longer than the
            model reads, or two prompts have the same tokens.
        TargetError: There are no prompts, or a prompt occurs twice.

    Reference:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020), section 3.1;
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (arXiv 2303.15343), for SigLIP with
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
        missing = [names[0] for names in (TEXT, IMAGE, ("logit_scale",)) if not any(hasattr(model, name) for name in names)]
        if missing:
            raise ModelError(
                f"a {type(model).__name__} has no {missing[0]}; a CLIPModel or SiglipModel of transformers or a model of "
                "OpenCLIP is expected"
            )
        if "spatial_shapes" in inspect.signature(_encoder(model, IMAGE)).parameters:
            raise ModelError(
                f"a {type(model).__name__} takes patches and not images; checkpoints of one size load as SiglipModel, "
                "which takes images"
            )
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise TargetError(f"prompts are one or more, each once; got {self.prompts}")
        self.model = model
        with borrow(model) as device, torch.no_grad():
            inputs = _inputs(model, self.prompts, tokens)
            ids = next(iter(inputs.values()))
            _check_tokens(ids, self.prompts)
            moved = {key: value.to(device) for key, value in inputs.items()}
            encode = _encoder(model, TEXT)
            features = _pooled(encode(**moved) if hasattr(model, TEXT[0]) else encode(*moved.values()))
        self.register_buffer("text_features", functional.normalize(features, dim=1))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the prompts, equal to the model's `logits_per_image`."""
        model: Any = self.model
        features = functional.normalize(_pooled(_encoder(model, IMAGE)(images)), dim=1)
        logits = features @ self.text_features.T * model.logit_scale.exp()
        bias = getattr(model, "logit_bias", None)
        return logits if bias is None else logits + bias

    @property
    def settings(self) -> dict[str, Any]:
        """What the classes are, for manifests."""
        return {"prompts": self.prompts}

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


def _encoder(model: Any, names: Sequence[str]) -> Callable[..., Any]:
    """The method of one of these names."""
    encoder: Callable[..., Any] = next(getattr(model, name) for name in names if hasattr(model, name))
    return encoder


def _inputs(model: Any, prompts: list[str], tokens: Tokens) -> dict[str, Tensor]:
    """Inputs of the model for texts."""
    if callable(tokens) and not isinstance(tokens, Tensor | Mapping):
        tokens = _tokenized(model, prompts, tokens)
    if isinstance(tokens, Tensor):
        return {"input_ids": tokens}
    return {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}


def _tokenized(model: Any, prompts: list[str], tokenizer: Callable[..., Any]) -> Mapping[str, Tensor] | Tensor:
    """What the tokenizer of a model makes of prompts.

    Raises:
        ModelError: A prompt is longer than the model reads.
    """
    if not hasattr(model, TEXT[0]):
        tokens: Tensor = tokenizer(prompts)  # OpenCLIP's knows the length, and cuts off what is longer
        return tokens
    # Padded to the full length: SigLIP was trained that way, and CLIP ignores what follows the end of a text.
    longest = min(model.config.text_config.max_position_embeddings, getattr(tokenizer, "model_max_length", 10**9))
    found: Mapping[str, Any] = tokenizer(prompts, padding="max_length", max_length=longest)
    for prompt, row in zip(prompts, found["input_ids"], strict=False):
        if len(row) > longest:
            raise ModelError(f"the prompt {prompt!r} has {len(row)} tokens, and the model reads {longest}; give a shorter one")
    return {key: torch.as_tensor(rows) for key, rows in found.items()}


def _check_tokens(ids: Tensor, prompts: list[str]) -> None:
    """Refuse tokens that are not one row for each prompt, each another.

    Raises:
        ModelError: With the reason.
    """
    if len(ids) != len(prompts):
        raise ModelError(f"{len(prompts)} prompts come with the tokens of {len(ids)}; one row each is expected")
    first: dict[tuple[int, ...], str] = {}
    for prompt, row in zip(prompts, ids.tolist(), strict=True):
        same = first.setdefault(tuple(row), prompt)
        if same != prompt:
            raise ModelError(
                f"the prompts {same!r} and {prompt!r} have the same tokens: the tokenizer does not know the words, or cuts "
                "off the prompts; give shorter ones, or the tokenizer of this model"
            )


def _pooled(output: Any) -> Tensor:
    """Features `[N, D]`, which some models return directly and others in an object."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features
