"""Which layers need attention, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pandas as pd

from xaieval.analysis.gains import gain_p_values
from xaieval.analysis.rules import Rule, rule_of
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import check_level
from xaieval.analysis.stats.paired import holm
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.analysis.tables import counted, directions, exact_means, grouping_of, mean_of, one_method, paired_tables
from xaieval.config.counts import check_count
from xaieval.config.groups import Weights
from xaieval.errors import MetricError

__all__ = ["Selection", "select_layers"]


@dataclass(frozen=True, repr=False, eq=False)
class Selection(Sequence[str]):
    """Addresses of layers, worst first, and the reasons for their selection.

    Attributes:
        layers: The addresses.
        ranking: All layers, worst first: mean of each metric, and `mean_rank` over the metrics (1 is best).
        comparisons: One row per test: `layer`, `best` (the best layer of the metric `best_in`), the `metric` in which the two
            are compared, their means `value` and `best_value`, `verdict` (the alternative that is tested, "worse" or
            "better"), `p_value` (see `xaieval.analysis.stats.permutation`) and `p_holm`. For a rule that tests against zero,
            `best` is "zero" and `p_holm` is corrected by Bonferroni.
        k: The number of layers that was requested, or None if the tests decided.
        n_images: Number of images that were used.
        method: The method whose rows were used.
        level: Level of the tests.
        rule: The rule, see `xaieval.analysis.rules`.
        grouping: Which of these images belong together, and what a mean counts; None for a run without groups.
    """

    layers: list[str]
    ranking: pd.DataFrame
    comparisons: pd.DataFrame
    k: int | None
    n_images: int
    method: str
    level: float
    rule: Rule
    grouping: Grouping | None = None

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and self.layers == list(other)

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        tests = self.comparisons
        significant = tests[tests["p_holm"] < 1 - self.level]
        shown = significant if len(significant) else tests[tests["verdict"] == "worse"]
        lines = [f"  {self._reason(row)} (p = {row['p_holm']:.2g})" for row in shown.to_dict("records")]
        corrected = "by Holm for all pairs of layers" if self.rule.against == "best" else "by Bonferroni for all layers"
        last = (
            f"paired by image, {counted(self.n_images, self.grouping)}, method {self.method}, p corrected {corrected}, "
            f"level {self.level:g}"
        )
        return "\n".join([self._result(significant), *lines, last])

    def _result(self, significant: pd.DataFrame) -> str:
        names = ", ".join(self.layers)
        if self.k is not None:
            return f"the {self.k} worst by mean rank, worst first: {names}"
        if self.layers:
            return f"needs attention, worst first: {names}"
        if self.rule.against == "zero":
            return f"no layer has a significant gain by the rule '{self.rule.name}'"
        if (significant["verdict"] == "worse").any():
            return "no layer needs attention: each that is worse in one metric is better in another"
        return "no layer is significantly worse than the best"

    def _reason(self, row: Mapping[Any, Any]) -> str:
        decimals = self.rule.decimals
        value = f"{row['layer']}, {row['metric']}: {row['value']:.{decimals}f}"
        differs = row["p_holm"] < 1 - self.level
        if self.rule.against == "zero":
            return f"{value}, {'' if differs else 'not significantly '}above 0"
        best = f"the best{'' if row['metric'] == row['best_in'] else ' in ' + row['best_in']}"
        comparative = f"{'' if differs else 'not significantly '}{row['verdict']} than"
        return f"{value}, {comparative} {best}, {row['best_value']:.{decimals}f} at {row['best']}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "layers": self.layers,
            "k": self.k,
            "n_images": self.n_images,
            **({} if self.grouping is None else {"n_groups": self.grouping.count}),
            "method": self.method,
            "rule": self.rule.name,
            "level": self.level,
            "ranking": self.ranking.reset_index().to_dict("records"),
            "comparisons": self.comparisons.to_dict("records"),
            "reasons": repr(self),
        }


def select_layers(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    k: int | None = None,
    by: str | Sequence[str] | None = None,
    method: str | None = None,
    level: float = 0.95,
    seed: int = 0,
    weights: Weights = "images",
) -> Selection:
    """The layers that need attention, worst first.

    A layer needs attention if it is significantly worse than the best layer of a metric in that metric, and not significantly
    better than that layer in another metric. "Not significantly better" only means that no difference was found, not that there
    is none: with few images, a layer may be selected that is better in another metric.

    Rules by name (`xaieval.analysis.rules.RULES`): "ad-ic", AD and IC as in the paper; "excess", the AD in excess of that of
    the same masks shifted; "oracle-gate", how much a gate that knows the class reduces the loss at the layer; "probe", how much
    trained attention reduces the loss there. With the last two a layer needs attention if the reduction is large: more is
    worse. "probe" tests each layer against zero instead of against the best layer, and corrects by Bonferroni for all layers.

    The tests are one-sided and paired by image (McNemar's exact test for binary metrics, sign flips with a correction for
    skewness for means), and corrected by Holm for all pairs of layers. Layers are ordered by their mean rank over the metrics,
    then by each metric in turn, then by execution; of layers that are equally good in a metric, the first in order of execution
    counts as its best. If the rows have the column `group`, tests flip whole groups.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        k: Select the k worst layers, regardless of the tests.
        by: The name of a rule, or metrics of the run, at least one. Default: "oracle-gate" if the run has its column, which
            `xaieval.training.fal.with_oracle_gate` adds, else "ad-ic".
        method: The method whose rows are used; required if several methods have layers.
        level: 1 minus the probability of even one false positive among all tests, in (0, 1).
        seed: Seed of the random signs.
        weights: "images", or "groups" if every group counts the same in a mean.

    Returns:
        A sequence of addresses, empty if no layer is worse; its repr and `comparisons` give the reasons. Only images whose rows
        count at every layer are used.

    Raises:
        MetricError: A metric, a column that the rule needs, the method or the layers are not in the rows, or `k` is not between
            1 and the number of layers.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p2"] * 9 + ["p5"] * 9, "method": "gradcam"})
        >>> rows = rows.assign(status="ok", average_drop=[90.0] * 9 + [10.0] * 9)
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> select_layers(rows, [drop], by=["average_drop"])
        needs attention, worst first: p2
          p2, average_drop: 90.0, worse than the best, 10.0 at p5 (p = 0.0039)
        paired by image, n = 9, method gradcam, p corrected by Holm for all pairs of layers, level 0.95
    """
    check_level(level)
    rule = rule_of(by, metrics)
    higher_is_better = directions(metrics, rule.metrics, "to select layers by")
    method = one_method(rows, method)
    tables = paired_tables(rows[rows["method"] == method], list(higher_is_better))
    layers = list(next(iter(tables.values())).columns)
    check_count("k", k, optional=True, kind=MetricError)
    if k is not None and not 1 <= k <= len(layers):
        raise MetricError(f"k is between 1 and the number of layers, {len(layers)} here; got {k}")
    images = next(iter(tables.values())).index
    groups = grouping_of(rows, images, weights)
    goodness = {name: table if higher_is_better[name] else -table for name, table in tables.items()}
    compare = _compare_with_best if rule.against == "best" else _compare_with_zero
    comparisons = compare(goodness, tables, 1 - level, seed, groups)
    ranking = _rank(tables, goodness, groups)
    ordered = list(ranking.index)
    selected = ordered[:k] if k is not None else [name for name in ordered if _needs_attention(name, comparisons, 1 - level)]
    return Selection(selected, ranking, comparisons, k, len(images), method, level, rule, groups)


def _compare_with_best(
    goodness: dict[str, pd.DataFrame], tables: dict[str, pd.DataFrame], alpha: float, seed: int, groups: Grouping | None
) -> pd.DataFrame:
    """Tests of every layer against the best one of each metric: worse in that metric, and better in each other one.

    The data also decide which layer is the best, so the correction counts the tests of all ordered pairs of layers.
    """
    records: list[dict[str, Any]] = []
    differences = []
    count = len(next(iter(goodness.values())).columns)
    family = count * (count - 1) * len(goodness)
    resamples = max(9999, int(10 * family / alpha))  # otherwise even the smallest possible p-value is not significant
    for best_in, good in goodness.items():
        best = str(exact_means(good, groups).idxmax())
        for layer in [name for name in good.columns if name != best]:
            for metric, values in goodness.items():
                worse = metric == best_in
                first, second = (best, layer) if worse else (layer, best)
                record: dict[str, Any] = {"layer": layer, "best": best, "best_in": best_in, "metric": metric}
                record |= {end: mean_of(tables[metric][at], groups) for end, at in (("value", layer), ("best_value", best))}
                records.append(record | {"verdict": "worse" if worse else "better"})
                differences.append((values[first] - values[second]).to_numpy())
    table = np.column_stack(differences) if differences else np.empty((0, 0))
    p_values = sign_flip_p_values(table, resamples, seed, groups=groups if differences else None)
    return pd.DataFrame(records).assign(p_value=p_values, p_holm=holm(p_values, family))


def _compare_with_zero(
    goodness: dict[str, pd.DataFrame], tables: dict[str, pd.DataFrame], alpha: float, seed: int, groups: Grouping | None
) -> pd.DataFrame:
    """A test of every layer of one column: is there anything to gain?"""
    ((metric, good),) = goodness.items()
    p_values, corrected = gain_p_values(-good.to_numpy(), good.shape[1], 1 - alpha, seed, groups)
    same = {"best": "zero", "best_in": metric, "metric": metric}
    records = [{"layer": layer, **same, "value": mean_of(values, groups)} for layer, values in tables[metric].items()]
    return pd.DataFrame(records).assign(best_value=0.0, verdict="worse", p_value=p_values, p_holm=corrected)


def _rank(tables: dict[str, pd.DataFrame], goodness: dict[str, pd.DataFrame], groups: Grouping | None) -> pd.DataFrame:
    """Means and mean rank of all layers, worst first."""
    good = pd.DataFrame({name: exact_means(table, groups) for name, table in goodness.items()})
    ranking = pd.DataFrame({name: exact_means(table, groups) for name, table in tables.items()})
    ranking["mean_rank"] = good.rank(ascending=False, method="average").mean(axis=1)
    keys = good.assign(mean_rank=-ranking["mean_rank"])
    order = keys.sort_values(["mean_rank", *good.columns], kind="stable").index
    return ranking.loc[order].rename_axis("layer")


def _needs_attention(layer: str, comparisons: pd.DataFrame, alpha: float) -> bool:
    """Whether the layer is worse than the best of a metric, and not found to be better than that layer in another metric."""
    for _, tests in comparisons[comparisons["layer"] == layer].groupby("best_in", sort=False):
        significant = set(tests.loc[tests["p_holm"] < alpha, "verdict"])
        if significant == {"worse"}:
            return True
    return False
