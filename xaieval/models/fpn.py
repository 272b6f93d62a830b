"""An image classifier on a feature pyramid whose levels can be probed separately."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from xaieval.errors import ModelError, choose_from
from xaieval.models.weights import check_fit, read_weights, tensors_only

__all__ = [
    "LEVELS",
    "FPNClassifier",
    "Head",
    "LevelHead",
    "Pretrained",
    "channels_last",
    "classifier_names",
    "create_backbone",
    "pyramid_backbone",
    "stages",
]

Head = Literal["mean", "concat"]
Pretrained = bool | str | Path | Mapping[str, Tensor]

LEVELS = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # pyramid level -> factor by which its sides are smaller than the image's


class FPNClassifier(nn.Module):
    """An image classifier that pools every level of a feature pyramid network.

    The levels `p2` to `p5`, finest first, are the outputs of the submodule `fpn`. Their layer addresses are `fpn[p2]` to
    `fpn[p5]`, or `levels[p2]` to `levels[p5]` for the input of the head (the same tensors here; after the attention in `FAL`).
    Every level contributes to the prediction, so each has a gradient.

    Args:
        backbone: The name of a timm model with features at reductions 4, 8, 16 and 32.
        num_classes: The number of classes K, at least 1.
        channels: The number of channels of every pyramid level.
        head: "mean": each level is averaged over space and classified by its own linear layer, and the logits are averaged;
            "concat": the averaged levels are concatenated and classified by one linear layer.
        pretrained: The weights of the backbone: True for timm's own (downloads them), a path to a weights file of the timm
            model, or a mapping with its tensors. The head then starts at zero: random weights would damage the backbone.
        backbone_args: Further arguments of the timm model, such as `{"pad_type": "same"}`.

    Raises:
        ModelError: The backbone is unknown or lacks one of the reductions, or the head is unknown.
        WeightsError: The file cannot be read, or belongs to another backbone.

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
        self,
        backbone: str,
        num_classes: int,
        channels: int = 128,
        head: Head = "mean",
        pretrained: Pretrained = False,
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "num_classes": num_classes,
            "channels": channels,
            "head": head,
            "backbone_args": dict(backbone_args or {}),
        }
        self.backbone, widths = pyramid_backbone(backbone, pretrained, backbone_args)
        self.fpn = FeaturePyramidNetwork(widths, channels)
        self.levels = nn.Identity()  # so that the input of the head has layer addresses
        self.head = LevelHead(head, channels, num_classes, start_at_zero=pretrained is not False)

    def pyramid(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Pyramid levels by name, finest first; `p2` is `[N, channels, H / 4, W / 4]`."""
        levels: dict[str, Tensor] = self.fpn(stages(self.backbone, images))
        return levels

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits of a batch of normalised images."""
        logits: Tensor = self.head(self.levels(self.pyramid(images)))
        return logits


class LevelHead(nn.Module):
    """Classifier on all levels of a pyramid, each averaged over space.

    Args:
        kind: "mean" of one linear classifier per level, or one linear classifier on the "concat" of all levels.
        channels: The number of channels of each level.
        num_classes: The number of classes K.
        start_at_zero: Start with zero weights, for a head on a trained backbone.

    Raises:
        ModelError: The kind is unknown.
    """

    def __init__(self, kind: Head, channels: int, num_classes: int, start_at_zero: bool = False) -> None:
        super().__init__()
        if kind not in get_args(Head):
            raise ModelError(f"no head {kind!r} of an FPNClassifier; {choose_from(kind, get_args(Head))}")
        if kind == "mean":
            self.classifiers = nn.ModuleDict({level: nn.Linear(channels, num_classes) for level in LEVELS})
        else:
            self.classifier = nn.Linear(channels * len(LEVELS), num_classes)
        self.kind = kind
        if start_at_zero:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, levels: Mapping[str, Tensor]) -> Float[Tensor, "n k"]:
        """Logits from the levels `[N, channels, h, w]`."""
        pooled = {level: maps.mean(dim=(2, 3)) for level, maps in levels.items()}
        if self.kind == "concat":
            logits: Tensor = self.classifier(torch.cat(list(pooled.values()), dim=1))
            return logits
        return torch.stack([self.classifiers[level](vector) for level, vector in pooled.items()]).mean(dim=0)


