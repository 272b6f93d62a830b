"""Published tables, and the command that measures their rows again, on a few pictures and random weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import xaieval
from tests import ROOT
from xaieval.config.protocol import PROTOCOLS
from xaieval.data import Preprocessing, load_data
from xaieval.explainers import resolve_methods
from xaieval.models import LoadedModel, load_model

FOLDER = ROOT / "benchmarks/published"


@pytest.fixture(scope="module")
def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published_command", FOLDER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for names
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of one picture."""
    for number in range(2):
        folder = tmp_path / "pictures" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((230, 230), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_every_table_is_of_a_protocol_and_in_percent(command):
    rows = command.published()
    assert set(rows["protocol"]) == {"grad-cam++", "score-cam", "opti-cam", "opti-cam-normalised", "torch-cam"}
    assert set(rows["protocol"]) <= PROTOCOLS.keys()
    for metric in ("average_drop", "increase_in_confidence"):
        assert rows[metric].between(0, 100).all()
        assert rows[rows["protocol"] == "torch-cam"][metric].min() > 10, "fractions became percent"
    opti = rows[rows["protocol"].str.startswith("opti")]
    assert opti["average_gain"].notna().all()
    assert not rows.duplicated(["protocol", "data", "network", "method"]).any()


def test_every_row_to_be_measured_names_a_model_a_layer_and_a_method_that_there_are(command):
    rows = command.published().dropna(subset=["rerun"])
    resolve_methods(sorted(set(rows["rerun"])))
    for model, group in rows.groupby("model"):
        kind, name = model.split(":")
        with torch.device("meta"):
            built = timm.create_model(name) if kind == "timm" else torchvision.models.get_model(name)
        assert set(group["layer"].dropna()) <= dict(built.named_modules()).keys()


def test_layers_of_the_rerun_are_those_that_torch_cam_takes_by_itself(command):
    from torchcam.methods._utils import locate_candidate_layer

    rows = command.published()
    for network, group in rows[rows["protocol"] == "torch-cam"].groupby("network"):
        assert set(group["layer"]) == {locate_candidate_layer(torchvision.models.get_model(network), (3, 224, 224))}


@pytest.mark.slow
def test_published_and_measured_stand_side_by_side(command, pictures, tmp_path, capsys):
    model = torchvision.models.resnet18()
    save_file(model.state_dict(), tmp_path / "torchvision_resnet18.safetensors")
    asked = {"tables": "torch-cam", "networks": "resnet18", "methods": "GradCAM,LayerCAM"}
    options = command.Options(f"folder:{pictures}", weights=tmp_path, out=tmp_path / "table.csv", **asked)
    command.main(options)
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table["method"]) == ["GradCAM", "LayerCAM"]
    assert list(table["AD % published"]) == [26.86, 17.12]
    assert list(table["IC % published"]) == [22.5, 28.19]
    assert list(table["n"]) == [2, 2]
    assert "AG % published" not in table

    loaded = load_model("torchvision:resnet18", options.weights / "torchvision_resnet18.safetensors")
    loader = load_data(f"folder:{pictures}", loaded.preprocessing, 32).loader
    scores = xaieval.score(loaded.model, loader, "layer4", ("gradcam", "layercam"), protocol="torch-cam", progress=False)
    ours = [float(cell.split()[0]) for cell in table["AD % here"]]
    assert ours == pytest.approx(list(scores.summary()["average_drop"]), abs=0.06)
    assert "AD % published" in capsys.readouterr().out


def test_a_protocol_that_follows_the_label_needs_the_networks_classes(command, pictures, capsys):
    rows = command.chosen(command.published(), command.Options("", tables="opti-cam", networks="ResNet50"))
    loaded = LoadedModel(nn.Identity(), Preprocessing())
    options = command.Options(f"folder:{pictures}")
    assert command.measured(rows, loaded, PROTOCOLS["opti-cam"], options) == []
    assert capsys.readouterr().out == "opti-cam: left out, because it targets the label and the folder has 2 of 1000 classes\n"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "the published numbers are those of trained networks: add --pretrained or --weights DIR"),
        (
            {"pretrained": True, "networks": "none"},
            "no row matches; 'xaieval-bench published NAME' lists the networks and methods of a table",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(command, choices, message):
    with pytest.raises(SystemExit) as stopped:
        command.main(command.Options("scenes", **choices))
    assert stopped.value.code == message
