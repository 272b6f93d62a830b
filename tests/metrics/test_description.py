"""Descriptions of maps: by hand, by slow loops, against Quantus and scipy, in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import xaieval
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import (
    METRICS,
    AreaAboveHalf,
    CenterX,
    CenterY,
    Entropy,
    Sparseness,
    area_above_half,
    center_of_mass,
    entropy,
    sparseness,
)

PROPERTY = settings(deadline=None, max_examples=60)
NAMES = ["sparseness", "entropy", "area_above_half", "center_x", "center_y"]


def _maps(count: int = 6, shape: tuple[int, ...] = (5, 7), seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) ** 3


def _close(found: Tensor, *expected: float) -> bool:
    wanted = torch.tensor(expected, dtype=torch.float64)
    return bool(torch.allclose(found.reshape(-1), wanted, rtol=1e-6, atol=1e-9, equal_nan=True))


# ---- checks that take the functions under test


def check_by_hand(describe: Any) -> None:
    maps = torch.tensor([[[0.0, 0.0], [0.2, 0.6]]])
    # Of 0, 0, 1/4, 3/4 in rising order: (-3 * 0 - 1 * 0 + 1 * 1/4 + 3 * 3/4) / 4
    assert _close(describe.sparseness(maps), 0.625)
    assert _close(describe.entropy(maps), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert _close(describe.area_above_half(maps), 25)
    assert _close(describe.center_of_mass(maps)[0], 0.75, 0.25 * 0.25 + 0.75 * 0.75)


def check_extremes(describe: Any) -> None:
    even, single, nothing = torch.full((1, 4, 5), 0.3), torch.zeros(1, 4, 5), torch.zeros(1, 4, 5)
    single[0, 1, 4] = 0.7
    maps = torch.cat([even, single, nothing])
    assert _close(describe.sparseness(maps), 0, 1 - 1 / 20, math.nan)
    assert _close(describe.entropy(maps), math.log(20), 0, math.nan)
    assert _close(describe.area_above_half(maps), 0, 5, 0)
    assert _close(describe.center_of_mass(maps)[:, 0], 0.5, 1.5 / 4, math.nan)
    assert _close(describe.center_of_mass(maps)[:, 1], 0.5, 4.5 / 5, math.nan)


def check_slow_loops(describe: Any) -> None:
    maps = _maps().double()
    for index, map_ in enumerate(maps.tolist()):
        values = sorted(value for row in map_ for value in row)
        total, count = sum(values), len(values)
        gini = 1 - 2 * sum(value / total * (count - k - 0.5) / count for k, value in enumerate(values))  # as Hurley and Rickard
        assert _close(describe.sparseness(maps)[index], gini)
        assert _close(describe.entropy(maps)[index], -sum(value / total * math.log(value / total) for value in values))
        assert _close(describe.area_above_half(maps)[index], 100 * sum(value > 0.5 for value in values) / count)
        y = sum(value * (row + 0.5) / 5 for row, line in enumerate(map_) for value in line) / total
        x = sum(value * (place + 0.5) / 7 for line in map_ for place, value in enumerate(line)) / total
        assert _close(describe.center_of_mass(maps)[index], y, x)


def check_half_itself_is_not_above_half(describe: Any) -> None:
    assert describe.area_above_half(torch.tensor([[[0.5, 0.5000001, 1.0, 0.0]]])).tolist() == [50]


def check_signs_do_not_matter(describe: Any) -> None:
    maps = _maps()
    signs = torch.where(_maps(seed=1) > 0.1, 1.0, -1.0)
    for name in ("sparseness", "entropy", "center_of_mass"):
        function = getattr(describe, name)
        assert torch.equal(function(signs * maps), function(maps)), name


def check_nan_is_nan(describe: Any) -> None:
    maps = _maps(2)
    maps[0, 1, 1] = torch.nan
    for name in ("sparseness", "entropy", "area_above_half", "center_of_mass"):
        found = getattr(describe, name)(maps).view(2, -1)
        assert found[0].isnan().all(), name
        assert found[1].isfinite().all(), name


def check_volumes_are_maps_too(describe: Any) -> None:
    maps = _maps(3, (2, 3, 4))
    for name in ("sparseness", "entropy", "area_above_half"):
        function = getattr(describe, name)
        assert torch.allclose(function(maps), function(maps.view(3, 6, 4)))
    single = torch.zeros(1, 2, 3, 4)
    single[0, 1, 0, 2] = 1
    assert _close(describe.center_of_mass(single)[0], 0.75, 0.5 / 3, 2.5 / 4)


MUTANTS = {
    "largest first": (".sort(dim=1)", ".sort(dim=1, descending=True)"),
    "not sorted": (".sort(dim=1).values", ""),
    "ranks from 0": ("torch.arange(1, count + 1,", "torch.arange(0, count,"),
    "Gini without its middle": ("2 * ranks - count - 1", "2 * ranks - count"),
    "Gini not divided": (".sum(dim=1) / count\n", ".sum(dim=1)\n"),
    "entropy in bits": ("entr(_shares(maps)).sum(dim=1)", "entr(_shares(maps)).sum(dim=1) / 0.6931"),
    "entropy of what is no distribution": ("entr(_shares(maps))", "entr(_flat(maps))"),
    "half counts": ("flat > 0.5", "flat >= 0.5"),
    "area as a share": ("(100 * (flat", "(1 * (flat"),
    "NaN is not above half": (".masked_fill(flat.isnan().any(dim=1), torch.nan)", ""),
    "centres at the pixels' edges": ("+ 0.5) / count", ") / count"),
    "centres in pixels": ("+ 0.5) / count", "+ 0.5)"),
    "axes swapped": ("axes = range(1, maps.ndim)", "axes = range(maps.ndim - 1, 0, -1)"),
    "signs cancel": ("_flat(maps).abs()", "_flat(maps)"),
}


test_descriptions_pass, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.description"], MUTANTS
)


# ---- other tools


def _quantus(name: str, maps: Tensor) -> np.ndarray:
    """A metric of Quantus on given maps, without its own normalisation and explanation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Quantus' own imports and remarks
        import quantus

        metric = getattr(quantus, name)(abs=True, normalise=False, disable_warnings=True)
        given = maps.numpy()
        images, labels = np.zeros((len(maps), 3, *maps.shape[1:]), dtype=np.float32), np.zeros(len(maps), dtype=int)
        return np.asarray(metric(model=None, x_batch=images, y_batch=labels, a_batch=given[:, None].copy()))


