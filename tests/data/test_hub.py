"""Data by `hf:NAME`: real data sets of the package `datasets` on the disk, whose columns are found by their types."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pictures

from xaieval.cli import main
from xaieval.data import Preprocessing, huggingface, load_data
from xaieval.data.hub import hub_pictures
from xaieval.errors import DataError, UsageError

PREPARE = Preprocessing(32, 32)
NAMES = ["cat", "dog", "owl"]
FEATURES = Features({"picture": Image(), "size": Value("int64"), "kind": ClassLabel(names=NAMES)})


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Neither the network nor the user's cache is touched."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def pictures(count: int = 6) -> list[Pictures.Image]:
    rng = np.random.default_rng(0)
    return [Pictures.fromarray(rng.integers(0, 255, (40, 36, 3), dtype=np.uint8)) for _ in range(count)]


def made(features: Features = FEATURES, **columns: list) -> Dataset:
    given = {"picture": pictures(), "size": [*range(6)], "kind": [0, 1, 2, 0, 1, 2]} | columns
    return Dataset.from_dict({name: given[name] for name in features}, features=features)


def saved(tmp_path: Path, dataset: Dataset | DatasetDict) -> str:
    dataset.save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved")


def test_columns_are_found_by_their_types_and_images_are_those_of_the_other_way(tmp_path):
    dataset = made()
    found = hub_pictures(saved(tmp_path, dataset), PREPARE)
    assert found.labels == [0, 1, 2, 0, 1, 2]
    assert list(found.classes) == NAMES
    [batch] = found.loader(6)
    [other] = huggingface(dataset, PREPARE, image="picture", label="kind", batch_size=6)
    assert (batch["image"] == other["image"]).all()
    assert batch["label"].tolist() == other["label"].tolist()
    assert found.spread(3).labels == [0, 1, 2]


def test_splits_are_named_or_the_only_one(tmp_path):
    place = saved(tmp_path, DatasetDict({"train": made(), "test": made().select(range(2))}))
    with pytest.raises(DataError, match=r"has train, test, each of which could be meant; name one by split=$"):
        hub_pictures(place, PREPARE)
    assert hub_pictures(place, PREPARE, split="test").ids == ["test/00000", "test/00001"]
    with pytest.raises(DataError, match=r"has no split 'tset'; did you mean 'test'\? known: train, test"):
        hub_pictures(place, PREPARE, split="tset")


def test_several_columns_that_could_be_meant_are_named(tmp_path):
    two = Features({"left": Image(), "right": Image(), "fine": ClassLabel(names=NAMES), "coarse": ClassLabel(names=NAMES[:2])})
    columns = {"left": pictures(), "right": pictures()[::-1], "fine": [0, 1, 2] * 2, "coarse": [0, 0, 1] * 2}
    place = saved(tmp_path, made(two, **columns))
    with pytest.raises(DataError, match=r"has left, right, each of which could be meant; name one by image_column="):
        hub_pictures(place, PREPARE)
    with pytest.raises(DataError, match=r"has fine, coarse, each of which could be meant; name one by label_column="):
        hub_pictures(place, PREPARE, image_column="left")
    found = hub_pictures(place, PREPARE, image_column="right", label_column="coarse")
    assert found.labels == [0, 0, 1, 0, 0, 1]
    assert list(found.classes) == NAMES[:2]
    assert np.array_equal(np.asarray(found.read(0)), np.asarray(pictures()[5]))


def test_numbers_named_label_are_classes_and_minus_one_is_unknown(tmp_path):
    plain = Features({"id": Value("string"), "picture": Image(), "label": Value("int32")})
    columns = {"id": [f"x{number}" for number in range(6)], "label": [2, 0, 1, 1, 0, 2]}
    found = hub_pictures(saved(tmp_path, made(plain, **columns)), PREPARE)
    assert found.labels == [2, 0, 1, 1, 0, 2]
    assert found.ids[0] == "x0"
    unknown = hub_pictures(saved(tmp_path / "unknown", made(kind=[-1] * 6)), PREPARE)
    assert unknown.labels == [None] * 6
    without = hub_pictures(saved(tmp_path / "without", made(Features({"picture": Image()}))), PREPARE)
    assert without.labels == [None] * 6
    assert list(without.classes) == []


def test_folders_of_images_and_parquet_files_are_read(tmp_path):
    for number, picture in enumerate(pictures()):
        folder = tmp_path / "images" / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}.png")
    images = hub_pictures(str(tmp_path / "images"), PREPARE)
    assert sorted(images.labels) == [0, 0, 1, 1, 2, 2]
    assert list(images.classes) == NAMES
    made().to_parquet(tmp_path / "rows.parquet")
    parquet = hub_pictures(str(tmp_path / "rows.parquet"), PREPARE)
    assert parquet.labels == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(np.asarray(parquet.read(4)), np.asarray(pictures()[4]))


def test_a_broken_picture_becomes_a_failed_row(tmp_path):
    dataset = made()
    files = dataset.cast_column("picture", Image(decode=False)).to_list()
    files[1]["picture"] = {"bytes": b"no picture", "path": None}
    place = saved(tmp_path, Dataset.from_list(files, features=FEATURES))
    [batch] = hub_pictures(place, PREPARE).loader(6)
    assert [name for name, *_ in batch["failed"]] == ["all/00001"]
    assert len(batch["id"]) == 5


def test_what_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"^no folder or file 'owner/name'; a data set .* is downloaded by download=True$"):
        load_data("hf:owner/name", PREPARE, 2)
    with pytest.raises(DataError, match=r"^datasets cannot load hf:owner/name: "):
        load_data("hf:owner/name", PREPARE, 2, download=True)
    no_images = saved(tmp_path, made(Features({"size": Value("int64")})))
    with pytest.raises(DataError, match=r"has no column of images; its columns are size"):
        hub_pictures(no_images, PREPARE)
    for name in ("split", "label_column"):
        with pytest.raises(DataError, match=rf"^{name} goes with 'hf:NAME', and split with 'scenes' too, but the data is"):
            load_data("folder:x", PREPARE, 2, **{name: "x"})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"data hf:NAME needs datasets, which is missing: pip install 'xaieval\[datasets\]'"):
        load_data(f"hf:{no_images}", PREPARE, 2)


def test_the_command_line_scores_a_data_set_and_the_report_finds_it_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    place = saved(tmp_path, DatasetDict({"train": made(), "test": made()}))
    main(["score", "--data", f"hf:{place}", "--split", "test", "--layers", "fpn[p5]", "--max-images", "2", "--out", "run"])
    assert "mean confidence" in capsys.readouterr().out
    main(["report", "run"])
    page = Path("run/report.html").read_text()
    assert "test/00001" in page
    assert "<figure>" in page
    with pytest.raises(SystemExit):
        main(["score", "--data", f"hf:{place}", "--max-images", "2"])
    assert "name one by --split" in capsys.readouterr().err


def test_scenes_have_splits_too():
    batches = {split: next(iter(load_data("scenes", PREPARE, 2, 2, split=split).loader)) for split in (None, "test", "train")}
    assert batches[None]["id"] == batches["test"]["id"] == ["test/00000", "test/00001"]
    assert batches["train"]["id"] == ["train/00000", "train/00001"]
