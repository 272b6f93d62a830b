"""Tables of the experiment, made from its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.analysis.cross import cross_table, split_differences
from xaieval.analysis.stats.crossed import crossed_interval
from xaieval.analysis.stats.intervals import mean_interval
from xaieval.config.fal_options import TWIN
from xaieval.models import LEVELS
from xaieval.training.fal.arms import FPN, Arm, is_role, twin_among
from xaieval.training.fal.results import Results
from xaieval.training.fal.statistics.effects import arm_differences, effects
from xaieval.training.fal.swap import METRIC

__all__ = [
    "arm_table",
    "cost_table",
    "difference_table",
    "effect_table",
    "gate_table",
    "level_table",
    "pairs_of",
    "selection_table",
    "swap_parts",
    "swap_table",
]

MEASURES = ("average_drop", "average_drop_excess", "increase_in_confidence")
RANGES = {"average_drop_excess": (-100, 100), "mask_area": (0, 1)}  # of the others: percent
SWAPPED = [{"name": METRIC, "higher_is_better": False, "interval": "mean"}]


def level_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Table 1: how well the maps at each level of the FPN explain, by each method.

    Args:
        results: Results of the experiment.
        label: Only the test images of this class. Default: all images.
        level: Level of the intervals.

    Returns:
        Index (method, level): AD, its excess over the same map shifted, and IC in percent and `mask_area` in [0, 1], each as
        mean over images and seeds with `_low` and `_high`; `n_images` and `n_seeds`. The intervals hold for other blocks of
        images and other seeds; with one seed, for other images only.
    """
    first = results.rows[results.rows["arm"] == FPN].assign(method=results.run["methods"][0])
    rows = _of_class(pd.concat([first, results.methods], ignore_index=True), label)
    records = {key: _means(group, (*MEASURES, "mask_area"), level) for key, group in rows.groupby(["method", "level"])}
    order = [key for method in results.run["methods"] for name in LEVELS if (key := (method, name)) in records]
    return pd.DataFrame([records[key] for key in order], index=pd.MultiIndex.from_tuples(order, names=["method", "level"]))


