"""The table of a run: the mean of each metric with its interval, per layer and method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.controls import CONTROLS_COLUMN, metrics_beating_controls, rivals
from xaieval.analysis.stats.intervals import metric_interval
from xaieval.results.rows import COUNTED, EXCLUDED, VALUED

__all__ = ["summarise"]

AREA = "mask_area"


def summarise(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    controls: Sequence[str] = (),
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    tests: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The mean of each metric over the images, with its interval, per layer and method.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        controls: Names of the methods that are control maps.
        level: Level of the intervals, in (0, 1).
        resamples: Number of bootstrap samples; intervals of means are then percentile bootstrap intervals.
        seed: Seed of the resampling.
        tests: The table of `compare_with_controls` (default: no column `beats_controls`).

    Returns:
        Index `(layer, method)` in order of execution; columns of each metric, `<metric>_low` and `<metric>_high` (Wilson's
        interval for proportions, `xaieval.analysis.stats.intervals.mean_interval` for means, which is NaN for too few images);
        `<metric>_n` if a metric has values for fewer rows than count, such as images without an object, or for more, such as
        images whose confidence is not positive, if it does not divide by it; then `mask_area` (mean share of the image that the
        masks keep, in [0, 1]), `n_images` (rows that count) and `n_failed` (rows that do not count, except images that the
        protocol excludes); and if the run has controls, `beats_controls`, the metrics in which the method is significantly
        better than every control but fake-cam.

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
    records = []
    for (layer, method), group in rows.groupby(["layer", "method"], sort=False):
        valued, counted = group[group["status"].isin(VALUED)], int(group["status"].isin(COUNTED).sum())
        record: dict[str, Any] = {"layer": layer, "method": method}
        for name, ends in intervals.items():
            values = valued[name].to_numpy(dtype=float)
            values = values[~np.isnan(values)]
            low, high = ends(values)
            mean = float(values.mean()) if len(values) else float("nan")
            record |= {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(values)}
        failed = len(group) - counted - int((group["status"] == EXCLUDED).sum())
        area = {AREA: group.loc[group["status"].isin(COUNTED), AREA].mean()} if AREA in group else {}
        records.append(record | area | {"n_images": counted, "n_failed": failed})
    columns = [name + end for name in intervals for end in ("", "_low", "_high", "_n")]
    columns += [*([AREA] if AREA in rows else []), "n_images", "n_failed"]
    table = pd.DataFrame(records, columns=["layer", "method", *columns])
    table = table.set_index(["layer", "method"])
    if rivals(controls) and tests is not None:
        beaten = metrics_beating_controls(tests, table.index, controls)
        table[CONTROLS_COLUMN] = pd.Series(beaten, index=table.index, dtype=object)
    return table.drop(columns=[f"{name}_n" for name in intervals if (table[f"{name}_n"] == table["n_images"]).all()])
