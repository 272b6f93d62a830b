"""The benchmark of everything: its page has its numbers, and its arithmetic is right."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from tests import ROOT


@pytest.fixture(scope="module")
def trust() -> Any:
    spec = importlib.util.spec_from_file_location("trust", ROOT / "benchmarks/trust.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_page_are_the_results(trust):
    page = (ROOT / "docs/trust.md").read_text()
    assert trust.filled(page) == page, "python benchmarks/trust.py tables --page docs/trust.md"
    assert page.count("\n| `average_drop`") == 2
    manifest = json.loads((ROOT / "benchmarks/trust/manifest.json").read_text())
    assert manifest["data"]["images"] == 210
    measured = set(manifest["run"]["metrics"])
    assert set(pd.read_csv(ROOT / "benchmarks/trust/winners.csv")["metric"]) <= measured


def _rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    records = []
    for image in range(12):
        for place, method in enumerate("abcd"):
            good, bad = rng.normal(place, 0.1), rng.normal(-place, 0.1)
            records.append(
                {"image_id": str(image), "layer": "p2", "method": method, "gain": good, "drop": bad, "other": rng.normal()}
            )
    return pd.DataFrame(records)


def test_agreement_is_the_rank_correlation_of_means_turned_to_better(trust):
    rows = _rows()
    found = trust.agreement(rows, {"gain": 1, "drop": -1, "other": 1}, seed=0).set_index(["metric", "other"])
    means = rows.groupby("method")[["gain", "drop", "other"]].mean()
    assert found.loc[("gain", "drop"), "spearman"] == pytest.approx(1), "drop falls as gain rises, and lower is better"
    assert found.loc[("gain", "other"), "spearman"] == pytest.approx(spearmanr(means["gain"], means["other"]).statistic)
    assert (found["low"] <= found["spearman"]).all()
    assert (found["spearman"] <= found["high"]).all()


def test_the_winner_is_the_best_mean_and_its_share_counts_resamplings(trust):
    found = trust.winners(_rows(), {"gain": 1, "drop": -1}).set_index("metric")
    assert found["best"].tolist() == ["d", "d"]
    assert found["first_share"].tolist() == [1.0, 1.0]
    assert found.loc["drop", "mean"] == pytest.approx(_rows().groupby("method")["drop"].mean()["d"], abs=1e-3)
    tied = _rows().assign(gain=lambda rows: rows["other"])
    assert trust.winners(tied, {"gain": 1})["first_share"].iloc[0] < 1