def arm_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Table 2, first part: what each arm reaches, as mean over images, levels and seeds.

    Args:
        results: Results of the experiment.
        label: Only the test images of this class. Default: all images.
        level: Level of the intervals.

    Returns:
        Index arm, the FPN first: `networks` (the arms that have this role), `n_runs`, accuracy, AD, AD excess and IC in percent
        with `_low` and `_high` as in `level_table`, `macro_f1` without an interval, and `mask_area`.
    """
    rows = _of_class(results.rows, label)
    runs = results.runs(label)
    records = {}
    for arm, shown in results.roles.groupby("shown", sort=False):
        own = shown.merge(rows, on=["arm", "fold", "seed"])
        images = own.drop_duplicates(["arm", "fold", "seed", "image_id"])
        right = images.assign(accuracy=(100.0 * (images["predicted"] == images["label"])).astype(float))  # NaN without a label
        networks = " ".join(dict.fromkeys(shown["arm"]))
        record: dict[str, Any] = {"networks": networks, "n_runs": len(shown)} | _means(right, ("accuracy",), level)
        if "macro_f1" in runs:
            record["macro_f1"] = runs.loc[runs["arm"] == arm, "macro_f1"].mean()
        records[arm] = record | _means(own, (*MEASURES, "mask_area"), level)
    return pd.DataFrame.from_dict(records, orient="index").loc[_ordered(records)].rename_axis("arm")


def difference_table(results: Results, label: int | None = None, level: float = 0.95) -> pd.DataFrame:
    """Table 2, second part: every arm minus the FPN and every FAL minus its twin, see `arm_differences`.

    The twin differs by the use of the attention maps alone. p-values are corrected by Holm for all rows.

    Args:
        results: Results of the experiment.
        label: Only the test images of this class. Default: all images.
        level: Level of the intervals.

    Returns:
        Index (outcome, arm, other), with the columns of `arm_differences`; empty if there is nothing to compare.
    """
    runs = results.runs(label)
    pairs = pairs_of(list(runs["arm"].unique()), results.run["design"])
    return arm_differences(runs, pairs, _outcomes(runs), level) if pairs else pd.DataFrame()


def pairs_of(arms: Sequence[str], design: str) -> list[tuple[str, str]]:
    """The pairs of arms that are compared: each with the FPN, and each FAL with its twin.

    Args:
        arms: Names of arms and roles.
        design: The design of the experiment.

    Example:
        >>> pairs_of(["fpn", "selected", "selected-twin"], "focus")
        [('selected', 'fpn'), ('selected-twin', 'fpn'), ('selected', 'selected-twin')]
    """
    ordered = _ordered(arms)
    with_fpn = [(arm, FPN) for arm in ordered if arm != FPN and FPN in arms]
    roles = [(arm, arm + TWIN) for arm in ordered if is_role(arm) and arm + TWIN in arms]
    explicit = [arm for arm in ordered if not is_role(arm)]
    twins = [(arm, twin_among(arm, explicit, design)) for arm in explicit if Arm.of(arm).kind == "fal"]
    return with_fpn + roles + [(arm, twin) for arm, twin in twins if twin]


def effect_table(results: Results, level: float = 0.95) -> pd.DataFrame:
    """Main effects of the levels and of the gate, see `effects`; empty unless the arms are enough sets of levels for that."""
    runs = results.runs()
    arms = {name: Arm.of(name) for name in runs["arm"].unique() if not is_role(name)}
    plain = [name for name, arm in arms.items() if not arm.design]
    if len({arms[name].levels for name in plain if arms[name].kind == "fal"}) <= len(LEVELS) or len(results.cells) < 2:
        return pd.DataFrame()
    return effects(runs[runs["arm"].isin(plain)], _outcomes(runs), level=level)


def gate_table(results: Results) -> pd.DataFrame:
    """What the attention maps are like and what they do, as means over the runs.

    Returns:
        Index (arm, branch): the quantiles `low` (5 %), `median` and `high` (95 %) of the maps, in [0, 1], their `contrast`
        (standard deviation relative to the mean, within a map), and the share of predictions in percent that change without
        the maps, `changed_without`, and with shuffled maps, `changed_shuffled`; `n_runs`. Empty without attention.
    """
    records = []
    gates = {(record["arm"], record["fold"], record["seed"]): record["gates"] for record in results.records}
    for shown, arm, fold, seed in results.roles.itertuples(index=False):
        if found := gates[arm, fold, seed]:
            changes = {name: 100 * found[name] for name in ("changed_without", "changed_shuffled")}
            records += [{"arm": shown, "branch": name} | values | changes for name, values in found["values"].items()]
    if not records:
        return pd.DataFrame()
    grouped = pd.DataFrame(records).groupby(["arm", "branch"])
    table = grouped.mean().assign(n_runs=grouped.size())
    return table.loc[_ordered(table.index.get_level_values("arm"))]


def swap_table(results: Results, level: float = 0.95) -> pd.DataFrame:
    """AD of the masks of the FPN, of FAL and of a centred Gaussian, on the FPN and on FAL.

    Returns:
        Index (masks_of, model): `mean` in percent with `low` and `high`, which hold for other blocks of images and these
        networks, and `n_images`; without the images on which the networks predict different classes.
    """
    if results.swaps.empty:
        return pd.DataFrame()
    return cross_table(_cross_rows(results), SWAPPED, level=level).droplevel(["layer", "method", "metric"])


def swap_parts(results: Results, level: float = 0.95) -> pd.DataFrame:
    """The difference in AD between FAL and the FPN, and its parts of the maps and of the networks.

    See `xaieval.analysis.cross.split_differences`.

    Returns:
        Index part: `value`, `low`, `high`, `n_images`, `p_value` and `p_holm`.
    """
    if results.swaps.empty:
        return pd.DataFrame()
    parts = split_differences(_cross_rows(results), SWAPPED, ["fal", FPN], level=level)
    return parts.droplevel(["layer", "method", "metric", "first", "second"])


def selection_table(results: Results) -> pd.DataFrame:
    """The arms that follow from a selection: index (fold, seed), columns `selected`, `random` and `best`; empty without one."""
    records = {
        cell: {role: choice["roles"][role] for role in ("selected", "random", "best")}
        for cell, choice in sorted(results.choices.items())
    }
    return pd.DataFrame.from_dict(records, orient="index").rename_axis(["fold", "seed"]) if records else pd.DataFrame()


def cost_table(results: Results) -> pd.DataFrame:
    """What a forward pass of each arm costs relative to the FPN: index arm, the numbers of `xaieval.models.Overhead`."""
    return pd.DataFrame.from_dict(results.costs, orient="index").rename_axis("arm").sort_index()


def _of_class(rows: pd.DataFrame, label: int | None) -> pd.DataFrame:
    return rows if label is None else rows[rows["label"] == label]


def _outcomes(runs: pd.DataFrame) -> list[str]:
    """The outcomes of which runs have values: without classes there is no accuracy."""
    return [name for name in ("accuracy", "macro_f1", *MEASURES) if name in runs and runs[name].notna().any()]


def _ordered(arms: Any) -> list[str]:
    """The FPN first, then roles and arms as they come."""
    return sorted(dict.fromkeys(arms), key=lambda arm: (arm != FPN, not is_role(arm)))


def _means(rows: pd.DataFrame, names: Sequence[str], level: float) -> dict[str, float]:
    """Means of some columns with intervals over blocks of images and seeds."""
    record: dict[str, float] = {"n_images": rows["image_id"].nunique(), "n_seeds": rows["seed"].nunique()}
    for name in names:
        record[name] = rows[name].mean()
        by_block = rows.pivot_table(index="group", columns="seed", values=name).dropna()
        ends = _interval(by_block.to_numpy(), record[name], level) if by_block.size else (np.nan, np.nan)
        lowest, highest = RANGES.get(name, (0, 100))
        record |= {f"{name}_low": max(ends[0], lowest), f"{name}_high": min(ends[1], highest)}
    return record


def _interval(by_block: NDArray[np.float64], mean: float, level: float) -> tuple[float, float]:
    """The interval of a mean of images, from the means of blocks, which may differ in size."""
    few = min(by_block.shape) < 2
    low, high = mean_interval(by_block.ravel(), level) if few else crossed_interval(by_block, level)
    shift = mean - by_block.mean()
    return low + shift, high + shift


def _cross_rows(results: Results) -> pd.DataFrame:
    """The rows of swapped masks as rows of cross scores."""
    return results.swaps.assign(layer="levels", method=results.run["methods"][0], status="ok")
