"""What the check of the first batch finds in the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import xaieval
from xaieval.data import Preprocessing, image_folder
from xaieval.data.batches import read_batch
from xaieval.evaluation.model_check import find_in_data


def found_in(boxes: list[list[list[float]]]) -> list[str]:
    given = [torch.tensor(one).view(-1, 4) for one in boxes]
    batch = read_batch({"image": torch.rand(len(boxes), 3, 64, 48), "boxes": given}, 0)
    return [finding.name for finding in find_in_data(batch, [])]


@pytest.mark.parametrize(
    "boxes",
    [
        [[[0, 0, 48, 64]], [[4, 4, 48.9, 65]]],  # rounded
        [[[-10, 0, 80, 64]], [[4, 4, 100, 65]]],  # cropped
        [[[4, 4, 90, 20]], [[4, 4, 40, 20]]],  # one wrong box
        [[], []],
    ],
)
def test_boxes_of_these_images(boxes):
    assert found_in(boxes) == []


def test_boxes_of_the_images_before_they_were_resized():
    assert found_in([[[30, 30, 600, 400]], [], [[5, 5, 20, 20], [300, 200, 640, 480]]]) == ["boxes_beyond_image"]


@pytest.mark.parametrize(
    ("classes", "metrics", "found"),
    [
        ((17, 18), "iou", ["truth_of_other_classes"]),
        ((1, 18), "iou", []),  # the model knows one of them
        ((17, 18), "average_drop", []),
        ((17, -1), "iou", []),  # an object of any class
    ],
)
def test_objects_of_classes_that_nobody_follows(classes, metrics, found):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    truth = [{"boxes": [[2, 2, 9, 9]], "labels": [number]} for number in classes]
    batch = {"image": torch.rand(2, 3, 16, 16), "truth": truth}
    scores = xaieval.score(model, [batch], "1", metrics=metrics, target=1, progress=False)
    assert [one["name"] for one in scores.manifest["findings"] if one["name"] == "truth_of_other_classes"] == found


def test_pictures_that_a_folder_leaves_out_are_said_and_other_files_are_not(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("1.png", "2.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "a" / name)
    (tmp_path / "a" / "notes.txt").write_text("")
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    assert xaieval.check(model, image_folder(tmp_path, Preprocessing(16, 16)).loader(2)).findings() == []
    (tmp_path / "a" / "3.heic").write_text("")
    [found] = xaieval.check(model, image_folder(tmp_path, Preprocessing(16, 16)).loader(2)).findings()
    assert (found.name, dict(found.evidence)) == ("images_left_out", {".heic": 1})


TILES = torch.rand(4, 13, 16, 16, generator=torch.Generator().manual_seed(0)) * 6 - 3  # normalised


def without_data(images: torch.Tensor) -> list[dict[str, float]]:
    return [dict(one.evidence) for one in find_in_data(read_batch(images, 0), []) if one.name == "pixels_without_data"]


def test_pixels_without_data_are_found_in_any_unit():
    tiles = TILES.clone()
    tiles[1, :, :, :4] = tiles[3, :, 0, :2] = -15.2
    assert without_data(tiles) == [{"images": 4, "with_such_pixels": 2, "value": pytest.approx(-15.2)}]
    raw = (TILES + 3) * 1500
    raw[0, :, 5:9] = -9999
    assert without_data(raw) == [{"images": 4, "with_such_pixels": 1, "value": -9999}]


@pytest.mark.parametrize(
    ("value", "channels"),
    [(-3.1, slice(None)), (-15.2, slice(0, 12)), (0.0, slice(None))],  # a black border, one band with data, the mean
)
def test_pixels_that_may_have_data(value, channels):
    tiles = TILES.clone()
    tiles[:, channels, :, :4] = value
    assert without_data(tiles) == []
    assert without_data(torch.full((2, 3, 8, 8), -9.0)) == []  # nothing to compare with
