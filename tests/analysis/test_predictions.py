"""Accuracy and confidences of a run, and what they say against its numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xaieval.analysis.predictions import find_in_predictions, predictions_of
from xaieval.results.record import RunRecord


def rows(labels: list[int | None], predicted: list[int], confidence: list[float] | None = None) -> pd.DataFrame:
    """Two rows per image, as of two layers."""
    count = len(predicted)
    images = pd.DataFrame(
        {
            "image_id": [str(number) for number in range(count)],
            "label": pd.array(labels, dtype="Int64"),
            "predicted": pd.array(predicted, dtype="Int64"),
            "confidence": np.linspace(0.3, 0.9, count) if confidence is None else confidence,
            "status": "ok",
        }
    )
    return pd.concat([images.assign(layer=layer, method="gradcam") for layer in ("p4", "p5")])


def names(table: pd.DataFrame, **manifest) -> list[str]:
    return [finding.name for finding in find_in_predictions(RunRecord(table, manifest))]


def test_each_image_counts_once_and_unreadable_ones_not_at_all():
    table = rows([0, 1, None, 3], [0, 0, 1, 3], [0.5, 0.7, 0.9, float("nan")])
    found = predictions_of(table)
    assert (found.labelled, found.correct, found.images) == (3, 2, 3)
    assert found.accuracy == pytest.approx(200 / 3)
    assert found.mean_confidence == pytest.approx(0.7)
    assert str(found) == "accuracy 66.7 % (2 of 3 labels), mean confidence 0.7 (n = 3)"
    assert str(predictions_of(rows([None] * 2, [0, 1], [float("nan")] * 2))) == ""


def test_a_good_model_has_nothing_said_of_it():
    assert names(rows([0, 1, 2, 3] * 5, [0, 1, 2, 0] * 5), classes=4) == []
    assert names(rows([None] * 8, [1] * 8), classes=1000) == []


def test_labels_that_the_model_has_no_class_for():
    [found] = find_in_predictions(RunRecord(rows([0, 20, 3], [0, 1, 3]), {"classes": 10}))
    assert found.name == "labels_of_another_space"
    assert found.text.startswith("the data has the label 20, but the model has 10 classes, 0 to 9;")


def test_few_folders_on_a_model_of_many_classes():
    table = rows(list(range(21)), list(range(400, 421)))
    [found] = find_in_predictions(RunRecord(table, {"classes": 1000}))
    assert found.name == "labels_of_another_space"
    assert dict(found.evidence) == {"images": 21, "correct": 0, "labels": 21, "classes": 1000, "chance": 0.1}
    assert "accuracy is 0.0 % (0 of 21 images), and 100% of the predictions are classes above all labels" in found.text


def test_few_folders_on_a_model_of_many_classes_that_are_right_by_coincidence():
    table = rows([0, 1, 2, 3] * 25, [0, 1] + [500] * 98)
    [found] = find_in_predictions(RunRecord(table, {"classes": 1000}))
    assert found.name == "labels_of_another_space"
    assert "2.0 % (2 of 100 images), and 98% of the predictions are classes above all labels" in found.text


def test_ages_are_no_classes_of_a_regression():
    table = rows([23, 40, 31, 60], [0] * 4)
    assert names(table, classes=1, run={"protocol.confidence": "identity"}) == []
    assert str(predictions_of(table, classes=1)) == "mean confidence 0.6 (n = 4)"


def test_the_label_255_is_none_where_the_model_has_fewer_classes():
    table = rows([255, 1, 2], [0, 1, 2])
    assert names(table, classes=4) == []
    assert str(predictions_of(table, 4)).startswith("accuracy 100.0 % (2 of 2 labels)")
    assert str(predictions_of(table, 1000)).startswith("accuracy 66.7 % (2 of 3 labels)")


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_the_class_of_an_object_need_not_be_that_of_the_image(task):
    table = rows([0, 1] * 10, [40] * 20)
    run = {"task": {"name": task}, "protocol.target": "predicted"}
    assert names(table, run=run) == []
    assert names(table, run=run | {"protocol.target": "label"}) == ["labels_of_another_space"]


def test_a_folder_of_one_class_that_a_binary_model_always_misses_has_no_other_space():
    assert names(rows([0] * 5, [1] * 5), classes=2) == ["accuracy_at_chance"]


def test_shuffled_labels_of_the_right_number():
    labels = [number % 10 for number in range(60)]
    assert names(rows(labels, labels[1:] + labels[:1]), classes=10) == ["accuracy_at_chance"]


@pytest.mark.parametrize(("correct", "count", "classes"), [(0, 4, 1000), (1, 6, 10), (5, 10, 2), (4, 20, 1000), (12, 20, 2)])
def test_few_images_or_a_weak_model_prove_nothing(correct, count, classes):
    labels = [number % classes for number in range(count)]
    predicted = [label if number < correct else (label + 1) % classes for number, label in enumerate(labels)]
    assert names(rows(labels, predicted), classes=classes) == []


def test_the_first_of_many_classes_alone_are_no_other_space():
    labels = [number % 3 for number in range(30)]
    assert names(rows(labels, labels), classes=1000) == []


def test_confidences_near_one_near_zero_and_all_alike():
    assert names(rows([None] * 20, [0] * 20, [0.9995] * 19 + [0.5])) == ["saturated_confidences"]
    assert names(rows([None] * 20, [0] * 20, [0.9995] * 17 + [0.5] * 3)) == []
    assert names(rows([None] * 5, [0] * 5, [0.004, 0.005, 0.006, 0.5, 0.009])) == ["low_confidences"]
    assert names(rows([None] * 4, [0] * 4, [0.25] * 4)) == ["constant_confidences"]
    assert names(rows([None] * 2, [0] * 2, [0.25] * 2)) == []


def test_numbers_that_are_no_probabilities_are_neither_high_nor_low():
    identity = {"run": {"protocol.confidence": "identity"}}
    assert names(rows([None] * 4, [0] * 4, [10.0, 11.0, 12.0, 13.0]), **identity) == []
    assert names(rows([None] * 4, [0] * 4, [1e-3, 2e-3, 3e-3, 4e-3]), **identity) == []
