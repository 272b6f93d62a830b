"""Passes that no metric needs are not made."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from xaieval import Scores, score

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WITHOUT = ("sparseness", "entropy")
MASKED = ("average_drop", "drop_in_deletion", "adcc")


class Counting(nn.Module):
    """A small network that counts the images it is shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(4, 3)
        self.shown = 0

    def forward(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        return self.head(self.features(images).mean(dim=(2, 3)))


def shown(*metrics: str, **options: object) -> int:
    model = Counting()
    score(model, [IMAGES], "features", metrics=metrics, fast=False, progress=False, **options)
    return model.shown


def run(*metrics: str, **options: object) -> Scores:
    return score(Counting(), [IMAGES], "features", ["gradcam", "uniform"], metrics, progress=False, **options)


def test_metrics_of_maps_alone_need_no_masked_image():
    few, once, both = shown("sparseness"), shown("average_drop"), shown("average_drop", "drop_in_deletion")
    assert (once - few, both - once) == (4, 4)
    assert shown(*WITHOUT) == few


def test_matched_controls_of_curves_need_no_masked_image():
    fewer, more = shown("deletion", controls="matched"), shown("deletion", "average_drop", controls="matched")
    assert more - fewer == 4 * 5  # of the method and its four controls


def test_rows_without_masked_images_count(tmp_path):
    scores = run(*WITHOUT)
    assert set(scores.rows["status"]) <= {"ok", "constant_map"}
    assert scores.rows["masked_confidence"].isna().all()
    assert scores.rows[["confidence", "mask_area"]].notna().all(axis=None)
    assert (scores.summary()["n_images"] == 4).all()
    scores.save(tmp_path)
    pd.testing.assert_frame_equal(Scores.load(tmp_path).rows, scores.rows)
    scores.to_html(tmp_path / "report.html")
    assert "masked confidence" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("metric", MASKED)
def test_values_are_the_same_beside_a_metric_that_needs_them(metric):
    alone, beside = run(*WITHOUT, "insertion", controls="matched"), run(*WITHOUT, "insertion", metric, controls="matched")
    columns = [name for name in alone.rows if name != "masked_confidence"]
    pd.testing.assert_frame_equal(alone.rows[columns], beside.rows[columns], check_exact=True)
