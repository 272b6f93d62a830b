"""Early stopping: worked by hand, against a slow loop over the definition, and by how often the order is wrong."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluation.bets import largest_capital
from xaieval.analysis.stats.sequential import SignTest
from xaieval.errors import ConfigError, MetricError
from xaieval.evaluation.early_stopping import Stop, Stopping, certain, resolve_stop

PROPERTY = settings(deadline=None, max_examples=20)

AD, IC = "average_drop", "increase_in_confidence"
HIGHER = {AD: False, IC: True}
LAYERS = ["p2", "p3", "p4", "p5"]


def _pairs(layers: Sequence[str], *methods: str) -> list[tuple[str, str]]:
    return [(layer, method) for method in methods or ("gradcam",) for layer in layers]


def _rows(table: dict[str, Sequence[float]], method: str = "gradcam", first: int = 0, metric: str = AD) -> pd.DataFrame:
    """Rows image by image, of values by layer; NaN is a map that failed."""
    return pd.DataFrame(
        {"image_id": f"image {first + number}", "layer": layer, "method": method, metric: value}
        | {"status": "nan_map" if math.isnan(value) else "ok"}
        for number, values in enumerate(zip(*table.values(), strict=True))
        for layer, value in zip(table, values, strict=True)
    )


def _batches(rows: pd.DataFrame, size: int) -> list[pd.DataFrame]:
    ids = rows["image_id"].unique()
    return [rows[rows["image_id"].isin(ids[start : start + size])] for start in range(0, len(ids), size)]


def _after(rows: pd.DataFrame, stop: Stop, population: int, pairs: list[tuple[str, str]] | None = None) -> Stopping:
    pairs = pairs or list(dict.fromkeys(zip(rows["layer"], rows["method"], strict=True)))
    stopping = Stopping(stop, population, pairs, HIGHER)
    stopping.add(rows)
    return stopping


def _random(seed: int, images: int, layers: int, methods: Sequence[str] = ("gradcam",), missing: float = 0.1) -> pd.DataFrame:
    """Multiples of 25, so that some values tie, of layers with different means; some maps failed."""
    rng = np.random.default_rng(seed)
    parts = []
    for method in methods:
        chances = rng.permutation(np.linspace(0.1, 0.9, layers))
        table = {LAYERS[i]: 25.0 * rng.binomial(4, chance, images) for i, chance in enumerate(chances)}
        parts.append(_rows({k: np.where(rng.random(images) < missing, np.nan, v) for k, v in table.items()}, method))
    together = pd.concat(parts)
    together["number"] = together["image_id"].str.split().str[1].astype(int)
    return together.sort_values("number", kind="stable").drop(columns="number").reset_index(drop=True)


# ---- a slow loop


def _slow(rows: pd.DataFrame, stop: Stop, population: int) -> bool:
    """By the definition: all comparisons of some order (or set) are certain at their share of the error."""
    seen = rows["image_id"].nunique()
    if seen == population:
        return True
    settled, share = [], stop.error / sum(group["layer"].nunique() - 1 for _, group in rows.groupby("method"))
    for _, group in rows.groupby("method"):
        values: dict[str, list[float]] = {layer: [] for layer in group["layer"].unique()}
        for _, image in group.groupby("image_id", sort=False):
            by = {row["layer"]: row[stop.by] for row in image.to_dict("records") if row["status"] in ("ok", "constant_map")}
            for layer, actual in values.items():
                actual.append(by[layer] / 100 * (1 if HIGHER[stop.by] else -1) if len(by) == len(values) else 0.0)
        ahead = {
            (a, b): 1 / largest_capital([x - y for x, y in zip(values[a], values[b], strict=True)], population) <= share
            for a, b in itertools.permutations(values, 2)
        }
        if stop.rule == "ranking":
            candidates = [list(itertools.combinations(order, 2)) for order in itertools.permutations(values)]
        else:
            sets = [set(chosen) for chosen in itertools.combinations(values, stop.k or 1)]
            candidates = [[(a, b) for a in chosen for b in values if b not in chosen] for chosen in sets]
            if stop.rule == "worst":
                candidates = [[(b, a) for a, b in chosen] for chosen in candidates]
        settled.append(any(all(ahead[pair] for pair in candidate) for candidate in candidates))
    return seen >= stop.min_images and all(settled)


@PROPERTY
@given(
    st.integers(0, 10_000),
    st.integers(2, 40),
    st.integers(2, 4),
    st.sampled_from([("gradcam",), ("gradcam", "layercam")]),
    st.sampled_from(["ranking", "best", "worst"]),
    st.sampled_from([AD, IC]),
    st.integers(0, 400),
)
def test_the_decision_is_that_of_the_slow_loop(seed, images, layers, methods, rule, by, more):
    rows = _random(seed, images, layers, methods).rename(columns={AD: by})
    k = None if rule == "ranking" else 1 + seed % (layers - 1)
    stop = Stop(rule=rule, k=k, by=by, error=0.2, min_images=10)
    assert _after(rows, stop, images + more).decided == _slow(rows, stop, images + more)


def test_the_slow_loop_sees_runs_of_both_kinds():
    stop = Stop(error=0.2, min_images=10)
    actual = [_slow(_random(seed, 24, 4), stop, 400) for seed in range(8)]
    assert 0 < sum(actual) < 8


# ---- which signs settle an order


def _antisymmetric(values: list[int], layers: int) -> np.ndarray:
    signs = np.zeros((layers, layers), dtype=np.int64)
    signs[np.triu_indices(layers, 1)] = values[: layers * (layers - 1) // 2]
    return signs - signs.T


@PROPERTY
@given(st.lists(st.integers(-1, 1) | st.just(1), min_size=6, max_size=6), st.integers(2, 4))
def test_signs_settle_an_order_or_a_set_if_there_is_one_that_agrees_with_them(values, layers):
    signs = _antisymmetric(values, layers)
    places = range(layers)
    orders = [p for p in itertools.permutations(places) if all(signs[a, b] == 1 for a, b in itertools.combinations(p, 2))]
    assert bool(certain(signs)) == bool(orders)
    for k in range(1, layers):
        for rule, sign in (("best", 1), ("worst", -1)):
            sets = [
                chosen
                for chosen in itertools.combinations(places, k)
                if all(signs[a, b] == sign for a in chosen for b in places if b not in chosen)
            ]
            assert bool(certain(signs, rule, k)) == bool(sets)
            assert len(sets) <= 1


@PROPERTY
@given(st.lists(st.lists(st.integers(-1, 1), min_size=6, max_size=6), min_size=1, max_size=5))
def test_many_signs_are_settled_as_each_alone(many):
    signs = np.stack([_antisymmetric(values, 4) for values in many])
    for rule, k in (("ranking", 1), ("best", 2), ("worst", 1)):
        assert certain(signs, rule, k).tolist() == [bool(certain(one, rule, k)) for one in signs]


def test_signs_in_a_circle_settle_nothing():
    circle = _antisymmetric([1, -1, 1], 3)
    assert not certain(circle)
    assert not certain(circle, "best", 1)
    assert not certain(circle, "worst", 2)


# ---- by hand


def test_two_layers_that_differ_by_everything_are_decided_by_five_images():
    # The first image stakes nothing. Then (n differences of 1 seen, N = 1000) the stake is 0.9 / (1 - n / (1000 - n)), and the
    # capital grows by a bit more than 1.9 a time: above 1 / 0.05 after five times.
    stop = Stop(min_images=1)
    for images in range(1, 8):
        stopping = _after(_rows({"p2": [0.0] * images, "p3": [100.0] * images}), stop, 1000)
        assert stopping.decided == (images >= 6)
        assert stopping.orders() == {"gradcam": ["p2", "p3"]}


def test_a_run_of_three_layers_shares_the_error_by_two():
    # 1.9**6 is 47 and more than 2 / 0.05, 1.9**5 is not.
    stop = Stop(min_images=1)
    decided = [_after(_rows({"p2": [0] * n, "p3": [50] * n, "p4": [100] * n}), stop, 10**6).decided for n in range(1, 20)]
    wide = [_after(_rows({"p2": [0] * n, "p3": [100] * n}), stop, 10**6).decided for n in range(1, 20)]
    assert wide.index(True) == 5
    assert decided.index(True) > 6
    two = [
        _after(_rows({"p2": [0] * n, "p3": [100] * n, "p4": [100] * n}), Stop(rule="best", min_images=1), 10**6).decided
        for n in range(1, 9)
    ]
    assert two.index(True) == 6


def test_before_min_images_nothing_is_decided_and_at_max_images_the_run_is_finished():
    rows = _rows({"p2": [0.0] * 30, "p3": [100.0] * 30})
    assert not _after(rows, Stop(min_images=31), 1000).decided
    assert _after(rows, Stop(min_images=30), 1000).decided
    tied = _rows({"p2": [50.0] * 30, "p3": [50.0] * 30})
    stopping = _after(tied, Stop(min_images=5, max_images=30), 1000)
    assert (stopping.decided, stopping.finished) == (False, True)
    assert not _after(tied, Stop(min_images=5, max_images=31), 1000).finished


def test_at_the_end_everything_is_known_ties_too_and_layers_that_tie_keep_their_order():
    stopping = _after(_rows({"p2": [10, 90, 30], "p3": [30, 10, 90], "p4": [5, 5, 5]}), Stop(), 3)
    assert stopping.decided
    assert stopping.finished
    assert stopping.orders() == {"gradcam": ["p4", "p2", "p3"]}
    assert stopping.undecided() == []
    assert stopping.reason() == "the order of 3 layers by average_drop is known: all 3 images were seen"


def test_higher_is_better_turns_the_order_around():
    table = {"p2": [0.0] * 20, "p3": [100.0] * 20}
    actual = [_after(_rows(table, metric=by), Stop(by=by, min_images=1), 500).orders()["gradcam"] for by in (AD, IC)]
    assert actual == [["p2", "p3"], ["p3", "p2"]]


def test_the_words_of_each_rule():
    table = {"p2": [90.0] * 60, "p3": [50.0] * 60, "p4": [10.0] * 60}
    rows = pd.concat([_rows(table), _rows(table, "layercam")])
    reasons = {
        Stop(): "the order of 3 layers by average_drop is certain at error 0.05 after 60 of 2100 images",
        Stop(rule="best"): "the best of 3 layers by average_drop is certain at error 0.05 after 60 of 2100 images",
        Stop(rule="worst", k=2): "the 2 worst of 3 layers by average_drop are certain at error 0.05 after 60 of 2100 images",
        Stop(min_images=61): (
            "the order of 3 layers by average_drop is certain at error 0.05 after 60 of 2100 images, but min_images is 61"
        ),
    }
    for stop, words in reasons.items():
        assert _after(_rows(table), stop, 2100).reason() == words
    several = "the order of 3 layers by average_drop in each of 2 methods is certain at error 0.05 after 60 of 2100 images"
    assert _after(rows, Stop(), 2100).reason() == several
    tied = _after(_rows(table | {"p3": [90.0] * 60}), Stop(), 2100)
    open_ = "the order of 3 layers by average_drop is not certain at error 0.05 after 60 of 2100 images: 1 pair of layers open"
    assert tied.reason() == open_
    most = _after(_rows(table | {"p2": [50.0] * 60, "p4": [50.0] * 60}), Stop(max_images=60), 2100)
    assert most.reason() == open_.replace("1 pair", "3 pairs") + "; max_images is reached"


def test_what_is_open_are_the_pairs_that_stand_in_the_way():
    table = {"p2": [90.0] * 60, "p3": [90.0] * 60, "p4": [10.0] * 60, "p5": [10.0] * 60}
    assert _after(_rows(table), Stop(), 2100).undecided() == [("gradcam", "p2", "p3"), ("gradcam", "p4", "p5")]
    assert _after(_rows(table), Stop(rule="best"), 2100).undecided() == [("gradcam", "p4", "p5")]
    assert _after(_rows(table), Stop(rule="worst"), 2100).undecided() == [("gradcam", "p2", "p3")]
    assert _after(_rows(table), Stop(rule="best", k=2), 2100).undecided() == []


def test_the_manifest_holds_everything_as_plain_values():
    table = {"p2": [90.0] * 60, "p3": [90.0] * 59 + [math.nan], "p4": [10.0] * 60}
    actual = _after(_rows(table), Stop(), 2100).to_dict()
    assert actual == json.loads(json.dumps(actual))
    assert actual == {
        "rule": "ranking",
        "k": None,
        "by": "average_drop",
        "error": 0.05,
        "min_images": 50,
        "max_images": None,
        "images": 60,
        "population": 2100,
        "decided": False,
        "reason": _after(_rows(table), Stop(), 2100).reason(),
        "orders": {"gradcam": ["p4", "p2", "p3"]},
        "undecided": [["gradcam", "p2", "p3"]],
        "left_out": {"gradcam": 1},
    }


# ---- images that do not count, and methods that are not compared


def _state(stopping: Stopping) -> dict[str, Any]:
    return stopping.to_dict() | {"totals": stopping._totals.tolist(), "evidence": stopping._test.evidence.tolist()}


def test_an_image_that_does_not_count_at_one_layer_is_seen_and_changes_no_difference():
    nothing = math.nan
    table = {"p2": [90.0, 0.0, 80.0], "p3": [10.0, nothing, 30.0], "p4": [20.0, 100.0, 20.0]}
    zeros = {layer: [values[0], 55.0, values[2]] for layer, values in table.items()}
    one, other = _after(_rows(table), Stop(), 9), _after(_rows(zeros), Stop(), 9)
    assert one.images == 3
    assert _state(one)["evidence"] == _state(other)["evidence"]
    assert one.to_dict()["left_out"] == {"gradcam": 1}


@pytest.mark.parametrize("change", ["status", "value", "row"])
def test_a_failed_status_a_missing_value_and_a_missing_row_are_the_same(change):
    table = {"p2": [90.0, 5.0, 80.0], "p3": [10.0, 60.0, 30.0]}
    rows = _rows(table)
    if change == "status":
        rows.loc[2, "status"] = "unreadable"
    if change == "value":
        rows.loc[2, AD] = math.nan
    if change == "row":
        rows = rows.drop(index=2)
    failed = _after(_rows({"p2": [90.0, math.nan, 80.0], "p3": table["p3"]}), Stop(), 9)
    assert _state(_after(rows, Stop(), 9)) == _state(failed)


def test_the_order_at_the_end_is_that_of_the_images_that_count_everywhere():
    table = {"p2": [10.0, 10.0, math.nan], "p3": [20.0, 20.0, 0.0], "p4": [90.0, 90.0, 90.0]}
    assert _after(_rows(table), Stop(), 3).orders() == {"gradcam": ["p2", "p3", "p4"]}


def test_a_constant_map_counts():
    rows = _rows({"p2": [90.0, 5.0], "p3": [10.0, 60.0]})
    assert _state(_after(rows.assign(status="constant_map"), Stop(), 9)) == _state(_after(rows, Stop(), 9))


def test_control_maps_and_methods_of_one_layer_take_no_part():
    rows = _rows({"p2": [90.0] * 60, "p3": [10.0] * 60})
    controls = _rows({"input": [50.0] * 60}, "random")
    pairs = [*_pairs(["p2", "p3"]), ("input", "random"), ("p5", "attention")]
    together = _after(pd.concat([rows, controls]), Stop(), 2100, pairs)
    assert _state(together) == _state(_after(rows, Stop(), 2100))


def test_a_method_that_fails_takes_no_other_method_with_it():
    table = {"p2": [90.0] * 60, "p3": [10.0] * 60}
    nothing = {"p2": [math.nan] * 60, "p3": [10.0] * 60}
    stopping = _after(pd.concat([_rows(table), _rows(nothing, "layercam")]), Stop(), 2100)
    assert stopping.undecided() == [("layercam", "p2", "p3")]
    assert stopping.to_dict()["left_out"] == {"gradcam": 0, "layercam": 60}


# ---- what is promised


@PROPERTY
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 4), st.integers(1, 45))
def test_how_images_are_cut_into_batches_changes_no_bit(seed, images, layers, size):
    rows = _random(seed, images, layers, ("gradcam", "layercam"))
    once = _after(rows, Stop(), images + 60)
    cut = Stopping(Stop(), images + 60, list(zip(rows["layer"], rows["method"], strict=True))[: 2 * layers], HIGHER)
    for batch in _batches(rows, size):
        cut.add(batch)
    assert _state(cut) == _state(once)


@PROPERTY
@given(st.integers(0, 10_000), st.permutations(LAYERS))
def test_the_order_of_execution_does_not_matter(seed, order):
    rows = _random(seed, 60, 4, missing=0.02)
    one, other = (_after(rows, Stop(error=0.2), 500, _pairs(layers)) for layers in (LAYERS, order))
    assert one.decided == other.decided
    assert {(m, *sorted(pair)) for m, *pair in one.undecided()} == {(m, *sorted(pair)) for m, *pair in other.undecided()}
    totals = [dict(zip(layers, s._totals, strict=True)) for layers, s in ((LAYERS, one), (order, other))]
    assert totals[0] == totals[1]
    if len(set(totals[0].values())) == len(LAYERS):
        assert one.orders() == other.orders()


@PROPERTY
@given(st.integers(0, 10_000), st.sampled_from(["ranking", "best", "worst"]))
def test_what_is_best_when_lower_is_better_is_worst_when_higher_is(seed, rule):
    rows = _random(seed, 60, 4, missing=0.02)
    turned = {"best": "worst", "worst": "best"}.get(rule, rule)
    lower = Stopping(Stop(rule=rule, error=0.2), 500, _pairs(LAYERS), {AD: False})
    higher = Stopping(Stop(rule=turned, error=0.2), 500, _pairs(LAYERS), {AD: True})
    lower.add(rows)
    higher.add(rows)
    assert lower.decided == higher.decided
    if len(set(lower._totals)) == len(LAYERS):
        assert lower.orders()["gradcam"] == higher.orders()["gradcam"][::-1]


@PROPERTY
@given(st.integers(0, 10_000))
def test_other_bounds_are_another_unit(seed):
    rows = _random(seed, 60, 3)
    shares = rows.assign(**{AD: rows[AD] / 100})
    percent = Stopping(Stop(error=0.2), 500, _pairs(LAYERS[:3]), HIGHER)
    fraction = Stopping(Stop(error=0.2), 500, _pairs(LAYERS[:3]), HIGHER, bounds=(0.0, 1.0))
    percent.add(rows)
    fraction.add(shares)
    assert _state(percent) == _state(fraction)


def test_rows_are_left_alone():
    rows = _random(0, 20, 3)
    before = rows.copy()
    _after(rows, Stop(), 100)
    pd.testing.assert_frame_equal(rows, before)


def test_the_rows_of_a_run_stop_it():
    rows = _random(3, 200, 3, ("gradcam", "layercam"), missing=0.02)
    stopping = Stopping(Stop(), 2000, list(dict.fromkeys(zip(rows["layer"], rows["method"], strict=True))), HIGHER)
    for batch in _batches(rows, 16):
        stopping.add(batch)
        if stopping.finished:
            break
    assert stopping.decided
    assert 50 <= stopping.images < 200
    means = rows[rows["status"] == "ok"].groupby(["method", "layer"])[AD].mean()
    assert stopping.orders() == {m: list(means[m].sort_values().index) for m in ("gradcam", "layercam")}


@pytest.mark.parametrize(("rule", "k"), [("ranking", 1), ("best", 1), ("worst", 2)])
def test_the_order_is_wrong_at_the_stop_at_most_as_often_as_the_error_says(rule, k):
    # Three layers that are one image of 120 apart, 2,000 random orders of the images, looked at after every fifth.
    error, runs, images = 0.2, 2000, 120
    rng = np.random.default_rng(0)
    ones = np.arange(images)
    values = np.stack([ones % 2, (ones + 1) % 2, ones // 2 % 2], axis=1).astype(float)
    values[0, :2], values[1, 1:] = (1, 0), (0, 0)
    sums = values.sum(axis=0)
    first, second = np.triu_indices(3, 1)
    orders = rng.permuted(np.tile(np.arange(images)[:, None], runs), axis=0)
    differences = (values[orders][..., first] - values[orders][..., second]).reshape(images, -1)
    test, wrong, open_ = SignTest(images, 3 * runs), np.zeros(runs, dtype=bool), np.ones(runs, dtype=bool)
    truth = np.sign(sums[first] - sums[second])
    assert truth.all()
    for block in np.split(differences, images // 5)[:-1]:
        test.add(block)
        signs = np.zeros((runs, 3, 3), dtype=np.int64)
        signs[:, first, second] = test.signs(error / 2).reshape(runs, 3)
        signs -= signs.transpose(0, 2, 1)
        stopped = open_ & certain(signs, rule, k)
        side = -1 if rule == "worst" else 1
        for run in np.flatnonzero(stopped):
            order = sorted(range(3), key=lambda layer: -side * signs[run, layer].sum())
            true = sorted(range(3), key=lambda layer: -side * sums[layer])
            wrong[run] = order != true if rule == "ranking" else set(order[:k]) != set(true[:k])
        open_ &= ~stopped
    assert wrong.mean() <= error + 3 * math.sqrt(error * (1 - error) / runs)
    assert 0 < wrong.sum() < (~open_).sum()


# ---- wrong use


def test_a_word_names_a_rule_and_a_stop_stays_itself():
    assert resolve_stop(None) is None
    assert [resolve_stop(word) for word in ("ranking", "best", "worst")] == [Stop(), Stop(rule="best"), Stop(rule="worst")]
    own = Stop(rule="worst", k=2)
    assert resolve_stop(own) is own


def test_an_unknown_word_is_refused_word_for_word():
    with pytest.raises(ConfigError) as error:
        resolve_stop("rankin")
    known = "did you mean 'ranking'? known: ranking, best, worst; or pass a Stop(...)"
    assert str(error.value) == f"no rule 'rankin' to stop by; {known}"


@pytest.mark.parametrize("wrong", [True, 3, ["ranking"], {"rule": "best"}])
def test_what_is_no_rule_at_all_is_refused_too(wrong):
    with pytest.raises(ConfigError, match=r"^no rule .* to stop by; .*known: ranking, best, worst; or pass a Stop"):
        resolve_stop(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "wurst"}, "no rule 'wurst' to stop by; did you mean 'worst'? known: ranking, best, worst"),
        ({"k": 2}, "k=2 belongs to the rules 'best' and 'worst', but the rule is 'ranking'; change one of them"),
        ({"rule": "best", "k": 0}, "k is at least 1, got 0"),
        ({"rule": "best", "k": 1.5}, "k is a whole number of at least 1, or None; got 1.5"),
        ({"error": 0}, "error is a probability in (0, 1), such as 0.05; got 0"),
        ({"error": 1}, "error is a probability in (0, 1), such as 0.05; got 1"),
        ({"error": 5.0}, "error is a probability in (0, 1), such as 0.05; got 5.0"),
        ({"error": "5%"}, "error is a probability in (0, 1), such as 0.05; got '5%'"),
        ({"error": math.nan}, "error is a probability in (0, 1), such as 0.05; got nan"),
        ({"min_images": 0}, "min_images is at least 1, got 0"),
        ({"min_images": None}, "min_images is a whole number of at least 1; got None"),
        ({"max_images": 0}, "max_images is at least 1, got 0"),
        ({"max_images": True}, "max_images is a whole number of at least 1, or None; got True"),
        ({"max_images": 20}, "max_images=20 is below min_images=50; raise the first or lower the second"),
    ],
)
def test_a_stop_that_cannot_be_is_refused_word_for_word(options, message):
    with pytest.raises(ConfigError) as error:
        Stop(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("stop", "pairs", "message"),
    [
        (
            Stop(by="average_dropp"),
            _pairs(LAYERS),
            "the run has no metric 'average_dropp' to stop by; did you mean 'average_drop'? known: average_drop, "
            "increase_in_confidence",
        ),
        (
            Stop(),
            [("p2", "gradcam"), ("input", "random")],
            "layers are compared within a method, and no method has two; got {'gradcam': ['p2'], 'random': ['input']}; "
            "add layers, or leave out stop=",
        ),
        (
            Stop(rule="worst", k=4),
            _pairs(LAYERS),
            "k is below the number of layers, 4 in method 'gradcam'; got 4",
        ),
    ],
)
def test_a_run_that_has_nothing_to_stop_by_is_refused_word_for_word(stop, pairs, message):
    with pytest.raises(MetricError) as error:
        Stopping(stop, 100, pairs, HIGHER)
    assert str(error.value) == message


def test_rows_that_cannot_be_are_refused_word_for_word():
    rows = _rows({"p2": [10.0, 130.0], "p3": [10.0, 20.0]})
    with pytest.raises(MetricError) as error:
        _after(rows, Stop(), 9)
    assert str(error.value) == (
        "average_drop of image 'image 1' is 130, outside [0, 100]; early stopping needs bounds, so stop by another metric, "
        "or use a confidence that is a probability"
    )


@pytest.mark.parametrize("within", [True, False])
def test_an_image_that_comes_twice_is_refused_word_for_word(within):
    rows = _rows({"p2": [10.0, 30.0], "p3": [10.0, 20.0]})
    with pytest.raises(MetricError) as error:
        _after(pd.concat([rows, rows]) if within else rows, Stop(), 9).add(rows)
    assert str(error.value) == "image 'image 0' came twice; early stopping needs each image once, with its own id"


def test_more_images_than_there_are_are_refused_word_for_word():
    with pytest.raises(MetricError) as error:
        _after(_rows({"p2": [10.0] * 3, "p3": [10.0] * 3}), Stop(), 2)
    assert str(error.value) == "got more images than the 2 of the data set; check its length"


def test_rounding_just_outside_the_bounds_is_taken():
    rows = _rows({"p2": [100.00000001, -1e-9], "p3": [10.0, 20.0]})
    exact = _rows({"p2": [100.0, 0.0], "p3": [10.0, 20.0]})
    assert _state(_after(rows, Stop(), 9)) == _state(_after(exact, Stop(), 9))
