"""Data by name: scenes, folders, UC Merced, and factories."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import ImageFolder

import xaieval
from xaieval.data import Preprocessing, image_folder, load_data, load_mosaics, load_pictures, mosaics, scenes
from xaieval.data.batches import read_batches
from xaieval.data.loading import import_factory
from xaieval.data.scenes import CLASSES
from xaieval.errors import DataError

KNOWN = (
    "data is 'scenes', 'folder:DIR', 'nifti:DIR', 'ucmerced:DIR', 'hf:NAME', 'mosaics:DATA', 'focus:DATA' or "
    "'package.module:factory'"
)
SMALL = Preprocessing(image_size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(autouse=True)
def _same_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the search path, to which loading a factory adds the working directory."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "senes",
            f"no data 'senes'; {KNOWN}",
        ),
        (
            "folder:",
            f"no data 'folder:'; {KNOWN}",
        ),
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


def test_folders_that_may_be_meant_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "photos").mkdir(parents=True)
    (tmp_path / "my" / "photon").write_text("no folder")
    with pytest.raises(DataError, match=r"^no data 'my/photos'; did you mean 'folder:my/photos'\? data is 'scenes', "):
        load_data("my/photos", SMALL, batch_size=4)
    with pytest.raises(DataError, match=r"^no folder 'my/fotos'; did you mean 'my/photos'\? give a folder that has"):
        load_data("folder:my/fotos", SMALL, batch_size=4)
    with pytest.raises(DataError, match=r"^no folder 'mine/photos'; give a folder"):  # nothing beside it
        load_data("folder:mine/photos", SMALL, batch_size=4)


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
    assert str(error.value) == f"max_images is at least 1, got {most}"


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
    assert str(error.value) == f"max_images is at least 1, got {most}"


def test_a_folder_by_name_is_spread_over_its_classes(tmp_path):
    for name in ("a/1", "a/2", "a/3", "a/4", "b/1", "b/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    assert list(load_pictures(f"folder:{tmp_path}", SMALL).ids) == [f"a/{i}.png" for i in (1, 2, 3, 4)] + ["b/1.png", "b/2.png"]
    assert list(load_pictures(f"folder:{tmp_path}", SMALL, 4).ids) == ["a/1.png", "a/3.png", "b/1.png", "b/2.png"]
    with pytest.raises(DataError, match=r"^max_images is at least 1, got 0$"):
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
    assert str(error.value) == f"no data '{spec}'; {KNOWN}"


# ---- mosaics by name


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 5 classes with 4 pictures each, whose grey says which they are: 40 times the class, plus their number."""
    root = tmp_path_factory.mktemp("grey")
    for label, number in ((label, number) for label in range(5) for number in range(4)):
        (root / "abcde"[label]).mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (40 * label + number,) * 3).save(root / "abcde"[label] / f"{number}.png")
    return root


@pytest.mark.parametrize(("source", "choices"), [("mosaics", {}), ("mosaics", {"shrink": True}), ("focus", {})])
def test_mosaics_by_name_are_those_of_the_pictures(grey, source, choices):
    data = load_data(f"{source}:folder:{grey}", SMALL, 3, truth=True, mosaic_args=choices, seed=4)
    layout = "focus" if source == "focus" else "distinct"
    expected = mosaics(image_folder(grey, SMALL), layout=layout, seed=4, **choices)
    batches, wanted = (list(read_batches(loader)) for loader in (data.loader, expected.loader(3)))
    assert data.classes == list("abcde")
    assert len(batches) == len(wanted) > 0
    for batch, other in zip(batches, wanted, strict=True):
        assert (batch.ids, batch.group, batch.labels.tolist()) == (other.ids, other.group, other.labels.tolist())
        assert torch.equal(batch.images, other.images)
    [preview] = read_batches(data.preview)
    assert preview.ids == [name for batch in batches for name in batch.ids][:5]


