"""The benchmark of trust: its page has its numbers, and its tables are right on runs that are made up."""

from __future__ import annotations

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests import ROOT
from xaieval.analysis.stats.groups import Grouping
from xaieval.evaluation.scores import Scores

IMAGES, CLASSES = 40, 10
METRICS = [
    {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson", "label": "IC %"},
    {"name": "average_gain", "higher_is_better": True, "interval": "mean", "label": "AG %"},
]
EXCESS = [
    {**metric, "name": f"{metric['name']}_excess", "interval": "mean", "excess_of": metric["name"], "control": "shifted"}
    for metric in METRICS
]
PAIRS = [("shallow", "gradcam"), ("shallow", "layercam"), ("deep", "gradcam"), ("deep", "layercam")]
DROPS = dict(zip(PAIRS, (80, 70, 20, 30), strict=True))


def _benchmark():
    """The script, which imports its neighbour."""
    spec = importlib.util.spec_from_file_location("trust", ROOT / "benchmarks/trust.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


trust = _benchmark()


def _rows(pair, drop, shifted, rng):
    noise = rng.uniform(-1, 1, (2, IMAGES))
    values = {"average_drop": drop + noise[0], "increase_in_confidence": 0.0, "average_gain": (100 - drop) / 10 + noise[1] / 10}
    against = {"average_drop": shifted + noise[0] / 2, "increase_in_confidence": 0.0, "average_gain": values["average_gain"]}
    table = pd.DataFrame({"image_id": [f"i{n:02}" for n in range(IMAGES)], "layer": pair[0], "method": pair[1]})
    table = table.assign(label=np.arange(IMAGES) % CLASSES, predicted=0, target=0, confidence=0.9, masked_confidence=0.5)
    table = table.assign(mask_area=(100 - values["average_drop"]) / 200, status="ok", **values)
    for name, value in against.items():
        table = table.assign(**{f"{name}_shifted": value, f"{name}_excess": table[name] - value})
    return table


@pytest.fixture
def scores():
    """Four pairs, the deep ones better than the control map, all but one of them better than their shifted maps in AD."""
    rng = np.random.default_rng(0)
    parts = [_rows(pair, drop, drop - 10 if pair == PAIRS[0] else drop + 10, rng) for pair, drop in DROPS.items()]
    parts += [_rows(("input", name), drop, drop, rng) for name, drop in (("random", 50), ("fake-cam", 0))]
    manifest = {"metrics": METRICS + EXCESS, "controls": ["random", "fake-cam"], "matched_controls": ["shifted"], "seed": 0}
    manifest["model"] = {"fingerprint": "abc"}
    return Scores(pd.concat(parts, ignore_index=True), manifest).with_groups("class")


def test_the_tables_of_the_page_are_the_results():
    page = (ROOT / "docs/trust.md").read_text()
    assert trust.filled(page, trust.MADE) == page, "python benchmarks/trust.py tables --page docs/trust.md"
    assert page.count("<!-- from ") == len(trust.MADE)
    about = json.loads((ROOT / "benchmarks/trust/manifest.json").read_text())
    assert [about[name]["data"]["images"] for name in ("trained", "foreign")] == [210, 210]
    assert len(about["trained"]["networks"]) == 5
    measured = set(about["trained"]["run"]["metrics"])
    winners = pd.read_csv(ROOT / "benchmarks/trust/winners.csv")
    assert {name.removesuffix("_excess") for name in winners["metric"]} <= measured


def test_the_images_of_both_rounds_are_unseen_and_from_other_places():
    labels = np.repeat(np.arange(21), 100).tolist()
    parts = list(trust.unseen(SimpleNamespace(labels=labels), 2, seed=0))
    assert [(fold, turn) for fold, turn, _ in parts] == [(fold, turn) for fold in range(5) for turn in range(2)]
    for _, _, numbers in parts:
        assert [labels[number] for number in numbers] == list(range(21))
    assert sorted(number for _, _, numbers in parts for number in numbers) == list(range(0, 2100, 10)), "one of each block"


def test_runs_of_folds_become_one_run_with_classes_as_groups(scores):
    halves = [scores.rows["image_id"] < "i20", scores.rows["image_id"] >= "i20"]
    parts = [Scores(scores.rows[half].drop(columns="group"), scores.manifest) for half in halves]
    whole = trust.joined(parts)
    assert whole.manifest["data"] == {"images": IMAGES}
    assert whole.n_groups == CLASSES
    assert whole.summary()["average_drop"].to_dict() == pytest.approx(scores.summary()["average_drop"].to_dict())


def test_correlations_are_those_of_numpy_row_by_row():
    one, other = np.random.default_rng(1).normal(size=(2, 5, 8))
    expected = [np.corrcoef(*both)[0, 1] for both in zip(one, other, strict=True)]
    assert trust.correlations(one, other) == pytest.approx(expected)
    assert np.isnan(trust.correlations(np.ones((1, 8)), other[:1])).all()


def test_resampled_means_leave_out_missing_values():
    values = pd.DataFrame({"a": [1.0, np.nan, 1.0, np.nan], "b": [np.nan] * 4, "c": [0.0, 0.0, 4.0, 4.0]})
    drawn = trust.resampled_means(values, Grouping(["x", "x", "y", "y"]))
    assert (drawn[:, 0] == 1).all()
    assert np.isnan(drawn[:, 1]).all()
    assert set(drawn[:, 2].round(9)) == {0, 2, 4}  # both groups twice, or one of each


def test_the_winner_of_each_layer_and_how_often_it_wins(scores):
    table = trust.winners(scores).set_index(["metric", "layer"])
    assert table.loc[("average_drop", "shallow"), "best"] == "layercam"
    assert table.loc[("average_drop", "deep"), "best"] == "gradcam"
    assert table.loc[("average_gain", "deep"), "best"] == "gradcam"
    assert table.loc[("average_drop", "deep"), "mean"] == pytest.approx(20, abs=0.5)
    assert (table.loc["average_drop", "first_share"] == 1).all()


def test_pairs_that_are_better_and_worse_than_their_matched_control(scores):
    table = trust.matched(scores).set_index(["metric", "control"])
    drop = table.loc[("average_drop", "shifted")]
    assert (drop["better"], drop["worse"], drop["pairs"]) == (3, 1, 4)
    assert drop["largest_lead"] == pytest.approx(10, abs=0.5)
    gain = table.loc[("average_gain", "shifted")]
    assert (gain["better"], gain["worse"]) == (0, 0)


def test_pairs_that_beat_the_control_maps(scores):
    table = trust.against_controls(scores).set_index("metric")
    assert table.loc["average_drop"].to_dict() == {"pairs": 4, "beat_all": 2, "tests": 4, "random": 2}
    assert table.loc["increase_in_confidence", "beat_all"] == 0
    assert "fake-cam" not in table


def test_a_narrow_run_is_corrected_for_its_own_tests(scores):
    narrow = trust.narrowed(scores, ["average_drop"], ["gradcam"])
    assert [metric["name"] for metric in narrow.metrics] == ["average_drop", "average_drop_excess"]
    assert list(dict.fromkeys(narrow.rows["method"])) == ["gradcam", "random", "fake-cam"]
    assert len(narrow.controls_table()) == 2
    assert len(scores.controls_table()) == 12


def test_a_metric_that_is_the_map_size_is_found(scores):
    table = trust.sizes(scores).set_index("metric")
    assert table.loc["average_drop", ["r", "low", "high"]].to_numpy(dtype=float) == pytest.approx([-1, -1, -1])
    assert table.loc["average_gain", "r"] > 0.99
    assert abs(table.loc["average_drop_excess", "r"]) < 0.9


def test_layers_count_the_controls_that_gradcam_beats_without_fake_cam(scores):
    table = trust.layers(scores).set_index("layer")
    assert table.index.tolist() == ["shallow", "deep"]
    assert table["average_drop_beats"].tolist() == [0, 1]
    assert table["controls"].tolist() == [1, 1]
    assert table["average_drop"].tolist() == pytest.approx([80, 20], abs=0.5)
    assert table["average_drop_excess"].tolist() == pytest.approx([10, -10], abs=0.5)
