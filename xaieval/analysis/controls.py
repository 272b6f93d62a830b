"""Which methods are significantly better than the control maps, and which metrics Fake-CAM fools."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import check_level
from xaieval.analysis.stats.paired import holm
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.analysis.tables import column_means, directions, grouping_of, metric_tables, name_of_pair, pair_means
from xaieval.config.controls import FOOLING
from xaieval.config.groups import Weights
from xaieval.errors import MetricError, advice
from xaieval.results.matched import without_excess
from xaieval.results.metric_display import decimals_of
from xaieval.results.rows import Pair

__all__ = [
    "CONTROLS_COLUMN",
    "BestMaps",
    "best_maps",
    "compare_with_controls",
    "controls_ahead",
    "fooled_metrics",
    "metrics_beating_controls",
    "rivals",
]

CONTROLS_COLUMN = "beats_controls"  # a column of the summary
COLUMNS = ("layer", "method", "metric", "control", "value", "control_value", "n_images", "p_value")


@dataclass(frozen=True)
class BestMaps:
    """The best control map and the best method in a metric, by their means.

    Attributes:
        metric: Name of the metric.
        control: Layer and method of the control map.
        control_mean: Its mean.
        best: Layer and method of the best method.
        mean: Its mean.
        higher_is_better: The direction of the metric.
    """

    metric: str
    control: Pair
    control_mean: float
    best: Pair
    mean: float
    higher_is_better: bool

    @property
    def same_mean(self) -> bool:
        """Whether both have the same mean, rounding aside."""
        return math.isclose(self.control_mean, self.mean, rel_tol=1e-9)

    @property
    def control_wins(self) -> bool:
        """Whether the mean of the control map is at least as good as that of the method."""
        ahead = self.control_mean > self.mean if self.higher_is_better else self.control_mean < self.mean
        return ahead or self.same_mean


def rivals(controls: Sequence[str]) -> list[str]:
    """The control maps that a method has to beat: all but Fake-CAM, which checks metrics and not methods.

    Example:
        >>> rivals(["random", "fake-cam"])
        ['random']
    """
    return [name for name in controls if name != FOOLING]


def best_maps(
    rows: pd.DataFrame,
    higher_is_better: Mapping[str, bool],
    some: Sequence[str],
    controls: Sequence[str],
    weights: Weights = "images",
) -> list[BestMaps]:
    """For each metric in which both have values, the best of some control maps, and the best method that is not a control map.

    Args:
        rows: The rows of a run.
        higher_is_better: The direction of each metric.
        some: Names of the control maps that count.
        controls: Names of all control maps.
        weights: "images", or "groups" if every group counts the same in a mean.
    """
    if not rows["method"].isin(list(some)).any():
        return []
    found = []
    for metric, higher in higher_is_better.items():
        means = pair_means(rows, metric, weights)
        goodness = {pair: (value if higher else -value) for pair, value in means.items()}
        control = max((pair for pair in goodness if pair[1] in some), key=goodness.__getitem__, default=None)
        best = max((pair for pair in goodness if pair[1] not in controls), key=goodness.__getitem__, default=None)
        if control is not None and best is not None:
            found.append(BestMaps(metric, control, means[control], best, means[best], higher))
    return found


def controls_ahead(
    rows: pd.DataFrame,
    higher_is_better: Mapping[str, bool],
    controls: Sequence[str],
    weights: Weights = "images",
    seed: int = 0,
) -> list[tuple[BestMaps, float]]:
    """The metrics in which no method has a better mean than the best control map, and how surely the control map is better.

    A mean can be ahead by chance. The control map with the best mean is therefore tested against every method as in
    `compare_with_controls`, the other way round: it is better than all of them only if it is better than each, so the largest
    p-value counts. It is multiplied by the number of control maps, because this one was chosen by its mean, and
    corrected by Holm for all metrics. Fake-CAM does not count.

    Args:
        rows: The rows of a run.
        higher_is_better: The direction of each metric.
        controls: Names of the methods that are control maps.
        weights: "images", or "groups" if every group counts the same in a mean.
        seed: Seed of the random signs.

    Returns:
        The best maps of each such metric, and the corrected p-value of the control map.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p5"] * 9 + ["input"] * 9, "status": "ok"})
        >>> rows = rows.assign(method=["gradcam"] * 9 + ["random"] * 9, average_drop=[90.0] * 9 + [10.0] * 9)
        >>> [(found, p_value)] = controls_ahead(rows, {"average_drop": False}, ["random"])
        >>> found.control, found.control_mean, round(p_value, 6)
        (('input', 'random'), 10.0, 0.001953)
    """
    others = rivals(controls)
    found = [one for one in best_maps(rows, higher_is_better, others, controls, weights) if one.control_wins]
    tables = metric_tables(rows, [one.metric for one in found], ["layer", "method"]) if found else {}
    p_values = [
        min(1.0, len(others) * _p_value_of_control(tables[one.metric], one, controls, seed, rows, weights)) for one in found
    ]
    # The other metrics are tests, too: their control map is not ahead.
    corrected = holm([*p_values, *[1.0] * (len(higher_is_better) - len(found))])
    return list(zip(found, map(float, corrected), strict=False))


def _p_value_of_control(
    values: pd.DataFrame, found: BestMaps, controls: Sequence[str], seed: int, rows: pd.DataFrame, weights: Weights
) -> float:
    """One-sided p-value that the best control map is better than every method that has values."""
    own = values.loc[:, ~values.columns.get_level_values("method").isin(controls)].dropna(axis="columns", how="all")
    leads = values[[found.control]].to_numpy() - own.to_numpy()
    groups = grouping_of(rows, values.index, weights)
    return float(sign_flip_p_values((1 if found.higher_is_better else -1) * leads, seed=seed, groups=groups).max())


def fooled_metrics(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    controls: Sequence[str],
    weights: Weights = "images",
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, str]:
    """The metrics in which no method is significantly better than Fake-CAM, each with a sentence for the user.

    Fake-CAM is a map of ones except for one pixel and explains nothing, so a good value of such a metric alone proves nothing.
    Every method is tested in every metric as in `compare_with_controls`: the best of many methods is easily ahead by chance,
    which must not hide that a metric can be fooled.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        controls: Names of the methods that are control maps; without "fake-cam" nothing is known.
        weights: "images", or "groups" if every group counts the same in a mean.
        level: 1 minus the probability of even one false positive among all tests, in (0, 1).
        seed: Seed of the random signs.

    Raises:
        MetricError: The level is not in (0, 1).

    Example:
        >>> rows = pd.DataFrame({"image_id": 0, "layer": ["p5", "input"], "method": ["gradcam", "fake-cam"], "status": "ok"})
        >>> drop = {"name": "average_drop", "higher_is_better": False}
        >>> print(fooled_metrics(rows.assign(average_drop=[1.5, 0.0]), [drop], ["fake-cam"])["average_drop"])
        this metric can be fooled: fake-cam, ones except for one pixel, has 0.000, the best method (gradcam at p5) 1.500
    """
    check_level(level)
    fooling, higher_is_better = [name for name in controls if name == FOOLING], directions(metrics)
    best = best_maps(rows, higher_is_better, fooling, controls, weights)
    if not best:
        return {}
    tests = _tests(rows, higher_is_better, controls, fooling, level, seed, weights)
    beaten = set(tests.loc[tests["beats"], "metric"])
    digits = {metric["name"]: decimals_of(metric) for metric in metrics}
    return {found.metric: _fooled(found, digits[found.metric]) for found in best if found.metric not in beaten}


def _fooled(found: BestMaps, digits: int) -> str:
    values = f"has {found.control_mean:.{digits}f}, the best method ({name_of_pair(found.best)}) {found.mean:.{digits}f}"
    if found.control_wins:
        return f"this metric can be fooled: {FOOLING}, ones except for one pixel, {values}"
    return f"this metric may be fooled: {FOOLING}, ones except for one pixel, {values}, which is not significantly better"


def compare_with_controls(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    controls: Sequence[str],
    level: float = 0.95,
    seed: int = 0,
    weights: Weights = "images",
) -> pd.DataFrame:
    """One-sided tests of each method against each control map, in every metric that has a direction and is not an excess.

    The tests are paired by image: McNemar's exact test for binary metrics, sign flips with a correction for skewness for
    means. If the rows have the column `group`, the signs of whole groups are flipped. The tests are corrected together by Holm.
    A control that has no value in a metric is not tested in it. Fake-CAM is left out: it shows which metrics can be fooled (see
    `fooled_metrics`).

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        controls: Names of the methods that are control maps.
        level: 1 minus the probability of even one false positive among all tests, in (0, 1).
        seed: Seed of the random signs.
        weights: "images", or "groups" if every group counts the same in a mean.

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
    if not rows["method"].isin(rivals(controls)).any():
        raise MetricError(f"the run has no control maps; {advice('score(..., controls=True)', '--controls')} adds them")
    return _tests(rows, directions(without_excess(metrics)), controls, rivals(controls), level, seed, weights)


