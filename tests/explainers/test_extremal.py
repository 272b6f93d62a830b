"""Extremal perturbation: masks and one step by slow loops over the formulas, and regions that count are found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.borrowing import context_of
from xaieval.errors import ExplainerError
from xaieval.explainers.extremal import ExtremalPerturbation, SmoothMasks, _at_level, _less_and_less_blurred

IMAGES = torch.randn(2, 3, 9, 12, generator=torch.Generator().manual_seed(3))


def slow_mask(points: np.ndarray, step: int, radius: int, y: int, x: int) -> float:
    """The smooth maximum at a pixel of the image, which may lie outside of it, over a square of points near it."""
    reach = 1 + math.ceil(radius / step)
    before = 1 + math.ceil(2 * radius / step)
    values = []
    for row in range((y + radius) // step - before, (y + radius) // step - before + 2 * reach + 1):
        for column in range((x + radius) // step - before, (x + radius) // step - before + 2 * reach + 1):
            inside = 0 <= row < points.shape[0] and 0 <= column < points.shape[1]
            distance = math.hypot(y - step * row, x - step * column) / radius
            values.append((points[row, column] if inside else 0.0) * math.exp(-2 * max(distance - 0.5, 0) ** 2))
    weights = np.exp(20 * np.array(values))
    return float(min((weights * values).sum() / weights.sum(), 1))


def test_masks_are_smooth_maxima_of_bumps():
    masks = SmoothMasks((9, 12), step=3, radius=4)
    points = torch.rand(2, *masks.grid, generator=torch.Generator().manual_seed(1))
    whole = masks.make(points)
    assert whole[0].numel() == masks.pixels
    for one, found, on_image in zip(points.double().numpy(), whole, masks.cut(whole), strict=True):
        for y, x in [(0, 0), (4, 7), (8, 11), (3, 3)]:
            assert float(on_image[y, x]) == pytest.approx(slow_mask(one, 3, 4, y, x), abs=1e-5)
        assert float(found[0, 2]) == pytest.approx(slow_mask(one, 3, 4, -4, -2), abs=1e-5)


def test_pixels_are_blurred_as_far_as_the_mask_says():
    blurred = _less_and_less_blurred(IMAGES, 2.0, 3)
    torch.testing.assert_close(blurred[2], IMAGES)
    for level, sigma in ((0, 2.0), (1, 1.0)):
        weights = {at: math.exp(-0.5 * (at / sigma) ** 2) for at in range(-math.ceil(4 * sigma), math.ceil(4 * sigma) + 1)}
        total = sum(weights.values())
        expected = sum(
            weights[4 - y] / total * weights[5 - x] / total * float(IMAGES[1, 2, y, x])
            for y in range(9)
            for x in range(12)
            if 4 - y in weights and 5 - x in weights
        )
        assert float(blurred[level, 1, 2, 4, 5]) == pytest.approx(expected, abs=1e-5)
    shares = torch.linspace(0, 1, 108).view(1, 9, 12).expand(2, 9, 12)
    found = _at_level(blurred, shares)
    for y, x in [(0, 0), (2, 5), (5, 3), (8, 11)]:
        level = float(shares[0, y, x]) * 2
        lower = min(int(level), 1)
        expected = (1 - level + lower) * blurred[lower, :, :, y, x] + (level - lower) * blurred[lower + 1, :, :, y, x]
        torch.testing.assert_close(found[:, :, y, x], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mirror", [True, False])
def test_the_ascent_is_that_of_torchs_optimiser(mirror):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 70, 3))
    method = ExtremalPerturbation(areas=(0.2,), n_steps=6, step=3, smoothness=4, blur=2, levels=3, mirror=mirror)
    found = method(context_of(model, IMAGES[:1], [2]))[0]
    masks, blurred = SmoothMasks((9, 12), step=3, radius=4), _less_and_less_blurred(IMAGES[:1], 2.0, 3)
    points, weight = nn.Parameter(torch.ones(1, *masks.grid)), 300.0
    ascent = torch.optim.SGD([points], lr=0.01, momentum=0.9, dampening=0.9)
    shown = torch.zeros(masks.pixels)
    shown[int(masks.pixels * 0.8) :] = 1
    for number in range(6):
        whole = masks.make(points)
        images = _at_level(blurred, masks.cut(whole))
        score = model(images.flip(3) if mirror and number % 2 == 0 else images)[0, 2]
        ascent.zero_grad()
        (weight * (whole.flatten().sort()[0] - shown).square().mean() - score).backward()
        ascent.step()
        points.data.clamp_(0, 1)
        weight *= 1.0035
    torch.testing.assert_close(found, masks.cut(whole)[0].detach(), atol=1e-5, rtol=0)
    assert found.std() > 1e-3


class Corner(nn.Module):
    """The mean square of the upper left part of an image, against the rest."""

    def forward(self, images: Tensor) -> Tensor:
        inside = images[:, :, :8, :8].square().mean(dim=(1, 2, 3))
        return torch.stack([inside * 40, -inside], dim=1)


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
def test_the_region_that_counts_is_found_and_has_the_area(variant):
    images = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    method = ExtremalPerturbation(areas=(0.1,), n_steps=80, variant=variant, step=3, smoothness=4, blur=5, mirror=False)
    mask = method(context_of(Corner(), images, [0]))[0]
    inside = mask[:8, :8].mean()
    assert inside > 0.3
    assert inside > 3 * (mask.sum() - 64 * inside) / (24 * 24 - 64)


def test_a_mask_depends_neither_on_its_batch_nor_on_other_areas():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 70, 3))
    together = ExtremalPerturbation(areas=(0.2, 0.5), n_steps=3, step=3)
    one, other = (ExtremalPerturbation(areas=(area,), n_steps=3, step=3) for area in together.areas)
    found = together(context_of(model, IMAGES, [2, 0], size=3))
    alone = [method(context_of(model, IMAGES[1:], [0])) for method in (one, other)]
    torch.testing.assert_close(found[1], (alone[0] + alone[1])[0] / 2, atol=1e-5, rtol=0)


def test_progress_counts_the_steps_of_all_masks():
    seen: list[tuple[int, int]] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(324, 2))
    method = ExtremalPerturbation(areas=(0.2, 0.5), n_steps=2, step=3)
    method(context_of(model, IMAGES, [1, 0], size=3, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(3, 8), (6, 8), (7, 8), (8, 8)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"areas": (0.1, 1.5)}, r"takes areas in \(0, 1\), such as \(0.05, 0.1\), got \(0.1, 1.5\)"),
        ({"areas": ()}, r"takes areas in \(0, 1\)"),
        ({"variant": "delet"}, "has no variant 'delet'; did you mean 'delete'"),
        ({"n_steps": 0}, "takes n_steps of at least 1, levels of at least 2 and lengths above 0, got n_steps=0"),
        ({"step": -3}, "lengths above 0, got .* step=-3"),
    ],
)
def test_wrong_use_is_one_clear_line(settings, message):
    with pytest.raises(ExplainerError, match=message):
        ExtremalPerturbation(**settings)
