"""Methods of the user that write into what they are given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import xaieval
from xaieval.errors import ExplainerError

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def brightness(model, images, targets):
    return images.mean(dim=1)


def test_a_function_may_write_into_its_images_and_targets():
    def writing(model, images, targets):
        maps = images.mean(dim=1)
        images.zero_()
        targets.zero_()
        return maps

    rows = [
        xaieval.score(_model(), [IMAGES.clone()], "0", [method, "gradcam"], progress=False).rows.drop(columns="method")
        for method in (brightness, writing)
    ]
    assert rows[0].equals(rows[1])


class Writing:
    """Writes into a field of its context."""

    name = "writing"
    needs_layer = True
    needs_gradient = True

    def __init__(self, field):
        self.field = field

    def __call__(self, context):
        getattr(context, self.field).clamp_(min=0)
        return context.activation.mean(dim=1)


@pytest.mark.parametrize("field", ["images", "activation", "gradient", "logits", "targets"])
def test_an_explainer_that_writes_into_its_context_is_refused(field):
    for run in (
        lambda: xaieval.score(_model(), [IMAGES.clone()], "1", Writing(field), fast=False, progress=False),
        lambda: xaieval.explain(_model(), IMAGES.clone(), "1", Writing(field), fast=False),
    ):
        with pytest.raises(
            ExplainerError, match=r"method 'writing' writes into its context, .* a copy, such as context.images"
        ):
            run()
