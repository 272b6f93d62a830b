"""Numbers of a whole set of images that are not means over images: MaxBoxAcc, PxAP and mIoU, from the curves that rows keep."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import bootstrap_means, check_level
from xaieval.analysis.tables import column_means, grouping_of
from xaieval.config.groups import Weights
from xaieval.config.metric_names import own_name
from xaieval.errors import MetricError, choose_from
from xaieval.results.rows import VALUED

__all__ = ["POOLED", "pooled", "pooled_numbers", "why_no_pooled_interval"]

Floats = NDArray[np.float64]
Mean = Callable[[Floats], Floats]
Statistic = Callable[..., Any]  # of the curves [N, S], the mean over images of a table, and the settings of the metric

_FEW = 20  # images or groups below which percentile intervals are too narrow even for normal values


class Pooled(NamedTuple):
    """A number over all images.

    Attributes:
        statistic: Computes it.
        label: Its name in the papers, from the settings of the metric.
    """

    statistic: Statistic
    label: Callable[[Mapping[str, Any]], str]


def _box_label(settings: Mapping[str, Any]) -> str:
    known = {("any", (0.3, 0.5, 0.7)): "MaxBoxAccV2 %", ("largest", (0.5,)): "MaxBoxAcc %"}
    return known.get((settings["components"], tuple(settings["iou"])), "max. box accuracy %")


# The metrics take long to import, with torch, and are loaded when a number is computed.


def _max_box_accuracy(curves: Floats, mean: Mean, settings: Mapping[str, Any]) -> Any:
    from xaieval.metrics import max_box_accuracy

    return max_box_accuracy(curves, settings["iou"], mean)


def _average_precision(curves: Floats, mean: Mean, settings: Mapping[str, Any]) -> Any:
    from xaieval.metrics import pooled_average_precision

    return pooled_average_precision(mean(curves))


def _mean_iou(curves: Floats, mean: Mean, settings: Mapping[str, Any]) -> Any:
    from xaieval.metrics import pooled_mean_iou

    return pooled_mean_iou(mean(curves))


POOLED: dict[str, Pooled] = {
    "max_box_accuracy": Pooled(_max_box_accuracy, _box_label),
    "pixel_average_precision": Pooled(_average_precision, lambda settings: "PxAP %"),
    "mean_iou": Pooled(_mean_iou, lambda settings: "mIoU %"),
}


def pooled(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    by: str | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    weights: Weights = "images",
) -> pd.DataFrame:
    """Numbers over all images at once, per layer and method, with bootstrap intervals.

    Such a number is a function of mean curves: a maximum over thresholds that are common to all images, or a ratio of sums. Its
    interval is the percentile bootstrap of images; of whole groups, if the rows have the column `group`.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        by: Name of a metric (default: all that can be pooled).
        level: Level of the intervals, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.
        weights: What a mean counts, if the rows have groups.

    Returns:
        Index `(layer, method)`; for each metric the column of its pooled number, such as `max_box_accuracy`, with `_low` and
        `_high`, NaN for fewer than 20 images or groups, and `_n`, the number of images that have a curve. If two metrics of the
        run pool to the same number, its columns begin with the name of the metric.

    Raises:
        MetricError: The run has no metric that can be pooled, or not this one; or the level is not in (0, 1).

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

    Example:
        >>> rows = pd.DataFrame({"image_id": ["a", "b"], "layer": "p5", "method": "gradcam", "status": "ok"})
        >>> rows["iou_curve"] = [[0.1, 0.2, 0.1, 0.6], [0.3, 0.0, 0.1, 0.6]]
        >>> entry = {"name": "iou", "higher_is_better": True, "settings": {"pooled": "mean_iou"}}
        >>> pooled(rows, [entry])[["mean_iou", "mean_iou_n"]].round(2)
                        mean_iou  mean_iou_n
        layer method
        p5    gradcam      62.5           2
    """
    check_level(level)
    chosen = _chosen(rows, metrics, by)
    records: dict[Any, dict[str, float]] = {}
    for pair, part in rows.groupby(["layer", "method"], sort=False):
        counted = part[part["status"].isin(VALUED)]
        record = records.setdefault(pair, {})
        for number in chosen:
            ends = _number(counted, number["metric"], level, resamples, seed, weights)
            record |= {f"{number['name']}{end}": value for end, value in ends.items()}
    index = pd.MultiIndex.from_tuples(list(records), names=["layer", "method"])
    return pd.DataFrame(list(records.values()), index=index)


def pooled_numbers(columns: Container[Any], metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The numbers that `pooled` computes of a run, for tables: `name` (the column), `label`, `higher_is_better` and `metric`.

    Empty for a run without metrics that can be pooled.

    Args:
        columns: The names of the columns of its rows, or the rows.
        metrics: The metrics of its manifest.

    Example:
        >>> [number] = pooled_numbers(["iou_curve"], [{"name": "iou", "settings": {"pooled": "mean_iou"}}])
        >>> number["name"], number["label"], number["metric"]["name"]
        ('mean_iou', 'mIoU %', 'iou')
    """
    known = [
        entry for entry in metrics if entry.get("settings", {}).get("pooled") in POOLED and f"{entry['name']}_curve" in columns
    ]
    return _named(known)


