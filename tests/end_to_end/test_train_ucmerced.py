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


def test_accuracies_by_hand():
    table = pd.DataFrame({"label": [0, 1, 2, 3], "predicted": [0, 1, 2, 0], "confidence": [0.9, 0.8, 0.7, 0.4]})
    found = PROGRAM["accuracies"](table.assign(fold=[0, 0, 1, 1])).set_index("fold")
    assert found["accuracy"].to_dict() == {"0": 100.0, "1": 50.0, "all": 75.0}
    assert found["n_images"].to_dict() == {"0": 2, "1": 2, "all": 4}
    assert found.loc["all", "confidence"] == pytest.approx(0.7)
    # Wilson's interval of 3 of 4, by its formula.
    z, p, n = 1.959964, 0.75, 4
    middle, reach = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    ends = found.loc["all", ["accuracy_low", "accuracy_high"]].to_numpy(dtype=float)
    assert ends == pytest.approx([100 * (middle - reach), 100 * (middle + reach)], abs=0.01)


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
    pd.testing.assert_frame_equal(made, kept, atol=0.011)
    assert kept.set_index("fold").loc["all", "accuracy"] >= 91
