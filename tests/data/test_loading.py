"""Data by name: scenes, folders, UC Merced, and factories."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import xaieval
from xaieval.data import Preprocessing, load_data, load_pictures, scenes
from xaieval.data.batches import read_batches
from xaieval.data.scenes import CLASSES
from xaieval.errors import DataError

SMALL = Preprocessing(image_size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(autouse=True)
def _same_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the search path, to which loading a factory adds the working directory."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("senes", "no data 'senes'; data is 'scenes', 'folder:DIR', 'ucmerced:DIR' or 'package.module:factory'"),
        ("folder:", "no data 'folder:'; data is 'scenes', 'folder:DIR', 'ucmerced:DIR' or 'package.module:factory'"),
        ("nosuchpackage.x:make", "no data 'nosuchpackage.x:make': there is no module 'nosuchpackage'"),
        ("xaieval.data.nosuch:make", "no data 'xaieval.data.nosuch:make': there is no module 'xaieval.data.nosuch'"),
        ("xaieval.data.scenes:nosuch", "no data 'xaieval.data.scenes:nosuch': module 'xaieval.data.scenes' has no 'nosuch'"),
        ("folder:nowhere", "no folder 'nowhere'; give a folder that has one sub-folder of images for each class"),
    ],
)
def test_data_that_does_not_exist_is_refused_word_for_word(spec, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        load_data(spec, SMALL, batch_size=4)
    assert str(error.value).split(" (")[0] == message  # in brackets: the file that was imported


@pytest.mark.parametrize("spec", [":make", ".relative:make", "a..b:make"])
def test_a_factory_without_a_proper_module_is_refused(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"^no data '{spec}'"):
        load_data(spec, SMALL, batch_size=4)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused_word_for_word(size):
    with pytest.raises(DataError) as error:
        load_data("scenes", SMALL, batch_size=size)
    assert str(error.value) == f"batch_size is at least 1, got {size}"


@pytest.mark.parametrize("most", [0, -1])
def test_a_number_of_images_below_one_is_refused_word_for_word(most):
    with pytest.raises(DataError) as error:
        load_data("scenes", SMALL, batch_size=4, max_images=most)
    assert str(error.value) == f"at least one image is needed, got {most}"


@pytest.mark.parametrize("most", [None, 3, 300])
def test_scenes_by_name_are_max_images_or_two_hundred(most):
    data = load_data("scenes", SMALL, batch_size=7, max_images=most)
    assert len(data.loader.dataset) == (most or 200)
    assert data.loader.batch_size == 7
    assert data.classes == list(CLASSES)
    assert data.loader.dataset.ids[0] == "test/00000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of five and three images."""
    root = tmp_path / "data"
    for name in ("b/a", "b/c", "b/d", "b/q", "b/z", "Äpfel/u", "Äpfel/v", "Äpfel/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24)).save(root / f"{name}.png")
    return root


def test_a_folder_by_name_is_spread_over_its_classes_and_shows_a_preview(folder):
    data = load_data(f"folder:{folder}", SMALL, batch_size=2, max_images=4, preview=2)
    assert list(data.loader.dataset.labels) == [0, 0, 1, 1]
    assert data.classes == ["b", "Äpfel"]
    (preview,) = read_batches(data.preview)
    assert len(preview) == 2
    assert preview.labels.tolist() == [0, 1]
    assert sum(len(batch) for batch in read_batches(data.loader)) == 4, "the preview took images out of the loader"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user module in the working directory, which is unloaded afterwards."""
    (tmp_path / "mydata.py").write_text(
        "import torch\n"
        "def batches():\n"
        "    return [torch.zeros(2, 3, 4, 4), torch.ones(1, 3, 4, 4)]\n"
        "def once():\n"
        "    return iter(batches())\n"
        "def nothing():\n"
        "    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "mydata"
    sys.modules.pop("mydata", None)


def test_a_factory_in_the_working_directory_gives_its_loader(module):
    data = load_data(f"{module}:batches", SMALL, batch_size=4)
    assert [len(batch) for batch in read_batches(data.loader)] == [2, 1]
    assert data.preview is data.loader
    assert data.classes is None


def test_a_loader_that_can_be_read_once_has_no_preview(module):
    data = load_data(f"{module}:once", SMALL, batch_size=4)
    assert data.preview is None
    assert [len(batch) for batch in read_batches(data.loader)] == [2, 1]


def test_a_factory_that_gives_no_loader_is_refused(module):
    with pytest.raises(DataError, match=f"{module}:nothing"):
        load_data(f"{module}:nothing", SMALL, batch_size=4)


def test_data_of_the_public_form_can_be_scored(module):
    data = load_data(f"{module}:batches", SMALL, batch_size=4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    scores = xaieval.score(model, data.loader, "0", progress=False)
    assert list(scores.rows["image_id"]) == ["0", "1", "2"]


# ---- pictures by name


def test_scenes_by_name_are_those_of_the_split_and_seed():
    default = load_pictures("scenes", SMALL, 4)
    other, again = (load_pictures("scenes", SMALL, 4, split="train", seed=7) for _ in range(2))
    assert list(default.ids) == [f"test/{number:05d}" for number in range(4)]
    assert list(other.ids) == [f"train/{number:05d}" for number in range(4)]
    assert list(other.classes) == list(CLASSES)
    for index in range(4):
        assert torch.equal(default[index]["image"], scenes(SMALL, 4)[index]["image"])
        assert torch.equal(other[index]["image"], scenes(SMALL, 4, "train", 7)[index]["image"])
        assert torch.equal(other[index]["image"], again[index]["image"])
        assert not torch.equal(other[index]["image"], default[index]["image"])
    seeded = load_pictures("scenes", SMALL, 4, seed=1)
    assert list(seeded.ids) == list(default.ids)
    assert not torch.equal(seeded[0]["image"], default[0]["image"])


def test_there_are_two_hundred_scenes_by_default():
    assert len(load_pictures("scenes", SMALL)) == 200


@pytest.mark.parametrize("most", [0, -1])
def test_scenes_fewer_than_one_are_refused_word_for_word(most):
    with pytest.raises(DataError) as error:
        load_pictures("scenes", SMALL, most)
    assert str(error.value) == f"at least one image is needed, got {most}"


def test_a_folder_by_name_is_spread_over_its_classes(tmp_path):
    for name in ("a/1", "a/2", "a/3", "a/4", "b/1", "b/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    assert list(load_pictures(f"folder:{tmp_path}", SMALL).ids) == [f"a/{i}.png" for i in (1, 2, 3, 4)] + ["b/1.png", "b/2.png"]
    assert list(load_pictures(f"folder:{tmp_path}", SMALL, 4).ids) == ["a/1.png", "a/3.png", "b/1.png", "b/2.png"]
    with pytest.raises(DataError, match=r"^at least one image is needed, got 0$"):
        load_pictures(f"folder:{tmp_path}", SMALL, 0)


@pytest.mark.shared
def test_uc_merced_by_name_is_all_of_it_or_a_part_of_every_class(ucmerced_folder):
    assert len(load_pictures(f"ucmerced:{ucmerced_folder}", SMALL)) == 2100
    assert list(load_pictures(f"ucmerced:{ucmerced_folder}", SMALL, 21).labels) == list(range(21))


def test_a_factory_gives_no_pictures_and_is_not_called():
    assert load_pictures("no.such.module:factory", SMALL) is None


@pytest.mark.parametrize("spec", ["senes", "folder:"])
def test_pictures_that_do_not_exist_are_refused_word_for_word(spec):
    with pytest.raises(DataError) as error:
        load_pictures(spec, SMALL)
    assert str(error.value) == f"no data '{spec}'; data is 'scenes', 'folder:DIR', 'ucmerced:DIR' or 'package.module:factory'"
