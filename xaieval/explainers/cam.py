"""The class activation mapping family: maps from the activation A and the gradient G at one layer.

Each method is a pure function of tensors `[N, C, h, w]` that returns raw maps `[N, h, w]`; in formulas k counts channels and
(i, j) cells. For volumes the tensors are `[N, C, d, h, w]` and the maps `[N, d, h, w]`: all axes after the channels are cells.
No denominator has an epsilon: where a formula is undefined, the map is NaN and its row gets a status.

To add a method, write its function here and add a `CAM` to `CAMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, check_compares
from xaieval.inference.one_output import two_sided

__all__ = [
    "CAM",
    "CAMS",
    "ClassifierCAM",
    "eigen_cam",
    "eigen_grad_cam",
    "element_wise_grad_cam",
    "grad_cam",
    "grad_cam_plus_plus",
    "hires_cam",
    "layer_cam",
    "xgrad_cam",
]

Maps = Float[Tensor, "n c *space"]
Map = Float[Tensor, " n *space"]


@dataclass(frozen=True)
class CAM:
    """A method that needs only the activation of a layer and, by default, the gradient there."""

    name: str
    function: Callable[..., Tensor]
    needs_gradient: bool = True
    needs_layer: bool = True
    needs_model: bool = False
    paper: str = ""
    passes: str = "1, shared"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        if self.needs_gradient:
            return self.function(context.activation, context.gradient)
        return self.function(context.activation)


def grad_cam(activation: Maps, gradient: Maps) -> Map:
    """Grad-CAM: `relu(sum_k mean_ij(G_k) A_k)`.

    Reference:
        Selvaraju et al., "Grad-CAM", ICCV 2017 (arXiv 1610.02391), eq. 1 and 2.

    Example:
        >>> grad_cam(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.5, 1.5]]]]))
        tensor([[[1., 2.]]])
    """
    return _weighted(_mean(gradient), activation)


def grad_cam_plus_plus(activation: Maps, gradient: Maps) -> Map:
    """Grad-CAM++: Grad-CAM with channel weights `sum_ij alpha_kij relu(G_kij)`.

    With the paper's exponential score, alpha is `G^2 / (2 G^2 + S G^3)`, where S is the sum of the channel's activations. That
    is `1 / (2 + S G)` where G is not 0; elsewhere relu(G) is 0 and alpha does not matter.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), eq. 19, and eq. 5 for the map.
    """
    total = _sum(activation, keepdim=True)
    positive = gradient.clamp(min=0)
    share = torch.where(positive == 0, 0, positive / (2 + total * positive))
    return _weighted(_sum(share), activation)


def xgrad_cam(activation: Maps, gradient: Maps) -> Map:
    """XGrad-CAM: Grad-CAM with channel weights `sum_ij G_kij A_kij / sum_ij A_kij`; channels of zeros have weight 0.

    Reference:
        Fu et al., "Axiom-based Grad-CAM", BMVC 2020 (arXiv 2008.02312), eq. 8.
    """
    total = _sum(activation)
    zero = (activation == 0).flatten(2).all(dim=2)
    weights = _sum(gradient * activation) / total
    return _weighted(weights.masked_fill(zero, 0), activation)


def hires_cam(activation: Maps, gradient: Maps) -> Map:
    """HiResCAM: `relu(sum_k G_k * A_k)`, an element-wise product.

    Reference:
        Draelos and Carin, "Use HiResCAM instead of Grad-CAM" (arXiv 2011.08891), eq. 5.
    """
    return (gradient * activation).sum(dim=1).clamp(min=0)


def element_wise_grad_cam(activation: Maps, gradient: Maps) -> Map:
    """Element-wise Grad-CAM: `sum_k relu(G_k * A_k)`.

    Reference:
        "GradCAMElementWise" of pytorch-grad-cam; there is no paper.
    """
    return (gradient * activation).clamp(min=0).sum(dim=1)


def layer_cam(activation: Maps, gradient: Maps) -> Map:
    """LayerCAM: `relu(sum_k relu(G_k) * A_k)`.

    Reference:
        Jiang et al., "LayerCAM", IEEE TIP 2021, eq. 7 and 8.
    """
    return (gradient.clamp(min=0) * activation).sum(dim=1).clamp(min=0)


def eigen_cam(activation: Maps) -> Map:
    """Eigen-CAM: the cells projected on the first principal component of the channels, positive part.

    The activations are centred per channel, as in pytorch-grad-cam. The sign of a principal component is arbitrary; here the
    map correlates with the mean activation of the cells.

    Reference:
        Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020 (arXiv 2008.00299), eq. 3 and 4.
    """
    return _principal(activation, activation.mean(dim=1))


def eigen_grad_cam(activation: Maps, gradient: Maps) -> Map:
    """Eigen-Grad-CAM: Eigen-CAM of `G * A`, with the sign for which the map correlates with the sum of `G * A` over channels.

    Reference:
        "EigenGradCAM" of pytorch-grad-cam; there is no paper.
    """
    weighted = gradient * activation
    return _principal(weighted, weighted.sum(dim=1))


@dataclass(frozen=True)
class ClassifierCAM:
    """The original CAM: channels weighted by the linear classifier after global average pooling; negative parts are kept.

    The classifier is the linear layer that gives the model's logits when it is applied to the pooled activation.

    Raises:
        ExplainerError: The layer is not followed by global average pooling and a linear classifier.

    Reference:
        Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, eq. 2.
    """

    name: str = "cam"
    needs_layer: bool = True
    needs_gradient: bool = False
    paper: str = "Zhou et al. 2016, CVPR"
    passes: str = "1, shared"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        activation: Any = context.activation
        check_compares(context, self.name, "take 'gradcam', which is the same map here but for its negative parts")
        pooled = _mean(activation)
        if context.logits is None:
            raise ExplainerError("method 'cam' explains only classifiers; method 'gradcam' explains any model")
        finite = context.logits.isfinite().all(dim=1)
        wanted = context.logits[finite]
        binary = getattr(context.task, "single", None) == "binary"
        for linear in _linear_layers(context.model, pooled.shape[1], 1 if binary else wanted.shape[1]):
            given = two_sided(linear(pooled[finite])) if binary else linear(pooled[finite])
            if (given - wanted).abs().le(1e-3 * wanted.abs().amax(dim=1, keepdim=True)).all():
                weight = two_sided(linear.weight.T).T if binary else linear.weight
                return torch.einsum("nc,nc...->n...", weight[context.targets], activation)
        raise ExplainerError(
            f"method 'cam' needs a layer that feeds global average pooling and then the linear classifier, and "
            f"'{context.layer}' does not: take the last layer before the pooling, or method 'gradcam'"
        )


CAMS = (
    CAM("gradcam", grad_cam, paper="Selvaraju et al. 2017, arXiv 1610.02391"),
    CAM("gradcam++", grad_cam_plus_plus, paper="Chattopadhay et al. 2018, arXiv 1710.11063"),
    CAM("xgradcam", xgrad_cam, paper="Fu et al. 2020, arXiv 2008.02312"),
    CAM("hirescam", hires_cam, paper="Draelos and Carin 2020, arXiv 2011.08891"),
    CAM("layercam", layer_cam, paper="Jiang et al. 2021, IEEE TIP 30"),
    CAM("eigencam", eigen_cam, needs_gradient=False, paper="Muhammad and Yeasin 2020, arXiv 2008.00299"),
    CAM("eigengradcam", eigen_grad_cam, paper="none (pytorch-grad-cam)"),
    CAM("elementwise-gradcam", element_wise_grad_cam, paper="none (pytorch-grad-cam)"),
    ClassifierCAM(),
)


def _sum(maps: Tensor, keepdim: bool = False) -> Tensor:
    """Sum over the cells: all axes after the channels."""
    return maps.sum(dim=tuple(range(2, maps.ndim)), keepdim=keepdim)


def _mean(maps: Tensor) -> Tensor:
    """Mean over the cells: all axes after the channels."""
    return maps.mean(dim=tuple(range(2, maps.ndim)))


def _weighted(weights: Tensor, activation: Tensor) -> Tensor:
    return torch.einsum("nc,nc...->n...", weights, activation).clamp(min=0)


def _principal(maps: Tensor, direction: Tensor) -> Tensor:
    """Projection of the cells on their first principal component, with the sign of `direction`, positive part.

    The component comes from the smaller Gram matrix, in float64 because forming it squares the condition number.
    """
    cells = maps.flatten(2).transpose(1, 2).double()
    finite = cells.isfinite().all(dim=2).all(dim=1)[:, None, None]
    cells = cells.masked_fill(~finite, 0)
    cells = cells - cells.mean(dim=1, keepdim=True)
    if cells.shape[2] <= cells.shape[1]:
        first = torch.linalg.eigh(cells.transpose(1, 2) @ cells).eigenvectors[..., -1:]
        projected = (cells @ first).squeeze(2)
    else:
        values, vectors = torch.linalg.eigh(cells @ cells.transpose(1, 2))
        projected = vectors[..., -1] * values[..., -1:].clamp(min=0).sqrt()
    sign = (projected * direction.flatten(1)).sum(dim=1, keepdim=True)
    projected = torch.where(sign < 0, -projected, projected).masked_fill(~finite.squeeze(2), torch.nan)
    return projected.unflatten(1, maps.shape[2:]).clamp(min=0).to(maps.dtype)


def _linear_layers(model: nn.Module, inputs: int, outputs: int) -> list[nn.Linear]:
    """Linear layers with these numbers of features, the last one first."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [layer for layer in reversed(linear) if (layer.in_features, layer.out_features) == (inputs, outputs)]
