"""The test of the mean of many columns: worked by hand, against all sign vectors and SciPy, and what its shortcuts promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from tests.analysis.stats.references import scipy_p_value, yes_no
from tests.slow_selection import slow_p, slow_p_above, slow_p_of_skewed
from xaieval.analysis.stats import permutation
from xaieval.analysis.stats.permutation import RADEMACHER, sign_flip_p_values
from xaieval.errors import MetricError

PROPERTY = settings(deadline=None, max_examples=60)
NAN = math.nan

# Quarters add up without rounding, so that ties among sums are ties.
quarters = st.integers(-20, 20).map(lambda number: number / 4)
few_columns = st.integers(1, 9).flatmap(
    lambda count: st.lists(st.lists(quarters, min_size=count, max_size=count), min_size=1, max_size=5)
)


def _columns(*columns: list[float]) -> NDArray[np.float64]:
    return np.array(columns, dtype=float).T


few_differences = st.lists(quarters, min_size=1, max_size=10)


def _p(differences: list[float] | NDArray[np.float64], **options: int) -> float:
    """The p-value of one column."""
    [actual] = sign_flip_p_values(np.array(differences, dtype=float)[:, None], **options)
    return float(actual)


# ---- exact where there is little


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([4, 2, 1], 1 / 8),  # of the sums +-4 +-2 +-1 only the largest reaches 7
        ([4, -2, 1], 3 / 8),  # 7, 5 and 3 reach 3
        ([-4, 2, -1], 1.0),  # a mean that is not above 0 is not tested
        ([-4, -2, -1], 1.0),
        ([5], 1 / 2),
        ([-5], 1.0),
        ([0, 0, 5, 0], 1 / 2),  # differences of zero are left out
        ([2, 1, -1], 3 / 8),  # 4, 2 (twice) reach 2
        ([1, 1, 1, -1], 5 / 16),  # one size, so McNemar: 3 or 4 heads of 4
        ([0, 0], 1.0),
    ],
)
def test_a_p_value_is_as_worked_by_hand(differences, expected):
    assert _p(differences) == pytest.approx(expected, abs=1e-12)


def test_columns_beside_each_other_are_as_worked_by_hand():
    # 100 three times: one half, three times. 1 + 2 of 1, 2: one in four. 3 - 1: 2 of the 4 sums 4, 2, -2, -4 reach 2.
    actual = sign_flip_p_values(_columns([100, 100, 100], [1, 2, 0], [3, -1, 0], [1, -2, 0], [0, 0, 0]))
    assert actual.tolist() == [1 / 8, 1 / 4, 1 / 2, 1.0, 1.0]


@PROPERTY
@given(few_differences)
def test_the_reference_is_the_slow_loop_over_all_sign_vectors(differences):
    assert scipy_p_value(differences) == pytest.approx(slow_p(differences), abs=1e-12)


@PROPERTY
@given(st.lists(st.tuples(quarters, quarters), min_size=2, max_size=10))
def test_the_p_value_is_that_of_scipy_swapping_within_pairs(pairs):
    larger, smaller = np.array(pairs).T
    theirs = scipy.stats.permutation_test(
        (larger, smaller),
        lambda first, second, axis: np.mean(first - second, axis=axis),
        permutation_type="samples",
        alternative="greater",
        n_resamples=math.inf,
    )
    expected = max(theirs.pvalue, slow_p_of_skewed(larger - smaller)) if (larger - smaller).sum() > 0 else 1.0
    assert _p(larger - smaller) == pytest.approx(expected, abs=1e-12)


@PROPERTY
@given(few_differences, st.randoms())
def test_neither_order_nor_equal_pairs_nor_the_unit_matter(differences, random):
    expected = pytest.approx(_p(differences), abs=1e-12)
    shuffled = list(differences)
    random.shuffle(shuffled)
    assert _p(shuffled) == expected
    assert _p([0.0, *differences, 0.0]) == expected
    assert _p([8 * difference for difference in differences]) == expected


@PROPERTY
@given(few_differences, st.integers(0, 9))
def test_a_larger_difference_is_never_less_significant_by_signs(differences, where):
    # A single large difference makes the mean less certain, so this does not hold of t.
    more = [*differences]
    more[where % len(more)] += 7
    assert _p(more) <= max(_p(differences), slow_p_of_skewed(more)) + 1e-12


@pytest.mark.parametrize(("first", "second"), list(itertools.product((0, 1, 4, 9, 30), repeat=2)))
def test_the_p_value_of_yes_or_no_is_that_of_mcnemar(first, second):
    larger, smaller = (np.array(values) for values in yes_no(3, first, second, 7))
    together = first + second
    by_formula = sum(math.comb(together, heads) for heads in range(first, together + 1)) / 2**together
    assert _p(larger - smaller) == pytest.approx(by_formula if first > second else 1.0, abs=1e-12)


def test_mcnemar_is_exact_also_for_many_images():
    assert _p([100.0] * 40) == pytest.approx(2.0**-40)


@PROPERTY
@given(few_columns)
def test_few_differences_are_tested_by_all_signs(columns):
    actual = sign_flip_p_values(_columns(*columns))
    np.testing.assert_allclose(actual, [slow_p_above(column) for column in columns], rtol=1e-9)


@PROPERTY
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_yes_or_no_is_mcnemars_exact_test_however_many_there_are(wins, losses, ties):
    column = [100.0] * wins + [-100.0] * losses + [0.0] * ties
    expected = scipy_p_value(column) if wins > losses else 1.0
    (actual,) = sign_flip_p_values(np.array(column)[:, None])
    assert actual == pytest.approx(expected, rel=1e-12)


def test_few_differences_among_many_ties_are_tested_by_all_signs_wherever_they_are():
    rng = np.random.default_rng(0)
    table = np.zeros((50, 30))
    for column in range(30):
        places = rng.choice(50, size=rng.integers(2, 14), replace=False)
        table[places, column] = rng.integers(-3, 8, len(places))
    for column, actual in zip(table.T, sign_flip_p_values(table), strict=True):
        kept = column[column != 0]
        expected = max(scipy_p_value(column), slow_p_of_skewed(column)) if kept.sum() > 0 else 1.0
        assert actual == pytest.approx(expected, rel=1e-9)


def test_what_is_nan_or_infinite_is_left_out():
    table = _columns([100, NAN, 100, -100, 100], [3, 1, NAN, 2, math.inf])
    expected = [*sign_flip_p_values(_columns([100, 100, -100, 100])), *sign_flip_p_values(_columns([3, 1, 2]))]
    assert sign_flip_p_values(table).tolist() == expected
    assert sign_flip_p_values(np.full((4, 2), NAN)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(0, 3), (5, 0), (0, 0)])
def test_nothing_to_test_is_1_or_nothing(shape):
    assert sign_flip_p_values(np.zeros(shape)).tolist() == [1.0] * shape[1]


def test_what_is_no_table_is_refused_word_for_word():
    with pytest.raises(MetricError) as caught:
        sign_flip_p_values([1.0, 2.0])
    assert str(caught.value) == "differences are [N, T], one column per test; got shape (2,)"


# ---- random signs


def _noisy(count: int, mean: float, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(mean, 10, count)


@pytest.mark.parametrize("mean", [-1.0, 0.0, 0.7, 1.5, 2.5])
def test_the_p_value_of_many_images_is_about_that_of_a_t_test(mean):
    # 10,000 draws leave a standard error of at most half a percent.
    differences = _noisy(300, mean)
    theirs = scipy.stats.ttest_1samp(differences, 0, alternative="greater").pvalue
    assert _p(differences) == pytest.approx(theirs if differences.sum() > 0 else 1.0, abs=0.02)


def test_drawing_leaves_the_global_generator_and_the_values_alone():
    table = _noisy(30, 1.0)[:, None]
    before = np.random.get_state()[1].copy(), table.copy()  # noqa: NPY002  # it is the one to watch
    assert sign_flip_p_values(table)[0] > 1e-4, "signs were drawn"
    for then, now in zip(before, (np.random.get_state()[1], table), strict=True):  # noqa: NPY002  # it is the one to watch
        np.testing.assert_array_equal(then, now)


def _varied(images: int = 40, tests: int = 60, seed: int = 0) -> NDArray[np.float64]:
    """Differences of several kinds, with means from none to far above 0."""
    rng = np.random.default_rng(seed)
    sizes = rng.exponential(20, (images, tests)) * rng.choice([1, 1, 1, 8], (images, tests))
    return np.where(rng.random((images, tests)) < np.linspace(0.5, 0.75, tests), sizes, -sizes)


def test_random_signs_find_what_scipy_finds_up_to_chance():
    table = _varied()
    actual = sign_flip_p_values(table, seed=1)
    compared = 0
    for column, ours in zip(table.T, actual, strict=True):
        theirs = scipy_p_value(column, seed=2)
        if column.sum() > 0 and ours >= 1e-4:
            noise = 5 * math.sqrt(2 * theirs * (1 - theirs) / 9999) + 2e-4
            assert abs(ours - max(theirs, slow_p_of_skewed(column))) < noise
            compared += 1
        elif column.sum() <= 0:
            assert ours == 1
            assert theirs > 0.45
    assert compared > 30


def test_the_signs_that_were_seen_count_as_one_draw_so_that_p_values_of_draws_are_never_0():
    table = _varied()
    actual = sign_flip_p_values(table, resamples=19)
    by_signs = actual > [slow_p_of_skewed(column) + 1e-9 for column in table.T]
    drawn = actual[(actual >= 1 / 20) & (actual < 1) & by_signs]
    assert len(drawn) > 10
    np.testing.assert_allclose(20 * drawn, np.round(20 * drawn), atol=1e-9)


def test_a_column_has_the_same_p_value_alone_and_among_others_and_the_seed_decides_it():
    table = _varied()
    whole = sign_flip_p_values(table, seed=3)
    np.testing.assert_array_equal(whole, [sign_flip_p_values(table[:, [column]], seed=3)[0] for column in range(60)])
    np.testing.assert_array_equal(whole, sign_flip_p_values(table, seed=3))
    assert (whole != sign_flip_p_values(table, seed=4)).any()


def test_blocks_change_nothing_where_all_signs_are_tried(monkeypatch):
    table = _varied(images=9)
    expected = sign_flip_p_values(table)
    monkeypatch.setattr(permutation, "_BLOCK", 1000)
    np.testing.assert_array_equal(sign_flip_p_values(table), expected)
    assert ((sign_flip_p_values(_varied(seed=5)) < 0.05) == (sign_flip_p_values(_varied(seed=5), seed=9) < 0.05)).mean() > 0.9


@pytest.mark.parametrize("level", [0.05, 0.01, 0.001])
def test_without_an_effect_p_values_below_a_level_are_no_more_frequent_than_that(level):
    rng = np.random.default_rng(7)
    tests = 20_000
    table = rng.standard_t(2, (30, tests)) * rng.choice([0, 1], (30, tests), p=[0.2, 0.8])
    share = (sign_flip_p_values(table, seed=8) <= level).mean()
    # All columns share their signs, so the draws' own error does not average out: a tenth of the level.
    assert share <= 1.1 * level + 3 * math.sqrt(level / tests)
    assert share >= 0.8 * level - 3 * math.sqrt(level / tests)


# ---- the bound where draws would not do


def test_the_bound_is_reached_by_two_equal_weights():
    # Both signs have to be plus: one in four, at x = sqrt(2), where the constant comes from.
    assert permutation._bound(np.array([[1.0], [1.0]]))[0] == pytest.approx(0.25, rel=1e-12)
    assert pytest.approx(3.178, abs=1e-3) == RADEMACHER


@PROPERTY
@given(few_columns)
def test_the_bound_is_never_below_the_exact_p_value(columns):
    for column in columns:
        if any(column):
            assert permutation._bound(np.array(column)[:, None])[0] >= slow_p(column) * (1 - 1e-12)


def _exact(sizes: list[int], least: int) -> float:
    """The share of signed sums of integers that reach `least`, added one by one."""
    total = sum(sizes)
    ways = np.zeros(2 * total + 1)
    ways[total] = 1.0
    for size in sizes:
        ways = 0.5 * (np.roll(ways, size) + np.roll(ways, -size))
    return float(ways[total + least :].sum())


def test_far_above_0_the_p_value_is_a_bound_within_a_factor_of_the_exact_one():
    rng = np.random.default_rng(0)
    for share in (0.8, 0.85, 0.9, 0.95):
        sizes = rng.integers(1, 20, 80)
        column = np.where(np.arange(80) < 80 * share, sizes, -sizes).astype(float)
        exact = _exact([int(size) for size in sizes], int(column.sum()))
        (actual,) = sign_flip_p_values(column[:, None])
        if actual < 1e-4:
            bound = 3.2 * norm.sf(column.sum() / np.linalg.norm(column))
            assert exact <= actual <= max(bound, slow_p_of_skewed(column) * (1 + 1e-9))
        else:
            larger = max(exact, slow_p_of_skewed(column))
            assert actual == pytest.approx(larger, abs=5 * math.sqrt(exact / 9999) + 1e-4)
    assert actual < 1e-8


@pytest.mark.parametrize("count", [1, 20, 1000, 1100, 4000])
def test_a_p_value_is_never_zero_and_never_above_one(count):
    # Two to the power of -1075 is below the smallest positive float.
    columns = ([100.0] * count, [-100.0] * count, [*range(1, count + 1)], [-value for value in range(1, count + 1)])
    actual = sign_flip_p_values(_columns(*columns), resamples=99)
    assert ((actual > 0) & (actual <= 1)).all()


# ---- many tests


def test_thousands_of_tests_at_once():
    # 37 layers and methods, 15 metrics, 5 controls, 210 images.
    rng = np.random.default_rng(0)
    table = rng.normal(0.1, 1, (210, 37 * 15 * 5))
    actual = sign_flip_p_values(table)
    assert 0.2 < (actual < 0.05).mean() < 0.7


# ---- means, not symmetry


def test_rare_large_losses_keep_common_small_gains_from_being_significant():
    # If 5 % of the images lose 95, the mean is 0, and samples of 105 with at most two such images are one in ten.
    column = np.array([5.0] * 103 + [-95.0] * 2)
    assert scipy_p_value(column) < 0.005
    assert _p(column) == pytest.approx(slow_p_of_skewed(column), rel=1e-9)
    assert _p(column) > 0.1


def test_a_correction_never_makes_a_p_value_smaller():
    table = _varied(images=12)
    by_signs = np.array([slow_p(column) for column in table.T])
    actual = sign_flip_p_values(table)
    assert (actual >= by_signs * (1 - 1e-12))[actual < 1].all()
    assert (actual > by_signs + 1e-6)[actual < 1].any()


@pytest.mark.parametrize("unit", [2.0**-1000, 2.0**-500, 2.0**500, 2.0**1000])
def test_the_unit_changes_nothing_even_where_powers_of_it_are_no_numbers(unit):
    table = _varied(images=30, tests=20)
    assert sign_flip_p_values(unit * table).tolist() == sign_flip_p_values(table).tolist()
