"""Layers and methods ranked by a metric: which differ significantly, how stable that is, and how many images it takes."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import (
    bootstrap_means,
    check_level,
    difference_interval,
    metric_interval,
    why_no_interval,
)
from xaieval.analysis.stats.paired import PairedTest, check_test, holm, paired_p_values, rank_biserial
from xaieval.analysis.stats.power import images_needed
from xaieval.analysis.tables import (
    counted,
    directions,
    exact_means,
    grouping_of,
    mean_of,
    one_method,
    pair_means,
    paired_tables,
)
from xaieval.config.groups import Weights
from xaieval.errors import MetricError, choose_from
from xaieval.results.metric_display import interval_text
from xaieval.results.rows import NO_LAYER

__all__ = ["RankedItems", "Ranking", "group_letters", "rank"]

RankedItems = Literal["layer", "method", "both"]

_LETTERS = string.ascii_letters
_FEWEST = 4  # images or groups below which the order in bootstrap samples says nothing about that in other images
_MAX_SHOWN = 3  # neighbours in the line on too few images
_MANY = 1_000_000  # images above which their number is not given
_DIGITS = 9  # of the means that are ranked, so that the same values added in another order are ties


@dataclass(frozen=True, repr=False, eq=False)
class Ranking:
    """Layers, methods, or pairs of both, best first, and how certain their order is.

    Attributes:
        table: One row per item, best first: `layer`, `method`, `mean` with its interval `low` and `high`; `letters`, those
            that it shares with the items from which it does not differ significantly; `first`, the share of bootstrap samples
            in which it is the best; `rank_low` and `rank_high`, the interval of its rank (of fewer than 4 images: all ranks);
            `p_next`, the corrected p-value of the test against the next item, and `images_needed` to find that difference.
        pairs: One row per test, of all pairs of items: `better` and `worse` by their means, `difference` of the means with
            `low` and `high`, `p_value`, `p_holm`, `effect_size` (matched-pairs rank-biserial, in [-1, 1]) and `images_needed`.
        ranks: Items x ranks from 1: the share of bootstrap samples in which an item has that rank; ties are broken at random.
        metric: The manifest's entry of the metric.
        over: What the items are: "layer", "method" or "both".
        fixed: The method whose layers, or the layer whose methods, are ranked; "" for both.
        n_images: Number of images that were used: those whose rows count for every item.
        level: Level of the tests and intervals.
        test: Test of means; binary metrics are tested by McNemar's exact test.
        grouping: Which of these images belong together, and what a mean counts; None for a run without groups.
        controls: The means of the control maps, which are not ranked, over all of their images, by item.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    ranks: pd.DataFrame
    metric: Mapping[str, Any]
    over: RankedItems
    fixed: str
    n_images: int
    level: float
    test: PairedTest
    grouping: Grouping | None = None
    controls: Mapping[str, float] = field(default_factory=dict)

    @property
    def groups(self) -> list[list[str]]:
        """The items of each letter, which do not differ significantly from each other, best first."""
        letters = sorted(set("".join(self.table["letters"])), key=_LETTERS.index)
        return [[str(item) for item, own in self.table["letters"].items() if letter in own] for letter in letters]

    @property
    def line(self) -> str:
        """The ranking in one line."""
        items = ", ".join(f"{item} {letters}" for item, letters in self.table["letters"].items())
        return f"{self.metric.get('label') or self.metric['name']}: {items}"

    @property
    def too_small(self) -> str:
        """How many images are needed to find the differences between neighbours that are not significant; "" if all are."""
        items = list(self.table.index)
        needed = [
            (row["images_needed"], f"{items[number]} and {items[number + 1]} {_needed(row['images_needed'])}")
            for number, row in enumerate(self.table.to_dict("records"))
            if row["p_next"] >= 1 - self.level
        ]
        shown = [text for _, text in sorted(needed, key=lambda entry: entry[0])[:_MAX_SHOWN]]
        more = f"; and {len(needed) - _MAX_SHOWN} more" if len(needed) > _MAX_SHOWN else ""
        groups = "" if self.grouping is None else f" in {self.grouping.count} group{'s' * (self.grouping.count != 1)}"
        return f"too few images ({self.n_images}{groups}) to separate all: {'; '.join(shown)}{more}" if needed else ""

    def __repr__(self) -> str:
        where = f" ({'method' if self.over == 'layer' else 'layer'} {self.fixed})" if self.fixed else ""
        way = "higher" if self.metric["higher_is_better"] else "lower"
        width = max(len(str(item)) for item in self.table.index)
        missing = self.table["low"].isna() & self.table["mean"].notna()
        lines = [
            f"  {item!s:{width}}  {row['mean']:.4g} {interval_text(row['low'], row['high'], '.4g')}  {row['letters']}  "
            f"first in {row['first']:.0%}, rank {row['rank_low']} to {row['rank_high']}"
            for item, row in self.table.iterrows()
        ]
        tests = (
            f"a letter in common: cannot be told apart ({len(self.pairs)} paired tests, corrected by Holm, "
            f"level {self.level:g}, {counted(self.n_images, self.grouping)})"
        )
        first = f"{self.metric['name']}, {way} is better{where}, best first"
        controls = ", ".join(f"{name} {mean:.4g}" for name, mean in self.controls.items())
        unranked = f"control maps, not ranked: {controls}" if controls else ""
        why = f"[-]: {why_no_interval(self.level, groups=self.grouping)}" if missing.any() else ""
        return "\n".join([first, *lines, *filter(None, [unranked, why, tests, self.too_small])])


