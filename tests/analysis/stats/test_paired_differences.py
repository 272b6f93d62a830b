"""Paired differences: tests of many at once, their intervals, how large they are, and how many images it takes to see them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from xaieval.analysis.stats import intervals, permutation
from xaieval.analysis.stats.intervals import bootstrap_means, metric_interval, paired_p_value, wilson_interval
from xaieval.analysis.stats.paired import (
    cohens_dz,
    difference_interval,
    discordant_odds,
    newcombe_interval,
    paired_p_values,
    rank_biserial,
    wilcoxon_p_value,
)
from xaieval.analysis.stats.power import images_needed, paired_power
from xaieval.errors import MetricError

PROPERTY = settings(deadline=None, max_examples=40)

quarters = st.integers(-20, 20).map(lambda number: number / 4)
few_differences = st.lists(quarters, min_size=1, max_size=9)


def _skewed(count: int, mean: float, seed: int = 0) -> np.ndarray:
    """Something like differences of drops: a third are nothing, the others lean to one side."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 1 / 3, 0.0, rng.gamma(2, 10, count) - 20 + mean)


def _slow_two_sided(differences: list[float]) -> float:
    """Of all assignments of signs, the share whose sum is as far from zero as the one that was seen."""
    seen = abs(sum(differences))
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(found >= seen for found in sums) / len(sums)


def _yes_no(both: int, first: int, second: int, neither: int) -> tuple[list[float], list[float]]:
    one = [100.0] * (both + first) + [0.0] * (second + neither)
    other = [100.0] * both + [0.0] * first + [100.0] * second + [0.0] * neither
    return one, other


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
    assert paired_p_values(np.array([differences]).T)[0] == pytest.approx(_slow_two_sided(differences), abs=1e-12)


@PROPERTY
@given(few_differences)
def test_two_sided_is_twice_one_sided_for_the_side_that_was_seen(differences):
    nothing = [0.0] * len(differences)
    sides = paired_p_value(differences, nothing), paired_p_value(nothing, differences)
    found = paired_p_value(differences, nothing, alternative="two-sided")
    assert found == pytest.approx(min(1, 2 * min(sides)), abs=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1.0, 2.5])
def test_drawn_signs_give_about_the_p_value_of_scipys_permutations(mean):
    # Two times 50,000 draws: a standard error of at most 0.32 percentage points.
    differences = _skewed(80, mean)
    theirs = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=50_000, batch=5000, rng=1
    )
    found = paired_p_values(differences[:, None], resamples=50_000)
    assert found[0] == pytest.approx(theirs.pvalue, abs=0.012)


def test_tests_beside_each_other_are_those_made_alone():
    table = np.stack([_skewed(60, mean, seed) for seed, mean in enumerate((0.0, 1.0, 4.0))], axis=1)
    alone = [paired_p_values(table[:, [column]])[0] for column in range(3)]
    assert paired_p_values(table).tolist() == alone


def test_a_p_value_beyond_the_draws_is_a_bound_that_is_not_too_small():
    [found] = paired_p_values(np.arange(1.0, 41)[:, None], resamples=499)
    assert 2 / 2**40 < found < 1 / 500, "all of 40 differences are on one side"


def test_drawing_in_blocks_changes_nothing_but_the_draws(monkeypatch):
    table = _skewed(60, 2.0)[:, None]
    at_once = paired_p_values(table, resamples=20_000)
    monkeypatch.setattr(permutation, "_BLOCK", 7000)
    assert paired_p_values(table, resamples=20_000) == pytest.approx(at_once, abs=0.015)


def test_many_differences_get_the_normal_p_value_which_draws_agree_with(monkeypatch):
    # Of 2,000 draws the standard error is at most 1.1 percentage points.
    table = np.stack([_skewed(3000, mean, seed=3) - _skewed(3000, 0, seed=3).mean() for mean in (0.2, 0.6)], axis=1)
    drawn = paired_p_values(table, resamples=2000)
    monkeypatch.setattr(permutation, "MANY", 100)
    quick = paired_p_values(table)
    by_formula = 2 * scipy.stats.norm.sf(np.abs(table.sum(axis=0)) / np.sqrt((table**2).sum(axis=0)))
    assert quick == pytest.approx(by_formula, rel=1e-12)
    assert quick == pytest.approx(drawn, abs=0.04)
    assert quick[0] > quick[1] > 0.01


def test_yes_or_no_is_mcnemars_exact_test_beside_other_tests_too():
    one, other = (np.array(values) for values in _yes_no(20, 15, 4, 21))
    table = np.stack([one - other, _skewed(60, 1.0)], axis=1)
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
    assert wilcoxon_p_value(differences) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mean", [0.0, 1.5, 4.0])
