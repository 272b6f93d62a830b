"""Drop in deletion, confidence ratio and win percentage: by hand, by slow loops, against each other, in a run and over methods.

The `check_*` functions take the functions under test as an argument, as in `test_metrics.py`, so that mutants can be handed in.
"""

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
from torchmetrics import MetricCollection

import xaieval
from tests.mutants import mutated, noticed
from xaieval.analysis.stats.intervals import wilson_interval
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores
from xaieval.metrics import (
    METRICS,
    ConfidenceRatio,
    DropInDeletion,
    WinPercentage,
    confidence_ratio,
    drop,
    drop_in_deletion,
    functional,
    win,
    win_percentage,
)

PROPERTY = settings(deadline=None, max_examples=100)

NAN, INF = math.nan, math.inf

# Y and the other confidence of five images: a loss, a rise, a tie, a loss of everything, a rise from little.
CONFIDENCE = [0.8, 0.5, 0.4, 0.9, 0.01]
OTHER = [0.2, 0.75, 0.4, 0.0, 0.03]
DELETIONS = [75.0, -50.0, 0.0, 100.0, -200.0]
RATIOS = [25.0, 150.0, 100.0, 0.0, 300.0]


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _same(found: Tensor, expected: list[float]) -> bool:
    return bool(torch.allclose(found, _vector(*expected), rtol=1e-12, atol=1e-12, equal_nan=True))


# ---- checks that take the functions under test


def check_by_hand(metrics: Any) -> None:
    y, o = _vector(*CONFIDENCE), _vector(*OTHER)
    assert _same(metrics.drop_in_deletion(y, o), DELETIONS)
    assert _same(metrics.confidence_ratio(y, o), RATIOS)


def check_wins_by_hand(metrics: Any) -> None:
    ours, theirs = _vector(10, 0, 30, 0, 50), _vector(20, 0, 5, 1, 50)
    assert _same(metrics.win(ours, theirs), [100.0, 0.0, 0.0, 100.0, 0.0])
    assert float(metrics.win_percentage(ours, theirs)) == pytest.approx(40)
    assert float(metrics.win_percentage(theirs, ours)) == pytest.approx(20), "two of five are ties, and wins of neither"


def check_slow_loops(metrics: Any) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 50):
        y, o = rng.uniform(0.01, 1, count), rng.uniform(0, 1, count)
        deletions = [100 * (yi - oi) / yi for yi, oi in zip(y, o, strict=True)]
        ratios = [100 * oi / yi for yi, oi in zip(y, o, strict=True)]
        assert np.allclose(metrics.drop_in_deletion(torch.from_numpy(y), torch.from_numpy(o)), deletions, rtol=1e-12)
        assert np.allclose(metrics.confidence_ratio(torch.from_numpy(y), torch.from_numpy(o)), ratios, rtol=1e-12)
        wins = sum(100 for yi, oi in zip(y, o, strict=True) if yi < oi) / count
        assert float(metrics.win_percentage(torch.from_numpy(y), torch.from_numpy(o))) == pytest.approx(wins)


def check_no_epsilon_hides_small_confidences(metrics: Any) -> None:
    y, o = _vector(1e-7, 1e-30), _vector(0, 5e-31)
    assert _same(metrics.drop_in_deletion(y, o), [100.0, 50.0])
    assert _same(metrics.confidence_ratio(y, o), [0.0, 50.0])


def check_unusable_values_are_nan(metrics: Any) -> None:
    pairs = [(0, 0.5), (0, 0), (-0.5, 0.2), (NAN, 0.5), (0.5, NAN), (INF, 0.5), (0.5, INF), (0.5, -INF)]
    y, o = (_vector(*column) for column in zip(*pairs, strict=True))
    assert metrics.drop_in_deletion(y, o).isnan().all()
    assert metrics.confidence_ratio(y, o).isnan().all()
    assert metrics.win(y, o)[3:].isnan().all()
    assert not metrics.win(y, o)[:3].isnan().any(), "a drop of 0 is the best that there is"
    assert math.isnan(metrics.win_percentage(y, o))