def rank(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    by: str = "average_drop",
    over: RankedItems = "layer",
    layer: str | None = None,
    method: str | None = None,
    level: float = 0.95,
    test: PairedTest = "signs",
    resamples: int = 1000,
    seed: int = 0,
    weights: Weights = "images",
    *,
    controls: Sequence[str] = (),
) -> Ranking:
    """Layers, methods or both in order of a metric, best first, with letters for those that do not differ significantly.

    All pairs are tested, two-sided and paired by image, and corrected by Holm. Only images whose rows count for every item are
    used. If the rows have the column `group`, tests flip whole groups, and bootstrap samples and intervals are of groups.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        by: A metric of the run that has a direction.
        over: "layer", the layers of one method; "method", the methods at one layer, together with those that have no layer;
            "both", all pairs of layer and method.
        layer: The layer whose methods are ranked; required if the run has several. With "both", only this one.
        method: The method whose layers are ranked; required if several methods have layers. With "both", only this one.
        level: Level of the intervals, and 1 minus the probability of even one false positive among all pairs, in (0, 1).
        test: Test of means: "signs" or "wilcoxon"; binary metrics are tested by McNemar's exact test.
        resamples: Number of bootstrap samples of the images, which show how stable the order is.
        seed: Seed of the random signs and of the resampling.
        weights: "images", or "groups" if every group counts the same in a mean.
        controls: Names of the methods that are control maps: they are not ranked, but listed after the ranking.

    Returns:
        See `Ranking`; `xaieval.report.ranking_figure` draws it.

    Raises:
        MetricError: A metric, method or layer is not in the rows, is required, or leaves fewer than two items.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p2"] * 9 + ["p5"] * 9, "method": "gradcam"})
        >>> rows = rows.assign(status="ok", average_drop=[90.0] * 9 + [10.0] * 9)
        >>> rank(rows, [{"name": "average_drop", "higher_is_better": False, "interval": "mean"}])
        average_drop, lower is better (method gradcam), best first
          p5  10 [-]  a  first in 100%, rank 1 to 1
          p2  90 [-]  b  first in 0%, rank 2 to 2
        [-]: no interval: a mean takes at least 4 images, and at least 59 if their values are all equal
        a letter in common: cannot be told apart (1 paired tests, corrected by Holm, level 0.95, n = 9)
    """
    check_level(level)
    check_test(test)
    [(name, higher)] = directions(metrics, by, "to rank by").items()
    entry = next(metric for metric in metrics if metric["name"] == name)
    all_rows, column, fixed = _item_rows(rows, over, layer, method)
    of_controls = all_rows["method"].isin(list(controls))
    item_rows = all_rows[~of_controls]
    if of_controls.any() and item_rows[column].nunique() < 2:
        raise MetricError(f"{_too_few(item_rows, column)}; control maps are not ranked, controls_table() compares with them")
    values = paired_tables(item_rows, [name], column)[name]
    if values.shape[1] < 2:
        raise MetricError(_too_few(item_rows, column))
    groups = grouping_of(rows, values.index, weights)
    means = exact_means(values, groups)
    values = values[means.sort_values(ascending=not higher, kind="stable").index]
    resampled = bootstrap_means(values, resamples, seed, groups=groups)
    pairs = _pairs(values, entry["interval"], level, test, seed, groups)
    ranks = _ranks(np.round(resampled if higher else -resampled, _DIGITS), seed)
    names = item_rows.drop_duplicates(column).set_index(column, drop=False)[["layer", "method"]]
    table = _table(values, names, entry, pairs, ranks, level, groups)
    shares = (ranks[:, :, None] == np.arange(1, len(table) + 1)).mean(axis=0)
    by_rank = pd.DataFrame(shares, index=table.index, columns=range(1, len(table) + 1))
    unranked = {pair[1]: mean for pair, mean in pair_means(all_rows[of_controls], name, weights).items()}
    return Ranking(table, pairs, by_rank, entry, over, fixed, len(values), level, test, groups, unranked)


