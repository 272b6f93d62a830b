"""Tests of paired differences and Holm's correction: by hand, by all signs, against SciPy, by what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.slow_selection import slow_holm, slow_p
from xaieval.analysis.stats import intervals
from xaieval.analysis.stats.intervals import holm, paired_p_value
from xaieval.errors import MetricError

PROPERTY = settings(deadline=None, max_examples=60)

# Quarters add up without rounding, so that ties among sums are ties.
quarters = st.integers(-20, 20).map(lambda number: number / 4)
few_differences = st.lists(quarters, min_size=1, max_size=10)
p_values = st.lists(st.floats(1e-9, 1), min_size=1, max_size=12)


def _p(differences: list[float], **options: int) -> float:
    return paired_p_value(differences, [0.0] * len(differences), **options)


def _yes_no(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[float], list[float]]:
    first = [100.0] * both + [100.0] * only_first + [0.0] * only_second + [0.0] * neither
    second = [100.0] * both + [0.0] * only_first + [100.0] * only_second + [0.0] * neither
    return first, second


# ---- few images: exact


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([4, 2, 1], 1 / 8),  # of the sums +-4 +-2 +-1 only the largest reaches 7
        ([4, -2, 1], 3 / 8),  # 7, 5 and 3 reach 3
        ([-4, 2, -1], 6 / 8),  # all but -5 and -7 reach -3
        ([-4, -2, -1], 1.0),
        ([5], 1 / 2),
        ([-5], 1.0),
        ([0, 0, 5, 0], 1 / 2),  # a difference of nothing says nothing
        ([2, 1, -1], 3 / 8),  # 4, 2 (twice) reach 2
        ([1, 1, 1, -1], 5 / 16),  # one size, so McNemar: 3 or 4 heads of 4
    ],
)
def test_the_p_value_is_as_worked_by_hand(differences, expected):
    assert _p(differences) == pytest.approx(expected, abs=1e-12)


@PROPERTY
@given(few_differences)
def test_the_p_value_is_that_ofslow_p(differences):
    assert _p(differences) == pytest.approx(slow_p(differences), abs=1e-12)


@PROPERTY
@given(st.lists(st.tuples(quarters, quarters), min_size=2, max_size=10))
def test_the_p_value_is_that_of_scipy_swapping_within_pairs(pairs):
    larger, smaller = (list(values) for values in zip(*pairs, strict=True))
    theirs = scipy.stats.permutation_test(
        (larger, smaller),
        lambda first, second, axis: np.mean(first - second, axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=math.inf,
    )
    assert paired_p_value(larger, smaller) == pytest.approx(theirs.pvalue, abs=1e-12)


@PROPERTY
@given(few_differences)
def test_both_directions_together_are_more_than_everything(differences):
    # What is exactly as large as what was seen belongs to both tails.
    assert _p(differences) + _p([-difference for difference in differences]) >= 1 - 1e-12


@PROPERTY
@given(few_differences, st.randoms())
def test_neither_order_nor_equal_pairs_nor_what_pairs_share_nor_the_unit_matter(differences, random):
    expected = pytest.approx(_p(differences), abs=1e-12)
    shuffled = list(differences)
    random.shuffle(shuffled)
    common = [random.randint(-50, 50) for _ in differences]
    larger = [difference + shared for difference, shared in zip(differences, common, strict=True)]
    assert _p(shuffled) == expected
    assert _p([0.0, *differences, 0.0]) == expected
    assert paired_p_value(larger, common) == expected
    assert _p([8 * difference for difference in differences]) == expected


@PROPERTY
@given(few_differences, st.integers(0, 9))
def test_a_larger_difference_is_never_less_significant(differences, where):
    more = [*differences]
    more[where % len(more)] += 7
    assert _p(more) <= _p(differences) + 1e-12


# ---- yes or no for each image: McNemar


@pytest.mark.parametrize(("first", "second"), list(itertools.product((0, 1, 4, 9, 30), repeat=2)))
def test_the_p_value_of_yes_or_no_is_that_of_mcnemar(first, second):
    larger, smaller = _yes_no(3, first, second, 7)
    together = first + second
    by_formula = sum(math.comb(together, heads) for heads in range(first, together + 1)) / 2**together
    assert paired_p_value(larger, smaller) == pytest.approx(by_formula, abs=1e-12)
    if together:
        theirs = scipy.stats.binomtest(first, together, 0.5, alternative="greater").pvalue
        assert paired_p_value(larger, smaller) == pytest.approx(theirs, abs=1e-12)


def test_mcnemar_is_exact_also_where_signs_could_only_be_drawn():
    assert paired_p_value(*_yes_no(0, 40, 0, 0)) == pytest.approx(2.0**-40)


# ---- many images: signs are drawn


def _normal(count: int, mean: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shared = rng.normal(50, 20, count)
    return shared + rng.normal(mean, 10, count), shared


@pytest.mark.parametrize("mean", [-1.0, 0.0, 0.7, 1.5, 2.5])
def test_the_p_value_of_many_images_is_about_that_of_a_t_test(mean):
    # 10,000 draws leave a standard error of at most half a percent.
    larger, smaller = _normal(300, mean)
    theirs = scipy.stats.ttest_rel(larger, smaller, alternative="greater").pvalue
    assert paired_p_value(larger, smaller) == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize("resamples", [99, 499])
def test_the_smallest_drawn_p_value_is_one_in_the_number_of_draws_and_the_one_that_was_seen(resamples):
    assert _p([*range(1, 41)], resamples=resamples) == pytest.approx(1 / (resamples + 1))


def test_the_same_seed_gives_the_same_p_value_and_another_seed_another():
    pairs = _normal(50, 1.0)
    assert paired_p_value(*pairs, seed=3) == paired_p_value(*(values.copy() for values in pairs), seed=3)
    assert len({paired_p_value(*pairs, seed=seed) for seed in range(4)}) > 1


def test_drawing_leaves_the_global_generator_and_the_values_alone():
    larger, smaller = _normal(30, 0.0)
    before = np.random.get_state()[1].copy(), larger.copy(), smaller.copy()  # noqa: NPY002  # it is the one to watch
    paired_p_value(larger, smaller)
    for then, now in zip(before, (np.random.get_state()[1], larger, smaller), strict=True):  # noqa: NPY002  # it is the one to watch
        np.testing.assert_array_equal(then, now)


@pytest.mark.parametrize("block", [1, 1000])
def test_drawing_in_blocks_gives_about_the_p_value_of_drawing_at_once(monkeypatch, block):
    pairs = _normal(40, 1.0)
    at_once = paired_p_value(*pairs, resamples=1999)
    monkeypatch.setattr(intervals, "_BLOCK", block)
    assert paired_p_value(*pairs, resamples=1999) == pytest.approx(at_once, abs=0.05)


@pytest.mark.parametrize("count", [12, 40])
def test_a_difference_by_chance_is_found_about_as_often_as_the_level_says(count):
    # 300 runs at 10 %: the standard error is 1.7 percentage points, the bounds are about three of them.
    found = [paired_p_value(*_normal(count, 0.0, seed=run), resamples=499) <= 0.1 for run in range(300)]
    assert 0.05 <= np.mean(found) <= 0.15


# ---- what is promised


@pytest.mark.parametrize("count", [1, 2, 50])
def test_without_any_difference_the_p_value_is_one(count):
    values = np.random.default_rng(0).random(count)
    assert paired_p_value(values, values.copy()) == 1.0


def test_without_images_there_is_no_difference_either():
    assert paired_p_value([], []) == 1.0


@pytest.mark.parametrize("count", [1, 20, 1000, 1100, 3000])
def test_a_p_value_is_never_zero_and_never_above_one(count):
    # Two to the power of -1075 is below the smallest number there is.
    for differences in ([100.0] * count, [-100.0] * count, [*range(1, count + 1)], [-value for value in range(1, count + 1)]):
        assert 0 < _p(differences, resamples=99) <= 1


def test_lists_arrays_and_whole_numbers_are_all_taken():
    expected = paired_p_value([3.0, 5.0, 1.0], [1.0, 1.0, 2.0])
    assert type(expected) is float
    assert paired_p_value(np.array([3, 5, 1]), (1, 1, 2)) == expected


@pytest.mark.parametrize(
    ("larger", "smaller"), [([1, 2], [1, 2, 3]), ([1, 2], [1]), ([[1, 2]], [[1, 2]]), (1.0, 2.0), ([1.0], 1.0), ([], [1])]
)
def test_values_that_are_no_pairs_are_refused_word_for_word(larger, smaller):
    with pytest.raises(MetricError) as error:
        paired_p_value(larger, smaller)
    shapes = f"{np.shape(larger)} and {np.shape(smaller)}"
    assert str(error.value) == f"pairs are two vectors of the same images; got shapes {shapes}"


# ---- Holm


def _closed(values: list[float]) -> list[float]:
    """Holm is Bonferroni in every set of tests: a test is rejected if all sets that hold it are."""
    numbers = range(len(values))
    sets = [chosen for size in range(1, len(values) + 1) for chosen in itertools.combinations(numbers, size)]
    return [max(min(1.0, len(s) * min(values[i] for i in s)) for s in sets if number in s) for number in numbers]


@pytest.mark.parametrize(
    ("given_p", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 * 0.01; 2 * 0.03; 1 * 0.04, which may not be below it
        ([0.04, 0.03, 0.01], [0.06, 0.06, 0.03]),
        ([0.02], [0.02]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.5, 0.6, 0.001], [1.0, 1.0, 0.003]),
        ([1.0, 1.0], [1.0, 1.0]),
        ([0.01, 0.2], [0.02, 0.2]),
        ([], []),
    ],
)
def test_holm_is_as_worked_by_hand(given_p, expected):
    assert holm(given_p) == pytest.approx(expected, abs=1e-12)


@PROPERTY
@given(p_values)
def test_holm_is_the_slow_loop(values):
    assert holm(values) == pytest.approx(slow_holm(values), rel=1e-12)


@PROPERTY
@given(p_values, st.integers(0, 50))
def test_holm_for_a_larger_family_is_that_of_tests_with_p_one_beside_it(values, more):
    assert holm(values, len(values) + more) == pytest.approx(slow_holm(values, more), rel=1e-12)
    assert holm(values, len(values) + more) == pytest.approx(holm([*values, *[1.0] * more])[: len(values)], rel=1e-12)


@PROPERTY
@given(st.lists(st.floats(1e-9, 1) | st.sampled_from([0.01, 0.02, 0.5]), min_size=1, max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(values):
    assert holm(values) == pytest.approx(_closed(values), rel=1e-12)


@PROPERTY
@given(p_values)
def test_holm_lies_between_the_p_value_and_bonferroni_and_keeps_the_order(values):
    corrected = holm(values)
    for one, found in zip(values, corrected, strict=True):
        assert one <= found <= min(1.0, len(values) * one)
    by_p = [found for _, found in sorted(zip(values, corrected, strict=True))]
    assert by_p == sorted(by_p)


@PROPERTY
@given(p_values, st.randoms())
def test_holm_goes_with_the_tests_when_they_are_put_in_another_order(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    corrected = holm(values)
    assert holm([values[index] for index in order]) == [corrected[index] for index in order]


@PROPERTY
@given(p_values, st.floats(1e-9, 1))
def test_one_more_test_never_makes_the_others_more_significant(values, another):
    for alone, beside in zip(holm(values), holm([*values, another])[:-1], strict=True):
        assert beside >= alone


def test_holm_leaves_what_it_is_given_alone_and_gives_plain_numbers():
    values = np.array([0.04, 0.01])
    corrected = holm(values)
    assert values.tolist() == [0.04, 0.01]
    assert [type(value) for value in corrected] == [float, float]


def test_holm_rejects_a_true_hypothesis_as_rarely_as_one_test_does():
    # 400 runs of six tests without an effect: the standard error of 10 % is 1.5 percentage points.
    runs = np.random.default_rng(0).random((400, 6))
    assert 0.05 <= np.mean([min(holm(run)) <= 0.1 for run in runs]) <= 0.15
