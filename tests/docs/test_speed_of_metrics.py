"""The benchmark of the metrics' speed: both sides give the same numbers, and the table has what was measured."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests import ROOT

pytest.importorskip("quantus", reason="Quantus is compared with where it is installed")
SIDE = 32


@pytest.fixture(scope="module")
def speed():
    """The modules of the benchmark by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks/speed")
        yield {
            name: importlib.import_module(name)
            for name in ("metric_cases", "metric_times", "networks", "given", "speed_tables")
        }


@pytest.fixture(scope="module")
def network(speed):
    """A small network of images with one channel."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 1000)
    ).eval()
    images = torch.randn(4, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[5].weight.mul_(10)
        targets = model(images).argmax(dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(speed["networks"].LAYERS, "small", {1: ("2",)})
        yield speed["networks"].Network("small", model, images, targets, None, "random")


@pytest.fixture(scope="module")
def checked(speed, network):
    """The rows of the check by metric and peer."""
    scale = speed["networks"].Scale(SIDE, 4, quick=True)
    given = speed["given"].given_of(network, seed=0)
    cases = speed["metric_cases"].cases_of(network, scale)
    rows = [speed["metric_times"].compared(case, given) for case in cases]
    return pd.DataFrame(rows).set_index(["metric", "peer"])


def test_both_sides_have_the_same_numbers_unless_it_is_said_why_not(checked):
    assert (checked["verdict"] != "DIFFERS").all(), checked[["ours", "theirs", "deviation"]]
    assert ((checked["verdict"] == "another number") == (checked["explanation"] != "")).all()
    assert (checked["verdict"] == "agrees").sum() == 18
    assert checked["ours"].notna().all()


def test_a_number_that_differs_stops_the_run(speed, network, tmp_path, monkeypatch):
    module = speed["metric_times"]
    [case] = speed["metric_cases"].chosen(
        speed["metric_cases"].cases_of(network, speed["networks"].Scale(SIDE, 4, quick=True)), "region perturbation"
    )
    wrong = replace(case, in_our_unit=lambda falls, given: np.asarray(falls).sum(axis=1))
    monkeypatch.setattr(module, "cases_of", lambda network, scale: [wrong])
    with pytest.raises(SystemExit, match=r"the numbers differ, so nothing is timed: .*region perturbation"):
        module.measure(network, speed["networks"].Scale(SIDE, 4, quick=True), None, tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_a_run_writes_times_ratios_and_the_table(speed, network, tmp_path):
    scale = speed["networks"].Scale(SIDE, 4, quick=True)
    speed["metric_times"].measure(network, scale, 2, tmp_path, "deletion,pointing game")
    rows = pd.read_csv(tmp_path / "metric_rounds.csv")
    assert len(rows) == 2 * 2
    table = pd.read_csv(tmp_path / "metrics.csv").set_index(["metric", "peer"])
    known = rows[rows["metric"] == "deletion"]
    assert table.loc[("deletion", "Xplique (formula)"), "ours_is_faster"] == pytest.approx(
        np.median(known["peer_ms"] / known["our_ms"]), rel=1e-4
    )
    assert table.loc[("deletion", "Xplique (formula)"), "passes"] == 5
    assert table["efficiency"].notna().tolist() == [name == "deletion" for name, _ in table.index]
    assert "| deletion | Xplique (formula) |" in speed["speed_tables"].markdown(tmp_path)


def test_a_metric_that_is_not_there_is_an_error_with_those_that_are(speed, network):
    cases = speed["metric_cases"].cases_of(network, speed["networks"].Scale(SIDE, 4, quick=True))
    with pytest.raises(SystemExit, match=r"no metric \['roar'\]; there are \['IROF', 'MPRT'"):
        speed["metric_cases"].chosen(cases, "roar")
