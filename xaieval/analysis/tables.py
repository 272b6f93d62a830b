"""Rows as tables of one row per image and one column per item, and which direction of each metric is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.groups import Grouping, Weights
from xaieval.errors import MetricError, choose_from
from xaieval.results.rows import GROUP, VALUED

__all__ = ["directions", "exact_means", "grouping_of", "mean_of", "metric_tables", "one_method", "paired_tables"]


def directions(
    metrics: Sequence[Mapping[str, Any]], by: str | Sequence[str] | None = None, purpose: str = ""
) -> dict[str, bool]:
    """Whether higher values are better, by metric; metrics that only describe maps have no direction.

    Args:
        metrics: The metrics of a manifest.
        by: Names of metrics, at least one (default: all that have a direction).
        purpose: The end of an error message, such as "to rank by".

    Raises:
        MetricError: A metric is unknown or has no direction, or `by` is empty.
    """
    known = {metric["name"]: bool(metric["higher_is_better"]) for metric in metrics if metric["higher_is_better"] is not None}
    if by is None:
        return known
    names = [by] if isinstance(by, str) else list(by)
    if not names:
        raise MetricError(f"name at least one metric {purpose}; {choose_from('', known)}")
    for name in names:
        if name not in known:
            raise MetricError(f"the run has no metric {name!r} {purpose}; {choose_from(name, known)}")
    return {name: known[name] for name in names}


def one_method(rows: pd.DataFrame, method: str | None) -> str:
    """The method to use: `method`, or the only one that has several layers.

    Raises:
        MetricError: The method does not have two layers, or `method` is None and several methods do.
    """
    counts = rows.groupby("method", sort=False)["layer"].nunique()
    usable = [str(name) for name in counts[counts > 1].index]
    if method is None and len(usable) == 1:
        return usable[0]
    if method in usable:
        return str(method)
    problem = "choose one by method=" if method is None else f"no method {method!r} with at least two layers"
    raise MetricError(f"{problem}; methods with several layers: {', '.join(usable) or 'none'}")


def metric_tables(rows: pd.DataFrame, metrics: Sequence[str], columns: str | Sequence[str]) -> dict[str, pd.DataFrame]:
    """By metric, a table of one row per image and one column per item; NaN where a row does not count or has no value.

    Images without any value of a metric are not in its table.

    Args:
        rows: The rows of a run.
        metrics: Names of metrics.
        columns: The columns of the rows that identify an item: "layer", "method", or both; items keep their order.
    """
    keys = [columns] if isinstance(columns, str) else list(columns)
    first = rows[keys].drop_duplicates()
    items = pd.Index(first[columns].tolist()) if isinstance(columns, str) else pd.MultiIndex.from_frame(first)
    counted = rows[rows["status"].isin(VALUED)]
    if not len(counted):
        return {name: pd.DataFrame(index=pd.Index([], name="image_id"), columns=items, dtype=float) for name in metrics}
    means = counted.groupby(["image_id", *keys])[list(metrics)].mean()
    wide: Any = means.unstack(keys)  # noqa: PD010  # pivot_table drops metrics without any value
    return {name: wide[name].reindex(columns=items).dropna(how="all").astype(float) for name in metrics}


def paired_tables(rows: pd.DataFrame, metrics: Sequence[str], column: str = "layer") -> dict[str, pd.DataFrame]:
    """By metric, a table of one row per image and one column per item, of the images that have all values in all metrics.

    Args:
        rows: The rows of a run.
        metrics: Names of metrics.
        column: The column of the rows that identifies an item; items keep their order.

    Raises:
        MetricError: No image has rows that count for every item.
    """
    tables = metric_tables(rows, metrics, column)
    complete = pd.concat(tables.values(), axis=1).notna().all(axis=1)
    if not complete.any():
        raise MetricError(f"no image has rows that count at every {column}, so no {column}s can be compared")
    return {name: table.loc[complete.index[complete]] for name, table in tables.items()}


def exact_means(table: pd.DataFrame) -> pd.Series[float]:
    """The mean of each column, which does not depend on the order of the images, so that equal means are ties."""
    return table.apply(lambda values: math.fsum(values) / len(values))


def grouping_of(rows: pd.DataFrame, images: Any, weights: Weights = "images") -> Grouping | None:
    """Which of these images belong together; None for a run without groups."""
    if GROUP not in rows:
        return None
    known = rows[["image_id", GROUP]].drop_duplicates("image_id").set_index("image_id")[GROUP]
    return Grouping(known.reindex(pd.Index(images)).to_numpy(dtype=object), weights)


def mean_of(values: Any, groups: Grouping | None = None) -> float:
    """The mean of values `[N]` without NaN, weighted as the groups say; NaN if there are none."""
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        return float("nan")
    return float(numbers.mean()) if groups is None or groups.weights == "images" else groups.mean(numbers)
