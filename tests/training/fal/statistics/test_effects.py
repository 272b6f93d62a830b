"""Effects over runs, against the true ones of simulated runs, the formulas of balanced designs, and statsmodels."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.training.fal.statistics.made_runs import ARMS, TRUE, by_class, made_runs
from xaieval.analysis.stats.crossed import crossed_interval
from xaieval.analysis.stats.paired import holm
from xaieval.errors import MetricError, UsageError
from xaieval.training.fal.statistics import arm_means as arm_means_module
from xaieval.training.fal.statistics.contrasts import HALF_FRACTION, contrasts
from xaieval.training.fal.statistics.effects import arm_differences, effects, effects_beyond, errors_by_seeds


def _true(table: pd.DataFrame) -> np.ndarray:
    return np.array([TRUE[key[1:]] for key in table.index])


def _covered(table: pd.DataFrame, low: str = "low", high: str = "high") -> np.ndarray:
    return ((table[low] <= _true(table)) & (_true(table) <= table[high])).to_numpy()


def test_the_mixed_model_gives_the_closed_form_of_a_balanced_design():
    runs = made_runs(0)
    table = effects(runs, "y")
    means = runs.groupby("arm")["y"].mean()
    wide = runs.pivot_table(index=["fold", "seed"], columns="arm", values="y")
    rest = wide.sub(wide.mean(axis=1), axis=0).sub(wide.mean(axis=0), axis=1) + wide.to_numpy().mean()
    spread = np.sqrt((rest**2).to_numpy().sum() / (17 * 29))
    assert set(table["model"]) == {"mixed"}
    assert table["freedom"].unique().tolist() == [17 * 29]
    assert table["spread"].to_numpy() == pytest.approx(spread)
    for (_, level, part), row in table.iterrows():
        values = {}
        for kind in ("fal", "twin"):
            arms = {levels: f"{kind}-{'-'.join(levels)}" for levels in HALF_FRACTION}
            inside = [means[arm] for levels, arm in arms.items() if level in levels]
            outside = [means[arm] for levels, arm in arms.items() if level not in levels]
            values[kind] = np.mean(inside) - np.mean(outside) if level != "all" else np.mean(outside)
        effect = values["fal"] - values["twin"] if part == "gate" else values[part]
        factor = np.sqrt({"all": 1 / 4}.get(level, 1.0 if part == "gate" else 1 / 2) / 30)
        assert row["effect"] == pytest.approx(effect, abs=1e-4)
        assert row["error"] == pytest.approx(spread * factor, rel=1e-4)
        reach = stats.t.ppf(0.975, 17 * 29) * row["error"]
        assert (row["low"], row["high"]) == pytest.approx((row["effect"] - reach, row["effect"] + reach))
        assert row["p_value"] == pytest.approx(2 * stats.t.sf(abs(row["effect"] / row["error"]), 17 * 29))


@pytest.mark.parametrize("missing", [0, 90])
def test_least_squares_is_that_of_statsmodels_with_an_intercept_for_each_fold_and_seed(missing):
    runs = made_runs(1).sample(540 - missing, random_state=0)
    table = effects(runs, "y", model="cells")
    fitted = smf.ols("y ~ 0 + arm + C(fold):C(seed)", runs).fit()
    arms = sorted(ARMS)
    weights = contrasts(ARMS).table(arms)
    for (_, level, part), row in table.iterrows():
        restriction = np.zeros(len(fitted.params))
        for arm, weight in weights.loc[[(level, part)]].iloc[0].items():
            restriction[list(fitted.params.index).index(f"arm[{arm}]")] = weight
        test = fitted.t_test(restriction)
        assert row["effect"] == pytest.approx(test.effect[0], abs=1e-8)
        assert row["error"] == pytest.approx(test.sd[0, 0])
        assert (row["low"], row["high"]) == pytest.approx(tuple(test.conf_int()[0]))
        assert row["p_value"] == pytest.approx(float(test.pvalue))


def test_p_values_are_corrected_for_all_that_is_asked_and_no_more():
    runs = made_runs(2)
    runs["z"] = -runs["y"]
    one, both = effects(runs, "y", ["fal"], model="cells"), effects(runs, ["y", "z"], ["fal"], model="cells")
    assert (one.attrs["claims"], both.attrs["claims"]) == (4, 8)
    assert one["p_holm"].tolist() == holm(one["p_value"])
    assert both["p_holm"].tolist() == holm(both["p_value"])
    assert both.loc["y", "effect"].to_numpy() == pytest.approx(-both.loc["z", "effect"].to_numpy())


def test_missing_runs_move_the_effects_little_and_widen_them():
    runs = made_runs(3)
    whole, part = effects(runs, "y"), effects(runs.sample(frac=0.7, random_state=1), "y")
    assert set(part["model"]) == {"mixed"}
    assert (np.abs(part["effect"] - whole["effect"]) < 3 * whole["error"]).all()
    assert (part["error"] > 1.05 * whole["error"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0.0, 0.25])
def test_intervals_hold_in_95_percent_of_simulated_experiments(missing):
    hits = []
    for seed in range(80):
        runs = made_runs(seed)
        hits.append(_covered(effects(runs.sample(frac=1 - missing, random_state=seed), "y", model="cells")))
    assert 0.93 < np.mean(hits) < 0.97


@pytest.mark.slow
def test_intervals_of_the_mixed_model_hold_too():
    hits = [_covered(effects(made_runs(seed).sample(frac=0.8, random_state=seed), "y")) for seed in range(60)]
    assert 0.92 < np.mean(hits) < 0.98


@pytest.mark.slow
def test_intervals_over_folds_hold_where_arms_differ_between_folds_and_those_over_runs_do_not():
    tables = [effects(made_runs(seed, arm_in_fold=2.0), "y", model="cells") for seed in range(60)]
    assert np.mean([_covered(table) for table in tables]) < 0.8
    assert 0.92 < np.mean([_covered(table, "low_folds", "high_folds") for table in tables]) < 0.98


@pytest.mark.slow
def test_intervals_over_classes_hold_where_arms_differ_between_classes():
    hits = []
    for seed in range(40):
        runs = by_class(made_runs(seed, folds=3, seeds=2), seed, 21, arm_in_class=4.0)
        hits.append(_covered(effects_beyond(runs, "label", "y")))
    assert 0.92 < np.mean(hits) < 0.98


def test_an_effect_that_differs_between_folds_is_named():
    runs = made_runs(4)
    assert effects(runs, "y").attrs["notes"] == []
    odd = runs["arm"].str.contains("p2") & (runs["fold"] == 3)
    notes = effects(runs.assign(y=runs["y"] + 12 * odd), "y", ["fal"]).attrs["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("y, p2, fal differs between folds (F = ")
    assert notes[0].endswith("so its interval holds for these folds only; low_folds and high_folds hold for others")


def test_intervals_over_folds_are_those_of_the_folds_own_effects():
    runs = made_runs(5)
    table = effects(runs, "y", ["fal"], model="cells")
    own = np.array([effects(part, "y", ["fal"], model="cells")["effect"] for _, part in runs.groupby("fold")])
    reach = stats.t.ppf(0.975, 4) * own.std(axis=0, ddof=1) / np.sqrt(5)
    assert (table["high_folds"] - table["effect"]).to_numpy() == pytest.approx(reach)


def _equal_folds(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(y=runs["y"] - runs.groupby("fold")["y"].transform("mean"))


@pytest.mark.parametrize(
    ("runs", "reason"),
    [
        (_equal_folds(made_runs(0)), "the mixed model estimates the variance between folds as 0"),
        (made_runs(0, folds=1), "the mixed model takes at least two folds with two seeds each"),
        (made_runs(0, seeds=1), "the mixed model takes at least two folds with two seeds each"),
    ],
)
def test_without_a_mixed_model_the_numbers_are_those_of_least_squares_and_it_is_said(runs, reason):
    table, cells = effects(runs, "y"), effects(runs, "y", model="cells")
    assert set(table["model"]) == {"cells"}
    said = f"y: {reason}, so the numbers are those of least squares with an intercept for each fold and seed"
    assert said in table.attrs["notes"]
    pd.testing.assert_frame_equal(table, cells)


def test_an_optimiser_that_fails_is_said(monkeypatch):
    from statsmodels.regression.mixed_linear_model import MixedLM

    runs = made_runs(0)
    monkeypatch.setattr(MixedLM, "fit", _singular)
    notes = effects(runs, "y").attrs["notes"]
    assert notes[0].startswith("y: the mixed model cannot be fitted (Singular matrix), so the numbers are those of least")
    monkeypatch.undo()
    one = pd.DataFrame([[1.0]])
    monkeypatch.setattr(MixedLM, "fit", lambda *_, **__: SimpleNamespace(cov_re=one, vcomp=[1.0], scale=1.0, converged=False))
    assert effects(runs, "y").attrs["notes"][0].startswith("y: the optimiser of the mixed model did not converge, so")


def _moved(fitted):
    kept = {name: getattr(fitted, name) for name in ("cov_re", "vcomp", "scale", "cov_params", "converged")}
    return SimpleNamespace(fe_params=1.1 * fitted.fe_params, **kept)


def _singular(*_, **__):
    raise np.linalg.LinAlgError("Singular matrix")


def test_a_wrong_optimum_is_not_taken(monkeypatch):
    own = arm_means_module._fitted
    monkeypatch.setattr(arm_means_module, "_fitted", lambda *args: _moved(own(*args)))
    notes = effects(made_runs(0), "y").attrs["notes"]
    assert notes[0].startswith("y: the mixed model disagrees with least squares although no run is missing, so the numbers")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(0.1, 10))
def test_effects_follow_shifts_of_folds_and_seeds_and_the_unit(seed, shift, unit):
    runs = made_runs(seed, folds=2, seeds=2)
    moved = runs.assign(y=unit * (runs["y"] + shift * (runs["fold"] + 3 * runs["seed"])))
    one, other = (effects(table, "y", model="cells") for table in (runs, moved.sample(frac=1, random_state=seed)))
    assert other["effect"].to_numpy() == pytest.approx(unit * one["effect"].to_numpy(), abs=1e-6)
    assert other["error"].to_numpy() == pytest.approx(unit * one["error"].to_numpy(), abs=1e-6)
    assert other["p_value"].to_numpy() == pytest.approx(one["p_value"].to_numpy(), abs=1e-6)


def test_equal_runs_have_no_error_and_no_doubt():
    table = effects(made_runs(0, folds=2, seeds=2, spread=0.0), "y", model="cells")
    assert table["effect"].to_numpy() == pytest.approx(_true(table), abs=1e-9)
    assert table["error"].to_numpy() == pytest.approx(0, abs=1e-9)


def test_effects_over_classes_are_those_of_the_two_way_analysis_of_variance():
    runs = by_class(made_runs(6, folds=3, seeds=2), 6, 8, arm_in_class=2.0)
    table = effects_beyond(runs, "label", "y", ["fal"])
    wide = runs.pivot_table(index=["label", "fold", "seed"], columns="arm", values="y")
    for (_, level, part), row in table.iterrows():
        values = (wide @ contrasts(ARMS).table(wide.columns).loc[[(level, part)]].iloc[0]).to_numpy().reshape(8, 6)
        low, high = crossed_interval(values)
        assert row["effect"] == pytest.approx(values.mean())
        assert row["error"] <= (high - low) / 2 / stats.t.ppf(0.975, 40) * 1.001
        squares = values.var(axis=1).mean()
        assert squares > 0
        variances = [
            values.mean(axis=0).var(ddof=1) / 6,
            values.mean(axis=1).var(ddof=1) / 8,
            -((values - values.mean()) ** 2).sum() / 47 / 48,
        ]
        assert row["error"] ** 2 == pytest.approx(max(sum(variances), *variances[:2]))
        assert row["same_sign"] == (np.sign(values.mean(axis=1)) == np.sign(values.mean())).sum()
        assert (row["groups"], row["freedom"]) == (8, 5)


def test_differences_of_arms_are_those_of_paired_runs():
    runs = made_runs(7)
    pairs = [("fal-p2", "twin-p2"), ("abn", "fpn")]
    table = arm_differences(runs, pairs, "y")
    wide = runs.pivot_table(index=["fold", "seed"], columns="arm", values="y")
    for (_, arm, other), row in table.iterrows():
        test = stats.ttest_rel(wide[arm], wide[other])
        interval = test.confidence_interval()
        assert row["difference"] == pytest.approx((wide[arm] - wide[other]).mean())
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
        assert row["p_value"] == pytest.approx(test.pvalue)
        by_fold = (wide[arm] - wide[other]).groupby("fold").mean()
        over_folds = stats.ttest_1samp(by_fold, 0).confidence_interval()
        assert (row["low_folds"], row["high_folds"]) == pytest.approx((over_folds.low, over_folds.high))
    assert table["p_holm"].tolist() == holm(table["p_value"])
    assert table.attrs == {"claims": 2, "notes": []}


def test_differences_with_the_error_of_all_arms_are_those_of_a_model_of_all_arms():
    runs = made_runs(8, folds=2, seeds=1).iloc[:-1]
    row = arm_differences(runs, [("fal-p2", "twin-p2")], "y", error="all").iloc[0]
    fitted = smf.ols("y ~ C(arm, Treatment('twin-p2')) + C(fold)", runs).fit()
    name = "C(arm, Treatment('twin-p2'))[T.fal-p2]"
    assert row["difference"] == pytest.approx(fitted.params[name])
    assert (row["low"], row["high"]) == pytest.approx(tuple(fitted.conf_int().loc[name]))
    assert row["n_pairs"] == 2


def test_pairs_that_are_too_few_have_no_interval_count_as_claims_and_are_named():
    runs = made_runs(9)
    runs = runs[~((runs["arm"] == "abn") & (runs["fold"] > 0))]
    runs = runs[~((runs["arm"] == "abn") & (runs["seed"] > 2))]
    table = arm_differences(runs, [("abn", "fpn"), ("fal-p2", "fpn")], "y")
    assert table["n_pairs"].tolist() == [3, 30]
    assert np.isnan(table[["low", "p_value", "p_holm", "low_folds"]].iloc[0]).all()
    assert table["p_holm"].iloc[1] == pytest.approx(min(2 * table["p_value"].iloc[1], 1))
    assert table.attrs["notes"] == ["y: abn - fpn has no interval, 3 pairs"]


@pytest.mark.parametrize("seeds", [1, 3, 6])
def test_planned_errors_are_those_that_are_reached(seeds):
    table = effects(made_runs(10, seeds=seeds), "y", model="cells")["error"]
    spread = effects(made_runs(10, seeds=seeds), "y", model="cells")["spread"].iloc[0]
    planned = errors_by_seeds(spread, folds=5, seeds=[seeds]).iloc[0]
    assert planned["level"] == pytest.approx(table.loc["y", "p3", "twin"])
    assert planned["level_gate"] == pytest.approx(table.loc["y", "p3", "gate"])
    assert planned["gate"] == pytest.approx(table.loc["y", "all", "gate"])
    pair = arm_differences(made_runs(10, seeds=seeds), [("fal-p2", "fpn")], "y", error="all")
    assert planned["arms"] == pytest.approx(pair["error"].iloc[0])


def _without(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of which an arm shares no fold and seed with the others."""
    return runs[(runs["arm"] == "abn") == (runs["fold"] == 0)]


