"""Settings of metrics by name, as the command line gives them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from xaieval import metrics
from xaieval.errors import MetricError
from xaieval.metrics import METRICS, Metric
from xaieval.metrics.settings import setting_names, with_settings


def test_each_metric_has_the_parameters_of_its_function_as_settings():
    makers = {
        name: getattr(metrics, name)
        for name in METRICS
        if inspect.isfunction(getattr(metrics, name, None))
        and inspect.signature(getattr(metrics, name)).return_annotation == "Metric"
    }
    assert len(makers) > 40
    for name, metric in METRICS.items():
        assert setting_names(metric) == list(inspect.signature(makers[name]).parameters if name in makers else ())
        defaults = (
            {one.name: one.default for one in inspect.signature(makers[name]).parameters.values()} if name in makers else {}
        )
        again = with_settings([name], {name: defaults})[0]
        assert again.to_dict() == metric.to_dict(), "the defaults fit their own annotations"


@pytest.mark.parametrize(
    ("metric", "settings", "expected"),
    [
        ("insertion", {"steps": 8, "keep-curve": True}, {"steps": 8, "keep_curve": True}),
        ("insertion", {"steps": (0, 0.5, 1)}, {"steps": [0, 0.5, 1]}),
        ("road", {"fractions": 0.5}, {"fractions": [0.5]}),
        ("road", {"fractions": [0.2, 0.5], "noise": 0}, {"fractions": [0.2, 0.5], "noise": 0}),
        ("irof", {"segments": 4, "baseline": "black"}, {"segments": 4, "baseline": "black"}),
    ],
)
def test_settings_replace_the_defaults(metric, settings, expected):
    [made, drop] = with_settings([metric, "AD"], {metric: settings})
    assert {name: made.settings[name] for name in expected} == expected
    assert drop is METRICS["average_drop"]
    assert made.name == metric


def test_a_metric_may_be_named_as_papers_do_and_may_get_a_name():
    [made] = with_settings("MoRF", {"MoRF": {"steps": 4, "name": "coarse"}})
    assert (made.name, made.settings["steps"]) == ("coarse", 4)


OWN = Metric("road", lambda y, o: y - o, higher_is_better=False)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ("road", {"road": {"fraction": 0.5}}, "^metric 'road' has no setting 'fraction'; did you mean 'fractions'"),
        ("road", {"roads": {}}, "^there are settings for 'roads', which is none of the metrics; did you mean 'road'"),
        ("adcc", {"adcc": {"steps": 5}}, "^metric 'adcc' has no settings, got steps$"),
        (OWN, {"road": {"noise": 0}}, "^metric 'road' has no settings, got noise$"),
        ("road", {"road": {"keep_curve": "yes"}}, "^metric 'road': keep_curve is True or False; got 'yes'$"),
        ("road", {"road": {"noise": True}}, "^metric 'road': noise is a number; got True$"),
        ("insertion", {"insertion": {"steps": "x"}}, "steps is a whole number or numbers separated by commas; got 'x'$"),
        ("insertion", {"insertion": {"steps": (0, "x")}}, r"got \(0, 'x'\)$"),
        ("region_perturbation", {"region_perturbation": {"order": "best"}}, "order is 'morf' or 'lerf'; got 'best'$"),
        ("region_perturbation", {"region_perturbation": {"regions": 2.5}}, "regions is a whole number; got 2.5$"),
        ("road", {"road": {"fractions": (0.5, 0.2)}}, "^fractions are increasing shares of pixels"),
    ],
)
def test_wrong_settings_are_one_clear_line(given: Any, settings: dict[str, Any], message: str):
    with pytest.raises(MetricError, match=message):
        with_settings(given, settings)
