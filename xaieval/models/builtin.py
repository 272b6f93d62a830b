"""Models that the package contains, with weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from xaieval.data.scenes import CLASSES
from xaieval.models.fpn import FPNClassifier

__all__ = ["FPN_SCENES", "FPN_SCENES_WEIGHTS", "fpn_scenes", "scenes_backbone"]

FPN_SCENES: dict[str, Any] = {
    "backbone": "test_resnet",
    "num_classes": len(CLASSES),
    "channels": 64,
    "head": "mean",
}
FPN_SCENES_WEIGHTS = Path(__file__).with_name("weights") / "fpn_scenes.safetensors"


def fpn_scenes(*, trained: bool = True) -> FPNClassifier:
    """The small FPN classifier for the data set `scenes`, trained by `benchmarks/train_fpn_scenes.py`.

    Args:
        trained: Whether to load the trained weights. Otherwise they are random.

    Example:
        >>> import torch
        >>> model = fpn_scenes().eval()
        >>> model(torch.zeros(1, 3, 128, 128)).shape
        torch.Size([1, 10])
    """
    model = FPNClassifier(**FPN_SCENES)
    if trained:
        model.load_state_dict(load_file(FPN_SCENES_WEIGHTS))
    return model


def scenes_backbone() -> dict[str, Tensor]:
    """Weights of the backbone of `fpn_scenes`, by the names of the timm model."""
    weights = load_file(FPN_SCENES_WEIGHTS)
    return {name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.")}
