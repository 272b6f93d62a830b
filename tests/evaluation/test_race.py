"""The race of pairs: worked by hand, against a slow loop over the definition, and by how often the best pair is dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import xaieval
from tests.evaluation.bets import largest_capital
from xaieval.analysis.stats.intervals import wilson_interval
from xaieval.analysis.stats.sequential import SignTest
from xaieval.errors import ConfigError, MetricError
from xaieval.evaluation.drawn_values import bounds_of
from xaieval.evaluation.race import Race, Racing
from xaieval.metrics import METRICS, Metric

INSERTION = "insertion"
BOUNDS = (0.0, 100.0)


def _pairs(count: int) -> list[tuple[str, str]]:
    return [(f"layer{number}", "gradcam") for number in range(count)]


def _rows(values: NDArray[np.float64], first: int, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Rows image by image of values `[n, P]`; NaN is a map that failed."""
    return pd.DataFrame(
        {"image_id": f"{first + number}", "layer": layer, "method": method, INSERTION: value}
        | {"status": "nan_map" if math.isnan(value) else "ok"}
        for number, image in enumerate(values)
        for (layer, method), value in zip(pairs, image, strict=True)
    )


def _run(values: NDArray[np.float64], race: Race, batch: int, higher: bool = True) -> Racing:
    """A race over all images in the order of the rows; only pairs that are running are measured."""
    pairs = _pairs(values.shape[1])
    racing = race.start(len(values), pairs, {race.by: higher}, BOUNDS)
    for start in range(0, len(values), batch):
        columns = [pairs.index(pair) for pair in racing.running]
        racing.add(_rows(values[start : start + batch, columns], start, racing.running))
        if racing.finished:
            break
    return racing


def _slow(values: NDArray[np.float64], error: float, batch: int) -> tuple[set[int], int]:
    """The pairs that are left and the images seen, by the definition."""
    population, count = values.shape
    left = set(range(count))
    for seen in range(batch, population + batch, batch):
        seen = min(seen, population)
        beaten = set()
        for a in left:
            for b in left - {a}:
                pairwise = [
                    (x - y) / 100 if math.isfinite(x - y) else 0.0
                    for x, y in zip(values[:seen, b], values[:seen, a], strict=True)
                ]
                if seen == population:
                    ahead = sum(pairwise) > 1e-5 * population
                else:
                    ahead = largest_capital(pairwise, population) >= (count - 1) / error
                if ahead:
                    beaten.add(a)
        assert beaten != left
        left -= beaten
        if len(left) == 1:
            break
    return left, seen


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(2, 5), st.sampled_from([3, 5, 50]), st.booleans())
def test_the_race_is_that_of_the_slow_loop(seed, images, pairs, batch, higher):
    rng = np.random.default_rng(seed)
    values = 25.0 * rng.binomial(4, rng.uniform(0.05, 0.95, pairs), (images, pairs))
    values[rng.random(values.shape) < 0.05] = np.nan
    racing = _run(values if higher else 100 - values, Race(by=INSERTION, error=0.3), batch, higher)
    try:
        left, seen = _slow(values, 0.3, batch)
    except AssertionError:  # a circle, which missing values make possible
        return
    assert ({racing.pairs.index(pair) for pair in racing.running}, racing.images) == (left, seen)
    means = {n: np.nanmean(values[:seen, n]) if np.isfinite(values[:seen, n]).any() else -1 for n in left}
    assert means[racing.pairs.index(racing.order()[0])] >= max(means.values()) - 1e-6


def test_by_hand():
    values = np.tile([80.0, 20.0, 75.0], (40, 1))
    values[1::2, 2] = 85.0  # the same mean as the first
    racing = _run(values, Race(by=INSERTION), batch=10)
    told = racing.to_dict()
    assert told["best"] == ["layer0", "gradcam"]
    assert told["undecided"] == [["layer2", "gradcam"]]
    assert [entry["layer"] for entry in told["dropped"]] == ["layer1"]
    assert told["dropped"][0]["images"] == 10
    assert largest_capital([0.6] * 8, 40) < 2 / 0.05 < largest_capital([0.6] * 9, 40)  # two rivals have half of the error each
    assert racing.spent == pytest.approx((40 + 10 + 40) / 120)
    assert told["reason"] == "2 of 3 pairs have the same mean insertion on all 40 images"
    json.dumps(told)


def test_one_pair_that_is_left_ends_the_race():
    racing = _run(np.tile([90.0, 10.0], (200, 1)), Race(by=INSERTION), batch=10)
    assert racing.finished
    assert racing.images < 40
    reason = f"gradcam at layer0 is the best of 2 pairs by insertion, at error 0.05, after {racing.images} of 200 images"
    assert racing.reason() == reason


def test_max_images_ends_the_race_with_those_that_are_left():
    rng = np.random.default_rng(0)
    racing = _run(rng.uniform(0, 100, (500, 3)), Race(by=INSERTION, max_images=60), batch=25)
    assert (racing.images, len(racing.running)) == (75, 3)
    assert racing.reason().startswith("3 of 3 pairs cannot be told apart by insertion, at error 0.05, after 75 of 500 images; ")


