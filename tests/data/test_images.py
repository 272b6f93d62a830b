"""Data sets of pictures: folders with stable ids, subsets, and UC Merced."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from torch import Tensor, nn

import xaieval
from xaieval.data import Pictures, Preprocessing, image_files, image_folder, load_data, scenes, ucmerced
from xaieval.data.decoding import ENDINGS
from xaieval.data.images import describe_left_out
from xaieval.errors import DataError, RunError, TargetError

PROPERTY = settings(deadline=None, max_examples=80)
SMALL = Preprocessing(image_size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)


# ---- image folders


def _picture(mode: str = "RGB", side: int = 24) -> Image.Image:
    grey = (np.indices((side, side)).sum(axis=0) * 4).astype(np.uint8)
    return Image.fromarray(grey).convert(mode)


def _save(path: Path, mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _picture(mode).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with files of many kinds, and files that are not images."""
    root = tmp_path / "data"
    names = [
        "b/z.png",
        "b/a.jpg",
        "b/deep/er/m.tif",
        "Äpfel/Ünï.png",
        "Äpfel/UPPER.JPG",
        "Äpfel/x.TiFF",
        "b/日本.webp",
        "b/q.bmp",
    ]
    for name in names:
        _save(root / name)
    (root / "b" / "notes.txt").write_text("no image")
    (root / "b" / "folder.png").mkdir()
    (root / "empty class").mkdir()
    _save(root / "top.png")
    return root


def test_ids_are_sorted_paths_below_the_folder(folder):
    pictures = image_folder(folder, SMALL)
    assert list(pictures.ids) == [
        "b/a.jpg",
        "b/deep/er/m.tif",
        "b/q.bmp",
        "b/z.png",
        "b/日本.webp",
        "Äpfel/UPPER.JPG",
        "Äpfel/x.TiFF",
        "Äpfel/Ünï.png",
    ]
    assert list(pictures.classes) == ["b", "Äpfel"]
    assert list(pictures.labels) == [0, 0, 0, 0, 0, 1, 1, 1]


