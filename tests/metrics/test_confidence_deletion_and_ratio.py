"""Drop in deletion and confidence ratio: by hand, by slow loops, against each other, as torchmetrics classes and in a run."""

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
    ConfidenceRatio,
    DropInDeletion,
    confidence_ratio,
    drop,
    drop_in_deletion,
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


def check_slow_loops(metrics: Any) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 50):
        y, o = rng.uniform(0.01, 1, count), rng.uniform(0, 1, count)
        deletions = [100 * (yi - oi) / yi for yi, oi in zip(y, o, strict=True)]
        ratios = [100 * oi / yi for yi, oi in zip(y, o, strict=True)]
        assert np.allclose(metrics.drop_in_deletion(torch.from_numpy(y), torch.from_numpy(o)), deletions, rtol=1e-12)
        assert np.allclose(metrics.confidence_ratio(torch.from_numpy(y), torch.from_numpy(o)), ratios, rtol=1e-12)


def check_no_epsilon_hides_small_confidences(metrics: Any) -> None:
    y, o = _vector(1e-7, 1e-30), _vector(0, 5e-31)
    assert _same(metrics.drop_in_deletion(y, o), [100.0, 50.0])
    assert _same(metrics.confidence_ratio(y, o), [0.0, 50.0])


def check_unusable_values_are_nan(metrics: Any) -> None:
    pairs = [(0, 0.5), (0, 0), (-0.5, 0.2), (NAN, 0.5), (0.5, NAN), (INF, 0.5), (0.5, INF), (0.5, -INF)]
    y, o = (_vector(*column) for column in zip(*pairs, strict=True))
    assert metrics.drop_in_deletion(y, o).isnan().all()
    assert metrics.confidence_ratio(y, o).isnan().all()


def check_precision_is_that_of_float64(metrics: Any) -> None:
    y, o = torch.tensor([1.0]), torch.tensor([1 / 3])
    for function in (metrics.drop_in_deletion, metrics.confidence_ratio):
        assert function(y, o).dtype == torch.float64
    assert float(metrics.confidence_ratio(y, o)) == pytest.approx(100 * float(o), abs=1e-12)


def check_shapes_are_refused(metrics: Any) -> None:
    for function in (metrics.drop_in_deletion, metrics.confidence_ratio):
        for y, o in ((torch.ones(2), torch.ones(3)), (torch.ones(2, 2), torch.ones(2, 2)), (torch.ones(()), torch.ones(()))):
            with pytest.raises(MetricError):
                function(y, o)


MUTANTS = {
    "deletion not divided": ("(100 * (y - d) / y)", "(100 * (y - d))"),
    "deletion divided by D": ("(y - d) / y", "(y - d) / d"),
    "deletion turned around": ("(y - d)", "(d - y)"),
    "deletion cut off at 0": ("(y - d) / y", "(y - d).clamp(min=0) / y"),
    "deletion as a share": ("(100 * (y - d)", "((y - d)"),
    "invalid deletions count": ("~valid(y, d)", "y.isnan()"),
    "ratio turned around": ("100 * o / y", "100 * y / o"),
    "ratio as a share": ("(100 * o / y)", "(o / y)"),
    "ratio with an epsilon": ("100 * o / y", "100 * o / (y + 1e-7)"),
    "ratio cut off at 100": ("(100 * o / y)", "(100 * o / y).clamp(max=100)"),
}


test_the_confidence_family_passes, test_the_checks_fail_for_a_wrong_formula = mutation_tests(
    globals(), ["xaieval.metrics.confidence"], MUTANTS
)


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


# ---- errors, registry, classes


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (drop_in_deletion, "confidence and inverse_confidence"),
        (confidence_ratio, "confidence and masked_confidence"),
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


CLASSES = [
    (DropInDeletion, drop_in_deletion, "drop_in_deletion"),
    (ConfidenceRatio, confidence_ratio, "confidence_ratio"),
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
    collection = MetricCollection([DropInDeletion(), ConfidenceRatio()], compute_groups=groups)
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
