"""The names of a model's classes, where the model states them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["class_names"]

PLACEHOLDER = re.compile(r"LABEL_\d+$")  # what transformers calls a class that nobody named
IMAGENET, IMAGENET_TAG = 1000, "in1k"  # classes; in timm's names of weights


def class_names(model: nn.Module, pretrained: bool = False) -> list[str]:
    """The names of all classes in the order of the logits; empty if they are not known.

    Known are the names in the configuration of a model of transformers, those of ultralytics, and those of ImageNet for weights
    of timm that were trained on it. Nothing is concluded from the number of classes alone.

    Args:
        model: The model.
        pretrained: Whether its weights are those that its library names, and not those of a file.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> class_names(model)
        []
        >>> model.names = {0: "cat", 1: "dog", 2: "cow"}
        >>> class_names(model)
        ['cat', 'dog', 'cow']
    """
    for named in (getattr(getattr(model, "config", None), "id2label", None), getattr(model, "names", None)):
        names = _in_order(named)
        if names and not any(map(PLACEHOLDER.match, names)):
            return names
    weights = getattr(model, "pretrained_cfg", None) or {}
    if pretrained and IMAGENET_TAG in str(weights.get("tag")) and getattr(model, "num_classes", None) == IMAGENET:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return [str(info.index_to_description(number)) for number in range(IMAGENET)]
    return []


def _in_order(names: Any) -> list[str]:
    """The values of a mapping from 0, 1, 2, ... to names; empty for anything else."""
    if not isinstance(names, Mapping) or {*names} != {*range(len(names))}:
        return []
    return [str(names[number]) for number in range(len(names))]
