"""The names of a model's classes, where the model or its library states them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torchvision
from torch import nn

from xaieval.data.cues import CUES
from xaieval.data.scenes import classes_of

__all__ = ["class_names"]

PLACEHOLDER = re.compile(r"LABEL_\d+$")  # what transformers calls a class that nobody named
IMAGENET = re.compile(r"in(1|12|21|22)k")  # in timm's tags of weights


def class_names(model: nn.Module, spec: str = "", pretrained: bool = False) -> list[str]:
    """The names of all classes in the order of the logits; empty if they are not known.

    Known are those in the configuration of a model of transformers (`config.id2label`), in `names` of one of ultralytics, the
    prompts of a zero-shot classifier, those of the built-in models, and for pretrained weights of torchvision and timm those
    of the data set. Nothing is concluded from the number of classes alone.

    Args:
        model: The model.
        spec: Its name, as of `load_model`.
        pretrained: Whether it has the pretrained weights of its library, and not those of a file.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> model.names = {0: "cat", 1: "dog"}
        >>> class_names(model), class_names(nn.Linear(2, 2))
        (['cat', 'dog'], [])
    """
    for named in (getattr(getattr(model, "config", None), "id2label", None), getattr(model, "names", None)):
        names = _in_order(named)
        if names and not any(map(PLACEHOLDER.match, names)):
            return names
    prompts = getattr(model, "prompts", None)
    if isinstance(prompts, Sequence) and not isinstance(prompts, str):
        return [str(prompt) for prompt in prompts]
    source, _, name = spec.partition(":")
    if source == "xaieval":
        return list(classes_of(next((cue for cue in CUES if name == f"scenes-{cue}"), None)))
    if pretrained and source == "torchvision":
        return list(torchvision.models.get_model_weights(name).DEFAULT.meta.get("categories", ()))
    return _of_timm(model) if pretrained else []


def _in_order(names: Any) -> list[str]:
    """The values of a mapping from 0, 1, 2, ... to names; empty for anything else."""
    if not isinstance(names, Mapping) or {*names} != {*range(len(names))}:
        return []
    return [str(names[number]) for number in range(len(names))]


def _of_timm(model: Any) -> list[str]:
    """The names in the configuration of the weights, or those of ImageNet for weights that were trained on it."""
    import timm.data  # which takes long, and which models of other libraries do not need

    weights = getattr(model, "pretrained_cfg", None) or {}
    if weights.get("label_names"):
        return [str(name) for name in weights["label_names"]]
    subset = timm.data.infer_imagenet_subset(model) if IMAGENET.search(str(weights.get("tag"))) else None
    if subset is None:
        return []
    info = timm.data.ImageNetInfo(subset)
    return [info.index_to_description(number) for number in range(info.num_classes())]
