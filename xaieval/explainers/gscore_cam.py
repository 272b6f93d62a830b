"""gScoreCAM: Score-CAM of the channels whose gradient is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xaieval.errors import ExplainerError
from xaieval.explainers.base import Context
from xaieval.explainers.perturbation import ScoreCAM

__all__ = ["GSCORE", "GScoreCAM"]


@dataclass(frozen=True)
class GScoreCAM(ScoreCAM):
    """gScoreCAM: Score-CAM of the `n_channels` channels with the largest mean gradient, with its sign, in each image.

    Its cost does not grow with the width of the layer: CLIP's last convolutions have thousands of channels, most of them noise.
    Channels without any gradient do not affect the score and are left out. With as many channels as the layer
    has, it is `score-cam` of the others.

    Args:
        n_channels: The largest number of channels to use.
        align_corners: As of `ScoreCAM`.
        normalise_at: As of `ScoreCAM`.
        wanted: As of `ScoreCAM`.

    Raises:
        ExplainerError: `n_channels` is below 1, or a choice is unknown.

    Reference:
        Chen et al., "gScoreCAM: What Objects Is CLIP Looking At?", ACCV 2022. Channels that take no part have the weight 0; in
        the authors' code, they have that of a score of 0.

    Example:
        >>> import torch, xaieval
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> xaieval.explain(model, torch.rand(2, 3, 8, 8), "0", GScoreCAM(n_channels=2))["0"].shape
        torch.Size([2, 8, 8])
    """

    n_channels: int = 300
    name: str = "gscorecam"
    needs_gradient: bool = True
    passes: str = "1 per channel, 300 at most"
    paper: str = "Chen et al. 2022, ACCV"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_channels < 1:
            raise ExplainerError(f"n_channels is a number of channels, 1 or more, got {self.n_channels}")

    def _kept(self, context: Context) -> Tensor:
        gradient: Any = context.gradient
        means = gradient.flatten(2).mean(dim=2)
        largest = means.topk(min(self.n_channels, means.shape[1]), dim=1).indices
        return torch.zeros_like(means, dtype=torch.bool).scatter(1, largest, True) & (gradient != 0).flatten(2).any(dim=2)


GSCORE = (GScoreCAM(),)
