"""Sequential sign tests without replacement: worked by hand, over all orders, against a slow loop, and by error rates."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xaieval.analysis.stats.sequential import SignTest, on_grid
from xaieval.errors import MetricError

PROPERTY = settings(deadline=None, max_examples=60)

quarters = st.integers(-4, 4).map(lambda number: number / 4)
numbers = st.lists(quarters, min_size=1, max_size=14)


def _test(columns: np.ndarray | list[list[float]], population: int | None = None) -> SignTest:
    """The test after all rows `[n, T]`."""
    block = np.asarray(columns, dtype=float)
    test = SignTest(population or len(block), block.shape[1])
    test.add(block)
    return test


def _paths(orders: np.ndarray) -> np.ndarray:
    """The capital after each number, `[n + 1, 2, T]`."""
    test = SignTest(len(orders), orders.shape[1])
    actual = [test.capital.copy()]
    for row in orders:
        test.add(row[None])
        actual.append(test.capital.copy())
    return np.stack(actual)


def _slow(differences: list[float], population: int) -> tuple[list[float], list[float]]:
    """As the paper defines it: x in [0, 1], a mean of 1/2, one value after the other; all capitals of both players."""
    capitals: tuple[list[float], list[float]] = ([1.0], [1.0])
    for side, sign in enumerate((1, -1)):
        seen: list[float] = []
        for difference in differences:
            x = (1 + sign * difference) / 2
            null = (population / 2 - sum(seen)) / (population - len(seen))
            centred = [one - 0.5 for one in seen]
            mean = 0.5 + sum(centred) / (len(seen) + 1)
            variance = (0.25 / 4 + sum(one**2 for one in centred)) / (len(seen) + 1) - (mean - 0.5) ** 2
            stake = (mean - null) / (variance + (mean - null) ** 2)
            stake = min(max(stake, 0), 0.9 / null) if null > 0 else 0
            capitals[side].append(capitals[side][-1] * (1 + stake * (x - null)))
            seen.append(x)
    return capitals


# ---- by hand


def test_the_first_bets_are_as_worked_by_hand():
    # Of 4 numbers 1/2 comes first: nothing was seen, so nothing is staked. The three left then average -1/6 if the sum of
    # all is zero; what was seen has the mean 1/4 and the variance (1/4 + 1/4) / 2 - 1/16 = 3/16, so the edge is 5/12 and the
    # stake (5/12) / (3/16 + 25/144) = 15/13, which is above 0.9 / (1 - 1/6) = 1.08. Then 0 comes: 1 + 1.08 / 6.
    test = _test([[0.5], [0.0]], population=4)
    assert test.capital[:, 0] == pytest.approx([1.18, 1.0], abs=1e-12)
    assert test.p_values[:, 0] == pytest.approx([1 / 1.18, 1.0], abs=1e-12)


def test_a_sign_is_sure_as_soon_as_the_numbers_left_cannot_change_it():
    test = SignTest(5, 2)
    test.add([[1, -1], [1, -1]])
    assert test.signs(1e-9).tolist() == [0, 0]  # three that are left could take back two
    test.add([[0.5, -0.5]])
    assert test.signs(1e-9).tolist() == [1, -1]  # two that are left cannot take back two and a half
    assert test.p_values.tolist() == [[0, 1], [1, 0]]


def test_exactly_what_is_left_could_still_make_a_tie():
    test = _test([[1.0], [1.0]], population=4)
    assert test.signs(1e-9).tolist() == [0]
    test.add([[-1.0], [-1.0]])
    assert test.signs(1e-9).tolist() == [0]
    assert test.sums.tolist() == [0.0]


@pytest.mark.parametrize(("last", "sign"), [(2**-32, 1), (0.0, 0), (-(2**-32), -1)])
def test_at_the_end_the_sign_is_that_of_the_sum_however_small(last, sign):
    test = _test([[1.0], [-1.0], [0.75], [-0.75], [last]])
    assert test.signs(1e-9).tolist() == [sign]


def test_at_the_end_the_sum_has_the_last_word_also_where_chance_misled():
    values = [[1.0]] * 20 + [[-1.0]] * 25
    test = SignTest(45, 1)
    test.add(values[:20])
    assert test.signs(0.05).tolist() == [1]
    test.add(values[20:])
    assert test.p_values[0, 0] < 0.05
    assert test.signs(0.05).tolist() == [-1]


def test_what_was_once_certain_stays_so_before_the_end():
    test = SignTest(1000, 1)
    test.add([[1.0]] * 20)
    least = test.p_values[0, 0]
    test.add([[-1.0]] * 30)
    assert test.capital[0, 0] < 1
    assert test.p_values[0, 0] == least
    assert test.signs(0.05).tolist() == [1]


# ---- by all orders


POPULATIONS = [
    [-1.0, 1.0],
    [0.0, 0.0, 0.0],
    [-1.0, -0.5, 0.25, 0.5, 0.75],
    [1.0, -0.25, -0.25, -0.25, -0.25],
    [1.0, 1.0, 1.0, -1.0, -1.0, -1.0],
    [0.9, 0.8, -0.3, -0.4, -1.0, 0.0],
]


@pytest.mark.parametrize("population", POPULATIONS)
def test_over_all_orders_both_players_keep_on_average_exactly_what_they_had(population):
    orders = np.array(list(itertools.permutations(population))).T
    np.testing.assert_allclose(_paths(orders).mean(axis=-1), 1, atol=1e-6 if 0.9 in population else 1e-12)


@PROPERTY
@given(st.lists(quarters, min_size=1, max_size=6))
def test_over_all_orders_the_wrong_player_gains_nothing_on_average(population):
    orders = np.array(list(itertools.permutations(population))).T
    for_positive, for_negative = _paths(orders).mean(axis=-1).T
    if sum(population) <= 0:
        assert (np.diff(for_positive) <= 1e-12).all()
    if sum(population) >= 0:
        assert (np.diff(for_negative) <= 1e-12).all()


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("error", [0.1, 0.4, 0.7])
def test_over_all_orders_the_share_of_errors_before_the_end_is_at_most_the_error(population, error):
    orders = np.array(list(itertools.permutations(population))).T
    test = SignTest(len(orders), orders.shape[1])
    test.add(orders[:-1])
    assert (test.p_values <= error).mean(axis=1).max() <= error


def test_a_player_who_forgot_that_numbers_are_not_put_back_would_be_caught():
    # The same capital with m = 0 throughout: the enumeration above would see it.
    orders = np.array(list(itertools.permutations(POPULATIONS[2])))
    before = np.cumsum(orders, axis=1) - orders
    stake = 0.9 * np.clip(before, 0, 1)
    assert abs(np.prod(1 + stake * orders, axis=1).mean() - 1) > 0.01


# ---- a slow loop


@PROPERTY
@given(numbers, st.integers(0, 30))
def test_the_capital_is_that_of_the_slow_loop(differences, more):
    population = len(differences) + more
    test = _test([[one] for one in differences], population)
    slow = _slow(differences, population)
    assert test.capital[:, 0] == pytest.approx([path[-1] for path in slow], rel=1e-9)
    left = population - len(differences)
    for side, sign in enumerate((1, -1)):
        expected = 0 if sign * sum(differences) > left else 1 / max(slow[side])
        assert test.p_values[side, 0] == pytest.approx(expected, rel=1e-9)


# ---- what is promised


@PROPERTY
@given(numbers, st.integers(0, 30), st.lists(st.integers(0, 14), max_size=5))
def test_how_numbers_are_cut_into_blocks_changes_no_bit(differences, more, places):
    columns = np.array([[one, -one / 3] for one in differences])
    once = _test(columns, len(columns) + more)
    cut = SignTest(once.population, 2)
    for block in np.split(columns, sorted(places)):
        cut.add(block)
    assert cut.seen == once.seen
    for name in ("sums", "capital", "evidence"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(once, name))


@PROPERTY
@given(numbers, st.integers(0, 30))
def test_when_signs_flip_the_players_change_places(differences, more):
    columns = np.array(differences)[:, None]
    test, flipped = _test(columns, len(columns) + more), _test(-columns, len(columns) + more)
    np.testing.assert_array_equal(test.evidence, flipped.evidence[::-1])
    np.testing.assert_array_equal(test.signs(0.2), -flipped.signs(0.2))


@PROPERTY
@given(numbers, st.integers(0, 30), st.integers(0, 99))
def test_tests_beside_each_other_do_not_see_each_other(differences, more, seed):
    columns = np.random.default_rng(seed).permuted(np.tile(np.array(differences)[:, None], 4), axis=0)
    together = _test(columns, len(columns) + more)
    for number in range(4):
        alone = _test(columns[:, [number]], together.population)
        np.testing.assert_array_equal(together.evidence[:, [number]], alone.evidence)


@PROPERTY
@given(numbers, st.integers(0, 30))
def test_p_values_are_probabilities_and_never_rise(differences, more):
    test = SignTest(len(differences) + more, 1)
    before = np.ones((2, 1))
    for one in differences:
        test.add([[one]])
        assert ((test.p_values >= 0) & (test.p_values <= before)).all()
        assert (test.capital > 0).all()
        before = test.p_values


def test_a_smaller_error_is_certain_later():
    test = _test([[0.5]] * 10, population=1000)
    assert [int(test.signs(error)[0]) for error in (0.5, 0.05, 1e-6)] == [1, 1, 0]


@pytest.mark.parametrize("population", [3000, 1_000_000])
def test_fortunes_and_ruins_are_no_warnings(population):
    test = SignTest(population, 2)
    for _ in range(6):
        test.add(np.tile([1.0, -1.0], (400, 1)))
    assert test.signs(1e-12).tolist() == [1, -1]
    assert not np.isnan(test.capital).any()
    assert (test.p_values[[0, 1], [0, 1]] == 0).all()


def test_a_large_population_is_decided_by_few_of_its_numbers():
    rng = np.random.default_rng(0)
    population = rng.beta(2, 1.5, 20_000) - rng.beta(1, 1.5, 20_000)
    test = SignTest(20_000, 1)
    test.add(population[:150, None])
    assert test.signs(0.01).tolist() == [1]


@pytest.mark.parametrize(
    ("draw", "least"),  # the least rate shows that the other bound could be passed; stakes are limited, so not by small numbers
    [
        (lambda rng: rng.uniform(-1, 1, 80), 0.01),
        (lambda rng: rng.choice([-1.0, 0.0, 1.0], 80, p=[0.05, 0.85, 0.1]), 0.01),
        (lambda rng: rng.beta(1, 6, 80), 0),
        (lambda rng: rng.beta(8, 1, 80), 0),
    ],
    ids=["uniform", "rare", "skewed", "other way skewed"],
)
def test_a_mean_of_zero_is_called_positive_or_negative_at_most_as_often_as_the_error_says(draw, least):
    # 4,000 orders: the standard error of 10 % is half a percentage point.
    rng = np.random.default_rng(0)
    population = draw(rng)
    population = on_grid((population - population.mean()) / 2)
    population[0] -= population.sum()
    assert population.sum() == 0
    orders = rng.permuted(np.tile(population[:, None], 4000), axis=0)
    test = SignTest(80, 4000)
    test.add(orders[:-1])
    rates = (test.p_values <= 0.1).mean(axis=1)
    assert rates.max() <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 4000)
    assert rates.max() >= least


@PROPERTY
@given(st.lists(st.floats(-1, 1), max_size=50), st.randoms())
def test_on_the_grid_sums_are_the_same_in_any_order(values, random):
    rounded = on_grid(values)
    assert np.abs(rounded - values).max(initial=0) <= 2.0**-33
    shuffled = rounded.tolist()
    random.shuffle(shuffled)
    assert math.fsum(rounded) == sum(rounded.tolist()) == sum(shuffled)
    np.testing.assert_array_equal(on_grid(rounded), rounded)


def test_blocks_are_left_alone():
    block = np.full((3, 1), 0.3)
    _test(block, 10)
    assert (block == 0.3).all()


# ---- wrong use


@pytest.mark.parametrize(("population", "tests"), [(0, 1), (-1, 1), (2**20 + 1, 1), (10, 0)])
def test_nothing_to_test_is_refused_word_for_word(population, tests):
    with pytest.raises(MetricError) as error:
        SignTest(population, tests)
    expected = f"population is 1 to 1048576 values, and tests is at least 1; got population {population}, tests {tests}"
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ([0.5, 0.5], "a block is [n, 2], one column per test; got shape (2,)"),
        ([[0.5]], "a block is [n, 2], one column per test; got shape (1, 1)"),
        ([[0.5, 1.5]], "values have to be in [-1, 1]; scale them, and use 0 for missing ones"),
        ([[0.5, math.nan]], "values have to be in [-1, 1]; scale them, and use 0 for missing ones"),
        ([[0.0, 0.0]] * 4, "got 4 values of a population of 3"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_word_for_word(block, message):
    test = SignTest(3, 2)
    with pytest.raises(MetricError) as error:
        test.add(block)
    assert str(error.value) == message
    assert test.seen == 0


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 5])
def test_an_error_that_is_no_probability_is_refused_word_for_word(wrong):
    with pytest.raises(MetricError) as error:
        SignTest(3, 1).signs(wrong)
    assert str(error.value) == f"the error of a test is a probability in (0, 1), such as 0.05; got {wrong}"
