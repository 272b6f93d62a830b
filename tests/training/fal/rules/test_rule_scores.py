"""How rules are scored: by hand, and against loops over all sets."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from xaieval.analysis.stats.crossed import crossed_interval
from xaieval.models import LEVELS
from xaieval.training.fal.rules.rule_scores import chosen_sets, correlation, measured_regret, regret, rule_scores, winner
from xaieval.training.fal.statistics.contrasts import half_fraction_arms

PROPERTY = settings(deadline=None, max_examples=50)
GAINS = st.fixed_dictionaries({level: st.integers(-4, 4).map(float) for level in LEVELS})
SUBSETS = list(chain.from_iterable(combinations(LEVELS, size) for size in range(5)))


def _values(of_rule: dict[str, list[float]], selected: dict[str, set[str]], cells=((0, 0),)) -> pd.DataFrame:
    """What rules say, the same about each FPN."""
    records = []
    for fold, seed in cells:
        for rule, values in of_rule.items():
            order = np.argsort(np.argsort(-np.asarray(values), kind="stable"), kind="stable")
            records += [
                {"fold": fold, "seed": seed, "rule": rule, "level": level, "value": value, "rank": rank + 1}
                | {"selected": int(level in selected[rule])}
                for level, value, rank in zip(LEVELS, values, order, strict=True)
            ]
    return pd.DataFrame(records)


def _effects(**of_outcome: list[float]) -> pd.DataFrame:
    records = {
        (outcome, level, "fal"): value
        for outcome, values in of_outcome.items()
        for level, value in zip(LEVELS, values, strict=True)
    }
    index = pd.MultiIndex.from_tuples(records, names=["outcome", "level", "part"])
    return pd.DataFrame({"effect": list(records.values())}, index=index)


def _runs(**outcomes: dict[str, float]) -> pd.DataFrame:
    """One run per arm."""
    arms = [arm for arm in half_fraction_arms() if arm.startswith("fal")]
    return pd.DataFrame(
        {"arm": arms, "fold": 0, "seed": 0, **{k: [v.get(arm, 0.0) for arm in arms] for k, v in outcomes.items()}}
    )


# ---- the parts


@PROPERTY
@given(GAINS, st.sampled_from(SUBSETS))
def test_regret_is_the_distance_to_the_best_of_all_sets(gains, levels):
    sums = [sum(gains[level] for level in subset) for subset in SUBSETS]
    own = sum(gains[level] for level in levels)
    actual = regret(levels, gains)
    assert actual["regret"] == max(sums) - own
    assert actual["found"] == (own == max(sums))
    assert 0 <= actual["regret_share"] <= 1
    assert actual["regret_share"] == pytest.approx((max(sums) - own) / ((max(sums) - min(sums)) or 1))
    others = regret([level for level in LEVELS if level not in levels], gains)
    assert actual["regret_share"] + others["regret_share"] == pytest.approx(1 if max(sums) > min(sums) else 0)


@PROPERTY
@given(GAINS, GAINS)
def test_the_correlation_is_kendalls_and_ties_say_nothing(values, gains):
    expected = kendalltau([values[level] for level in LEVELS], [gains[level] for level in LEVELS]).statistic
    assert correlation(values, gains) == pytest.approx(0 if np.isnan(expected) else expected)


@pytest.mark.parametrize(
    ("levels", "lost", "found"),
    [(("p2",), 4, 0), (("p2", "p3", "p5"), 0, 1), (("p2", "p3"), np.nan, np.nan), ((), np.nan, np.nan)],
)
def test_only_sets_of_one_or_three_levels_are_compared_as_measured(levels, lost, found):
    arms = pd.Series({"fpn": 9.0, "fal-p2": 1.0, "fal-p2-p3-p5": 5.0, "fal-p2-p3-p4-p5": 8.0, "fal-p2-p3": 7.0})
    actual = measured_regret(levels, arms)
    assert list(actual.values()) == pytest.approx([lost, found], nan_ok=True)


def test_the_chosen_sets_are_those_of_the_tests_and_the_worst():
    actual = chosen_sets(_values({"one": [1.0, 4.0, 2.0, 3.0]}, {"one": {"p5", "p3"}})).set_index("choice")["levels"]
    assert actual.to_dict() == {
        "tests": ("p3", "p5"),
        "worst 1": ("p3",),
        "worst 2": ("p3", "p5"),
        "worst 3": ("p3", "p4", "p5"),
    }


# ---- the table


def test_the_table_is_as_by_hand():
    values = _values({"good": [4.0, 3.0, 2.0, 1.0], "bad": [1.0, 2.0, 3.0, 4.0]}, {"good": {"p2", "p3"}, "bad": set()})
    effects = _effects(accuracy=[2.0, 1.0, -1.0, 0.0], average_drop_excess=[-3.0, 0.0, 1.0, 2.0])
    runs = _runs(accuracy={"fal-p2": 9.0, "fal-p3": 6.0}, average_drop_excess={"fal-p2-p3-p4": -8.0, "fal-p5": 4.0})
    actual = rule_scores(values, effects, runs, {"accuracy": True, "average_drop_excess": False})
    table = actual.set_index(["rule", "choice", "outcome"])
    assert set(actual["networks"]) == {1}
    row = table.loc[("good", "tests", "accuracy")]
    assert row["correlation"] == pytest.approx(2 / 3)  # five pairs agree, and one does not
    assert (row["regret"], row["regret_share"], row["found"], row["levels"]) == (0, 0, 1, 2)
    row = table.loc[("bad", "tests", "accuracy")]
    assert (row["regret"], row["regret_share"], row["found"], row["levels"]) == (3, 0.75, 0, 0)
    assert np.isnan(row["measured_regret"])
    row = table.loc[("bad", "worst 1", "average_drop_excess")]  # p5, whose gain is -2, where the best set has 3
    assert (row["regret"], row["regret_share"], row["measured_regret"]) == (5, 5 / 6, 12)
    row = table.loc[("good", "worst 3", "average_drop_excess")]  # p2, p3, p4
    assert (row["regret"], row["measured_regret"], row["measured_found"]) == (1, 0, 1)
    fixed = table.loc[("all levels", "fixed", "accuracy")]
    assert (fixed["regret"], fixed["levels"]) == (1, 4)
    assert np.isnan(fixed["correlation"])
    assert winner(actual, ["bad", "good"]) == "good"


def test_the_interval_is_over_folds_and_seeds():
    cells = [(fold, seed) for fold in range(3) for seed in range(2)]
    rng = np.random.default_rng(0)
    values = pd.concat([_values({"one": rng.normal(size=4).tolist()}, {"one": {"p2"}}, [cell]) for cell in cells])
    effects, runs = _effects(accuracy=[3.0, 1.0, 0.5, -1.0]), _runs(accuracy={})
    row = rule_scores(values, effects, runs, {"accuracy": True}).iloc[0]
    gains = dict(zip(LEVELS, [3.0, 1.0, 0.5, -1.0], strict=True))
    each = [
        correlation(dict(zip(table["level"], table["value"], strict=True)), gains)
        for _, table in values.groupby(["fold", "seed"])
    ]
    assert row["networks"] == 6
    assert row["correlation"] == pytest.approx(np.mean(each))
    expected = crossed_interval(np.reshape(each, (3, 2)))
    assert (row["correlation_low"], row["correlation_high"]) == pytest.approx(expected)
    assert np.isnan(row["regret_share_low"]), "all FPNs choose the same set"


@pytest.mark.parametrize(
    ("shares", "correlations", "expected"),
    [
        ([0.3, 0.2, 0.4], [0.9, 0.1, 0.9], "b"),
        ([0.205, 0.2, 0.4], [0.3, 0.1, 0.9], "a"),
        ([0.2, 0.2, 0.2], [0.3, 0.301, 0.2], "a"),
    ],
)
def test_the_winner_is_found_as_registered(shares, correlations, expected):
    table = pd.DataFrame(
        {"rule": list("abc"), "choice": "tests", "part": "fal", "regret_share": shares, "correlation": correlations}
    )
    other = table.assign(part="gate", regret_share=[1, 1, 0])
    assert winner(pd.concat([table, other, table.assign(choice="worst 1", regret_share=[1, 1, 0])]), "abc") == expected
