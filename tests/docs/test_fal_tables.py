"""The command that remakes the tables of an experiment from its packed rows."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pandas as pd
import pytest

from tests import ROOT
from tests.training.fal.conftest import ROLES, write_experiment
from xaieval.training.fal.results import read_results
from xaieval.training.fal.rows import read_rows
from xaieval.training.fal.statistics.contrasts import half_fraction_arms
from xaieval.training.fal.statistics.effects import arm_differences, effects, effects_beyond, run_table
from xaieval.training.fal.statistics.run_table import OUTCOMES


def _benchmark():
    """The script, which imports its neighbours."""
    spec = importlib.util.spec_from_file_location("fal_tables", ROOT / "benchmarks/fal/tables.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fal_tables"] = module
    sys.path.insert(0, str(ROOT / "benchmarks/fal"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks/fal"))
    return module


tables = _benchmark()
DESIGNS = ["fpn", "fal-p2@amplify", "fal-p2@focus", "twin-p2@amplify", "fal-p2@laterals", "twin-p2@laterals"]


def _read(folder, name, keys):
    return pd.read_csv(folder / f"{name}.csv").set_index(keys)


def test_an_experiment_on_levels_gets_tables_of_effects(tmp_path):
    folder = write_experiment(tmp_path, ["fpn", "abn", *half_fraction_arms()])
    tables.tables(folder)
    rows = read_rows(folder)
    keys = ["outcome", "level", "part"]
    own = effects(read_results(folder).runs(), [*OUTCOMES[:1], "macro_f1", *OUTCOMES[1:]])
    for name in ("effect", "error", "low", "high", "p_holm", "low_folds"):
        assert _read(folder, "effects", keys)[name].to_numpy() == pytest.approx(own[name].to_numpy(), rel=1e-5)
    for by in ("label", "group"):
        own = effects_beyond(run_table(rows, by), by, OUTCOMES)
        assert _read(folder, f"effects_{by}", keys)["high"].to_numpy() == pytest.approx(own["high"].to_numpy(), rel=1e-5)
    at_levels = _read(folder, "effects_at_levels", keys)
    assert list(at_levels.index.unique("outcome")) == [f"average_drop_{level}" for level in ("p2", "p3", "p4", "p5")]
    assert (folder / "effects.png").stat().st_size > 10_000
    page = (folder / "findings.md").read_text()
    assert "72 networks: 18 arms, 2 folds, 2 seeds. The unit of every claim is a network." in page
    assert "65 claims, by " in page
    assert "Rules that select levels" not in page
    assert not (folder / "designs.csv").exists()
    assert len(_read(folder, "sets", ["outcome", "arm", "other"])) == 64
    assert page.count("32 claims.") == 2


def test_an_experiment_on_designs_gets_a_table_of_designs_against_their_twins(tmp_path):
    folder = write_experiment(tmp_path, DESIGNS)
    ratios = {"fal-p2@amplify": 1.1, "fal-p2@focus": 1.1, "fal-p2@laterals": 1.2}
    (folder / "costs.json").write_text(json.dumps({arm: {"multiply_adds_ratio": ratio} for arm, ratio in ratios.items()}))
    tables.tables(folder)
    found = _read(folder, "designs", ["outcome", "arm", "other"])
    twins = {"fal-p2@amplify": "twin-p2@amplify", "fal-p2@focus": "twin-p2@amplify", "fal-p2@laterals": "twin-p2@laterals"}
    own = arm_differences(run_table(read_rows(folder)), sorted(twins.items()), OUTCOMES, error="all")
    gate = found[found.index.get_level_values("other") != "fpn"]
    assert gate["difference"].to_numpy() == pytest.approx(own["difference"].to_numpy(), rel=1e-5)
    assert gate["p_holm"].to_numpy() == pytest.approx(own["p_holm"].to_numpy(), rel=1e-5)
    assert len(gate) == len(found) / 2 == 12
    assert gate["changed_without"].unique() == pytest.approx(15)
    page = (folder / "findings.md").read_text()
    assert "12 claims. The error is estimated from all arms together. The aim is" in page
    assert "Effects of the levels" not in page


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        ({}, True),
        ({"low": -0.1}, False),
        ({"difference": 0.9}, False),
        ({"multiply_adds_ratio": 1.4}, False),
        ({"multiply_adds_ratio": np.nan}, False),
        ({"outcome": "average_drop", "difference": -9.0, "high": -8.0}, False),
        ({"outcome": "average_drop_excess"}, False),
        ({"outcome": "average_drop_excess", "difference": -2.0, "low": -3.0, "high": -0.1}, True),
    ],
)
def test_the_aim(change, reached):
    row = {"outcome": "accuracy", "difference": 1.5, "low": 0.1, "high": 3.0, "multiply_adds_ratio": 1.3} | change
    assert tables.reaches_aim(pd.DataFrame([row]).set_index("outcome")).tolist() == [reached]


def test_tables_are_the_same_each_time(tmp_path):
    folder = write_experiment(tmp_path, DESIGNS)
    tables.tables(folder)
    first = {path.name: path.read_bytes() for path in folder.glob("*.csv")} | {"page": (folder / "findings.md").read_bytes()}
    tables.tables(folder)
    assert first == {path.name: path.read_bytes() for path in folder.glob("*.csv")} | {
        "page": (folder / "findings.md").read_bytes()
    }


def test_an_experiment_that_tells_neither_gets_its_report_alone(tmp_path, capsys):
    tables.tables(write_experiment(tmp_path, ["fpn", "fal-p2", "twin-p2"], roles=ROLES))
    assert not (tmp_path / "findings.md").exists()
    assert "report.md" in capsys.readouterr().out
