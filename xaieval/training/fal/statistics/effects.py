"""Effects of the attention on each level, of its use, and differences between arms, with the run as the unit of each claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import fdtrc, stdtr, stdtrit

from xaieval.analysis.stats.estimates import check_level, estimate, has_interval
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.paired import holm
from xaieval.errors import MetricError, choose_from
from xaieval.training.fal.statistics.arm_means import CELL, arm_means, checked_runs, contrasts_within, two_way_errors
from xaieval.training.fal.statistics.contrasts import ALL, PARTS, contrasts, half_fraction_arms
from xaieval.training.fal.statistics.run_table import run_table

__all__ = ["arm_differences", "effects", "effects_beyond", "errors_by_seeds", "run_table"]

Outcomes = str | Sequence[str]

DIFFERING = 0.05  # level of the tests, together, of whether effects differ between folds


def effects(
    runs: pd.DataFrame,
    outcome: Outcomes = "average_drop",
    parts: Sequence[str] = PARTS,
    level: float = 0.95,
    model: Literal["mixed", "cells"] = "mixed",
) -> pd.DataFrame:
    """Main effects of the levels and of the gate, over all runs of an experiment.

    The unit is the run, one trained network: the arms of a fold and seed share images, order and first weights, so an effect is
    a difference within folds and seeds (`arm_means` has the model). Its interval holds for other seeds on these images. A
    second one, with the folds as clusters, holds for other folds; for other classes and blocks of images see `effects_beyond`.

    Args:
        runs: The table of runs, see `run_table`; arms of one design, and if there are some, the FPN and ABN.
        outcome: Name of an outcome, or several.
        parts: "fal", "twin" and "gate", see `contrasts`. Only what is asked here is corrected for.
        level: Level of the intervals, in (0, 1).
        model: "mixed", or "cells" for least squares with an intercept for each fold and seed.

    Returns:
        Index (outcome, level, part); columns `effect` and its standard `error`, in percentage points; the interval `low` and
        `high` by Student's t; `p_value` (two-sided) and `p_holm`, corrected for all rows; `freedom`; `model`; `spread`, the
        standard deviation of a run within its arm, fold and seed; `low_folds` and `high_folds`. `attrs["claims"]` is the number
        of rows that are corrected for. `attrs["notes"]` are sentences about what was left out, which model was used, and which
        effects differ between folds by more than chance.

    Raises:
        MetricError: An outcome or a part is unknown, the arms do not tell an effect, or there are too few runs for an error.
        UsageError: statsmodels is missing.

    Reference:
        Box, Hunter and Hunter, "Statistics for Experimenters", 2005, chapter 6, for the half fraction: its main effects are
        free of interactions of two levels, and mixed with that of the three others.

    Example:
        >>> runs = [(arm, fold, seed, 80 + fold + 3 * ("p2" in arm) + (place * fold + seed) % 3)
        ...         for place, arm in enumerate(half_fraction_arms()) for fold in (0, 1) for seed in (0, 1)]
        >>> runs = pd.DataFrame(runs, columns=["arm", "fold", "seed", "accuracy"])
        >>> table = effects(runs, "accuracy", ["twin"], model="cells")
        >>> table["effect"].round(1).tolist(), table.attrs["claims"]
        ([3.1, -0.2, -0.1, 0.1], 4)
    """
    check_level(level)
    tables, notes = [], []
    for name in _names(outcome):
        found = arm_means(runs, name, model)
        asked = contrasts(found.arms, parts)
        weights = asked.table(found.arms)
        table = _claims(*found.contrasts(weights), found.freedom, level, index=_index(name, weights))
        table = table.assign(freedom=found.freedom, model=found.model, spread=found.spread)
        table, differing = _with_folds(table, *_by_folds(runs, name, found.arms, weights), level)
        tables.append(table)
        notes += [*found.notes, *asked.notes, *differing]
    return _corrected(tables, notes)


def effects_beyond(
    runs: pd.DataFrame,
    by: str,
    outcome: Outcomes = "average_drop",
    parts: Sequence[str] = PARTS,
    level: float = 0.95,
) -> pd.DataFrame:
    """The effects, with intervals that also hold for other classes, or for other blocks of images.

    Every network is tested on every class, so the error allows for both, networks and classes that differ (`two_way_errors`).
    Classes alone would leave out how much networks differ, as `effects` leaves out how much classes do. Each class counts the
    same.

    Args:
        runs: The table of runs by class or block, `run_table(rows, by)`.
        by: "label" for classes, "group" for blocks.
        outcome: As for `effects`.
        parts: As for `effects`.
        level: Level of the intervals, in (0, 1).

    Returns:
        Index (outcome, level, part); columns `effect`, `error`, `low`, `high`, `p_value`, `p_holm` as for `effects`; `freedom`,
        one less than the smaller number of clusters; `groups`, the number of classes that tell it; and `same_sign`,
        in how many of them it has the sign of the mean. `attrs` as for `effects`.

    Raises:
        MetricError: As for `effects`, or the table has not one row per run and class, or less than two classes.

    Example:
        >>> runs = [(arm, fold, 0, label, label * ("p2" in arm) + (place * fold + label) % 3)
        ...         for place, arm in enumerate(half_fraction_arms()) for fold in (0, 1) for label in (0, 1, 2)]
        >>> runs = pd.DataFrame(runs, columns=["arm", "fold", "seed", "label", "accuracy"])
        >>> table = effects_beyond(runs, "label", "accuracy", ["fal"])
        >>> table.loc[("accuracy", "p2", "fal"), ["effect", "groups", "same_sign"]].round(1).tolist()
        [1.0, 3.0, 2.0]
    """
    check_level(level)
    tables, notes = [], []
    for name in _names(outcome):
        rows, left = checked_runs(runs, name, by)
        arms = tuple(dict.fromkeys(rows["arm"]))
        asked = contrasts(arms, parts)
        weights = asked.table(arms)
        values, errors, clusters = two_way_errors(rows, name, arms, weights, by)
        own = np.array([contrasts_within(part, name, arms, weights) for _, part in rows.groupby(by, observed=True)])
        table = _claims(values, errors, clusters - 1, level, index=_index(name, weights))
        tables.append(
            table.assign(
                freedom=clusters - 1,
                groups=np.isfinite(own).sum(axis=0),
                same_sign=(np.sign(own) == np.sign(values)).sum(axis=0),
            )
        )
        notes += [*left, *asked.notes]
    return _corrected(tables, notes)


def arm_differences(
    runs: pd.DataFrame,
    pairs: Iterable[tuple[str, str]],
    outcome: Outcomes = "average_drop",
    level: float = 0.95,
    error: Literal["pair", "all"] = "pair",
) -> pd.DataFrame:
    """Differences between arms, paired by fold and seed.

    Args:
        runs: The table of runs, see `run_table`.
        pairs: Names of two arms each; the difference is the first minus the second.
        outcome: Name of an outcome, or several.
        level: Level of the intervals, in (0, 1).
        error: "pair": from the differences of the two arms, by Student's t. Means over hundreds of images are nearly normal, so
            it holds for few pairs too. "all": from all arms of the table by least squares, with an intercept for each fold and
            seed; surer with few folds and seeds, if all arms scatter alike.

    Returns:
        Index (outcome, arm, other); columns `n_pairs`, `difference` in percentage points, `error`, `low` and `high`, which hold
        for other seeds on these folds; `low_folds` and `high_folds`, the same with the folds as groups, which hold for other
        folds and are wide, because there are few; `p_value` (two-sided) and `p_holm`, corrected for all rows. NaN where there
        are too few pairs, which `attrs["notes"]` says. `attrs["claims"]` is the number of rows that are corrected for.

    Raises:
        MetricError: An arm or an outcome is unknown, or there is not one row per run.

    Example:
        >>> runs = [("fpn", fold, 0, 80 + fold) for fold in range(10)]
        >>> runs += [("abn", fold, 0, 81 + fold + fold % 2) for fold in range(10)]
        >>> runs = pd.DataFrame(runs, columns=["arm", "fold", "seed", "accuracy"])
        >>> arm_differences(runs, [("abn", "fpn")], "accuracy")[["n_pairs", "difference", "low", "high"]].round(2)
                            n_pairs  difference   low  high
        outcome  arm other
        accuracy abn fpn         10         1.5  1.12  1.88
    """
    check_level(level)
    known, asked = list(dict.fromkeys(runs["arm"])), list(pairs)
    for name in (name for pair in asked for name in pair):
        if name not in known:
            raise MetricError(f"no run of an arm {name!r}; {choose_from(name, known)}")
    tables: list[pd.DataFrame] = []
    notes: list[str] = []
    for name in _names(outcome):
        rows, left = checked_runs(runs, name)
        table = _paired(rows, name, asked, level)
        if error == "all":
            table = table.assign(**_of_all(rows, name, asked, level))
        short = table[table["low"].isna()]
        notes += left
        pairs_left = zip(short.index.to_list(), short["n_pairs"], strict=True)
        notes += [f"{name}: {arm} - {other} has no interval, {n} pairs" for (_, arm, other), n in pairs_left]
        tables.append(table)
    return _corrected(tables, notes)


def errors_by_seeds(spread: float, folds: int = 5, seeds: Iterable[int] = range(1, 11)) -> pd.DataFrame:
    """The standard errors that the half fraction with its twins reaches with so many seeds, without missing runs.

    Args:
        spread: Standard deviation of a run within its arm, fold and seed: the column `spread` of `effects` for a pilot.
        folds: Number of folds.
        seeds: Numbers of seeds of each fold.

    Returns:
        Index seeds; columns `level`, the error of the effect of a level in FAL or in the twins; `level_gate`, that of the
        gate's part in it; `gate`, that of the gate; and `arms`, that of the difference between two arms. In the unit of the
        spread.

    Example:
        >>> errors_by_seeds(4.9, seeds=[6]).round(2)
               level  level_gate  gate  arms
        seeds
        6       0.63        0.89  0.45  1.27
    """
    weights = contrasts(half_fraction_arms()).weights
    asked = {"level": ("p2", "fal"), "level_gate": ("p2", "gate"), "gate": (ALL, "gate")}
    sizes = {name: sum(value**2 for value in weights[key].values()) for name, key in asked.items()} | {"arms": 2.0}
    counts = pd.Index(list(seeds), name="seeds")
    return pd.DataFrame(
        {name: spread * np.sqrt(size / (folds * counts.to_numpy())) for name, size in sizes.items()}, index=counts
    )


def _names(outcome: Outcomes) -> list[str]:
    return [outcome] if isinstance(outcome, str) else list(outcome)


def _index(outcome: str, weights: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples([(outcome, *key) for key in weights.index], names=["outcome", "level", "part"])


def _claims(values: Any, errors: Any, freedom: Any, level: float, index: pd.Index | None = None) -> pd.DataFrame:
    """Values with their errors, intervals and tests by Student's t."""
    values, errors = np.asarray(values, dtype=float), np.asarray(errors, dtype=float)
    reach = stdtrit(freedom, (1 + level) / 2) * errors
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = np.where(values == 0, 1.0, 2 * stdtr(freedom, -np.abs(values) / errors))
    columns = {"effect": values, "error": errors, "low": values - reach, "high": values + reach}
    return pd.DataFrame(columns | {"p_value": np.where(np.isnan(reach), np.nan, p_values)}, index=index)


