"""Win percentage: by hand, by a slow loop, as a torchmetrics class, and the table of a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import xaieval
from tests.mutants import mutation_tests
from xaieval.analysis.stats.intervals import wilson_interval
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores
from xaieval.metrics import METRICS, WinPercentage, win, win_percentage

PROPERTY = settings(deadline=None, max_examples=100)

NAN, INF = math.nan, math.inf


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _same(found: Tensor, expected: list[float]) -> bool:
    return bool(torch.allclose(found, _vector(*expected), rtol=1e-12, atol=1e-12, equal_nan=True))


# ---- checks that take the functions under test


def check_by_hand(metrics: Any) -> None:
    ours, theirs = _vector(10, 0, 30, 0, 50), _vector(20, 0, 5, 1, 50)
    assert _same(metrics.win(ours, theirs), [100.0, 0.0, 0.0, 100.0, 0.0])
    assert float(metrics.win_percentage(ours, theirs)) == pytest.approx(40)
    assert float(metrics.win_percentage(theirs, ours)) == pytest.approx(20), "two of five are ties, and wins of neither"


def check_slow_loops(metrics: Any) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 50):
        ours, theirs = rng.uniform(0, 1, count), rng.uniform(0, 1, count)
        wins = sum(100 for one, other in zip(ours, theirs, strict=True) if one < other) / count
        assert float(metrics.win_percentage(torch.from_numpy(ours), torch.from_numpy(theirs))) == pytest.approx(wins)


def check_unusable_values_are_nan(metrics: Any) -> None:
    pairs = [(0, 0.5), (0, 0), (-0.5, 0.2), (NAN, 0.5), (0.5, NAN), (INF, 0.5), (0.5, INF), (0.5, -INF)]
    ours, theirs = (_vector(*column) for column in zip(*pairs, strict=True))
    assert metrics.win(ours, theirs)[3:].isnan().all()
    assert not metrics.win(ours, theirs)[:3].isnan().any(), "a drop of 0 is the best possible one"
    assert math.isnan(metrics.win_percentage(ours, theirs))


def check_precision_is_that_of_float64(metrics: Any) -> None:
    ours, theirs = torch.tensor([1.0]), torch.tensor([1 / 3])
    for function in (metrics.win, metrics.win_percentage):
        assert function(ours, theirs).dtype == torch.float64


def check_shapes_and_nothing_are_refused(metrics: Any) -> None:
    for function in (metrics.win, metrics.win_percentage):
        for y, o in ((torch.ones(2), torch.ones(3)), (torch.ones(2, 2), torch.ones(2, 2)), (torch.ones(()), torch.ones(()))):
            with pytest.raises(MetricError):
                function(y, o)
    with pytest.raises(MetricError):
        metrics.win_percentage(torch.zeros(0), torch.zeros(0))


MUTANTS = {
    "ties are wins": ("ours < theirs", "ours <= theirs"),
    "the larger drop wins": ("ours < theirs", "ours > theirs"),
    "only one of the drops is looked at": ("ours.isfinite() & theirs.isfinite()", "ours.isfinite()"),
    "wins as a share": ("(100 * (ours", "(1 * (ours"),
}

test_the_win_percentage_passes, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.confidence", "xaieval.metrics.win_percentage"], MUTANTS
)


# ---- properties

pairs_of_drops = st.lists(st.tuples(st.floats(2.0**-20, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=20).map(
    lambda pairs: tuple(_vector(*values) for values in zip(*pairs, strict=True))
)


@PROPERTY
@given(pairs_of_drops)
def test_wins_of_the_one_of_the_other_and_ties_are_all_images(pair):
    ties = 100 * float((pair[0] == pair[1]).double().mean())
    assert float(win_percentage(*pair)) + float(win_percentage(*reversed(pair))) + ties == pytest.approx(100)


# ---- errors, registry, class


@pytest.mark.parametrize("function", [win, win_percentage])
def test_wrong_shapes_are_refused_word_for_word(function):
    with pytest.raises(MetricError) as error:
        function(torch.ones(2), torch.ones(3))
    assert str(error.value) == "drops and other_drops are vectors [N] of one length, got [2] and [3]"


def test_no_run_measures_it():
    assert "win_percentage" not in METRICS, "it compares two methods, and a metric of a run sees one"


def test_the_class_is_the_mean_over_batches_without_failed_images():
    generator = torch.Generator().manual_seed(0)
    metric, values = WinPercentage(), []
    for count in (5, 1, 8):
        ours, theirs = torch.rand(count, generator=generator) + 0.01, torch.rand(count, generator=generator)
        assert float(metric(ours, theirs)) == pytest.approx(float(win(ours, theirs).mean()), abs=1e-9)
        values.append(win(ours, theirs))
    metric.update(_vector(NAN, 0.5), _vector(0.5, INF))
    assert float(metric.compute()) == pytest.approx(float(torch.cat(values).mean()), abs=1e-9)
    assert int(metric.win_percentage_failed) == 2
    assert metric.higher_is_better
    metric.reset()
    metric.update(_vector(NAN), _vector(0.5))
    assert math.isnan(metric.compute()), "no image is no number"


# ---- the table of a run


def _model() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*layers).eval()


def _images() -> Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))


DROP = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
GAIN = {"name": "average_gain", "higher_is_better": True, "interval": "mean"}
AREA = {"name": "area", "higher_is_better": None, "interval": "mean"}


def _scores(drops: dict[tuple[str, str], list[float]], **columns: Any) -> Scores:
    tables = [
        pd.DataFrame({"image_id": range(len(values)), "layer": layer, "method": method, "status": "ok", "average_drop": values})
        for (layer, method), values in drops.items()
    ]
    rows = pd.concat(tables, ignore_index=True).assign(area=1.0, **columns)
    return Scores(rows.assign(average_gain=-rows["average_drop"]), {"metrics": [DROP, GAIN, AREA]})


def test_two_methods_have_the_win_percentage_of_the_pure_function():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, 40).astype(float), rng.integers(0, 4, 40).astype(float)
    table = _scores({("a", "one"): list(first), ("a", "two"): list(second)}).win_percentages()
    ours, theirs = torch.from_numpy(first), torch.from_numpy(second)
    assert table.loc[("a", "one"), "win"] == pytest.approx(float(win_percentage(ours, theirs)))
    assert table.loc[("a", "two"), "win"] == pytest.approx(float(win_percentage(theirs, ours)))
    ties = 100 * float((ours == theirs).double().mean())
    assert ties > 0
    assert list(table["tied"]) == pytest.approx([ties, ties])


def test_wins_ties_and_intervals_of_three_methods_by_hand():
    drops = {("a", "one"): [1.0, 0, 5, 0], ("a", "two"): [2.0, 0, 4, 0], ("a", "three"): [3.0, 9, 9, 0]}
    table = _scores(drops).win_percentages().loc["a"]
    assert list(table.index) == ["one", "two", "three"]
    assert list(table["win"]) == [25.0, 25.0, 0.0]
    assert list(table["tied"]) == [50.0, 50.0, 25.0], "the second image is shared by two, the fourth by three"
    low, high = wilson_interval(1, 4, 0.9)
    narrow = _scores(drops).win_percentages(level=0.9).loc[("a", "one")]
    assert (narrow["win_low"], narrow["win_high"]) == pytest.approx((100 * low, 100 * high))
    assert list(table["n_images"]) == [4, 4, 4]


def test_a_metric_that_is_better_high_is_won_by_the_highest():
    drops = {("a", "one"): [1.0, 2.0], ("a", "two"): [3.0, 4.0]}
    by_drop, by_gain = _scores(drops).win_percentages(), _scores(drops).win_percentages("average_gain")
    pd.testing.assert_frame_equal(by_drop, by_gain)
    assert list(by_drop["win"]) == [100.0, 0.0]


def test_methods_without_a_layer_take_part_at_every_layer():
    drops = {("a", "cam"): [1.0, 9], ("b", "cam"): [9.0, 9], ("input", "random"): [5.0, 5]}
    table = _scores(drops).win_percentages()
    assert table["win"].to_dict() == {("a", "cam"): 50, ("a", "random"): 50, ("b", "cam"): 0, ("b", "random"): 100}
    alone = _scores({("input", "random"): [1.0, 2], ("input", "uniform"): [2.0, 3]}).win_percentages()
    assert alone["win"].to_dict() == {("input", "random"): 100, ("input", "uniform"): 0}


def test_only_images_whose_rows_count_for_every_method_take_part():
    scores = _scores({("a", "one"): [1.0, 1, 1, 1], ("a", "two"): [2.0, 0, 2, 2]})
    scores.rows.loc[0, "status"] = "nan_map"
    scores.rows.loc[6, "average_drop"] = NAN
    table = scores.win_percentages()
    assert list(table["n_images"]) == [2, 2]
    assert list(table["win"]) == [50.0, 50.0]


def test_without_an_image_in_common_there_is_no_number():
    scores = _scores({("a", "one"): [1.0, NAN], ("a", "two"): [NAN, 2.0]})
    table = scores.win_percentages()
    assert table[["win", "win_low", "win_high", "tied"]].isna().all(axis=None)
    assert list(table["n_images"]) == [0, 0]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"by": "drop"}, "the run has no metric 'drop' to win by; known: average_drop, average_gain"),
        ({"by": "area"}, "the run has no metric 'area' to win by; known: average_drop, average_gain"),
        ({"level": 1.5}, "the level of an interval is a probability in (0, 1), such as 0.95; got 1.5"),
    ],
)
def test_what_cannot_be_won_is_refused_word_for_word(choices, message):
    with pytest.raises(MetricError) as error:
        _scores({("a", "one"): [1.0], ("a", "two"): [2.0]}).win_percentages(**choices)
    assert str(error.value) == message


def test_one_method_has_nobody_to_win_against():
    with pytest.raises(MetricError) as error:
        _scores({("a", "one"): [1.0], ("b", "one"): [2.0]}).win_percentages()
    assert str(error.value) == ("win percentages need at least two methods at a layer; the run has one; add some by methods=")


def test_a_run_of_several_methods_has_a_table():
    scores = xaieval.score(_model(), [_images()], "1", ["gradcam", "layercam", "random"], progress=False)
    table = scores.win_percentages()
    assert list(table.index) == [("1", "gradcam"), ("1", "layercam"), ("1", "random")]
    assert (table["win_low"] <= table["win"]).all()
    assert 0 < table["win"].sum() <= 100 + 1e-9


def test_control_maps_do_not_make_up_for_a_second_method():
    rows = pd.DataFrame({"image_id": ["0", "1"] * 2, "layer": "p2", "method": ["gradcam"] * 2 + ["random"] * 2, "status": "ok"})
    scores = Scores(rows.assign(average_drop=[1.0, 2.0, 3.0, 4.0]), {"metrics": [DROP], "controls": ["random"]})
    with pytest.raises(MetricError) as error:
        scores.win_percentages()
    assert str(error.value) == (
        "win percentages need at least two methods at a layer; the run has gradcam besides control maps, which do not compete; "
        "add some by methods="
    )
