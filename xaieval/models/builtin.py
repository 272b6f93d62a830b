"""Models that the package contains, with weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from xaieval.data.cues import Cue
from xaieval.data.scenes import CLASSES, classes_of
from xaieval.models.fpn import FPNClassifier

__all__ = ["CUE_NETWORK", "FPN_SCENES", "FPN_SCENES_WEIGHTS", "cue_scenes", "cue_weights", "fpn_scenes", "scenes_backbone"]

FPN_SCENES: dict[str, Any] = {
    "backbone": "test_resnet",
    "num_classes": len(CLASSES),
    "channels": 64,
    "head": "mean",
}
WEIGHTS = Path(__file__).with_name("weights")
FPN_SCENES_WEIGHTS = WEIGHTS / "fpn_scenes.safetensors"
CUE_NETWORK: dict[str, Any] = {"model_name": "test_resnet", "stem_width": 8, "channels": (16, 24, 32, 48)}


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
    """Weights of the backbone of `fpn_scenes`, by the names of the timm model "test_resnet".

    Example:
        >>> model = FPNClassifier("test_resnet", num_classes=10, channels=64, pretrained=scenes_backbone())
        >>> bool(model.head.classifiers["p2"].weight.any())  # a new head on a trained backbone starts at zero
        False
    """
    weights = load_file(FPN_SCENES_WEIGHTS)
    return {name.removeprefix("backbone."): tensor for name, tensor in weights.items() if name.startswith("backbone.")}


def cue_weights(cue: Cue) -> Path:
    """The file with the weights of `cue_scenes`."""
    return WEIGHTS / f"scenes_{cue}.safetensors"


def cue_scenes(cue: Cue, *, trained: bool = True) -> nn.Module:
    """A small ResNet that classifies scenes by a known cue, trained by `benchmarks/train_cue_models.py`.

    Its accuracy falls to chance without the cue, and stays with nothing but the cue, so the cause of its predictions is known.

    Args:
        cue: "watermark", "colour", "texture" or "object"; see `xaieval.data.cues`.
        trained: Whether to load the trained weights. Otherwise they are random.

    Raises:
        DataError: There is no such cue.

    Example:
        >>> import torch
        >>> cue_scenes("colour").eval()(torch.zeros(1, 3, 128, 128)).shape
        torch.Size([1, 4])
    """
    import timm

    model: nn.Module = timm.create_model(**CUE_NETWORK, num_classes=len(classes_of(cue)))
    if trained:
        model.load_state_dict(load_file(cue_weights(cue)))
    return model
