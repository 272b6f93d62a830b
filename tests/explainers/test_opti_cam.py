"""Opti-CAM equals the optimisation of each image by itself, written out; and it finds what raises the score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.errors import ExplainerError
from xaieval.explainers import Context
from xaieval.explainers.opti_cam import OptiCAM
from xaieval.probe.hooks import probe


def network() -> nn.Sequential:
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 4)]
    return nn.Sequential(*layers).eval().double()


def slow(model: nn.Module, image: Tensor, target: int, activation: Tensor, steps: int, rate: float) -> Tensor:
    """Adam by hand, for one image, with gradients by finite differences."""
    channels = activation.clamp(min=0)

    def score(weights: Tensor) -> float:
        maps = (weights.softmax(dim=0)[:, None, None] * channels).sum(dim=0)
        large = nn.functional.interpolate(maps[None, None], image.shape[1:], mode="bilinear")[0, 0]
        mask = (large - large.min()) / (large.max() - large.min())
        with torch.no_grad():
            return float(model((image * mask)[None])[0, target])

    weights = torch.full((len(channels),), 0.5, dtype=torch.float64)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in range(1, steps + 1):
        nudges = torch.eye(len(weights), dtype=torch.float64) * 1e-6
        loss = torch.tensor([(score(weights - one) - score(weights + one)) / 2e-6 for one in nudges], dtype=torch.float64)
        mean, square = 0.9 * mean + 0.1 * loss, 0.999 * square + 0.001 * loss**2
        weights = weights - rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return (weights.softmax(dim=0)[:, None, None] * channels).sum(dim=0)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_maps_are_those_of_adam_by_hand(size):
    model, images = network(), torch.rand(3, 3, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    activation = probe(model, images, ["2"]).activations["2"]
    context = Context(
        model, images, torch.tensor([1, 3, 0]), None, ["a", "b", "c"], layer="2", activation=activation, size=size
    )
    maps = OptiCAM(steps=6, learning_rate=0.2)(context)
    expected = [slow(model, images[n], int(context.targets[n]), activation[n], 6, 0.2) for n in range(3)]
    for one, other in zip(maps, expected, strict=True):
        # The weight of a channel of zeros is left to rounding, and with it the scale of the map, which means nothing.
        one, other = one / one.max(), other / other.max()
        assert (one - other).abs().max() < 1e-4 * (other.max() - other.min())


def test_the_channel_whose_mask_raises_the_score_wins():
    # Class 0 counts the left half of the image and class 1 the right half; each channel shows one of them.
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, images: Tensor) -> Tensor:
            left = torch.zeros(8)
            left[:4] = 1
            self.layer(torch.stack([images[:, 0] * left, images[:, 0] * (1 - left)], dim=1))
            more = (images[:, 0] * (2 * left - 1)).sum(dim=(1, 2))
            return torch.stack([more, -more], dim=1)

    for target in (0, 1):
        (maps,) = xaieval.explain(Halves(), torch.ones(1, 1, 8, 8), "layer", OptiCAM(steps=20), target).values()
        inside, outside = (maps[0, :, :4], maps[0, :, 4:]) if target == 0 else (maps[0, :, 4:], maps[0, :, :4])
        assert inside.min() > outside.max()


def test_constant_channels_make_a_constant_map_and_bad_settings_are_refused():
    model, images = network(), torch.rand(1, 3, 6, 8, dtype=torch.float64)
    flat = torch.ones(1, 6, 3, 4, dtype=torch.float64)
    maps = OptiCAM(steps=3)(Context(model, images, torch.tensor([0]), None, ["a"], activation=flat))
    torch.testing.assert_close(maps, torch.ones_like(maps))
    for settings in ({"steps": 0}, {"learning_rate": 0}, {"learning_rate": -math.inf}):
        with pytest.raises(ExplainerError, match="method 'opti-cam' takes steps of at least 1 and a learning_rate above 0"):
            OptiCAM(**settings)


def test_a_model_without_a_gradient_is_refused():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images).detach().mean(dim=(2, 3))

    with pytest.raises(ExplainerError, match="method 'opti-cam' follows the gradient of the score"):
        xaieval.explain(Cut(), torch.rand(1, 3, 8, 8), "layer", "opti-cam")
