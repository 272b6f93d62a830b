"""Cross scores as numbers: worked by hand, the parts add up and are symmetric, groups, and what is left out."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from tests.slow_selection import slow_holm
from xaieval.analysis.cross import cross_notes, cross_table, split_differences
from xaieval.analysis.stats.intervals import difference_interval, mean_interval
from xaieval.errors import MetricError

AD = {"name": "ad", "higher_is_better": False, "interval": "mean"}
IC = {"name": "ic", "higher_is_better": True, "interval": "wilson"}
AREA = {"name": "area", "higher_is_better": None, "interval": "mean"}


def rows(cells: dict[tuple[str, str], list[float]], layer: str = "p5", method: str = "gradcam") -> pd.DataFrame:
    """Rows with these drops of the maps of one model on another; an increase wherever the drop is 0."""
    records = [
        {"image_id": f"{image:03d}", "layer": layer, "method": method, "masks_of": masks_of, "model": model, "ad": value}
        | {"ic": 100.0 * (value == 0), "area": 0.5, "status": "ok"}
        for (masks_of, model), values in cells.items()
        for image, value in enumerate(values)
    ]
    return pd.DataFrame(records)


def random_rows(models: str = "ab", images: int = 30, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = list(itertools.product(models, models))
    return rows({cell: np.maximum(rng.normal(20, 15, images), 0).tolist() for cell in names})


def parts(found: pd.DataFrame, metric: str = "ad") -> pd.DataFrame:
    return found.xs(("p5", "gradcam", metric), level=("layer", "method", "metric")).droplevel(["first", "second"])


BY_HAND = {
    ("a", "a"): [10.0, 20, 30, 40],
    ("a", "b"): [4.0, 8, 12, 16],
    ("b", "a"): [20.0, 30, 40, 50],
    ("b", "b"): [6.0, 10, 14, 18],
}


def test_the_table_and_the_parts_are_as_worked_by_hand():
    given_rows = rows(BY_HAND)
    table = cross_table(given_rows, [AD])["mean"]
    assert table.droplevel(["layer", "method", "metric"]).to_dict() == {
        ("a", "a"): 25.0,
        ("a", "b"): 10.0,
        ("b", "a"): 35.0,
        ("b", "b"): 12.0,
    }
    found = parts(split_differences(given_rows, [AD], ["a", "b"]))
    # Maps of a are better by 10 on a and by 2 on b; a drops by 15 more than b with the maps of a, by 23 more with those of b.
    assert found["value"].to_dict() == {"difference": 13.0, "map": -6.0, "model": 19.0}
    assert found["p_value"].tolist() == [0.125, 0.125, 0.125], "2 of 16 sign vectors"
    assert found["p_holm"].tolist() == [0.375] * 3
    assert found["n_images"].tolist() == [4, 4, 4]


def test_intervals_are_those_of_means_and_of_paired_differences():
    given_rows = random_rows()
    values = {cell: part["ad"].to_numpy() for cell, part in given_rows.groupby(["masks_of", "model"])}
    table = cross_table(given_rows, [AD], level=0.9)
    for cell, own in values.items():
        row = table.loc[("p5", "gradcam", "ad", *cell)]
        assert (row["low"], row["high"]) == mean_interval(own, 0.9)
    found = parts(split_differences(given_rows, [AD], ["a", "b"], level=0.9))
    maps = ((values["a", "a"] - values["b", "a"]) + (values["a", "b"] - values["b", "b"])) / 2
    student = ttest_1samp(maps, 0).confidence_interval(0.9)
    assert found.loc["map", ["low", "high"]].tolist() == pytest.approx([student.low, student.high])
    whole = difference_interval(values["a", "a"], values["b", "b"], level=0.9)
    assert found.loc["difference", ["low", "high"]].tolist() == pytest.approx(whole)


def test_a_proportion_has_the_intervals_of_proportions():
    given_rows = random_rows(images=40)
    own, other = (given_rows[(given_rows["masks_of"] == name) & (given_rows["model"] == name)]["ic"] for name in "ab")
    found = parts(split_differences(given_rows, [AD, IC, AREA], ["a", "b"]), "ic")
    assert found.loc["difference", ["low", "high"]].tolist() == pytest.approx(difference_interval(own, other, "wilson"))
    assert found.loc["map", "low"] < found.loc["map", "value"] < found.loc["map", "high"]
    table = cross_table(given_rows, [IC]).loc[("p5", "gradcam", "ic", "a", "a")]
    assert 0 < table["low"] < table["mean"] < table["high"] < 100


# ---- properties


VALUES = st.lists(st.tuples(*[st.floats(0, 100, width=32)] * 4), min_size=1, max_size=12)


@given(VALUES)
@settings(deadline=None, max_examples=60)
def test_the_parts_add_up_and_change_sign_with_the_order_of_the_models(values):
    cells = dict(zip(itertools.product("ab", "ab"), map(list, zip(*values, strict=True)), strict=True))
    found = parts(split_differences(rows(cells), [AD], ["a", "b"], resamples=99))["value"]
    assert found["map"] + found["model"] == pytest.approx(found["difference"], abs=1e-9)
    turned = parts(split_differences(rows(cells), [AD], ["b", "a"], resamples=99))["value"]
    assert turned.tolist() == pytest.approx((-found).tolist(), abs=1e-9)


@given(VALUES)
@settings(deadline=None, max_examples=30)
def test_equal_models_have_no_model_part_and_equal_maps_no_map_part(values):
    one, other, *_ = (list(column) for column in zip(*values, strict=True))
    same_model = rows({("a", "a"): one, ("a", "b"): one, ("b", "a"): other, ("b", "b"): other})
    found = parts(split_differences(same_model, [AD], ["a", "b"], resamples=99))
    assert found.loc["model", ["value", "p_value"]].tolist() == [0, 1]
    assert found.loc["map", "value"] == pytest.approx(found.loc["difference", "value"])
    same_maps = rows({("a", "a"): one, ("b", "a"): one, ("a", "b"): other, ("b", "b"): other})
    assert parts(split_differences(same_maps, [AD], ["a", "b"], resamples=99)).loc["map", ["value", "p_value"]].tolist() == [
        0,
        1,
    ]


def test_three_models_have_three_pairs_and_one_family_of_tests():
    found = split_differences(random_rows("abc"), [AD, IC, AREA], ["a", "b", "c"])
    assert list(dict.fromkeys(found.index.droplevel("part"))) == [
        ("p5", "gradcam", metric, *pair) for metric in ("ad", "ic") for pair in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    assert found["p_holm"].tolist() == pytest.approx(slow_holm(found["p_value"].tolist()))
    two = split_differences(random_rows("abc"), [AD], ["a", "b"])
    assert two["value"].tolist() == pytest.approx(found.loc[("p5", "gradcam", "ad", "a", "b"), "value"].tolist())


# ---- what is left out


def test_only_images_with_every_map_on_every_model_count():
    given_rows = random_rows(images=6)
    given_rows.loc[0, ["ad", "status"]] = [np.nan, "nan_map"]  # of a on a
    given_rows.loc[7, "ad"] = np.nan  # the second image, of a on b: no value in this metric alone
    table = cross_table(given_rows, [AD, IC])
    assert set(table.xs("ad", level="metric")["n_images"]) == {4}
    assert set(table.xs("ic", level="metric")["n_images"]) == {5}
    kept = given_rows[~given_rows["image_id"].isin(["000", "001"])]
    pd.testing.assert_frame_equal(cross_table(kept, [AD]), table.xs("ad", level="metric", drop_level=False))
    found = split_differences(given_rows, [AD], ["a", "b"])
    pd.testing.assert_frame_equal(found, split_differences(kept, [AD], ["a", "b"]))


def test_control_maps_have_cells_and_no_parts():
    control = rows({("center", "a"): [1.0] * 4, ("center", "b"): [2.0] * 4}, "input", "center")
    both = pd.concat([rows(BY_HAND), control])
    table = cross_table(both, [AD])["mean"]
    assert {model: table.loc[("input", "center", "ad", "center", model)] for model in "ab"} == {"a": 1.0, "b": 2.0}
    assert set(split_differences(both, [AD], ["a", "b"]).index.get_level_values("method")) == {"gradcam"}


def test_without_an_image_that_counts_there_are_no_numbers():
    given_rows = random_rows(images=3).assign(status="models_disagree", ad=np.nan)
    assert cross_table(given_rows, [AD])[["mean", "low", "high"]].isna().all(axis=None)
    found = split_differences(given_rows, [AD], ["a", "b"])
    assert found[["value", "low", "high"]].isna().all(axis=None)
    assert found["p_value"].tolist() == [1, 1, 1]
    assert set(found["n_images"]) == {0}


def test_what_does_not_count_is_said():
    given_rows = random_rows(images=4)
    assert cross_notes(given_rows) == []
    given_rows.loc[given_rows["image_id"].isin(["000", "001"]), "status"] = "models_disagree"
    given_rows.loc[given_rows.index[-1], "status"] = "nan_map"
    assert cross_notes(given_rows) == [
        '2 of 4 images do not count, because the models predict different classes on them; target="label" would keep them',
        "1 of 4 images do not count for some map on some model (rows by status: nan_map 1)",
    ]


# ---- groups


def test_groups_widen_intervals_and_tests():
    given_rows = random_rows(images=8)
    copies = [
        given_rows.assign(image_id=given_rows["image_id"] + f" {copy}", group=given_rows["image_id"]) for copy in range(5)
    ]
    many = pd.concat(copies)
    alone, grouped = (split_differences(one, [AD], ["a", "b"]) for one in (given_rows, many))
    assert grouped[["value", "low", "high"]].to_numpy() == pytest.approx(alone[["value", "low", "high"]].to_numpy())
    assert grouped["p_value"].tolist() == pytest.approx(alone["p_value"].tolist())
    assert set(grouped["n_images"]) == {40}
    naive = split_differences(many.drop(columns="group"), [AD], ["a", "b"])
    assert (naive["high"] - naive["low"] < grouped["high"] - grouped["low"]).all()
    table, own = cross_table(many, [AD]), cross_table(given_rows, [AD])
    assert table[["low", "high"]].to_numpy() == pytest.approx(own[["low", "high"]].to_numpy())


def test_means_can_count_groups():
    given_rows = rows(BY_HAND).assign(group=["x", "x", "x", "y"] * 4)
    found = cross_table(given_rows, [AD], weights="groups")["mean"]
    assert found.loc[("p5", "gradcam", "ad", "a", "a")] == (20 + 40) / 2
    parts_by_group = parts(split_differences(given_rows, [AD], ["a", "b"], weights="groups"))["value"]
    assert parts_by_group["map"] + parts_by_group["model"] == pytest.approx(parts_by_group["difference"]) == 30 - 14


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": "aad"}, r"the cross scores have no metric 'aad'; did you mean 'ad'\? known: ad, ic"),
        ({"level": 1.0}, r"the level of an interval is a probability in \(0, 1\), such as 0.95; got 1.0"),
        ({"test": "sign"}, r"no paired test 'sign'; did you mean 'signs'\? known: signs, wilcoxon"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, message):
    with pytest.raises(MetricError, match=f"^{message}$"):
        split_differences(random_rows(), [AD, IC], ["a", "b"], **arguments)