def test_ids_do_not_depend_on_where_the_folder_is_nor_on_the_order_of_writing(folder, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    for name in reversed(image_folder(folder, SMALL).ids):
        _save(moved / name)
    expected = list(image_folder(folder, SMALL).ids)
    assert list(image_folder(moved, SMALL).ids) == expected
    monkeypatch.chdir(tmp_path)
    assert list(image_folder("data", SMALL).ids) == expected
    assert list(image_folder("./elsewhere/", SMALL).ids) == expected


def test_a_data_set_is_shown_in_one_line():
    def pictures(labels: list[int | None], classes: list[str], left_out: dict[str, int]) -> Pictures:
        return Pictures([str(n) for n, _ in enumerate(labels)], labels, classes, lambda n: None, lambda p: p, left_out=left_out)

    assert repr(pictures([0, 1], ["cat", "dog"], {".txt": 2})) == "<2 pictures, 2 classes: cat, dog; left out: 2 .txt>"
    assert repr(pictures([None], [], {})) == "<1 picture, no classes>"
    many = repr(pictures([0], [f"c{n}" for n in range(30)], {}))
    assert many == f"<1 picture, 30 classes: {', '.join(f'c{n}' for n in range(10))}, ...>"


def test_every_picture_of_a_folder_can_be_read(folder):
    pictures = image_folder(folder, SMALL)
    batches = list(pictures.loader(batch_size=3))
    assert [len(batch["image"]) for batch in batches] == [3, 3, 2]
    assert [name for batch in batches for name in batch["id"]] == list(pictures.ids)
    assert torch.cat([batch["label"] for batch in batches]).tolist() == list(pictures.labels)
    assert not any(batch["failed"] for batch in batches)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("L", "png"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("P", "png"),
        ("L", "jpg"),
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("YCbCr", "tif"),
        ("I", "tif"),
    ],
)
def test_pictures_of_other_modes_become_rgb(tmp_path, mode, ending):
    _save(tmp_path / "class" / f"picture.{ending}", mode)
    sample = image_folder(tmp_path, SMALL)[0]
    assert sample["image"].shape == (3, 16, 16)
    torch.testing.assert_close(sample["image"], SMALL(_picture()), rtol=0, atol=0.1)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_not_silently_cut_to_white(tmp_path, ending):
    # Aerial images often have 16 bits; either they are scaled, or they are listed as failed.
    (tmp_path / "class").mkdir()
    deep = np.asarray(_picture("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "class" / f"deep.{ending}")
    sample = image_folder(tmp_path, SMALL)[0]
    if "failed" not in sample:
        torch.testing.assert_close(sample["image"], SMALL(_picture()), rtol=0, atol=0.1)


def _broken(root: Path) -> list[str]:
    """Files that are not images, or only a part of one; returns their ids."""
    whole = {ending: _save(root / f"whole.{ending}").read_bytes() for ending in ("png", "jpg", "tif")}
    for ending in whole:
        (root / f"whole.{ending}").unlink()
    broken = {f"cut.{ending}": content[: len(content) // 2] for ending, content in whole.items()}
    broken |= {"empty.png": b"", "text.jpg": b"this is no image", "head.png": whole["png"][:20]}
    for name, content in broken.items():
        (root / name).write_bytes(content)
    return sorted(f"{root.name}/{name}" for name in broken)


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # Pillow's own, before it gives up on the TIFF
def test_broken_files_become_failed_entries_with_label_and_reason(tmp_path):
    _save(tmp_path / "good" / "one.png")
    names = _broken(tmp_path / "bad")
    pictures = image_folder(tmp_path, SMALL)
    (batch,) = pictures.loader(batch_size=10)
    assert batch["id"] == ["good/one.png"]
    assert batch["label"].tolist() == [1]
    assert [name for name, _, _ in batch["failed"]] == names
    assert all(label == 0 for _, label, _ in batch["failed"])
    assert all(reason for _, _, reason in batch["failed"])


def _model(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_a_run_keeps_a_row_with_a_status_for_every_broken_file(tmp_path, batch_size):
    for index in range(3):
        _save(tmp_path / "good" / f"{index}.png")
    names = _broken(tmp_path / "bad")
    loader = image_folder(tmp_path, SMALL).loader(batch_size)
    scores = xaieval.score(_model(), loader, ["0", "1"], ["gradcam", "random"], progress=False)
    unreadable = scores.rows[scores.rows["status"] == "unreadable"]
    assert sorted(unreadable["image_id"].unique()) == names
    # One row for each layer and method, as for any other image, so that no N differs: two layers, and the control map.
    assert len(unreadable) == 3 * len(names)
    assert (unreadable["label"] == 0).all()
    assert (
        unreadable[["confidence", "masked_confidence", "mask_area", "average_drop", "increase_in_confidence"]]
        .isna()
        .all(axis=None)
    )
    assert unreadable["predicted"].isna().all()
    assert sorted(scores.rows.loc[scores.rows["status"] == "ok", "image_id"].unique()) == [f"good/{i}.png" for i in range(3)]
    summary = scores.summary()
    assert (summary["n_images"] == 3).all()
    assert (summary["n_failed"] == len(names)).all()
    assert sorted(entry["id"] for entry in scores.manifest["unreadable"]) == names
    assert all(entry["reason"] for entry in scores.manifest["unreadable"])


def test_a_run_over_nothing_but_broken_files_fails_and_names_the_first(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "class").mkdir(exist_ok=True)
        (tmp_path / "class" / f"{name}.png").write_bytes(b"nothing")
    with pytest.raises(
        RunError, match=r"^none of the 2 images could be read; the first, 'class/a\.png': UnidentifiedImageError: "
    ):
        xaieval.score(_model(), image_folder(tmp_path, SMALL).loader(1), "0", progress=False)


def test_a_missing_folder_is_refused_word_for_word(tmp_path):
    with pytest.raises(DataError) as error:
        image_folder(tmp_path / "nowhere", SMALL)
    assert str(error.value) == (
        f"no folder '{tmp_path / 'nowhere'}'; give a folder that has one sub-folder of images for each class"
    )


def test_a_folder_without_images_is_refused_word_for_word(tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "notes.txt").write_text("no image")
    with pytest.raises(DataError) as error:
        image_folder(tmp_path / "flat", SMALL)
    assert str(error.value) == (
        f"no images in '{tmp_path / 'flat'}'; expected flat/CLASS/IMAGE, or flat/IMAGE without classes, with one of the "
        f"extensions {', '.join(ENDINGS)}"
    )


def test_what_is_left_out_of_a_folder_is_counted(folder, tmp_path):
    (folder / "b" / ".hidden.png").write_bytes(b"")
    (folder / "b" / "README").write_text("no image")
    (folder / "b" / "photo.HEIC").write_bytes(b"")
    (folder / ".cache").mkdir()
    (folder / "b" / "linked").symlink_to(tmp_path, target_is_directory=True)
    pictures = image_folder(folder, SMALL)
    assert len(pictures) == 8
    assert pictures.left_out == {
        ".heic": 1,
        ".txt": 1,
        "folder without images": 1,
        "hidden": 2,
        "image beside the class folders": 1,
        "link to a folder": 1,
        "without extension": 1,
    }
    assert describe_left_out(pictures.left_out) == (
        "left out: 1 .heic, 1 .txt, 1 folder without images, 2 hidden, 1 image beside the class folders, 1 link to a folder, "
        "1 without extension"
    )
    assert pictures.spread(2).left_out == pictures.subset([1]).left_out == pictures.left_out
    assert load_data(f"folder:{folder}", SMALL, 4).left_out == pictures.left_out


def test_a_folder_of_images_alone_leaves_nothing_out(tmp_path):
    _save(tmp_path / "a" / "1.png")
    assert image_folder(tmp_path, SMALL).left_out == {}
    assert describe_left_out({}) == ""


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("x.gif", "GIF"),
        ("x.GIF", "GIF"),
        ("x.jfif", "JPEG"),
        ("x.JPE", "JPEG"),
        ("x.pgm", "PPM"),
        ("x.pnm", "PPM"),
        ("x.apng", "PNG"),
        ("x.Tif", "TIFF"),
        ("x.jp2", "JPEG2000"),
        ("x.avif", "AVIF"),
    ],
)
def test_pictures_of_all_extensions_are_read(tmp_path, name, form):
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow does not read AVIF")
    (tmp_path / "class").mkdir()
    _picture("L").save(tmp_path / "class" / name, form)
    pictures = image_folder(tmp_path, SMALL)
    assert list(pictures.ids) == [f"class/{name}"]
    torch.testing.assert_close(pictures[0]["image"], SMALL(_picture()), rtol=0, atol=0.1)


def test_a_flat_folder_has_images_without_classes(tmp_path):
    for number in range(5):
        _save(tmp_path / f"{number}.png")
    pictures = image_folder(tmp_path, SMALL)
    assert (list(pictures.labels), list(pictures.classes)) == ([None] * 5, [])
    assert load_data(f"folder:{tmp_path}", SMALL, 2).classes is None
    assert list(pictures.spread(2).ids) == ["0.png", "2.png"]
    rows = xaieval.score(_model(), pictures.loader(2), "0", progress=False).rows
    assert rows["image_id"].to_list() == [f"{number}.png" for number in range(5)]
    assert rows["confidence"].notna().all()
    with pytest.raises(TargetError, match="label"):
        xaieval.score(_model(), pictures.loader(2), "0", target="label", progress=False)


def test_splits_are_not_taken_for_classes(tmp_path):
    for name in ("train/cat/1.png", "val/dog/2.png"):
        _save(tmp_path / name)
    with pytest.raises(DataError) as error:
        image_folder(tmp_path, SMALL)
    assert str(error.value) == f"the folders of '{tmp_path}' are train, val: splits, not classes; give one of them"
    assert image_folder(tmp_path / "val", SMALL).classes == ["dog"]


# ---- images of several bands


BANDS = Preprocessing((6, 8), (6, 8), mean=(1.0,) * 5, std=(2.0,) * 5)


@pytest.mark.parametrize("last", [False, True])
def test_bands_of_arrays_are_in_their_own_unit(tmp_path, last):
    values = np.arange(5 * 6 * 8, dtype=np.float64).reshape(5, 6, 8)
    (tmp_path / "class").mkdir()
    np.save(tmp_path / "class" / "1.npy", np.moveaxis(values, 0, 2) if last else values)
    _save(tmp_path / "class" / "2.png")
    (batch,) = image_folder(tmp_path, BANDS).loader(2)
    torch.testing.assert_close(batch["image"][0], torch.from_numpy((values - 1) / 2).float())
    assert batch["failed"] == [
        ("class/2.png", 0, "ValueError: its values have the shape [24, 24, 3], and the model takes 5 bands: [C, H, W]")
    ]


@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8), (6, 8, 1)])
def test_arrays_of_one_band_are_read_where_there_are_no_pictures(tmp_path, shape):
    values = np.linspace(-1000, 1000, 48, dtype=np.float32).reshape(shape)
    (tmp_path / "class").mkdir()
    np.save(tmp_path / "class" / "1.npy", values)
    prepare = Preprocessing((6, 8), (6, 8), mean=(100.0,), std=(500.0,))
    (batch,) = image_folder(tmp_path, prepare).loader(1)
    torch.testing.assert_close(batch["image"][0, 0], torch.from_numpy((values.reshape(6, 8) - 100) / 500))
    shown = prepare.to_pixels(batch["image"])
    assert 0 == shown.min() < shown.median() < shown.max() == 1, "stretched: its unit is not that of pictures"
    _save(tmp_path / "class" / "2.png")
    found = image_folder(tmp_path, prepare)
    assert (found.ids, found.left_out) == (["class/2.png"], {".npy": 1})


