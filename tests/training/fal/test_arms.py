"""Names of arms: what they mean, what is refused, and which twin belongs to which FAL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xaieval.errors import ConfigError, ModelError
from xaieval.models import LEVELS
from xaieval.models.designs import DESIGNS
from xaieval.training.fal.arms import Arm, check_arms, fal_arm, is_role, twin_among, twin_arm

SETS = st.sets(st.sampled_from(list(LEVELS)), min_size=1)


@given(SETS, st.sampled_from([None, *DESIGNS]))
def test_the_name_of_an_arm_says_its_levels_and_its_design(levels, design):
    name = fal_arm(levels) + (f"@{design}" if design else "")
    arm = Arm.of(name)
    assert (arm.kind, arm.levels, arm.design) == ("fal", tuple(sorted(levels)), design)
    twin = Arm.of(twin_arm(name))
    assert (twin.kind, twin.levels, twin.design) == ("twin", arm.levels, design)


def test_fpn_and_abn_have_no_levels():
    assert (Arm.of("fpn").levels, Arm.of("abn").levels) == ((), ())
    assert fal_arm([]) == "fpn"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("selectd", "did you mean 'selected'"),
        ("fal-p3-p2", "in order"),
        ("fal-p2-p2", "in order"),
        ("fal-p6", "such as fal-p2-p3"),
    ],
)
def test_a_name_of_no_arm_is_refused(name, said):
    with pytest.raises(ConfigError, match=rf"^no arm '{name}' of the experiment; .*{said}"):
        check_arms(["fpn", name])


def test_a_design_that_does_not_exist_is_refused():
    with pytest.raises(ModelError, match=r"^no design 'fcus' of attention; did you mean 'focus'"):
        check_arms(["fal-p2@fcus"])


def test_roles_are_no_explicit_arms():
    assert is_role("selected-twin")
    assert not is_role("fal-p2")
    check_arms(["selected", "best-twin", "fal-p2", "abn", "fpn"])


@pytest.mark.parametrize(
    ("name", "twins", "expected"),
    [
        ("fal-p2", ["twin-p2", "twin-p3"], "twin-p2"),
        ("fal-p2", ["twin-p3"], None),
        ("fal-p2@focus", ["twin-p2@amplify"], "twin-p2@amplify"),
        ("fal-p2@focus", ["twin-p2@perception"], None),
        ("fal-p2@backbone", ["twin-p2@features"], "twin-p2@features"),
        ("fal-p2@evidence-laterals", ["twin-p2@amplify", "twin-p2@laterals"], "twin-p2@laterals"),
        ("fal-p2@focus", ["twin-p2@amplify", "twin-p2@focus"], "twin-p2@focus"),
    ],
)
def test_designs_that_differ_in_the_map_alone_share_a_twin(name, twins, expected):
    assert twin_among(name, ["fpn", name, *twins], "amplify") == expected
