"""Objects of COCO files: polygons and run lengths against worked cases and what pycocotools 2.0.11 gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xaieval.data import Annotations, Preprocessing, image_folder
from xaieval.data.annotations.coco import pixels_of
from xaieval.data.batches import Batch, read_batches
from xaieval.data.truth_by_class import masks_of
from xaieval.errors import DataError

WIDTH, HEIGHT = 12, 8
PREPARE = Preprocessing((HEIGHT, WIDTH), (HEIGHT, WIDTH), mean=(0.0,) * 3, std=(1.0,) * 3)
CAT, DOG, ZEBRA = 17, 18, 24
LEFT, TOP = [[0, 0, 4, 0, 4, 8, 0, 8]], [[6, 0, 12, 0, 12, 2, 6, 2]]
CROWD = {"size": [HEIGHT, WIDTH], "counts": [4 * HEIGHT, HEIGHT, 7 * HEIGHT]}  # the fifth column


def area(left: int, top: int, right: int, bottom: int) -> Any:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


# ---- pixels of a segmentation


def test_compressed_runs_are_those_of_pycocotools():
    expected = np.zeros((61, 97), dtype=bool)
    expected[3:9, 5:50] = True
    text = "d96g1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000`i2"
    for counts in (text, text.encode()):
        assert np.array_equal(pixels_of({"size": [61, 97], "counts": counts}, (97, 61)), expected)
    assert pixels_of({"size": [2, 4], "counts": "21102"}, (4, 2)).astype(int).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_plain_runs_give_the_mask_back(data):
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height))).reshape(height, width)
    runs, last = [0], False
    for value in mask.T.reshape(-1):
        runs += [0] * int(value != last)
        runs[-1] += 1
        last = value
    assert np.array_equal(pixels_of({"size": [height, width], "counts": runs}, (width, height)), mask)


@settings(deadline=None, max_examples=50)
@given(
    corners=st.lists(st.tuples(st.integers(0, 4 * WIDTH), st.integers(0, 4 * HEIGHT)), min_size=3, max_size=3, unique=True),
)
def test_a_triangle_has_the_pixels_whose_middle_is_inside(corners):
    points = np.array(corners) / 4
    found = pixels_of([points.reshape(-1).tolist()], (WIDTH, HEIGHT))
    for row in range(HEIGHT):
        for column in range(WIDTH):
            middle = np.array([column + 0.5, row + 0.5])
            ways = [np.cross([*(b - a), 0], [*(middle - a), 0])[2] for a, b in zip(points, np.roll(points, 1, 0), strict=True)]
            lengths = [np.linalg.norm(b - a) for a, b in zip(points, np.roll(points, 1, 0), strict=True)]
            if min(abs(way) / max(length, 1e-9) for way, length in zip(ways, lengths, strict=True)) < 0.3:
                continue  # close to a side
            assert found[row, column] == (all(way > 0 for way in ways) or all(way < 0 for way in ways))


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [HEIGHT, WIDTH], "counts": [3, 4]},
        {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]},
        {"size": [HEIGHT, WIDTH], "counts": [-1, WIDTH * HEIGHT + 1]},
    ],
)
def test_runs_of_another_size_are_refused(segmentation):
    with pytest.raises(ValueError, match="a segmentation has"):
        pixels_of(segmentation, (WIDTH, HEIGHT))


# ---- files


def coco(root: Path, folders: bool, **changes: Any) -> tuple[Path, Path]:
    names = ["cat/1.png", "dog/2.png"] if folders else ["1.png", "2.png"]
    for name in names:
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "photos" / name)
    content = {
        "images": [{"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(names)],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}, {"id": ZEBRA, "name": "zebra"}],
        "annotations": [
            {"image_id": 0, "category_id": CAT, "bbox": [0, 0, 4, 8], "segmentation": LEFT},
            {"image_id": 0, "category_id": DOG, "bbox": [6, 0, 6, 2], "segmentation": TOP},
            {"image_id": 0, "category_id": CAT, "bbox": [4, 0, 1, 8], "segmentation": CROWD, "iscrowd": 1},
            {"image_id": 0, "category_id": ZEBRA, "bbox": [0, 0, 12, 8], "segmentation": []},
            {"image_id": 1, "category_id": DOG, "bbox": [2, 2, 4, 4]},
        ],
    }
    (root / "objects.json").write_text(json.dumps(content | changes))
    return root / "photos", root / "objects.json"


def found(folder: Path, annotations: Any, *classes: int) -> tuple[Any, Any, Batch]:
    (batch,) = read_batches(image_folder(folder, PREPARE, annotations=annotations).loader(4))
    masks, ignored = masks_of(batch.truth, torch.tensor(classes), (HEIGHT, WIDTH))
    return masks.numpy(), None if ignored is None else ignored.numpy(), batch


@pytest.mark.parametrize(
    ("folders", "given", "numbers"),
    [(False, None, (CAT, DOG)), (True, None, (0, 1)), (True, {"cat": 281, "dog": 207}, (281, 207))],
)
def test_a_class_has_its_own_objects_and_its_crowds_are_ignored(tmp_path, folders, given, numbers):
    photos, file = coco(tmp_path, folders)
    annotations = Annotations("coco", file, classes=given)
    masks, ignored, batch = found(photos, annotations, numbers[0], numbers[1])
    assert np.array_equal(masks, [area(0, 0, 4, 8), area(2, 2, 6, 6)]), "and a box where there is no segmentation"
    assert np.array_equal(ignored, [area(4, 0, 5, 8), area(0, 0, 0, 0)])
    masks, ignored, _ = found(photos, annotations, numbers[1], numbers[0])
    assert np.array_equal(masks, [area(6, 0, 12, 2), area(0, 0, 0, 0)])
    assert ignored is None
    present = batch.truth[0].present()
    assert present == (sorted(numbers) if folders else [CAT, DOG, ZEBRA]), "a zebra without a number is left out"


def test_objects_are_scaled_to_a_picture_of_the_same_proportions(tmp_path):
    doubled = [
        {"id": 0, "file_name": "1.png", "width": 24, "height": 16},
        {"id": 1, "file_name": "2.png", "width": 24, "height": 16},
    ]
    annotations = [
        {"image_id": 0, "category_id": CAT, "bbox": [0, 0, 8, 16], "segmentation": [[2 * value for value in LEFT[0]]]},
        {"image_id": 1, "category_id": CAT, "bbox": [4, 4, 8, 8]},
    ]
    photos, file = coco(tmp_path, False, images=doubled, annotations=annotations)
    masks, _, batch = found(photos, f"coco:{file}", CAT, CAT)
    assert np.array_equal(masks, [area(0, 0, 4, 8), area(2, 2, 6, 6)])
    assert batch.truth[0].boxes.tolist() == [[0, 0, 4, 8]]
    photos, file = coco(tmp_path, False, images=[one | {"width": 16} for one in doubled], annotations=annotations)
    with pytest.raises(DataError, match=r"says that '1\.png' has 16 x 16 pixels, but the image has 12 x 8"):
        found(photos, f"coco:{file}", CAT, CAT)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"categories": None}, "TypeError"),
        ({"annotations": [{"image_id": 7}]}, "KeyError: '7'"),
        ({"images": []}, "has boxes of other images|KeyError"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, changes, reason):
    photos, file = coco(tmp_path, False, **changes)
    with pytest.raises(DataError, match=reason):
        found(photos, f"coco:{file}", CAT, CAT)
