"""What was found, in words."""

from __future__ import annotations

import pandas as pd

from tests.training.fal.conftest import ROLES, write_experiment
from xaieval.training.fal.report import sentences as module
from xaieval.training.fal.report.sentences import sentences
from xaieval.training.fal.results import read_results


def differences(*rows):
    columns = ["outcome", "arm", "other", "difference", "low", "high", "p_holm"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:3])


def test_a_difference_within_the_noise_is_called_noise():
    table = differences(
        ("accuracy", "selected", "fpn", 1.2, -0.5, 2.9, 0.4),
        ("average_drop", "selected", "fpn", -4.0, -5.0, -3.0, 0.001),
        ("macro_f1", "selected", "fpn", 0.0, float("nan"), float("nan"), float("nan")),
    )
    assert list(module._differences(table, 0.95)) == [
        "Of 3 differences, those count as found whose p-value, corrected by Holm for all of them, is below 0.05; the others "
        "are within the noise of folds and seeds.",
        "selected minus fpn: AD -4.0 [-5.0, -3.0]; within the noise: accuracy +1.2 [-0.5, +2.9]; too few or equal runs to "
        "tell: macro F1 +0.0.",
    ]
    strict = list(module._differences(table.loc[["average_drop"]], 0.9999))
    assert strict[1] == "selected minus fpn: within the noise: AD -4.0 [-5.0, -3.0]."


def test_of_many_pairs_only_those_with_something_to_say_are_listed():
    quiet = [("accuracy", f"fal-{number}", "fpn", 0.1, -1.0, 1.2, 0.9) for number in range(9)]
    found = ("accuracy", "fal-found", "fpn", 3.0, 2.0, 4.0, 0.01)
    unknown = ("accuracy", "fal-unknown", "fpn", 3.0, float("nan"), float("nan"), float("nan"))
    few = list(module._differences(differences(*quiet, found), 0.95))
    assert len(few) == 1 + 10
    assert list(module._differences(differences(*quiet, found, unknown), 0.95))[1:] == [
        "fal-found minus fpn: accuracy +3.0 [+2.0, +4.0].",
        "fal-unknown minus fpn: too few or equal runs to tell: accuracy +3.0.",
        "The other 9 pairs of arms are within the noise in all outcomes.",
    ]


def test_the_sentences_of_an_experiment(packed):
    found = sentences(read_results(packed))
    assert found[0] == "Levels selected by ad-ic, of 4 selections: p2 4, p3 0, p4 0, p5 0."
    assert found[1].startswith("The seed alone scatters the FPN's accuracy by ")
    assert [line.partition(":")[0] for line in found[3:6]] == [
        "selected minus fpn",
        "selected-twin minus fpn",
        "selected minus selected-twin",
    ]
    assert found[6] == "selected: 15.0 % of the predictions change without the maps, 5.0 % with shuffled maps."
    assert len(found) == 7


def test_one_seed_says_nothing_about_the_scatter_of_seeds(tmp_path):
    found = sentences(read_results(write_experiment(tmp_path, ["fpn", "fal-p2"], seeds=(0,), roles=ROLES)))
    assert not any("scatters" in line for line in found)
