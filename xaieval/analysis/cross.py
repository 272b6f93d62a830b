"""The maps of each model on each model: how much of a difference between two models is due to their maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import difference_interval, metric_interval
from xaieval.analysis.stats.paired import PairedTest, check_test, holm, paired_p_values
from xaieval.analysis.tables import grouping_of, mean_of
from xaieval.config.groups import Weights
from xaieval.config.metric_names import own_name
from xaieval.errors import MetricError, choose_from
from xaieval.results.rows import DISAGREE, VALUED

__all__ = ["PARTS", "cross_notes", "cross_table", "select_metrics", "split_differences"]

Floats = NDArray[np.float64]

_CELL = ["layer", "method", "metric", "masks_of", "model"]  # the index of the table
_SPLIT = ["layer", "method", "metric", "first", "second", "part"]  # the index of the parts

PARTS = ("difference", "map", "model")  # a difference between two models' own scores, and the two parts that add up to it


@dataclass(frozen=True)
class _Cell:
    """The values of one metric at one layer by one method, of the images that have all of them.

    Attributes:
        name: Layer, method and metric.
        table: The values, one row per image, one column per (masks_of, model).
        groups: Which images belong together.
        entry: The manifest's entry of the metric.
    """

    name: tuple[str, str, str]
    table: pd.DataFrame
    groups: Grouping | None
    entry: Mapping[str, Any]

    @property
    def items(self) -> list[tuple[str, str]]:
        """Whose maps and which model, of each column."""
        columns: Any = self.table.columns
        return list(columns)

    def of(self, masks_of: str, model: str) -> Floats:
        """The values of the maps of a model, or of a control, on a model."""
        return self.table[masks_of, model].to_numpy(dtype=float)


def cross_table(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    names: Sequence[str] | None = None,
    level: float = 0.95,
    weights: Weights = "images",
) -> pd.DataFrame:
    """The mean of each metric for the maps of each model, and of each control map, on each model.

    Means are over the images whose rows count for all models and all maps at a layer, so that they can be compared.

    Args:
        rows: Rows of `xaieval.cross_score`.
        metrics: The metrics of its manifest.
        names: Names of metrics (default: all).
        level: Level of the intervals, in (0, 1).
        weights: What a mean counts, if the rows have groups.

    Returns:
        Index `(layer, method, metric, masks_of, model)`; columns `mean` with its interval `low` and `high`, and `n_images`.

    Raises:
        MetricError: A metric is unknown, or the level is not in (0, 1).

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(4)] * 4, "layer": "p5", "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(masks_of=["a"] * 8 + ["b"] * 8, model=(["a"] * 4 + ["b"] * 4) * 2)
        >>> rows["average_drop"] = [10.0, 20, 30, 40, 5, 10, 15, 20, 12, 22, 32, 42, 6, 10, 15, 21]
        >>> cross_table(rows, [{"name": "average_drop", "higher_is_better": False, "interval": "mean"}])["mean"].unstack()
        model                                        a     b
        layer method  metric       masks_of
        p5    gradcam average_drop a              25.0  12.5
                                   b              27.0  13.0
    """
    records = []
    for cell in _cells(rows, select_metrics(metrics, names), weights):
        for masks_of, model in cell.items:
            values = cell.of(masks_of, model)
            kind, bounds = cell.entry["interval"], cell.entry.get("bounds")
            low, high = metric_interval(values, kind, level, groups=cell.groups, bounds=bounds)
            record = dict(zip(_CELL, (*cell.name, masks_of, model), strict=True))
            records.append(record | {"mean": mean_of(values, cell.groups), "low": low, "high": high, "n_images": len(values)})
    return pd.DataFrame(records, columns=[*_CELL, "mean", "low", "high", "n_images"]).set_index(_CELL)


def split_differences(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    models: Sequence[str],
    names: Sequence[str] | None = None,
    level: float = 0.95,
    test: PairedTest = "signs",
    resamples: int = 9999,
    seed: int = 0,
    weights: Weights = "images",
) -> pd.DataFrame:
    """The difference between two models' own scores, split into the part of the maps and the part of the models.

    With `v(s, m)` for the maps of model `s` on model `m`, the difference of a and b is `v(a, a) - v(b, b)`. Its parts are

        map   = ((v(a, a) - v(b, a)) + (v(a, b) - v(b, b))) / 2      other maps, the same model
        model = ((v(a, a) - v(a, b)) + (v(b, a) - v(b, b))) / 2      the same maps, another model

    each the mean over both orders in which one changes first the maps and then the model, or the other way round (Shapley
    values). They add up to the difference, in every image.

    Args:
        rows: Rows of `xaieval.cross_score`.
        metrics: The metrics of its manifest.
        models: The names of the models.
        names: Names of metrics (default: those that have a direction).
        level: Level of the intervals, in (0, 1).
        test: Test of means: "signs" or "wilcoxon".
        resamples: Smallest number of random sign vectors.
        seed: Seed of the random signs.
        weights: What a mean counts, if the rows have groups.

    Returns:
        Index `(layer, method, metric, first, second, part)` with the parts "difference", "map" and "model"; columns `value`
        (first minus second) with its interval `low` and `high`, `n_images`, `p_value`, and `p_holm`, corrected for all tests of
        the table.

    Raises:
        MetricError: A metric or the test is unknown, or the level is not in (0, 1).

    Reference:
        Kitagawa, "Components of a difference between two rates", Journal of the American Statistical Association 50, 1955;
        Shapley, "A value for n-person games", 1953.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(4)] * 4, "layer": "p5", "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(masks_of=["a"] * 8 + ["b"] * 8, model=(["a"] * 4 + ["b"] * 4) * 2)
        >>> rows["average_drop"] = [10.0, 20, 30, 40, 5, 10, 15, 20, 12, 22, 32, 42, 6, 10, 15, 21]
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> split_differences(rows, [drop], ["a", "b"]).droplevel(["layer", "method", "metric"])["value"]
        first  second  part
        a      b       difference    12.00
                       map           -1.25
                       model         13.25
        Name: value, dtype: float64
    """
    check_test(test)
    entries = select_metrics(metrics, names, directed=names is None)
    records, columns = [], []
    for cell in _cells(rows, entries, weights):
        for first, second in _own_pairs(cell, models):
            for part, values in _parts(cell, first, second).items():
                records.append(_record(cell, first, second, part, values, level))
                columns.append(pd.Series(values, index=cell.table.index))
    table = pd.DataFrame(records, columns=[*_SPLIT, "value", "low", "high", "n_images"])
    table["p_value"] = _p_values(rows, columns, test, max(resamples, int(10 * len(columns) / (1 - level))), seed, weights)
    table["p_holm"] = holm(table["p_value"])
    return table.set_index(_SPLIT)


def select_metrics(
    metrics: Sequence[Mapping[str, Any]], names: Sequence[str] | None, directed: bool = False
) -> list[Mapping[str, Any]]:
    """The manifest's entries of some metrics.

    Args:
        metrics: All entries.
        names: Names of metrics (default: all, or those that have a direction).
        directed: Whether only metrics that have a direction are the default.

    Raises:
        MetricError: A name is unknown.
    """
    known = {str(metric["name"]): metric for metric in metrics}
    if names is None:
        return [metric for metric in known.values() if not directed or metric["higher_is_better"] is not None]
    chosen = [own_name(name, known) for name in ([names] if isinstance(names, str) else names)]
    for name in chosen:
        if name not in known:
            raise MetricError(f"the cross scores have no metric {name!r}; {choose_from(name, known)}")
    return [known[name] for name in chosen]


def cross_notes(rows: pd.DataFrame) -> list[str]:
    """How many images do not count, and why, as sentences; none if all count.

    Example:
        >>> rows = pd.DataFrame({"image_id": ["1", "2"], "status": ["ok", "models_disagree"]})
        >>> cross_notes(rows)[0]
        '1 of 2 images does not count, because the models predict different classes on it; target="label" would keep it'
    """
    images = rows["image_id"].nunique()
    apart = rows.loc[rows["status"] == DISAGREE, "image_id"].nunique()
    lost = rows[~rows["status"].isin([*VALUED, DISAGREE])]
    notes = []
    if apart:
        verb, them = ("does", "it") if apart == 1 else ("do", "them")
        notes.append(
            f"{apart} of {images} images {verb} not count, because the models predict different classes on {them}; "
            f'target="label" would keep {them}'
        )
    if len(lost):
        statuses = ", ".join(f"{status} {count}" for status, count in lost["status"].value_counts().items())
        left_out = lost["image_id"].nunique()
        notes.append(f"{left_out} of {images} images do not count for some map on some model (rows by status: {statuses})")
    return notes


def _cells(rows: pd.DataFrame, entries: Sequence[Mapping[str, Any]], weights: Weights) -> Iterator[_Cell]:
    """The values of each metric at each layer by each method, of the images that have all of them."""
    for (layer, method), group in rows.groupby(["layer", "method"], sort=False):
        items = pd.MultiIndex.from_frame(group[["masks_of", "model"]].drop_duplicates())
        counted = group["status"].isin(VALUED)
        for entry in entries:
            values = group.assign(value=group[entry["name"]].where(counted)).set_index(["image_id", "masks_of", "model"])[
                "value"
            ]
            wide: Any = values.unstack(["masks_of", "model"])  # noqa: PD010  # pivot_table drops images without any value
            complete = wide.reindex(columns=items).dropna()
            groups = grouping_of(rows, complete.index, weights)
            yield _Cell((str(layer), str(method), str(entry["name"])), complete, groups, entry)


def _own_pairs(cell: _Cell, models: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The pairs of models that both have maps here; none for a control map."""
    own = [model for model in models if (model, model) in cell.table]
    return combinations(own, 2)


