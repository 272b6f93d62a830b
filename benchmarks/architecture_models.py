"""Models of several libraries with random weights, as `architectures.py` checks them. No weights are downloaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torchvision
from architecture_cases import Case
from torch import Tensor, nn

from xaieval.models import load_model

__all__ = ["SOURCES", "build", "normalised"]


class Headed(nn.Module):
    """A backbone that returns a list of feature maps, with a classifier on the last one."""

    def __init__(self, backbone: nn.Module, channels: int, channels_last: bool) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(channels, 10)
        self.axes = (1, 2) if channels_last else (2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        logits: Tensor = self.head(self.backbone(images)[-1].mean(dim=self.axes))
        return logits


def build(case: Case, images: Tensor) -> nn.Module:
    """The model of a case, with random weights from a fixed seed.

    The statistics of BatchNorm are those of the images; otherwise deep layers would hardly depend on the image.
    """
    torch.manual_seed(0)
    source, name = case.name.split(":")
    return normalised(SOURCES[source](name, **case.arguments).eval(), images)


def normalised(model: nn.Module, images: Tensor) -> nn.Module:
    """The model with the statistics of its BatchNorms set to those of the images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _torchvision(name: str, **arguments: Any) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    return model


def _features(name: str, **arguments: Any) -> nn.Module:
    backbone = timm.create_model(name, features_only=True, **arguments)
    return Headed(backbone, backbone.feature_info.channels()[-1], "swin" in name)


def _transformers(name: str, **arguments: Any) -> nn.Module:
    import transformers

    kind = getattr(transformers, name)
    if arguments.get("backbone_config") in BACKBONES:
        config, settings = BACKBONES[arguments["backbone_config"]]
        arguments["backbone_config"] = getattr(transformers, config)(**settings)
    model: nn.Module = kind(kind.config_class(**arguments))
    return model


def _smp(name: str, **arguments: Any) -> nn.Module:
    import segmentation_models_pytorch as smp

    model: nn.Module = getattr(smp, name)(encoder_weights=None, **arguments)
    return model


def _monai(name: str, **arguments: Any) -> nn.Module:
    from monai.networks import nets

    model: nn.Module = getattr(nets, name)(**arguments)
    return model


def _open_clip(name: str, **arguments: Any) -> nn.Module:
    """The image tower, whose embedding takes the place of logits."""
    import open_clip

    model: nn.Module = open_clip.create_model(name, pretrained=None, **arguments).visual
    return model


def _torchgeo(name: str, **arguments: Any) -> nn.Module:
    from torchgeo import models

    model: nn.Module = getattr(models, name)(**arguments)
    return model


def _ultralytics(name: str, **arguments: Any) -> nn.Module:
    return load_model(f"ultralytics:{name}.yaml", model_args=arguments).model


BACKBONES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "resnet": (
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1] * 4, "layer_type": "basic"}
        | {"out_features": ["stage2", "stage3", "stage4"]},
    ),
    "swin": (
        "SwinConfig",
        {"embed_dim": 24, "depths": [1] * 4, "num_heads": [1, 2, 3, 4], "window_size": 2}
        | {"out_features": ["stage1", "stage2", "stage3", "stage4"]},
    ),
}

SOURCES: Mapping[str, Callable[..., nn.Module]] = {
    "timm": timm.create_model,
    "features": _features,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "smp": _smp,
    "monai": _monai,
    "open_clip": _open_clip,
    "torchgeo": _torchgeo,
    "ultralytics": _ultralytics,
}