def _by_folds(runs: pd.DataFrame, outcome: str, arms: tuple[str, ...], weights: pd.DataFrame) -> tuple[Any, int]:
    """The errors of effects with folds as clusters, and the number of folds; NaN for a single fold."""
    rows, _ = checked_runs(runs, outcome)
    folds = rows["fold"].nunique()
    if folds < 2:
        return np.full(len(weights), np.nan), folds
    return two_way_errors(rows, outcome, arms, weights, "fold")[1], folds


def _with_folds(table: pd.DataFrame, errors: Any, folds: int, level: float) -> tuple[pd.DataFrame, list[str]]:
    """The table with the intervals of clusters of folds, and a sentence on each effect that differs between folds."""
    wide = _claims(table["effect"], errors, max(folds - 1, 1), level)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (errors / table["error"].to_numpy()) ** 2
    p_values = fdtrc(max(folds - 1, 1), table["freedom"].to_numpy(), ratios)
    notes = [
        f"{', '.join(key)} differs between folds (F = {ratio:.1f}, p = {p_value:.2g}), so its interval holds for these folds "
        "only; low_folds and high_folds hold for others"
        for key, ratio, p_value in zip(table.index, ratios, p_values, strict=True)
        if p_value < DIFFERING / len(table)
    ]
    return table.assign(low_folds=wide["low"].to_numpy(), high_folds=wide["high"].to_numpy()), notes


