"""Other names of metrics."""

from __future__ import annotations

import pytest
import quantus

from xaieval.errors import MetricError
from xaieval.metrics import METRICS, resolve_metrics
from xaieval.metrics.aliases import ABBREVIATIONS, QUANTUS, own_name


@pytest.mark.parametrize(("alias", "name"), [("AD", "average_drop"), ("ic", "increase_in_confidence"), ("ROAD", "road")])
def test_abbreviations_are_read_in_any_case(alias, name):
    [metric] = resolve_metrics(alias)
    assert metric is METRICS[name]


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
