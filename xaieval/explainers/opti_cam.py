"""Opti-CAM: the weights of a layer's channels are optimised, so that the image masked by their sum has the highest score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context
from xaieval.masking import LINEAR

__all__ = ["OPTI", "OptiCAM"]


@dataclass(frozen=True)
class OptiCAM:
    """Opti-CAM: `sum_k softmax(u)_k relu(A_k)`, with the u for which the image masked by the map has the highest score.

    The mask is the map at the size of the image, scaled to [0, 1]. The optimiser is Adam; all images of a batch are optimised
    at once, but independently.

    Args:
        steps: Steps of the optimiser, one pass each.
        learning_rate: Of the optimiser.

    Raises:
        ExplainerError: A number is out of range.

    Reference:
        Zhang et al., "Opti-CAM", CVIU 2024 (arXiv 2301.07002), eq. 4 to 8, the objective "mask". Unlike the authors' code, it
        does not stop where the sum of the scores of a batch falls, since a map may not depend on the batch.

    Example:
        >>> import xaieval
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), "0", OptiCAM(steps=5))["0"].shape
        torch.Size([2, 8, 8])
    """

    steps: int = 100
    learning_rate: float = 0.1
    name: str = "opti-cam"
    needs_layer: bool = True
    needs_gradient: bool = False
    takes_gradients: bool = True
    paper: str = "Zhang et al. 2024, arXiv 2301.07002"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.learning_rate <= 0:
            raise ExplainerError(
                "method 'opti-cam' takes steps of at least 1 and a learning_rate above 0, got "
                f"steps={self.steps}, learning_rate={self.learning_rate}"
            )

    @property
    def passes(self) -> str:
        """Forward passes an image."""
        return str(self.steps)

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        activation: Any = context.activation
        # In float64, because Adam makes whole steps of gradients that are rounding alone, as those of channels of zeros.
        channels = activation.clamp(min=0).double()
        with torch.enable_grad():
            return torch.cat(context.limit.parts(len(channels), lambda part: self._optimised(context, channels, part)))

    def _optimised(self, context: Context, channels: Tensor, part: slice) -> Tensor:
        """The maps of some images of the batch."""
        channels, images, of = channels[part], context.images[part], context.everywhere[part]
        weights = torch.full_like(channels.flatten(2)[:, :, 0], 0.5, requires_grad=True)
        optimiser = torch.optim.Adam([weights], lr=self.learning_rate)
        for _ in range(self.steps):
            mask = _mask(_combined(weights, channels), images)
            score = context.score(images * mask.to(images.dtype), of)
            if not score.requires_grad:
                raise ExplainerError(
                    f"method '{self.name}' follows the gradient of the score, and the model computes it without one; method "
                    "'score-cam' needs none"
                )
            (weights.grad,) = torch.autograd.grad(-score.sum(), weights)
            optimiser.step()
        return _combined(weights, channels).detach()


OPTI = (OptiCAM(),)


def _combined(weights: Tensor, channels: Tensor) -> Tensor:
    return torch.einsum("nc,nc...->n...", weights.softmax(dim=1), channels)


def _mask(maps: Tensor, images: Tensor) -> Tensor:
    """Maps at the size of the images, scaled to [0, 1], `[N, 1, H, W]`; a constant one becomes zeros."""
    size = images.shape[2:]
    large = functional.interpolate(maps[:, None], tuple(size), mode=LINEAR[len(size)], align_corners=False)
    cells = tuple(range(1, large.ndim))
    low, high = large.amin(dim=cells, keepdim=True), large.amax(dim=cells, keepdim=True)
    return (large - low) / torch.where(high > low, high - low, 1)
