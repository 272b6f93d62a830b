"""Warnings about the numbers of a run: when each is given, with its exact text, and when it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from xaieval.analysis.warnings import find_warnings
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores
from xaieval.results.record import RunRecord

AD = "average_drop"
PAIRS = [("p4", "gradcam"), ("p5", "gradcam"), ("p5", "layercam")]
CONTROL = ("input", "random")


def _metric(name: str, higher: bool | None) -> dict[str, Any]:
    return {"name": name, "higher_is_better": higher, "interval": "mean", "label": name}


DROP = _metric(AD, False)


def _rows(pairs: list[tuple[str, str]] = PAIRS, count: int = 100, **values: dict[tuple[str, str], Any]) -> pd.DataFrame:
    """Rows pair by pair; `values` by column and pair, of one image or of all."""
    frames = [
        pd.DataFrame(
            {"image_id": [f"image {n}" for n in range(count)], "layer": layer, "method": method, "status": "ok", AD: 50.0}
        )
        for layer, method in pairs
    ]
    for column, of in values.items():
        for frame, pair in zip(frames, pairs, strict=True):
            if pair in of:
                frame[column] = of[pair]
    return pd.concat(frames, ignore_index=True)


def _status(count: int, **counts: int) -> list[str]:
    bad = [status for status, times in counts.items() for _ in range(times)]
    return bad + ["ok"] * (count - len(bad))


def _found(rows: pd.DataFrame, metrics: list[dict[str, Any]] | None = None, controls: list[str] | None = None) -> list[str]:
    manifest = {"metrics": metrics or [DROP], "seed": 0} | ({"controls": controls} if controls else {})
    return Scores(rows, manifest).warnings()


# ---- constant maps


def test_more_than_five_percent_of_constant_maps_are_named():
    assert _found(_rows(status={PAIRS[0]: _status(100, constant_map=6), PAIRS[1]: _status(100, constant_map=5)})) == [
        "gradcam at p4: 6 of 100 maps are constant (6%); they explain nothing, and their rows still count"
    ]
    left_out = _status(100, constant_map_left_out=30, nan_map=1, excluded=20)
    assert _found(_rows(status={PAIRS[2]: left_out})) == [
        "layercam at p5: 30 of 79 maps are constant (38%); they explain nothing, and their images are left out, so the "
        "means are over the others"
    ]


def test_maps_that_were_never_made_are_not_counted():
    # 4 of the 60 maps that were made are constant, which is more than 5 %.
    status = _status(100, constant_map=4, unreadable=40)
    assert _found(_rows(status=dict.fromkeys(PAIRS, status)))[0].startswith("every layer and method: 4 of 60 maps are constant")


def test_the_uniform_control_is_constant_by_construction():
    pairs = [*PAIRS, ("input", "uniform")]
    values = {("input", "uniform"): ["constant_map"] * 100}
    drops = {("input", "uniform"): 99.0}
    assert _found(_rows(pairs, status=values, average_drop=drops), controls=["uniform"]) == []
    assert len(_found(_rows(pairs, status=values, average_drop=drops))) == 1, "asked for as a method it is one"


# ---- failures


def test_more_than_five_percent_of_failed_rows_are_named_with_their_reasons():
    status = {PAIRS[0]: _status(100, nan_map=4, zero_confidence=3), PAIRS[1]: _status(100, nan_map=5)}
    assert _found(_rows(status=status)) == [
        "gradcam at p4: 7% of the rows failed (nan_map 4, zero_confidence 3); the means are over the other images, which may "
        "be easier"
    ]


def test_excluded_images_have_not_failed():
    assert _found(_rows(status=dict.fromkeys(PAIRS, _status(100, excluded=90)))) == []
    few = dict.fromkeys(PAIRS, _status(100, excluded=90, nan_confidence=1))
    assert _found(_rows(status=few)) == [
        "every layer and method: 10% of the rows failed (nan_confidence 1); the means are over the other images, which may be "
        "easier"
    ]


def test_what_is_said_of_several_is_said_once_with_a_few_names():
    pairs = [(f"p{number}", "gradcam") for number in range(6)]
    status = dict.fromkeys(pairs[:5], _status(100, nan_map=10))
    (sentence,) = _found(_rows(pairs, status=status))
    assert sentence.startswith("gradcam at p0, gradcam at p1, gradcam at p2 and 2 more: 10% of the rows failed (nan_map 10);")


# ---- a control is the best


def _findings(rows: pd.DataFrame, metrics: list[dict[str, Any]], controls: list[str]) -> list[tuple[str, str]]:
    manifest = {"metrics": metrics, "seed": 0, "controls": controls}
    return [(finding.name, finding.text) for finding in find_warnings(RunRecord(rows, manifest))]


def test_a_control_that_is_significantly_better_than_every_method_is_said_to_be():
    pairs = [*PAIRS, CONTROL, ("input", "edges"), ("input", "fake-cam")]
    drops = {PAIRS[1]: 12.5, CONTROL: 80.0, ("input", "edges"): 0.25, ("input", "fake-cam"): 0.0}
    assert _findings(_rows(pairs, average_drop=drops), [DROP], ["random", "edges", "fake-cam"]) == [
        (
            "control_is_best",
            "average_drop: the control map edges (0.250) is significantly better than every method, the best of which is "
            "gradcam at p5 (12.500); so a good average_drop alone proves nothing",
        )
    ]


def test_a_control_that_is_ahead_by_chance_is_said_in_other_words():
    # The control is 2 better on average, with a standard error of about 5.
    spread = np.tile([-50.0, 50.0], 50)
    drops = dict.fromkeys(PAIRS, 50.0) | {CONTROL: 48.0 + spread}
    (found,) = _findings(_rows([*PAIRS, CONTROL], average_drop=drops), [DROP], ["random"])
    assert found == (
        "control_may_be_best",
        "average_drop: no method has a better mean than the control map random (48.000); the best, gradcam at p4 (50.000), has "
        "a worse one, and the difference may be chance",
    )


def test_a_control_has_to_be_better_than_every_method_and_not_only_than_most():
    # Surely better than two methods, and ahead of the third by chance.
    drops = {PAIRS[0]: 60.0, PAIRS[1]: 60.0, PAIRS[2]: 51.0 + np.tile([-50.0, 50.0], 50), CONTROL: 50.0}
    assert _findings(_rows([*PAIRS, CONTROL], average_drop=drops), [DROP], ["random"])[0][0] == "control_may_be_best"


def test_the_test_of_a_control_allows_for_the_number_of_controls_and_of_metrics():
    # Binary, and 5 of 5 images in favour: p = 1/32 = 0.03 for one control and one metric, 0.06 for two of either.
    one, other = _metric("one", True), _metric("other", True)
    hits = {CONTROL: [100.0] * 5 + [0.0] * 95}
    rows = _rows([*PAIRS, CONTROL, ("input", "edges")], one=dict.fromkeys(PAIRS, 0.0) | {("input", "edges"): 0.0} | hits)
    rows["other"] = np.where(rows["layer"] == "input", 0.0, 1.0)
    without = rows[rows["method"] != "edges"]
    assert [name for name, _ in _findings(without, [one], ["random"])] == ["control_is_best"]
    assert [name for name, _ in _findings(without, [one, other], ["random"])] == ["control_may_be_best"]
    assert [name for name, _ in _findings(rows, [one], ["random", "edges"])] == ["control_may_be_best"]


def test_a_control_counts_by_groups_where_the_run_has_them():
    rows = _rows([*PAIRS, CONTROL], average_drop={CONTROL: 40.0 + np.tile([-5.0, 5.0], 50)})
    assert _findings(rows, [DROP], ["random"])[0][0] == "control_is_best"
    few = rows.assign(group=rows["image_id"].str[-1].isin(["0", "1", "2"]).map({True: "a", False: "b"}))
    assert "control_may_be_best" in [name for name, _ in _findings(few, [DROP], ["random"])], "two groups prove nothing"


def test_a_control_that_is_as_good_as_the_best_is_named_and_a_worse_one_is_not():
    gain, area = _metric("gain", True), _metric("area", None)
    pairs = [*PAIRS, CONTROL]
    values = {"average_drop": {CONTROL: 60.0}, "area": dict.fromkeys(pairs, 1.0)}
    tie = _rows(pairs, gain=dict.fromkeys(PAIRS, 0.1 + 0.2) | {CONTROL: 0.3}, **values)
    assert _found(tie, [DROP, gain, area], ["random"]) == [
        "gain: no method has a better mean than the control map random (0.300); the best, gradcam at p4 (0.300), has the same "
        "mean"
    ]
    worse = _rows(pairs, gain=dict.fromkeys(PAIRS, 0.31) | {CONTROL: 0.3}, **values)
    assert _found(worse, [DROP, gain, area], ["random"]) == []
    missing = _rows(pairs, gain=dict.fromkeys(PAIRS, 0.31) | {CONTROL: float("nan")}, **values)
    assert _found(missing, [DROP, gain, area], ["random"]) == []


def test_without_controls_in_the_run_none_is_looked_for():
    assert _found(_rows([*PAIRS, CONTROL], average_drop={CONTROL: 0.0})) == []


# ---- metrics disagree


def _noise(around: float, seed: int, count: int = 60) -> Any:
    return around + np.random.default_rng(seed).normal(0, 5, count)


def _conflict(witness: str, good: float, bad: float, count: int = 60) -> pd.DataFrame:
    """The second pair has the lowest drops, and by the witness it is bad."""
    drops = {PAIRS[0]: _noise(40, 0), PAIRS[1]: _noise(10, 1), PAIRS[2]: _noise(40, 2)}
    seen = {PAIRS[0]: _noise(good, 3), PAIRS[1]: _noise(bad, 4), PAIRS[2]: _noise(good, 5)}
    return _rows(PAIRS, count, **{AD: drops, witness: seen})


@pytest.mark.parametrize("witness", ["insertion", "coherency", "insertion_blur"])
def test_a_method_that_is_good_by_drops_and_bad_by_a_witness_is_named(witness):
    metrics = [DROP, _metric(witness, True)]
    assert _found(_conflict(witness, good=60, bad=40), metrics) == [
        f"average_drop and {witness} disagree about gradcam at p5: significantly better than the mean of the other methods "
        "by the former, significantly worse by the latter; look at the maps before you rank methods"
    ]
    assert _found(_conflict(witness, good=40, bad=60), metrics) == [], "they agree"
    assert _found(_conflict(witness, good=50, bad=50), metrics) == [], "nothing beyond chance"
    # Lower is better by this one, so that it is good in both.
    assert _found(_conflict(witness, good=60, bad=40), [DROP, _metric(witness, False)]) == []


def test_other_metrics_are_no_witnesses_and_without_drops_nobody_is_accused():
    rows = _conflict("average_gain", good=60, bad=40)
    assert _found(rows, [DROP, _metric("average_gain", True)]) == []
    rows = _conflict("insertion", good=60, bad=40)
    assert _found(rows, [_metric("insertion", True)]) == []


def test_controls_do_not_take_part_in_a_disagreement():
    rows = _conflict("insertion", good=60, bad=40)
    rows["method"] = rows["method"].where(rows["layer"] != "p5", "random")
    rows["layer"] = rows["layer"].where(rows["method"] != "random", "input")
    rows = rows.drop_duplicates(["image_id", "layer", "method"])
    assert not [text for text in _found(rows, [DROP, _metric("insertion", True)], ["random"]) if "disagree" in text]


def test_missing_values_are_left_out_of_a_disagreement():
    rows = _conflict("insertion", good=60, bad=40)
    rows.loc[rows["image_id"].isin(["image 0", "image 1"]) & (rows["layer"] == "p4"), "status"] = "nan_map"
    rows.loc[rows.index[70], "insertion"] = float("nan")
    assert len(_found(rows, [DROP, _metric("insertion", True)])) == 1


def test_a_method_alone_has_nobody_to_be_better_than():
    rows = _conflict("insertion", good=60, bad=40)
    assert _found(rows[rows["layer"] == "p4"], [DROP, _metric("insertion", True)]) == []


def test_without_an_effect_disagreements_are_rare():
    wrong = 0
    for seed in range(30):
        values = {
            name: {pair: _noise(50, 1000 * seed + 10 * number + place) for place, pair in enumerate(PAIRS)}
            for number, name in enumerate((AD, "insertion"))
        }
        wrong += bool(_found(_rows(PAIRS, 60, **values), [DROP, _metric("insertion", True)]))
    assert wrong <= 3


@pytest.mark.parametrize(
    ("control", "why"),
    [
        ("shifted", "shifted, which constant maps lack"),
        ("swapped", "swapped, which constant maps and a single image lack"),
        ("dimmed", "dimmed, which constant maps and metrics of curves lack; give another one first"),
    ],
)
def test_an_excess_without_values_says_why(control, why):
    excess = DROP | {"name": f"{AD}_excess", "excess_of": AD, "control": control}
    assert _found(_rows().assign(**{f"{AD}_excess": np.nan}), [DROP, excess]) == [
        f"{AD}_excess has no value on any of the 100 images that count: no map has the control {why}"
    ]


# ---- all of it


def test_an_ordinary_run_has_no_warnings_and_one_without_rows_that_count_is_no_crash():
    assert _found(_rows()) == []
    empty = _rows([*PAIRS, CONTROL], status=dict.fromkeys([*PAIRS, CONTROL], "nan_map"))
    (sentence,) = _found(empty.assign(insertion=1.0), [DROP, _metric("insertion", True)], ["random"])
    assert sentence.startswith("every layer and method: 100% of the rows failed (nan_map 100)")


def test_a_level_that_is_none_is_refused():
    with pytest.raises(MetricError, match="the level of an interval is a probability"):
        find_warnings(RunRecord(_rows(), {"metrics": [DROP]}), level=95)
