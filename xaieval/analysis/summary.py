"""The table of a run: the mean of each metric with its interval, per layer and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.controls import CONTROLS_COLUMN, metrics_beating_controls, rivals
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import metric_interval, why_no_interval
from xaieval.analysis.tables import grouping_of, mean_of
from xaieval.config.groups import Weights
from xaieval.results.rows import COUNTED, EXCLUDED, GROUP, VALUED

__all__ = ["summarise", "why_missing"]

AREA = "mask_area"


def summarise(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    controls: Sequence[str] = (),
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    tests: pd.DataFrame | None = None,
    weights: Weights = "images",
) -> pd.DataFrame:
    """The mean of each metric over the images, with its interval, per layer and method.

    If the rows have the column `group`, intervals allow for similar images in one group.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        controls: Names of the methods that are control maps.
        level: Level of the intervals, in (0, 1).
        resamples: Number of bootstrap samples; intervals of means are then percentile bootstrap intervals.
        seed: Seed of the resampling.
        tests: The table of `compare_with_controls` (default: no column `beats_controls`).
        weights: "images", or "groups" if every group counts the same in a mean.

    Returns:
        Index `(layer, method)` in order of execution; columns of each metric, `<metric>_low` and `<metric>_high` (Wilson's
        interval for proportions, `xaieval.analysis.stats.intervals.mean_interval` for means, which is NaN for too few images);
        `<metric>_n` if a metric has values for fewer rows than count, such as images without an object, or for more, such as
        images whose confidence is not positive, if it does not divide by it; then `mask_area` (mean share of the image that
        the masks keep, in [0, 1]), `n_images` (rows that count), `n_groups` (their groups, if the run has groups) and
        `n_failed` (rows that do not count, except images that the protocol excludes); and if the run has controls,
        `beats_controls`, the metrics in which the method is significantly better than every control but fake-cam.

    Raises:
        MetricError: The level is not in (0, 1).

    Example:
        >>> rows = pd.DataFrame({"image_id": range(12), "layer": "p5", "method": "gradcam", "mask_area": 0.25})
        >>> rows = rows.assign(average_drop=[0.0, 10, 20, 30] * 3)
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> print(summarise(rows.assign(status="ok"), [drop]).round(1).to_string())
                       average_drop  average_drop_low  average_drop_high  mask_area  n_images  n_failed
        layer method
        p5    gradcam          15.0               7.6               22.4        0.2        12         0
    """
    intervals = {
        metric["name"]: partial(metric_interval, kind=metric["interval"], level=level, resamples=resamples, seed=seed)
        for metric in metrics
    }
    records = [
        {"layer": layer, "method": method} | _record(part, intervals, weights)
        for (layer, method), part in rows.groupby(["layer", "method"], sort=False)
    ]
    columns = [name + end for name in intervals for end in ("", "_low", "_high", "_n")]
    counts = [*([AREA] if AREA in rows else []), "n_images", *(["n_groups"] if GROUP in rows else []), "n_failed"]
    table = pd.DataFrame(records, columns=["layer", "method", *columns, *counts])
    table = table.set_index(["layer", "method"])
    if rivals(controls) and tests is not None:
        beaten = metrics_beating_controls(tests, table.index, controls)
        table[CONTROLS_COLUMN] = pd.Series(beaten, index=table.index, dtype=object)
    return table.drop(columns=[f"{name}_n" for name in intervals if (table[f"{name}_n"] == table["n_images"]).all()])


def why_missing(summary: pd.DataFrame, metrics: Sequence[str], level: float, weights: Weights = "images") -> str:
    """Why a mean of a summary has no interval, as a sentence; "" if all of them have one.

    Args:
        summary: The result of `summarise`.
        metrics: Names of metrics in the summary.
        level: Level of its intervals.
        weights: What its means count.
    """
    missing = [summary[name].notna() & summary[f"{name}_low"].isna() for name in metrics]
    odd = summary[np.any(missing, axis=0)] if missing else summary[:0]
    if odd.empty:
        return ""
    groups = Grouping(range(int(odd["n_groups"].min())), weights) if "n_groups" in odd else None
    return why_no_interval(level, groups=groups)


def _record(part: pd.DataFrame, intervals: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """The means, intervals and counts of a layer and method."""
    valued, counted = part[part["status"].isin(VALUED)], part[part["status"].isin(COUNTED)]
    together = grouping_of(part, valued["image_id"], weights)
    record: dict[str, Any] = {}
    for name, ends in intervals.items():
        values = valued[name].to_numpy(dtype=float)
        kept = ~np.isnan(values)
        groups = None if together is None else together.of(kept)
        low, high = ends(values[kept], groups=groups)
        mean = mean_of(values[kept], groups)
        record |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": int(kept.sum())}
    if AREA in part:
        areas = counted[AREA].to_numpy(dtype=float)
        record[AREA] = mean_of(areas, grouping_of(part, counted["image_id"], weights))
    failed = len(part) - len(counted) - int((part["status"] == EXCLUDED).sum())
    known = {} if GROUP not in part else {"n_groups": counted[GROUP].nunique()}
    return record | {"n_images": len(counted), **known, "n_failed": failed}