def check_precision_is_that_of_float64(metrics: Any) -> None:
    y, o = torch.tensor([1.0]), torch.tensor([1 / 3])
    for function in (metrics.drop_in_deletion, metrics.confidence_ratio, metrics.win, metrics.win_percentage):
        assert function(y, o).dtype == torch.float64
    assert float(metrics.confidence_ratio(y, o)) == pytest.approx(100 * float(o), abs=1e-12)


def check_shapes_and_nothing_are_refused(metrics: Any) -> None:
    for function in (metrics.drop_in_deletion, metrics.confidence_ratio, metrics.win, metrics.win_percentage):
        for y, o in ((torch.ones(2), torch.ones(3)), (torch.ones(2, 2), torch.ones(2, 2)), (torch.ones(()), torch.ones(()))):
            with pytest.raises(MetricError):
                function(y, o)
    with pytest.raises(MetricError):
        metrics.win_percentage(torch.zeros(0), torch.zeros(0))


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_confidence_family_passes(check):
    check(functional)


MUTANTS = {
    "deletion not divided": ("(100 * (y - d) / y)", "(100 * (y - d))"),
    "deletion divided by D": ("(y - d) / y", "(y - d) / d"),
    "deletion turned around": ("(y - d)", "(d - y)"),
    "deletion cut off at 0": ("(y - d) / y", "(y - d).clamp(min=0) / y"),
    "deletion as a share": ("(100 * (y - d)", "((y - d)"),
    "invalid deletions count": ("~_valid(y, d)", "y.isnan()"),
    "ratio turned around": ("100 * o / y", "100 * y / o"),
    "ratio as a share": ("(100 * o / y)", "(o / y)"),
    "ratio with an epsilon": ("100 * o / y", "100 * o / (y + 1e-7)"),
    "ratio cut off at 100": ("(100 * o / y)", "(100 * o / y).clamp(max=100)"),
    "ties are wins": ("ours < theirs", "ours <= theirs"),
    "the larger drop wins": ("ours < theirs", "ours > theirs"),
    "only one of the drops is looked at": ("ours.isfinite() & theirs.isfinite()", "ours.isfinite()"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_checks_fail_for_a_wrong_formula(mutant):
    assert noticed(CHECKS, mutated(functional, *MUTANTS[mutant])), f"no check notices: {mutant}"


# ---- properties

confidences = st.lists(st.tuples(st.floats(2.0**-20, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=20).map(
    lambda pairs: tuple(_vector(*values) for values in zip(*pairs, strict=True))
)


@PROPERTY
@given(confidences)
def test_drop_deletion_and_ratio_are_three_views_of_one_quotient(pair):
    y, o = pair
    ratio = confidence_ratio(y, o)
    torch.testing.assert_close(drop(y, o), (100 - ratio).clamp(min=0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(drop_in_deletion(y, o), 100 - ratio, rtol=1e-9, atol=1e-9)


@PROPERTY
@given(confidences)
def test_wins_of_the_one_of_the_other_and_ties_are_all_images(pair):
    ties = 100 * float((pair[0] == pair[1]).double().mean())
    assert float(win_percentage(*pair)) + float(win_percentage(*reversed(pair))) + ties == pytest.approx(100)


# ---- errors, registry, classes


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (drop_in_deletion, "confidence and inverse_confidence"),
        (confidence_ratio, "confidence and masked_confidence"),
        (win, "drops and other_drops"),
        (win_percentage, "drops and other_drops"),
    ],
)
def test_wrong_shapes_are_refused_word_for_word(function, names):
    with pytest.raises(MetricError) as error:
        function(torch.ones(2), torch.ones(3))
    assert str(error.value) == f"{names} are vectors [N] of one length, got [2] and [3]"


def test_the_registry_knows_what_a_run_can_measure():
    deletion, ratio = METRICS["drop_in_deletion"], METRICS["confidence_ratio"]
    assert (deletion.higher_is_better, deletion.label, deletion.needs) == (True, "ADD %", ("confidence", "inverse_confidence"))
    assert (ratio.higher_is_better, ratio.label, ratio.is_of_numbers) == (True, "O / Y %", True)
    assert "win_percentage" not in METRICS, "a win is of two methods, which no metric of a run sees"


CLASSES = [
    (DropInDeletion, drop_in_deletion, "drop_in_deletion"),
    (ConfidenceRatio, confidence_ratio, "confidence_ratio"),
    (WinPercentage, win, "win_percentage"),
]


@pytest.mark.parametrize(("kind", "function", "prefix"), CLASSES)
def test_a_class_is_the_mean_over_batches_without_failed_images(kind, function, prefix):
    generator = torch.Generator().manual_seed(0)
    metric, values = kind(), []
    for count in (5, 1, 8):
        y, o = torch.rand(count, generator=generator) + 0.01, torch.rand(count, generator=generator)
        assert float(metric(y, o)) == pytest.approx(float(function(y, o).mean()), abs=1e-9)
        values.append(function(y, o))
    metric.update(_vector(NAN, 0.5), _vector(0.5, INF))
    assert float(metric.compute()) == pytest.approx(float(torch.cat(values).mean()), abs=1e-9)
    assert int(getattr(metric, f"{prefix}_failed")) == 2
    assert metric.higher_is_better
    metric.reset()
    metric.update(_vector(NAN), _vector(0.5))
    assert math.isnan(metric.compute()), "no image is no number"


@pytest.mark.parametrize("groups", [True, False])
def test_a_collection_keeps_the_classes_apart(groups):
    collection = MetricCollection([DropInDeletion(), ConfidenceRatio(), WinPercentage()], compute_groups=groups)
    first, second = (_vector(0.5, 0.4), _vector(0.25, 0.2)), (_vector(0.8, 0.4), _vector(0.2, 0.6))
    for batch in (first, second):  # after the first batch drop and ratio are equal: half and half
        collection.update(*batch)
    y, o = (torch.cat(parts) for parts in zip(first, second, strict=True))
    values = collection.compute()
    for kind, function, _ in CLASSES:
        assert float(values[kind.__name__]) == pytest.approx(float(function(y, o).mean()))


# ---- in a run


def _model() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*layers).eval()


def _images() -> Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def test_a_run_takes_the_drop_of_the_inverted_mask():
    names = ["average_drop", "drop_in_deletion", "confidence_ratio"]
    rows = xaieval.score(_model(), [_images()], "1", metrics=names, progress=False).rows
    model, images = _model(), _images()
    masks = xaieval.explain(model, images, "1")["1"][:, None]
    with torch.no_grad():
        targets = model(images).argmax(dim=1)
        y, o, d = (
            model(seen).double().softmax(dim=1)[range(12), targets] for seen in (images, images * masks, images * (1 - masks))
        )
    np.testing.assert_allclose(rows["drop_in_deletion"], 100 * (y - d) / y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows["confidence_ratio"], 100 * o / y, rtol=1e-4, atol=1e-4)
    assert not np.allclose(rows["drop_in_deletion"], rows["average_drop"]), "which is of the other mask"


# ---- which method wins


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
    assert str(error.value) == ("winning takes at least two methods at a layer, the run has one; score it with more methods=")


def test_a_run_of_several_methods_has_a_table():
    scores = xaieval.score(_model(), [_images()], "1", ["gradcam", "layercam", "random"], progress=False)
    table = scores.win_percentages()
    assert list(table.index) == [("1", "gradcam"), ("1", "layercam"), ("1", "random")]
    assert (table["win_low"] <= table["win"]).all()
    assert 0 < table["win"].sum() <= 100 + 1e-9
