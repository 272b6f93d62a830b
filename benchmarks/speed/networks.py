"""The models, layers and images that the measurements share, the same for every library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from xaieval.data import Preprocessing, image_folder, scenes

__all__ = ["LAYERS", "METHODS", "NETWORKS", "Batches", "Network", "Scale", "build"]

Batches = list[tuple[Tensor, Tensor]]

METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam")  # those that several libraries have
SPREAD = 1.0  # standard deviation of a random classifier's logits over images: drops are neither all 0 nor all 1
HALF = (0.5, 0.5, 0.5)

RESNET = ("layer1", "layer2.1", "layer2", "layer3.1", "layer3.3", "layer3", "layer4.0", "layer4")
MOBILENET = (*(f"blocks.{index}" for index in range(7)), "bn2")
VIT = tuple(f"blocks.{index}.norm1" for index in (1, 2, 4, 5, 7, 8, 10, 11))

# By number of layers; each holds the ones before it.
LAYERS = {
    "resnet50": {1: ("layer4",), 4: ("layer1", "layer2", "layer3", "layer4"), 8: RESNET},
    "mobilenetv2": {1: ("blocks.6",), 4: ("blocks.2", "blocks.4", "blocks.5", "blocks.6"), 8: MOBILENET},
    "vit_small": {1: VIT[-1:], 4: VIT[1::2], 8: VIT},
}
NETWORKS = tuple(LAYERS)


@dataclass(frozen=True)
class Scale:
    """How large the measurements are.

    Attributes:
        side: of the images, in pixels.
        pool: number of different images.
        quick: tiny settings that show that everything works; their numbers mean nothing.
    """

    side: int = 224
    pool: int = 64
    quick: bool = False


@dataclass(frozen=True)
class Network:
    """A model in eval mode with images, and the class that every library is asked about.

    Attributes:
        name: one of `NETWORKS`.
        model: parameters require gradients, as a user's model does.
        images: `[N, 3, side, side]`, normalised.
        targets: the predicted classes, `[N]`, fixed here once.
        reshape: from tokens to maps, for libraries that are to be told; None for convolutional networks.
        weights: where the weights come from.
    """

    name: str
    model: nn.Module
    images: Tensor
    targets: Tensor
    reshape: Callable[[Tensor], Tensor] | None
    weights: str

    def layers(self, count: int) -> tuple[str, ...]:
        """So many layers, shallow ones first."""
        return LAYERS[self.name][count]

    def module(self, layer: str) -> nn.Module:
        """The module that is a layer."""
        return self.model.get_submodule(layer)

    def double(self) -> Network:
        """The same in float64."""
        return replace(self, model=deepcopy(self.model).double(), images=self.images.double())

    def batches(self, count: int, size: int) -> Batches:
        """The first `count` images with their classes, `size` at a time."""
        return list(zip(self.images[:count].split(size), self.targets[:count].split(size), strict=True))


def build(name: str, scale: Scale, images: Path | None, weights: Path | None, seed: int) -> Network:
    """A network with its images.

    Args:
        name: one of `NETWORKS`.
        scale: size and number of the images.
        images: a folder with one sub-folder a class; generated scenes unless told.
        weights: of MobileNetV2, safetensors; random unless told.
        seed: of random weights.
    """
    torch.manual_seed(seed)
    model = _model(name, scale.side)
    pictures = _images(images, scale, halves=name == "mobilenetv2")
    if name == "mobilenetv2" and weights is not None:
        model.load_state_dict(load_file(weights))
        origin = weights.name
    else:
        _settle(model, pictures)
        origin = f"random, seed {seed}"
    model.eval()
    with torch.no_grad():
        targets = torch.cat([model(part).argmax(dim=1) for part in pictures.split(8)])
    reshape = partial(_grid, side=scale.side // 16) if name == "vit_small" else None
    return Network(name, model, pictures, targets, reshape, origin)


def _model(name: str, side: int) -> nn.Module:
    if name == "resnet50":
        return torchvision.models.resnet50()
    if name == "mobilenetv2":
        return timm.create_model("mobilenetv2_100", pad_type="same")
    return timm.create_model("vit_small_patch16_224", img_size=side)


def _images(folder: Path | None, scale: Scale, halves: bool) -> Tensor:
    normal = {"mean": HALF, "std": HALF} if halves else {}
    prepare = Preprocessing(scale.side, scale.side, **normal)
    pictures = scenes(prepare, size=scale.pool) if folder is None else image_folder(folder, prepare).spread(scale.pool)
    return torch.stack([pictures[index]["image"] for index in range(len(pictures))])


def _settle(model: nn.Module, images: Tensor) -> None:
    """Make a random network one whose activations and confidences vary with the image, as a trained one's do.

    BatchNorm gets the statistics of the images. The classifier's logits get mean zero and a spread over the images, because
    otherwise one class wins on every image and the drops that are compared are all near nothing.
    """
    with torch.no_grad():
        with _averaging(model):
            for part in images.split(16):
                model(part)
        model.eval()
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        logits = torch.cat([model(part) for part in images.split(16)])
        gain = SPREAD / logits.std(dim=0).mean()
        head.weight.mul_(gain)
        head.bias.copy_(gain * (head.bias - logits.mean(dim=0)))


@contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    """Training mode, with the statistics of BatchNorm averaged over all batches that follow."""
    norms = [(module, module.momentum) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    model.train()
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum


def _grid(tokens: Tensor, side: int) -> Tensor:
    """Tokens `[N, 1 + side^2, C]` as maps `[N, C, side, side]`, without the class token."""
    return tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