def metrics_beating_controls(table: pd.DataFrame, pairs: pd.Index[Any], controls: Sequence[str]) -> list[str | None]:
    """For each pair of layer and method, the metrics in which it beats every control but Fake-CAM that has a value in them.

    Args:
        table: The result of `compare_with_controls`.
        pairs: The pairs of layer and method, in the order of the result.
        controls: Names of the methods that are control maps; their own entries are None.

    Example:
        >>> tests = pd.DataFrame({"layer": "p5", "method": "gradcam", "metric": ["ad", "ad", "ic"], "control": ["a", "b", "a"]})
        >>> pairs = pd.MultiIndex.from_tuples([("p5", "gradcam"), ("p5", "cam"), ("input", "a")])
        >>> metrics_beating_controls(tests.assign(beats=[True, False, True]), pairs, ["a", "b"])
        ['ic', '', None]
    """
    beats_all: Any = table.groupby(["layer", "method", "metric"], sort=False)["beats"].all()
    won: dict[Pair, list[str]] = {}
    for (layer, method, metric), beaten in beats_all.items():
        won.setdefault((layer, method), []).extend([metric] if beaten else [])
    return [None if pair[1] in controls else ", ".join(won.get(pair, ())) for pair in pairs]


def _tests(
    rows: pd.DataFrame,
    higher_is_better: Mapping[str, bool],
    controls: Sequence[str],
    others: Sequence[str],
    level: float,
    seed: int,
    weights: Weights,
) -> pd.DataFrame:
    """Tests of every pair of layer and method against the control maps `others`, in each metric, corrected together."""
    values = metric_tables(rows, list(higher_is_better), ["layer", "method"])
    parts = [
        _compare(table, name, higher_is_better[name], controls, others, seed, grouping_of(rows, table.index, weights))
        for name, table in values.items()
    ]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    table["p_holm"] = np.array(holm(table["p_value"]), dtype=float)
    return table.assign(beats=table["p_holm"] < 1 - level)


