"""Paired tests, their effect size and Holm's correction: worked by hand, against slow loops and SciPy, by error rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.stats.references import scipy_p_value, skewed, yes_no
from tests.slow_selection import slow_holm, slow_p_of_skewed
from xaieval.analysis.stats import permutation
from xaieval.analysis.stats.paired import holm, paired_p_values, rank_biserial
from xaieval.errors import MetricError

PROPERTY = settings(deadline=None, max_examples=60)

# Quarters add up without rounding, so that ties among sums are ties.
quarters = st.integers(-20, 20).map(lambda number: number / 4)
few_differences = st.lists(quarters, min_size=1, max_size=9)
p_values = st.lists(st.floats(1e-9, 1), min_size=1, max_size=12)


def _skewed_two_sided(differences: list[float]) -> float:
    """Twice the p-value of t with the correction for skewness, of the side that was seen."""
    side = np.sign(sum(differences))
    return min(1.0, 2 * slow_p_of_skewed([side * value for value in differences]))


def _slow_two_sided(differences: list[float]) -> float:
    """Of all sign vectors, the share whose sum is at least as far from zero as the observed one."""
    seen = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(actual >= seen for actual in sums) / len(sums)


# ---- tests


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([4, 2, 1], 2 / 8),  # of the sums +-4 +-2 +-1 only 7 and -7 are as far from zero
        ([4, -2, 1], 6 / 8),  # 7, 5, 3 and their opposites
        ([-4, -2, -1], 2 / 8),
        ([5], 1.0),
        ([0, 0, 0], 1.0),
        ([1, 1, 1, -1], 10 / 16),  # McNemar: 3 or more, or 1 or fewer, of 4
        ([math.nan, 4, 2, 1], 2 / 8),
    ],
)
def test_a_two_sided_p_value_is_as_worked_by_hand(differences, expected):
    assert paired_p_values(np.array([differences]).T) == pytest.approx([expected], abs=1e-12)


@PROPERTY
@given(few_differences)
def test_a_two_sided_p_value_of_few_is_that_of_all_signs(differences):
    expected = max(_slow_two_sided(differences), _skewed_two_sided(differences))
    assert paired_p_values(np.array([differences]).T)[0] == pytest.approx(expected, abs=1e-12)


@PROPERTY
@given(few_differences)
def test_two_sided_is_twice_one_sided_for_the_side_that_was_seen(differences):
    sides = scipy_p_value(differences), scipy_p_value([-value for value in differences])
    actual = scipy_p_value(differences, alternative="two-sided")
    expected = max(actual, _skewed_two_sided(differences))
    assert paired_p_values(np.array([differences]).T)[0] == pytest.approx(expected, abs=1e-12)
    assert actual == pytest.approx(min(1, 2 * min(sides)), abs=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1.0, 2.5])
def test_drawn_signs_give_about_the_p_value_of_scipys_permutations(mean):
    # Two times 50,000 draws: a standard error of at most 0.32 percentage points.
    differences = skewed(80, mean)
    theirs = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=50_000, batch=5000, rng=1
    )
    actual = paired_p_values(differences[:, None], resamples=50_000)
    assert actual[0] == pytest.approx(max(theirs.pvalue, _skewed_two_sided(differences)), abs=0.012)


def test_tests_beside_each_other_are_those_made_alone():
    table = np.stack([skewed(60, mean, seed) for seed, mean in enumerate((0.0, 1.0, 4.0))], axis=1)
    alone = [paired_p_values(table[:, [column]])[0] for column in range(3)]
    assert paired_p_values(table).tolist() == alone


def test_a_p_value_beyond_the_draws_is_a_bound_that_is_not_too_small():
    [actual] = paired_p_values(np.arange(1.0, 41)[:, None], resamples=499)
    assert 2 / 2**40 < actual < 1 / 500, "all of 40 differences are on one side"


def test_drawing_in_blocks_changes_nothing_but_the_draws(monkeypatch):
    table = skewed(60, 2.0)[:, None]
    at_once = paired_p_values(table, resamples=20_000)
    monkeypatch.setattr(permutation, "_BLOCK", 7000)
    assert paired_p_values(table, resamples=20_000) == pytest.approx(at_once, abs=0.015)


def test_many_differences_get_the_normal_p_value_which_draws_agree_with(monkeypatch):
    # Of 2,000 draws the standard error is at most 1.1 percentage points.
    table = np.stack([skewed(3000, mean, seed=3) - skewed(3000, 0, seed=3).mean() for mean in (0.2, 0.6)], axis=1)
    drawn = paired_p_values(table, resamples=2000)
    monkeypatch.setattr(permutation, "MANY", 100)
    quick = paired_p_values(table)
    by_formula = 2 * scipy.stats.norm.sf(np.abs(table.sum(axis=0)) / np.sqrt((table**2).sum(axis=0)))
    assert quick == pytest.approx(by_formula, rel=1e-12)
    assert quick == pytest.approx(drawn, abs=0.04)
    assert quick[0] > quick[1] > 0.01


def test_yes_or_no_is_mcnemars_exact_test_beside_other_tests_too():
    one, other = (np.array(values) for values in yes_no(20, 15, 4, 21))
    table = np.stack([one - other, skewed(60, 1.0)], axis=1)
    by_formula = 2 * sum(math.comb(19, heads) for heads in range(15, 20)) / 2**19
    for test in ("signs", "wilcoxon"):
        assert paired_p_values(table, test)[0] == pytest.approx(by_formula, abs=1e-12)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([3, 4, 9, -1], 4 / 16),  # ranks 2, 3, 4 against 1: sums of 8 or more are 9 - 1 = 8 and 10, and their opposites
        ([1, 2, 3, 4, 5], 2 / 32),
        ([0, 0], 1.0),
        ([7.0], 1.0),
    ],
)
def test_wilcoxon_is_as_worked_by_hand(differences, expected):
    assert paired_p_values(np.array([differences]).T, "wilcoxon") == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1.5, 4.0])
def test_wilcoxon_is_that_of_scipy_without_zeros(mean):
    # SciPy would count the zeros among the ties, although it leaves them out.
    differences = skewed(70, mean)
    theirs = scipy.stats.wilcoxon(differences[differences != 0]).pvalue
    assert paired_p_values(differences[:, None], "wilcoxon") == pytest.approx([theirs], rel=1e-12)


@pytest.mark.parametrize("test", ["signs", "wilcoxon"])
def test_a_difference_by_chance_is_found_as_often_as_the_level_says(test):
    # 400 runs at 10 %: the standard error is 1.5 percentage points. Signs are drawn at random, so the mean is zero.
    rng = np.random.default_rng(0)
    table = np.stack([skewed(40, 0.0, seed) for seed in range(400)], axis=1) * rng.choice([-1, 1], (40, 400))
    assert 0.06 <= np.mean(paired_p_values(table, test, resamples=999) <= 0.1) <= 0.135


def test_tests_are_refused_word_for_word():
    with pytest.raises(MetricError, match=r"^no paired test 'sign'; did you mean 'signs'\? known: signs, wilcoxon$"):
        paired_p_values([[1.0]], "sign")
    with pytest.raises(MetricError, match=r"^differences are \[N, T\], one column per test; got shape \(2,\)$"):
        paired_p_values([1.0, 2.0])


# ---- effect size


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([3, 4, 9, -1], 0.8),
        ([1, 1, -1, 0], 1 / 3),
        ([2, 2, 2], 1.0),
        ([-2, math.nan, -3], -1.0),
        ([0, 0], math.nan),
        ([], math.nan),
    ],
)
def test_the_rank_biserial_is_as_worked_by_hand(differences, expected):
    assert rank_biserial(differences) == pytest.approx(expected, nan_ok=True)


@PROPERTY
@given(few_differences)
def test_the_rank_biserial_is_that_of_a_slow_loop(differences):
    left = [value for value in differences if value]
    ranks = [
        sum(abs(other) < abs(value) for other in left) + (sum(abs(other) == abs(value) for other in left) + 1) / 2
        for value in left
    ]
    if left:
        expected = sum(math.copysign(rank, value) for rank, value in zip(ranks, left, strict=True)) / sum(ranks)
        assert rank_biserial(differences) == pytest.approx(expected)
        assert rank_biserial([-value for value in differences]) == pytest.approx(-expected)


def test_the_rank_biserial_is_wilcoxons_statistic_on_another_scale():
    differences = skewed(50, 3.0)
    left = differences[differences != 0]
    larger = scipy.stats.wilcoxon(left, alternative="greater").statistic
    total = len(left) * (len(left) + 1) / 2
    assert rank_biserial(differences) == pytest.approx(2 * larger / total - 1)


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
    for one, actual in zip(values, corrected, strict=True):
        assert one <= actual <= min(1.0, len(values) * one)
    by_p = [actual for _, actual in sorted(zip(values, corrected, strict=True))]
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
