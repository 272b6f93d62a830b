"""Ablation-CAM: each channel of a layer is set to zero in turn, and only the part of the model after the layer runs again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xaieval.explainers.base import Context
from xaieval.explainers.layer_changes import changed_scores, check_single_images

__all__ = ["ABLATION", "AblationCAM"]


@dataclass(frozen=True)
class AblationCAM:
    """Ablation-CAM: `relu(sum_k (y - y_k) / y A_k)`, where y_k is the score with channel k of the layer set to zero.

    The part before the layer depends only on the image, so the model runs on one copy of the image, and the layer's output is
    expanded on the way to one ablated output per channel. Three of them are tried first: this does not work if the model joins
    the layer's output with another tensor of the original batch size; then full passes are used.

    A channel of a token layer is set to zero in all tokens, also those before the grid. The layer may have any address, such
    as `fpn[p2]` or `layer3.0.relu#2`. Where the score is 0, the map is undefined and becomes NaN.

    Args:
        expand: False uses full passes without a trial.

    Reference:
        Desai and Ramaswamy, "Ablation-CAM", WACV 2020, eq. 4 and 5.

    Example:
        >>> import xaieval
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), "1", AblationCAM())["1"].shape
        torch.Size([2, 8, 8])
    """

    expand: bool = True
    name: str = "ablation-cam"
    needs_layer: bool = True
    needs_gradient: bool = False
    # It runs the model, but reads only the layer's output, which is right also if batch norms around the layer are folded.
    needs_model: bool = False
    passes: str = "1 per channel, from the layer on"
    paper: str = "Desai and Ramaswamy 2020, WACV"

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`."""
        check_single_images(context, self.name, "sets channels of single images to zero")
        activation: Any = context.activation
        channels = activation.shape[1]  # also the number of the change that ablates nothing
        strongest = activation[0].abs().flatten(1).mean(dim=1).topk(min(2, channels)).indices

        def ablate(outputs: Tensor, numbers: Tensor) -> Tensor:
            if context.layout is not None:
                axis = context.layout.channel_axis or 0
            else:  # the channels of tokens and of maps with channels last are on the last axis
                axis = 1 if outputs.shape[1:] == activation.shape[1:] else -1
            rows = (numbers < channels).nonzero()[:, 0]
            outputs.movedim(axis, 1)[rows, numbers[rows]] = 0
            return outputs

        tried = torch.cat([strongest, strongest.new_tensor([channels])])
        scores = changed_scores(context, ablate, channels + 1, tried, expand=self.expand).to(activation.dtype)
        whole, without = scores[:, -1:], scores[:, :-1]
        return torch.einsum("nc,nc...->n...", (whole - without) / whole, activation).clamp(min=0)


ABLATION = (AblationCAM(),)
