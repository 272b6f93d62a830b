"""The names that `controls=` takes."""

from __future__ import annotations

import pytest

from xaieval.config.controls import FOOLING, MAPS, MATCHED, ControlNames, resolve_controls
from xaieval.errors import ExplainerError
from xaieval.explainers.controls import CONTROLS


def test_the_names_of_the_control_maps_are_those_of_the_explainers():
    assert [control.name for control in CONTROLS] == list(MAPS)
    assert FOOLING in MAPS


@pytest.mark.parametrize(
    ("controls", "maps", "matched"),
    [
        (False, (), ()),
        (True, MAPS, ()),
        ("matched", (), MATCHED),
        ("dimmed", (), ("dimmed",)),
        (["blurred", "shifted"], (), ("blurred", "shifted")),
        (("edges", "matched", "random"), ("edges", "random"), MATCHED),
        ([], (), ()),
    ],
)
def test_a_switch_and_names_of_both_kinds(controls, maps, matched):
    assert resolve_controls(controls) == ControlNames(maps, matched)


def test_an_unknown_name_is_refused_with_what_there_is():
    with pytest.raises(ExplainerError) as caught:
        resolve_controls(["random", "shifd"])
    assert str(caught.value) == (
        "no control 'shifd'; did you mean 'shifted'? known: matched, shifted, swapped, dimmed, blurred, random, uniform, "
        "center, edges, fake-cam; True takes the control maps random, uniform, center, edges, fake-cam"
    )


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(ExplainerError) as caught:
        resolve_controls(["matched", "dimmed"])
    assert str(caught.value) == "controls are names, each once; got ['shifted', 'swapped', 'dimmed', 'blurred', 'dimmed']"


@pytest.mark.parametrize("controls", [None, 1])
def test_what_is_no_choice_is_refused(controls):
    with pytest.raises(ExplainerError) as caught:
        resolve_controls(controls)
    assert str(caught.value) == f"controls= takes True, False, 'matched', or names of controls; got {controls}"
