"""How well rules foretell where attention helps: correlations with the measured effects, and regret of the chosen sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from xaieval.models import LEVELS
from xaieval.training.fal.arms import fal_arm

FIXED = {"no level": (), "p2-p3": ("p2", "p3"), "all levels": tuple(LEVELS)}  # sets that look at nothing, for comparison
SUBSETS = [levels for size in range(len(LEVELS) + 1) for levels in combinations(LEVELS, size)]
CLOSE = 0.01  # shares of regret that differ by less are equal
ROUNDING = 1e-9

Gains = Mapping[str, float]
Levels = tuple[str, ...]


def rule_scores(
    values: pd.DataFrame, effects: pd.DataFrame, runs: pd.DataFrame, higher_is_better: Mapping[str, bool]
) -> pd.DataFrame:
    """One row per rule, choice, outcome and part of the effect, with means over the FPNs.

    Args:
        values: What the rules say: `fold`, `seed`, `rule`, `level`, `value`, `rank`, `selected`.
        effects: Main effects in percentage points, index (outcome, level, part), column `effect`.
        runs: One row per `arm`, `fold` and `seed`, with the outcomes.
        higher_is_better: Whether more is better, by outcome.

    Returns:
        Columns `rule`, `choice` ("tests", "worst 1", ...), `outcome`, `part`, `n` (FPNs), `levels` (mean number of levels),
        `correlation`, `regret` (percentage points), `regret_share`, `found`, `measured_regret`, `measured_found`.
    """
    sets = pd.concat([chosen_sets(values), fixed_sets(values)])
    records = []
    for (outcome, part), found in effects.groupby(["outcome", "part"], sort=False):
        sign = 1 if higher_is_better[outcome] else -1
        gains = {level: sign * float(found["effect"].xs(level, level="level").iloc[0]) for level in LEVELS}
        measured = sign * runs.groupby("arm")[outcome].mean()
        correlations = correlations_of(values, gains)
        for (rule, choice), table in sets.groupby(["rule", "choice"], sort=False):
            record = {"rule": rule, "choice": choice, "outcome": outcome, "part": part, "n": len(table)}
            record |= {"levels": table["levels"].map(len).mean(), "correlation": correlations.get(rule, np.nan)}
            records.append(record | mean_regrets(table["levels"], gains, measured))
    return pd.DataFrame(records)


def chosen_sets(values: pd.DataFrame) -> pd.DataFrame:
    """The levels that each rule chooses for each FPN, by tests and as the k worst: `rule`, `choice`, `levels`."""
    records = []
    for (_, _, rule), table in values.groupby(["fold", "seed", "rule"], sort=False):
        ordered = list(table.sort_values("rank")["level"])
        chosen = {"tests": list(table.loc[table["selected"] == 1, "level"])}
        chosen |= {f"worst {k}": ordered[:k] for k in range(1, len(LEVELS))}
        records += [
            {"rule": rule, "choice": choice, "levels": tuple(level for level in LEVELS if level in levels)}
            for choice, levels in chosen.items()
        ]
    return pd.DataFrame(records)


def fixed_sets(values: pd.DataFrame) -> pd.DataFrame:
    """The sets that do not depend on scores, for each FPN, in the form of `chosen_sets`."""
    count = len(values[["fold", "seed"]].drop_duplicates())
    return pd.DataFrame(
        {"rule": name, "choice": "fixed", "levels": levels} for name, levels in FIXED.items() for _ in range(count)
    )


def correlations_of(values: pd.DataFrame, gains: Gains) -> dict[str, float]:
    """Kendall's tau-b of a rule's values with the gains, the mean over the FPNs; 0 for an FPN whose values are all equal.

    Example:
        >>> values = pd.DataFrame({"fold": 0, "seed": 0, "rule": "one", "level": list(LEVELS), "value": [4.0, 3.0, 2.0, 2.0]})
        >>> round(correlations_of(values, {"p2": 4.0, "p3": 3.0, "p4": 2.0, "p5": 1.0})["one"], 2)
        0.91
    """
    found: dict[str, list[float]] = {}
    for (_, _, rule), table in values.groupby(["fold", "seed", "rule"], sort=False):
        tau = kendalltau(table["value"], [gains[level] for level in table["level"]]).statistic
        found.setdefault(str(rule), []).append(0.0 if np.isnan(tau) else tau)
    return {rule: float(np.mean(taus)) for rule, taus in found.items()}


def mean_regrets(sets: Iterable[Levels], gains: Gains, measured: pd.Series[float]) -> dict[str, float]:
    """Regret of sets against the best of all 16 by the sum of gains, and against the best arm of those that were measured."""
    records = [regret(levels, gains) | measured_regret(levels, measured) for levels in sets]
    return {name: float(value) for name, value in pd.DataFrame(records).mean().items()}


def regret(levels: Levels, gains: Gains) -> dict[str, float]:
    """How much worse a set is than the best of the 16, if gains add up; the share is of the distance from best to worst.

    Example:
        >>> regret(("p2", "p3"), {"p2": 3.0, "p3": -1.0, "p4": 0.0, "p5": 0.0})
        {'regret': 1.0, 'regret_share': 0.25, 'found': 0.0}
    """
    sums = [sum(gains[level] for level in subset) for subset in SUBSETS]
    lost = max(sums) - sum(gains[level] for level in levels)
    distance = max(sums) - min(sums)
    return {"regret": lost, "regret_share": lost / distance if distance else 0.0, "found": float(lost <= ROUNDING)}


def measured_regret(levels: Levels, measured: pd.Series[float]) -> dict[str, float]:
    """How much worse the arm with these levels is than the best FAL that was measured; NaN if it was not measured itself.

    Example:
        >>> measured_regret(("p2",), pd.Series({"fpn": 5.0, "fal-p2": 1.0, "fal-p3": 3.0}))
        {'measured_regret': 2.0, 'measured_found': 0.0}
    """
    arms = measured[measured.index.str.startswith("fal-")]
    lost = float(arms.max() - arms.get(fal_arm(levels), np.nan))
    return {"measured_regret": lost, "measured_found": np.nan if np.isnan(lost) else float(lost <= ROUNDING)}


def winner(scores: pd.DataFrame, order: Iterable[str], part: str = "fal") -> str:
    """The rule whose sets, chosen by tests, have the smallest share of regret, averaged over the outcomes.

    Of rules whose shares are closer than 0.01, the one with the larger correlation wins; then the first in `order`.

    Args:
        scores: The result of `rule_scores`.
        order: Names of the rules, the cheapest first.
        part: The part of the effects.
    """
    table = scores[(scores["choice"] == "tests") & (scores["part"] == part)]
    means: Any = table.groupby("rule")[["regret_share", "correlation"]].mean().loc[list(order)]
    equal = means[means["regret_share"] < means["regret_share"].min() + CLOSE]
    return str(equal["correlation"].round(2).idxmax())
