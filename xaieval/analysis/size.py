"""Metrics that follow the size of the maps: over layers and methods, the mask area alone predicts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy  # whose `stats` takes long to import, and is loaded when it is used

from xaieval.analysis.tables import pair_means
from xaieval.config.groups import Weights
from xaieval.errors import advice
from xaieval.results.findings import Finding
from xaieval.results.record import RunRecord

__all__ = ["correlations_with_size", "find_metrics_of_size"]

AREA = "mask_area"
LARGE = 0.8  # absolute correlation above which a metric follows the size
FEWEST_PAIRS = 5  # of layer and method
CHANCE = 0.01  # largest p-value: with few pairs, even a correlation of 0.9 can be chance


def correlations_with_size(
    rows: pd.DataFrame, metrics: Sequence[Mapping[str, Any]], controls: Sequence[str] = (), weights: Weights = "images"
) -> pd.DataFrame:
    """The correlation of each metric's means with the mean mask areas, over the pairs of layer and method.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest; those without a direction are left out.
        controls: Names of the methods that are control maps, which are left out.
        weights: "images", or "groups" if every group counts the same in a mean.

    Returns:
        Index metric; Pearson's `r`, the `p_value` of no correlation (of independent pairs, which those of neighbouring layers
        are not quite), and the number of `pairs`. Metrics without a correlation, as for fewer than 5 pairs, are left out.

    Example:
        >>> rows = pd.DataFrame({"image_id": 0, "layer": list("abcde"), "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(mask_area=[0.1, 0.2, 0.3, 0.4, 0.5], average_drop=[90.0, 81, 69, 60, 52])
        >>> correlations_with_size(rows, [{"name": "average_drop", "higher_is_better": False}]).round(3)
                          r  p_value  pairs
        metric
        average_drop -0.998      0.0      5
    """
    own = rows[~rows["method"].isin(list(controls))]
    areas = pair_means(own, AREA, weights) if AREA in own else {}
    records = []
    for metric in metrics if len(areas) >= FEWEST_PAIRS else ():
        means = {} if metric["higher_is_better"] is None else pair_means(own, metric["name"], weights)
        both = np.array([(areas[pair], means[pair]) for pair in areas if pair in means]).reshape(-1, 2)
        if len(both) >= FEWEST_PAIRS and np.ptp(both, axis=0).min() > 0:
            r, p_value = scipy.stats.pearsonr(*both.T)
            records.append({"metric": metric["name"], "r": float(r), "p_value": float(p_value), "pairs": len(both)})
    return pd.DataFrame(records, columns=["metric", "r", "p_value", "pairs"]).set_index("metric")


def find_metrics_of_size(record: RunRecord) -> list[Finding]:
    """At most one finding: the metrics whose correlation with the mask area is above 0.8, and not by chance (p < 0.01).

    A metric with an excess in the run is left out, since the excess compares maps of the same size; the excess itself is not.

    Args:
        record: A run.
    """
    table = correlations_with_size(record.sample.rows, record.metrics, record.controls, record.group_weights)
    matched = [entry["excess_of"] for entry in record.metrics if "excess_of" in entry]
    found = table[(table["r"].abs() > LARGE) & (table["p_value"] < CHANCE) & ~table.index.isin(matched)]
    if found.empty:
        return []
    named = ", ".join(f"{name} (r = {row['r']:.2f})" for name, row in found.iterrows())
    text = f"over {found['pairs'].max()} pairs of layer and method the mask area predicts {named}: {_way_out(found, record)}"
    return [Finding("metric_follows_size", text, {str(name): float(r) for name, r in found["r"].items()})]


def _way_out(found: pd.DataFrame, record: RunRecord) -> str:
    """What to do about it."""
    excess = {entry["name"] for entry in record.metrics if "excess_of" in entry}
    if set(found.index) <= excess:
        return "larger maps differ more from others of their size, so compare layers and methods whose maps are about as large"
    return (
        "a larger map hides less and scores better wherever it points; "
        + advice("controls='matched'", "--controls matched")
        + " compares each map with others of its size"
    )