def test_arrays_of_three_bands_keep_their_unit(tmp_path):
    np.save(tmp_path / "1.npy", values := np.random.default_rng(0).random((3, 6, 8)) * 4000)
    (batch,) = image_folder(tmp_path, Preprocessing((6, 8), (6, 8), mean=(0.0,) * 3, std=(2.0,) * 3)).loader(1)
    torch.testing.assert_close(batch["image"][0], torch.from_numpy(values / 2).float())


def test_bytes_of_bands_are_scaled_and_arrays_of_code_are_not_run(tmp_path):
    _save(tmp_path / "class" / "alpha.png", "RGBA")
    np.save(tmp_path / "class" / "code.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "class" / "cube.npy", np.zeros((4, 9, 4), dtype=np.uint8))
    (batch,) = image_folder(tmp_path, Preprocessing(24, 24, mean=(0,) * 4, std=(1,) * 4)).loader(3)
    expected = torch.from_numpy(np.asarray(_picture("RGBA")).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(batch["image"][0], expected)
    assert [reason.split(":")[0] for _, _, reason in batch["failed"]] == ["ValueError"] * 2
    assert "can be [C, H, W] or [H, W, C]" in batch["failed"][1][2]


def test_bands_of_tiff_files_are_read_by_tifffile(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="reads TIFF files of more than four bands")
    values = np.random.default_rng(0).integers(0, 9000, (5, 6, 8)).astype(np.uint16)
    (tmp_path / "class").mkdir()
    tifffile.imwrite(tmp_path / "class" / "planes.tif", values)
    tifffile.imwrite(tmp_path / "class" / "pixels.tif", np.moveaxis(values, 0, 2), planarconfig="contig")
    (batch,) = image_folder(tmp_path, BANDS).loader(3)
    assert not batch["failed"]
    expected = torch.from_numpy((values.astype(np.float32) - 1) / 2)
    for image in batch["image"]:
        torch.testing.assert_close(image, expected)


def test_tiff_files_of_many_bands_say_that_they_need_tifffile(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="writes the file")
    tifffile.imwrite(tmp_path / "1.tif", np.zeros((6, 8, 5), dtype=np.uint16), planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (batch,) = image_folder(tmp_path, BANDS).loader(1)
    assert "need tifffile (pip install tifffile)" in batch["failed"][0][2]


def test_masks_and_boxes_of_bands_follow_them(tmp_path):
    values = np.zeros((5, 12, 16), dtype=np.float32)
    values[:, 2:6, 4:12] = 1
    (tmp_path / "photos" / "class").mkdir(parents=True)
    np.save(tmp_path / "photos" / "class" / "1.npy", values)
    mask = tmp_path / "masks" / "class" / "1.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray((values[0] * 255).astype(np.uint8)).save(mask)
    sample = image_folder(tmp_path / "photos", BANDS, masks=tmp_path / "masks")[0]
    assert torch.equal(sample["mask"], sample["image"][0] >= -0.25)  # half of the object's value
    assert sample["mask"].sum() == 2 * 4


# ---- a share of the pictures


def _pictures(labels: list[int]) -> Pictures:
    """Pictures whose only pixel value is their number."""

    def read(index: int) -> Image.Image:
        return Image.new("RGB", (16, 16), (index, index, index))

    prepare = Preprocessing(16, 16, mean=(0, 0, 0), std=(1, 1, 1))
    return Pictures([f"id {i}" for i in range(len(labels))], labels, ["a", "b", "c", "d"], read, prepare)


@PROPERTY
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), most=st.integers(1, 70))
def test_spread_takes_a_balanced_ordered_part(labels, most):
    pictures = _pictures(labels)
    part = pictures.spread(most)
    assert len(part) == min(most, len(labels))
    numbers = [int(name.removeprefix("id ")) for name in part.ids]
    assert numbers == sorted(set(numbers)), "in the same order, none twice"
    assert list(part.labels) == [labels[number] for number in numbers]
    assert list(part.classes) == list(pictures.classes)
    taken, there = Counter(part.labels), Counter(labels)
    most_taken = max(taken.values())
    for label in there:
        # A class has fewer than the others only by one, or because it has no more.
        assert taken[label] >= most_taken - 1 or taken[label] == there[label]


@PROPERTY
@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=60), first=st.integers(2, 40), second=st.integers(1, 20))
def test_pictures_of_a_part_of_a_part_are_still_their_own(labels, first, second):
    part = _pictures(labels).spread(first).spread(second)
    for index, name in enumerate(part.ids):
        sample = part[index]
        assert sample["id"] == name
        assert sample["label"] == part.labels[index]
        assert round(float(sample["image"].mean()) * 255) == int(name.removeprefix("id "))