def _compare(
    values: pd.DataFrame,
    metric: str,
    higher: bool,
    controls: Sequence[str],
    others: Sequence[str],
    seed: int,
    groups: Grouping | None,
) -> pd.DataFrame:
    """Tests of one metric: every pair of layer and method against every control of `others` that has a value."""
    methods = values.columns.get_level_values("method")
    table, sign = values.to_numpy(), 1 if higher else -1
    own = [column for column, name in enumerate(methods) if name not in controls]
    against = [column for column, name in enumerate(methods) if name in others and np.isfinite(table[:, column]).any()]
    own_values = np.repeat(table[:, own], len(against), axis=1)
    control_values = np.tile(table[:, against], len(own))
    both = np.isfinite(own_values) & np.isfinite(control_values)
    pairs: list[Any] = [values.columns[column] for column in own for _ in against]
    return pd.DataFrame(
        {
            "layer": [layer for layer, _ in pairs],
            "method": [method for _, method in pairs],
            "metric": metric,
            "control": [methods[column] for _ in own for column in against],
            "value": column_means(np.where(both, own_values, np.nan), groups),
            "control_value": column_means(np.where(both, control_values, np.nan), groups),
            "n_images": both.sum(axis=0),
            "p_value": sign_flip_p_values(sign * (own_values - control_values), seed=seed, groups=groups),
        }
    )
