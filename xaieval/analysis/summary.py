"""The table of a run: the mean of each metric with its interval, per layer and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.controls import CONTROLS_COLUMN, marks
from xaieval.analysis.stats.intervals import metric_interval
from xaieval.results.rows import COUNTED, EXCLUDED

__all__ = ["summarise"]


def summarise(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    controls: Sequence[str] = (),
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    tests: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """See `Scores.summary`.

    Args:
        rows: of a run.
        metrics: of the manifest.
        controls: methods that are control maps.
        level: of the intervals, in (0, 1).
        resamples: take the percentile bootstrap with so many samples for means.
        seed: of the resampling.
        tests: the table of controls, where there are any.
    """
    intervals = {
        metric["name"]: partial(metric_interval, kind=metric["interval"], level=level, resamples=resamples, seed=seed)
        for metric in metrics
    }
    records = []
    for (layer, method), group in rows.groupby(["layer", "method"], sort=False):
        counted = group[group["status"].isin(COUNTED)]
        record: dict[str, Any] = {"layer": layer, "method": method}
        for name, ends in intervals.items():
            values = counted[name].to_numpy(dtype=float)
            values = values[~np.isnan(values)]
            low, high = ends(values)
            mean = float(values.mean()) if len(values) else float("nan")
            record |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(values)}
        failed = len(group) - len(counted) - int((group["status"] == EXCLUDED).sum())
        records.append(record | {"n_images": len(counted), "n_failed": failed})
    columns = [name + end for name in intervals for end in ("", "_low", "_high", "_n")]
    table = pd.DataFrame(records, columns=["layer", "method", *columns, "n_images", "n_failed"])
    table = table.set_index(["layer", "method"])
    if controls and tests is not None:
        table[CONTROLS_COLUMN] = pd.Series(marks(tests, table.index, controls), index=table.index, dtype=object)
    return table.drop(columns=[f"{name}_n" for name in intervals if (table[f"{name}_n"] == table["n_images"]).all()])