def test_wilcoxon_is_that_of_scipy_without_zeros(mean):
    # SciPy would count the zeros among the ties, although it leaves them out.
    differences = _skewed(70, mean)
    theirs = scipy.stats.wilcoxon(differences[differences != 0]).pvalue
    assert wilcoxon_p_value(differences) == pytest.approx(theirs, rel=1e-12)
    assert paired_p_values(differences[:, None], "wilcoxon")[0] == wilcoxon_p_value(differences)


@pytest.mark.parametrize("test", ["signs", "wilcoxon"])
def test_a_difference_by_chance_is_found_as_often_as_the_level_says(test):
    # 400 runs at 10 %: the standard error is 1.5 percentage points. Signs are drawn at random, so the mean is zero.
    rng = np.random.default_rng(0)
    table = np.stack([_skewed(40, 0.0, seed) for seed in range(400)], axis=1) * rng.choice([-1, 1], (40, 400))
    assert 0.06 <= np.mean(paired_p_values(table, test, resamples=999) <= 0.1) <= 0.135


def test_tests_are_refused_word_for_word():
    with pytest.raises(MetricError, match=r"^no paired test 'sign'; did you mean 'signs'\? known: signs, wilcoxon$"):
        paired_p_values([[1.0]], "sign")
    with pytest.raises(MetricError, match=r"^differences are \[N, T\], one column a test; got shape \(2,\)$"):
        paired_p_values([1.0, 2.0])


# ---- intervals


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_interval_of_a_difference_is_that_of_scipys_paired_t_test(level):
    one, other = _skewed(40, 3.0), _skewed(40, 0.0, seed=1)
    theirs = scipy.stats.ttest_rel(one, other).confidence_interval(level)
    assert difference_interval(one, other, level=level) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert all(math.isnan(end) for end in difference_interval([1.0], [0.0]))


