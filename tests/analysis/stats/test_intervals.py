"""Intervals: closed formulas, worked by hand, against SciPy, and by their coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.stats.references import skewed, yes_no
from xaieval.analysis.stats import intervals
from xaieval.analysis.stats.intervals import (
    bootstrap_interval,
    bootstrap_means,
    difference_interval,
    mean_interval,
    metric_interval,
    why_no_interval,
    wilson_interval,
)
from xaieval.analysis.stats.proportions import difference_of_proportions
from xaieval.analysis.summary import summarise
from xaieval.errors import MetricError

PROPERTY = settings(deadline=None, max_examples=100)


def _drops(count: int, seed: int = 0) -> np.ndarray:
    """Values like drops: many zeros, and a long tail up to 100."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 0.4, 0.0, np.minimum(rng.gamma(1, 25, count), 100))


# ---- Wilson


def _wilson(successes: int, n: int, level: float) -> tuple[float, float]:
    """Wilson 1927: the proportions p for which the observed one is z standard errors of p away."""
    z = scipy.stats.norm.ppf((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def test_wilson_of_one_in_four_is_as_worked_by_hand():
    # For z = 1 (level 68.27 %) and 1 of 4: centre (1/4 + 1/8) / (5/4) = 0.3, half width 4/5 * sqrt(3/64 + 1/64) = 0.2.
    level = math.erf(1 / math.sqrt(2))
    assert wilson_interval(1, 4, level) == pytest.approx((0.1, 0.5), abs=1e-12)


@PROPERTY
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.01, 0.999))
def test_wilson_is_its_closed_formula_inside_the_unit_interval(counts, level):
    low, high = wilson_interval(*counts, level)
    assert (low, high) == pytest.approx(_wilson(*counts, level), abs=1e-9)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@pytest.mark.parametrize(("successes", "n"), [(0, 20), (3, 20), (10, 20), (20, 20), (1, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_is_that_of_scipy(successes, n, level):
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson_interval(successes, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_has_a_width_also_where_no_image_or_every_image_counts():
    # The normal approximation would say that zero of twenty is certainly zero.
    low, high = wilson_interval(0, 20)
    assert low == 0
    assert high == pytest.approx(0.1611, abs=5e-5)
    assert wilson_interval(20, 20) == pytest.approx((1 - high, 1.0))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_wilson_holds_the_true_share_about_as_often_as_it_says(share):
    # 300 runs: the standard error of a coverage of 90 % is 1.7 percentage points, the bounds are about five of them.
    counts = np.random.default_rng(1).binomial(40, share, size=300)
    intervals = [wilson_interval(int(count), 40, level=0.9) for count in counts]
    covered = np.mean([low <= share <= high for low, high in intervals])
    assert 0.82 <= covered <= 0.98


# ---- bootstrap


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("count", [20, 200])
def test_bootstrap_is_the_percentile_bootstrap_of_scipy(count, level):
    # Two ends from 20,000 resamples each: 5 % of the interval's width is several times what chance leaves between them.
    sample = _drops(count)
    ours = bootstrap_interval(sample, level, resamples=20_000, seed=1)
    theirs = scipy.stats.bootstrap(
        (sample,), np.mean, method="percentile", confidence_level=level, n_resamples=20_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.05 * (theirs.high - theirs.low))


def test_bootstrap_is_the_slow_loop_over_resamples():
    sample = _drops(30)
    rng = np.random.default_rng(7)
    means = []
    for _ in range(4000):
        total = 0.0
        for _ in sample:
            total += sample[rng.integers(len(sample))]
        means.append(total / len(sample))
    expected = np.percentile(means, [5, 95])
    assert bootstrap_interval(sample, 0.9, resamples=20_000) == pytest.approx(expected, abs=0.07 * np.ptp(expected))


def test_bootstrap_of_one_value_that_is_different_is_as_worked_by_hand():
    # The mean of 20 draws is 5 times a binomial number, whose quantiles at 2.5 and 97.5 % are 0 and 3, at 30 and 70 % 0 and 1.
    values = [100.0] + [0.0] * 19
    assert bootstrap_interval(values, level=0.95) == (0.0, 15.0)
    assert bootstrap_interval(values, level=0.4) == (0.0, 5.0)


def test_bootstrap_narrows_with_the_root_of_the_number_of_images():
    widths = [np.ptp(bootstrap_interval(np.tile(_drops(50), times))) for times in (1, 4, 16)]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.15)
    assert widths[1] / widths[2] == pytest.approx(2, rel=0.15)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    sample = _drops(50)
    assert bootstrap_interval(sample, seed=3) == bootstrap_interval(sample.copy(), seed=3)
    assert bootstrap_interval(sample, seed=3) != bootstrap_interval(sample, seed=4)


@pytest.mark.parametrize("block", [1, 601, 10_000])
def test_drawing_in_blocks_gives_the_distribution_of_drawing_at_once(monkeypatch, block):
    # The tolerance leaves room for a generator that does not go on exactly where a smaller draw ended.
    sample = _drops(60)
    at_once = bootstrap_interval(sample, 0.9, resamples=5000, seed=5)
    monkeypatch.setattr(intervals, "_BLOCK", block)
    assert bootstrap_interval(sample, 0.9, resamples=5000, seed=5) == pytest.approx(at_once, abs=0.08 * np.ptp(at_once))


def test_memory_stays_bounded_for_many_images(monkeypatch):
    drawn = []
    real = np.random.default_rng

    class Watched:
        def __init__(self, seed: int) -> None:
            self.rng = real(seed)

        def integers(self, high: int, size: tuple[int, int]) -> np.ndarray:
            drawn.append(math.prod(size))
            return self.rng.integers(high, size=size)

    monkeypatch.setattr(intervals, "_BLOCK", 10_000)
    monkeypatch.setattr(np.random, "default_rng", Watched)
    bootstrap_interval(np.zeros(3000), resamples=100)
    assert max(drawn) <= 10_000
    assert sum(drawn) == 3000 * 100


@PROPERTY
@given(
    st.lists(st.floats(0, 100), min_size=20, max_size=40).filter(lambda values: len(set(values)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_a_bootstrap_interval_lies_within_the_values_and_is_in_order(values, level, seed):
    low, high = bootstrap_interval(values, level, resamples=50, seed=seed)
    rounding = 1e-9
    assert min(values) - rounding <= low <= high <= max(values) + rounding


def test_a_higher_level_gives_a_wider_interval():
    ends = [bootstrap_interval(_drops(40), level) for level in (0.5, 0.8, 0.95, 0.99)]
    assert all(wide[0] <= narrow[0] and narrow[1] <= wide[1] for narrow, wide in itertools.pairwise(ends))


@pytest.mark.parametrize(
    "interval", [mean_interval, bootstrap_interval, lambda *of: difference_interval(of[0], [0.0] * 59, *of[1:])]
)
def test_equal_values_have_an_interval_without_width_where_they_rule_out_others(interval):
    assert interval([7.1] * 59) == pytest.approx((7.1, 7.1))


def test_equal_values_that_may_hide_others_have_no_interval():
    # Of values of which one in twenty is another, n are equal with probability 0.95 ** n: more than 5 % below n = 59.
    for values in ([7.1] * 58, [0.0] * 5, [100.0] * 20):
        for ends in (mean_interval(values), bootstrap_interval(values), difference_interval(values, [0.0] * len(values))):
            assert np.isnan(ends).all()
    assert mean_interval([7.0] * 22, level=0.9) == (7.0, 7.0)
    assert np.isnan(mean_interval([7.0] * 59, level=0.99)).all()


def test_the_reason_for_no_interval_names_the_numbers_of_images():
    assert why_no_interval(0.95) == "no interval: a mean takes at least 4 images, and at least 59 if their values are all equal"
    assert "at least 22 if" in why_no_interval(0.9)


# ---- intervals of few images


FEW_IMAGES = {
    "normal": (lambda rng, n: rng.normal(50, 10, n), 50.0),
    "uniform": (lambda rng, n: rng.uniform(0, 100, n), 50.0),
    "exponential": (lambda rng, n: rng.exponential(20, n), 20.0),
    "two in five zero": (lambda rng, n: np.where(rng.random(n) < 0.4, 0.0, 100 * rng.beta(1, 2, n)), 20.0),
    "four in five zero": (lambda rng, n: np.where(rng.random(n) < 0.8, 0.0, 100 * rng.beta(1, 3, n)), 5.0),
    "beta(0.5, 0.5)": (lambda rng, n: 100 * rng.beta(0.5, 0.5, n), 50.0),
    "beta(0.3, 2)": (lambda rng, n: 100 * rng.beta(0.3, 2, n), 30 / 2.3),
}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 12])
@pytest.mark.parametrize("data", FEW_IMAGES)
@pytest.mark.parametrize("interval", ["mean", "bootstrap", "difference"])
def test_an_interval_of_few_images_holds_the_mean_or_there_is_none(data, count, interval):
    # 600 runs: the standard error of a coverage of 95 % is 0.9 percentage points.
    draw, mean = FEW_IMAGES[data]
    rng = np.random.default_rng(count)
    ends = {
        "mean": mean_interval,
        "bootstrap": bootstrap_interval,
        "difference": lambda values: difference_interval(values, values * 0),
    }[interval]
    low, high = np.transpose([ends(draw(rng, count)) for _ in range(600)])
    held = float(np.mean(~((low > mean) | (high < mean))))
    skewed_difference = interval == "difference" and "beta(0.5" not in data and data not in ("normal", "uniform")
    least = 0.93 if data in ("normal", "uniform") else 0.85 if skewed_difference else 0.91
    assert held >= least
    assert np.isnan(low).all() == (count < 4)


@pytest.mark.parametrize("count", [4, 5, 9])
def test_an_interval_of_few_images_takes_a_quarter_of_the_error(count):
    values = [10.0 * number for number in range(count)]  # not skewed, so that the interval is Student's
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9875)
    assert mean_interval(values) == pytest.approx((theirs.low, theirs.high))
    assert difference_interval(values, [0.0] * count) == pytest.approx((theirs.low, theirs.high))
    assert bootstrap_interval(values) == mean_interval(values)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_intervals_of_proportions_of_few_images_hold_any_share_as_often_as_they_say(count):
    # Over all shares; for a single one the coverage of Wilson's interval varies, as that of any interval that is not random.
    rng = np.random.default_rng(count)
    shares = rng.random(1500)
    ends = np.array([wilson_interval(int(rng.binomial(count, share)), count) for share in shares])
    assert 0.935 <= np.mean((ends[:, 0] <= shares) & (shares <= ends[:, 1])) <= 0.97


def test_bootstrap_holds_the_true_mean_about_as_often_as_it_says():
    # 300 runs of 60 exponential values: the percentile bootstrap is a little short for skewed values, so 90 % may be 84 %.
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.exponential(20, 60), 0.9, resamples=300, seed=run) for run in range(300)]
    covered = np.mean([low <= 20 <= high for low, high in intervals])
    assert 0.80 <= covered <= 0.96


# ---- means, and differences of means and of proportions


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_interval_of_a_difference_is_that_of_scipys_paired_t_test(level):
    one, other = skewed(40, 3.0), skewed(40, 0.0, seed=1)
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
    for actual in (ours, beside):
        assert tuple(actual) == pytest.approx(tuple(theirs), abs=0.05 * (theirs.high - theirs.low))


def _bent(t: float, bend: float) -> float:
    """Hall's cubic transformation of a t statistic."""
    return t + bend * t**2 / 3 + bend**2 * t**3 / 27 + bend / 6


def test_the_interval_of_a_skewed_mean_is_as_worked_by_hand():
    # Values 0, 0, 0, 4: mean 1, standard error 1, skewness 2 / sqrt(3), bend 1 / sqrt(3). The ends solve g(1 - end) = +-q.
    # Of four values, an interval at a level of 0.5 has an error of one eighth.
    quantile = scipy.stats.t.ppf(15 / 16, 3)
    low, high = mean_interval([0.0, 0.0, 0.0, 4.0], level=0.5)
    assert low < 0 < 1 < 4 < high
    assert _bent(1 - low, 3**-0.5) == pytest.approx(quantile)
    assert _bent(1 - high, 3**-0.5) == pytest.approx(-quantile)


@PROPERTY
@given(
    st.lists(st.floats(0, 100).map(lambda value: round(value, 3)), min_size=10, max_size=40).filter(
        lambda values: len(set(values)) > 1
    ),
    st.floats(0.01, 0.999),
)
def test_the_interval_of_a_skewed_mean_holds_it_within_the_values_and_turns_around_with_them(values, level):
    low, high = mean_interval(values, level)
    rounding = 1e-9
    assert min(values) - rounding <= low <= np.mean(values) + rounding
    assert np.mean(values) - rounding <= high <= max(values) + rounding
    mirrored = mean_interval([100 - value for value in values], level)
    assert (100 - mirrored[1], 100 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)


def test_without_skewness_the_interval_of_a_mean_is_students():
    values = [*range(30), *range(30)]
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_interval(values, 0.9) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_the_interval_of_many_skewed_values_comes_close_to_the_bootstraps():
    values = np.random.default_rng(0).beta(0.3, 2, 5000) * 100
    ours, theirs = mean_interval(values), bootstrap_interval(values, resamples=4000)
    assert ours == pytest.approx(theirs, abs=0.05 * (theirs[1] - theirs[0]))


def test_intervals_of_nothing_and_of_one_value():
    assert all(math.isnan(end) for end in mean_interval([]))
    assert all(math.isnan(end) for end in mean_interval([7.0]))  # Student's interval is as wide as can be
    assert mean_interval([5e-324, *[0] * 9]) == (0.0, 5e-324)  # whose deviation is below all floats
    low, high = mean_interval([1e-100, 2e-100, 4e-100, 4e-100])
    assert (low * 1e100, high * 1e100) == pytest.approx(mean_interval([1, 2, 4, 4]))
    with pytest.raises(MetricError, match="the level of an interval is a probability"):
        mean_interval([], level=2)


def test_bootstrap_means_are_those_of_a_slow_loop_in_distribution_and_share_images():
    table = np.stack([skewed(30, 0.0), skewed(30, 3.0), np.zeros(30)], axis=1)
    table[:, 2] = table[:, 0] - table[:, 1]
    means = bootstrap_means(table, resamples=4000, seed=3)
    np.testing.assert_allclose(means[:, 2], means[:, 0] - means[:, 1], atol=1e-12)
    rng = np.random.default_rng(9)
    slow = np.array([table[[rng.integers(30) for _ in range(30)], 0].mean() for _ in range(3000)])
    for share in (0.025, 0.5, 0.975):
        assert np.quantile(means[:, 0], share) == pytest.approx(np.quantile(slow, share), abs=0.06 * np.ptp(slow) / 2)
    assert means.mean(axis=0) == pytest.approx(table.mean(axis=0), abs=4 * table.std(axis=0).max() / math.sqrt(30 * 4000))


def test_bootstrap_means_in_blocks_and_of_many_images(monkeypatch):
    table = np.stack([skewed(3000, 0.0), skewed(3000, 3.0, seed=1)], axis=1)
    at_once = bootstrap_means(table, 2000)
    for name, value in (("_BLOCK", 50_000), ("_MANY", 100)):
        monkeypatch.setattr(intervals, name, value)
        other = bootstrap_means(table, 2000)
        assert other.shape == at_once.shape
        np.testing.assert_allclose(other.std(axis=0), at_once.std(axis=0), rtol=0.08)
        np.testing.assert_allclose(other.mean(axis=0), table.mean(axis=0), atol=0.02)


def test_means_of_no_images_are_refused():
    with pytest.raises(MetricError, match=r"need a table \[N, K\] of at least one image; got shape \(0, 2\)"):
        bootstrap_means(np.zeros((0, 2)))


def test_the_interval_of_a_mean_is_that_of_its_kind():
    assert metric_interval([0, 100, 100], "wilson") == pytest.approx(tuple(100 * end for end in wilson_interval(2, 3)))
    values = [*range(25)]
    assert metric_interval(values) == mean_interval(values)
    assert metric_interval(values, resamples=50, seed=4) == bootstrap_interval(values, resamples=50, seed=4)
    with pytest.raises(MetricError, match="no interval 'normal'; known: mean, wilson"):
        metric_interval([1.0], "normal")


def _newcombe(one: list[float], other: list[float], level: float = 0.95) -> tuple[float, float]:
    return difference_of_proportions(np.array(one) > 0, np.array(other) > 0, level)


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
    assert [round(end, digits) for end in _newcombe(*yes_no(*counts))] == list(expected)
    low, high = difference_interval(*yes_no(*counts), kind="wilson")
    assert (low, high) == tuple(100 * end for end in _newcombe(*yes_no(*counts)))


@PROPERTY
@given(st.tuples(*[st.integers(0, 12)] * 4).filter(any), st.floats(0.5, 0.99))
def test_newcombe_holds_the_difference_inside_of_its_range_and_turns_around_with_the_pairs(counts, level):
    one, other = yes_no(*counts)
    low, high = _newcombe(one, other, level)
    assert -1 <= low <= (counts[1] - counts[2]) / sum(counts) <= high <= 1
    assert _newcombe(other, one, level) == pytest.approx((-high, -low), abs=1e-12)


def test_newcombe_has_a_width_where_nothing_differs_and_is_nan_for_nothing():
    low, high = _newcombe([0] * 20, [0] * 20)
    assert low < -0.1
    assert high == -low
    assert all(math.isnan(end) for end in _newcombe([], []))


def test_differences_of_what_is_no_pairs_are_refused():
    for kind in ("mean", "wilson"):
        with pytest.raises(MetricError, match=r"pairs are two vectors of the same images; got shapes \(2,\) and \(1,\)"):
            difference_interval([1, 2], [1], kind)


# ---- nothing, and nonsense


def test_without_values_both_intervals_are_nan():
    for ends in (bootstrap_interval([]), wilson_interval(0, 0)):
        assert all(math.isnan(end) for end in ends)


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, 95, math.nan])
@pytest.mark.parametrize(
    "interval", [lambda level: bootstrap_interval([1.0], level), lambda level: wilson_interval(1, 2, level)]
)
def test_a_level_that_is_no_probability_is_refused_word_for_word(interval, level):
    with pytest.raises(MetricError) as error:
        interval(level)
    assert str(error.value) == f"the level of an interval is a probability in (0, 1), such as 0.95; got {level}"


