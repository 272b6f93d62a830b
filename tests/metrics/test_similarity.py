"""Pearson, Spearman and SSIM: by hand, by slow loops, against scipy and scikit-image, and their invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from packaging.version import Version
from scipy.stats import pearsonr, rankdata, spearmanr
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from xaieval.errors import MetricError
from xaieval.metrics import SIMILARITIES, pearson, spearman, ssim
from xaieval.metrics.similarity import resolve_similarity

PROPERTY = settings(deadline=None, max_examples=50)


def pair(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(shape, generator=generator)
    return first, 0.5 * first + 0.5 * torch.rand(shape, generator=generator)


# ---- by hand


def test_correlations_by_hand():
    first = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    second = torch.tensor([[[1.0, 3.0], [2.0, 10.0]]])
    # Around the means: (-1.5, -0.5, 0.5, 1.5) and (-3, -1, -2, 6).
    assert float(pearson(first, second)) == pytest.approx((4.5 + 0.5 - 1 + 9) / math.sqrt(5 * 50), abs=1e-12)
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15).
    assert float(spearman(first, second)) == pytest.approx(0.8, abs=1e-12)


def test_equal_values_share_the_mean_of_their_ranks():
    first = torch.tensor([[[0.0, 0.0, 0.0, 5.0, 7.0, 7.0]]])
    second = torch.tensor([[[2.0, 2.0, 2.0, 4.0, 5.5, 5.5]]])  # the ranks themselves
    assert float(spearman(first, second)) == pytest.approx(1, abs=1e-12)
    assert float(pearson(second, second)) == pytest.approx(1, abs=1e-12)
    other = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]])
    assert float(spearman(first, other)) == pytest.approx(float(pearson(second, other)), abs=1e-12)


def test_structural_similarity_of_constant_maps_is_its_luminance_term():
    black, grey = torch.zeros(1, 12, 13), torch.full((1, 12, 13), 0.5)
    c1 = 0.01**2
    assert float(ssim(black, grey)) == pytest.approx(c1 / (0.25 + c1), abs=1e-12)
    assert float(ssim(black, black)) == 1


# ---- slow loops


def test_correlations_by_slow_loops():
    first, second = pair(4, 5, 3)
    first[1, :2] = 0  # ties
    for number in range(4):
        x, y = first[number].flatten().tolist(), second[number].flatten().tolist()
        for function, values in ((pearson, (x, y)), (spearman, (rankdata(x), rankdata(y)))):
            mx, my = (sum(v) / 15 for v in values)
            top = sum((a - mx) * (b - my) for a, b in zip(*values, strict=True))
            below = math.sqrt(sum((a - mx) ** 2 for a in values[0]) * sum((b - my) ** 2 for b in values[1]))
            assert float(function(first, second)[number]) == pytest.approx(top / below, abs=1e-12)


def test_structural_similarity_by_a_slow_loop_over_windows():
    first, second = pair(2, 14, 13)
    steps = np.arange(-5, 6)
    line = np.exp(-0.5 * (steps / 1.5) ** 2)
    weights = np.outer(line, line) / line.sum() ** 2
    for number in range(2):
        found = []
        for row in range(4):
            for column in range(3):
                x, y = (maps[number, row : row + 11, column : column + 11].double().numpy() for maps in (first, second))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                vxy = (weights * (x - mx) * (y - my)).sum()
                light = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
                found.append(light * (2 * vxy + 0.03**2) / (vx + vy + 0.03**2))
        assert float(ssim(first, second)[number]) == pytest.approx(np.mean(found), abs=1e-10)


# ---- foreign implementations


@pytest.mark.parametrize("shape", [(5, 9, 7), (3, 4, 5, 6)])
def test_correlations_are_those_of_scipy_to_1e_12(shape):
    first, second = pair(*shape)
    first, second = first.double(), (second * 8).round().double()  # with many ties
    for number in range(shape[0]):
        flat = first[number].flatten().numpy(), second[number].flatten().numpy()
        assert float(pearson(first, second)[number]) == pytest.approx(pearsonr(*flat).statistic, abs=1e-12)
        assert float(spearman(first, second)[number]) == pytest.approx(spearmanr(*flat).statistic, abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 32, 27), (2, 11, 11), (2, 12, 13, 14)])
def test_structural_similarity_is_that_of_scikit_image_to_1e_10(shape):
    from skimage.metrics import structural_similarity

    first, second = (maps.double() for maps in pair(*shape))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    expected = [structural_similarity(a.numpy(), b.numpy(), **options) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(ssim(first, second), expected, atol=1e-10)


def test_windows_are_those_of_torchmetrics_which_counts_those_over_the_edge_too():
    first, second = (maps.double() for maps in pair(2, 20, 20))
    with_edge, windows = structural_similarity_index_measure(
        first[:, None], second[:, None], data_range=1.0, reduction="none", return_full_image=True
    )
    np.testing.assert_allclose(ssim(first, second), windows[:, 0, 5:-5, 5:-5].flatten(1).mean(dim=1), atol=1e-10)
    if Version(torchmetrics.__version__) >= Version("1.9"):  # old releases average over the same windows as we do
        assert (with_edge - ssim(first, second)).abs().min() > 1e-4


# ---- properties

grids = arrays(np.float64, (2, 3, 4), elements=st.integers(-20, 20).map(float))


@PROPERTY
@given(grids, grids, st.floats(0.01, 100), st.floats(-100, 100))
def test_correlations_are_symmetric_and_depend_on_neither_scale_nor_offset(one, other, scale, offset):
    first, second = torch.from_numpy(one), torch.from_numpy(other)
    for function in (pearson, spearman):
        found = function(first, second)
        assert found.isnan().tolist() == [bool(np.ptp(a) == 0 or np.ptp(b) == 0) for a, b in zip(one, other, strict=True)]
        assert ((found.abs() <= 1) | found.isnan()).all()
        for same in (function(second, first), function(scale * first + offset, second), -function(-scale * first, second)):
            torch.testing.assert_close(same, found, rtol=0, atol=1e-9, equal_nan=True)


@PROPERTY
@given(grids, grids)
def test_rank_correlation_depends_on_order_alone(one, other):
    first, second = torch.from_numpy(one), torch.from_numpy(other)
    torch.testing.assert_close(
        spearman((first / 5).exp(), second**3), spearman(first, second), rtol=0, atol=1e-12, equal_nan=True
    )


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_tiny_and_huge_values_neither_vanish_nor_overflow(scale):
    first, second = (maps.double() for maps in pair(2, 5, 5))
    torch.testing.assert_close(pearson(scale * first, second), pearson(first, second), rtol=1e-9, atol=0)


# ---- what has no value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", list(SIMILARITIES))
def test_a_map_with_a_value_that_is_not_finite_has_no_similarity_and_leaves_the_others_alone(name, bad):
    first, second = pair(3, 12, 12)
    expected = SIMILARITIES[name](first, second)
    first[1, 4, 4] = bad
    found = SIMILARITIES[name](first, second)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], expected[[0, 2]])


def test_shapes_are_refused_word_for_word():
    for function in SIMILARITIES.values():
        with pytest.raises(MetricError) as error:
            function(torch.ones(2, 12, 12), torch.ones(2, 12, 13))
        assert str(error.value) == "maps [N, H, W] are compared with maps of their shape, got [2, 12, 12] and [2, 12, 13]"
    with pytest.raises(MetricError) as error:
        ssim(torch.ones(2, 10, 30), torch.ones(2, 10, 30))
    assert str(error.value) == (
        "ssim compares maps by windows of 11 pixels a side, got [2, 10, 30]; upsample smaller maps, or use pearson or spearman"
    )
    with pytest.raises(
        MetricError, match=r"^no similarity 'spearmann'; did you mean 'spearman' or 'pearson'\? known: pearson, spearman, ssim$"
    ):
        resolve_similarity("spearmann")
