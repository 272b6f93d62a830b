"""Rankings: worked by hand, against slow loops, the letters, the stability of the order, and the figure."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_selection import slow_holm
from xaieval.analysis.ranking import group_letters
from xaieval.analysis.stats.paired import paired_p_values
from xaieval.analysis.stats.power import images_needed
from xaieval.cli.tables import print_rankings
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores
from xaieval.report import ranking_figure

PROPERTY = settings(deadline=None, max_examples=60)

AD, IC = "average_drop", "increase_in_confidence"
METRICS = [
    {"name": AD, "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": IC, "higher_is_better": True, "interval": "wilson", "label": "IC %"},
    {"name": "area", "higher_is_better": None, "interval": "mean"},
]


def scores(drops: dict[tuple[str, str], list[float]], increases: dict[tuple[str, str], list[float]] | None = None) -> Scores:
    rows = pd.DataFrame(
        {"image_id": f"image {image}", "layer": layer, "method": method, "status": "ok", AD: value}
        | {IC: (increases or {}).get((layer, method), [0.0] * len(values))[image], "area": 0.5}
        for (layer, method), values in drops.items()
        for image, value in enumerate(values)
    )
    return Scores(rows, {"metrics": METRICS, "seed": 0})


def layers(**drops: list[float]) -> Scores:
    return scores({(name, "gradcam"): values for name, values in drops.items()})


def random_layers(images: int = 40, shifts: tuple[float, ...] = (0, 0.5, 6, 20), seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    shared = rng.gamma(2, 10, images)
    return layers(**{f"p{n}": (shared + shift + rng.normal(0, 4, images)).tolist() for n, shift in enumerate(shifts)})


@pytest.fixture
def three() -> Scores:
    """p5 and p4 hardly differ, p2 is much worse than both."""
    few = [float(image % 7) for image in range(30)]
    return layers(p2=[60 + value for value in few], p4=[value + 1 - 2.01 * (n % 2) for n, value in enumerate(few)], p5=few)


# ---- by hand


def test_what_cannot_be_told_apart_shares_a_letter(three):
    ranking = three.rank(AD)
    assert list(ranking.table.index) == ["p4", "p5", "p2"]
    assert list(ranking.table["letters"]) == ["a", "a", "b"]
    assert ranking.groups == [["p4", "p5"], ["p2"]]
    assert (ranking.fixed, ranking.n_images, ranking.level, ranking.over) == ("gradcam", 30, 0.95, "layer")
    assert list(ranking.table["rank_low"]) == [1, 1, 3]
    assert list(ranking.table["rank_high"]) == [2, 2, 3]
    assert ranking.table["first"].sum() == 1
    assert ranking.table.loc["p2", "first"] == 0
    assert ranking.table.loc["p2", ["p_next", "images_needed"]].isna().all()
    assert ranking.line == "AD %: p4 a, p5 a, p2 b"
    assert ranking.too_small.startswith("too few images (30) to separate all: p4 and p5 need about ")


def test_a_ranking_says_what_it_is_in_words(three):
    lines = repr(three.rank(AD)).split("\n")
    assert lines[0] == "average_drop, lower is better (method gradcam), best first"
    assert lines[3] == "  p2  62.83 [62.07, 63.62]  b  first in 0%, rank 3 to 3"
    assert lines[4] == "a letter in common: cannot be told apart (3 paired tests, corrected by Holm, level 0.95, n = 30)"
    assert lines[5] == three.rank(AD).too_small


def test_where_all_are_told_apart_no_more_images_are_asked_for():
    ranking = layers(p2=[50.0, 60, 70] * 10, p5=[10.0, 20, 30] * 10).rank(AD)
    assert list(ranking.table["letters"]) == ["a", "b"]
    assert ranking.too_small == ""
    assert ranking.pairs.loc[0, ["better", "worse", "difference"]].tolist() == ["p5", "p2", -40.0]


def test_higher_is_better_turns_the_order_around_and_mcnemar_tests_it():
    keys = [("p2", "gradcam"), ("p5", "gradcam")]
    increases = {keys[0]: [0.0] * 20, keys[1]: [100.0] * 8 + [0.0] * 12}
    ranking = scores(dict.fromkeys(keys, [1.0] * 20), increases).rank(IC)
    assert list(ranking.table.index) == ["p5", "p2"]
    assert ranking.pairs.loc[0, "p_value"] == pytest.approx(2 / 2**8)
    assert ranking.table.loc["p5", ["mean", "low", "high"]].tolist() == pytest.approx([40, 21.88, 61.34], abs=0.01)


def test_identical_layers_are_first_by_lot():
    ranking = layers(a=[1.0, 2, 4], b=[1.0, 2, 4], c=[9.0, 9, 9]).rank(AD, resamples=4000)
    assert list(ranking.table.index) == ["a", "b", "c"]
    assert ranking.table["first"].tolist() == pytest.approx([0.5, 0.5, 0], abs=0.04)
    assert "a and b have the same mean" in ranking.too_small


# ---- by slow loops


@pytest.mark.parametrize("test", ["signs", "wilcoxon"])
def test_the_pairs_are_those_of_a_slow_loop(test):
    ranking = random_layers().rank(AD, test=test)
    table = random_layers().rows.pivot_table(index="image_id", columns="layer", values=AD)
    order = sorted(table.columns, key=lambda name: table[name].mean())
    assert list(ranking.table.index) == order
    pairs = list(itertools.combinations(order, 2))
    assert list(zip(ranking.pairs["better"], ranking.pairs["worse"], strict=True)) == pairs
    for row, (one, other) in zip(ranking.pairs.to_dict("records"), pairs, strict=True):
        differences = (table[one] - table[other]).to_numpy()
        assert row["difference"] == pytest.approx(differences.mean())
        assert row["low"] <= row["difference"] <= row["high"]
        alone = paired_p_values(differences[:, None], test, 20_000)[0]
        assert row["p_value"] == pytest.approx(alone, abs=0.015)
        assert row["images_needed"] == images_needed(differences, 0.05 / 6)
    assert ranking.pairs["p_holm"].tolist() == pytest.approx(slow_holm(list(ranking.pairs["p_value"])))


def test_the_distribution_of_ranks_is_that_of_a_slow_loop():
    actual = random_layers(12, (0, 1, 2)).rank(AD, resamples=4000)
    table = random_layers(12, (0, 1, 2)).rows.pivot_table(index="image_id", columns="layer", values=AD)[
        list(actual.table.index)
    ]
    rng = np.random.default_rng(5)
    counts, values = np.zeros((3, 3)), table.to_numpy()
    for _ in range(2000):
        means = values[[int(rng.integers(12)) for _ in range(12)]].mean(axis=0)
        for rank, item in enumerate(sorted(range(3), key=lambda number: means[number])):
            counts[item, rank] += 1
    np.testing.assert_allclose(actual.ranks.to_numpy(), counts / 2000, atol=0.04)
    np.testing.assert_allclose(actual.ranks.sum(axis=0), 1)
    np.testing.assert_allclose(actual.ranks.sum(axis=1), 1)
    assert actual.table["first"].tolist() == actual.ranks[1].tolist()


graphs = st.integers(1, 7).flatmap(
    lambda size: st.lists(st.booleans(), min_size=size * size, max_size=size * size).map(
        lambda bits: np.triu(np.array(bits).reshape(size, size), 1)
    )
)


@PROPERTY
@given(graphs)
def test_two_items_share_a_letter_if_and_only_if_they_are_not_told_apart(upper):
    apart = upper | upper.T
    letters = group_letters(apart)
    assert all(letters)
    for one, other in itertools.combinations(range(len(apart)), 2):
        assert bool(set(letters[one]) & set(letters[other])) == (not apart[one, other])
    # No letter that could be left out because another one stands for all of its items.
    groups = [{item for item, own in enumerate(letters) if letter in own} for letter in sorted(set("".join(letters)))]
    assert not any(one < other for one, other in itertools.permutations(groups, 2))


def test_letters_go_in_the_order_of_the_items():
    apart = ~np.eye(4, dtype=bool)
    assert group_letters(apart) == ["a", "b", "c", "d"]
    apart[1, 2] = apart[2, 1] = False
    assert group_letters(apart) == ["a", "b", "b", "c"]


def test_one_group_cannot_tell_how_many_images_it_takes(three):
    unknown = "need an unknown number, since there is one image or group"
    assert three.with_groups(dict.fromkeys(three.rows["image_id"], "a")).rank(AD).too_small == (
        f"too few images (30 in 1 group) to separate all: p4 and p5 {unknown}; p5 and p2 {unknown}"
    )


def test_more_groups_than_letters_are_refused():
    # Items in pairs that differ only within the pair: each choice of one item a pair is a group.
    apart = np.kron(np.eye(6, dtype=bool), np.array([[False, True], [True, False]]))
    with pytest.raises(MetricError, match="64 groups overlap, more than the 52 letters; rank fewer layers or methods"):
        group_letters(apart)


# ---- what is ranked


@pytest.fixture
def many() -> Scores:
    rng = np.random.default_rng(0)
    keys = [("p2", "gradcam"), ("p5", "gradcam"), ("p2", "layercam"), ("p5", "layercam"), ("input", "random")]
    return scores({key: rng.uniform(0, 100, 20).tolist() for key in keys})


def test_methods_at_a_layer_stand_beside_those_without_a_layer(many):
    ranking = many.rank(AD, over="method", layer="p5")
    assert set(ranking.table.index) == {"gradcam", "layercam", "random"}
    assert ranking.fixed == "p5"
    assert ranking.table.loc["random", "layer"] == "input"


def test_pairs_of_both_are_named_by_both(many):
    ranking = many.rank(AD, over="both")
    assert set(ranking.table.index) == {"p2 gradcam", "p5 gradcam", "p2 layercam", "p5 layercam", "input random"}
    assert set(many.rank(AD, over="both", layer="p2").table.index) == {"p2 gradcam", "p2 layercam"}
    assert set(many.rank(AD, method="layercam").table.index) == {"p2", "p5"}


def test_only_images_that_count_everywhere_take_part(three):
    three.rows.loc[0, "status"], three.rows.loc[0, AD] = "nan_map", math.nan
    three.rows.loc[31, AD] = math.nan
    assert three.rank(AD).n_images == 28


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "area"}, "the run has no metric 'area' to rank by; .*known: average_drop, increase_in_confidence"),
        ({"by": "average_dorp"}, "no metric 'average_dorp' to rank by; did you mean 'average_drop'"),
        ({"over": "image"}, "no ranking over 'image'; known: layer, method, both"),
        ({"over": "layer"}, "choose one by method=; methods with several layers: gradcam, layercam"),
        ({"over": "method"}, "choose one by layer=; layers: p2, p5"),
        ({"over": "method", "layer": "p3"}, "no layer 'p3'; layers: p2, p5"),
        ({"over": "layer", "layer": "p2"}, "over='layer' ranks all layers, so it takes no layer=; got layer='p2'"),
        ({"over": "both", "layer": "p2", "method": "gradcam"}, "a ranking takes at least two pairs; got p2 gradcam"),
        ({"over": "both", "layer": "p9"}, "no image has rows that count at every pair"),
        ({"over": "both", "test": "t"}, "no paired test 't'"),
        ({"over": "both", "level": 95}, "the level of an interval is a probability"),
    ],
)
def test_what_cannot_be_ranked_is_refused(many, arguments, message):
    with pytest.raises(MetricError, match=message):
        many.rank(**arguments)


@pytest.mark.slow
def test_a_false_difference_is_found_as_rarely_as_the_level_says():
    # 60 runs of three layers that are alike but for chance: the standard error of 10 % is 3.9 percentage points.
    actual = [len(random_layers(25, (0, 0, 0), seed).rank(AD, level=0.9, resamples=2).groups) > 1 for seed in range(60)]
    assert np.mean(actual) <= 0.2


def test_the_same_seed_gives_the_same_ranking():
    one, two = random_layers().rank(AD), random_layers().rank(AD)
    pd.testing.assert_frame_equal(one.table, two.table)
    pd.testing.assert_frame_equal(one.pairs, two.pairs)


# ---- shown


def test_the_figure_shows_every_item_and_a_bar_for_every_group(three, tmp_path):
    figure = ranking_figure(three.rank(AD))
    means, groups = figure.axes
    assert [label.get_text() for label in means.get_yticklabels()] == ["p4", "p5", "p2"]
    [bar] = groups.get_lines()
    assert list(bar.get_ydata()) == [0, 1]
    assert means.get_ylim()[0] > means.get_ylim()[1], "best at the top"
    assert "lower is better" in means.get_xlabel()
    figure.savefig(tmp_path / "ranking.png")
    assert (tmp_path / "ranking.png").stat().st_size > 5000


def test_the_command_line_prints_a_line_a_metric(three, many, capsys):
    print_rankings(three, 0.95)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "best first; items that share a letter cannot be told apart at 95%"
    assert lines[1].startswith("  AD %: p4 a, p5 a, p2 b; too few images (30) to separate all: p4 and p5 need about ")
    assert lines[2].startswith("  IC %: ")
    assert len(lines) == 3, "none for what only describes a map"
    print_rankings(many, 0.95)
    assert "input random" in capsys.readouterr().out
    print_rankings(layers(p5=[1.0, 2.0]), 0.95)
    assert capsys.readouterr().out == "", "nothing to put in order"
