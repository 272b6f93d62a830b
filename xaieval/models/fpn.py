"""A classifier on a feature pyramid, whose levels can be probed one by one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal, get_args

import timm
import torch
from jaxtyping import Float
from timm.layers import Format
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from xaieval.errors import ModelError, choose_from

__all__ = ["LEVELS", "FPNClassifier"]

Head = Literal["mean", "concat"]

LEVELS = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # pyramid level -> reduction of the image's side


class FPNClassifier(nn.Module):
    """An image classifier that pools every level of a feature pyramid network.

    The levels `p2`..`p5`, finest first, are the outputs of the submodule `fpn`; their layer addresses are `fpn[p2]` to
    `fpn[p5]`.
    Every level takes part in the prediction, so that each has a gradient.

    Args:
        backbone: name of a timm model with features at reductions 4, 8, 16 and 32.
        num_classes: number of classes K, at least 1.
        channels: channels of every pyramid level.
        head: "mean": each level is averaged over space and classified by a linear layer of its own, and the logits are
            averaged; "concat": the averaged levels are concatenated and classified by one linear layer.
        pretrained: take the backbone's weights from timm (this downloads).

    Raises:
        ModelError: the backbone is unknown or lacks one of the reductions; the head is unknown.

    Reference:
        Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3.

    Example:
        >>> model = FPNClassifier("mobilenetv2_035", num_classes=10, channels=32).eval()
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> [tuple(level.shape[1:]) for level in model.pyramid(torch.zeros(2, 3, 64, 64)).values()]
        [(32, 16, 16), (32, 8, 8), (32, 4, 4), (32, 2, 2)]
    """

    def __init__(
        self, backbone: str, num_classes: int, channels: int = 128, head: Head = "mean", pretrained: bool = False
    ) -> None:
        super().__init__()
        if head not in get_args(Head):
            raise ModelError(f"no head {head!r} of an FPNClassifier; {choose_from(head, get_args(Head))}")
        self.backbone, widths = _pyramid_backbone(backbone, pretrained)
        self.fpn = FeaturePyramidNetwork(widths, channels)
        if head == "mean":
            self.classifiers = nn.ModuleDict({level: nn.Linear(channels, num_classes) for level in LEVELS})
        else:
            self.classifier = nn.Linear(channels * len(LEVELS), num_classes)
        self.head = head

    def pyramid(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """The levels by name, finest first; level `p2` is `[N, channels, H / 4, W / 4]`."""
        features = self.backbone(images)
        if getattr(self.backbone, "output_fmt", Format.NCHW) == Format.NHWC:
            features = [maps.permute(0, 3, 1, 2) for maps in features]
        levels: dict[str, Tensor] = self.fpn(OrderedDict(zip(LEVELS, features, strict=True)))
        return levels

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits of a batch of normalised images."""
        pooled = {level: maps.mean(dim=(2, 3)) for level, maps in self.pyramid(images).items()}
        if self.head == "concat":
            logits: Tensor = self.classifier(torch.cat(list(pooled.values()), dim=1))
            return logits
        return torch.stack([self.classifiers[level](vector) for level, vector in pooled.items()]).mean(dim=0)


def _pyramid_backbone(name: str, pretrained: bool) -> tuple[nn.Module, list[int]]:
    """A timm feature extractor for the reductions of `LEVELS`, and the channels of its outputs."""
    if not timm.is_model(name):
        raise ModelError(f"timm has no backbone {name!r}; see timm.list_models()")
    features: Any = timm.create_model(name, features_only=True)
    reductions = features.feature_info.reduction()
    missing = [r for r in LEVELS.values() if r not in reductions]
    if missing:
        raise ModelError(
            f"backbone {name!r} has features at reductions {reductions}, but a pyramid needs {list(LEVELS.values())}; "
            "take a backbone with four stages, such as 'resnet18' or 'mobilenetv2_100'"
        )
    indices = [len(reductions) - 1 - reductions[::-1].index(r) for r in LEVELS.values()]
    backbone: Any = timm.create_model(name, features_only=True, pretrained=pretrained, out_indices=indices)
    return backbone, backbone.feature_info.channels()
