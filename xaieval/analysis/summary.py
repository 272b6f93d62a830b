"""The table of a run: the mean of each metric with its interval, per layer and method."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.controls import CONTROLS_COLUMN, metrics_beating_controls, rivals
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import metric_interval, why_no_interval
from xaieval.analysis.tables import grouping_of_rows, mean_of
from xaieval.config.counts import check_count
from xaieval.config.groups import Weights
from xaieval.errors import MetricError
from xaieval.results.record import RunRecord
from xaieval.results.rows import COUNTED, EXCLUDED, GROUP, VALUED

__all__ = ["summarise", "summarise_run", "why_missing"]

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
    intervals = _intervals(metrics, level, resamples, seed)
    parts = rows.groupby(["layer", "method"], sort=False)
    records = {pair: _record(part, intervals, weights) for pair, part in parts}
    return _table(records, rows, metrics, controls, tests)


def summarise_run(
    record: RunRecord, level: float = 0.95, resamples: int | None = None, tests: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The summary of a run, which may be larger than the memory; see `summarise`.

    Args:
        record: The run.
        level: Level of the intervals, in (0, 1).
        resamples: Number of bootstrap samples; intervals of means are then percentile bootstrap intervals.
        tests: The table of `compare_with_controls` (default: no column `beats_controls`).

    Raises:
        MetricError: The level is not in (0, 1).
    """
    intervals = _intervals(record.metrics, level, resamples, record.seed)
    known = record.column_names
    own = [name for name in (AREA, GROUP) if name in known]
    # Metric by metric, a pass over a large file takes more of its layers and methods.
    asked = [[name] for name in intervals] + [[AREA]] if record.is_large else [[*intervals, AREA]]
    records: dict[Any, dict[str, Any]] = {}
    for names in asked:
        chosen = {name: intervals[name] for name in names if name in intervals}
        columns = ["status", *chosen, *(name for name in own if name != AREA or AREA in names)]
        for pair, part in record.by_pair(columns):
            records.setdefault(pair, {}).update(_record(part, chosen, record.group_weights))
    return _table(records, known, record.metrics, record.controls, tests)


def _intervals(
    metrics: Sequence[Mapping[str, Any]], level: float, resamples: int | None, seed: int
) -> dict[str, Callable[..., tuple[float, float]]]:
    """By metric, the function that gives the interval of its values."""
    check_count("resamples", resamples, optional=True, kind=MetricError)
    return {
        metric["name"]: partial(
            metric_interval, kind=metric["interval"], level=level, resamples=resamples, seed=seed, bounds=metric.get("bounds")
        )
        for metric in metrics
    }


def _table(
    records: Mapping[Any, Mapping[str, Any]],
    known: Container[Any],
    metrics: Sequence[Mapping[str, Any]],
    controls: Sequence[str],
    tests: pd.DataFrame | None,
) -> pd.DataFrame:
    """The summary, from the means, intervals and counts of each layer and method, of rows with the known columns."""
    names = [metric["name"] for metric in metrics]
    columns = [name + end for name in names for end in ("", "_low", "_high", "_n")]
    counts = [*([AREA] if AREA in known else []), "n_images", *(["n_groups"] if GROUP in known else []), "n_failed"]
    lines = [{"layer": layer, "method": method, **record} for (layer, method), record in records.items()]
    table = pd.DataFrame(lines, columns=["layer", "method", *columns, *counts]).set_index(["layer", "method"])
    if rivals(controls) and tests is not None:
        beaten = metrics_beating_controls(tests, table.index, controls)
        table[CONTROLS_COLUMN] = pd.Series(beaten, index=table.index, dtype=object)
    return table.drop(columns=[f"{name}_n" for name in names if (table[f"{name}_n"] == table["n_images"]).all()])


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
    valued, counted = (part["status"].isin(names).to_numpy() for names in (VALUED, COUNTED))
    together = grouping_of_rows(part, weights, valued)
    record: dict[str, Any] = {}
    for name, ends in intervals.items():
        values = part[name].to_numpy(dtype=float)[valued]
        kept = ~np.isnan(values)
        groups = None if together is None else together.of(kept)
        low, high = ends(values[kept], groups=groups)
        mean = mean_of(values[kept], groups)
        record |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": int(kept.sum())}
    if AREA in part:
        areas = part[AREA].to_numpy(dtype=float)[counted]
        record[AREA] = mean_of(areas, grouping_of_rows(part, weights, counted))
    failed = len(part) - int(counted.sum()) - int((part["status"] == EXCLUDED).sum())
    known = {} if GROUP not in part else {"n_groups": part.loc[counted, GROUP].nunique()}
    return record | {"n_images": int(counted.sum()), **known, "n_failed": failed}
