"""The warning that a metric follows the size of the maps: when it is given, and when not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from xaieval.analysis.size import correlations_with_size, find_metrics_of_size
from xaieval.results.matched import excess_entry
from xaieval.results.record import RunRecord

AD = "average_drop"
DROP = {"name": AD, "higher_is_better": False, "interval": "mean", "label": "AD %"}
AREAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def _record(areas: Any = AREAS, metrics: Any = (DROP,), controls: Any = (), **columns: Any) -> RunRecord:
    """Two images at each layer, with the means that are given by layer."""
    rows = pd.DataFrame({"layer": [f"p{n}" for n in range(len(areas))], "method": "gradcam", "mask_area": areas, **columns})
    rows = pd.concat([rows.assign(image_id=name) for name in "ab"], ignore_index=True).assign(status="ok")
    return RunRecord(rows, {"metrics": list(metrics), "controls": list(controls)})


def test_a_metric_that_the_mask_area_predicts_is_named_with_the_correlation():
    (found,) = find_metrics_of_size(_record(average_drop=[90, 81, 72, 60, 52, 39]))
    assert found.name == "metric_follows_size"
    assert found.text == (
        "over 6 pairs of layer and method the mask area predicts average_drop (r = -1.00): a larger map hides less and scores "
        "better wherever it points; controls='matched' compares each map with others of its size"
    )
    assert found.evidence == {AD: pytest.approx(-0.998, abs=1e-3)}


@pytest.mark.parametrize(
    ("areas", "drops"),
    [
        (AREAS[:4], [90, 80, 70, 60]),
        (AREAS, [50, 90, 10, 60, 30, 70]),
        (AREAS, [50.0] * 6),
        ([0.3] * 6, [90, 80, 70, 60, 50, 40]),
        (AREAS[:5], [60, 40, 80, 20, 10]),
    ],
    ids=["few", "no-correlation", "constant-metric", "constant-area", "chance"],
)
def test_few_pairs_constants_and_chance_are_no_reason(areas, drops):
    assert find_metrics_of_size(_record(areas, average_drop=drops)) == []


def test_controls_and_metrics_without_a_direction_take_no_part():
    record = _record(average_drop=[90, 81, 72, 60, 52, 39])
    record.rows.loc[record.rows["layer"] == "p5", "method"] = "uniform"
    table = correlations_with_size(record.rows, record.metrics, ["uniform"])
    assert table.loc[AD, "pairs"] == 5
    area = DROP | {"name": "mine", "higher_is_better": None}
    assert correlations_with_size(record.rows.assign(mine=record.rows["mask_area"]), [area]).empty


def test_an_excess_in_the_run_is_the_way_out_unless_it_follows_the_size_too():
    metrics = [DROP, excess_entry(DROP, "shifted")]
    falling = [90, 81, 72, 60, 52, 39]
    assert (
        find_metrics_of_size(_record(metrics=metrics, average_drop=falling, average_drop_excess=[-5, -1, -9, 0, -3, -4])) == []
    )
    (found,) = find_metrics_of_size(
        _record(metrics=metrics, average_drop=falling, average_drop_excess=[-1, -2, -3, -4, -5, -6.1])
    )
    assert found.text == (
        "over 6 pairs of layer and method the mask area predicts average_drop_excess (r = -1.00): larger maps differ more from "
        "others of their size, so compare layers and methods whose maps are about as large"
    )


def test_rows_without_mask_areas_give_no_warning():
    record = _record(average_drop=[90, 81, 72, 60, 52, 39])
    assert find_metrics_of_size(RunRecord(record.rows.drop(columns="mask_area"), record.manifest)) == []


def test_metrics_of_unrelated_size_are_rarely_named():
    rng = np.random.default_rng(0)
    found = [find_metrics_of_size(_record(rng.random(8), average_drop=rng.random(8))) for _ in range(60)]
    assert sum(map(len, found)) <= 3
