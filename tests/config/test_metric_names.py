"""Other names of metrics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import quantus

from xaieval import Scores
from xaieval.config.metric_names import ABBREVIATIONS, QUANTUS, own_name
from xaieval.config.spelling import plain_name
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, OF_SETS, resolve_metrics


@pytest.mark.parametrize(("alias", "name"), [("AD", "average_drop"), ("ic", "increase_in_confidence"), ("ROAD", "road")])
def test_abbreviations_are_read_in_any_case(alias, name):
    [metric] = resolve_metrics(alias)
    assert metric is METRICS[name]


@pytest.mark.parametrize("spelled", ["AverageDrop", "average-drop", "Average Drop", "averagedrop", "AVERAGE_DROP"])
def test_our_names_are_read_in_any_spelling(spelled):
    [metric] = resolve_metrics(spelled)
    assert metric is METRICS["average_drop"]


def test_spellings_are_no_two_metrics():
    assert len({plain_name(name) for name in (*METRICS, *OF_SETS)}) == len(METRICS) + len(OF_SETS)
    abbreviations = {short.lower(): name for short, name in ABBREVIATIONS.items()}
    assert not [name for name in METRICS if abbreviations.get(plain_name(name), name) != name]


def test_a_run_is_asked_for_its_metrics_in_any_spelling():
    rows = pd.DataFrame({"image_id": [*range(9)] * 4, "layer": np.repeat(["p2", "p5"] * 2, 9), "status": "ok"})
    rows = rows.assign(
        method=np.repeat(["gradcam", "rise"], 18), average_drop=np.repeat([80.0, 40, 60, 20], 9) + [*range(9)] * 4
    )
    entry = {"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"}
    scores = Scores(rows, {"metrics": [entry]})
    assert list(scores.rank("AD", "both").table["mean"]) == list(scores.rank("average_drop", "both").table["mean"])
    assert scores.win_percentages("AverageDrop").equals(scores.win_percentages("average_drop"))
    assert list(scores.select_layers(1, "ad", method="rise")) == ["p2"]
    assert len(scores.compare(scores, "average-drop")) == 4
    assert scores.plot("heatmap", metrics="AD")


def test_no_abbreviation_hides_another_metric():
    hidden = [short for short, name in ABBREVIATIONS.items() if short.lower() in METRICS and short.lower() != name]
    assert not hidden


def test_every_class_of_quantus_has_a_place():
    classes = {kind.__name__ for family in quantus.AVAILABLE_METRICS.values() for kind in family.values()}
    assert set(QUANTUS) == classes


def test_a_class_of_quantus_names_ours():
    assert resolve_metrics(["quantus:Complexity", "quantus:ROAD"]) == [METRICS["entropy"], METRICS["road_morf"]]


def test_two_names_of_one_metric_are_refused():
    with pytest.raises(MetricError, match=r"each once; got \['average_drop', 'average_drop'\]"):
        resolve_metrics(["AD", "average_drop"])


def test_a_class_that_quantus_lacks_is_refused():
    with pytest.raises(MetricError, match=r"no metric 'quantus:Sparsenes'; did you mean 'Sparseness'"):
        own_name("quantus:Sparsenes")
