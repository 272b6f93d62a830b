"""Which methods beat the control maps, in which metrics, beyond chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.intervals import check_level
from xaieval.analysis.stats.paired import holm
from xaieval.analysis.stats.permutation import Floats, sign_flip_p_values
from xaieval.analysis.tables import directions, metric_tables
from xaieval.errors import MetricError

__all__ = ["CONTROLS_COLUMN", "compare_with_controls", "marks"]

CONTROLS_COLUMN = "beats_controls"  # of a summary
COLUMNS = ("layer", "method", "metric", "control", "value", "control_value", "n_images", "p_value")


def compare_with_controls(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    controls: Sequence[str],
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """One-sided tests of each method against each control map, in every metric that has a direction.

    The tests are paired by image: McNemar's exact test for binary metrics, the sign-flip permutation test for means. They are
    corrected together by Holm. A control that has no value in a metric is not tested in it.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        controls: Names of the methods that are control maps.
        level: 1 minus the probability of even one false positive among all tests, in (0, 1).
        seed: Seed of the random signs.

    Returns:
        One row per test: `layer`, `method`, `metric`, `control`, the means `value` and `control_value` over the `n_images` on
        which both rows count, `p_value` (see `xaieval.analysis.stats.permutation`), `p_holm`, and `beats`, whether the
        method is significantly better.

    Raises:
        MetricError: The run has no controls, or the level is not in (0, 1).

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p5"] * 9 + ["input"] * 9, "status": "ok"})
        >>> rows = rows.assign(method=["gradcam"] * 9 + ["random"] * 9, average_drop=[10.0] * 9 + [90.0] * 9)
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> table = compare_with_controls(rows, [drop], controls=["random"])
        >>> table[["method", "control", "value", "control_value", "p_holm", "beats"]]
            method control  value  control_value    p_holm  beats
        0  gradcam  random   10.0           90.0  0.001953   True
    """
    check_level(level)
    if not rows["method"].isin(list(controls)).any():
        raise MetricError("the run has no control maps; score(..., controls=True) adds them, '--controls' on the command line")
    known = directions(metrics)
    values = metric_tables(rows, list(known), ["layer", "method"])
    parts = [_compare(values[name], name, higher, list(controls), seed) for name, higher in known.items()]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    table["p_holm"] = np.array(holm(table["p_value"]), dtype=float)
    return table.assign(beats=table["p_holm"] < 1 - level)


def marks(table: pd.DataFrame, pairs: pd.Index[Any], controls: Sequence[str]) -> list[str | None]:
    """For each pair of layer and method the metrics in which it beats every control that has a value in them.

    Args:
        table: from `compare_with_controls`.
        pairs: layers and methods, in the order that is wanted.
        controls: methods that get None, since they are what is to be beaten.

    Example:
        >>> tests = pd.DataFrame({"layer": "p5", "method": "gradcam", "metric": ["ad", "ad", "ic"], "control": ["a", "b", "a"]})
        >>> pairs = pd.MultiIndex.from_tuples([("p5", "gradcam"), ("p5", "cam"), ("input", "a")])
        >>> marks(tests.assign(beats=[True, False, True]), pairs, ["a", "b"])
        ['ic', '', None]
    """
    every: Any = table.groupby(["layer", "method", "metric"], sort=False)["beats"].all()
    won: dict[tuple[str, str], list[str]] = {}
    for (layer, method, metric), beaten in every.items():
        won.setdefault((layer, method), []).extend([metric] if beaten else [])
    return [None if pair[1] in controls else ", ".join(won.get(pair, ())) for pair in pairs]


def _compare(values: pd.DataFrame, metric: str, higher: bool, controls: list[str], seed: int) -> pd.DataFrame:
    """One metric: every pair against every control that has a value."""
    methods = values.columns.get_level_values("method")
    table, sign = values.to_numpy(), 1 if higher else -1
    others = [place for place, name in enumerate(methods) if name not in controls]
    rivals = [place for place, name in enumerate(methods) if name in controls and np.isfinite(table[:, place]).any()]
    own = np.repeat(table[:, others], len(rivals), axis=1)
    theirs = np.tile(table[:, rivals], len(others))
    both = np.isfinite(own) & np.isfinite(theirs)
    tested: list[Any] = [values.columns[place] for place in others for _ in rivals]
    return pd.DataFrame(
        {
            "layer": [layer for layer, _ in tested],
            "method": [method for _, method in tested],
            "metric": metric,
            "control": [methods[place] for _ in others for place in rivals],
            "value": _means(own, both),
            "control_value": _means(theirs, both),
            "n_images": both.sum(axis=0),
            "p_value": sign_flip_p_values(sign * (own - theirs), seed=seed),
        }
    )


def _means(values: Floats, counted: Any) -> Floats:
    """Of each column over the images that count; NaN where there is none."""
    count = counted.sum(axis=0)
    total = np.where(counted, values, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
