"""Runs: all arms of a fold and seed are trained alike, and a run is done once."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from filelock import FileLock

from tests.training.fal.conftest import TINY
from xaieval.models import LEVELS
from xaieval.training.fal.arms import Arm
from xaieval.training.fal.experiment import prepare
from xaieval.training.fal.runs import Cell, layers_of
from xaieval.training.fit import Classifier


@pytest.fixture(scope="module")
def experiment():
    return prepare(replace(TINY, epochs=2))


def test_arms_begin_with_the_same_weights(experiment):
    fpn = experiment.build(Arm.of("fpn"), 5).state_dict()
    for name in ("fal-p2-p3", "twin-p2-p3", "fal-p4@features"):
        own = experiment.build(Arm.of(name), 5).state_dict()
        assert all(torch.equal(own[key], value) for key, value in fpn.items())
    again, other = (experiment.build(Arm.of("fal-p2"), seed).state_dict() for seed in (5, 6))
    first = experiment.build(Arm.of("fal-p2"), 5).state_dict()
    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert not all(torch.equal(other[key], value) for key, value in first.items())


def test_a_twin_has_the_weights_of_its_fal(experiment):
    fal, twin = (experiment.build(Arm.of(name), 5).state_dict() for name in ("fal-p2-p5", "twin-p2-p5"))
    assert fal.keys() == twin.keys()
    assert all(torch.equal(twin[key], value) for key, value in fal.items())


def test_arms_are_trained_on_the_same_images_in_the_same_order(experiment, tmp_path, monkeypatch):
    seen: dict[str, list[torch.Tensor]] = {}
    step = Classifier.training_step

    def watched(self, batch, number):
        seen.setdefault(name, []).append(batch[0])
        return step(self, batch, number)

    monkeypatch.setattr(Classifier, "training_step", watched)
    cell = Cell(experiment, tmp_path, 0, 1)
    for name in ("fpn", "fal-p2", "twin-p2", "abn"):
        cell.train(Arm.of(name))
    first = seen.pop("fpn")
    assert len(first) == 2 * (70 // 32), "two epochs, without the rest"
    for batches in seen.values():
        assert all(torch.equal(one, other) for one, other in zip(first, batches, strict=True))


def test_a_run_that_another_process_holds_is_left_to_it(experiment, tmp_path):
    cell = Cell(experiment, tmp_path, 0, 0)
    cell.place("abn").mkdir(parents=True)
    with FileLock(cell.place("abn") / ".lock"):
        assert not cell.run("abn")
    assert not cell.finished("abn")


def test_a_run_is_done_once_and_its_network_can_be_had_again(experiment, tmp_path):
    cell = Cell(experiment, tmp_path, 0, 0)
    lines: list[str] = []
    assert cell.run("fal-p3", lines.append)
    assert not cell.run("fal-p3", lines.append)
    assert lines == ["fold 0, seed 0: fal-p3"]
    cell.wait("fal-p3")
    assert sorted(path.name for path in cell.place("fal-p3").iterdir() if path.is_file()) == [
        ".lock",
        "rows.parquet",
        "run.json",
    ]
    trained = cell.trained("fal-p3")
    assert (cell.place("fal-p3") / "model.safetensors").exists()
    read = cell.trained("fal-p3")
    assert not read.training
    assert all(torch.equal(trained.state_dict()[key], value) for key, value in read.state_dict().items())
    rows = cell.score(read, "test").rows
    before = pd.read_parquet(cell.place("fal-p3") / "rows.parquet")
    pd.testing.assert_frame_equal(rows, before, atol=1e-3)


def test_the_layers_of_an_arm_are_its_four_levels(experiment):
    for name in ("fpn", "fal-p2", "abn"):
        assert len(layers_of(experiment.build(Arm.of(name), 0))) == len(LEVELS)
    assert layers_of(experiment.build(Arm.of("fpn"), 0))[0] == "levels[p2]"


def test_pictures_are_decoded_once_if_they_are_kept_in_memory():
    kept, read_again = (prepare(replace(TINY, in_memory=choice)).pictures.read for choice in (True, False))
    assert kept(3) is kept(3)
    assert read_again(3) is not read_again(3)