def test_the_interval_of_a_difference_by_resampling_is_scipys_bootstrap_of_pairs():
    # Two ends from 20,000 resamples each: 5 % of the width is several times what chance leaves between them.
    rng = np.random.default_rng(0)
    one = rng.gamma(2, 15, 80)
    other = one * 0.6 + rng.gamma(2, 5, 80)
    ours = difference_interval(one, other, resamples=20_000)
    means = bootstrap_means(np.stack([one, other], axis=1), resamples=20_000, seed=5)
    beside = np.quantile(means[:, 0] - means[:, 1], [0.025, 0.975])
    theirs = scipy.stats.bootstrap(
        (one, other),
        lambda first, second, axis: np.mean(first - second, axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    for found in (ours, beside):
        assert tuple(found) == pytest.approx(tuple(theirs), abs=0.05 * (theirs.high - theirs.low))


def _bent(t: float, bend: float) -> float:
    """Hall's cubic transformation of a t statistic."""
    return t + bend * t**2 / 3 + bend**2 * t**3 / 27 + bend / 6


def test_the_interval_of_a_skewed_mean_is_as_worked_by_hand():
    # Values 0, 0, 0, 4: mean 1, standard error 1, skewness 2 / sqrt(3), bend 1 / sqrt(3). The ends solve g(1 - end) = +-q.
    quantile = scipy.stats.t.ppf(0.75, 3)
    low, high = intervals.mean_interval([0.0, 0.0, 0.0, 4.0], level=0.5)
    assert 0 < low < 1 < high < 4
    assert _bent(1 - low, 3**-0.5) == pytest.approx(quantile)
    assert _bent(1 - high, 3**-0.5) == pytest.approx(-quantile)


@PROPERTY
@given(st.lists(st.floats(0, 100).map(lambda value: round(value, 3)), min_size=2, max_size=40), st.floats(0.01, 0.999))
def test_the_interval_of_a_skewed_mean_holds_it_within_the_values_and_turns_around_with_them(values, level):
    low, high = intervals.mean_interval(values, level)
    rounding = 1e-9
    assert min(values) - rounding <= low <= np.mean(values) + rounding
    assert np.mean(values) - rounding <= high <= max(values) + rounding
    mirrored = intervals.mean_interval([100 - value for value in values], level)
    assert (100 - mirrored[1], 100 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)


def test_without_skewness_the_interval_of_a_mean_is_students():
    values = [*range(30), *range(30)]
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert intervals.mean_interval(values, 0.9) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_the_interval_of_many_skewed_values_comes_close_to_the_bootstraps():
    values = np.random.default_rng(0).beta(0.3, 2, 5000) * 100
    ours, theirs = intervals.mean_interval(values), intervals.bootstrap_interval(values, resamples=4000)
    assert ours == pytest.approx(theirs, abs=0.05 * (theirs[1] - theirs[0]))


def test_intervals_of_nothing_and_of_one_value():
    assert all(math.isnan(end) for end in intervals.mean_interval([]))
    assert all(math.isnan(end) for end in intervals.mean_interval([7.0]))  # Student's interval is as wide as can be
    assert intervals.mean_interval([7.0] * 9) == (7.0, 7.0)
    assert intervals.mean_interval([5e-324, 0, 0]) == (0.0, 5e-324)  # whose deviation is below all floats
    low, high = intervals.mean_interval([1e-200, 2e-200, 4e-200])
    assert (low * 1e200, high * 1e200) == pytest.approx(intervals.mean_interval([1, 2, 4]))
    with pytest.raises(MetricError, match="the level of an interval is a probability"):
        intervals.mean_interval([], level=2)


def test_bootstrap_means_are_those_of_a_slow_loop_in_distribution_and_share_images():
    table = np.stack([_skewed(30, 0.0), _skewed(30, 3.0), np.zeros(30)], axis=1)
    table[:, 2] = table[:, 0] - table[:, 1]
    means = bootstrap_means(table, resamples=4000, seed=3)
    np.testing.assert_allclose(means[:, 2], means[:, 0] - means[:, 1], atol=1e-12)
    rng = np.random.default_rng(9)
    slow = np.array([table[[rng.integers(30) for _ in range(30)], 0].mean() for _ in range(3000)])
    for share in (0.025, 0.5, 0.975):
        assert np.quantile(means[:, 0], share) == pytest.approx(np.quantile(slow, share), abs=0.06 * np.ptp(slow) / 2)
    assert means.mean(axis=0) == pytest.approx(table.mean(axis=0), abs=4 * table.std(axis=0).max() / math.sqrt(30 * 4000))


def test_bootstrap_means_in_blocks_and_of_many_images(monkeypatch):
    table = np.stack([_skewed(3000, 0.0), _skewed(3000, 3.0, seed=1)], axis=1)
    at_once = bootstrap_means(table, 2000)
    for name, value in (("_BLOCK", 50_000), ("_MANY", 100)):
        monkeypatch.setattr(intervals, name, value)
        other = bootstrap_means(table, 2000)
        assert other.shape == at_once.shape
        np.testing.assert_allclose(other.std(axis=0), at_once.std(axis=0), rtol=0.08)
        np.testing.assert_allclose(other.mean(axis=0), table.mean(axis=0), atol=0.02)


def test_means_of_no_images_are_refused():
    with pytest.raises(MetricError, match=r"from a table \[N, K\] of at least one; got shape \(0, 2\)"):
        bootstrap_means(np.zeros((0, 2)))


def test_the_interval_of_a_mean_is_that_of_its_kind():
    assert metric_interval([0, 100, 100], "wilson") == pytest.approx(tuple(100 * end for end in wilson_interval(2, 3)))
    assert metric_interval([1.0, 5.0, 9.0]) == intervals.mean_interval([1.0, 5.0, 9.0])
    assert metric_interval([1.0, 5.0, 9.0], resamples=50, seed=4) == intervals.bootstrap_interval(
        [1, 5, 9], resamples=50, seed=4
    )
    with pytest.raises(MetricError, match="no interval 'normal'; known: mean, wilson"):
        metric_interval([1.0], "normal")


@pytest.mark.parametrize(
    ("counts", "expected", "digits"),
    [
        # Published examples: Altman et al., "Statistics with confidence", 2000, page 52; and Cavo et al. 2012 as in the R
        # package contingencytables of Fagerland, Lydersen and Laake.
        ((14, 5, 0, 22), (0.011, 0.226), 3),
        ((59, 6, 16, 80), (-0.1186, -0.0046), 4),
    ],
)
def test_newcombe_is_as_published(counts, expected, digits):
    assert [round(end, digits) for end in newcombe_interval(*_yes_no(*counts))] == list(expected)
    low, high = difference_interval(*_yes_no(*counts), kind="wilson")
    assert (low / 100, high / 100) == newcombe_interval(*_yes_no(*counts))


@PROPERTY
@given(st.tuples(*[st.integers(0, 12)] * 4).filter(any), st.floats(0.5, 0.99))
def test_newcombe_holds_the_difference_inside_of_its_range_and_turns_around_with_the_pairs(counts, level):
    one, other = _yes_no(*counts)
    low, high = newcombe_interval(one, other, level)
    assert -1 <= low <= (counts[1] - counts[2]) / sum(counts) <= high <= 1
    assert newcombe_interval(other, one, level) == pytest.approx((-high, -low), abs=1e-12)


def test_newcombe_has_a_width_where_nothing_differs_and_is_nan_for_nothing():
    low, high = newcombe_interval([0] * 20, [0] * 20)
    assert low < -0.1
    assert high == -low
    assert all(math.isnan(end) for end in newcombe_interval([], []))


def test_differences_of_what_is_no_pairs_are_refused():
    for kind in ("mean", "wilson"):
        with pytest.raises(MetricError, match=r"pairs are two vectors of the same images; got shapes \(2,\) and \(1,\)"):
            difference_interval([1, 2], [1], kind)


# ---- how large


@pytest.mark.parametrize(
    ("differences", "biserial", "dz", "odds"),
    [
        ([3, 4, 9, -1], 0.8, 3.75 / math.sqrt((0.75**2 + 0.25**2 + 5.25**2 + 4.75**2) / 3), 3.0),
        ([1, 1, -1, 0], 1 / 3, 0.25 / math.sqrt((2 * 0.75**2 + 1.25**2 + 0.25**2) / 3), 2.0),
        ([2, 2, 2], 1.0, math.nan, math.inf),
        ([-2, math.nan, -3], -1.0, -2.5 / math.sqrt(0.5), 0.0),
        ([0, 0], math.nan, math.nan, math.nan),
        ([], math.nan, math.nan, math.nan),
    ],
)
def test_effect_sizes_are_as_worked_by_hand(differences, biserial, dz, odds):
    found = rank_biserial(differences), cohens_dz(differences), discordant_odds(differences)
    assert found == pytest.approx((biserial, dz, odds), nan_ok=True)


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
    differences = _skewed(50, 3.0)
    left = differences[differences != 0]
    larger = scipy.stats.wilcoxon(left, alternative="greater").statistic
    total = len(left) * (len(left) + 1) / 2
    assert rank_biserial(differences) == pytest.approx(2 * larger / total - 1)


# ---- how many images


def test_images_needed_are_those_of_connors_example():
    # Connor 1987, page 209, as calculators give it: 45 % against 5 %, alpha 0.05 on both sides, power 0.8.
    assert images_needed([1] * 45 + [-1] * 5 + [0] * 50) == 23
    assert images_needed([100] * 30 + [-100] * 15 + [0] * 55) == 155  # 30 % against 15 %


def test_images_needed_for_means_are_a_little_more_than_the_textbook_says():
    # The textbook has the variance of the alternative twice: ((z + z') * sd / mean) ** 2. Under random signs it is larger.
    differences = np.random.default_rng(0).normal(3, 10, 500)
    z = scipy.stats.norm.isf(0.025), scipy.stats.norm.isf(0.2)
    textbook = (sum(z) * differences.std() / differences.mean()) ** 2
    assert textbook < images_needed(differences) < textbook + z[0] ** 2 + z[0] * z[1] + 1


@pytest.mark.parametrize("differences", [_skewed(400, 5.0, seed=1), np.array([100.0] * 30 + [-100.0] * 12 + [0.0] * 100)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_is_as_simulated(differences, alpha):
    # 800 runs at a power of 80 %: the standard error is 1.4 percentage points; for McNemar's exact test the power is a little
    # less, and of skewed differences a little more, as a large mean comes with a large spread.
    images = images_needed(differences, alpha)
    assert paired_power(differences, images, alpha) == pytest.approx(0.8, abs=0.02)
    drawn = np.random.default_rng(0).choice(differences, size=(int(images), 800))
    found = np.mean(paired_p_values(drawn, resamples=1999) <= alpha)
    assert 0.70 <= found <= 0.90


@PROPERTY
@given(
    st.lists(st.floats(-100, 100).map(lambda value: round(value, 3)), min_size=2, max_size=30),
    st.floats(0.001, 0.2),
    st.floats(0.3, 0.99),
)
def test_power_at_the_images_needed_is_at_least_what_was_asked_for(differences, alpha, power):
    images = images_needed(differences, alpha, power)
    if math.isfinite(images) and images < 1e12:
        assert paired_power(differences, images, alpha) >= power - 1e-6


def test_what_cannot_be_found_takes_infinitely_many_images_and_what_is_certain_a_few():
    assert images_needed([1, -1]) == math.inf
    assert images_needed([0, 0]) == math.inf
    assert paired_power([1, -1], 100) == pytest.approx(0.05)
    assert paired_power([0, 0], 100) == 0.05
    # All differences alike: the smallest p-value of n is 2 ** (1 - n), so alpha 0.05 takes six.
    assert images_needed([5, 5, 5]) == 6
    assert paired_power([5, 5, 5], 6) == 1.0
    assert math.isnan(images_needed([1]))
    assert math.isnan(paired_power([], 10))


def test_more_power_and_smaller_errors_take_more_images():
    differences = _skewed(100, 4.0)
    assert images_needed(differences) < images_needed(differences, power=0.9) < images_needed(differences, 0.001, 0.9)


@pytest.mark.parametrize("settings", [{"alpha": 0}, {"alpha": 1.5}, {"power": 1.0}])
def test_what_is_no_probability_is_refused(settings):
    [(name, value)] = settings.items()
    with pytest.raises(MetricError, match=rf"^{name} is a probability in \(0, 1\), such as 0.05 or 0.8; got {value}$"):
        images_needed([1, 2], **settings)
