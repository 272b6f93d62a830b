"""Sobol and HSIC equal slow loops over their formulas, and find the cells that count."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import qmc
from torch import Tensor, nn

import xaieval
from tests.borrowing import context_of
from xaieval.errors import ExplainerError
from xaieval.explainers.sensitivity import HSIC, Sobol

SIDE, GRID = 12, 3
IMAGES = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def tiny() -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 3)).eval()
    nn.init.normal_(model[3].weight, std=0.2)
    return model


def score(model: nn.Module, image: Tensor, cells: np.ndarray, fill: float, target: int, wanted: str) -> float:
    """The score of one image whose cells of 4 x 4 pixels are shown by these shares."""
    masked = image.clone()
    for row, column in product(range(SIDE), range(SIDE)):
        share = float(cells[row // 4 * GRID + column // 4])
        masked[:, row, column] = image[:, row, column] * share + fill * (1 - share)
    with torch.no_grad():
        logits = model(masked[None])[0].double()
    return float(logits[target] if wanted == "score" else logits.softmax(dim=0)[target])


@pytest.mark.parametrize(("size", "fill", "wanted"), [(1, 0.0, "score"), (7, 0.4, "confidence")])
def test_sobol_equals_a_loop_over_the_formula(size, fill, wanted):
    model, n, d = tiny(), 4, GRID**2
    found = Sobol(n_designs=n, grid=GRID, fill=fill, wanted=wanted)(context_of(model, IMAGES, [2, 0], size=size, seed=5))
    numbers = qmc.Sobol(2 * d, rng=np.random.default_rng(5)).random(n)
    for image, target, maps in zip(IMAGES, (2, 0), found, strict=True):
        of_a = [score(model, image, row[:d], fill, target, wanted) for row in numbers]
        for cell in range(d):
            changes = []
            for row, known in zip(numbers, of_a, strict=True):
                mixed = row[:d].copy()
                mixed[cell] = row[d + cell]
                changes.append((known - score(model, image, mixed, fill, target, wanted)) ** 2)
            expected = sum(changes) / (2 * n * np.var(of_a, ddof=1))
            assert float(maps[cell // GRID, cell % GRID]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("size", "fill", "wanted"), [(1, 0.0, "confidence"), (7, 0.4, "score")])
def test_hsic_equals_the_trace_of_centred_kernels(size, fill, wanted):
    model, n, d = tiny(), 10, GRID**2
    found = HSIC(n_masks=n, grid=GRID, fill=fill, wanted=wanted)(context_of(model, IMAGES, [2, 0], size=size, seed=5))
    shown = (qmc.LatinHypercube(d, rng=np.random.default_rng(5)).random(n) > 0.5).astype(float)
    centre = np.eye(n) - np.ones((n, n)) / n
    for image, target, maps in zip(IMAGES, (2, 0), found, strict=True):
        scores = np.array([score(model, image, row, fill, target, wanted) for row in shown])
        likeness = np.exp(-((scores[:, None] - scores) ** 2) / (2 * np.median(scores) ** 2))
        for cell in range(d):
            kernel = 0.5 - (shown[:, cell, None] - shown[:, cell]) ** 2
            expected = np.trace(kernel @ centre @ likeness @ centre) / (n - 1) ** 2
            assert float(maps[cell // GRID, cell % GRID]) == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("method", [Sobol(n_designs=32, grid=4), HSIC(n_masks=200, grid=4, wanted="score")], ids=str)
def test_the_cell_that_counts_is_found(method):
    def corner(images: Tensor) -> Tensor:
        inside = images[:, :, :3, 9:].mean(dim=(1, 2, 3))
        return torch.stack([inside, -inside], dim=1)

    maps = method(context_of(_Called(corner), torch.ones(1, 3, SIDE, SIDE), [0], size=64))[0]
    assert int(maps.argmax()) == 3  # the upper right of 4 x 4 cells
    others = maps.flatten().tolist()
    largest = others.pop(3)
    if method.name == "sobol":  # all of the variance is that of one cell, up to that of its estimate
        assert max(others) == 0
        assert largest == pytest.approx(1, abs=0.2)
    else:
        assert largest > 10 * max(others)


class _Called(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


@pytest.mark.parametrize("method", [Sobol(n_designs=2, grid=2), HSIC(n_masks=4, grid=2)], ids=str)
def test_every_image_gets_the_same_masks_whatever_its_batch(method):
    both = method(context_of(tiny(), IMAGES, [2, 0], size=3, seed=1))
    alone = method(context_of(tiny(), IMAGES[1:], [0], size=5, seed=1))
    torch.testing.assert_close(both[1:], alone)
    assert not torch.allclose(both, method(context_of(tiny(), IMAGES, [2, 0], size=3, seed=2)))


def test_a_score_that_no_mask_changes_has_no_sobol_index():
    constant = _Called(lambda images: images.flatten(1)[:, :2] * 0 + 1)
    assert Sobol(n_designs=2, grid=2)(context_of(constant, IMAGES, [0, 0])).isnan().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sobol(n_designs=24), "takes a power of two of at least 2 for n_designs .* got n_designs=24, grid=8"),
        (lambda: Sobol(grid=0), "a grid of at least 1, got n_designs=32, grid=0"),
        (lambda: HSIC(n_masks=1), "takes n_masks of at least 2 and a grid of at least 1, got n_masks=1, grid=8"),
        (lambda: HSIC(wanted="hit"), "wanted is one of score, confidence, got 'hit'"),
    ],
)
def test_wrong_use_is_one_clear_line(make, message):
    with pytest.raises(ExplainerError, match=message):
        make()


def test_volumes_are_refused():
    with pytest.raises(ExplainerError, match="method 'sobol' explains images"):
        xaieval.explain(nn.Flatten(), torch.rand(1, 1, 4, 4, 4), method="sobol")
