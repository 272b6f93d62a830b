"""Which layers need attention: on a table like a paper's, against a slow loop over the rule, and by its properties."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_selection import Table, slow_order, slow_selection, slow_tests
from xaieval.analysis import selection
from xaieval.analysis.selection import Selection, select_layers
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores

PROPERTY = settings(deadline=None, max_examples=20)

IC, AD = "increase_in_confidence", "average_drop"
HIGHER = {IC: True, AD: False}
METRICS = [{"name": name, "higher_is_better": higher, "interval": "mean"} for name, higher in HIGHER.items()]


def _rows(table: Table, method: str = "gradcam") -> pd.DataFrame:
    """Rows image by image, and layer by layer within an image."""
    layers = next(iter(table.values()))
    count = len(next(iter(layers.values())))
    return pd.DataFrame(
        {"image_id": f"image {image:03d}", "layer": layer, "method": method, "status": "ok"}
        | {metric: float(values[layer][image]) for metric, values in table.items()}
        for image in range(count)
        for layer in layers
    )


def _scores(rows: pd.DataFrame | Table, seed: int = 0) -> Scores:
    return Scores(rows if isinstance(rows, pd.DataFrame) else _rows(rows), {"metrics": METRICS, "seed": seed})


def _yes(count: int, among: int) -> list[float]:
    return [100.0] * count + [0.0] * (among - count)


def _means(increase: dict[str, int], drop: dict[str, float], among: int = 10) -> Table:
    """Layers with these numbers of increases, and one drop for all images."""
    return {IC: {k: _yes(v, among) for k, v in increase.items()}, AD: {k: [v] * among for k, v in drop.items()}}


def _random(seed: int, images: int, layers: int, spread: int = 0, most: int = 9) -> Table:
    """Integers, so that sums and ties are exact; `spread` separates the layers."""
    rng = np.random.default_rng(seed)
    names = [f"p{number}" for number in range(layers)]
    shift = rng.integers(spread + 1, size=layers)
    return {
        IC: {name: (100.0 * (rng.random(images) < rng.choice([0.1, 0.5, 0.9]))).tolist() for name in names},
        AD: {name: (rng.integers(most, size=images) + shift[i]).astype(float).tolist() for i, name in enumerate(names)},
    }


@pytest.fixture
def paper() -> Table:
    """IC 0, 0, higher, higher and AD large, large, small, small over 40 images; the last two levels are mirror images."""
    few = [float(10 + image % 7) for image in range(40)]
    return {
        IC: {"fpn[p2]": [0.0] * 40, "fpn[p3]": [0.0] * 40, "fpn[p4]": _yes(12, 40), "fpn[p5]": _yes(12, 40)[::-1]},
        AD: {"fpn[p2]": [60 + v for v in few], "fpn[p3]": [50 + v for v in few], "fpn[p4]": few, "fpn[p5]": few[::-1]},
    }


# ---- by hand


def test_on_a_table_like_a_papers_the_two_finest_levels_need_attention(paper):
    actual = _scores(paper).select_layers()
    assert actual == ["fpn[p2]", "fpn[p3]"]
    assert actual
    assert (actual.k, actual.n_images, actual.method, actual.level) == (None, 40, "gradcam", 0.95)
    assert list(actual.ranking.index) == ["fpn[p2]", "fpn[p3]", "fpn[p4]", "fpn[p5]"]
    assert list(actual.ranking["mean_rank"]) == [3.75, 3.25, 1.5, 1.5]
    assert list(actual.ranking[IC]) == [0, 0, 30, 30]
    # Of equally good layers the first is the best. Against it 12 to 0 images give 2 ** -12, three tests a metric and verdict.
    assert set(actual.comparisons["best"]) == {"fpn[p4]"}
    tests = actual.comparisons.set_index(["layer", "best_in", "metric"])
    assert len(tests) == 12
    assert tests.loc[("fpn[p2]", IC, IC), "p_value"] == pytest.approx(2.0**-12, rel=1e-12)
    assert tests.loc[("fpn[p5]", IC, IC), "p_value"] > 0.5
    assert tests.loc[("fpn[p3]", AD, AD), ["value", "best_value"]].to_list() == pytest.approx([62.875, 12.875])


def test_the_reasons_are_as_written_here(paper):
    lines = repr(_scores(paper).select_layers()).split("\n")
    assert lines[0] == "needs attention, worst first: fpn[p2], fpn[p3]"
    assert lines[-1] == "paired by image, n = 40, method gradcam, p corrected by Holm for all pairs of layers, level 0.95"
    # The drops differ by one amount at each level, so all 40 signs are alike. In 2 metrics 4 layers make 24 pairs:
    # 24 * 2 ** -40 and 22 * 2 ** -12.
    assert lines[1:-1] == [
        "  fpn[p2], increase_in_confidence: 0.0, worse than the best, 30.0 at fpn[p4] (p = 0.0054)",
        "  fpn[p3], increase_in_confidence: 0.0, worse than the best, 30.0 at fpn[p4] (p = 0.0054)",
        "  fpn[p2], average_drop: 72.9, worse than the best, 12.9 at fpn[p4] (p = 2.2e-11)",
        "  fpn[p3], average_drop: 62.9, worse than the best, 12.9 at fpn[p4] (p = 2.2e-11)",
    ]


def test_where_no_layer_is_worse_nothing_is_chosen_and_the_reasons_say_so():
    actual = _scores(_random(3, images=10, layers=3)).select_layers()
    assert (list(actual), bool(actual)) == ([], False)
    lines = repr(actual).split("\n")
    assert lines[0] == "no layer is significantly worse than the best"
    assert len(lines) == 2 + 4, "one line for each layer and metric in which it is not worse"
    assert all("not significantly worse than the best" in line and "(p = " in line for line in lines[1:-1])


def test_of_identical_layers_none_is_chosen():
    table = {metric: dict.fromkeys("abcd", values) for metric, values in {IC: _yes(4, 30), AD: [*range(30)]}.items()}
    actual = _scores(table).select_layers()
    assert actual == []
    assert set(actual.comparisons["p_holm"]) == {1.0}
    assert list(actual.ranking["mean_rank"]) == [2.5] * 4


@pytest.fixture
def trade_off() -> Scores:
    """Layer a has few increases and small drops, layer b has many of both."""
    return _scores(_means({"a": 0, "b": 20}, {"a": 10.0, "b": 80.0}, among=20))


def test_a_layer_that_is_worse_in_one_metric_and_better_in_the_other_is_not_chosen(trade_off):
    assert trade_off.select_layers() == []
    assert trade_off.select_layers(by=[IC]) == ["a"]
    assert trade_off.select_layers(by=[AD]) == ["b"]


def test_the_reasons_do_not_say_that_no_layer_is_worse_where_one_is(trade_off):
    reasons = repr(trade_off.select_layers())
    assert "a, increase_in_confidence: 0.0, worse than the best, 100.0 at b" in reasons
    assert "a, average_drop: 10.0, better than the best in increase_in_confidence, 80.0 at b" in reasons
    assert "no layer is significantly worse than the best" not in reasons


def test_being_better_in_the_other_metric_by_chance_does_not_save_a_layer():
    drops = {"a": [10.0, *range(20, 39)], "b": [11.0, *range(20, 39)]}
    assert _scores({IC: {"a": _yes(0, 20), "b": _yes(20, 20)}, AD: drops}).select_layers() == ["a"]


def test_one_metric_decides_alone_where_it_is_asked_for_alone(paper):
    actual = _scores(paper).select_layers(by=[AD])
    assert actual == ["fpn[p2]", "fpn[p3]"]
    assert set(actual.comparisons["verdict"]) == {"worse"}
    assert len(actual.comparisons) == 3
    assert list(actual.ranking) == [AD, "mean_rank"]
    assert _scores(paper).select_layers(by=AD) == actual


def test_the_k_worst_are_in_order_of_their_mean_rank():
    # Ranks by increases a 1, b 2, c 3, by drops a 3, b 1, c 2: means 2, 1.5 and 2.5.
    scores = _scores(_means({"a": 3, "b": 2, "c": 1}, {"a": 90.0, "b": 10.0, "c": 50.0}))
    assert [list(scores.select_layers(k)) for k in (1, 2, 3)] == [["c"], ["c", "a"], ["c", "a", "b"]]
    assert repr(scores.select_layers(2)).startswith("the 2 worst by mean rank, worst first: c, a\n")
    assert scores.select_layers(2).k == 2


def test_equal_mean_ranks_are_told_apart_by_the_metrics_in_their_order():
    scores = _scores(_means({"a": 3, "b": 2}, {"a": 90.0, "b": 10.0}))
    assert list(scores.select_layers(k=2, by=[IC, AD])) == ["b", "a"]
    assert list(scores.select_layers(k=2, by=[AD, IC])) == ["a", "b"]


@pytest.mark.parametrize("names", [["a", "b", "c"], ["c", "a", "b"]])
def test_layers_that_are_equal_in_everything_stay_in_order_of_execution(names):
    scores = _scores(_means(dict.fromkeys(names, 3), dict.fromkeys(names, 50.0)))
    assert list(scores.select_layers(k=3)) == names


def test_equal_means_are_ties_in_whatever_order_the_images_come():
    # 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 for a computer.
    actual = _scores({AD: {"a": [0.3, 0.2, 0.1], "b": [0.1, 0.2, 0.3]}}).select_layers(k=1, by=[AD])
    assert actual.ranking["mean_rank"].to_list() == [1.5, 1.5]
    assert actual == ["a"]


# ---- which rows take part


@pytest.mark.parametrize("status", ["nan_map", "unreadable", "excluded", "constant_map_left_out"])
@pytest.mark.parametrize("value", [np.nan, 1e6])
def test_an_image_takes_part_only_if_its_rows_count_at_every_layer(paper, status, value):
    rows = _rows(paper)
    lost = rows["image_id"].isin(["image 003", "image 017"]) & (rows["layer"] == "fpn[p4]")
    rows.loc[lost, "status"] = status
    rows.loc[lost, [IC, AD]] = value
    actual = _scores(rows).select_layers()
    assert actual.n_images == 38
    assert "n = 38," in repr(actual)
    rest = rows[~rows["image_id"].isin(["image 003", "image 017"])]
    pd.testing.assert_frame_equal(actual.comparisons, _scores(rest).select_layers().comparisons)
    pd.testing.assert_frame_equal(actual.ranking, _scores(rest).select_layers().ranking)


def test_an_image_without_a_row_at_one_layer_is_left_out_too(paper):
    assert _scores(_rows(paper).drop(index=[5, 6, 9])).select_layers().n_images == 38


def test_constant_maps_count(paper):
    rows = _rows(paper)
    rows.loc[rows["layer"] == "fpn[p2]", "status"] = "constant_map"
    actual = _scores(rows).select_layers()
    assert actual == ["fpn[p2]", "fpn[p3]"]
    assert actual.n_images == 40


def test_only_the_rows_of_one_method_decide(paper):
    turned = {metric: dict(zip(layers, reversed(layers.values()), strict=True)) for metric, layers in paper.items()}
    scores = _scores(pd.concat([_rows(paper), _rows(turned, method="layercam")]))
    assert scores.select_layers(method="gradcam") == ["fpn[p2]", "fpn[p3]"]
    assert scores.select_layers(method="layercam") == ["fpn[p5]", "fpn[p4]"]
    assert scores.select_layers(method="layercam").method == "layercam"


def test_a_method_with_one_layer_needs_no_choice(paper):
    control = _rows(paper, method="random").query("layer == 'fpn[p2]'").assign(layer="input")
    assert _scores(pd.concat([control, _rows(paper)])).select_layers() == ["fpn[p2]", "fpn[p3]"]


# ---- the rule, slowly


@pytest.mark.parametrize("seed", range(50))
def test_the_selection_is_that_of_a_slow_loop_over_the_rule(seed):
    rng = np.random.default_rng(seed)
    table = _random(seed, int(rng.integers(2, 11)), int(rng.integers(2, 5)), spread=[0, 4, 12][seed % 3])
    by = [[IC, AD], [AD, IC], [AD], [IC]][seed % 4]
    level = [0.5, 0.8, 0.95][seed % 3]
    chosen = {metric: table[metric] for metric in by}
    actual, order = _scores(table).select_layers(by=by, level=level), slow_order(chosen, HIGHER)
    assert list(actual) == slow_selection(chosen, HIGHER, 1 - level)
    assert list(actual.ranking.index) == list(_scores(table).select_layers(len(order), by)) == order
    keys = actual.comparisons[["layer", "best", "best_in", "metric", "verdict"]].itertuples(index=False, name=None)
    p = actual.comparisons[["p_value", "p_holm"]].itertuples(index=False, name=None)
    expected = slow_tests(chosen, HIGHER)
    assert dict(zip(keys, p, strict=True)) == {key: pytest.approx(pair, abs=1e-12) for key, pair in expected.items()}


# ---- what is promised


@pytest.mark.slow
@PROPERTY
@given(st.integers(0, 20), st.randoms())
def test_the_order_of_the_rows_does_not_matter(seed, random):
    # Except for the first image, whose rows define the order of execution.
    rows = _rows(_random(seed, images=9, layers=3, spread=9))
    order = list(range(3, len(rows)))
    random.shuffle(order)
    actual, expected = (_scores(one).select_layers() for one in (rows.iloc[[0, 1, 2, *order]], rows))
    assert actual == expected
    assert actual.to_dict() == expected.to_dict()


def test_the_order_of_the_rows_does_not_matter_for_signs_that_are_drawn_either():
    rows = _rows(_random(1, images=40, layers=3, most=1000))
    shuffled = pd.concat([rows[:3], rows[3:].sample(frac=1, random_state=0)])
    assert _scores(shuffled).select_layers().to_dict() == _scores(rows).select_layers().to_dict()


@PROPERTY
@given(st.integers(0, 1000), st.integers(0, 2), st.sampled_from([[AD], [AD, IC]]))
def test_a_layer_whose_drops_all_become_larger_is_chosen(seed, which, by):
    table = _random(seed, images=12, layers=3)
    table[IC] = dict.fromkeys(table[IC], table[IC]["p0"])
    table[AD][f"p{which}"] = [value + 20 for value in table[AD][f"p{which}"]]
    assert _scores(table).select_layers(by=by)[0] == f"p{which}"


@pytest.mark.parametrize("seed", range(10))
def test_a_layer_that_is_chosen_stays_chosen_when_it_gets_worse(seed):
    table = _random(seed, images=10, layers=3, spread=3)
    drops, chosen = table[AD]["p1"], []
    for shift in range(-4, 12, 2):
        table[AD]["p1"] = [value + shift for value in drops]
        chosen.append("p1" in _scores(table).select_layers(by=[AD]))
    assert chosen == sorted(chosen)
    assert chosen[-1]


def test_the_seed_of_the_run_decides_about_signs_that_are_drawn():
    rows = _rows(_random(1, images=40, layers=3, most=1000))
    p = [tuple(_scores(rows, seed).select_layers(by=[AD]).comparisons["p_value"]) for seed in (0, 0, 1)]
    assert p[0] == p[1] != p[2]


def _false_positives(monkeypatch: pytest.MonkeyPatch, by: list[str], layers: int) -> float:
    """How often a layer is selected although all differ by chance only, in 200 runs of 30 images."""
    monkeypatch.setattr(
        selection, "sign_flip_p_values", lambda table, _, seed, **given: sign_flip_p_values(table, 999, seed, **given)
    )
    actual, names = 0, [f"p{number}" for number in range(layers)]
    for seed in range(200):
        rng = np.random.default_rng(seed)
        hard = rng.uniform(0, 40, 30)  # what layers have in common at an image
        drops = {name: (hard + rng.gamma(1, 20, 30)).tolist() for name in names}
        increases = {name: (100.0 * (rng.random(30) < 0.3)).tolist() for name in names}
        actual += bool(_scores({IC: increases, AD: drops}).select_layers(by=by))
    return actual / 200


@pytest.mark.slow
@pytest.mark.parametrize(("by", "layers"), [((IC, AD), 4), ((AD,), 4), ((IC,), 4)])
def test_layers_that_differ_by_chance_are_chosen_about_as_rarely_as_the_level_says(monkeypatch, by, layers):
    # At level 0.95 a share of 0.05 is promised; 0.10 is three of its standard errors more.
    assert _false_positives(monkeypatch, list(by), layers) <= 0.10


# ---- a sequence with reasons


def test_a_selection_is_a_sequence_that_equals_a_list(paper):
    actual = _scores(paper).select_layers()
    assert isinstance(actual, Sequence)
    assert len(actual) == 2
    assert (actual[0], actual[-1]) == ("fpn[p2]", "fpn[p3]")
    assert actual[:1] == ["fpn[p2]"]
    assert [*actual] == [*reversed(actual)][::-1] == ["fpn[p2]", "fpn[p3]"]
    assert "fpn[p2]" in actual
    assert "fpn[p5]" not in actual
    assert actual.index("fpn[p3]") == 1
    assert actual == ("fpn[p2]", "fpn[p3]")
    assert actual == _scores(paper).select_layers(k=2)
    for other in (["fpn[p3]", "fpn[p2]"], [], "fpn[p2]", 2, None):
        assert actual != other
    with pytest.raises(IndexError):
        actual[2]
    with pytest.raises(TypeError, match="unhashable"):
        hash(actual)


@pytest.mark.parametrize("k", [None, 1])
def test_a_selection_goes_into_json_and_comes_back(paper, k):
    actual = _scores(paper).select_layers(k)
    plain = actual.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["layers"] == list(actual)
    assert (plain["k"], plain["n_images"], plain["method"], plain["level"]) == (k, 40, "gradcam", 0.95)
    assert plain["reasons"] == repr(actual)
    assert plain["ranking"][0] == {"layer": "fpn[p2]", IC: 0.0, AD: pytest.approx(72.875), "mean_rank": 3.75}
    assert [one["p_holm"] for one in plain["comparisons"]] == actual.comparisons["p_holm"].to_list()


def test_scores_hand_on_their_rows_metrics_and_seed(paper):
    direct = select_layers(_rows(paper), METRICS, None, "ad-ic", None, 0.9, seed=4)
    assert isinstance(direct, Selection)
    assert direct.to_dict() == _scores(paper, seed=4).select_layers(level=0.9).to_dict()


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is at least 1, got 0"),
        ({"k": -1}, "k is at least 1, got -1"),
        ({"k": 5}, "k is between 1 and the number of layers, 4 here; got 5"),
        (
            {"by": ["average_dorp"]},
            "the run has no metric 'average_dorp' to select layers by; did you mean 'average_drop'? "
            "known: increase_in_confidence, average_drop",
        ),
        ({"by": []}, "name at least one metric to select layers by; known: increase_in_confidence, average_drop"),
        ({"method": "x"}, "no method 'x' with at least two layers; methods with several layers: gradcam"),
        ({"level": 1}, "the level of an interval is a probability in (0, 1), such as 0.95; got 1"),
        ({"level": 0.0}, "the level of an interval is a probability in (0, 1), such as 0.95; got 0.0"),
        ({"level": 95}, "the level of an interval is a probability in (0, 1), such as 0.95; got 95"),
    ],
)
def test_what_cannot_be_selected_is_refused_word_for_word(paper, options, message):
    with pytest.raises(MetricError) as error:
        _scores(paper).select_layers(**options)
    assert str(error.value) == message


def test_several_methods_need_a_choice_and_one_layer_is_not_enough(paper):
    both = _scores(pd.concat([_rows(paper), _rows(paper, method="layercam")]))
    with pytest.raises(MetricError, match=r"^choose one by method=; methods with several layers: gradcam, layercam$"):
        both.select_layers()
    alone = _scores(_rows(paper).query("layer == 'fpn[p2]'"))
    with pytest.raises(MetricError, match=r"^choose one by method=; methods with several layers: none$"):
        alone.select_layers()
    with pytest.raises(MetricError, match=r"^no method 'gradcam' with at least two layers; methods with several layers: none$"):
        alone.select_layers(method="gradcam")


@pytest.mark.parametrize("status", ["nan_map", "ok"])
def test_without_an_image_that_counts_everywhere_nothing_can_be_compared(paper, status):
    rows = _rows(paper).reset_index(drop=True)
    if status == "ok":  # each image lacks another layer's row
        rows = rows[rows.index % 4 != (rows.index // 4) % 4]
    with pytest.raises(MetricError, match=r"^no image has rows that count at every layer, so no layers can be compared$"):
        _scores(rows.assign(status=status)).select_layers()
