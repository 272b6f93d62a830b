"""The networks of benchmarks/train_ucmerced.py: no place lies on both sides of a split, and predictions give the accuracies."""

from __future__ import annotations

import runpy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import ROOT

PROGRAM = runpy.run_path(str(ROOT / "benchmarks/train_ucmerced.py"))
RECORD = ROOT / "benchmarks/trained_ucmerced"


def test_each_image_is_held_out_once_and_ten_neighbours_stay_together():
    labels = np.repeat(np.arange(21), 100)
    folds = PROGRAM["held_out"](SimpleNamespace(labels=labels.tolist()))
    assert sorted(number for fold in folds for number in fold) == list(range(2100))
    fold_of = np.empty(2100, dtype=int)
    for number, fold in enumerate(folds):
        assert len(fold) == 420
        fold_of[fold] = number
    assert (fold_of.reshape(210, 10) == fold_of.reshape(210, 10)[:, :1]).all()


def _predictions(right):
    """Predictions of a fold on images of a class; twenty images are two places."""
    ids = [f"lake/lake{number:02}.jpg" for number in range(len(right))]
    return pd.DataFrame({"image_id": ids, "label": 0, "predicted": 1 - np.asarray(right), "confidence": 0.75, "fold": 0})


def test_accuracies_by_hand():
    table = _predictions([1] * 15 + [0] * 5)
    found = PROGRAM["accuracies"](table.assign(fold=[0] * 10 + [1] * 10)).set_index("fold")
    assert found["accuracy"].to_dict() == {"0": 100.0, "1": 50.0, "all": 75.0}
    assert found["confidence"].to_dict() == {"0": 0.75, "1": 0.75, "all": 0.75}
    assert found["n_images"].to_dict() == {"0": 10, "1": 10, "all": 20}
    assert found["n_groups"].to_dict() == {"0": 1, "1": 1, "all": 2}


def test_the_interval_counts_places_not_images():
    """A network that is right on all images of half of the places knows little more than ten coins that fell."""
    by_place, spread = np.repeat([1, 0], [50, 50]), np.tile([1, 0], 50)
    found = [PROGRAM["accuracies"](_predictions(right)).iloc[-1] for right in (by_place, spread)]
    alike, apart = (one["accuracy_high"] - one["accuracy_low"] for one in found)
    assert [one["accuracy"] for one in found] == [50, 50]
    assert alike > 40 > 25 > apart


def test_a_place_is_a_block_of_ten_numbers():
    names = [f"lake/lake{number:02}.jpg" for number in range(100)]
    assert len({PROGRAM["place"](name) for name in names}) == 10
    assert PROGRAM["place"]("a/b09.tif") == PROGRAM["place"]("a/b00.tif") != PROGRAM["place"]("a/b10.tif")


def test_predictions_name_the_class_and_its_confidence():
    class Pictures:
        def loader(self, batch_size):
            yield {"image": torch.tensor([[0.0, np.log(3)], [np.log(9), 0.0]]), "id": ["a", "b"], "label": torch.tensor([1, 1])}

    found = PROGRAM["predictions"](torch.nn.Identity(), Pictures())
    assert found["image_id"].tolist() == ["a", "b"]
    assert found["predicted"].tolist() == [1, 0]
    assert found["confidence"].tolist() == pytest.approx([0.75, 0.9])


def test_the_record_says_what_its_predictions_say():
    predictions = pd.read_csv(RECORD / "predictions.csv")
    assert predictions["image_id"].is_unique
    assert len(predictions) == 2100
    made = PROGRAM["accuracies"](predictions)
    kept = pd.read_csv(RECORD / "accuracy.csv", dtype={"fold": str})
    pd.testing.assert_frame_equal(made, kept, atol=0.001)
    assert kept.set_index("fold").loc["all", "accuracy"] >= 91
