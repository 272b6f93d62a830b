"""Rows as tables of one row per image and one column per item, and which direction of each metric is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from xaieval.analysis.stats.groups import Grouping
from xaieval.config.groups import Weights
from xaieval.config.metric_names import own_name
from xaieval.errors import MetricError, choose_from
from xaieval.results.metric_display import counts_text
from xaieval.results.rows import GROUP, NO_LAYER, VALUED, Pair

__all__ = [
    "column_means",
    "counted",
    "directions",
    "exact_means",
    "group_names",
    "grouping_from",
    "grouping_of",
    "grouping_of_rows",
    "mean_of",
    "metric_tables",
    "name_of_pair",
    "one_method",
    "pair_means",
    "paired_tables",
]


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
    names = [own_name(name, known) for name in ([by] if isinstance(by, str) else by)]
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


def group_names(rows: pd.DataFrame) -> pd.Series[str] | None:
    """The group of each image by its id, without images that have none; None for a run without groups."""
    if GROUP not in rows:
        return None
    known = rows[["image_id", GROUP]].drop_duplicates("image_id").set_index("image_id")[GROUP]
    return known.dropna()


def grouping_of(rows: pd.DataFrame, images: ArrayLike | pd.Index[Any], weights: Weights = "images") -> Grouping | None:
    """Which of these images belong together; None for a run without groups.

    Args:
        rows: The rows of a run.
        images: Ids of images of the run, `[N]`, as in the index of `metric_tables`.
        weights: What a mean counts.

    Raises:
        MetricError: An image has no group.

    Example:
        >>> rows = pd.DataFrame({"image_id": ["a", "b", "c"], "group": ["lake", "lake", "road"]})
        >>> grouping_of(rows, ["c", "a", "b"]).codes.tolist()
        [0, 1, 1]
    """
    names = group_names(rows)
    return None if names is None else grouping_from(names, images, weights)


def grouping_of_rows(rows: pd.DataFrame, weights: Weights, where: NDArray[np.bool_]) -> Grouping | None:
    """Which of the rows of different images belong together, of those that a mask chooses; None for a run without groups.

    Raises:
        MetricError: An image has no group.
    """
    if GROUP not in rows:
        return None
    rows = rows[where]
    missing = rows[rows[GROUP].isna()]
    if len(missing):
        example = f", such as '{missing['image_id'].iloc[0]}'" if "image_id" in rows else ""
        raise _without_group(len(missing), len(rows), example)
    return Grouping(rows[GROUP].to_numpy(dtype=object), weights)


def grouping_from(names: pd.Series[str], images: ArrayLike | pd.Index[Any], weights: Weights) -> Grouping:
    """The grouping of these images from the result of `group_names`.

    Raises:
        MetricError: An image has no group.
    """
    index: pd.Index[Any] = images if isinstance(images, pd.Index) else pd.Index(np.asarray(images))
    missing = index[~index.isin(names.index)]
    if len(missing):
        raise _without_group(len(missing), len(index), f", such as '{missing[0]}'")
    return Grouping(names.reindex(index).to_numpy(dtype=object), weights)


def _without_group(missing: int, images: int, example: str) -> MetricError:
    return MetricError(
        f"{missing} of {images} images have no group{example}; give every image one, as Scores.with_groups does, or remove the "
        "column 'group'"
    )


def counted(images: int, groups: Grouping | None) -> str:
    """The number of images, and of their groups if there are any, in words.

    Example:
        >>> counted(3, Grouping(["lake", "lake", "road"]))
        'n = 3 in 2 groups, weighted by images'
    """
    return counts_text(images) if groups is None else counts_text(images, groups.count, groups.weights)


def mean_of(values: ArrayLike, groups: Grouping | None = None) -> float:
    """The mean of values `[N]` without NaN, weighted as the groups say; NaN if there are none."""
    numbers = np.asarray(values, dtype=float)
    if not len(numbers):
        return float("nan")
    return float(numbers.mean()) if groups is None or groups.weights == "images" else groups.mean(numbers)


def column_means(table: ArrayLike, groups: Grouping | None = None) -> NDArray[np.float64]:
    """The mean of each column of `[N, T]`, `[T]`, weighted as the groups say; NaN are left out.

    Example:
        >>> column_means([[1.0, 2.0], [3.0, np.nan]]).tolist()
        [2.0, 2.0]
    """
    values = np.asarray(table, dtype=float)
    present = np.isfinite(values)
    total, count = np.where(present, values, 0.0), present.astype(float)
    if groups is not None and groups.weights == "groups":  # the mean of each group, and whether it has one
        total, count = (groups.totals(np.where(present, part, np.nan)) for part in (values, 1.0))
    counts = count.sum(axis=0)
    return np.divide(total.sum(axis=0), counts, out=np.full(values.shape[1], np.nan), where=counts > 0)


def pair_means(rows: pd.DataFrame, metric: str, weights: Weights = "images") -> dict[Any, float]:
    """The mean of a metric by layer and method, of the rows that have values."""
    table = metric_tables(rows, [metric], ["layer", "method"])[metric]
    means = column_means(table.to_numpy(), grouping_of(rows, table.index, weights))
    return {pair: float(mean) for pair, mean in zip(table.columns, means, strict=True) if not math.isnan(mean)}


def exact_means(table: pd.DataFrame, groups: Grouping | None = None) -> pd.Series[float]:
    """The mean of each column, independent of the order of the images, so equal means are ties."""
    if groups is None or groups.weights == "images":
        return table.apply(_exact_mean)
    return exact_means(table.groupby(groups.codes).agg(_exact_mean))


def _exact_mean(values: pd.Series[float]) -> float:
    return math.fsum(values) / len(values)


def name_of_pair(pair: Pair) -> str:
    """The name of a pair of layer and method in a sentence; for a method without a layer, that of the method.

    Example:
        >>> name_of_pair(("layer4", "gradcam")), name_of_pair(("input", "random"))
        ('gradcam at layer4', 'random')
    """
    layer, method = pair
    return str(method) if layer == NO_LAYER else f"{method} at {layer}"