def _parts(cell: _Cell, first: str, second: str) -> dict[str, Floats]:
    """The difference between two models' own scores in each image, and its two parts."""
    own, other = cell.of(first, first), cell.of(second, second)
    maps_of_second, maps_of_first = cell.of(second, first), cell.of(first, second)
    parts = (
        own - other,
        ((own - maps_of_second) + (maps_of_first - other)) / 2,
        ((own - maps_of_first) + (maps_of_second - other)) / 2,
    )
    return dict(zip(PARTS, parts, strict=True))


def _record(cell: _Cell, first: str, second: str, part: str, values: Floats, level: float) -> dict[str, Any]:
    """A row of the table of parts."""
    kind = cell.entry["interval"]
    if part == "difference":
        low, high = difference_interval(cell.of(first, first), cell.of(second, second), kind, level, groups=cell.groups)
    else:  # halves of differences, which are no proportions
        low, high = difference_interval(values, np.zeros_like(values), "mean", level, groups=cell.groups)
    names = dict(zip(_SPLIT, (*cell.name, first, second, part), strict=True))
    return {**names, "value": mean_of(values, cell.groups), "low": low, "high": high, "n_images": len(values)}


def _p_values(
    rows: pd.DataFrame, columns: Sequence[pd.Series[float]], test: PairedTest, draws: int, seed: int, weights: Weights
) -> Floats:
    """The p-value of each column of differences, all with the same random signs."""
    if not columns:
        return np.ones(0)
    table = pd.concat(columns, axis=1)
    return paired_p_values(table.to_numpy(), test, draws, seed, groups=grouping_of(rows, table.index, weights))
