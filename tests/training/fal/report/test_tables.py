"""Tables of the experiment against means of rows by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from tests.training.fal.conftest import ROLES, made_rows, write_experiment
from xaieval.analysis.stats.crossed import crossed_interval
from xaieval.models import LEVELS
from xaieval.training.fal.report.page import write_report
from xaieval.training.fal.report.tables import (
    arm_table,
    cost_table,
    difference_table,
    effect_table,
    gate_table,
    level_table,
    pairs_of,
    selection_table,
    swap_parts,
    swap_table,
)
from xaieval.training.fal.results import read_results
from xaieval.training.fal.statistics.contrasts import half_fraction_arms

CELLS = [(fold, seed) for fold in (0, 1) for seed in (0, 1)]


def made(arm, method="gradcam"):
    """The rows of an arm in all folds and with all seeds that count."""
    tables = [made_rows(arm, fold, seed, method).assign(fold=fold, seed=seed) for fold, seed in CELLS]
    rows = pd.concat(tables, ignore_index=True)
    rows["average_drop_excess"] = rows["average_drop"] - rows["average_drop_shifted"]
    return rows


def test_levels_of_the_fpn(packed):
    table = level_table(read_results(packed))
    assert list(table.index) == [(method, level) for method in ("gradcam", "layercam") for level in LEVELS]
    for (method, level), row in table.iterrows():
        own = made("fpn", method).query("status == 'ok' and layer == @address", local_dict={"address": f"levels[{level}]"})
        for name in ("average_drop", "average_drop_excess", "increase_in_confidence", "mask_area"):
            assert row[name] == pytest.approx(own[name].mean())
        assert (row["n_images"], row["n_seeds"]) == (16, 2)


def test_levels_of_one_class(packed):
    table = level_table(read_results(packed), label=1)
    own = made("fpn").query("status == 'ok' and label == 1 and layer == 'levels[p3]'")
    assert table.loc[("gradcam", "p3"), "average_drop"] == pytest.approx(own["average_drop"].mean())
    assert (table["n_images"] == 8).all()


def test_an_interval_of_a_mean_is_that_of_blocks_and_seeds(packed):
    results = read_results(packed)
    row = arm_table(results).loc["selected"]
    own = results.rows[results.rows["arm"] == "fal-p2"]
    by_block = own.pivot_table(index="group", columns="seed", values="average_drop")
    low, high = crossed_interval(by_block)
    shift = own["average_drop"].mean() - by_block.to_numpy().mean()
    assert [row["average_drop_low"], row["average_drop_high"]] == pytest.approx([max(low + shift, 0), min(high + shift, 100)])


def test_arms_have_the_means_of_their_rows(packed):
    table = arm_table(read_results(packed))
    assert list(table.index) == ["fpn", "selected", "selected-twin"]
    for arm, network in (("fpn", "fpn"), ("selected", "fal-p2"), ("selected-twin", "twin-p2")):
        rows = made(network)
        counted = rows[rows["status"] == "ok"]
        assert table.loc[arm, "networks"] == network
        assert table.loc[arm, "average_drop"] == pytest.approx(counted["average_drop"].mean())
        images = rows.drop_duplicates(["fold", "seed", "image_id"])
        assert table.loc[arm, "accuracy"] == pytest.approx(100 * (images["label"] == images["predicted"]).mean())
        assert table.loc[arm, "n_runs"] == 4
        for name in ("accuracy", "average_drop", "increase_in_confidence"):
            assert 0 <= table.loc[arm, f"{name}_low"] <= table.loc[arm, name] <= table.loc[arm, f"{name}_high"] <= 100


def test_differences_are_paired_by_fold_and_seed(tmp_path):
    results = read_results(write_experiment(tmp_path, ["fpn", "fal-p2", "twin-p2"], seeds=tuple(range(6)), roles=ROLES))
    table = difference_table(results, level=0.9)
    runs = results.runs().pivot_table(index=["fold", "seed"], columns="arm", values="average_drop")
    test = ttest_rel(runs["selected"], runs["selected-twin"])
    row = table.loc[("average_drop", "selected", "selected-twin")]
    assert row["n_pairs"] == 12
    assert row["difference"] == pytest.approx((runs["selected"] - runs["selected-twin"]).mean())
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert [row["low"], row["high"]] == pytest.approx(list(test.confidence_interval(0.9)))
    assert len(table) == 3 * 5
    assert (table["p_holm"] >= table["p_value"]).all()


def test_without_another_arm_there_is_no_difference(tmp_path):
    assert difference_table(read_results(write_experiment(tmp_path, ["fpn"]))).empty


def test_pairs_of_explicit_arms():
    arms = ["abn", "fal-p2@focus", "twin-p2@amplify", "fpn", "selected", "selected-twin", "all"]
    assert pairs_of(arms, "amplify") == [
        *((arm, "fpn") for arm in ("selected", "selected-twin", "all", "abn", "fal-p2@focus", "twin-p2@amplify")),
        ("selected", "selected-twin"),
        ("fal-p2@focus", "twin-p2@amplify"),
    ]


def test_gates_are_means_over_the_runs(packed):
    table = gate_table(read_results(packed))
    assert list(table.index) == [("selected", "p2")]
    row = table.loc[("selected", "p2")]
    assert row["contrast"] == pytest.approx(0.25)
    assert row["changed_without"] == pytest.approx(15.0)
    assert row["changed_shuffled"] == pytest.approx(5.0)
    assert row["n_runs"] == 4


def test_the_selection_is_that_of_the_records(packed):
    table = selection_table(read_results(packed))
    assert list(table.columns) == ["selected", "random", "best"]
    assert list(table.index) == CELLS
    assert set(table["random"]) == {"fal-p3"}


def write_swap(folder, fold, seed, shift=0.0):
    """Swapped masks of four images: other maps make 2 points of difference, another network 10."""
    records = []
    for number in range(4):
        for masks_of, of_masks in (("fpn", 2.0), ("fal", 0.0), ("center", 20.0)):
            for model, of_model in (("fpn", 10.0), ("fal", 0.0)):
                drop = 30.0 + number + of_masks + of_model + shift
                record = {"image_id": f"{fold}/{number}", "group": f"{fold}-{number}", "masks_of": masks_of, "model": model}
                records.append(record | {"average_drop": drop, "fold": fold, "seed": seed})
    pd.DataFrame(records).to_parquet(folder / f"swap-fold{fold}-seed{seed}.parquet")


def test_swapped_masks_and_their_parts(packed):
    assert swap_table(read_results(packed)).empty
    assert swap_parts(read_results(packed)).empty
    write_swap(packed, 0, 0)
    write_swap(packed, 1, 0)
    write_swap(packed, 1, 1, shift=50.0)  # of a later seed, which is left out
    results = read_results(packed)
    table = swap_table(results)["mean"]
    assert table["fal", "fal"] == pytest.approx(31.5)
    assert table["fpn", "fal"] == pytest.approx(33.5)
    assert table["center", "fpn"] == pytest.approx(61.5)
    parts = swap_parts(results)["value"]
    assert parts.to_dict() == pytest.approx({"difference": -12.0, "map": -2.0, "model": -10.0})


def test_costs_are_those_of_the_file(packed):
    assert cost_table(read_results(packed)).empty
    (packed / "costs.json").write_text('{"fal-p2": {"parameters": 5, "multiply_adds_ratio": 1.5}}')
    assert cost_table(read_results(packed)).loc["fal-p2", "multiply_adds_ratio"] == 1.5


def test_one_seed_has_intervals_over_blocks(tmp_path):
    table = arm_table(read_results(write_experiment(tmp_path, ["fpn"], seeds=(0,))))
    assert np.isfinite(table.loc["fpn", "average_drop_low"])


def test_effects_are_shown_if_the_arms_are_enough_sets_of_levels(tmp_path):
    arms = half_fraction_arms()
    results = read_results(write_experiment(tmp_path, ["fpn", "abn", *arms]))
    table = effect_table(results)
    runs = results.runs()
    means = runs[runs["arm"].str.startswith("fal")].groupby(runs["arm"].str.contains("p2"))["average_drop"].mean()
    assert table.loc[("average_drop", "p2", "fal"), "effect"] == pytest.approx(means[True] - means[False])
    assert set(table.index.get_level_values("outcome")) == set(difference_table(results).index.get_level_values("outcome"))
    assert "| AD | p2 | fal |" in (write_report(tmp_path) and (tmp_path / "report.md").read_text())


def test_few_sets_of_levels_have_no_effects(packed):
    assert effect_table(read_results(packed)).empty
