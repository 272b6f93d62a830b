"""Stages of a backbone as the first part of an attention branch, as in the original Attention Branch Network."""

from __future__ import annotations

import copy

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from xaieval.errors import ModelError

__all__ = ["resized", "stage_between"]


def stage_between(backbone: nn.Module, before: str, last: str) -> nn.Sequential:
    """A copy of the modules that follow `before` up to `last`, with stride 1, so that the maps keep their size.

    Args:
        backbone: The network.
        before: Path of the module whose output the stage takes.
        last: Path of the module whose output the stage gives.

    Raises:
        ModelError: The two modules are not in one sequence of modules.

    Example:
        >>> import timm
        >>> stage = stage_between(timm.create_model("test_resnet"), "layer3", "layer4")
        >>> [type(module).__name__ for module in stage]
        ['Sequential']
    """
    modules = dict(backbone.named_modules())
    before, last = (path if path in modules else path.replace(".", "_") for path in (before, last))
    parent = before.rpartition(".")[0]
    siblings = [f"{parent}.{name}".lstrip(".") for name, _ in modules[parent].named_children()] if parent in modules else []
    if before not in siblings or last not in siblings:
        raise ModelError(
            f"'{before}' and '{last}' are not in one sequence of modules, so no stage can be copied for the branch"
        )
    stage = copy.deepcopy(
        nn.Sequential(*(modules[path] for path in siblings[siblings.index(before) + 1 : siblings.index(last) + 1]))
    )
    for module in stage.modules():
        if isinstance(module, nn.Conv2d | nn.AvgPool2d | nn.MaxPool2d):
            module.stride = (1, 1)
    return stage


def resized(maps: Float[Tensor, "n 1 h w"], features: Float[Tensor, "n c H W"]) -> Float[Tensor, "n 1 H W"]:
    """Maps at the size of the features, bilinear with half-pixel centres; maps of this size are returned as they are."""
    if maps.shape[2:] == features.shape[2:]:
        return maps
    return functional.interpolate(maps, features.shape[2:], mode="bilinear", align_corners=False)