def test_spread_is_evenly_spaced_within_each_class_as_worked_by_hand():
    # Class 0 has the numbers 0 to 5, class 1 has 6 to 9; two of each are the ones at 0 and 1/2 of the class.
    assert list(_pictures([0] * 6 + [1] * 4).spread(4).ids) == ["id 0", "id 3", "id 6", "id 8"]


def test_spread_of_everything_is_the_same_pictures():
    pictures = _pictures([0, 1, 2])
    assert pictures.spread(None) is pictures
    assert pictures.spread(3) is pictures


@pytest.mark.parametrize("most", [0, -3])
def test_spread_of_nothing_is_refused_word_for_word(most):
    with pytest.raises(DataError) as error:
        _pictures([0, 1]).spread(most)
    assert str(error.value) == f"max_images is at least 1, got {most}"


# ---- UC Merced


@pytest.mark.shared
def test_uc_merced_is_2100_images_of_21_classes(ucmerced_folder):
    pictures = ucmerced(ucmerced_folder, SMALL)
    assert len(pictures) == 2100
    assert len(pictures.classes) == 21
    assert set(Counter(pictures.labels).values()) == {100}
    assert pictures.ids[0].startswith("agricultural/agricultural00")
    assert list(ucmerced(ucmerced_folder / "Images", SMALL).ids) == list(pictures.ids)


