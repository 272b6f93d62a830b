"""The means of each layer and method as numbers, for the scatter plot that the script of a page draws."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from xaieval.report.figures.data import DIRECTIONS
from xaieval.results.matched import without_excess
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.record import RunRecord

__all__ = ["scatter_of"]


def scatter_of(scores: RunRecord, summary: pd.DataFrame) -> dict[str, Any]:
    """The axes to choose from, and the points; empty for fewer than two points or axes.

    Args:
        scores: The run.
        summary: Its means.

    Returns:
        `axes`, each with a label, a note and decimals, the mask area in percent last; and `points`, each with layer, method,
        whether it is a control map, and one value per axis, None where there is none.
    """
    metrics = without_excess(scores.metrics)
    axes = [
        {"label": label_of(metric), "note": DIRECTIONS[metric["higher_is_better"]], "digits": decimals_of(metric)}
        for metric in metrics
    ]
    columns = [summary[metric["name"]] for metric in metrics]
    if "mask_area" in summary and summary["mask_area"].notna().any():
        axes.append({"label": "mask area %", "note": "share of the image that is kept", "digits": 1})
        columns.append(100 * summary["mask_area"])
    if len(axes) < 2 or len(summary) < 2:
        return {"axes": [], "points": []}
    points = [
        {
            "layer": layer,
            "method": method,
            "control": method in scores.controls,
            "values": [_number(column.iloc[place]) for column in columns],
        }
        for place, (layer, method) in enumerate(summary.index)
    ]
    return {"axes": axes, "points": points}


def _number(value: Any) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
