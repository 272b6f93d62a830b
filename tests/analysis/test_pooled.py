"""Numbers over all images at once: against slow loops, whole groups in the bootstrap, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from xaieval.analysis.pooled import POOLED, pooled
from xaieval.errors import MetricError
from xaieval.metrics import pooled_mean_iou

ENTRY: dict[str, Any] = {"name": "seg", "higher_is_better": True, "settings": {"pooled": "mean_iou"}}


def _rows(count: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    curves = rng.dirichlet([2, 1, 1, 4], size=count)
    rows = pd.DataFrame({"image_id": [str(number) for number in range(count)], "layer": "p5", "method": "gradcam"})
    return rows.assign(seg_curve=list(curves), status="ok")


def test_the_number_is_that_of_mean_curves_and_the_interval_of_resampled_images():
    rows = _rows()
    curves = np.stack(rows["seg_curve"])
    found = pooled(rows, [ENTRY], resamples=400, seed=3).loc[("p5", "gradcam")]
    assert found["mean_iou"] == pytest.approx(pooled_mean_iou(curves.mean(axis=0)))
    rng = np.random.default_rng(7)
    drawn = [pooled_mean_iou(curves[rng.integers(40, size=40)].mean(axis=0)) for _ in range(400)]
    np.testing.assert_allclose([found["mean_iou_low"], found["mean_iou_high"]], np.quantile(drawn, [0.025, 0.975]), atol=1.0)
    again = pooled(rows, [ENTRY], resamples=400, seed=3).loc[("p5", "gradcam")]
    assert again.equals(found)


def test_whole_groups_are_resampled_and_can_be_weighted_alike():
    rows = _rows(8)
    repeated = pd.concat([rows.assign(image_id=rows["image_id"] + f"/{time}", group=rows["image_id"]) for time in range(30)])
    few = pooled(repeated, [ENTRY]).loc[("p5", "gradcam")]
    assert few["mean_iou"] == pytest.approx(pooled(rows, [ENTRY])["mean_iou"].iloc[0])
    assert np.isnan(few["mean_iou_low"]), "8 groups are too few, whatever the number of their images"
    assert not np.isnan(pooled(repeated.drop(columns="group"), [ENTRY])["mean_iou_low"].iloc[0])
    grouped = _rows(60).assign(group=[str(min(number, 29)) for number in range(60)])
    curves = np.stack(grouped["seg_curve"])
    by_group = np.stack([curves[(grouped["group"] == name).to_numpy()].mean(axis=0) for name in grouped["group"].unique()])
    found = pooled(grouped, [ENTRY], weights="groups").loc[("p5", "gradcam")]
    assert found["mean_iou"] == pytest.approx(pooled_mean_iou(by_group.mean(axis=0)))
    assert found["mean_iou_low"] < found["mean_iou"] < found["mean_iou_high"]


def test_rows_without_a_curve_are_left_out_and_counted():
    rows = _rows(30)
    expected = pooled(rows.iloc[3:], [ENTRY])["mean_iou"].iloc[0]
    rows["seg_curve"] = [None, np.full(4, np.nan), *rows["seg_curve"][2:]]
    rows.loc[2, "status"] = "unreadable"
    found = pooled(rows, [ENTRY]).iloc[0]
    assert found["mean_iou"] == pytest.approx(expected)
    assert found["mean_iou_n"] == 27
    nothing = pooled(rows.iloc[:2], [ENTRY]).iloc[0]
    assert nothing["mean_iou_n"] == 0
    assert np.isnan(nothing["mean_iou"])


def test_every_pooled_number_has_metrics_that_keep_what_it_takes():
    from xaieval.metrics import box_accuracy, mean_iou, pixel_average_precision

    made = [box_accuracy(), mean_iou(keep_curve=True), pixel_average_precision()]
    assert {metric.settings["pooled"] for metric in made} == POOLED.keys()


def test_what_cannot_be_pooled_is_refused():
    with pytest.raises(MetricError, match=r"^the run has no metric whose curves can be pooled over its images; score it with"):
        pooled(_rows(), [ENTRY | {"settings": {}}])
    with pytest.raises(MetricError, match="no metric 'iou' that can be pooled; known: seg"):
        pooled(_rows(), [ENTRY], by="iou")
    with pytest.raises(MetricError, match="level"):
        pooled(_rows(), [ENTRY], level=1)