def test_rounding_does_not_decide_between_methods_that_are_the_same():
    values = np.random.default_rng(0).uniform(20, 80, (60, 1)) + np.array([[0, 1e-5]])
    assert len(_run(values, Race(by=INSERTION), batch=20).running) == 2


def test_pairs_in_a_circle_leave_the_best_mean():
    missing = np.array([[np.nan, 90, 10], [10, np.nan, 90], [90, 10, np.nan]])  # each beats one and is beaten by one
    values = np.tile(missing, (100, 1))
    racing = _run(values, Race(by=INSERTION), batch=50)
    assert len(racing.running) == 1


def test_a_pair_that_is_left_out_takes_no_part():
    pairs = _pairs(3)
    race = Race(by=INSERTION, left_out={pairs[1]: "does not fit"})
    racing = race.start(10, pairs, {INSERTION: True}, BOUNDS)
    assert racing.running == [pairs[0], pairs[2]]
    assert racing.to_dict()["left_out"] == [{"layer": "layer1", "method": "gradcam", "reason": "does not fit"}]


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.02, 0.1])
def test_the_best_pair_is_dropped_less_often_than_the_error_says(gap):
    """The hardest case: rivals that are hardly worse, and many looks. With 400 races of error 0.1, 40 are allowed."""
    rng = np.random.default_rng(1)
    values = rng.beta(1, 1, (300, 6))
    values[:, 1:] = np.stack([rng.permutation(values[:, 0]) for _ in range(5)], axis=1)
    values[:, 1:] = np.clip(values[:, 1:] - gap * rng.random((300, 5)), 0, 1)
    best = int(np.argmax(values.mean(axis=0).round(9)))
    first, second = np.triu_indices(6, 1)
    lost = 0
    for _ in range(400):
        order = rng.permutation(300)
        test = SignTest(300, len(first))  # without the bookkeeping of the rows, which would take minutes
        for start in range(0, 290, 10):
            part = values[order[start : start + 10]]
            test.add(part[:, first] - part[:, second])
        signs = test.signs(0.1 / 5)
        beaten = set(second[signs == 1]) | set(first[signs == -1])
        lost += best in beaten
    assert wilson_interval(lost, 400)[0] <= 0.1


def test_tests_that_are_kept_go_on_unchanged():
    values = np.random.default_rng(0).uniform(-1, 1, (40, 4))
    test, alone = SignTest(50, 4), SignTest(50, 2)
    test.add(values[:20])
    test.keep([3, 1])
    test.add(values[20:, [3, 1]])
    alone.add(values[:, [3, 1]])
    np.testing.assert_array_equal(test.evidence, alone.evidence)
    np.testing.assert_array_equal(test.sums, alone.sums)


@pytest.mark.parametrize(
    "settings", [{"error": 0}, {"error": 1.0}, {"max_images": 0}, {"max_images": 10.0}, {"max_images": True}]
)
def test_bad_settings(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Race(**settings)


def test_a_race_needs_two_pairs_and_a_metric_of_the_run():
    with pytest.raises(MetricError, match="a race needs two pairs"):
        Race(by=INSERTION).start(10, _pairs(1), {INSERTION: True}, BOUNDS)
    with pytest.raises(MetricError, match="no metric 'deletion' to stop by"):
        Race(by="deletion").start(10, _pairs(2), {INSERTION: True}, BOUNDS)


def test_the_bounds_are_those_of_the_metric_and_of_its_excess():
    metrics = [METRICS["average_drop"], METRICS["insertion"], METRICS["morf"], METRICS["infidelity"]]
    bounds = {
        "average_drop": (0, 100),
        "insertion": (0, 1),
        "morf": (-1, 1),
        "insertion_excess": (-1, 1),
        "morf_excess": (-2, 2),
    }
    assert {name: bounds_of(name, metrics) for name in bounds} == bounds
    with pytest.raises(MetricError, match="the values of 'infidelity' have no bounds"):
        bounds_of("infidelity", metrics)
    with pytest.raises(MetricError, match="bounds are a smallest and a largest value"):
        Metric("own", lambda y, o: y - o, True, bounds=(1, 0))


def test_values_of_the_curves_lie_within_their_bounds():
    """A confidence that is 0 or 1 in any order takes every curve to its limits."""
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv2d(3, 2, 16), nn.Flatten())
    bounded = ["insertion", "deletion", "morf", "lerf", "road", "road_morf", "road_lerf", "abpc", "sic", "saco", "mu_fidelity"]
    with torch.no_grad():
        model[0].weight.mul_(100)
    scores = xaieval.score(model, [images], (), ["captum:Saliency", "random"], bounded, progress=False)
    for name in bounded:
        low, high = METRICS[name].bounds
        values = scores.rows[name].dropna()
        assert len(values), name
        assert values.between(low - 1e-9, high + 1e-9).all(), name
