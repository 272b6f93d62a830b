"""How many images a difference takes, and the power of a number of images: published examples, simulation, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.stats.references import skewed
from xaieval.analysis.stats.paired import paired_p_values
from xaieval.analysis.stats.power import images_needed, paired_power
from xaieval.errors import MetricError

PROPERTY = settings(deadline=None, max_examples=40)


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


@pytest.mark.parametrize("differences", [skewed(400, 5.0, seed=1), np.array([100.0] * 30 + [-100.0] * 12 + [0.0] * 100)])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_is_as_simulated(differences, alpha):
    # 800 runs at a power of 80 %: the standard error is 1.4 percentage points; for McNemar's exact test the power is a little
    # less, and of skewed differences a little more, as a large mean comes with a large spread.
    images = images_needed(differences, alpha)
    assert paired_power(differences, images, alpha) == pytest.approx(0.8, abs=0.02)
    drawn = np.random.default_rng(0).choice(differences, size=(int(images), 800))
    actual = np.mean(paired_p_values(drawn, resamples=1999) <= alpha)
    assert 0.70 <= actual <= 0.90


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
    differences = skewed(100, 4.0)
    assert images_needed(differences) < images_needed(differences, power=0.9) < images_needed(differences, 0.001, 0.9)


@pytest.mark.parametrize("settings", [{"alpha": 0}, {"alpha": 1.5}, {"power": 1.0}])
def test_what_is_no_probability_is_refused(settings):
    [(name, value)] = settings.items()
    with pytest.raises(MetricError, match=rf"^{name} is a probability in \(0, 1\), such as 0.05 or 0.8; got {value}$"):
        images_needed([1, 2], **settings)