@pytest.mark.shared
def test_uc_merced_images_can_be_read(ucmerced_folder):
    (batch,) = ucmerced(ucmerced_folder, SMALL).spread(21).loader(21)
    assert batch["image"].shape == (21, 3, 16, 16)
    assert batch["label"].tolist() == list(range(21))
    assert batch["image"].std() > 0.1


def test_a_folder_that_is_not_uc_merced_is_refused_word_for_word(tmp_path):
    _save(tmp_path / "Images" / "airplane" / "1.png")
    with pytest.raises(DataError) as error:
        ucmerced(tmp_path, SMALL)
    assert str(error.value) == f"'{tmp_path}' has 1 classes, UC Merced has 21; for other images use 'folder:{tmp_path}'"


def test_uc_merced_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^no folder '"):
        ucmerced(tmp_path / "nowhere", SMALL)


def test_images_are_tensors_as_the_annotation_says():
    sample = scenes(SMALL, size=1)[0]
    assert isinstance(sample["image"], Tensor)
    assert sample["image"].dtype == torch.float32


# ---- files, folders and patterns


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place in ("a.png", "deep/b.JPG", "deep/.hidden.png", ".git/c.png", "deep/notes.txt", "photo[1].png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / place, "PNG")
    return tmp_path


@pytest.mark.parametrize(
    ("places", "ids"),
    [
        ([""], ["a.png", "deep/b.JPG", "photo[1].png"]),
        (["*.png"], ["a.png", "photo[1].png"]),
        (["**/*"], ["a.png", "deep/b.JPG", "photo[1].png"]),
        (["photo[1].png"], ["photo[1].png"]),  # a file, although it looks like a pattern
        (["deep/notes.txt"], ["notes.txt"]),  # which is a picture, whatever its name says
        (["deep", "a.png", "a.png", "*.png"], ["deep/b.JPG", "a.png", "photo[1].png"]),
    ],
)
def test_files_folders_and_patterns_are_images_without_classes(photos, places, ids):
    pictures = image_files([photos / place if place else str(photos) for place in places], Preprocessing(8, 8))
    assert pictures.ids == ids
    assert pictures.labels == [None] * len(ids)
    assert not pictures.classes
    [batch] = list(pictures.loader(9))
    assert batch["image"].shape == (len(ids), 3, 8, 8)
    assert batch["failed"] == []


def test_one_place_needs_no_list_and_arrays_are_images_where_they_are_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 8, 9), np.float32))
    assert image_files(tmp_path, Preprocessing(8, 8, mean=(0.0,) * 5, std=(1.0,) * 5))[0]["image"].shape == (5, 8, 8)
    Image.new("RGB", (8, 8)).save(tmp_path / "y.png")
    assert image_files(str(tmp_path), Preprocessing(8, 8)).ids == ["y.png"]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("nothing.png", "there is no image at 'nothing.png'; a file, a folder or a pattern"),
        ("*.tiff", "there is no image at '*.tiff'; "),
        (["empty"], "the folder 'empty' has no image; "),
        ([], "no images were named: []; "),
    ],
)
def test_places_without_images_are_refused(tmp_path, monkeypatch, places, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        image_files(places, Preprocessing(8, 8))
    assert str(caught.value).startswith(message)


def test_pixels_without_data_become_the_mean_before_the_image_is_resized():
    tile = torch.full((2, 8, 8), 30.0)
    tile[:, :, :3] = -9999
    tile[0, 5, 5] = torch.nan
    prepare = Preprocessing((4, 4), (4, 4), mean=(10.0, 20.0), std=(10.0, 10.0), nodata=-9999)
    by_hand = torch.where((tile == -9999) | tile.isnan(), torch.tensor([10.0, 20.0])[:, None, None], tile)
    wanted = replace(prepare, nodata=None)(by_hand)
    assert torch.equal(prepare(tile), wanted)
    assert wanted[:, :, 0].abs().max() < 0.3  # a mixture with -9999 would be far off
    assert not prepare(tile).isnan().any()


def test_bands_are_not_cropped():
    bands = Preprocessing(224, 256).with_channels(13).with_size(64)
    tile = torch.rand(13, 64, 64)
    assert torch.equal(bands(tile), tile)
