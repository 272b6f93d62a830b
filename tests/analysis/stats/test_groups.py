"""Groups of images: means and totals, worked by hand, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xaieval.analysis.stats.groups import Grouping
from xaieval.errors import MetricError

NAN = math.nan
PROPERTY = settings(deadline=None, max_examples=100)


def test_groups_are_numbered_in_the_order_in_which_they_appear():
    places = Grouping(["road", "lake", "road", "farm"])
    assert (len(places), places.count) == (4, 3)
    assert places.codes.tolist() == [0, 1, 0, 2]
    assert places.sizes.tolist() == [2, 1, 1]


def test_names_may_be_of_any_kind():
    assert Grouping([3, "3", 3.5, ("a", 1), 3]).codes.tolist() == [0, 1, 2, 3, 0]
    assert Grouping(np.array([7, 7, 8])).count == 2


def test_means_and_totals_count_images_or_groups():
    names, values = ["a", "b", "a", "a"], np.array([[1.0], [10.0], [2.0], [3.0]])
    by_images, by_groups = Grouping(names), Grouping(names, weights="groups")
    assert (by_images.mean(values[:, 0]), by_groups.mean(values[:, 0])) == (4.0, 6.0)
    assert by_images.totals(values).tolist() == [[6.0], [10.0]]
    assert by_groups.totals(values).tolist() == [[2.0], [10.0]]


def test_totals_leave_out_nan_and_groups_without_values_add_nothing():
    names, values = ["a", "a", "b", "b"], [[1.0, NAN], [NAN, NAN], [3.0, 4.0], [5.0, NAN]]
    assert Grouping(names).totals(values).tolist() == [[1.0, 0.0], [8.0, 4.0]]
    assert Grouping(names, "groups").totals(values).tolist() == [[1.0, 0.0], [4.0, 4.0]]


def test_some_of_the_images_keep_their_groups_and_weights():
    places = Grouping(["a", "b", "a", "c"], "groups")
    assert places.of([True, False, True, True]).sizes.tolist() == [2, 1]
    assert places.of([3, 1]).codes.tolist() == [0, 1]
    assert places.of([3, 1]).weights == "groups"


def test_no_images_are_no_groups():
    nothing = Grouping([])
    assert (len(nothing), nothing.count) == (0, 0)
    assert math.isnan(nothing.mean([]))
    assert nothing.totals(np.zeros((0, 2))).shape == (0, 2)


@PROPERTY
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-50, 50)), min_size=1, max_size=30))
def test_means_are_those_of_a_slow_loop(pairs):
    names, values = zip(*pairs, strict=True)
    found: dict[int, list[int]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    means = [sum(own) / len(own) for own in found.values()]
    assert Grouping(names).means(values) == pytest.approx(means)
    assert Grouping(names).mean(values) == pytest.approx(sum(values) / len(values))
    assert Grouping(names, "groups").mean(values) == pytest.approx(sum(means) / len(means))
    assert Grouping(names).totals(np.array(values)[:, None])[:, 0].tolist() == [sum(own) for own in found.values()]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Grouping(["a", None, "b", NAN]),
            "2 of 4 images have no group (the first is number 1, from 0); give every image a group, of its own if it belongs "
            "to no other",
        ),
        (lambda: Grouping([["a"], ["b"]]), "groups are one value per image, [N]; got shape (2, 1)"),
        (lambda: Grouping(["a"], "image"), "no weights 'image'; did you mean 'images'? known: images, groups"),
        (lambda: Grouping(["a", "b"]).means([1.0]), "groups of 2 images take as many values; got shape (1,)"),
        (lambda: Grouping(["a", "b"]).totals([[1.0]]), "groups of 2 images take a table of as many rows; got shape (1, 1)"),
    ],
)
def test_what_cannot_be_groups_is_refused_word_for_word(make, message):
    with pytest.raises(MetricError) as caught:
        make()
    assert str(caught.value) == message
