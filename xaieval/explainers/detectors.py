"""Methods made for detectors: D-RISE, and two maps of a layer that stay on one object; D-CLOSE and G-CAME have their own
modules. They explain the detection of the task, and refuse models that are not detectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, check_detector
from xaieval.explainers.dclose import DCLOSE
from xaieval.explainers.gcame import GCAME
from xaieval.explainers.perturbation import check_masks, mean_of_masks

__all__ = ["DETECTORS", "DRISE", "ODAM", "SSGradCAM", "smoothed", "spatial_grad_cam"]


@dataclass(frozen=True)
class DRISE:
    """D-RISE: the mean of random masks, each weighted by how well the detections on the masked image match the explained one.

    The weight of a mask is that of the best match: the product of the boxes' intersection over union, the cosine similarity of
    the class probabilities and the objectness. The masks are those of RISE.

    Detectors of torchvision give the score of one class for each box, neither all probabilities nor the objectness. The
    probability is then taken as 1 for the class of the box, and the score as the objectness, so that the weight is the largest
    product of the intersection over union and the score, among boxes of the same class. Detectors of transformers give all
    probabilities, and so do those of ultralytics, with the score as the objectness; those of another model are found by
    `xaieval.inference.tasks.Detection(output=)`.

    Args:
        n_masks: Number of masks; the noise of a map falls with its square root.
        grid: Cells along each side.
        probability: Probability, in (0, 1), that a cell is visible.

    Raises:
        ExplainerError: A number is out of range; when called: the model is no detector.

    Reference:
        Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps", CVPR 2021 (arXiv 2006.03204), section 3,
        and section 4 for the numbers. As in RISE, maps are divided by the number of masks and the probability.

    Example:
        A detector of one box whose score is the brightness of the left half of the image:

        >>> import xaieval
        >>> def detector(images):
        ...     box, label = torch.tensor([[0.0, 0.0, 8.0, 16.0]]), torch.tensor([1])
        ...     return [{"boxes": box, "labels": label, "scores": image[:, :, :8].mean()[None]} for image in images]
        >>> maps = xaieval.explain(detector, torch.ones(1, 3, 16, 16), method=DRISE(200, grid=4), task="detection")["input"][0]
        >>> bool(maps[:, :8].mean() > 1.2 * maps[:, 8:].mean())
        True
    """

    n_masks: int = 5000
    grid: int = 16
    probability: float = 0.5
    name: str = "d-rise"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    paper: str = "Petsiuk et al. 2021, arXiv 2006.03204"

    def __post_init__(self) -> None:
        check_masks(self)

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return f"{self.n_masks}, 1 per mask"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, H, W]`."""
        check_detector(context, self.name, "rise")
        return mean_of_masks(context, self, "similarity")


@dataclass(frozen=True)
class ODAM:
    """ODAM: `relu(sum_k S(G_k) * A_k)`, the gradient of one detection's score at each cell, smoothed, times the activation.

    Means over cells, as in Grad-CAM, would spread the object's weights over all objects of the layer.

    Args:
        smoothing: Standard deviation, in cells, of the Gaussian that smooths the gradients; 0 for none, as in the scripts that
            the authors published, where the map is that of `hirescam`.

    Raises:
        ExplainerError: The smoothing is negative; when called: the model is no detector.

    Reference:
        Zhao and Chan, "ODAM: Gradient-based Instance-Specific Visual Explanations for Object Detection", ICLR 2023 (arXiv
        2304.06354), section 3. Explained is the score of the class, not the coordinates of the box. That the smoothing is a
        Gaussian of one cell is a choice made here.

    Example:
        >>> import xaieval
        >>> layer = torch.nn.Conv2d(3, 4, 3, padding=1)
        >>> class Detector(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = layer
        ...
        ...     def forward(self, images):
        ...         box, label = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([1])
        ...         scores = self.layer(images)[:, :, :4, :4].mean(dim=(1, 2, 3)).sigmoid()
        ...         return [{"boxes": box, "labels": label, "scores": score[None]} for score in scores]
        >>> xaieval.explain(Detector(), torch.rand(2, 3, 8, 8), "layer", ODAM(), task="detection")["layer"].shape
        torch.Size([2, 8, 8])
    """

    smoothing: float = 1.0
    name: str = "odam"
    needs_layer: bool = True
    needs_gradient: bool = True
    needs_model: bool = False
    passes: str = "1, shared"
    paper: str = "Zhao and Chan 2023, arXiv 2304.06354"

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < math.inf:
            raise ExplainerError(f"method 'odam' takes a smoothing of 0 or more cells, got {self.smoothing}")

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        check_detector(context, self.name, "hirescam")
        activation: Any = context.activation
        gradient: Any = context.gradient
        return (smoothed(gradient, self.smoothing) * activation).sum(dim=1).clamp(min=0)


