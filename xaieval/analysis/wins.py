"""How often each method is the best one on an image, from the rows of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.intervals import check_level, wilson_interval
from xaieval.analysis.tables import directions
from xaieval.errors import MetricError
from xaieval.results.rows import COUNTED, NO_LAYER

__all__ = ["win_percentages"]


def win_percentages(rows: pd.DataFrame, metrics: Sequence[Mapping[str, Any]], by: str, level: float) -> pd.DataFrame:
    """See `xaieval.Scores.win_percentages`, which gives its own rows and metrics.

    Raises:
        MetricError: see there.
    """
    check_level(level)
    [higher_is_better] = directions(by, metrics, "to win by").values()
    sign = 1 if higher_is_better else -1
    records = []
    for layer, contest in _contests(rows):
        good = sign * _paired(contest, by)
        records += [{"layer": layer} | record for record in _results(good, level)]
    if not records:
        methods = ", ".join(map(str, rows["method"].unique()))
        raise MetricError(f"winning takes at least two methods at a layer, the run has {methods}; score it with more methods=")
    return pd.DataFrame(records).set_index(["layer", "method"])


def _contests(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Layer by layer the rows of its methods, if there are several; those without a layer take part at each."""
    layers = [layer for layer in rows["layer"].unique() if layer != NO_LAYER] or [NO_LAYER]
    for layer in layers:
        contest = rows[rows["layer"].isin([layer, NO_LAYER])]
        if len(contest["method"].unique()) > 1:
            yield layer, contest


def _paired(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """A table images x methods, of the images whose rows count for every method."""
    counted = rows[rows["status"].isin(COUNTED)]
    table = counted.pivot_table(index="image_id", columns="method", values=name).reindex(columns=rows["method"].unique())
    return table.dropna().astype(float)


def _results(good: pd.DataFrame, level: float) -> Iterator[dict[str, Any]]:
    """One record a method, of values that are better when they are higher."""
    best = good.to_numpy() == good.max(axis=1).to_numpy()[:, None]
    alone = best.sum(axis=1) == 1
    for number, method in enumerate(good.columns):
        wins, ties = best[:, number] & alone, best[:, number] & ~alone
        low, high = wilson_interval(int(wins.sum()), len(good), level)
        yield {
            "method": method,
            "win": _percent(wins),
            "win_low": 100 * low,
            "win_high": 100 * high,
            "tied": _percent(ties),
            "n_images": len(good),
        }


def _percent(hits: Any) -> float:
    return 100 * float(np.mean(hits)) if len(hits) else float("nan")
