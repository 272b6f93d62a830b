"""The arms that follow from a selection of levels."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.fal.conftest import TINY
from xaieval.analysis.rules import DEFAULT_RULES
from xaieval.analysis.selection import select_layers
from xaieval.errors import OutputError
from xaieval.models import LEVELS
from xaieval.training.fal.arms import Arm
from xaieval.training.fal.choice import check_choices, choose, roles_of, shared_roles
from xaieval.training.fal.experiment import prepare
from xaieval.training.fal.runs import Cell

ORDERS = list(permutations(LEVELS))
LARGER = replace(TINY, image_size=64, by=("ad-ic",))  # maps of p5 have more than one cell
SUBSETS = [set(levels) for size in range(5) for levels in combinations(LEVELS, size)]


@given(st.sampled_from(ORDERS), st.sampled_from(SUBSETS), st.integers(0, 99))
def test_roles_have_as_many_levels_as_selected_and_are_distinct_where_they_can_be(ranked, selected, seed):
    roles = roles_of(ranked, selected, np.random.default_rng(seed))
    sets = {role: set(Arm.of(name).levels) for role, name in roles.items()}
    count = len(selected)
    assert sets["selected"] == selected
    assert sets["best"] == set(ranked[4 - count :])
    assert len(sets["random"]) == count
    assert sets["all"] == set(LEVELS)
    if 0 < count < 4:
        assert sets["random"] not in (sets["selected"], sets["best"])
    for role in ("selected", "random", "best", "all"):
        assert sets[f"{role}-twin"] == sets[role]
        assert roles[f"{role}-twin"] == roles[role].replace("fal", "twin")


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({"selected": "fal-p2", "random": "fal-p3"}, ""),
        ({"selected": "fal-p2", "best": "fal-p2"}, "selected and best are the same network, fal-p2"),
        ({"selected": "fpn"}, "selected is the FPN"),
        ({"selected": "fpn", "selected-twin": "fpn", "abn": "abn"}, "selected and selected-twin are the FPN"),
    ],
)
def test_roles_that_are_the_same_network_are_said_in_one_line(roles, said):
    assert shared_roles(roles, list(roles)) == said


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """A fold whose FPN is trained."""
    cell = Cell(prepare(LARGER), tmp_path_factory.mktemp("fal"), 0, 3)
    assert cell.run("fpn")
    return cell


def with_options(cell, **changes):
    return replace(cell, experiment=prepare(replace(LARGER, **changes)))


def test_levels_are_selected_on_the_selection_images_by_blocks(cell):
    choice = choose(cell)
    rows = pd.read_parquet(cell.place("fpn") / "selection.parquet")
    assert set(rows["image_id"]) == {cell.experiment.pictures.ids[number] for number in cell.images.selection}
    rows["group"] = rows["image_id"].map(cell.experiment.groups)
    metrics = json.loads((cell.place("fpn") / "run.json").read_text())["metrics"]
    expected = select_layers(rows, metrics, 2)
    assert choice["selection"]["layers"] == expected.layers
    assert choice["selection"]["reasons"] == repr(expected)
    assert choice["selection"]["n_groups"] == 10
    assert set(Arm.of(choice["roles"]["selected"]).levels) == {layer[7:9] for layer in expected}


def test_the_rule_that_won_is_the_default_of_an_experiment():
    assert prepare(TINY).options.by == (DEFAULT_RULES[0],) == ("oracle-gate",)


@pytest.mark.parametrize("rule", ["excess", "oracle-gate", "probe"])
def test_every_rule_selects(cell, rule, tmp_path):
    other = with_options(cell, by=(rule,), k=1)
    place = tmp_path / "fold0-seed3"
    place.mkdir()
    (place / "fpn").symlink_to(_copy_without_choice(cell, tmp_path))
    choice = choose(replace(other, folder=tmp_path))
    assert choice["selection"]["rule"] == rule
    assert len(choice["selection"]["layers"]) == 1


def _copy_without_choice(cell, folder):
    target = folder / "copy"
    target.mkdir()
    for path in cell.place("fpn").iterdir():
        if path.is_file() and path.name != "choice.json":
            (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"by": ("excess",)}, r"with by \['ad-ic'\], this run's is \['excess'\]"),
        ({"k": 3}, r"with k 2, this run's is 3"),
        ({"level": 0.9}, r"with level 0.95, this run's is 0.9"),
    ],
)
def test_another_selection_than_that_in_the_folder_is_refused(cell, changes, said):
    choose(cell)
    check_choices([cell])
    with pytest.raises(OutputError, match=rf"holds levels that were selected {said}; choose another folder$"):
        check_choices([with_options(cell, **changes)])