def why_no_pooled_interval(table: pd.DataFrame, numbers: Sequence[Mapping[str, Any]]) -> str:
    """Why a number of a table of `pooled` has no interval, as a sentence; "" if all of them have one.

    Args:
        table: The result of `pooled`.
        numbers: Those of the table, as `pooled_numbers` gives them.
    """
    missing = any((table[one["name"]].notna() & table[f"{one['name']}_low"].isna()).any() for one in numbers)
    return f"no interval: a percentile bootstrap interval takes at least {_FEW} images, or groups of images" if missing else ""


def _named(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each number with a column of its own: with the name of the metric, if several pool to the same number."""
    names = [entry["settings"]["pooled"] for entry in entries]
    numbers = []
    for entry, name in zip(entries, names, strict=True):
        label, several = POOLED[name].label(entry["settings"]), names.count(name) > 1
        numbers.append(
            {
                "name": f"{entry['name']}_{name}" if several else name,
                "label": f"{label} ({entry['name']})" if several else label,
                "higher_is_better": True,
                "metric": entry,
            }
        )
    return numbers


def _chosen(rows: pd.DataFrame, metrics: Sequence[Mapping[str, Any]], by: str | None) -> list[dict[str, Any]]:
    numbers = pooled_numbers(rows, metrics)
    known = {number["metric"]["name"]: number["metric"] for number in numbers}
    if not known:
        raise MetricError(
            "the run has no metric whose curves can be pooled over its images; score it with box_accuracy, "
            "pixel_average_precision or mean_iou(keep_curve=True)"
        )
    by = by if by is None else own_name(by, known)
    if by is not None and by not in known:
        raise MetricError(f"the run has no metric {by!r} that can be pooled; {choose_from(by, known)}")
    return numbers if by is None else _named([known[by]])


def _number(
    part: pd.DataFrame, entry: Mapping[str, Any], level: float, resamples: int, seed: int, weights: Weights
) -> dict[str, float]:
    """The number of one layer and method, its interval and its images, by the ends of their columns."""
    column = part[f"{entry['name']}_curve"]
    kept = part[[curve is not None and not np.isnan(np.asarray(curve, dtype=float)).any() for curve in column]]
    if kept.empty:
        return {"": np.nan, "_low": np.nan, "_high": np.nan, "_n": 0}
    curves = np.stack([np.asarray(curve, dtype=float) for curve in kept[f"{entry['name']}_curve"]])
    groups = grouping_of(part, pd.Index(kept["image_id"]), weights)
    settings = entry["settings"]
    statistic = partial(POOLED[settings["pooled"]].statistic, curves, settings=settings)
    low, high = _interval(lambda mean: statistic(mean=mean), len(curves), groups, level, resamples, seed)
    return {"": float(statistic(mean=partial(column_means, groups=groups))), "_low": low, "_high": high, "_n": len(curves)}


def _interval(
    statistic: Callable[[Mean], Any], count: int, groups: Grouping | None, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    if (count if groups is None else groups.count) < _FEW:
        return float("nan"), float("nan")
    drawn = statistic(partial(bootstrap_means, resamples=resamples, seed=seed, groups=groups))
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
