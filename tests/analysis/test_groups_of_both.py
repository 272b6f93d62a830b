"""Groups in comparisons, summaries, rankings and selections: with the groups of one run, of both, weighted by either."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xaieval import Groups, Scores
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import difference_interval, metric_interval
from xaieval.analysis.stats.paired import holm, paired_p_values
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.analysis.tables import column_means, exact_means, grouping_of
from xaieval.analysis.wins import win_percentages
from xaieval.cli import main
from xaieval.errors import MetricError

AD, IC = "average_drop", "increase_in_confidence"
METRICS = [
    {"name": AD, "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": IC, "higher_is_better": True, "interval": "wilson", "label": "IC %"},
]
PAIRS = [("p2", "gradcam"), ("p5", "gradcam"), ("input", "random")]
PROPERTY = settings(deadline=None, max_examples=15)


def run(
    group: Any = None, shift: float = 0.0, images: int = 40, seed: int = 0, weights: str = "images", **manifest: Any
) -> Scores:
    """A run of two layers and a control; images of one group are alike if there are groups."""
    rng = np.random.default_rng(seed)
    names = [f"i{number:03d}" for number in range(images)]
    pull = np.zeros(images) if group is None else 20 * rng.normal(size=images)[pd.factorize(np.asarray(group))[0]]
    frames = []
    for number, (layer, method) in enumerate(PAIRS):
        drops = np.clip(40 + 12 * number + shift + pull + 8 * rng.normal(size=images), 0, 100)
        frames.append(pd.DataFrame({"image_id": names, "layer": layer, "method": method, AD: drops, IC: 100.0 * (drops < 40)}))
    rows = pd.concat(frames, ignore_index=True).assign(status="ok")
    made = Scores(rows, {"metrics": METRICS, "controls": ["random"], "run": {}, **manifest})
    return made if group is None else made.with_groups(Groups(dict(zip(names, group, strict=True)), weights))


GROUPS = [f"g{number // 4}" for number in range(40)]


def values(scores: Scores, pair: tuple[str, str], metric: str = AD) -> pd.Series:
    rows = scores.rows
    return rows[(rows["layer"] == pair[0]) & (rows["method"] == pair[1])].set_index("image_id")[metric]


# ---- each analysis takes the groups of the rows


@pytest.mark.parametrize("weights", ["images", "groups"])
def test_a_summary_has_intervals_of_groups(weights):
    group = [*GROUPS[:30], *["rest"] * 10]
    scores, together = run(group, weights=weights), Grouping(group, weights)
    table = scores.summary()
    assert table["n_groups"].tolist() == [9, 9, 9]
    assert list(table.columns)[-4:-1] == ["n_images", "n_groups", "n_failed"]
    for pair in PAIRS:
        for metric in METRICS:
            own = values(scores, pair, metric["name"])
            by_group = own.groupby(np.asarray(group)).mean().mean()
            assert table.loc[pair, metric["name"]] == pytest.approx(own.mean() if weights == "images" else by_group)
            ends = table.loc[pair, [f"{metric['name']}_low", f"{metric['name']}_high"]].tolist()
            assert ends == pytest.approx(metric_interval(own, metric["interval"], groups=together))


@pytest.mark.parametrize("weights", ["images", "groups"])
def test_rankings_selections_and_controls_flip_whole_groups(weights):
    scores, together = run(GROUPS, weights=weights), Grouping(GROUPS, weights)
    two, five, control = (values(scores, pair) for pair in PAIRS)
    difference = np.asarray(two - five)[:, None]
    ranking = scores.rank(AD, "layer", method="gradcam")
    assert ranking.pairs["p_value"].tolist() == pytest.approx(paired_p_values(difference, groups=together).tolist())
    ends = ranking.pairs.loc[0, ["low", "high"]].tolist()
    assert ends == pytest.approx(difference_interval(two, five, groups=together))
    assert ranking.grouping is not None
    assert ranking.grouping.count == 10
    assert f"n = 40 in 10 groups, weighted by {weights})" in repr(ranking)
    selection = scores.select_layers(by=[AD])
    worse = selection.comparisons[selection.comparisons["verdict"] == "worse"]
    assert worse["p_value"].tolist() == pytest.approx(sign_flip_p_values(-difference, 9999, groups=together).tolist())
    assert f"n = 40 in 10 groups, weighted by {weights}, method gradcam" in repr(selection)
    assert selection.to_dict()["n_groups"] == 10
    tests = scores.controls_table()
    own = tests[(tests["layer"] == "p2") & (tests["metric"] == AD)].iloc[0]
    flipped = sign_flip_p_values(np.asarray(control - two)[:, None], groups=together)
    assert own["p_value"] == pytest.approx(flipped[0])
    assert own["value"] == pytest.approx(together.mean(two))
    wins = win_percentages(scores.rows, METRICS, AD, weights=weights)
    assert wins.loc[("p2", "gradcam"), "win"] == pytest.approx(100 * together.mean(np.asarray(two < control, dtype=float)))


def test_groups_widen_intervals_of_images_that_are_alike():
    scores = run(GROUPS)
    plain = Scores(scores.rows.drop(columns="group"), scores.manifest)
    wide, narrow = (one.summary() for one in (scores, plain))
    assert (wide[f"{AD}_high"] - wide[f"{AD}_low"] > 1.3 * (narrow[f"{AD}_high"] - narrow[f"{AD}_low"])).all()
    assert wide[AD].tolist() == pytest.approx(narrow[AD].tolist())


def test_means_of_columns_leave_out_what_is_missing():
    table = [[1.0, np.nan], [3.0, np.nan], [8.0, 5.0]]
    together = Grouping(["a", "a", "b"], "groups")
    assert column_means(table, together).tolist() == [5.0, 5.0]
    assert column_means(table, Grouping(["a", "a", "b"])).tolist() == [4.0, 5.0]
    assert exact_means(pd.DataFrame({"x": [1.0, 3.0, 8.0]}), together).tolist() == [5.0]
    assert np.isnan(column_means([[np.nan], [np.nan], [np.nan]], together)).all()


# ---- properties


def numbers(scores: Scores) -> list[Any]:
    """Everything that is computed of a run, as numbers."""
    summary = scores.summary().drop(columns=["beats_controls", "n_groups"], errors="ignore").to_numpy(dtype=float)
    tests = scores.controls_table()[["value", "control_value", "p_value"]].to_numpy(dtype=float)
    ranking = scores.rank(AD, "layer", method="gradcam")
    pairs = ranking.pairs.drop(columns=["better", "worse"]).to_numpy(dtype=float)
    wins = win_percentages(scores.rows, METRICS, AD, weights=scores.group_weights).to_numpy(dtype=float)
    return [*summary.ravel(), *tests.ravel(), *pairs.ravel(), *wins.ravel()]


@PROPERTY
@given(seed=st.integers(0, 99), weights=st.sampled_from(["images", "groups"]))
def test_the_order_of_images_and_the_names_of_groups_change_nothing(seed, weights):
    rng = np.random.default_rng(seed)
    group = [f"g{number}" for number in rng.integers(6, size=12)]
    first = run(group, images=12, seed=seed, weights=weights)  # so few that tests go through all signs
    rows = first.rows.assign(group=first.rows["group"].map(lambda name: f"new {name}"))
    order = [number * 12 + image for number in range(3) for image in rng.permutation(12)]
    second = Scores(rows.iloc[order].reset_index(drop=True), first.manifest)
    assert numbers(second) == pytest.approx(numbers(first), nan_ok=True)


@PROPERTY
@given(seed=st.integers(0, 99), weights=st.sampled_from(["images", "groups"]))
def test_groups_of_one_image_are_no_groups(seed, weights):
    plain = run(images=30, seed=seed)
    single = plain.with_groups(Groups("(.*)", weights))
    assert single.summary()["n_groups"].tolist() == [30, 30, 30]
    assert numbers(single) == pytest.approx(numbers(plain), nan_ok=True, abs=1e-9)
    assert "groups_of_one" in [finding.name for finding in single.findings()]


@PROPERTY
@given(seed=st.integers(0, 99), times=st.integers(2, 4))
def test_images_that_come_again_in_their_group_add_nothing(seed, times):
    first = run(GROUPS, seed=seed, weights="groups")
    copies = [first.rows.assign(image_id=first.rows["image_id"] + f" copy {copy}") for copy in range(times)]
    more = Scores(pd.concat(copies, ignore_index=True), first.manifest)
    columns = [AD, f"{AD}_low", f"{AD}_high"]
    assert more.summary()[columns].to_numpy() == pytest.approx(first.summary()[columns].to_numpy())
    two, five = (first.compare(run(GROUPS, 5.0, seed=seed + 1, weights="groups")) for _ in range(2))
    assert two.equals(five)


# ---- comparisons


@pytest.mark.parametrize("weights", ["images", "groups"])
def test_a_comparison_takes_the_groups_of_both_runs(weights):
    one, other, together = run(GROUPS, weights=weights), run(GROUPS, 4.0, seed=1, weights=weights), Grouping(GROUPS, weights)
    table = one.compare(other)
    assert table.attrs["notes"][:2] == [
        "40 images, 2 layers and 2 methods took part; left out: nothing",
        f"the images are in 10 groups, weighted by {weights}",
    ]
    assert table["n_groups"].tolist() == [10] * len(table)
    differences = np.stack([values(one, key[:2], key[2]) - values(other, key[:2], key[2]) for key in table.index], axis=1)
    draws = max(9999, int(10 * len(table) / 0.05))
    p_values = paired_p_values(differences, resamples=draws, groups=together)
    assert table["p_value"].tolist() == pytest.approx(p_values.tolist())
    assert table["p_holm"].tolist() == pytest.approx(holm(p_values))
    row = table.loc[("p2", "gradcam", AD)]
    two = values(one, PAIRS[0]), values(other, PAIRS[0])
    assert (row["low"], row["high"]) == pytest.approx(difference_interval(*two, groups=together))
    assert row["difference"] == pytest.approx(together.mean(two[0] - two[1]))


def test_groups_of_one_run_are_used_for_both_with_a_note():
    grouped, plain = run(GROUPS, weights="groups"), run(seed=1)
    first, second = grouped.compare(plain), plain.compare(grouped)
    assert first.attrs["notes"][1:3] == [
        "the images are in 10 groups, weighted by groups",
        "the other has no groups, so those of this run are used for both",
    ]
    assert second.attrs["notes"][2] == "this run has no groups, so those of the other are used for both"
    assert first["difference"].tolist() == pytest.approx((-second["difference"]).tolist())
    assert first["n_groups"].tolist() == [10] * len(first)


def test_names_of_groups_may_differ_between_runs_but_not_the_groups():
    one = run(GROUPS)
    renamed = run([f"place {name}" for name in GROUPS], seed=1)
    assert one.compare(renamed)["n_groups"].tolist() == [10] * 6
    other = run([*GROUPS[:1], "alone", *GROUPS[2:]], seed=1)
    with pytest.raises(MetricError) as caught:
        one.compare(other)
    assert str(caught.value) == (
        "the runs have their images in different groups: 'i000' and 'i001' are together in this run, but not in the other; "
        "give both runs the same groups, as in scores.with_groups(...)"
    )
    with pytest.raises(MetricError, match="'i000' and 'i001' are together in the other, but not in this run"):
        other.compare(one)


def test_runs_that_weight_their_means_differently_are_not_compared():
    with pytest.raises(MetricError) as caught:
        run(GROUPS).compare(run(GROUPS, seed=1, weights="groups"))
    assert str(caught.value) == (
        "means are weighted by images in this run and by groups in the other; give both the same weights, as in "
        'scores.with_groups(xaieval.Groups(weights="images"))'
    )


# ---- too few groups, and missing ones


def test_a_single_group_has_no_intervals_with_the_reason():
    scores = run(["all"] * 40)
    table = scores.summary()
    assert table[[f"{AD}_low", f"{AD}_high", f"{IC}_low", f"{IC}_high"]].isna().all(axis=None)
    why = "no interval: a mean takes at least 4 groups, and at least 59 if their means are all equal; here is 1 group"
    assert repr(scores).endswith(why)
    assert repr(scores).startswith("Scores of 40 images in 1 group, weighted by images")
    assert why in repr(scores.rank(AD, "layer", method="gradcam"))
    assert scores.compare(run(["all"] * 40, seed=1)).attrs["notes"][-1] == why
    assert "one_group" in [finding.name for finding in scores.findings()]
    assert (scores.controls_table()["p_value"] >= 0.5).all()
    for kind in ("tradeoff", "heatmap", "spread", "ranking"):
        scores.plot(kind, methods=["gradcam"])


def test_images_without_a_group_are_refused_word_for_word():
    rows = run(GROUPS).rows
    rows.loc[rows["image_id"] == "i003", "group"] = None
    with pytest.raises(MetricError) as caught:
        grouping_of(rows, ["i001", "i003"])
    assert str(caught.value) == (
        "1 of 2 images have no group, such as 'i003'; give every image one, as Scores.with_groups does, or remove the column "
        "'group'"
    )
    with pytest.raises(MetricError, match="have no group, such as 'i003'"):
        Scores(rows, {"metrics": METRICS}).summary()


def test_classes_with_a_single_group_are_drawn_without_an_interval():
    scores = run(GROUPS)
    label = pd.array([int(name[1:]) // 5 if int(name[1:]) < 9 else 9 for name in scores.rows["group"]], dtype="Int64")
    figure = Scores(scores.rows.assign(label=label), scores.manifest).plot("classes")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "class 0, n = 20",
        "class 1, n = 16",
        "class 9, n = 4",
    ]


# ---- with_groups, and the command line


def test_groups_can_be_given_to_a_finished_run():
    plain = run()
    names = {f"i{number:03d}": group for number, group in enumerate(GROUPS)}
    scores = plain.with_groups(names)
    assert scores.manifest["groups"] == {"by": "mapping", "weights": "images", "count": 10}
    assert list(scores.rows.columns[:4]) == ["image_id", "layer", "method", "group"]
    assert "group" not in plain.rows
    assert "groups" not in plain.manifest
    again = scores.with_groups(Groups(weights="groups"))
    assert again.manifest["groups"] == {"by": "mapping", "weights": "groups", "count": 10}
    assert again.rows.equals(scores.rows)
    assert plain.with_groups(None) is plain
    other = scores.with_groups("i(..)")
    assert other.manifest["groups"] == {"by": "i(..)", "weights": "images", "count": 4}


def test_the_command_line_compares_and_reports_by_group(tmp_path, capsys):
    for name, shift in (("one", 0.0), ("two", 3.0)):
        run(shift=shift, seed=int(shift)).save(tmp_path / name)
    folders = [str(tmp_path / name) for name in ("one", "two")]
    main(["compare", *folders, "--groups", "i(..)", "--group-weights", "groups"])
    assert "note: the images are in 4 groups, weighted by groups" in capsys.readouterr().out
    main(["report", *folders, "--groups", "i(..)", "--no-maps"])
    page = (tmp_path / "one" / "report.html").read_text()
    assert '<span class="note">in 4 groups, weighted by images</span>' in page
    assert "the images are in 4 groups, weighted by images" in page
    for arguments in (["--groups", "x"], ["--groups", str(tmp_path / "no.csv")], ["--group-weights", "groups"]):
        with pytest.raises(SystemExit) as caught:
            main(["compare", *folders, *arguments])
        assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_figures_of_runs_in_groups_can_be_drawn():
    scores = run(GROUPS, weights="groups")
    curves = [np.linspace(1, value / 100, 5) for value in scores.rows[AD]]
    scores = Scores(scores.rows.assign(average_drop_curve=curves), scores.manifest)
    for kind in ("tradeoff", "heatmap", "curves", "spread", "ranking"):
        figure = scores.plot(kind, methods=["gradcam"])
        assert figure.axes
    assert math.isfinite(scores.summary()[f"{AD}_low"].iloc[0])