def test_sparseness_is_that_of_quantus_but_for_its_epsilon():
    maps = _maps(8, (16, 16)).double()
    np.testing.assert_allclose(_quantus("Sparseness", maps), sparseness(maps), rtol=0, atol=1e-5)
    shifted = sparseness(maps + 1e-7)
    np.testing.assert_allclose(_quantus("Sparseness", maps), shifted, rtol=0, atol=1e-12)


def test_where_there_is_nothing_quantus_calls_it_even_and_we_do_not_say():
    maps = _maps(2, (16, 16)).double()
    maps[0] = 0  # which Quantus refuses only if all maps of the batch are
    assert _quantus("Sparseness", maps)[0] == pytest.approx(0, abs=1e-9)
    assert sparseness(maps).isnan().tolist() == [True, False]


def test_entropy_is_the_complexity_of_quantus_but_for_its_epsilon():
    maps = _maps(8, (16, 16)).double()
    np.testing.assert_allclose(_quantus("Complexity", maps), entropy(maps), rtol=0, atol=1e-8)


def test_entropy_is_that_of_scipy():
    maps = _maps(8, (16, 16)).double()
    np.testing.assert_allclose(scipy.stats.entropy(maps.flatten(1).numpy(), axis=1), entropy(maps), rtol=1e-12)


