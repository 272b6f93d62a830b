"""The part of a run that a figure shows, and the words for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from xaieval.analysis.summary import summarise_run
from xaieval.config.metric_names import own_name
from xaieval.errors import MetricError, choose_from
from xaieval.results.record import RunRecord
from xaieval.results.rows import NO_LAYER

__all__ = [
    "DIRECTIONS",
    "NO_VALUE",
    "Pair",
    "common_names",
    "count_range",
    "counts_note",
    "first_directed",
    "level_note",
    "metric_entry",
    "pair_names",
    "pairs_of",
    "rows_of",
    "subset",
    "summary_of",
    "two_metrics",
]

Pair = tuple[str, str]  # layer and method

DIRECTIONS = {True: "higher is better", False: "lower is better", None: "describes the map"}
NO_VALUE = "\N{EN DASH}"  # as wide as a digit


def metric_entry(scores: RunRecord, name: str | None) -> dict[str, Any]:
    """The manifest's entry of a metric.

    Args:
        scores: The run.
        name: Name of the metric (default: the first metric of the run).

    Raises:
        MetricError: The run has no such metric, or none at all.
    """
    known = {metric["name"]: metric for metric in scores.metrics}
    if name is None and known:
        return next(iter(known.values()))
    chosen = name if name is None else own_name(name, known)
    if chosen not in known:
        raise MetricError(f"the run has no metric {name!r} to draw; {choose_from(name, known)}")
    return known[chosen]


def first_directed(metrics: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first metric that has a direction; None if none has one."""
    return next((metric for metric in metrics if metric["higher_is_better"] is not None), None)


def two_metrics(scores: RunRecord, names: Sequence[str]) -> list[dict[str, Any]]:
    """The manifest's entries of two metrics.

    Raises:
        MetricError: The names are not two, or the run lacks one of them.
    """
    if isinstance(names, str) or len(names) != 2:
        raise MetricError(f"a trade-off is between two metrics, such as ('average_drop', 'insertion'); got {names!r}")
    return [metric_entry(scores, name) for name in names]


def summary_of(scores: RunRecord, level: float) -> pd.DataFrame:
    """The mean of each metric with its interval, per layer and method, without the tests against controls."""
    return summarise_run(scores, level)


def subset(scores: RunRecord, layers: Sequence[str] | None = None, methods: Sequence[str] | None = None) -> RunRecord:
    """The same run with only some of its layers and methods.

    Args:
        scores: The run.
        layers: Addresses (default: all).
        methods: Names (default: all).

    Raises:
        MetricError: A layer or method is not in the run, or no row is left.
    """
    rows = scores.sample.rows
    for column, names in (("layer", layers), ("method", methods)):
        if names is not None:
            rows = rows[rows[column].isin(_known(rows, column, names))]
    if rows.empty:
        raise MetricError(f"nothing is left to draw with layers={layers} and methods={methods}")
    return RunRecord(rows, scores.manifest)


def _known(rows: pd.DataFrame, column: str, names: Sequence[str]) -> list[str]:
    """The names as a list, each of which is checked to be in the column."""
    known = [str(name) for name in rows[column].unique()]
    chosen = [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in known:
            raise MetricError(f"the run has no {column} {name!r}; {choose_from(name, known)}")
    return chosen


def pairs_of(rows: pd.DataFrame) -> list[Pair]:
    """All pairs of layer and method, in the order of the rows."""
    return list(rows[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))


def rows_of(rows: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """The rows of a layer and method."""
    return rows[(rows["layer"] == pair[0]) & (rows["method"] == pair[1])]


def pair_names(pairs: Sequence[Pair]) -> list[str]:
    """Short names that distinguish pairs of layer and method: the layer, the method, or both.

    Example:
        >>> pair_names([("p2", "gradcam"), ("p5", "gradcam")]), pair_names([("p2", "gradcam"), ("input", "random")])
        (['p2', 'p5'], ['p2, gradcam', 'random'])
    """
    if len({method for _, method in pairs}) == 1:
        return [layer for layer, _ in pairs]
    if len({layer for layer, _ in pairs}) == 1:
        return [method for _, method in pairs]
    return [method if layer == NO_LAYER else f"{layer}, {method}" for layer, method in pairs]


def common_names(pairs: Sequence[Pair]) -> list[str]:
    """The layer and the method that all pairs have in common, if there are any."""
    columns = [list(dict.fromkeys(names)) for names in zip(*pairs, strict=True)]
    return [names[0] for names in columns if len(names) == 1]


def counts_note(summary: pd.DataFrame) -> list[str]:
    """The number of images, of their groups if there are any, and of failed rows if there are any."""
    failed = int(summary["n_failed"].sum())
    groups = f" in {count_range(summary['n_groups'])[4:]} groups" if "n_groups" in summary else ""
    return [count_range(summary["n_images"]) + groups, *([f"{failed} rows failed"] if failed else [])]


def count_range(counts: Iterable[int]) -> str:
    """The number of images, or the smallest and the largest number.

    Example:
        >>> count_range([10, 10]), count_range([9, 10])
        ('n = 10', 'n = 9 to 10')
    """
    least, most = min(counts := list(counts)), max(counts)
    return f"n = {least:,}" if least == most else f"n = {least:,} to {most:,}"


def level_note(level: float) -> str:
    """The level of the intervals in words."""
    return f"{100 * level:g} % intervals"
