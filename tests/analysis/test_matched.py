"""Methods against the matched controls of their maps: worked by hand, against slow loops, with groups, and where none exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_selection import slow_holm
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.config.groups import Groups
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores
from xaieval.results.matched import excess_entry

AD, IC = "average_drop", "increase_in_confidence"
DROP = {"name": AD, "higher_is_better": False, "interval": "mean", "label": "AD %"}
RISE = {"name": IC, "higher_is_better": True, "interval": "wilson", "label": "IC %"}
NAN = float("nan")


def _scores(
    values: dict[tuple[str, str], dict[str, Any]], matched: tuple[str, ...] = ("shifted", "dimmed"), **more: Any
) -> Scores:
    """A run of one row per image, from columns of values by layer and method."""
    parts = []
    for (layer, method), columns in values.items():
        part = pd.DataFrame({"layer": layer, "method": method, "status": "ok", "mask_area": 0.2, **columns})
        parts.append(part.assign(image_id=[f"image {number}" for number in range(len(part))]))
    rows = pd.concat(parts, ignore_index=True)
    names = [entry["name"] for entry in (DROP, RISE) if entry["name"] in rows]
    for name in names:
        rows[f"{name}_excess"] = rows[name] - rows[f"{name}_{matched[0]}"]
    entries = [entry for entry in (DROP, RISE) if entry["name"] in names]
    entries += [excess_entry(entry, matched[0]) for entry in entries]
    return Scores(rows, {"metrics": entries, "seed": 0, "matched_controls": list(matched), **more})


def _drops(own: Any, shifted: Any, dimmed: Any) -> dict[str, Any]:
    return {AD: own, f"{AD}_shifted": shifted, f"{AD}_dimmed": dimmed}


def test_each_test_has_both_means_the_excess_and_its_interval():
    own = np.arange(20.0)
    scores = _scores({("p5", "gradcam"): _drops(own, own + 30 + own % 2, own - 5)})
    table = scores.matched_table().set_index("control")
    assert list(table.index) == ["shifted", "dimmed"]
    assert table.loc["shifted", ["value", "control_value", "excess"]].to_list() == pytest.approx([9.5, 40, -30.5])
    assert table["beats"].to_list() == [True, False]
    assert table.loc["dimmed", "p_value"] == 1
    summary = scores.summary().loc[("p5", "gradcam")]
    assert table.loc["shifted", ["excess", "low", "high"]].to_list() == pytest.approx(
        summary[[f"{AD}_excess", f"{AD}_excess_low", f"{AD}_excess_high"]].to_list()
    ), "the same numbers as in the summary"


def test_higher_increases_beat_and_lower_ones_do_not():
    rise = {IC: [100.0] * 15 + [0.0] * 5, f"{IC}_shifted": [0.0] * 20, f"{IC}_dimmed": [100.0] * 20}
    table = _scores({("p5", "gradcam"): rise}).matched_table().set_index("control")
    assert table["excess"].to_dict() == {"shifted": 75.0, "dimmed": -25.0}
    assert table["beats"].to_dict() == {"shifted": True, "dimmed": False}
    assert table.loc["shifted", "p_value"] == pytest.approx(2.0**-15)


def test_images_without_a_control_take_no_part_and_a_control_that_nobody_has_is_left_out():
    own = np.array([10.0, 20, 30, 40, 50, 60])
    shifted = np.where(own > 20, own + 10, NAN)
    table = _scores({("p5", "gradcam"): _drops(own, shifted, [NAN] * 6)}).matched_table()
    assert table["control"].to_list() == ["shifted"]
    assert table.loc[0, ["value", "control_value", "excess", "n_images"]].to_list() == [45, 55, -10, 4]


def test_rows_that_do_not_count_take_no_part():
    scores = _scores({("p5", "gradcam"): _drops([10.0, 90], [20.0, 0], [20.0, 0])})
    scores.rows.loc[1, "status"] = "nan_map"
    assert scores.matched_table()["value"].to_list() == [10, 10]


def test_control_maps_are_not_tested():
    values = {pair: _drops([1.0] * 9, [5.0] * 9, [9.0] * 9) for pair in [("p5", "gradcam"), ("input", "random")]}
    table = _scores(values, controls=["random"]).matched_table()
    assert set(table["method"]) == {"gradcam"}


shapes = st.tuples(st.integers(4, 9), st.integers(1, 3), st.integers(0, 10_000))


@settings(deadline=None, max_examples=20)
@given(shapes)
def test_the_table_is_what_loops_find(shape):
    images, methods, seed = shape
    rng = np.random.default_rng(seed)
    values = {
        ("p5", f"method {number}"): _drops(*rng.integers(0, 9, (3, images)).astype(float))
        | {IC: 100.0 * rng.integers(0, 2, images), f"{IC}_shifted": 100.0 * rng.integers(0, 2, images), f"{IC}_dimmed": NAN}
        for number in range(methods)
    }
    table = _scores(values).matched_table(level=0.6)
    expected, p_values = [], []
    for pair, columns in values.items():
        for metric, side in ((AD, -1), (IC, 1)):
            for control in ("shifted", "dimmed"):
                own, other = np.asarray(columns[metric]), np.broadcast_to(columns[f"{metric}_{control}"], images)
                if np.isnan(other).all():
                    continue
                expected.append((*pair, metric, control, own.mean(), other.mean()))
                p_values.append(float(sign_flip_p_values(side * (own - other)[:, None])[0]))
    columns = ["layer", "method", "metric", "control", "value", "control_value"]
    actual = [tuple(row) for row in table[columns].itertuples(index=False)]
    assert [row[:4] for row in actual] == [row[:4] for row in expected]
    np.testing.assert_allclose([row[4:] for row in actual], [row[4:] for row in expected])
    np.testing.assert_allclose(table["p_value"], p_values, rtol=1e-9)
    np.testing.assert_allclose(table["p_holm"], slow_holm(p_values), rtol=1e-9)
    assert table["beats"].to_list() == [p < 0.4 for p in table["p_holm"]]


def test_groups_count_once():
    """Twelve images of two groups: the excess is sure by images, and not by two groups."""
    own = np.array([10.0, 11, 12, 10, 11, 12, 13, 10, 11, 12, 13, 11])
    scores = _scores({("p5", "gradcam"): _drops(own, own + 20 + own % 3, own + 9)})
    assert scores.matched_table()["beats"].all()
    names = {f"image {number}": "lake" if number < 4 else "road" for number in range(12)}
    grouped = scores.with_groups(names)
    table = grouped.matched_table()
    assert not table["beats"].any()
    assert table["value"].to_list() == pytest.approx([own.mean()] * 2)
    weighted = scores.with_groups(Groups(names, weights="groups")).matched_table()
    assert weighted["value"].to_list() == pytest.approx([(own[:4].mean() + own[4:].mean()) / 2] * 2)


def test_a_run_without_matched_controls_says_how_to_get_them():
    scores = Scores(
        pd.DataFrame({"image_id": ["a"], "layer": "p5", "method": "gradcam", "status": "ok", AD: 1.0}), {"metrics": [DROP]}
    )
    with pytest.raises(MetricError) as caught:
        scores.matched_table()
    assert str(caught.value) == ("the run has no matched controls; score(..., controls='matched') adds them")
    with pytest.raises(MetricError, match="the level of an interval is a probability"):
        scores.matched_table(level=95)


def test_an_excess_is_ranked_and_compared_like_any_metric():
    own = np.arange(20.0)
    values = {("p2", "gradcam"): _drops(own, own + 1, own), ("p5", "gradcam"): _drops(own + 40, own + 90, own)}
    scores = _scores(values)
    assert list(scores.rank(AD).table.index) == ["p2", "p5"]
    assert list(scores.rank(f"{AD}_excess").table.index) == ["p5", "p2"]
    assert f"{AD}_excess" in scores.compare(scores).index.get_level_values("metric")
