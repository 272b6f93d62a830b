"""Every published layout, as a small made-up folder: the objects of each class lie where the annotations say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor

from xaieval.data import Annotations, Preprocessing, image_folder
from xaieval.data.annotations import READERS
from xaieval.data.batches import Batch, read_batches
from xaieval.data.truth_by_class import masks_of
from xaieval.errors import DataError

WIDTH, HEIGHT = 12, 8
PREPARE = Preprocessing((HEIGHT, WIDTH), (HEIGHT, WIDTH), mean=(0.0,) * 3, std=(1.0,) * 3)
CAT, DOG = 8, 12  # of Pascal VOC
CAT_BOX, DOG_BOX = (1, 1, 5, 7), (6, 2, 11, 6)  # corners


def inside(*boxes: Sequence[int]) -> Any:
    """The pixels of boxes."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


def save(path: Path, values: Any = None, palette: bool = False) -> None:
    """Write a picture; black without values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8) if values is None else np.asarray(values, np.uint8))
    if palette:
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    picture.save(path)


def batch_of(folder: Path, annotations: Any, prepare: Preprocessing = PREPARE) -> Batch:
    (batch,) = read_batches(image_folder(folder, prepare, annotations=annotations).loader(8))
    return batch


def masks(batch: Batch, *classes: int, box: Tensor | None = None) -> tuple[Any, Any]:
    found, ignored = masks_of(batch.truth, torch.tensor(classes), batch.images.shape[2:], box)
    return found.numpy(), None if ignored is None else ignored.numpy()


# ---- VOC and Pascal-Part


def voc(root: Path) -> Path:
    """A cat and a difficult dog on the first picture, a dog on the second, with a void border on its right."""
    objects = {"1": [("cat", CAT_BOX, 0), ("dog", DOG_BOX, 1)], "2": [("dog", DOG_BOX, 0)]}
    (root / "Annotations").mkdir(parents=True)
    for stem, known in objects.items():
        save(root / "JPEGImages" / f"{stem}.png")
        entries = [
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}"
            f"</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for name, box, difficult in known
        ]
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{''.join(entries)}</annotation>")
        classes, apart = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
        for number, (name, box, _) in enumerate(known, start=1):
            classes[inside(box)] = {"cat": CAT, "dog": DOG}[name]
            apart[inside(box)] = number
        classes[:, 11] = apart[:, 11] = 255
        save(root / "SegmentationClass" / f"{stem}.png", classes, palette=True)
        save(root / "SegmentationObject" / f"{stem}.png", apart, palette=True)
    return root / "JPEGImages"


def test_boxes_of_voc_count_pixels_from_one_and_leave_difficult_objects_out(tmp_path):
    batch = batch_of(voc(tmp_path), f"voc:{tmp_path}")
    found, ignored = masks(batch, CAT, CAT)
    assert np.array_equal(found[0], inside(CAT_BOX))
    assert not found[1].any()
    assert ignored is None, "a difficult dog is background for the cat"
    found, ignored = masks(batch, DOG, DOG)
    assert not found[0].any()
    assert np.array_equal(ignored[0], inside(DOG_BOX))
    assert np.array_equal(found[1], inside(DOG_BOX))


@pytest.mark.parametrize("apart", [True, False])
def test_masks_of_voc_tell_objects_apart_and_ignore_their_borders(tmp_path, apart):
    images = voc(tmp_path)
    if not apart:
        for path in (tmp_path / "SegmentationObject").iterdir():
            path.unlink()
        (tmp_path / "SegmentationObject").rmdir()
    batch = batch_of(images, Annotations("voc-masks", tmp_path))
    found, ignored = masks(batch, CAT, DOG)
    assert np.array_equal(found, [inside(CAT_BOX), inside(DOG_BOX)])
    assert ignored[:, :, 11].all()
    assert not ignored[:, :, :11].any()


def test_two_objects_of_a_class_are_followed_one_by_one(tmp_path):
    save(tmp_path / "images" / "1.png")
    classes = inside(CAT_BOX, DOG_BOX) * CAT
    save(tmp_path / "SegmentationClass" / "1.png", classes, palette=True)
    save(tmp_path / "SegmentationObject" / "1.png", inside(CAT_BOX) * 1 + inside(DOG_BOX) * 2, palette=True)
    batch = batch_of(tmp_path / "images", f"voc-masks:{tmp_path}")
    assert np.array_equal(masks(batch, CAT)[0][0], inside(CAT_BOX, DOG_BOX))
    near = torch.tensor([[6.0, 2, 11, 7]])
    assert np.array_equal(masks(batch, CAT, box=near)[0][0], inside(DOG_BOX))


def test_classes_of_other_names_take_the_numbers_of_their_folders(tmp_path):
    voc(tmp_path)
    for name, stem in (("cat", "1"), ("frog", "1b"), ("dog", "2")):
        save(tmp_path / "photos" / name / f"{stem}.png")
    (tmp_path / "Annotations" / "1b.xml").write_text("<annotation></annotation>")
    batch = batch_of(tmp_path / "photos", f"voc:{tmp_path}")
    assert batch.ids == ["cat/1.png", "dog/2.png", "frog/1b.png"]
    found, _ = masks(batch, 0, 1, 2)
    assert np.array_equal(found, [inside(CAT_BOX), inside(DOG_BOX), inside()])
    given = Annotations("voc", tmp_path, classes={"cat": 281, "dog": 207})
    assert np.array_equal(masks(batch_of(tmp_path / "photos", given), 281, 207, 0)[0], found)


@pytest.mark.parametrize(("parts", "expected"), [((), CAT_BOX), (("head",), (1, 1, 5, 3)), (("head", "tail"), (1, 1, 5, 4))])
def test_parts_of_pascal_part(tmp_path, parts, expected):
    images = voc(tmp_path)
    kinds = [("part_name", object), ("mask", object)]
    heads = np.array([("head", inside((1, 1, 5, 3)).astype(np.uint8)), ("tail", inside((1, 3, 5, 4)).astype(np.uint8))], kinds)
    none = np.zeros((0, 0))
    objects = [("cat", CAT, inside(CAT_BOX).astype(np.uint8), heads), ("dog", DOG, inside(DOG_BOX).astype(np.uint8), none)]
    kinds = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    for stem, known in (("1", objects), ("2", objects[1:])):
        savemat(tmp_path / f"{stem}.mat", {"anno": {"imname": stem, "objects": np.array(known, kinds)}})
    batch = batch_of(images, Annotations("pascal-part", tmp_path, parts=parts))
    found, _ = masks(batch, CAT, DOG)
    assert np.array_equal(found[0], inside(expected))
    assert found[1].any() == (not parts), "a dog without a head"


# ---- one file for each picture


def test_categories_of_imagenet_s_are_the_folders_and_1000_is_ignored(tmp_path):
    names = [f"n{number:08d}" for number in range(300)]
    for name in names:
        (tmp_path / "validation-segmentation" / name).mkdir(parents=True)
    values = inside(CAT_BOX) * 3 + inside(DOG_BOX) * 258
    values[7] = 1000
    colours = np.stack([values % 256, values // 256, 0 * values], axis=2)
    save(tmp_path / "validation-segmentation" / names[2] / "a.png", colours)
    save(tmp_path / "validation" / names[2] / "a.png")
    save(tmp_path / "validation-segmentation" / names[257] / "b.png", colours)
    save(tmp_path / "validation" / names[257] / "b.png")
    batch = batch_of(tmp_path / "validation", f"imagenet-s:{tmp_path / 'validation-segmentation'}")
    found, ignored = masks(batch, 0, 1)
    assert np.array_equal(found, [inside(CAT_BOX), inside(DOG_BOX)])
    assert ignored[:, 7].all()
    assert not ignored[:, :7].any()


@pytest.mark.parametrize("outlines", [True, False])
@pytest.mark.parametrize("folder", ["images", "images/002.Crow"])
def test_birds_of_cub(tmp_path, outlines, folder):
    names = ["001.Albatross/A_1.png", "002.Crow/C_2.png"]
    for name in names:
        save(tmp_path / "images" / name)
        if outlines:  # of two people one pixel more
            save(tmp_path / "segmentations" / name, inside(DOG_BOX) * 153 + inside((6, 6, 11, 7)) * 102)
    for file, lines in {
        "images.txt": [f"{number} {name}" for number, name in enumerate(names, start=1)],
        "image_class_labels.txt": ["1 1", "2 2"],
        "classes.txt": ["1 001.Albatross", "2 002.Crow"],
        "bounding_boxes.txt": ["1 1.0 1.0 4.0 6.0", "2 1.0 1.0 4.0 6.0"],
    }.items():
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    batch = batch_of(tmp_path / folder, f"cub:{tmp_path}")
    found, _ = masks(batch, *range(2 - len(batch), 2))
    assert np.array_equal(found, [inside(DOG_BOX if outlines else CAT_BOX)] * len(batch))
    assert not masks(batch, *[5] * len(batch))[0].any()


@pytest.mark.parametrize(("parts", "expected"), [((), [CAT_BOX, DOG_BOX]), (("wing",), [DOG_BOX])])
def test_parts_of_funnybirds(tmp_path, parts, expected):
    colours = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    colours[..., 3] = 255
    colours[inside(CAT_BOX), :3] = (255, 255, 254)
    colours[inside(DOG_BOX), :3] = (0, 255, 2)
    colours[0, :, :3] = (9, 9, 9)
    save(tmp_path / "test_part_map" / "7" / "000000.png", colours)
    save(tmp_path / "test" / "7" / "000000.png")
    batch = batch_of(tmp_path / "test", Annotations("funnybirds", tmp_path / "test_part_map", parts=parts))
    assert np.array_equal(masks(batch, 0)[0][0], inside(*expected))
    assert not masks(batch, 7)[0].any()


def test_masks_of_clevr_xai_count_for_any_answer(tmp_path):
    for name in ("000000", "17", "3"):
        save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "truth").mkdir()
    half = np.zeros((4, 4), dtype=bool)
    half[:, :2] = True
    np.save(tmp_path / "truth" / "17.npy", half)
    np.save(tmp_path / "truth" / "0.npy", ~half)
    found, _ = masks(batch_of(tmp_path / "images", f"clevr-xai:{tmp_path / 'truth'}"), 5, 6, 7)
    left = inside((0, 0, WIDTH // 2, HEIGHT))
    assert np.array_equal(found, [~left, left, inside()])


# ---- all


def test_objects_are_resized_and_cropped_like_their_picture(tmp_path):
    images = voc(tmp_path)
    prepare = Preprocessing(4, 4, mean=(0.0,) * 3, std=(1.0,) * 3)  # 12 x 8 become 6 x 4, of which the middle 4 x 4 are kept
    for kind in ("voc", "voc-masks"):
        batch = batch_of(images, f"{kind}:{tmp_path}", prepare)
        whole = batch_of(images, f"{kind}:{tmp_path}")
        found, _ = masks(batch, CAT, DOG)
        picture = Image.fromarray(masks(whole, CAT, DOG)[0][1].astype(np.uint8) * 255)
        assert np.array_equal(found[1], prepare.mask(picture).numpy())
    pictures = image_folder(images, prepare, annotations=f"voc:{tmp_path}")
    (one,) = read_batches(pictures.subset([1]).loader(2))
    assert np.array_equal(masks(one, DOG)[0][0], found[1])


def test_an_object_outside_the_crop_is_not_there(tmp_path):
    images = voc(tmp_path)
    prepare = Preprocessing(2, 8, mean=(0.0,) * 3, std=(1.0,) * 3)  # only the middle 2 x 2 pixels: columns 5 and 6
    batch = batch_of(images, f"voc-masks:{tmp_path}", prepare)
    assert not masks(batch, CAT, CAT)[0].any()
    assert masks(batch, DOG, DOG)[0].any(axis=(1, 2)).tolist() == [True, True]


def missing(root: Path) -> None:
    (root / "Annotations" / "2.xml").unlink()


def foreign(root: Path) -> None:
    path = root / "Annotations" / "2.xml"
    path.write_text(path.read_text().replace("dog", "frog"))


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "annotations", "message"),
    [
        (nothing, "voc", "annotations are KIND:PLACE, such as coco:FILE; got 'voc'; "),
        (nothing, "kitti:{}", "no annotations 'kitti'; "),
        (
            missing,
            "voc:{}",
            "'{}/Annotations' lacks an XML file for 1 of 2 images; the first, '2.png', needs '{}/Annotations/2.xml'",
        ),
        (foreign, "voc:{}", "has the class 'frog', which is not one of Pascal VOC; give Annotations(..., classes="),
        (
            nothing,
            "voc-masks:{}/JPEGImages",
            "no folder '{}/JPEGImages/SegmentationClass'; give the folder that has a PNG file",
        ),
        (nothing, "clevr-xai:{}/nowhere", "no folder '{}/nowhere'; give a folder of CLEVR-XAI's ground truth"),
        (nothing, "cub:{}", "cannot read images from '{}/images.txt': FileNotFoundError"),
        (nothing, "funnybirds:{}/SegmentationClass", "are in class folders"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path, spoil: Callable[[Path], None], annotations, message):
    images = voc(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        batch_of(images, annotations.format(tmp_path))
    assert message.format(tmp_path, tmp_path) in str(caught.value)


def test_classes_without_a_folder_and_parts_of_wholes_are_refused(tmp_path):
    voc(tmp_path)
    save(tmp_path / "photos" / "n01" / "1.png")
    save(tmp_path / "photos" / "n02" / "2.png")
    with pytest.raises(DataError, match=r"none of the classes of '.*' \(aeroplane, bicycle, bird, \.\.\.\) is a class folder"):
        batch_of(tmp_path / "photos", f"voc-masks:{tmp_path}")
    with pytest.raises(DataError, match="annotations 'coco' have no parts; those of funnybirds and pascal-part do"):
        Annotations("coco", "x.json", parts=("head",))
    with pytest.raises(DataError, match="no part 'beek'; did you mean 'beak'"):
        batch_of(tmp_path / "photos", Annotations("funnybirds", tmp_path / "photos", parts=("beek",)))
    assert json.dumps(list(READERS))


def test_a_broken_annotation_makes_its_picture_unreadable(tmp_path):
    images = voc(tmp_path)
    save(tmp_path / "SegmentationClass" / "2.png", np.zeros((4, 4)))
    (tmp_path / "Annotations" / "1.xml").write_text("<annotation><object>")
    batch = batch_of(images, f"voc-masks:{tmp_path}")
    assert [(name, reason) for name, _, reason in batch.failed] == [
        ("2.png", "ValueError: its labels have (4, 4) pixels, the image (12, 8)")
    ]
    batch = batch_of(images, f"voc:{tmp_path}")
    assert [name for name, _, _ in batch.failed] == ["1.png"]