def stages(backbone: nn.Module, images: Float[Tensor, "n 3 h w"]) -> OrderedDict[str, Tensor]:
    """Features of a pyramid's backbone, `[N, C, h, w]`, by the name of their level."""
    features = backbone(images)
    if channels_last(backbone):
        features = [maps.permute(0, 3, 1, 2) for maps in features]
    return OrderedDict(zip(LEVELS, features, strict=True))


def channels_last(backbone: nn.Module) -> bool:
    """Whether the features of a timm extractor are `[N, h, w, C]`, as those of Swin are."""
    return bool(getattr(backbone, "output_fmt", "NCHW") == "NHWC")


def pyramid_backbone(
    name: str, pretrained: Pretrained = False, arguments: Mapping[str, Any] | None = None
) -> tuple[nn.Module, list[int]]:
    """A timm feature extractor for the reductions of `LEVELS`, and the numbers of channels of its outputs.

    Raises:
        ModelError: timm has no such model, or the model lacks one of the reductions.
        WeightsError: The weights belong to another model.
    """
    features: Any = create_backbone(name, False, arguments, features_only=True)
    reductions = features.feature_info.reduction()
    missing = [r for r in LEVELS.values() if r not in reductions]
    if missing:
        raise ModelError(
            f"backbone {name!r} has features at reductions {reductions}, but a pyramid needs {list(LEVELS.values())}; "
            "take a backbone with four stages, such as 'resnet18' or 'mobilenetv2_100'"
        )
    indices = [len(reductions) - 1 - reductions[::-1].index(r) for r in LEVELS.values()]
    backbone: Any = create_backbone(name, pretrained, arguments, features_only=True, out_indices=indices)
    return backbone, backbone.feature_info.channels()


def classifier_names(model: Any) -> list[str]:
    """Names of the classifier modules of a timm model: one, or two if the model has a second head for distillation."""
    names = model.pretrained_cfg.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def create_backbone(name: str, pretrained: Pretrained, arguments: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """A timm model with the weights that `pretrained` describes (see `FPNClassifier`).

    Raises:
        ModelError: timm has no such model, or the model does not take the arguments.
        WeightsError: The weights belong to another model.
    """
    import timm  # which takes long, and which models of other libraries do not need

    if not timm.is_model(name):
        raise ModelError(f"timm has no backbone {name!r}; see timm.list_models()")
    settings = dict(arguments or {})
    try:
        with tensors_only(f"backbone {name!r}"):
            if isinstance(pretrained, bool):
                return timm.create_model(name, pretrained=pretrained, **settings, **more)
            plain: Any = timm.create_model(name, **settings)
            model: Any = timm.create_model(name, **settings, **more)
    except (TypeError, RuntimeError) as error:
        raise ModelError(f"backbone {name!r} cannot be built with {settings}: {error}") from error
    tensors = dict(pretrained) if isinstance(pretrained, Mapping) else read_weights(pretrained)
    source = "the mapping" if isinstance(pretrained, Mapping) else f"'{Path(pretrained).name}'"
    classifier = tuple(f"{name}." for name in classifier_names(plain))  # with the dot, so that fc does not match fc_norm
    body = {key: tensor for key, tensor in tensors.items() if not key.startswith(classifier)}
    wanted = {key: tensor for key, tensor in plain.state_dict().items() if not key.startswith(classifier)}
    check_fit(body, wanted, source, f"backbone {name!r}")
    plain.load_state_dict(body, strict=False)
    weights = plain.state_dict()
    if model.state_dict().keys() <= weights.keys():
        model.load_state_dict({key: weights[key] for key in model.state_dict()})
        return model
    # Some feature extractors rename the weights; timm translates the names if it receives the weights of the plain model.
    overlay = {"state_dict": weights, "num_classes": plain.num_classes}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **settings, **more)