def group_letters(apart: NDArray[np.bool_]) -> list[str]:
    """A compact letter display: two items share a letter if and only if they do not differ significantly.

    Args:
        apart: `[K, K]`, symmetric: which items differ significantly. Letters follow the order of the items.

    Raises:
        MetricError: The items need more than 52 letters.

    Reference:
        Piepho, "An algorithm for a letter-based representation of all-pairwise comparisons", Journal of Computational and
        Graphical Statistics 13, 2004 (insert and absorb).

    Example:
        >>> import numpy as np
        >>> group_letters(np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]], dtype=bool))  # only the first and the last differ
        ['a', 'ab', 'b']
    """
    groups = [frozenset(range(len(apart)))]
    for one, other in np.argwhere(np.triu(apart, 1)):
        parts = [part for group in groups for part in ((group - {one}, group - {other}) if {one, other} <= group else (group,))]
        groups = [part for part in dict.fromkeys(parts) if not any(part < larger for larger in parts)]
    if len(groups) > len(_LETTERS):
        raise MetricError(f"{len(groups)} groups overlap, more than the {len(_LETTERS)} letters; rank fewer layers or methods")
    groups.sort(key=sorted)
    return ["".join(_LETTERS[number] for number, group in enumerate(groups) if item in group) for item in range(len(apart))]


def _item_rows(rows: pd.DataFrame, over: str, layer: str | None, method: str | None) -> tuple[pd.DataFrame, str, str]:
    """The rows of the items, the column that identifies an item, and the method or layer that they have in common."""
    if over not in get_args(RankedItems):
        raise MetricError(f"no ranking over {over!r}; {choose_from(over, get_args(RankedItems))}")
    given = {"layer": layer, "method": method}
    if over != "both" and given[over] is not None:
        raise MetricError(f"over={over!r} ranks all {over}s, so it takes no {over}=; got {over}={given[over]!r}")
    if over == "layer":
        fixed = one_method(rows, method)
        return rows[rows["method"] == fixed], "layer", fixed
    if over == "method":
        fixed = _one_layer(rows, layer)
        return rows[rows["layer"].isin([fixed, NO_LAYER])], "method", fixed
    for column, value in given.items():
        if value is not None:
            rows = rows[rows[column] == value]
    return rows.assign(pair=rows["layer"] + " " + rows["method"]), "pair", ""


def _too_few(item_rows: pd.DataFrame, column: str) -> str:
    return f"a ranking takes at least two {column}s; got {', '.join(item_rows[column].unique()) or 'none'}"


