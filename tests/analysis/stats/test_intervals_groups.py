"""Intervals and tests by groups: one image per group changes nothing, against plain formulas, and few groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.stats.references import skewed
from xaieval.analysis.stats.estimates import degrees_of_freedom, estimate, intraclass_correlation
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import (
    bootstrap_interval,
    bootstrap_means,
    difference_interval,
    mean_interval,
    metric_interval,
    why_no_interval,
)
from xaieval.errors import MetricError

PROPERTY = settings(deadline=None, max_examples=60)
WEIGHTS = st.sampled_from(["images", "groups"])
group_sizes = st.lists(st.integers(1, 9), min_size=4, max_size=25)


def _groups(sizes, weights="images") -> Grouping:
    return Grouping(np.repeat(np.arange(len(sizes)), sizes), weights)


@PROPERTY
@given(st.integers(4, 60), st.integers(0, 1000), WEIGHTS)
def test_groups_of_one_image_give_the_intervals_of_images(count, seed, weights):
    values, others, alone = skewed(count, 5, seed), skewed(count, 0, seed + 1), Grouping(range(count), weights)
    for interval in (mean_interval, bootstrap_interval):
        assert interval(values, groups=alone) == pytest.approx(interval(values), abs=1e-6, nan_ok=True)
    expected = difference_interval(values, others)
    assert difference_interval(values, others, groups=alone) == pytest.approx(expected, abs=1e-6, nan_ok=True)
    rows = bootstrap_means(np.stack([values, others], axis=1), 50)
    assert bootstrap_means(np.stack([values, others], axis=1), 50, groups=alone) == pytest.approx(rows)
    binary = 100.0 * (values > np.median(values))
    assert metric_interval(binary, "wilson", groups=alone) == pytest.approx(metric_interval(binary, "wilson"), abs=1e-6)
    pair = binary, 100.0 * (others > np.median(others))
    assert difference_interval(*pair, "wilson", groups=alone) == difference_interval(*pair, "wilson")


@PROPERTY
@given(group_sizes, st.integers(0, 1000), WEIGHTS)
def test_the_error_is_cr2_by_matrices(sizes, seed, weights):
    # Bell and McCaffrey for a regression on a constant, where the groups' means are the data: A_g is 1 / sqrt(1 - share).
    groups = _groups(sizes, weights)
    values = np.random.default_rng(seed).normal(size=len(groups))
    share = np.array(sizes) / sum(sizes) if weights == "images" else np.full(len(sizes), 1 / len(sizes))
    means = np.array([values[groups.codes == group].mean() for group in range(len(sizes))])
    residuals = means - share @ means
    found = estimate(values, groups)
    assert found.mean == pytest.approx(share @ means)
    assert found.error**2 == pytest.approx(share**2 @ (residuals / np.sqrt(1 - share)) ** 2)


@PROPERTY
@given(group_sizes, st.floats(0, 1), WEIGHTS)
def test_degrees_of_freedom_are_those_of_the_whole_matrices(sizes, correlation, weights):
    groups = _groups(sizes, weights)
    share = groups.shares
    centred = np.eye(len(share)) - share
    covariance = centred @ np.diag(correlation + (1 - correlation) / groups.sizes) @ centred.T
    form = np.diag(share**2 / (1 - share)) @ covariance
    expected = np.trace(form) ** 2 / np.trace(form @ form)
    assert degrees_of_freedom(groups, correlation) == pytest.approx(expected)


def test_equal_groups_have_one_degree_of_freedom_less_than_groups():
    assert degrees_of_freedom(_groups([10] * 20), 0.3) == pytest.approx(19)


def test_the_intraclass_correlation_is_as_worked_by_hand():
    # Groups (1, 3), (5, 7): means 2 and 6, within 4 / 2 = 2, between 2 * (4 + 4) / 1 = 16, so (16 - 2) / (16 + 2).
    assert intraclass_correlation(np.array([1.0, 3.0, 5.0, 7.0]), _groups([2, 2])) == pytest.approx(14 / 18)
    assert intraclass_correlation(np.array([1.0, 3.0, 1.0, 3.0]), _groups([2, 2])) == 0
    assert intraclass_correlation(np.array([1.0, 3.0]), _groups([1, 1])) == 0
    assert intraclass_correlation(np.array([1.0, 1.0, 2.0, 2.0]), _groups([2, 2])) == 1


def test_the_intraclass_correlation_is_found():
    rng = np.random.default_rng(0)
    groups = _groups([10] * 2000)
    values = rng.normal(size=2000)[groups.codes] * np.sqrt(0.2) + rng.normal(size=20_000) * np.sqrt(0.8)
    assert intraclass_correlation(values, groups) == pytest.approx(0.2, abs=0.02)


def test_copies_of_an_image_in_a_group_are_worth_one_image():
    values, others = skewed(30, 5, 0), skewed(30, 0, 1)
    copies, other_copies, groups = np.repeat(values, 7), np.repeat(others, 7), _groups([7] * 30)
    assert mean_interval(copies, groups=groups) == pytest.approx(mean_interval(values))
    assert difference_interval(copies, other_copies, groups=groups) == pytest.approx(difference_interval(values, others))
    assert bootstrap_interval(copies, groups=groups) == pytest.approx(bootstrap_interval(values))


def test_bootstrap_draws_whole_groups():
    means = bootstrap_means([[0.0], [0.0], [0.0], [10.0]], 400, groups=Grouping(["a", "a", "a", "b"]))
    assert sorted({round(float(mean), 6) for mean in means[:, 0]}) == [0, 2.5, 10]  # a and a, a and b, b and b
    means = bootstrap_means([[0.0], [0.0], [0.0], [10.0]], 400, groups=Grouping(["a", "a", "a", "b"], "groups"))
    assert sorted({round(float(mean), 6) for mean in means[:, 0]}) == [0, 5, 10]


@pytest.mark.parametrize("kind", ["mean", "wilson"])
@pytest.mark.parametrize("names", [["a"] * 40, ["a", "b"] * 20, ["a", "b", "c", "c"] * 10])
def test_fewer_than_four_groups_have_no_interval(names, kind):
    values = 100.0 * (np.arange(40) % 3 == 0)
    assert all(math.isnan(end) for end in metric_interval(values, kind, groups=Grouping(names)))
    assert all(math.isnan(end) for end in difference_interval(values, values[::-1], kind, groups=Grouping(names)))


def test_groups_with_equal_means_need_as_many_groups_as_equal_values():
    values = np.tile([0.1, 0.3, 0.6], 59)
    assert all(math.isnan(end) for end in mean_interval(values[: 58 * 3], groups=_groups([3] * 58)))
    assert mean_interval(values, groups=_groups([3] * 59)) == pytest.approx((1 / 3, 1 / 3))


def test_a_share_of_none_or_all_counts_each_group_as_one_image():
    none = metric_interval(np.zeros(210), "wilson", groups=_groups([10] * 21))
    assert none == pytest.approx(metric_interval(np.zeros(21), "wilson"))
    assert metric_interval(np.full(210, 100.0), "wilson", groups=_groups([10] * 21)) == pytest.approx(
        (100 - none[1], 100 - none[0])
    )


def test_why_there_is_no_interval_is_said_of_groups():
    assert why_no_interval(groups=Grouping(["a", "a"])) == (
        "no interval: a mean takes at least 4 groups, and at least 59 if their means are all equal; here is 1 group"
    )


def test_values_that_are_not_of_the_images_are_refused_word_for_word():
    for call in (mean_interval, bootstrap_interval):
        with pytest.raises(MetricError) as caught:
            call([1.0, 2.0, 3.0], groups=Grouping(["a", "b"]))
        assert str(caught.value) == "groups of 2 images take as many values; got shape (3,)"


def test_a_proportion_is_wilsons_for_the_number_of_images_by_the_design_effect_worked_by_hand():
    # Means 1, 1/2, 0, 0 of groups of 2: share 3/8, c = 5/8, 1/8, -3/8, -3/8, sum of squares 11/16, weights 1/4.
    # CR2: 1/16 * 11/16 / (3/4) = 11/192; of independent images 3/8 * 5/8 / 7 = 15/448: a design effect of 77/45.
    # Of 3 yes and 5 no the yes are rarer; the largest design effect is 2: (3 * 77/45 * ratio + 2) / 4.
    values, groups = np.array([1, 1, 1, 0, 0, 0, 0, 0]) * 100.0, _groups([2] * 4)
    ratio = (scipy.stats.t.isf(0.025, 3) / scipy.stats.t.isf(0.025, 7)) ** 2
    images, z = 8 / ((3 * 77 / 45 * ratio + 2) / 4), scipy.stats.norm.isf(0.025)
    for end in metric_interval(values, "wilson", groups=groups):
        assert abs(3 / 8 - end / 100) == pytest.approx(z * math.sqrt(end / 100 * (1 - end / 100) / images))


def test_more_images_of_the_same_groups_help_less_than_more_groups():
    rng = np.random.default_rng(0)
    means = rng.normal(50, 10, 40)
    few, same, more = (np.repeat(means[:count], size) for count, size in ((20, 5), (20, 10), (40, 5)))
    widths = []
    for values, sizes in ((few, [5] * 20), (same, [10] * 20), (more, [5] * 40)):
        low, high = mean_interval(values + rng.normal(0, 5, len(values)), groups=_groups(sizes))
        widths.append(high - low)
    assert widths[2] < 0.8 * widths[0]
    assert widths[1] > 0.9 * widths[0]


@pytest.mark.parametrize("weights", ["images", "groups"])
def test_two_proportions_that_never_differ_have_a_difference_of_0_with_a_width(weights):
    values, groups = 100.0 * (np.arange(210) % 7 < 2), _groups([10] * 21, weights)
    low, high = difference_interval(values, values, "wilson", groups=groups)
    assert low < -2 < 2 < high
    assert low == pytest.approx(-high)


@PROPERTY
@given(st.integers(4, 30), st.integers(0, 1000), st.floats(0.02, 0.98), WEIGHTS)
def test_intervals_of_proportions_lie_in_their_range_and_turn_around(count, seed, share, weights):
    rng = np.random.default_rng(seed)
    groups = _groups(rng.integers(1, 9, count), weights)
    one, other = 100.0 * (rng.random((2, len(groups))) < share)
    low, high = metric_interval(one, "wilson", groups=groups)
    assert 0 <= low <= groups.mean(one) + 1e-9
    assert groups.mean(one) - 1e-9 <= high <= 100
    assert metric_interval(100 - one, "wilson", groups=groups) == pytest.approx((100 - high, 100 - low), abs=1e-6)
    low, high = difference_interval(one, other, "wilson", groups=groups)
    assert -100 <= low <= groups.mean(one) - groups.mean(other) + 1e-9
    assert difference_interval(other, one, "wilson", groups=groups) == pytest.approx((-high, -low), abs=1e-6)


@PROPERTY
@given(group_sizes, st.integers(0, 1000), WEIGHTS)
def test_neither_the_order_of_images_nor_the_names_of_groups_nor_the_unit_matter(sizes, seed, weights):
    rng = np.random.default_rng(seed)
    groups = _groups(sizes, weights)
    values, order = rng.exponential(10, len(groups)), rng.permutation(len(groups))
    expected = np.array(mean_interval(values, groups=groups))
    renamed = Grouping([f"place {name}" for name in groups.codes[order]], weights)
    assert mean_interval(values[order], groups=renamed) == pytest.approx(tuple(expected))
    assert mean_interval(8 * values, groups=groups) == pytest.approx(tuple(8 * expected))
