"""Rows as tables that can be compared image by image, and which way each metric is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from xaieval.errors import MetricError, choose_from
from xaieval.results.rows import COUNTED

__all__ = ["directed", "directions", "exact_means", "images_by_pairs", "one_method", "paired_tables"]


def directed(metrics: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Whether higher is better, by metric, of those that have a direction."""
    return {metric["name"]: bool(metric["higher_is_better"]) for metric in metrics if metric["higher_is_better"] is not None}


def directions(by: str | Sequence[str], metrics: Sequence[Mapping[str, Any]], purpose: str) -> dict[str, bool]:
    """Whether higher is better, by metric.

    Args:
        by: metrics of the run, at least one.
        metrics: what the manifest says of all of them.
        purpose: what they are wanted for, to end an error with: "to rank by".

    Raises:
        MetricError: there is no such metric, it only describes maps, or none is named.
    """
    known = directed(metrics)
    names = [by] if isinstance(by, str) else list(by)
    if not names:
        raise MetricError(f"name at least one metric {purpose}; {choose_from('', known)}")
    for name in names:
        if name not in known:
            raise MetricError(f"the run has no metric {name!r} {purpose}; {choose_from(name, known)}")
    return {name: known[name] for name in names}


def one_method(rows: pd.DataFrame, method: str | None) -> str:
    """The method that was asked for, or the only one that has several layers.

    Raises:
        MetricError: that method has no two layers, or several methods have.
    """
    counts = rows.groupby("method", sort=False)["layer"].nunique()
    usable = [str(name) for name in counts[counts > 1].index]
    if method is None and len(usable) == 1:
        return usable[0]
    if method in usable:
        return str(method)
    what = "say whose rows decide by method=" if method is None else f"no method {method!r} with at least two layers"
    raise MetricError(f"{what}; methods with several layers: {', '.join(usable) or 'none'}")


def paired_tables(rows: pd.DataFrame, metrics: Sequence[str], column: str = "layer") -> dict[str, pd.DataFrame]:
    """By metric a table images x items, of the images whose rows count, with a value, for every item.

    Args:
        rows: of a run.
        metrics: names.
        column: of the rows, that says which item a row is of; the items keep their order.

    Raises:
        MetricError: no image has rows that count for every item.
    """
    counted = rows[rows["status"].isin(COUNTED)]
    items = list(rows[column].unique())
    tables = {
        name: counted.pivot_table(index="image_id", columns=column, values=name).reindex(columns=items) for name in metrics
    }
    complete = pd.concat(tables.values(), axis=1).notna().all(axis=1)
    if not complete.any():
        raise MetricError(f"no image has rows that count at every {column}, so no {column}s can be compared")
    # By name: a table lacks the images of which its metric has no value at all.
    return {name: table.loc[complete.index[complete]].astype(float) for name, table in tables.items()}


def images_by_pairs(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric's values: a row an image, a column a layer and method in their order; NaN where a row does not count."""
    pairs = pd.MultiIndex.from_frame(rows[["layer", "method"]].drop_duplicates())
    counted = rows[rows["status"].isin(COUNTED)]
    if not len(counted):
        return pd.DataFrame(index=pd.Index([], name="image_id"), columns=pairs, dtype=float)
    table = counted.pivot_table(index="image_id", columns=["layer", "method"], values=metric)
    return table.reindex(columns=pairs).astype(float)


def exact_means(table: pd.DataFrame) -> pd.Series[float]:
    """Of each column, the same in whatever order the images come, so that ties are ties."""
    return table.apply(lambda values: math.fsum(values) / len(values))
