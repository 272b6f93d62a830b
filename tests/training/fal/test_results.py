"""Results of an experiment, and its runs under the names of their roles."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tests.training.fal.conftest import ROLES, made_rows, write_experiment
from xaieval.errors import OutputError
from xaieval.training.fal.results import macro_f1, read_results


def test_roles_show_the_runs_of_their_arms(tmp_path):
    arms = ["fpn", "fal-p2", "twin-p2", "fal-p3", "abn"]
    results = read_results(write_experiment(tmp_path, arms, roles=ROLES | {"random": "fal-p2"}))
    shown = results.roles.groupby("shown")["arm"].unique().map(list).to_dict()
    assert shown == {
        "fpn": ["fpn"],
        "selected": ["fal-p2"],
        "random": ["fal-p2"],
        "selected-twin": ["twin-p2"],
        "fal-p3": ["fal-p3"],
        "abn": ["abn"],
    }
    assert (results.roles.groupby("shown").size() == 4).all()


def test_an_arm_that_has_a_role_in_some_runs_only_is_also_shown_under_its_name(packed):
    results = read_results(packed)
    first = next(record for record in results.records if record["arm"] == "fal-p2")
    first["arm"] = "fal-p3"
    shown = results.roles.groupby("shown").size()
    assert (shown["selected"], shown["random"]) == (3, 1)


def test_runs_have_the_means_of_their_rows(packed):
    runs = read_results(packed).runs().set_index(["arm", "fold", "seed"])
    made = made_rows("fal-p2", 1, 0)
    counted = made[made["status"] == "ok"]
    run = runs.loc[("selected", 1, 0)]
    assert run["average_drop"] == pytest.approx(counted["average_drop"].mean())
    excess = (counted["average_drop"] - counted["average_drop_shifted"]).mean()
    assert run["average_drop_excess"] == pytest.approx(excess)
    images = made.drop_duplicates("image_id")
    assert run["accuracy"] == pytest.approx(100 * (images["label"] == images["predicted"]).mean())
    expected = 100 * f1_score(images["label"].astype(int), images["predicted"].astype(int), average="macro")
    assert run["macro_f1"] == pytest.approx(expected)
    of_class = read_results(packed).runs(label=1).set_index(["arm", "fold", "seed"]).loc[("selected", 1, 0)]
    assert of_class["average_drop"] == pytest.approx(counted.loc[counted["label"] == 1, "average_drop"].mean())
    assert of_class["n_images"] == 4


def test_macro_f1_by_hand():
    # class 0: 1 right, 1 missed, 0 false: 2/3; class 1: 1 right, 0 missed, 1 false: 2/3; class 2: none at all
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 1, 1]), 3) == pytest.approx(200 / 3)


def test_a_folder_without_an_experiment_says_so(tmp_path):
    with pytest.raises(OutputError, match=r"holds no experiment that can be read; 'xaieval-bench fal' makes one$"):
        read_results(tmp_path)
