"""Agreement of metrics: worked by hand, against scipy and a slow loop, missing values, errors, and the command line."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from xaieval.analysis.agreement import agreement
from xaieval.cli import main
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores

UP, DOWN, FLAT = (
    {"name": name, "higher_is_better": way, "interval": "mean"} for name, way in {"u": True, "d": False, "f": None}.items()
)
LAYERS, METHODS = ("p2", "p3", "p4"), ("gradcam", "layercam")


def run(images: int = 12, seed: int = 0, noise: float = 1.0) -> pd.DataFrame:
    """Rows of six pairs, in which `u` rises and `d` mostly falls from pair to pair."""
    rng = np.random.default_rng(seed)
    records = []
    for place, (layer, method) in enumerate((layer, method) for layer in LAYERS for method in METHODS):
        for image in range(images):
            up, down = place + noise * rng.normal(), -place + 3 * noise * rng.normal()
            records.append({"image_id": str(image), "layer": layer, "method": method, "u": up, "d": down, "f": rng.random()})
    return pd.DataFrame(records).assign(status="ok")


def means(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby(["layer", "method"], sort=False)[["u", "d"]].mean()


# ---- by hand, and against others


def test_four_pairs_by_hand():
    rows = pd.DataFrame({"image_id": "a", "layer": ["1", "2", "3", "4"], "method": "gradcam", "status": "ok"})
    rows = rows.assign(u=[1.0, 2, 3, 4], d=[9.0, 8, 2, 5])
    found = agreement(rows, [UP, DOWN])
    assert found.table.loc[0, "correlation"] == pytest.approx(1 - 6 * 2 / (4 * 15)), "two neighbours change places"
    assert found.matrix.loc["d", "u"] == found.matrix.loc["u", "d"] == found.table.loc[0, "correlation"]
    assert found.table[["low", "high"]].isna().all(axis=None), "of one image"
    assert (found.n_pairs, found.n_images, found.level) == (4, 1, 0.95)


def test_the_correlation_is_that_of_scipy_with_lower_is_better_turned_round():
    rows = run()
    found = agreement(rows, [UP, DOWN, FLAT])
    expected = spearmanr(means(rows)["u"], -means(rows)["d"]).statistic
    assert found.table.loc[0, "correlation"] == pytest.approx(expected)
    assert list(found.matrix) == ["u", "d"], "a metric without a direction takes no part"


def test_the_interval_is_that_of_resampled_images():
    rows = run(images=40)
    found = agreement(rows, [UP, DOWN], resamples=400, seed=3).table.iloc[0]
    rng, drawn = np.random.default_rng(7), []
    wide = {name: rows.pivot_table(name, "image_id", ["layer", "method"], sort=False) for name in "ud"}
    for _ in range(400):
        picks = rng.integers(40, size=40)
        drawn.append(spearmanr(wide["u"].iloc[picks].mean(), -wide["d"].iloc[picks].mean()).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    reach = max(found["correlation"] - low, high - found["correlation"])
    assert found["low"] == pytest.approx(found["correlation"] - reach, abs=0.1), "other random images"
    assert found["high"] == pytest.approx(min(1, found["correlation"] + reach), abs=0.1)


def test_the_interval_contains_the_true_correlation():
    held = 0
    for seed in range(60):
        row = agreement(run(images=60, seed=seed, noise=3.0), [UP, DOWN], resamples=200).table.iloc[0]
        held += row["low"] <= 1 <= row["high"]
    assert held >= 52, "the means are in the same order"


@given(st.integers(0, 10_000), st.sampled_from([0, 3, 20]))
@settings(deadline=None, max_examples=30)
def test_the_order_of_rows_and_increasing_changes_of_a_metric_do_not_matter(seed, missing):
    rows = run(seed=seed)
    rows.loc[np.random.default_rng(seed).choice(len(rows), missing, replace=False), "u"] = np.nan
    found = agreement(rows, [UP, DOWN], resamples=50).table
    mixed = agreement(rows.sample(frac=1, random_state=seed), [UP, DOWN], resamples=50).table
    assert mixed["correlation"].tolist() == pytest.approx(found["correlation"].tolist())
    scaled = agreement(rows.assign(u=5 * rows["u"] - 3), [UP, DOWN], resamples=50).table
    pd.testing.assert_frame_equal(scaled, found)
    turned = agreement(rows, [{**UP, "higher_is_better": False}, DOWN], resamples=50).table
    assert turned["correlation"].tolist() == pytest.approx((-found["correlation"]).tolist())
    assert found["low"][0] <= found["correlation"][0] <= found["high"][0]


# ---- images in groups


def test_groups_are_resampled_as_a_whole():
    rows = run(images=40, noise=3.0)
    alone = agreement(rows, [UP, DOWN], resamples=400)
    own = agreement(rows.assign(group=rows["image_id"]), [UP, DOWN], resamples=400)
    pd.testing.assert_frame_equal(own.table, alone.table)
    assert (alone.n_groups, own.n_groups) == (None, 40)
    twins = pd.concat([rows.assign(image_id=rows["image_id"] + f" {copy}", group=rows["image_id"]) for copy in range(4)])
    found = agreement(twins, [UP, DOWN], resamples=400)
    pd.testing.assert_frame_equal(found.table, alone.table)
    assert found.title.endswith("n = 160 in 40 groups, weighted by images; 1: the same order, better with better")
    narrow = agreement(twins.drop(columns="group"), [UP, DOWN], resamples=400).table
    assert narrow["low"][0] > found.table["low"][0], "copies do not make images more certain"


def test_means_can_count_groups():
    rows = run(images=12)
    rows["group"] = np.where(rows["image_id"].astype(int) < 9, "many", "few " + rows["image_id"])
    rows.loc[(rows["image_id"] == "2") & (rows["layer"] == "p3"), "u"] = np.nan
    found = agreement(rows, [UP, DOWN], weights="groups").matrix.loc["u", "d"]
    by_group = rows.groupby(["group", "layer", "method"], sort=False)[["u", "d"]].mean()
    equal = by_group.groupby(["layer", "method"], sort=False).mean()
    assert found == pytest.approx(spearmanr(equal["u"], -equal["d"]).statistic)


def test_three_groups_give_no_interval():
    rows = run(images=12)
    found = agreement(rows.assign(group=(rows["image_id"].astype(int) % 3).astype(str)), [UP, DOWN])
    assert found.table[["low", "high"]].isna().all(axis=None)


# ---- what is left out


def test_control_maps_take_no_part():
    rows = run()
    control = rows[rows["layer"] == "p2"].assign(layer="input", method="random", u=1000.0, d=1000.0)
    scores = Scores(pd.concat([rows, control]), {"metrics": [UP, DOWN], "controls": ["random"]})
    pd.testing.assert_frame_equal(scores.agreement().table, agreement(rows, [UP, DOWN]).table)


def test_means_are_over_the_rows_that_have_a_value():
    rows = run()
    rows.loc[rows["image_id"] == "3", "u"] = np.nan
    rows.loc[(rows["image_id"] == "4") & (rows["layer"] == "p3"), ["u", "d", "status"]] = [np.nan, np.nan, "nan_map"]
    found = agreement(rows, [UP, DOWN])
    expected = spearmanr(means(rows)["u"], -means(rows)["d"]).statistic
    assert found.table.loc[0, "correlation"] == pytest.approx(expected)
    assert found.table.notna().all(axis=None)


def test_a_pair_without_any_value_in_a_metric_is_left_out_for_that_metric():
    rows = run()
    third = {**UP, "name": "f"}
    rows.loc[(rows["layer"] == "p4") & (rows["method"] == "gradcam"), "u"] = np.nan
    found = agreement(rows, [UP, DOWN, third]).matrix
    five = means(rows).dropna()
    assert found.loc["u", "d"] == pytest.approx(spearmanr(five["u"], -five["d"]).statistic)
    every = rows.groupby(["layer", "method"])[["d", "f"]].mean()
    assert found.loc["d", "f"] == pytest.approx(spearmanr(-every["d"], every["f"]).statistic)
    rows.loc[rows["layer"] == "p2", "u"] = np.nan  # three pairs have a value
    few = agreement(rows, [UP, DOWN, third])
    assert np.isnan(few.matrix.loc["u", "d"])
    assert few.table.set_index(["metric", "other"]).loc[("u", "d"), ["low", "high"]].isna().all()


def test_a_metric_that_is_the_same_everywhere_correlates_with_nothing():
    rows = run().assign(u=0.1)
    found = agreement(rows, [UP, DOWN])
    assert np.isnan(found.matrix.loc["u", "d"])
    assert found.matrix.loc["u", "u"] == 1


def test_equal_means_are_ties_whatever_the_order_of_their_images():
    values = [0.1, 0.2, 0.3, 0.7, 1e-3]
    records = [
        {"image_id": str(image), "layer": f"p{place}", "method": "gradcam", "u": value, "d": place}
        for place in range(4)
        for image, value in enumerate(np.roll(values, place))
    ]
    rows = pd.DataFrame(records).assign(status="ok")
    assert np.isnan(agreement(rows, [UP, DOWN]).matrix.loc["u", "d"])


# ---- errors


@pytest.mark.parametrize(
    ("names", "layers", "message"),
    [
        (["u"], 3, r"metrics agree with each other, so it takes at least two that have a direction; got u"),
        (["u", "u"], 3, r"metrics agree with each other, so it takes at least two that have a direction; got u"),
        ([], 3, r"name at least one metric to correlate; known: u, d"),
        (["u", "f"], 3, r"the run has no metric 'f' to correlate; known: u, d"),
        (
            None,
            1,
            r"a rank correlation takes at least 4 pairs of layer and method, without control maps; got 2: score more layers or "
            r"more methods",
        ),
    ],
)
def test_what_cannot_be_correlated_is_refused(names, layers, message):
    rows = run()
    with pytest.raises(MetricError, match=f"^{message}$"):
        agreement(rows[rows["layer"].isin(LAYERS[:layers])], [UP, DOWN, FLAT], names)


def test_a_run_without_rows_that_count_has_no_correlation():
    found = agreement(run().assign(status="nan_map"), [UP, DOWN])
    assert np.isnan(found.matrix.loc["u", "d"])
    assert found.n_images == 0


# ---- the command line and the picture


@pytest.fixture
def folder(tmp_path):
    labels = [{**UP, "label": "up"}, {**DOWN, "label": "down %"}]
    Scores(run().assign(confidence=0.5), {"metrics": labels, "complete": True}).save(tmp_path / "run")
    return tmp_path / "run"


def test_the_command_prints_writes_and_draws(folder, tmp_path, capsys):
    expected = Scores.load(folder).agreement()
    main(["agreement", str(folder), "--out", str(tmp_path / "table.csv")])
    printed = capsys.readouterr().out
    assert "rank correlation of 2 metrics over 6 pairs of layer and method, n = 12" in printed
    assert f"{expected.table['correlation'][0]:+.2f} [{expected.table['low'][0]:+.2f}, +1.00]" in printed
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), expected.table)
    main(["agreement", str(folder), "--out", str(tmp_path / "matrix.png"), "--json"])
    assert json.loads(capsys.readouterr().out)["agreement"] == expected.table.to_dict("records")
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["matrix.xyz", "missing/table.csv"])
def test_a_file_that_cannot_be_written_is_one_line(folder, tmp_path, capsys, name):
    with pytest.raises(SystemExit) as stopped:
        main(["agreement", str(folder), "--out", str(tmp_path / name)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"xaieval-bench: cannot write '{tmp_path / name}': ")


def test_the_picture_has_the_correlations():
    scores = Scores(run(), {"metrics": [UP, {**FLAT, "higher_is_better": True}, DOWN]})
    axes = scores.plot("agreement").axes[0]
    matrix = scores.agreement().matrix.to_numpy()
    assert [text.get_text() for text in axes.texts] == [f"{value:z.2f}" for value in matrix.ravel()]
    np.testing.assert_allclose(axes.collections[0].get_array(), matrix)
    assert axes.figure.get_suptitle() == "6 pairs of layer and method, n = 12"
    two = scores.plot("agreement", metrics=["u", "d"], layers=["p2", "p3"]).axes[0]
    assert [label.get_text() for label in two.get_xticklabels()] == ["u", "d"]


def test_the_text_of_an_agreement_has_its_matrix():
    text = repr(Scores(run(), {"metrics": [UP, DOWN]}).agreement())
    assert text.startswith("rank correlation of 2 metrics over 6 pairs of layer and method, n = 12; 1: the same order, better")
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["u", "d"]
