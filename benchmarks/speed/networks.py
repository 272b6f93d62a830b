"""Models, layers and images of the measurements, the same for every library."""

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

__all__ = ["GREY", "LAYERS", "METHODS", "NETWORKS", "Batches", "Network", "Scale", "build"]

Batches = list[tuple[Tensor, Tensor]]

METHODS = ("gradcam", "gradcam++", "xgradcam", "layercam")  # methods that several libraries have
SPREAD = 1.0  # standard deviation of a random classifier's logits over images, so that drops are neither all 0 nor all 1
HALF = (0.5, 0.5, 0.5)

RESNET = ("layer1", "layer2.1", "layer2", "layer3.1", "layer3.3", "layer3", "layer4.0", "layer4")
MOBILENET = (*(f"blocks.{index}" for index in range(7)), "bn2")
VIT = tuple(f"blocks.{index}.norm1" for index in (1, 2, 4, 5, 7, 8, 10, 11))

# By number of layers; each set contains the smaller ones.
LAYERS = {
    "resnet50": {1: ("layer4",), 4: ("layer1", "layer2", "layer3", "layer4"), 8: RESNET},
    "mobilenetv2": {1: ("blocks.6",), 4: ("blocks.2", "blocks.4", "blocks.5", "blocks.6"), 8: MOBILENET},
    "vit_small": {1: VIT[-1:], 4: VIT[1::2], 8: VIT},
    "resnet18": {1: ("layer4",)},
    "vit_tiny": {1: VIT[-1:]},
}
NETWORKS = ("resnet50", "mobilenetv2", "vit_small")
GREY = ("resnet18", "vit_tiny")  # of images with one channel, for the comparison of metrics


@dataclass(frozen=True)
class Scale:
    """Size of the measurements, and the device they run on.

    Attributes:
        side: Side of the images in pixels.
        pool: Number of different images.
        quick: Tiny settings that test the scripts; their numbers mean nothing.
        device: Device of the model and the images.
    """

    side: int = 224
    pool: int = 64
    quick: bool = False
    device: str = "cpu"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Images in a batch, from which each library takes those with which it is fastest."""
        return (1, 4) if self.quick else (1, 8, 32) if self.device == "cpu" else (8, 32, 128)

    @property
    def more(self) -> int:
        """How many times as many images a measurement has as on a CPU."""
        return 1 if self.quick or self.device == "cpu" else 8


@dataclass(frozen=True)
class Network:
    """A model in eval mode with images and target classes.

    Attributes:
        name: One of `NETWORKS` or `GREY`.
        model: The model; its parameters require gradients, as those of a user's model.
        images: Normalised images `[N, 3, side, side]`; of one channel for networks of `GREY`.
        targets: The predicted classes `[N]`, computed once.
        reshape: Function from tokens to maps, for libraries that need it; None for convolutional networks.
        weights: Source of the weights.
    """

    name: str
    model: nn.Module
    images: Tensor
    targets: Tensor
    reshape: Callable[[Tensor], Tensor] | None
    weights: str

    def layers(self, count: int) -> tuple[str, ...]:
        """Addresses of `count` layers, shallow ones first."""
        return LAYERS[self.name][count]

    def module(self, layer: str) -> nn.Module:
        """The module of a layer."""
        return self.model.get_submodule(layer)

    def double(self) -> Network:
        """The same network in float64."""
        return replace(self, model=deepcopy(self.model).double(), images=self.images.double())

    def batches(self, count: int, size: int) -> Batches:
        """The first `count` images with their classes, `size` at a time."""
        return list(zip(self.images[:count].split(size), self.targets[:count].split(size), strict=True))


def build(name: str, scale: Scale, images: Path | None, weights: Path | None, seed: int) -> Network:
    """A network with its images.

    Args:
        name: One of `NETWORKS` or `GREY`.
        scale: Size and number of the images.
        images: Folder with one sub-folder per class. Default: generated scenes.
        weights: Weights file of MobileNetV2, safetensors. Default: random weights.
        seed: Seed of random weights.
    """
    torch.manual_seed(seed)
    model = _model(name, scale.side)
    pictures = _images(images, scale, halves=name == "mobilenetv2")
    pictures = pictures.mean(dim=1, keepdim=True) if name in GREY else pictures
    if name == "mobilenetv2" and weights is not None:
        model.load_state_dict(load_file(weights))
        origin = weights.name
    else:
        _settle(model, pictures)
        origin = f"random, seed {seed}"
    model.eval()
    with torch.no_grad():
        targets = torch.cat([model(part).argmax(dim=1) for part in pictures.split(8)])
    reshape = partial(_grid, side=scale.side // 16) if name.startswith("vit") else None
    return Network(name, model.to(scale.device), pictures.to(scale.device), targets.to(scale.device), reshape, origin)


def _model(name: str, side: int) -> nn.Module:
    if name == "resnet50":
        return torchvision.models.resnet50()
    if name == "mobilenetv2":
        return timm.create_model("mobilenetv2_100", pad_type="same")
    if name == "resnet18":
        return timm.create_model("resnet18", in_chans=1)
    if name == "vit_tiny":
        return timm.create_model("vit_tiny_patch16_224", img_size=side, in_chans=1)
    return timm.create_model("vit_small_patch16_224", img_size=side)


def _images(folder: Path | None, scale: Scale, halves: bool) -> Tensor:
    normal = {"mean": HALF, "std": HALF} if halves else {}
    prepare = Preprocessing(scale.side, scale.side, **normal)
    pictures = scenes(prepare, size=scale.pool) if folder is None else image_folder(folder, prepare).spread(scale.pool)
    return torch.stack([pictures[index]["image"] for index in range(len(pictures))])


def _settle(model: nn.Module, images: Tensor) -> None:
    """Adjust a random network so that activations and confidences vary with the image, as in a trained one.

    BatchNorm gets the statistics of the images. The logits get mean zero and a fixed spread over the images; otherwise one
    class would win on every image, and all drops would be near zero.
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
    """Training mode in which BatchNorm averages its statistics over all batches."""
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
