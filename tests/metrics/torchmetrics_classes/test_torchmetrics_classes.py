"""What holds for the torchmetrics classes of all metrics: state names, direction, pickling, copies, collections, subclasses."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torchmetrics import MetricCollection

from xaieval import metrics
from xaieval.metrics import METRICS, MeanOverImages, Metric, torchmetrics_classes
from xaieval.metrics.torchmetrics_classes import MeanOf
from xaieval.metrics.win_percentage import WIN_PERCENTAGE

KNOWN = [*METRICS.values(), WIN_PERCENTAGE]
CLASSES = [
    value
    for name in metrics.__all__
    if inspect.isclass(value := getattr(metrics, name)) and issubclass(value, MeanOverImages) and value is not MeanOverImages
]
each = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def _inputs(metric: Metric) -> list[Any]:
    """Random inputs of two images for the metric's `update`."""
    vectors = torch.rand(2, 3) + 0.1
    known = {name: vectors[:, place] for place, name in enumerate(("confidence", "masked_confidence", "inverse_confidence"))}
    maps = {name: torch.rand(2, 4, 5) for name in ("maps", "masked_maps")}
    known |= maps | {"masks": torch.rand(2, 4, 5) > 0.5, "protocol": metrics.drop_by.__defaults__[0]}
    return [known[need] for need in metric.needs] or [vectors[:, 0], vectors[:, 1]]


def test_all_public_classes_are_here():
    assert len(CLASSES) >= 20
    assert {*torchmetrics_classes.__all__} - {"MeanOf"} == {*metrics.CLASSES} <= {*metrics.__all__}
    with pytest.raises(AttributeError, match="no attribute 'AverageDrops'"):
        metrics.AverageDrops  # noqa: B018


def test_torchmetrics_is_imported_only_for_its_classes():
    program = """
import sys, xaieval.evaluation.loop
before = "torchmetrics" in sys.modules
xaieval.metrics.AverageDrop()
print(before, "torchmetrics" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False True\n"


@each
def test_a_class_is_the_mean_of_a_known_metric_and_has_its_direction(kind):
    metric = kind()
    known = next(one for one in KNOWN if one.name == metric.metric.name)
    assert metric.metric.to_dict() == known.to_dict()
    assert kind.higher_is_better is metric.higher_is_better is known.higher_is_better
    inputs = _inputs(known)
    metric.update(*inputs)
    torch.testing.assert_close(metric.compute(), known.per_image(*inputs).double().nanmean(), equal_nan=True)


@each
def test_a_class_says_its_unit_what_update_takes_and_shows_an_example(kind):
    assert all(part in kind.__doc__ for part in ("`update` takes", "Example:", ">>> metric.update(")), kind.__doc__
    assert inspect.getmodule(kind).__name__.startswith("xaieval.metrics.")


@each
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))], ids=["copy", "pickle"])
def test_a_copy_and_a_pickle_go_on_where_the_original_was(kind, copied):
    metric = kind()
    first, second = _inputs(metric.metric), _inputs(metric.metric)
    metric.update(*first)
    other = copied(metric)
    for one in (metric, other):
        one.update(*second)
    assert type(other) is kind
    torch.testing.assert_close(other.compute(), metric.compute(), equal_nan=True)


@each
def test_states_have_the_metrics_name_and_one_update_is_enough_for_forward(kind):
    metric = kind()
    assert kind.full_state_update is False
    assert list(metric._defaults) == [f"{metric.metric.name}_{state}" for state in ("total", "count", "failed")]


def test_no_two_classes_share_a_state():
    states = [state for kind in CLASSES for state in kind()._defaults]
    assert len(states) == len(set(states)) == 3 * len(CLASSES)


def test_a_collection_of_all_classes_of_two_confidences_keeps_their_values_apart():
    kinds = [kind for kind in CLASSES if len(kind().metric.needs) >= 2 and kind().metric.is_of_numbers]
    assert len(kinds) >= 5
    collection = MetricCollection([kind() for kind in kinds if "protocol" not in kind().metric.needs])
    first, second = torch.rand(3, 6) + 0.1, torch.rand(3, 6) + 0.1
    for y, o, _ in (first, second):
        collection.update(y, o)
    y, o, _ = torch.cat([first, second], dim=1)
    for name, value in collection.compute().items():
        assert float(value) == pytest.approx(float(collection[name].metric.per_image(y, o).nanmean())), name


def test_a_subclass_keeps_the_metric_and_a_class_of_your_own_names_one():
    class Narrow(metrics.AverageDrop):
        pass

    class Own(MeanOf, metric=Metric("own", lambda y, o: o - y, higher_is_better=None)):
        pass

    y, o = torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9])
    assert float(Narrow()(y, o)) == pytest.approx(12.5)
    assert Narrow.higher_is_better is False
    assert float(Own()(y, o)) == pytest.approx(0.1)
    assert Own.higher_is_better is None
