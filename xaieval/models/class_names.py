"""The names of a model's classes, where the model or its library knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torchvision
from torch import nn

from xaieval.data.cues import CUES
from xaieval.data.scenes import classes_of

__all__ = ["class_names"]


def class_names(model: nn.Module, spec: str = "", pretrained: bool = False) -> Sequence[str]:
    """The names of the classes 0, 1, ... of a model; empty where they are not known.

    Known are those in the configuration of a model of transformers (`config.id2label`), in `names` of one of ultralytics, the
    prompts of a zero-shot classifier, those of the built-in models, and for pretrained weights of torchvision and timm those
    of the data set.

    Args:
        model: The model.
        spec: Its name, as of `load_model`.
        pretrained: Whether it has the pretrained weights of its library.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> model.names = {0: "cat", 1: "dog"}
        >>> class_names(model), class_names(nn.Linear(2, 2))
        (['cat', 'dog'], [])
    """
    source, _, name = spec.partition(":")
    named: Any = getattr(getattr(model, "config", None), "id2label", None) or getattr(model, "names", None)
    if isinstance(named, Mapping) and all(isinstance(key, int) for key in named):
        named = [str(named[number]) for number in sorted(named)] if sorted(named) == list(range(len(named))) else []
        return [] if named and named[0] == "LABEL_0" else named  # what transformers writes where there are no names
    prompts = getattr(model, "prompts", None)
    if isinstance(prompts, Sequence) and not isinstance(prompts, str):
        return [str(prompt) for prompt in prompts]
    if source == "xaieval":
        return list(classes_of(next((cue for cue in CUES if name == f"scenes-{cue}"), None)))
    if pretrained and source == "torchvision":
        return list(torchvision.models.get_model_weights(name).DEFAULT.meta.get("categories", ()))
    if pretrained and source == "timm":
        return _of_timm(model)
    return []


def _of_timm(model: Any) -> list[str]:
    """The names in the configuration of the weights, or of ImageNet, which timm tells by the number of classes."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if named:
        return [str(name) for name in named]
    subset = timm.data.infer_imagenet_subset(model)
    if subset is None:
        return []
    info = timm.data.ImageNetInfo(subset)
    return [info.index_to_description(number) for number in range(info.num_classes())]