def _paired(rows: pd.DataFrame, outcome: str, pairs: Sequence[tuple[str, str]], level: float) -> pd.DataFrame:
    """The differences of pairs, with folds and seeds as units, and with folds as groups."""
    names = dict.fromkeys(name for pair in pairs for name in pair)
    wide = rows.pivot_table(index=CELL, columns="arm", values=outcome, observed=True).reindex(columns=list(names))
    records = []
    for arm, other in pairs:
        differences = (wide[arm] - wide[other]).dropna()
        values, folds = differences.to_numpy(), Grouping(differences.index.get_level_values("fold"))
        records.append((*_moments(values, level), *_moments(values, level, folds), len(values)))
    value, error, freedom, _, error_folds, freedom_folds, counts = np.array(records).T
    index = pd.MultiIndex.from_tuples([(outcome, *pair) for pair in pairs], names=["outcome", "arm", "other"])
    table = _claims(value, error, freedom, level, index).rename(columns={"effect": "difference"})
    table.insert(0, "n_pairs", counts.astype(int))
    by_fold = _claims(value, error_folds, freedom_folds, level, index)
    return table.assign(freedom=freedom, low_folds=by_fold["low"], high_folds=by_fold["high"])


def _moments(values: Any, level: float, groups: Grouping | None = None) -> tuple[float, float, float]:
    """Mean, error and degrees of freedom; NaN for the last two if there are too few values, or all are equal."""
    if not len(values) or not has_interval(values, level, groups):
        return float(values.mean()) if len(values) else float("nan"), float("nan"), float("nan")
    found = estimate(values, groups)
    return found.mean, found.error, found.freedom


def _of_all(rows: pd.DataFrame, outcome: str, pairs: Sequence[tuple[str, str]], level: float) -> dict[str, Any]:
    """Columns of differences by least squares of all arms."""
    found = arm_means(rows, outcome, "cells")
    weights = [[float(arm == one) - float(arm == other) for arm in found.arms] for one, other in pairs]
    table = _claims(*found.contrasts(weights), found.freedom, level).rename(columns={"effect": "difference"})
    return {str(name): table[name].to_numpy() for name in table} | {"freedom": found.freedom}


def _corrected(tables: Sequence[pd.DataFrame], notes: Sequence[str]) -> pd.DataFrame:
    """One table of all claims, whose p-values are corrected together; a claim without p-value counts too."""
    table = pd.concat(tables)
    tested = table["p_value"].notna()
    corrected = np.full(len(table), np.nan)
    corrected[tested] = holm(table.loc[tested, "p_value"], len(table))
    table.insert(list(table.columns).index("p_value") + 1, "p_holm", corrected)
    table.attrs = {"claims": len(table), "notes": list(dict.fromkeys(notes))}
    return table
