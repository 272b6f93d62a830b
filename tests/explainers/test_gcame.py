"""G-CAME equals a loop over its formula, keeps to the cell of the box, and refuses models that find none."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from tests.explainers.finder import Finder, context_of, some_images
from xaieval.errors import ExplainerError
from xaieval.explainers.gcame import GCAME, gaussian_cam
from xaieval.inference.tasks import Detection
from xaieval.testing import check_explainer


def _by_hand(activation: np.ndarray, gradient: np.ndarray, stride: float) -> np.ndarray:
    """One image `[C, h, w]`, channel by channel and cell by cell."""
    height, width = gradient.shape[1:]
    kernel = math.floor((math.sqrt(height * width) - 1) / 2) / 3
    total = np.zeros((height, width))
    for of, slope in zip(activation, gradient, strict=True):
        mean = slope.mean()
        if mean == 0:
            continue
        row, column = np.unravel_index(np.abs(slope).argmax(), slope.shape)
        sigma = max(abs(math.log(abs(mean)) / kernel * math.log(stride)), 1)
        mask = np.zeros((height, width))
        for i in range(height):
            for j in range(width):
                mask[i, j] = math.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        total += mean * mask * of
    return total.clip(min=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_it_equals_a_loop_over_channels_and_cells(scale):
    activation, gradient = torch.randn(2, 2, 4, 6, 9, generator=torch.Generator().manual_seed(5)).double()
    gradient = gradient * scale
    gradient[1, 2] = 0
    expected = np.stack([_by_hand(a.numpy(), g.numpy(), 8.0) for a, g in zip(activation, gradient, strict=True)])
    assert (expected > 0).mean() > 0.2
    torch.testing.assert_close(gaussian_cam(activation, gradient, 8.0), torch.from_numpy(expected))


def test_the_stride_is_that_of_the_layer_in_the_image():
    activation, gradient = torch.randn(2, 3, 4, 5, 8, generator=torch.Generator().manual_seed(6))
    context = replace(context_of(Finder(), some_images(), 3), activation=activation, gradient=gradient)  # images of 10 x 16
    torch.testing.assert_close(GCAME()(context), gaussian_cam(activation, gradient, 2.0))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 7)])
def test_layers_of_a_few_cells_have_finite_maps(size):
    activation, gradient = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(7))
    found = gaussian_cam(activation, gradient, 1.0)
    assert found.isfinite().all()
    assert found.max() > 0


class Cells(nn.Module):
    """A detector of one stage: a box of one class for each cell, whose score is a number of the cell."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU())
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        scores = self.head(self.layer(images)).sigmoid().flatten(1)
        corners = torch.cartesian_prod(*(torch.arange(0, side, 4) for side in images.shape[2:])).flip(1)
        boxes = torch.cat([corners, corners + 4], dim=1).float()
        return [{"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.long), "scores": one} for one in scores]


@pytest.mark.parametrize("box", [(8, 12, 12, 16), (28, 4, 32, 8), (36, 28, 40, 32)])
def test_the_map_of_an_even_layer_falls_off_from_the_cell_of_the_box(box):
    model, images = Cells().eval(), torch.full((1, 3, 32, 40), 0.5)
    model.head.weight.data.abs_()
    raw = xaieval.Protocol(normalisation="none")
    found = xaieval.explain(model, images, "layer", GCAME(), task=Detection(box=box), protocol=raw)["layer"][0]
    row, column = divmod(int(found.argmax()), 40)
    assert box[0] <= column < box[2]
    assert box[1] <= row < box[3]
    assert found.min() < 0.5 * found.max()


def test_it_keeps_what_all_explainers_promise():
    check_explainer(GCAME(), Finder(), torch.rand(3, 3, 16, 24), "layer", task="detection")


def test_other_models_are_refused_with_what_fits():
    with pytest.raises(ExplainerError, match=r"^method 'g-came' explains a detection, .* take 'gradcam', or task="):
        xaieval.explain(nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), some_images(), "0", "g-came")
