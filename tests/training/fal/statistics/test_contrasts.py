"""Which arms add up to which effect."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.fal.statistics.made_runs import ARMS, TRUE, true_mean
from xaieval.errors import MetricError
from xaieval.models import LEVELS
from xaieval.training.fal.arms import fal_arm, twin_arm
from xaieval.training.fal.statistics.contrasts import HALF_FRACTION, contrasts, half_fraction_arms

SETS = [levels for size in range(1, 5) for levels in combinations(LEVELS, size)]


def test_the_half_fraction_has_each_level_and_each_pair_of_levels_equally_often():
    assert [len(levels) for levels in HALF_FRACTION] == [1, 1, 1, 1, 3, 3, 3, 3]
    for level in LEVELS:
        assert sum(level in levels for levels in HALF_FRACTION) == 4
    for one, other in combinations(LEVELS, 2):
        assert sum(one in levels and other in levels for levels in HALF_FRACTION) == 2


def test_weights_are_those_of_the_difference_of_two_means_of_four_sets():
    found = contrasts(ARMS)
    assert found.notes == []
    for (level, part), weights in found.weights.items():
        expected = {}
        for levels in HALF_FRACTION:
            sign = 1 / 8 if level == "all" else (0.25 if level in levels else -0.25)
            expected[fal_arm(levels)] = sign * (part != "twin")
            expected[twin_arm(fal_arm(levels))] = sign * {"fal": 0, "twin": 1, "gate": -1}[part]
        assert {arm: weights.get(arm, 0.0) for arm in expected} == pytest.approx(expected, abs=1e-12)


def test_effects_of_exact_means_are_the_true_ones():
    table = contrasts(ARMS).table(ARMS)
    assert dict(zip(table.index, table @ [true_mean(arm) for arm in ARMS], strict=True)) == pytest.approx(TRUE, abs=1e-9)


def test_an_interaction_of_two_levels_moves_no_main_effect():
    table = contrasts(half_fraction_arms(), ["fal"]).table(half_fraction_arms())
    for one, other in combinations(LEVELS, 2):
        both = [float(one in arm and other in arm) - 0.5 * (one in arm) - 0.5 * (other in arm) for arm in table]
        assert np.allclose(table @ both, 0)


@given(st.sets(st.sampled_from(SETS), min_size=1))
def test_whatever_sets_there_are_effects_that_are_told_are_right_where_levels_add_up(sets):
    arms = [fal_arm(levels) for levels in sets] + [twin_arm(fal_arm(levels)) for levels in sets]
    table = contrasts(arms).table(arms)
    assert np.allclose(table.sum(axis=1), 0)
    means = [true_mean(arm) for arm in arms]
    for (level, part), weights in table.iterrows():
        if level != "all":  # the gate's mean is that over the sets there are
            assert weights @ means == pytest.approx(TRUE[level, part], abs=1e-8)


def test_sets_that_are_not_balanced_are_named():
    notes = contrasts([fal_arm(levels) for levels in SETS if levels != ("p2",)], ["fal"]).notes
    assert notes == ["part 'fal': the 14 sets of levels are not balanced, so the effects assume that levels add up"]


def test_further_sets_leave_the_effects_of_the_half_fraction_as_they_are():
    found = contrasts([*ARMS, "fal-p2-p3-p4-p5", "twin-p2-p3", "fal-p2-p3"])
    assert found.weights == contrasts(ARMS).weights
    assert found.notes == [
        "part 'fal' is that of the half fraction, without p2-p3-p4-p5, p2-p3",
        "part 'twin' is that of the half fraction, without p2-p3",
        "part 'gate' is that of the half fraction, without p2-p3",
    ]


def test_what_the_arms_do_not_tell_is_named():
    found = contrasts(["fal-p2", "fal-p2-p3", "fpn"])
    assert list(found.weights) == [("p3", "fal")]
    assert found.notes == [
        "part 'fal': 2 sets of levels do not tell the effect of p2, p4, p5",
        "part 'twin' is not known: no run of a twin arm",
        "part 'gate' is not known: no run of a twin arm",
    ]
    found = contrasts(["fal-p2", "fal-p3", "twin-p4", "twin-p4-p5"], ["twin", "gate"])
    assert "part 'gate' is not known: no set of levels has runs of FAL and of its twin" in found.notes


@pytest.mark.parametrize(
    ("arms", "parts", "message"),
    [
        (ARMS, ["loss"], "no part 'loss' of an effect; known: fal, twin, gate"),
        (
            ["fal-p2@focus", "twin-p2@amplify"],
            ["fal"],
            "effects of levels are those of one design, and the arms have focus, amplify; choose the runs of one of them",
        ),
        (
            ["fpn", "abn", "fal-p2"],
            ["fal"],
            "the arms tell no effect of a level and none of the gate; effects need FAL with several sets of levels, or FAL and "
            "its twin; got fpn, abn, fal-p2",
        ),
    ],
)
def test_errors(arms, parts, message):
    with pytest.raises(MetricError) as raised:
        contrasts(arms, parts)
    assert str(raised.value) == message
