"""How well rules foretell where attention helps: correlation with the measured effects, and regret of the chosen sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from xaieval.analysis.stats.crossed import crossed_interval
from xaieval.models import LEVELS
from xaieval.training.fal.arms import fal_arm
from xaieval.training.fal.statistics.contrasts import HALF_FRACTION

__all__ = ["chosen_sets", "correlation", "measured_regret", "regret", "rule_scores", "winner"]

FIXED = {"no level": (), "p2-p3": ("p2", "p3"), "all levels": tuple(LEVELS)}  # sets that look at nothing, for comparison
SUBSETS = [levels for size in range(len(LEVELS) + 1) for levels in combinations(LEVELS, size)]
NETWORK = ["fold", "seed"]
WITH_INTERVAL = ("correlation", "regret_share")
CLOSE = 0.01  # shares of regret that differ by less are equal
ROUNDING = 1e-9

Gains = Mapping[str, float]
Levels = tuple[str, ...]


def rule_scores(
    values: pd.DataFrame,
    effects: pd.DataFrame,
    runs: pd.DataFrame,
    higher_is_better: Mapping[str, bool],
    level: float = 0.95,
) -> pd.DataFrame:
    """How well each rule foretells the effects of attention, as means over the FPNs that it looked at.

    The gain of a level is its main effect, with the sign that makes more better; that of a set is the sum of its levels' gains.

    Args:
        values: What the rules say about each FPN: `fold`, `seed`, `rule`, `level`, `value` (more needs more attention), `rank`
            (1 needs most) and `selected` (by tests, 0 or 1).
        effects: Main effects in percentage points, index (outcome, level, part), column `effect`, as of `effects`.
        runs: One row per `arm`, `fold` and `seed`, with the outcomes, as of `run_table`.
        higher_is_better: Whether more is better, by outcome.
        level: Level of the intervals, in (0, 1).

    Returns:
        One row per `rule`, `choice` ("tests", the "worst 1" to "worst 3", and "fixed" for sets that look at nothing), `outcome`
        and `part`: `networks` (FPNs); `levels`, the mean number of levels; `correlation`, see there; `regret`, `regret_share`
        and `found`, see `regret`; `measured_regret` and `measured_found`, see there. The correlation and the share have an
        interval, `_low` and `_high`, over folds and seeds of the FPNs; it takes the effects as known. NaN with fewer than two
        folds or seeds, and where all FPNs have the same value.

    Raises:
        KeyError: An outcome or a level has no effect.
    """
    sets = pd.concat([chosen_sets(values), _fixed_sets(values)], ignore_index=True)
    records = []
    for outcome, part in dict.fromkeys((key[0], key[2]) for key in effects.index):
        sign = 1 if higher_is_better[outcome] else -1
        gains = {name: sign * float(effects.loc[(outcome, name, part), "effect"]) for name in LEVELS}
        measured = sign * runs.groupby("arm", observed=True)[outcome].mean()
        found = _of_networks(sets, values, gains, measured)
        for (rule, choice), table in found.groupby(["rule", "choice"], sort=False):
            key = {"rule": rule, "choice": choice, "outcome": outcome, "part": part, "networks": len(table)}
            records.append(key | _means(table, level))
    return pd.DataFrame(records)


def chosen_sets(values: pd.DataFrame) -> pd.DataFrame:
    """The levels that each rule chooses for each FPN, by tests and as the worst 1, 2 and 3.

    Args:
        values: As for `rule_scores`.

    Returns:
        Columns `fold`, `seed`, `rule`, `choice` and `levels`, a tuple in order of the levels.
    """
    records = []
    for (fold, seed, rule), table in values.groupby([*NETWORK, "rule"], sort=False):
        ordered = list(table.sort_values("rank")["level"])
        chosen = {"tests": list(table.loc[table["selected"] == 1, "level"])}
        chosen |= {f"worst {k}": ordered[:k] for k in range(1, len(LEVELS))}
        for choice, names in chosen.items():
            levels = tuple(level for level in LEVELS if level in names)
            records.append({"fold": fold, "seed": seed, "rule": rule, "choice": choice, "levels": levels})
    return pd.DataFrame(records)


def _fixed_sets(values: pd.DataFrame) -> pd.DataFrame:
    """The sets that look at nothing, for each FPN, as of `chosen_sets`."""
    networks = values[NETWORK].drop_duplicates().to_dict("records")
    return pd.DataFrame(
        network | {"rule": name, "choice": "fixed", "levels": levels} for name, levels in FIXED.items() for network in networks
    )


def _of_networks(sets: pd.DataFrame, values: pd.DataFrame, gains: Gains, measured: pd.Series[float]) -> pd.DataFrame:
    """One row per FPN, rule and choice, with the correlation and the regrets."""
    keys = [*NETWORK, "rule"]
    correlations = {
        key: correlation(dict(zip(table["level"], table["value"], strict=True)), gains) for key, table in values.groupby(keys)
    }
    records = []
    for row in sets.to_dict("records"):
        levels = row.pop("levels")
        record = row | {"levels": len(levels), "correlation": correlations.get(tuple(row[key] for key in keys), np.nan)}
        records.append(record | regret(levels, gains) | measured_regret(levels, measured))
    return pd.DataFrame(records)


def _means(table: pd.DataFrame, level: float) -> dict[str, float]:
    """The mean of each column over the FPNs, and the intervals."""
    found: dict[str, float] = {}
    for name in map(str, table.columns.drop([*NETWORK, "rule", "choice"])):
        found[name] = float(table[name].mean())
        if name in WITH_INTERVAL:
            found[f"{name}_low"], found[f"{name}_high"] = _interval(table, name, level)
    return found


def _interval(table: pd.DataFrame, name: str, level: float) -> tuple[float, float]:
    crossed = table.pivot_table(index="fold", columns="seed", values=name, dropna=False)
    if min(crossed.shape) < 2 or crossed.isna().to_numpy().any():
        return float("nan"), float("nan")
    return crossed_interval(crossed, level)


def correlation(values: Mapping[str, float], gains: Gains) -> float:
    """Kendall's tau-b of the values of the levels with their gains; 0 if all values are equal, since they say nothing.

    Example:
        >>> values = {"p2": 4.0, "p3": 3.0, "p4": 2.0, "p5": 2.0}
        >>> round(correlation(values, {"p2": 4.0, "p3": 3.0, "p4": 2.0, "p5": 1.0}), 2)
        0.91
        >>> correlation(dict.fromkeys(values, 1.0), values)
        0.0
    """
    found: Any = kendalltau(list(values.values()), [gains[level] for level in values])
    return 0.0 if np.isnan(found.statistic) else float(found.statistic)


def regret(levels: Iterable[str], gains: Gains) -> dict[str, float]:
    """How much worse a set of levels is than the best of all 16, if the gains of levels add up.

    Args:
        levels: The set.
        gains: The gain of each level.

    Returns:
        `regret`, in the unit of the gains; `regret_share`, of the distance from the best set to the worst, in [0, 1]; and
        `found`, 1 if no set is better.

    Example:
        >>> regret(("p2", "p3"), {"p2": 3.0, "p3": -1.0, "p4": 0.0, "p5": 0.0})
        {'regret': 1.0, 'regret_share': 0.25, 'found': 0.0}
    """
    sums = [sum(gains[level] for level in subset) for subset in SUBSETS]
    lost, distance = max(sums) - sum(gains[level] for level in levels), max(sums) - min(sums)
    return {"regret": lost, "regret_share": lost / distance if distance else 0.0, "found": float(lost <= ROUNDING)}


def measured_regret(levels: Iterable[str], measured: pd.Series[float]) -> dict[str, float]:
    """How much worse FAL with these levels is than the best FAL with one or three levels, without any model of the effects.

    Args:
        levels: The set.
        measured: The mean of each arm, more is better.

    Returns:
        `measured_regret`, and `measured_found`, 1 if none is better; NaN for a set of another size, or that was not measured.

    Example:
        >>> measured_regret(("p2",), pd.Series({"fpn": 5.0, "fal-p2": 1.0, "fal-p3": 3.0}))
        {'measured_regret': 2.0, 'measured_found': 0.0}
    """
    arms = measured.reindex([fal_arm(subset) for subset in HALF_FRACTION])
    lost = float(arms.max() - arms.get(fal_arm(levels), np.nan))
    return {"measured_regret": lost, "measured_found": float("nan") if np.isnan(lost) else float(lost <= ROUNDING)}


def winner(scores: pd.DataFrame, order: Iterable[str], part: str = "fal") -> str:
    """The rule whose sets, chosen by tests, have the smallest share of regret, as mean over the outcomes.

    Of rules whose shares are closer than 0.01 to the smallest, the one with the larger correlation wins, rounded to 0.01; of
    those, the first in `order`.

    Args:
        scores: The result of `rule_scores`.
        order: Names of the rules, in the order that decides last.
        part: The part of the effects.

    Example:
        >>> table = pd.DataFrame({"rule": ["a", "b", "c"], "choice": "tests", "part": "fal", "regret_share": [0.2, 0.195, 0.4]})
        >>> winner(table.assign(correlation=[0.5, 0.2, 0.9]), "abc")
        'a'
    """
    table = scores[(scores["choice"] == "tests") & (scores["part"] == part)]
    means = table.groupby("rule")[["regret_share", "correlation"]].mean().loc[list(order)]
    equal = means[means["regret_share"] < means["regret_share"].min() + CLOSE]
    return str(equal["correlation"].round(2).idxmax())