def test_a_level_is_checked_also_where_there_are_no_values():
    with pytest.raises(MetricError):
        bootstrap_interval([], level=2)
    with pytest.raises(MetricError):
        wilson_interval(0, 0, level=2)


def test_many_values_get_the_normal_interval_which_the_bootstrap_agrees_with(monkeypatch):
    values = np.random.default_rng(0).beta(0.3, 2, 100_001) * 100
    quick = bootstrap_interval(values)
    half = 1.959963984540054 * values.std() / math.sqrt(len(values))
    assert quick == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-12)
    monkeypatch.setattr("xaieval.analysis.stats.intervals._MANY", len(values))
    assert quick == pytest.approx(bootstrap_interval(values), abs=0.1 * half)


@pytest.mark.parametrize(
    "bootstrap", [lambda: bootstrap_interval([1.0, 2.0], resamples=0), lambda: bootstrap_means([[1.0]], 0)]
)
def test_a_bootstrap_without_samples_is_refused(bootstrap):
    with pytest.raises(MetricError) as caught:
        bootstrap()
    assert str(caught.value) == "resamples is at least 1, got 0"


@PROPERTY
@given(st.lists(st.sampled_from([0.0, 3.0, 40.0, 100.0]), min_size=4, max_size=12))
def test_intervals_of_metrics_with_bounds_do_not_leave_them(values):
    low, high = mean_interval(values)
    given_bounds = metric_interval(values, bounds=(0, 100))
    if np.isnan(low):
        assert np.isnan(given_bounds).all()
    else:
        assert given_bounds == (max(low, 0), min(high, 100))
        assert given_bounds[0] <= np.mean(values) <= given_bounds[1]
        assert metric_interval(values, bounds=(0, 99)) == ((low, high) if max(values) == 100 else (max(low, 0), min(high, 99)))


def test_summaries_cut_intervals_at_the_bounds_of_the_metric():
    values = [0.0, 40.0, 10.0, 2.0]
    entry = {"name": "average_drop", "interval": "mean", "higher_is_better": False}
    rows = pd.DataFrame(
        {"image_id": list("abcd"), "layer": "1", "method": "gradcam", "status": "ok", "average_drop": values, "mask_area": 0.3}
    )
    low, high = mean_interval(values)
    assert low < 0
    assert high > 100
    ends = ["average_drop_low", "average_drop_high"]
    assert summarise(rows, [entry])[ends].iloc[0].tolist() == [low, high]
    assert summarise(rows, [entry | {"bounds": [0.0, 100.0]}])[ends].iloc[0].tolist() == [0, 100]
