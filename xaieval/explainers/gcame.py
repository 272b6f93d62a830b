"""G-CAME: a class activation map of one detection, each channel weighted by a Gaussian around its largest gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xaieval.explainers.base import Context, check_detector, size_of_images

__all__ = ["GCAME", "gaussian_cam"]


@dataclass(frozen=True)
class GCAME:
    """G-CAME: Grad-CAM of one detection, each channel weighted by a Gaussian around the cell of its largest gradient.

    The formula is that of `gaussian_cam`. It is made for the layers that predict boxes, such as the last convolutions before
    the outputs of YOLOX. There the gradient of a box is at one cell; farther from the outputs it is at many cells.

    Raises:
        ExplainerError: When called: the model is no detector, or the images are volumes.

    Reference:
        Nguyen et al., "G-CAME: Gaussian-Class Activation Mapping Explainer for Object Detectors" (arXiv 2306.03400), section 3,
        and the authors' scripts. Negative parts are cut off at the layer's size, where the scripts resize the channels first.
        The Gaussian is centred at the cell itself, which is one beside it in the scripts; and the positive and the negative
        gradients of a channel are not treated apart, as in their script for YOLOX, and other than in that for Faster R-CNN.

    Example:
        >>> GCAME().passes
        '1, shared'
    """

    name: str = "g-came"
    needs_layer: bool = True
    needs_gradient: bool = True
    needs_model: bool = False
    passes: str = "1, shared"
    paper: str = "Nguyen et al. 2023, arXiv 2306.03400"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        check_detector(context, self.name, "gradcam")
        size = size_of_images(context, self.name)
        activation: Any = context.activation
        gradient: Any = context.gradient
        return gaussian_cam(activation, gradient, math.sqrt(math.prod(size) / math.prod(activation.shape[2:])))


def gaussian_cam(activation: Tensor, gradient: Tensor, stride: float) -> Tensor:
    """`relu(sum_k g_k * M_k * A_k)` with `g_k = mean_ij(G_k)` and `M_k` a Gaussian around the cell of the largest `|G_k|`.

    Its standard deviation in cells is `|log |g_k|| * log(stride) * 3 / floor((sqrt(h * w) - 1) / 2)`, but at least 1. It is
    scaled to [0, 1] over the layer.

    Args:
        activation: Of the layer, `[N, C, h, w]`.
        gradient: There, of the same shape.
        stride: Pixels of the image in a cell's side.

    Returns:
        Raw maps `[N, h, w]`.

    Reference:
        Nguyen et al., "G-CAME" (arXiv 2306.03400), section 3; see `GCAME`.

    Example:
        >>> gradient = torch.zeros(1, 1, 3, 3)
        >>> gradient[..., 1, 1] = 9.0
        >>> gaussian_cam(torch.ones(1, 1, 3, 3), gradient, stride=8)[0].round(decimals=2)
        tensor([[0.0000, 0.3800, 0.0000],
                [0.3800, 1.0000, 0.3800],
                [0.0000, 0.3800, 0.0000]])
    """
    height, width = gradient.shape[2:]
    mean = gradient.mean(dim=(2, 3))
    peak = gradient.abs().flatten(2).argmax(dim=2)
    radius = max(math.floor((math.sqrt(height * width) - 1) / 2), 1)
    size = mean.abs().clamp(min=torch.finfo(mean.dtype).tiny).log().abs()
    sigma = (size * abs(math.log(stride)) * 3 / radius).clamp(min=1)[..., None, None]
    rows, columns = (torch.arange(side, device=mean.device, dtype=mean.dtype) for side in (height, width))
    down, right = rows - (peak // width)[..., None], columns - (peak % width)[..., None]
    gaussian = (-(down.square()[..., :, None] + right.square()[..., None, :]) / (2 * sigma.square())).exp()
    low = gaussian.amin(dim=(2, 3), keepdim=True)
    gaussian = torch.where(low < 1, (gaussian - low) / (1 - low), gaussian)
    return (mean[..., None, None] * gaussian * activation).sum(dim=1).clamp(min=0)
