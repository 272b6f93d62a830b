"""Control maps, which do not depend on the model. A method has to beat them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.explainers.base import Context

__all__ = ["CONTROLS", "Control", "center", "edges", "fake_cam", "random", "uniform"]


@dataclass(frozen=True)
class Control:
    """A map that depends only on the image, its id and the seed."""

    name: str
    function: Callable[[Context], Tensor]
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    paper: str = "a control"
    passes: str = "0"

    def __call__(self, context: Context) -> Tensor:
        """Maps `[N, H, W]`; for volumes `[N, D, H, W]`."""
        return self.function(context)


def random(context: Context) -> Tensor:
    """Independent uniform noise in each pixel, drawn with the seed and the image's id, so batches do not matter."""
    return context.draw(context.images.shape[2:])


def uniform(context: Context) -> Tensor:
    """Zeros everywhere: a constant map, which masks the whole image whatever the normalisation.

    Ones would do the same under min-max, but a map that is divided by its maximum, or not normalised, would keep them, and with
    them the whole image: that is what `fake_cam` is for.
    """
    return torch.zeros_like(context.images[:, 0])


def center(context: Context) -> Tensor:
    """A Gaussian at the centre of the image, with a standard deviation of a quarter of each side."""
    sides = context.images.shape[2:]
    places = torch.meshgrid(*(torch.linspace(-2, 2, side, device=context.images.device) for side in sides), indexing="ij")
    return torch.exp(-0.5 * torch.stack(places).square().sum(dim=0)).expand(len(context.images), *sides)


def edges(context: Context) -> Tensor:
    """The magnitude of the Sobel gradient of the image's mean over channels."""
    axes = context.images.ndim - 2
    grey = functional.pad(context.images.mean(dim=1, keepdim=True), (1, 1) * axes, mode="replicate")
    slope, smooth = grey.new_tensor([1, 0, -1]), grey.new_tensor([1, 2, 1])
    # The Sobel kernel of an axis differentiates along this axis and smooths along the others.
    kernels = [reduce(_outer, [slope if axis == other else smooth for other in range(axes)]) for axis in range(axes)]
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[axes]
    return convolve(grey, torch.stack(kernels)[:, None]).norm(dim=1)


def fake_cam(context: Context) -> Tensor:
    """Ones everywhere except the first (upper left) pixel, which is 0.

    Unlike a map of ones, it is not changed by min-max normalisation, so the masked image differs from the image in one pixel:
    Average Drop is nearly 0 although the map points at nothing.

    Reference:
        Poppi et al., "Revisiting the Evaluation of Class Activation Mapping for Explainability", CVPR Workshops 2021
        (arXiv 2104.10252), where it is called Fake-CAM.
    """
    images = context.images
    maps = images.new_ones(len(images), *images.shape[2:])
    maps.view(len(maps), -1)[:, 0] = 0
    return maps


def _outer(first: Tensor, second: Tensor) -> Tensor:
    return first[..., None] * second


CONTROLS = (
    Control("random", random),
    Control("uniform", uniform),
    Control("center", center),
    Control("edges", edges),
    Control("fake-cam", fake_cam, paper="Poppi et al. 2021, arXiv 2104.10252"),
)
