"""D-CLOSE equals a loop over levels, masks and detections, and refuses models that find none."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.segmentation import slic
from torch import Tensor, nn

import xaieval
from tests.explainers.finder import Finder, context_of, some_images
from xaieval.errors import ExplainerError
from xaieval.explainers.dclose import DCLOSE, SegmentMasks, fused
from xaieval.inference.reproducibility import seed_from
from xaieval.masking.segments import slic_segments
from xaieval.testing import check_explainer

SMALL = {"n_masks": 11, "segments": 6, "levels": 2}
KINDS = ("scores", "probabilities", "objectness", "queries")


def _iou(first: list[float], second: list[float]) -> float:
    sides = [max(min(first[2 + axis], second[2 + axis]) - max(first[axis], second[axis]), 0) for axis in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return sides[0] * sides[1] / (sum(areas) - sides[0] * sides[1])


def _row(one: dict[str, Tensor], number: int) -> np.ndarray:
    return one["probabilities"][one["queries"][number] if "queries" in one else number].numpy()


def _weight(kind: str, wanted: dict[str, Tensor], found: dict[str, Tensor], width: float) -> float:
    best, weights = int(wanted["scores"].argmax()), [0.0]
    for number, box in enumerate(found["boxes"].tolist()):
        if found["labels"][number] != wanted["labels"][best]:
            continue
        if kind == "scores":
            alike = found["scores"][number].item()
        else:
            a, b = _row(wanted, best), _row(found, number)
            distance = 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            alike = math.sqrt(math.exp(-(distance**2) / width**2))
            alike *= found["objectness"][number].item() if kind == "objectness" else 1
        weights.append(alike * _iou(wanted["boxes"][best].tolist(), box))
    return max(weights)


def _unit(level: np.ndarray) -> np.ndarray:
    return np.zeros_like(level) if level.max() == level.min() else (level - level.min()) / (level.max() - level.min())


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_a_loop_over_levels_masks_and_detections(kind):
    model, images, method = Finder(kind), some_images(), DCLOSE(**SMALL, width=0.6)
    context = context_of(model, images, 4)
    expected, weights = [], []
    with torch.no_grad():
        for number, image in enumerate(images):
            (wanted,) = model(image[None])
            levels = []
            for level, count in enumerate((6, 5)):
                labels = slic_segments(images, 6 * 2**level, sigma=1.0)[number]
                seed = seed_from(context.seed, context.ids[number], f"d-close {level}")
                masks = SegmentMasks.draw(labels, count, 0.5, 2.2, seed).make(0)
                total, density = np.zeros((10, 16)), np.zeros((10, 16))
                for mask in masks:
                    (found,) = model((image * mask)[None])
                    weights.append(_weight(kind, wanted, found, 0.6))
                    total += weights[-1] * mask.numpy()
                    density += mask.numpy()
                levels.append(_unit(total / density))
            heat = levels[1]
            expected.append((heat + levels[0]) * levels[0])
    assert np.std(weights) > 0.02
    torch.testing.assert_close(method(context), torch.from_numpy(np.stack(expected)).float(), rtol=0, atol=1e-4)


def test_masks_are_superpixels_enlarged_as_pillow_does_and_cropped():
    labels = torch.arange(12).view(3, 4)
    masks = SegmentMasks.draw(labels, 5, 0.5, 1.5, seed=3)
    assert masks.frame == (7, 10)
    for number, mask in enumerate(masks.make(0)):
        bits = masks.shown[number][labels].float().numpy()
        large = np.asarray(Image.fromarray(bits).resize((10, 7), Image.Resampling.BILINEAR))
        top, left = (int(at) for at in masks.corners[number])
        np.testing.assert_allclose(mask.numpy(), large[top : top + 3, left : left + 4], atol=1e-5)
    assert len({tuple(corner) for corner in masks.corners.tolist()}) > 1
    assert masks.corners.amax(dim=0).tolist() <= [4, 6]


def test_masks_that_are_not_enlarged_show_superpixels_in_their_places():
    labels = torch.arange(12).view(3, 4) // 2
    masks = SegmentMasks.draw(labels, 70, 0.3, 0.0, seed=3)
    made = torch.cat([masks.make(start) for start in masks.starts()])
    torch.testing.assert_close(made, masks.shown[:, labels].float(), rtol=0, atol=1e-5)
    assert 0.2 < made.mean() < 0.4


def test_superpixels_are_those_of_scikit_image_smoothed():
    images = some_images()
    expected = slic(images[1].double().movedim(0, -1).numpy(), n_segments=9, compactness=10, sigma=1, start_label=0)
    np.testing.assert_array_equal(slic_segments(images, 9, sigma=1.0)[1].numpy(), expected)


def test_levels_are_joined_from_the_finest_to_the_coarsest():
    levels = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 7
    levels[1, 1] = 0.3
    for image, found in zip(levels, fused(levels), strict=True):
        coarse, middle, fine = (_unit(level.numpy()) for level in image)
        heat = (fine + middle) * middle
        np.testing.assert_allclose(found.numpy(), (heat + coarse) * coarse, atol=1e-5)


def test_it_keeps_what_all_explainers_promise():
    check_explainer(DCLOSE(**SMALL), Finder("objectness"), torch.rand(3, 3, 16, 24), "layer", task="detection")


@pytest.mark.parametrize(
    "settings",
    [{"n_masks": 3}, {"levels": 0}, {"segments": 0}, {"probability": 1.0}, {"resize": -0.1}, {"width": 0.0}],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]):
    with pytest.raises(ExplainerError, match="method 'd-close' takes levels and segments of at least 1"):
        DCLOSE(**settings)


def test_it_asks_for_a_detector_and_for_scikit_image(monkeypatch):
    classifier = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ExplainerError, match=r"^method 'd-close' explains a detection, .* take 'rise', or task='detection' if"):
        xaieval.explain(classifier, some_images(), method="d-close")
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ExplainerError, match=r"^method 'd-close' needs scikit-image: pip install 'xaieval\[segments\]'$"):
        xaieval.explain(Finder(), some_images(), method=DCLOSE(**SMALL), task="detection")