@dataclass(frozen=True)
class SSGradCAM:
    """SSGrad-CAM: Grad-CAM of one detection, each channel weighted at each cell by the size of the gradient there.

    Raises:
        ExplainerError: When called: the model is no detector.

    Reference:
        Yamauchi and Ishikawa, "Spatial Sensitive Grad-CAM: Visual Explanations for Object Detection by Incorporating Spatial
        Sensitivity", ICIP 2022. The maps of several layers, which it adds up, stay apart.

    Example:
        >>> SSGradCAM().passes
        '1, shared'
    """

    name: str = "ssgrad-cam"
    needs_layer: bool = True
    needs_gradient: bool = True
    needs_model: bool = False
    passes: str = "1, shared"
    paper: str = "Yamauchi and Ishikawa 2022, ICIP"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        check_detector(context, self.name, "gradcam")
        activation: Any = context.activation
        gradient: Any = context.gradient
        return spatial_grad_cam(activation, gradient)


DETECTORS = (DRISE(), DCLOSE(), ODAM(), SSGradCAM(), GCAME())


def smoothed(maps: Tensor, sigma: float) -> Tensor:
    """Maps `[N, C, h, w]` smoothed by a Gaussian along each axis; zeros lie around them.

    Args:
        maps: The maps; for volumes with one more axis.
        sigma: Standard deviation in cells; 0 for none. The Gaussian is cut off at 3 of them, and its sum is 1.

    Example:
        >>> smoothed(torch.tensor([[[[0.0, 1.0, 0.0]]]]), 0.3)
        tensor([[[[0.0038, 0.9847, 0.0038]]]])
    """
    radius = math.ceil(3 * sigma)
    if radius == 0:
        return maps
    places = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    weights = (-0.5 * (places / sigma).square()).exp()
    weights = weights / weights.sum()
    for axis in range(2, maps.ndim):
        lines = maps.movedim(axis, -1)
        found = functional.conv1d(lines.reshape(-1, 1, lines.shape[-1]), weights[None, None], padding=radius)
        maps = found.view(lines.shape).movedim(-1, axis)
    return maps


def spatial_grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """`relu(sum_k mean_ij(G_k) * |G_k| / max_ij |G_k| * A_k)`; channels without a gradient add nothing.

    Args:
        activation: Of the layer, `[N, C, h, w]`; for volumes with one more axis.
        gradient: There, of the same shape.

    Returns:
        Raw maps `[N, h, w]`.

    Reference:
        Yamauchi and Ishikawa, "Spatial Sensitive Grad-CAM", ICIP 2022.

    Example:
        >>> spatial_grad_cam(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.5, 1.5]]]]))
        tensor([[[0.3333, 2.0000]]])
    """
    cells = tuple(range(2, gradient.ndim))
    size = gradient.abs()
    highest = size.amax(dim=cells, keepdim=True)
    weights = gradient.mean(dim=cells, keepdim=True) * size / torch.where(highest == 0, 1, highest)
    return (weights * activation).sum(dim=1).clamp(min=0)
