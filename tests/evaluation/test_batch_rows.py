"""Rows of images whose confidence is not positive, of which only quotients have no value; labels in rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval import Protocol, score
from xaieval.errors import RunError
from xaieval.metrics import Metric

IDENTITY = Protocol(confidence="identity")
WITHOUT = ["pointing_game", "energy_pointing_game", "sparseness", "insertion", "deletion", "increase_in_confidence", "road"]
QUOTIENTS = ["average_drop", "average_gain", "confidence_ratio", "drop_in_deletion", "adcc"]


class Regression(nn.Module):
    """One number per image, negative for half of the images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(4, 1)
        with torch.no_grad():
            self.head.bias -= self(images()).median()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def images() -> Tensor:
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def data() -> list[dict[str, Tensor]]:
    masks = torch.zeros(6, 16, 16, dtype=torch.bool)
    masks[:, 4:9, 3:12] = True
    return [{"image": images(), "mask": masks}]


def run(metrics: list[str | Metric], protocol: Protocol = IDENTITY) -> xaieval.Scores:
    return score(Regression(), data(), "body", metrics=metrics, protocol=protocol, progress=False)


def test_metrics_without_a_quotient_have_values_of_negative_outputs():
    scores = run(WITHOUT)
    y = scores.rows["confidence"]
    assert (y <= 0).sum() >= 2
    assert set(scores.rows["status"]) == {"ok"}
    assert scores.rows[WITHOUT].notna().all(axis=None)
    assert scores.rows["increase_in_confidence"].tolist() == (100.0 * (scores.rows["masked_confidence"] > y)).tolist()
    assert scores.summary()[["n_images", "n_failed"]].to_numpy().tolist() == [[6, 0]]
    assert not scores.warnings()


def test_quotients_have_none_and_the_summary_counts_both():
    scores = run([*WITHOUT, *QUOTIENTS])
    rows, bad = scores.rows, (scores.rows["confidence"] <= 0).to_numpy()
    assert (rows["status"].isin(["negative_confidence", "zero_confidence"]).to_numpy() == bad).all()
    assert rows[WITHOUT].equals(run(WITHOUT).rows[WITHOUT])
    assert rows.loc[bad, QUOTIENTS].isna().all(axis=None)
    assert rows.loc[~bad, ["average_drop", "confidence_ratio", "drop_in_deletion"]].notna().all(axis=None)
    summary = scores.summary().iloc[0]
    assert summary[["n_images", "n_failed"]].tolist() == [(~bad).sum(), bad.sum()]
    assert summary["pointing_game_n"] == 6
    assert "average_drop_n" not in summary
    assert summary["pointing_game"] == pytest.approx(rows["pointing_game"].mean())
    assert summary["average_drop"] == pytest.approx(rows.loc[~bad, "average_drop"].mean())


def test_a_metric_of_ones_own_says_whether_it_divides():
    difference = Metric("difference", lambda y, o: y - o, True)
    safe = replace(difference, name="safe", divides=False)
    rows = run([difference, safe]).rows
    bad = rows["confidence"] <= 0
    assert (rows["difference"].isna() == bad).all()
    assert rows["safe"].to_numpy() == pytest.approx((rows["confidence"] - rows["masked_confidence"]).to_numpy())


def test_an_error_is_raised_only_where_a_metric_divides():
    strict = replace(IDENTITY, invalid="error")
    assert len(run(["pointing_game"], strict).rows) == 6
    with pytest.raises(RunError, match="has the status negative_confidence, which the protocol refuses"):
        run(["average_drop"], strict)


def test_a_map_of_nan_has_no_value_of_a_negative_output_either():
    def nowhere(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return torch.full((len(images), 16, 16), torch.nan)

    scores = score(Regression(), data(), methods=nowhere, metrics=[*WITHOUT, "average_drop"], protocol=IDENTITY, progress=False)
    assert set(scores.rows["status"]) == {"nan_map"}
    assert np.isnan(scores.rows[WITHOUT].to_numpy(float)).all()
