"""gScoreCAM equals a slow loop over the channels with the largest gradient, and Score-CAM with all of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tests.borrowing import context_of
from tests.explainers.test_attention_gradients import IMAGES, _clip
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS, with_settings
from xaieval.explainers.gscore_cam import GScoreCAM
from xaieval.probe.hooks import probe

TARGETS = [2, 0, 1]
LAYER = "model.vision_model.encoder.layers.0"


def at_layer(model: nn.Module):
    given = context_of(model, IMAGES, TARGETS)
    probed = probe(model, IMAGES, [LAYER], score=lambda output: output[range(3), TARGETS])
    return replace(given, layer=LAYER, activation=probed.activations[LAYER], gradient=probed.gradients[LAYER], size=4)


def test_maps_are_a_loop_over_the_channels_of_the_largest_gradient():
    model = _clip("CLIP")
    given = at_layer(model)
    found = GScoreCAM(n_channels=5)(given).numpy()
    for number, target in enumerate(TARGETS):
        channels, gradient = given.activation[number], given.gradient[number]
        means = [float(one.sum()) / 16 for one in gradient]
        chosen = sorted(range(16), key=lambda channel: -means[channel])[:5]
        scores = []
        for channel in chosen:
            large = nn.functional.interpolate(channels[channel][None, None], (32, 32), mode="bilinear")[0, 0]
            mask = (large - large.min()) / (large.max() - large.min())
            with torch.no_grad():
                scores.append(float(model((IMAGES[number] * mask)[None])[0, target]))
        weights = np.exp(np.array(scores) - max(scores))
        weights /= weights.sum()
        total = sum(weight * channels[channel].numpy() for weight, channel in zip(weights, chosen, strict=True))
        expected = np.maximum(total, 0)
        np.testing.assert_allclose(found[number], expected, rtol=0, atol=1e-4 * np.ptp(expected))


def test_all_channels_make_it_score_cam():
    given = at_layer(_clip("CLIP"))
    torch.testing.assert_close(METHODS["gscorecam"](given), METHODS["score-cam"](given))
    dead = replace(given, gradient=torch.zeros_like(given.gradient))
    assert not METHODS["gscorecam"](dead).any()
    assert not torch.allclose(GScoreCAM(n_channels=5)(given), METHODS["score-cam"](given))


def test_channels_are_a_setting_of_1_or_more():
    [method] = with_settings("gscorecam", {"gscorecam": {"channels": 20}})
    assert method == GScoreCAM(n_channels=20)
    with pytest.raises(ExplainerError, match="n_channels is a number of channels, 1 or more, got 0"):
        GScoreCAM(n_channels=0)
