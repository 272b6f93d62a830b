"""Control maps that know nothing of the model: a method that does not beat them explains nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.explainers.base import Context

__all__ = ["CONTROLS", "Control", "center", "edges", "random", "uniform"]


@dataclass(frozen=True)
class Control:
    """A map of the image, its id and the seed alone."""

    name: str
    function: Callable[[Context], Tensor]
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    paper: str = "a control"
    passes: str = "0"

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`."""
        return self.function(context)


def random(context: Context) -> Tensor:
    """Independent uniform noise in each pixel; the seed and the image's id decide it, whatever batch the image is in."""
    size = context.images.shape[2:]
    maps = []
    for image_id in context.ids:
        digest = hashlib.sha256(f"{context.seed}:{image_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        maps.append(torch.rand(size, generator=generator))
    return torch.stack(maps).to(context.images.device)


def uniform(context: Context) -> Tensor:
    """Ones everywhere: a constant map, which protocols with normalisation turn into zeros, so all of the image is masked."""
    return torch.ones_like(context.images[:, 0])


def center(context: Context) -> Tensor:
    """A Gaussian in the middle of the image, its standard deviation a quarter of each side."""
    n, _, height, width = context.images.shape
    y, x = (torch.linspace(-2, 2, side, device=context.images.device) for side in (height, width))
    return torch.exp(-0.5 * (y[:, None] ** 2 + x**2)).expand(n, height, width)


def edges(context: Context) -> Tensor:
    """Strength of the image's edges: the magnitude of the Sobel gradient of its mean over channels."""
    grey = functional.pad(context.images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    sobel = grey.new_tensor([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    slopes = functional.conv2d(grey, torch.stack([sobel, sobel.T])[:, None])
    return slopes.norm(dim=1)


CONTROLS = (
    Control("random", random),
    Control("uniform", uniform),
    Control("center", center),
    Control("edges", edges),
)