def test_mosaics_by_name_take_the_pictures_that_the_judge_is_sure_of_and_no_more_than_asked(grey):
    def judge(images):  # right and sure up to the third picture of a class
        values = ((images[:, 0, 0, 0] + 1) * 127.5).round().long()
        sure = torch.where(values % 40 < 3, 0.95, 0.6)
        return torch.full((len(images), 5), 0.01).scatter(1, values[:, None] // 40, sure[:, None])

    made = load_mosaics(f"mosaics:folder:{grey}", SMALL, judge=judge, confidence=0.9)
    used = [cell.id for grid in made.grids for cell in grid]
    assert used
    assert all(name[2] in "012" for name in used)
    assert len(used) < len(load_mosaics(f"mosaics:folder:{grey}", SMALL, judge=judge, confidence=0).ids)
    few = load_mosaics(f"mosaics:folder:{grey}", SMALL, max_images=5)
    assert {cell.id[0] for grid in few.grids for cell in grid} <= set("abcde")
    assert len(few.ids) == 4


@pytest.mark.parametrize(
    ("spec", "choices", "message"),
    [
        ("mosaics:scenes", {"sied": 3}, "mosaics have no 'sied'; did you mean 'side'? known: side, confidence, shrink"),
        ("mosaics:scenes", {"side": "two"}, "side of mosaics is a number, and shrink True or False; got 'two'"),
        ("scenes", {"side": 3}, "mosaic_args go with 'mosaics:DATA' and 'focus:DATA', but the data is 'scenes'"),
        ("focus:scenes", {"side": 3}, "mosaics have at least 2 cells along a side, and exactly 2 with layout 'focus'; got 3"),
        (
            "mosaics:mine:make",
            {},
            "mosaics by name are made of images by name, such as 'mosaics:folder:DIR', and 'mine:make' is",
        ),
        (
            "focus:mosaics:scenes",
            {},
            "'mosaics:scenes' is mosaics, which are made for scores alone; give the images themselves,",
        ),
    ],
)
def test_mosaics_by_name_that_cannot_be_made_are_refused(spec, choices, message):
    with pytest.raises(DataError) as caught:
        load_data(spec, SMALL, 1, 8, mosaic_args=choices)
    assert str(caught.value).startswith(message)
    with pytest.raises(DataError, match="masks, boxes and annotations go with 'folder:DIR'"):
        load_data("mosaics:scenes", SMALL, 1, 8, masks="masks")


# ---- which class a folder is


def _folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir()
        Image.new("RGB", (16, 16)).save(root / name / "0.png")
    return root


def test_folders_of_numbers_in_another_order_by_name_are_a_question_and_both_answers_hold(tmp_path):
    root = _folders(tmp_path, *map(str, (0, 1, 2, 4, 10)))
    with pytest.raises(DataError) as caught:
        image_folder(root, SMALL)
    assert str(caught.value) == (
        f"the class folders of '{root}' are named by numbers, whose order by name is another: folder '10' is class 2 by name, "
        'as torchvision\'s ImageFolder counts, and class 10 by number; give classes="name" or classes="number", '
        "as the model was trained"
    )
    found = {order: image_folder(root, SMALL, classes=order) for order in ("name", "number")}
    assert [name.split("/")[0] for name in found["name"].ids] == ["0", "1", "10", "2", "4"]
    assert found["name"].labels == ImageFolder(root).targets == [0, 1, 2, 3, 4]
    assert found["number"].labels == [0, 1, 10, 2, 4]
    assert [found["number"].classes[label] for label in found["number"].labels] == ["0", "1", "10", "2", "4"]
    assert load_data(f"folder:{root}", SMALL, 1, classes="number").classes[10] == "10"
    with pytest.raises(DataError, match="classes goes with 'folder:DIR' and 'nifti:DIR', but the data is 'scenes'"):
        load_data("scenes", SMALL, 1, classes="name")


@pytest.mark.parametrize("names", [("0", "1", "2"), ("00", "02", "10"), ("2019", "2020"), ("10", "9", "cat")])
def test_folders_whose_order_is_no_question_are_as_before(tmp_path, names):
    assert image_folder(_folders(tmp_path, *names), SMALL).classes == sorted(names)


def test_the_names_of_folders_can_be_given_in_the_order_of_the_model(tmp_path):
    root = _folders(tmp_path, "cat", "dog")
    assert image_folder(root, SMALL, classes=["dog", "bird", "cat"]).labels == [2, 0]
    for wrong, message in (
        (["dog"], "the folder 'cat' is missing; did you mean"),
        (["cat", "dog", "cat"], "a name stands twice"),
        ("number", "classes by number are folders named 0, 1, ... below 1,000,000, each once; got 'cat'"),
        ("nubmer", "the folder 'cat' is missing"),
    ):
        with pytest.raises(DataError) as caught:
            image_folder(root, SMALL, classes=wrong)
        assert message.split("; did")[0] in str(caught.value)


def test_a_function_in_a_file_is_found_by_its_path_and_its_file_runs_once(tmp_path, monkeypatch):
    (tmp_path / "own code").mkdir()
    file = tmp_path / "own code" / "json.py"  # the name of a module of Python's
    file.write_text("import neighbour\nmade = []\ndef make():\n    made.append(neighbour.NUMBER)\n    return made\n")
    (tmp_path / "own code" / "neighbour.py").write_text("NUMBER = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {*sys.modules}
    try:
        make = import_factory("own code/json.py:make", DataError, "data")
        assert make() == [7]
        assert import_factory(f"{file}:make", DataError, "data") is make
        assert sys.modules["json"].__file__ != str(file)
    finally:
        for name in {*sys.modules} - before:
            del sys.modules[name]


def test_a_file_that_does_not_exist_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^no data 'own.py:make': there is no file 'own.py' in the working directory$"):
        import_factory("own.py:make", DataError, "data")


def test_a_file_that_fails_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "fails_at_first.py"
    file.write_text("raise ValueError('first')\n")
    with pytest.raises(ValueError, match="first"):
        import_factory(f"{file}:make", DataError, "data")
    assert "fails_at_first" not in sys.modules
