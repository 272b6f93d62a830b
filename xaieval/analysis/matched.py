"""Whether maps are better than others of the same size: each method against the matched controls of its maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import check_level, metric_interval
from xaieval.analysis.stats.paired import holm
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.analysis.tables import directions, grouping_of, mean_of, metric_tables
from xaieval.config.groups import Weights
from xaieval.errors import MetricError, advice
from xaieval.results.matched import control_column

__all__ = ["compare_with_matched_controls"]

COLUMNS = ("layer", "method", "metric", "control", "value", "control_value", "excess", "low", "high", "n_images", "p_value")


def compare_with_matched_controls(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    matched: Sequence[str],
    controls: Sequence[str] = (),
    level: float = 0.95,
    seed: int = 0,
    weights: Weights = "images",
) -> pd.DataFrame:
    """One-sided tests of each method at each layer against the matched controls of its own maps, in each metric that has them.

    The tests are sign flips with a correction for skewness, paired by image, and corrected together by Holm. A control that no
    map has in a metric, such as `dimmed` in a curve, is not in the table.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        matched: Names of the matched controls.
        controls: Names of the methods that are control maps; they are not tested.
        level: Level of the intervals, and 1 minus the probability of even one false positive among all tests, in (0, 1).
        seed: Seed of the random signs.
        weights: For a run with groups, what a mean counts: "images" or "groups".

    Returns:
        One row per test: `layer`, `method`, `metric`, `control`; the means `value` and `control_value` over the `n_images`
        whose maps have the control; `excess`, their difference, with its interval `low` and `high`; `p_value`, `p_holm`, and
        `beats`, whether the method is significantly better than the control.

    Raises:
        MetricError: The run has no matched controls, or the level is not in (0, 1).

    Example:
        >>> rows = pd.DataFrame({"image_id": range(9), "layer": "p5", "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(average_drop=range(10, 19), average_drop_shifted=range(30, 48, 2))
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> excess = drop | {"name": "average_drop_excess", "excess_of": "average_drop"}
        >>> table = compare_with_matched_controls(rows, [drop, excess], ["shifted"])
        >>> table[["metric", "control", "value", "control_value", "excess", "p_holm", "beats"]].round(4)
                 metric  control  value  control_value  excess  p_holm  beats
        0  average_drop  shifted   14.0           38.0   -24.0   0.002   True
    """
    check_level(level)
    names = [entry["excess_of"] for entry in metrics if "excess_of" in entry]
    if not matched or not names:
        how = advice("score(..., controls='matched')", "--controls matched")
        raise MetricError(f"the run has no matched controls; {how} adds them")
    own = rows[~rows["method"].isin(list(controls))]
    higher_is_better = {name: higher for name, higher in directions(metrics).items() if name in names}
    columns = [column for name in higher_is_better for column in (name, *(control_column(name, one) for one in matched))]
    tables = metric_tables(own, columns, ["layer", "method"])
    tests = []
    for name, higher in higher_is_better.items():
        for control in matched:
            pair = tables[name].align(tables[control_column(name, control)], join="inner", axis=0)
            groups = grouping_of(own, pair[0].index, weights)
            tests.append(_compare(*pair, name, control, 1 if higher else -1, level, seed, groups))
    table = pd.concat(tests) if tests else pd.DataFrame(columns=COLUMNS)
    table = table[table["n_images"] > 0]
    if len(table):
        table = pd.concat([part for _, part in table.groupby(["layer", "method"], sort=False)], ignore_index=True)
    table["p_holm"] = np.array(holm(table["p_value"]), dtype=float)
    return table.assign(beats=table["p_holm"] < 1 - level)


def _compare(
    own: pd.DataFrame,
    other: pd.DataFrame,
    metric: str,
    control: str,
    sign: int,
    level: float,
    seed: int,
    groups: Grouping | None,
) -> pd.DataFrame:
    """Tests of one metric against one control, of every pair of layer and method."""
    values, controls = own.to_numpy(), other.to_numpy()
    excess = values - controls
    p_values = sign_flip_p_values(sign * excess, seed=seed, groups=groups)
    pairs: list[Any] = list(own.columns)
    records: list[dict[str, Any]] = []
    for column, (layer, method) in enumerate(pairs):
        there = ~np.isnan(excess[:, column])
        grouping = None if groups is None else groups.of(there)
        low, high = metric_interval(excess[there, column], "mean", level, groups=grouping)
        record: dict[str, Any] = {"layer": layer, "method": method, "metric": metric, "control": control}
        for name, table in (("value", values), ("control_value", controls), ("excess", excess)):
            record[name] = mean_of(table[there, column], grouping)
        records.append(record | {"low": low, "high": high, "n_images": int(there.sum()), "p_value": p_values[column]})
    return pd.DataFrame(records)
