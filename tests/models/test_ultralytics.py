"""Networks of ultralytics by name: random ones, those of files whose code is not run, and their preprocessing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.ultralytics_networks import detector, evaluating, pictures, yolo
from xaieval.errors import ModelError, UsageError, WeightsError
from xaieval.inference.yolo_detections import Suppression, grid_detector
from xaieval.models import load_model
from xaieval.models.ultralytics import GREY, others_kept


@pytest.fixture(scope="module")
def trained():
    model = detector("yolo11n.yaml", classes=3)
    model.model.names = {0: "cat", 1: "dog", 2: "hen"}
    return model


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """Files of one network: as ultralytics saves it, as tensors, and fused."""
    where = tmp_path_factory.mktemp("weights")
    trained.ckpt = {"train_args": {"imgsz": 96}}
    trained.save(where / "best.pt")
    halved = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in trained.model.state_dict().items()
    }
    save_file({name: tensor.contiguous() for name, tensor in halved.items()}, where / "best.safetensors")
    fused = type(trained)(where / "best.pt")
    fused.fuse(verbose=False)
    fused.save(where / "fused.pt")
    return where


def test_a_file_of_ultralytics_is_loaded_without_its_code(trained, folder):
    loaded = load_model(f"ultralytics:{folder / 'best.pt'}")
    own = evaluating(type(trained)(folder / "best.pt").model)
    torch.testing.assert_close(loaded.model(pictures())[0], own(pictures())[0])
    assert loaded.model.names == {0: "cat", 1: "dog", 2: "hen"}
    assert not loaded.random
    assert loaded.preprocessing.image_size == 96
    assert not loaded.model.training


@pytest.mark.parametrize("file", ["best.safetensors", "best.pt"])
def test_weights_in_a_network_by_name(trained, folder, file):
    loaded = load_model("ultralytics:yolo11n.yaml", weights=folder / file, model_args={"nc": 3, "conf": 0.5, "iou": 0.4})
    own = evaluating(type(trained)(folder / "best.pt").model)
    torch.testing.assert_close(loaded.model(pictures())[0], own(pictures())[0])
    assert not loaded.random
    assert grid_detector(loaded.model).suppression == Suppression(conf=0.5, iou=0.4)


class Code:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_code_in_a_file_is_not_run(tmp_path):
    network = yolo("yolo11n.yaml").model
    network.yaml["note"] = Code(tmp_path / "made by the file")
    torch.save({"model": network}, tmp_path / "best.pt")
    with pytest.raises(WeightsError, match=r"cannot read 'best\.pt'"):  # no names of the operating system
        load_model(f"ultralytics:{tmp_path / 'best.pt'}")
    network.yaml["note"] = Image.new("L", (2, 2))  # of a class that is not known here
    torch.save({"model": network}, tmp_path / "best.pt")
    assert not load_model(f"ultralytics:{tmp_path / 'best.pt'}").random
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def test_files_that_are_refused(folder, tmp_path):
    def refused(name: str, **options) -> str:
        with pytest.raises(WeightsError) as caught:
            load_model(f"ultralytics:{name}", **options)
        return str(caught.value)

    assert "fused network, whose BatchNorms are gone" in refused(f"{folder / 'fused.pt'}")
    assert "fused network" in refused("yolo11n.yaml", weights=folder / "fused.pt")
    assert "does not fit ultralytics:yolo11n.yaml: of another shape" in refused("yolo11n.yaml", weights=folder / "best.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    assert "holds no network of ultralytics" in refused(f"{tmp_path / 'other.pt'}")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "linear.pt")
    assert "does not say which configuration" in refused(f"{tmp_path / 'linear.pt'}")
    assert "docs/models.md" in refused(f"{tmp_path / 'linear.pt'}")
    (tmp_path / "damaged.pt").write_bytes(b"no archive")
    assert "cannot read 'damaged.pt'" in refused(f"{tmp_path / 'damaged.pt'}")


def test_random_networks_of_each_task():
    loaded = load_model("ultralytics:yolo11n.yaml", model_args={"nc": 3, "ch": 1})
    assert loaded.random
    assert (loaded.preprocessing.channels, loaded.preprocessing.image_size, len(loaded.model.names)) == (1, 640, 3)
    classifier = load_model("ultralytics:yolo11n-cls.yaml", model_args={"nc": 3})
    assert (classifier.preprocessing.image_size, classifier.preprocessing.border) == (224, False)
    assert classifier.model(pictures())[1].shape == (2, 3)
    assert load_model("ultralytics:yolo26n-sem.yaml").model(pictures()).shape == (2, 19, 8, 12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("yolo11n.pt", {}, "no file 'yolo11n.pt'.*ultralytics:yolo11n.yaml"),
        ("yolov11n.yaml", {}, "no configuration 'yolov11n.yaml'; did you mean"),
        ("https://example.com/yolo11n.yaml", {}, "no configuration 'https"),
        ("yolo11n-obb.yaml", {}, "is for the task 'obb'; known .* detect, segment, classify, pose, semantic"),
        ("yolo11-cls-resnet18.yaml", {}, "downloads the weights of its backbone"),
        ("yolo11n.yaml", {"pretrained": True}, "downloads its weights as pickles.*ultralytics:yolo11n.pt"),
        ("yolo11n.yaml", {"model_args": {"confidence": 1}}, "no argument 'confidence'; .*conf"),
    ],
)
def test_names_and_arguments_that_are_refused(name, options, message):
    with pytest.raises(ModelError, match=message):
        load_model(f"ultralytics:{name}", **options)


def test_configurations_of_other_files_are_not_read(tmp_path, monkeypatch):
    """ultralytics evaluates what they say of activations, and calls what they name as layers."""
    own = "nc: 1\nactivation: \"open('ran', 'w')\"\nbackbone: [[-1, 1, Conv, [8, 3, 2]]]\nhead: [[[0], 1, Detect, [nc]]]\n"
    (tmp_path / "own.yaml").write_text(own)
    (tmp_path / "yolo11.yaml").write_text(own)
    monkeypatch.chdir(tmp_path)
    for name in ("own.yaml", str(tmp_path / "own.yaml"), str(tmp_path / "yolo11.yaml"), "../yolo11.yaml"):
        with pytest.raises(ModelError, match=r"no configuration.*package\.module:factory"):
            load_model(f"ultralytics:{name}")
    assert len(list(load_model("ultralytics:yolo11n.yaml").model.model)) == 24
    assert not (tmp_path / "ran").exists()


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics.nn", None)
    with pytest.raises(UsageError, match=r"AGPL-3.0.*pip install 'xaieval\[ultralytics\]'"):
        load_model("ultralytics:yolo11n.yaml")


@pytest.mark.parametrize("size", [(33, 57), (100, 41), (64, 64)])
def test_pictures_are_placed_as_by_ultralytics(size):
    """The border is the same; pixels inside differ, as ultralytics does not smooth what it makes smaller."""
    with others_kept():
        from ultralytics.data.augment import LetterBox
    values = np.random.default_rng(0).integers(150, 255, (*size, 3), dtype=np.uint8)
    expected = torch.from_numpy(LetterBox((96, 96))(image=values)).permute(2, 0, 1) / 255
    preparing = load_model("ultralytics:yolo11n.yaml").preprocessing.with_size(96)
    found = preparing(Image.fromarray(values))
    assert found.shape == (3, 96, 96)
    grey, border = ((one - GREY).abs().amax(dim=0) < 1e-6 for one in (found, expected))
    assert torch.equal(grey, border)
    assert border.any() == (size[0] != size[1])
    assert (found - expected).abs().mean() < 0.02


def test_other_libraries_stay_as_they_are_when_it_is_imported():
    program = """
import os, PIL.Image, numpy
opened, printed = PIL.Image.open, numpy.get_printoptions()
os.environ.pop("OMP_NUM_THREADS", None)
from xaieval.models import load_model
load_model("ultralytics:yolo11n-cls.yaml", model_args={"nc": 2})
print(PIL.Image.open is opened, numpy.get_printoptions() == printed, "OMP_NUM_THREADS" in os.environ)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "True True False\n"
