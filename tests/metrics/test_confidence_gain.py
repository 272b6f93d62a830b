"""Average Gain: by hand, by a slow loop, as the mirror of Average Drop, as a torchmetrics class, and in a run.

The `check_*` functions take the functions under test as an argument: `tests.mutants` also calls them with wrong formulas.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchmetrics import MetricCollection

import xaieval
from tests.mutants import mutation_tests
from xaieval.errors import MetricError
from xaieval.metrics import (
    METRICS,
    AverageDrop,
    AverageGain,
    IncreaseInConfidence,
    average_drop,
    average_gain,
    drop,
    gain,
    increase,
    increase_in_confidence,
    resolve_metrics,
)

PROPERTY = settings(deadline=None, max_examples=100)

NAN, INF = math.nan, math.inf

# Y and O of six images: a loss, half of what was left, a tie, everything that was left, nothing left, a little of much.
CONFIDENCE = [0.8, 0.5, 0.4, 0.9, 1.0, 0.2]
MASKED = [0.6, 0.75, 0.4, 1.0, 1.0, 0.24]
GAINS = [0.0, 50.0, 0.0, 100.0, 0.0, 5.0]


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _same(found: Tensor, expected: list[float]) -> bool:
    return bool(torch.allclose(found, _vector(*expected), rtol=1e-12, atol=1e-12, equal_nan=True))


# ---- checks that take the functions under test


def check_by_hand(metrics: Any) -> None:
    y, o = _vector(*CONFIDENCE), _vector(*MASKED)
    assert _same(metrics.gain(y, o), GAINS)
    assert float(metrics.average_gain(y, o)) == pytest.approx(155 / 6, abs=1e-12)


def check_slow_loop(metrics: Any) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 50):
        y, o = rng.uniform(0.01, 0.99, count), rng.uniform(0, 1, count)
        total = 0.0
        for yi, oi in zip(y, o, strict=True):
            total += max(0.0, oi - yi) / (1 - yi)
        found = metrics.average_gain(torch.from_numpy(y), torch.from_numpy(o))
        assert float(found) == pytest.approx(100 * total / count, abs=1e-9)


def check_nothing_is_to_be_gained_where_y_is_one(metrics: Any) -> None:
    assert _same(metrics.gain(_vector(1, 1, 1), _vector(1, 0.5, 0)), [0.0, 0.0, 0.0])


def check_no_epsilon_hides_small_distances_from_one(metrics: Any) -> None:
    close = 2.0**-40
    assert _same(metrics.gain(_vector(1 - close, 1 - close), _vector(1, 1 - close / 2)), [100.0, 50.0])


def check_unusable_values_are_nan(metrics: Any) -> None:
    pairs = [(0, 0.5), (0, 0), (-0.5, 0.2), (NAN, 0.5), (0.5, NAN), (INF, 0.5), (0.5, INF), (0.5, -INF)]
    no_probabilities = [(1.5, 0.5), (1.5, 2), (0.5, 1.5), (1, 1.5), (1 + 2.0**-40, 1), (1, 1 + 2.0**-40)]
    y, o = (_vector(*column) for column in zip(*pairs, *no_probabilities, strict=True))
    assert metrics.gain(y, o).isnan().all()


def check_one_unusable_value_makes_the_mean_nan(metrics: Any) -> None:
    for bad in ((NAN, 0.5), (0.5, NAN), (0.0, 0.5), (0.5, 1.5)):
        assert math.isnan(metrics.average_gain(_vector(0.5, bad[0]), _vector(0.2, bad[1])))


def check_precision_is_that_of_float64(metrics: Any) -> None:
    y, o = torch.tensor([1 / 3]), torch.tensor([2 / 3])
    assert metrics.gain(y, o).dtype == metrics.average_gain(y, o).dtype == torch.float64
    expected = 100 * (float(o) - float(y)) / (1 - float(y))
    assert float(metrics.gain(y, o)) == pytest.approx(expected, abs=1e-12)


def check_shapes_and_nothing_are_refused(metrics: Any) -> None:
    for function in (metrics.gain, metrics.average_gain):
        for y, o in ((torch.ones(2), torch.ones(3)), (torch.ones(2, 2), torch.ones(2, 2)), (torch.ones(()), torch.ones(()))):
            with pytest.raises(MetricError):
                function(y, o)
    with pytest.raises(MetricError):
        metrics.average_gain(torch.zeros(0), torch.zeros(0))


MUTANTS = {
    "not divided": (" / (1 - y),", ","),
    "divided by Y": ("/ (1 - y)", "/ y"),
    "divided by 1 - O": ("/ (1 - y)", "/ (1 - o)"),
    "epsilon in the denominator": ("/ (1 - y)", "/ (1 - y + 1e-7)"),
    "losses count as negative gains": ("(o - y).clamp(min=0)", "(o - y)"),
    "gain turned around": ("(o - y)", "(y - o)"),
    "gain as a share": ("(100 * share)", "(1 * share)"),
    "Y = 1 is NaN": ("torch.where(y < 1,", "torch.where(y <= 1,"),
    "Y = 1 is left out": ("(y > 1)", "(y >= 1)"),
    "O = 1 is left out": ("(o > 1)", "(o >= 1)"),
    "Y above 1 counts": (" | (y > 1)", ""),
    "O above 1 counts": (" | (o > 1)", ""),
    "Y = 0 counts": ("(y > 0)", "(y >= 0)"),
    "invalid values count": ("~valid(y, o) | (y", "(y"),
    "mean of another metric": ("mean_of(gain(", "mean_of(confidence_ratio("),
    "failed images dropped from the mean": ("values.mean()", "values.nanmean()"),
    "gains summed, not averaged": ("values.mean()", "values.sum()"),
}


test_average_gain_passes, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.confidence"], MUTANTS
)


# ---- properties

shares = st.floats(2.0**-20, 1 - 2.0**-20)
confidences = st.lists(st.tuples(shares, st.floats(0.0, 1.0)), min_size=1, max_size=20).map(
    lambda pairs: tuple(_vector(*values) for values in zip(*pairs, strict=True))
)


@PROPERTY
@given(confidences)
def test_average_gain_is_a_percentage_and_an_image_gains_where_its_confidence_increases(pair):
    y, o = pair
    values = gain(y, o)
    assert ((values >= 0) & (values <= 100)).all()
    assert 0 <= average_gain(y, o) <= 100
    assert ((values > 0) == (increase(y, o) == 100)).all()
    assert not ((values > 0) & (drop(y, o) > 0)).any(), "an image does not gain and drop"


@PROPERTY
@given(confidences)
def test_the_gain_of_a_class_is_the_drop_of_all_others(pair):
    y, o = pair
    np.testing.assert_allclose(gain(y, o), drop(1 - y, 1 - o), atol=1e-6)
    assert float(average_gain(y, o)) == pytest.approx(float(average_drop(1 - y, 1 - o)), abs=1e-6)


@PROPERTY
@given(confidences, st.floats(0.0, 1.0))
def test_a_higher_masked_confidence_never_gains_less(pair, share):
    y, o = pair
    higher = (o + share * (1 - o)).clamp(max=1)
    assert (gain(y, higher) >= gain(y, o) - 1e-9).all()


# ---- errors and the registry


def test_wrong_shapes_and_nothing_are_refused_word_for_word():
    for function in (gain, average_gain):
        with pytest.raises(MetricError) as error:
            function(torch.ones(2), torch.ones(3))
        assert str(error.value) == "confidence and masked_confidence are vectors [N] of one length, got [2] and [3]"
    with pytest.raises(MetricError) as error:
        average_gain(torch.ones(0), torch.ones(0))
    assert str(error.value) == "a mean needs at least one image, got none; give at least one confidence"


def test_average_gain_is_found_by_name():
    (metric,) = resolve_metrics("average_gain")
    assert metric is METRICS["average_gain"]
    assert metric.name == "average_gain"
    assert metric.per_image is gain
    assert metric.higher_is_better
    assert metric.interval == "mean"
    assert metric.label == "AG %"
    assert [one.name for one in resolve_metrics(["average_gain", "average_drop"])] == ["average_gain", "average_drop"]


# ---- torchmetrics


def _batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(0.98 * torch.rand(n, generator=generator) + 0.01, torch.rand(n, generator=generator)) for n in (5, 1, 8)]


def test_the_class_over_batches_equals_the_function_over_all_images():
    metric, batches = AverageGain(), _batches()
    for y, o in batches:
        assert float(metric(y, o)) == pytest.approx(float(average_gain(y, o)), abs=1e-12)
    y, o = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert metric.compute().dtype == torch.float64
    assert float(metric.compute()) == pytest.approx(float(average_gain(y, o)), abs=1e-12)
    assert metric.higher_is_better


def test_the_class_leaves_failed_images_out_and_counts_them_until_reset():
    metric = AverageGain()
    metric.update(_vector(0.8, 0.0, 0.5), _vector(0.6, 0.5, 0.9))
    metric.update(_vector(NAN, 0.5, 1.5), _vector(0.1, INF, 0.5))
    assert int(metric.average_gain_failed) == 4
    assert int(metric.average_gain_count) == 2
    assert float(metric.compute()) == pytest.approx(40)
    metric.reset()
    metric.update(_vector(0.5), _vector(0.6))
    assert int(metric.average_gain_failed) == 0
    assert float(metric.compute()) == pytest.approx(20)


def test_the_class_without_a_valid_image_is_nan_and_not_zero():
    metric = AverageGain()
    metric.update(_vector(0.0, NAN), _vector(0.5, 0.5))
    assert math.isnan(metric.compute())


def test_the_class_refuses_what_the_function_refuses():
    with pytest.raises(MetricError, match=r"vectors \[N\] of one length, got \[2\] and \[3\]"):
        AverageGain().update(torch.ones(2), torch.ones(3))


@pytest.mark.parametrize("groups", [True, False])
def test_a_collection_keeps_all_three_apart_whose_states_are_equal_after_the_first_batch(groups):
    # One full drop, one full gain, one increase: each total is 100 of 2 images, which is where torchmetrics would merge them.
    first = (_vector(0.5, 0.5), _vector(0.0, 1.0))
    second = (_vector(0.8, 0.4, 0.9), _vector(0.6, 0.5, 0.8))
    collection = MetricCollection([AverageDrop(), AverageGain(), IncreaseInConfidence()], compute_groups=groups)
    for batch in (first, second):
        collection.update(*batch)
    y, o = (torch.cat(parts) for parts in zip(first, second, strict=True))
    values = collection.compute()
    assert float(values["AverageDrop"]) == pytest.approx(float(average_drop(y, o)))
    assert float(values["AverageGain"]) == pytest.approx(float(average_gain(y, o)))
    assert float(values["IncreaseInConfidence"]) == pytest.approx(float(increase_in_confidence(y, o)))


# ---- in a run


def test_a_run_has_a_column_of_gains_and_a_summary_with_their_interval():
    torch.manual_seed(6)  # with gains that differ, since equal ones have no interval
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    scores = xaieval.score(model.eval(), [images], "1", metrics=["average_gain"], progress=False)
    y, o = (torch.from_numpy(scores.rows[name].to_numpy(copy=True)) for name in ("confidence", "masked_confidence"))
    np.testing.assert_allclose(scores.rows["average_gain"], gain(y, o))
    summary = scores.summary().loc[("1", "gradcam")]
    assert summary["average_gain"] == pytest.approx(float(average_gain(y, o)))
    assert summary["average_gain_low"] <= summary["average_gain"] <= summary["average_gain_high"]
    assert (summary["n_images"], summary["n_failed"]) == (12, 0)
