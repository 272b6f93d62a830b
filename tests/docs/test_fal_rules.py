"""The command that asks the rules about the FPNs of an experiment, and scores their answers."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests import ROOT
from tests.training.fal.conftest import TINY
from xaieval.analysis.rules import RULES
from xaieval.config.options import to_settings
from xaieval.evaluation.scores import Scores
from xaieval.models import LEVELS, levels_of
from xaieval.training.fal import prepare, run_experiment

BENCHMARK = runpy.run_path(str(ROOT / "benchmarks/fal/rules.py"))
HIGHER = {
    "increase_in_confidence": True,
    "average_drop": False,
    "average_drop_excess": False,
    "oracle_gate": False,
    "probe": False,
}


def _scores(seed: int) -> Scores:
    """Made-up values of 20 images in all columns of the rules."""
    rng = np.random.default_rng(seed)
    shift = {level: rng.normal(0, 30, len(HIGHER)) for level in LEVELS}
    rows = pd.DataFrame(
        {"image_id": f"{image:02d}", "layer": f"levels[{level}]", "method": "gradcam", "status": "ok"}
        | dict(zip(HIGHER, shift[level] + rng.normal(0, 10, len(HIGHER)), strict=True))
        for image in range(20)
        for level in LEVELS
    )
    return Scores(rows, {"metrics": [{"name": k, "higher_is_better": v, "interval": "mean"} for k, v in HIGHER.items()]})


@pytest.mark.parametrize("seed", range(3))
def test_the_values_are_those_of_the_selections(seed):
    scores = _scores(seed)
    table = BENCHMARK["rule_values"](scores)
    assert len(table) == 4 * 4
    for rule, part in table.groupby("rule"):
        own = part.set_index("level")
        selection = scores.select_layers(by=rule)
        assert list(own.sort_values("rank").index) == levels_of(selection.ranking.index)
        assert set(own.index[own["selected"] == 1]) == set(levels_of(selection))
        assert set(own.index[own["among_2"] == 1]) == set(own.index[own["rank"] <= 2])
        assert own.sort_values("rank")["value"].is_monotonic_decreasing, "more needs more attention"
        if rule != "ad-ic":
            means = scores.rows.groupby("layer")[RULES[rule].metrics[0]].mean()
            assert own["value"].to_list() == pytest.approx([means[f"levels[{level}]"] for level in own.index])


def test_the_options_of_an_experiment_come_back_from_its_manifest(tmp_path):
    options = replace(TINY, mean=(0.5, 0.4, 0.3), backbone_args={"pad_type": "same"}, design="focus").complete("focus", "ad-ic")
    run = to_settings(options) | {"data": "scenes", "weights": None, "images": "7e4b"}
    (tmp_path / "manifest.json").write_text(json.dumps({"run": run}))
    actual = BENCHMARK["recorded_options"](tmp_path, data="scenes", weights=None)
    assert actual.complete("amplify", "probe") == options


@pytest.mark.slow
def test_the_command_writes_what_the_rules_say_about_each_network_once(tmp_path, capsys):
    run_experiment(prepare(replace(TINY, image_size=64, arms=("fpn",))), tmp_path)
    BENCHMARK["values"](tmp_path, data="scenes")
    table = pd.read_csv(tmp_path / "rules.csv")
    assert len(table) == 2 * 4 * 4
    assert not table.duplicated(["fold", "seed", "rule", "level"]).any()
    assert set(table["rule"]) == set(RULES)
    assert np.isfinite(table["value"]).all()
    assert (table.loc[table["rule"] == "oracle-gate", "value"] >= 0).all()
    assert capsys.readouterr().out.count("\n") == 2
    BENCHMARK["values"](tmp_path, data="scenes")
    assert capsys.readouterr().out == ""
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "rules.csv"), table)