RUNS = made_runs(0, folds=2, seeds=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: effects(RUNS, "auc"), "the table of runs has no column 'auc'; it has arm, fold, seed, y"),
        (
            lambda: effects(pd.concat([RUNS, RUNS.iloc[:1]]), "y"),
            "the table of runs has several rows of arm fal-p2, fold 0, seed 0; give one row per arm, fold, seed",
        ),
        (
            lambda: effects(_without(RUNS), "y"),
            "arm 'fal-p2' shares no fold and seed with 'abn', so the two cannot be compared; run both in the same folds with "
            "the same seeds",
        ),
        (
            lambda: effects(RUNS[(RUNS["fold"] == 0) & (RUNS["seed"] == 0)], "y"),
            "18 runs of 18 arms leave nothing to estimate an error of y from; it takes at least two arms in two folds or with "
            "two seeds",
        ),
        (lambda: effects(RUNS, "y", level=95), "the level of an interval is a probability in (0, 1), such as 0.95; got 95"),
        (lambda: effects_beyond(RUNS, "label", "y"), "the table of runs has no column 'label'; it has arm, fold, seed, y"),
        (
            lambda: effects_beyond(RUNS.assign(label=1), "label", "y"),
            "4 folds and seeds and 1 of 'label' give no error; it takes at least two of each",
        ),
        (lambda: arm_differences(RUNS, [("fal-p9", "fpn")], "y"), "no run of an arm 'fal-p9'; "),
    ],
)
def test_errors(call, message):
    with pytest.raises(MetricError) as raised:
        call()
    assert str(raised.value).startswith(message)


def test_values_that_are_missing_are_said():
    runs = made_runs(0)
    runs.loc[[0, 7], "y"] = np.nan
    assert effects(runs, "y").attrs["notes"] == ["y: 2 of 540 rows of the table have no value and are left out"]


def test_statsmodels_is_asked_for_only_by_the_mixed_model(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.regression.mixed_linear_model", None)
    assert len(effects(RUNS, "y", model="cells")) == 13
    with pytest.raises(UsageError) as raised:
        effects(RUNS, "y")
    assert str(raised.value) == ("the mixed model needs statsmodels, which is not installed: pip install 'xaieval[fal]'")


def test_numbers_of_folds_and_seeds_may_be_integers_of_pandas():
    runs = made_runs(0)
    table = effects(runs.astype({"fold": "Int16", "seed": "Int32"}), "y", ["fal"])
    pd.testing.assert_frame_equal(table, effects(runs, "y", ["fal"]))
