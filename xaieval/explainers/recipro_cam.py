"""Recipro-CAM: one cell of a layer is kept in turn, and only the part of the model after the layer runs again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context, Wanted
from xaieval.explainers.layer_changes import changed_scores, check_single_images
from xaieval.probe.layouts import Layout

__all__ = ["RECIPRO", "ReciproCAM"]

Kept = Literal["cell", "gaussian"]

GAUSSIAN = ((1 / 16, 1 / 8, 1 / 16), (1 / 8, 1 / 4, 1 / 8), (1 / 16, 1 / 8, 1 / 16))


@dataclass(frozen=True)
class ReciproCAM:
    """Recipro-CAM: the value of a cell is the score of the model when the layer's output is zero in all other cells.

    All channels of the cell are kept, and so are tokens that are not cells, such as a class token. The layer may have any
    address whose output has the images first.

    Args:
        kept: "cell" keeps the cell alone; "gaussian" weights it and its neighbours by a 3 x 3 Gaussian, as for transformers.
        wanted: "confidence" (as in the authors' code; which one is the protocol's choice) or "score" (the logit).
        expand: False uses full passes without a trial.

    Raises:
        ExplainerError: A choice is unknown; when called: the layer's output has other axes.

    Reference:
        Byun and Lee, "Recipro-CAM", CVPR Workshops 2024 (arXiv 2209.14074), eq. 2 to 4, and "ViT-ReciproCAM" (arXiv 2310.02588)
        for tokens, whose mask is set after a normalisation inside the block.

    Example:
        >>> import xaieval
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), "1", ReciproCAM())["1"].shape
        torch.Size([2, 8, 8])
    """

    kept: Kept = "cell"
    wanted: Wanted = "confidence"
    expand: bool = True
    name: str = "recipro-cam"
    needs_layer: bool = True
    needs_gradient: bool = False
    needs_model: bool = False  # as for Ablation-CAM: it runs the model, but reads only the layer's output
    passes: str = "1 per cell, from the layer on"
    paper: str = "Byun and Lee 2024, arXiv 2209.14074"

    def __post_init__(self) -> None:
        for what, given, known in (("kept", self.kept, Kept), ("wanted", self.wanted, Wanted)):
            if given not in get_args(known):
                raise ExplainerError(f"{what} is one of {', '.join(get_args(known))}, got {given!r}")

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`; for volumes with one more axis."""
        check_single_images(context, self.name, "keeps cells of single images")
        activation: Any = context.activation
        size, cells = activation.shape[2:], math.prod(activation.shape[2:])
        layout = context.layout or Layout("channels_first", tuple(size))
        masks = self._masks(size).to(activation)

        def keep(outputs: Tensor, numbers: Tensor) -> Tensor:
            # Where each value of the maps is in the output; a value that is in no cell stays.
            places = layout.to_maps(torch.arange(outputs[0].numel(), device=outputs.device).view_as(outputs[:1]))
            kept = torch.ones_like(outputs).flatten(1)
            values = masks[numbers][:, None].expand(-1, *places.shape[1:]).flatten(1)
            kept[:, places.flatten()] = values.to(kept.dtype)
            return outputs * kept.view_as(outputs)

        strongest = activation[0].abs().sum(dim=0).flatten().topk(min(3, cells)).indices
        scores = changed_scores(context, keep, cells, strongest, self.wanted, self.expand)
        return scores.to(activation.dtype).unflatten(1, size)

    def _masks(self, size: torch.Size) -> Tensor:
        """The mask of each cell, `[cells, *size]`.

        Raises:
            ExplainerError: The Gaussian is one of images, and the size that of a volume.
        """
        cells = math.prod(size)
        alone = torch.eye(cells).view(cells, *size)
        if self.kept == "cell":
            return alone
        if len(size) != 2:
            raise ExplainerError(f"method '{self.name}' with kept='gaussian' explains images, and the layer is {list(size)}")
        return torch.nn.functional.conv2d(alone[:, None], torch.tensor(GAUSSIAN)[None, None], padding=1)[:, 0]


RECIPRO = (ReciproCAM(),)