def _one_layer(rows: pd.DataFrame, layer: str | None) -> str:
    """The layer to use: `layer`, or the only one besides that of methods without a layer."""
    layers = [str(name) for name in rows["layer"].unique()]
    usable = [name for name in layers if name != NO_LAYER] or layers
    if layer is None and len(usable) == 1:
        return usable[0]
    if layer in layers:
        return str(layer)
    problem = "choose one by layer=" if layer is None else f"no layer {layer!r}"
    raise MetricError(f"{problem}; layers: {', '.join(usable) or 'none'}")


def _pairs(values: pd.DataFrame, kind: str, level: float, test: PairedTest, seed: int, groups: Grouping | None) -> pd.DataFrame:
    """The tests of all pairs of items, the better one first."""
    numbers = values.to_numpy()
    first, second = np.triu_indices(numbers.shape[1], 1)
    differences = numbers[:, first] - numbers[:, second]
    share = (1 - level) / len(first)
    draws = max(9999, int(10 / share))  # otherwise even the smallest possible p-value is not significant
    p_values = paired_p_values(differences, test, draws, seed, groups=groups)
    records = []
    for number, (one, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        low, high = difference_interval(numbers[:, one], numbers[:, other], kind, level, groups=groups)
        record: dict[str, Any] = {"better": values.columns[one], "worse": values.columns[other]}
        difference = mean_of(differences[:, number], groups)
        record |= {"difference": difference, "low": low, "high": high, "p_value": p_values[number]}
        record |= {"effect_size": rank_biserial(differences[:, number])}
        records.append(record | {"images_needed": images_needed(differences[:, number], share, groups=groups)})
    table = pd.DataFrame(records)
    table.insert(6, "p_holm", holm(p_values))
    return table


def _ranks(goodness: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """The rank of each item in each bootstrap sample, `[R, K]`, 1 for the best; ties are broken at random."""
    tie_breakers = np.random.default_rng(seed).random(goodness.shape)
    order = np.lexsort((tie_breakers, -goodness), axis=1)
    return np.argsort(order, axis=1) + 1


def _table(
    values: pd.DataFrame,
    names: pd.DataFrame,
    entry: Mapping[str, Any],
    pairs: pd.DataFrame,
    ranks: NDArray[np.int64],
    level: float,
    groups: Grouping | None,
) -> pd.DataFrame:
    """`Ranking.table`; `names` has the layer and the method of each item."""
    items = list(values.columns)
    kind, bounds = entry["interval"], entry.get("bounds")
    ends = [metric_interval(values[item].to_numpy(), kind, level, groups=groups, bounds=bounds) for item in items]
    within = np.quantile(ranks, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf").astype(int)
    if (len(values) if groups is None else groups.count) < _FEWEST:
        within[:] = [[1], [len(items)]]
    apart = np.zeros((len(items), len(items)), dtype=bool)
    apart[np.triu_indices(len(items), 1)] = pairs["p_holm"] < 1 - level
    neighbours = pairs.set_index(["better", "worse"]).loc[list(pairwise(items))]
    return pd.DataFrame(
        {
            "layer": names["layer"].reindex(items),
            "method": names["method"].reindex(items),
            "mean": exact_means(values, groups),
            "low": [low for low, _ in ends],
            "high": [high for _, high in ends],
            "letters": group_letters(apart | apart.T),
            "first": (ranks == 1).mean(axis=0),
            "rank_low": within[0],
            "rank_high": within[1],
            "p_next": [*neighbours["p_holm"], np.nan],
            "images_needed": [*neighbours["images_needed"], np.nan],
        },
        index=pd.Index(items, name="item"),
    )


def _needed(number: float) -> str:
    """The number of images that two items need, in words, rounded, since it is only known roughly."""
    if np.isnan(number):
        return "need an unknown number, since there is one image or group"
    if not np.isfinite(number):
        return "have the same mean"
    if number > _MANY:
        return f"need more than {_MANY:,}"
    digits = max(len(str(int(number))) - 2, 0)
    return f"need about {round(number, -digits):,.0f}"
