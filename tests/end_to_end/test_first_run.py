"""What the README promises of the first run."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from xaieval.cli import main
from xaieval.models.builtin import FPN_SCENES_WEIGHTS


@pytest.mark.slow
def test_score_without_options_scores_four_levels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["score", "--max-images", "20", "--out", "run"])
    printed = capsys.readouterr().out
    summary = pd.read_csv("run/summary.csv")
    assert list(summary["layer"]) == ["fpn[p2]", "fpn[p3]", "fpn[p4]", "fpn[p5]"]
    assert all(level in printed for level in summary["layer"])
    assert (summary["n_images"] == 20).all()
    assert len(pd.read_parquet("run/rows.parquet")) == 80
    assert json.loads((tmp_path / "run/manifest.json").read_text())["complete"]
    assert (tmp_path / "run/maps.png").stat().st_size > 10_000


def test_shipped_weights_are_small():
    assert FPN_SCENES_WEIGHTS.stat().st_size < 3_000_000
