"""Paired tests, sample size and power by groups: worked by hand, and against those of images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis.stats.references import skewed
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.paired import paired_p_values
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.analysis.stats.power import images_needed, paired_power

PROPERTY = settings(deadline=None, max_examples=40)
NAN = np.nan


def test_signs_of_whole_groups_are_flipped():
    # Sums 4, 2, 1: of the 8 sign vectors only one reaches 7. Means 2, 2, 1: the same.
    differences, groups = [[3.0], [1.0], [2.0], [1.0]], ["a", "a", "b", "c"]
    assert sign_flip_p_values(differences, groups=Grouping(groups)).tolist() == [1 / 8]
    assert sign_flip_p_values(differences, groups=Grouping(groups, "groups")).tolist() == [1 / 8]
    assert paired_p_values(differences, groups=Grouping(groups)).tolist() == [1 / 4]


def test_groups_decide_what_is_significant():
    differences, groups = np.full((40, 1), 100.0), Grouping(["a", "b"] * 20)
    assert sign_flip_p_values(differences)[0] == pytest.approx(2.0**-40)
    assert sign_flip_p_values(differences, groups=groups)[0] == 1 / 4


def test_weights_decide_which_side_is_better():
    differences, groups = [[1.0], [1.0], [1.0], [-2.0]], ["a", "a", "a", "b"]
    assert sign_flip_p_values(differences, groups=Grouping(groups)).tolist() == [1 / 2]  # sums 3 and -2
    assert sign_flip_p_values(differences, groups=Grouping(groups, "groups")).tolist() == [1.0]  # means 1 and -2


def test_missing_pairs_are_left_out_of_their_group():
    differences, groups = [[3.0], [NAN], [2.0], [1.0], [NAN]], ["a", "a", "b", "c", "d"]
    assert sign_flip_p_values(differences, groups=Grouping(groups)).tolist() == [1 / 8]
    assert paired_p_values(differences, "wilcoxon", groups=Grouping(groups)).tolist() == [1 / 4]


def test_wilcoxon_ranks_the_means_of_groups():
    means = np.array([[3.0], [4.0], [9.0], [-1.0]])
    copies = np.repeat(means, [5, 1, 2, 8], axis=0)
    groups = Grouping(np.repeat(np.arange(4), [5, 1, 2, 8]))
    assert paired_p_values(copies, "wilcoxon", groups=groups) == pytest.approx(paired_p_values(means, "wilcoxon"))


@PROPERTY
@given(st.integers(2, 40), st.integers(0, 100), st.sampled_from(["images", "groups"]))
def test_groups_of_one_image_change_no_test(count, seed, weights):
    table, alone = np.stack([skewed(count, 3.0, seed), skewed(count, 0.0, seed + 1)], axis=1), Grouping(range(count), weights)
    assert paired_p_values(table, groups=alone).tolist() == paired_p_values(table).tolist()
    assert paired_p_values(table, "wilcoxon", groups=alone).tolist() == paired_p_values(table, "wilcoxon").tolist()
    assert images_needed(table[:, 0], groups=alone) == images_needed(table[:, 0])
    assert paired_power(table[:, 0], 50, groups=alone) == paired_power(table[:, 0], 50)


def test_copies_of_images_take_as_many_groups_as_images():
    values = skewed(30, 8.0)
    copies, groups = np.repeat(values, 6), Grouping(np.repeat(np.arange(30), 6))
    assert images_needed(copies, groups=groups) == 6 * images_needed(values)
    assert paired_power(copies, 300, groups=groups) == pytest.approx(paired_power(values, 50))


def test_power_of_missing_pairs_counts_the_groups_that_are_left():
    values, groups = np.array([5.0, NAN, 3.0, 4.0, NAN, 6.0]), Grouping(["a", "a", "b", "c", "d", "e"])
    assert images_needed(values, groups=groups) == images_needed(values)
    assert np.isnan(images_needed([NAN, NAN], groups=Grouping(["a", "b"])))
    assert np.isnan(images_needed([1.0, 2.0], groups=Grouping(["a", "a"])))