def test_the_centre_is_that_of_scipy_in_shares_of_the_sides():
    maps = _maps(4, (5, 9)).double()
    for map_, found in zip(maps.numpy(), center_of_mass(maps), strict=True):
        y, x = scipy.ndimage.center_of_mass(map_)
        assert found.tolist() == pytest.approx([(y + 0.5) / 5, (x + 0.5) / 9])


# ---- properties

seeds = st.integers(0, 2**16)


@PROPERTY
@given(seeds, st.floats(1e-3, 1e3))
def test_scale_and_order_of_pixels_change_neither_sparseness_nor_entropy(seed, scale):
    maps = _maps(2, seed=seed).double()
    order = torch.randperm(35, generator=torch.Generator().manual_seed(seed))
    shuffled = scale * maps.flatten(1)[:, order].view(maps.shape)
    torch.testing.assert_close(sparseness(shuffled), sparseness(maps), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(entropy(shuffled), entropy(maps), rtol=1e-9, atol=1e-9)
    assert ((sparseness(maps) >= 0) & (sparseness(maps) <= 1 - 1 / 35)).all()
    assert ((entropy(maps) >= 0) & (entropy(maps) <= math.log(35) + 1e-9)).all()


@PROPERTY
@given(seeds)
def test_the_centre_moves_with_the_map(seed):
    maps = _maps(2, seed=seed).double()
    found = center_of_mass(maps)
    turned = center_of_mass(maps.flip(-1))
    torch.testing.assert_close(turned[:, 1], 1 - found[:, 1])
    torch.testing.assert_close(turned[:, 0], found[:, 0])
    torch.testing.assert_close(center_of_mass(maps.mT), found.flip(-1))
    wider = torch.nn.functional.interpolate(maps[:, None], scale_factor=2, mode="nearest")[:, 0]
    torch.testing.assert_close(center_of_mass(wider), found), "whatever the resolution"


# ---- errors, registry, classes, a run


@pytest.mark.parametrize("function", [sparseness, entropy, area_above_half, center_of_mass])
def test_what_is_no_batch_of_maps_is_refused_word_for_word(function):
    with pytest.raises(MetricError) as error:
        function(torch.ones(4, 4))
    assert str(error.value) == "maps are [N, H, W] (volumes [N, D, H, W]), got [4, 4]"


def test_no_description_is_better_high_or_low():
    assert [METRICS[name].higher_is_better for name in NAMES] == [None] * 5
    assert {METRICS[name].needs for name in NAMES} == {("maps",)}


def test_the_classes_are_means_over_batches_that_count_what_has_no_value():
    maps = _maps(7)
    maps[3] = 0
    expected = {
        Sparseness: sparseness(maps),
        Entropy: entropy(maps),
        AreaAboveHalf: area_above_half(maps),
        CenterX: center_of_mass(maps)[:, 1],
        CenterY: center_of_mass(maps)[:, 0],
    }
    for kind, values in expected.items():
        metric = kind()
        metric.update(maps[:5])
        metric.update(maps[5:])
        assert float(metric.compute()) == pytest.approx(float(values.nanmean()), abs=1e-12)
        assert int(getattr(metric, f"{metric.metric.name}_failed")) == (0 if kind is AreaAboveHalf else 1)
        assert metric.higher_is_better is None


def test_a_run_describes_the_maps_that_explain_gives():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    images = torch.randn(5, 3, 8, 10, generator=torch.Generator().manual_seed(2))
    scores = xaieval.score(model.eval(), [images], "1", metrics=NAMES, progress=False)
    maps = xaieval.explain(model, images, "1")["1"]
    expected = [sparseness(maps), entropy(maps), area_above_half(maps), center_of_mass(maps)[:, 1], center_of_mass(maps)[:, 0]]
    for name, values in zip(NAMES, expected, strict=True):
        np.testing.assert_allclose(scores.rows[name], values, rtol=1e-4, atol=1e-6)
    with pytest.raises(MetricError, match="no metric 'entropy' to select layers by"):
        scores.select_layers(by=["entropy"])
