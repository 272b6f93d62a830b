"""Images of several classes, once for each class: which classes, under which ids, in which groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from xaieval.data.batches import Batch, read_batches
from xaieval.data.each_class import each_class, image_of, with_own_groups
from xaieval.errors import TargetError

IMAGES = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 4, 4)
MAPS = torch.zeros(3, 4, 4, dtype=torch.long)
MAPS[0, 0], MAPS[0, 1], MAPS[1, 2], MAPS[1, 3] = 2, 5, 5, 255


def asked(background: int | None = None, **fields: Any) -> Batch:
    batches = with_own_groups(read_batches([{"image": IMAGES, "id": ["a", "b", "c@9"]} | fields]))
    (batch,) = each_class(batches, background)
    return batch


BOXES = [{"boxes": [[0, 0, 2, 2]] * 2, "labels": [5, 2]}, {"boxes": [[0, 0, 2, 2]] * 2, "labels": [5, 5]}, {"image_id": 1}]


@pytest.mark.parametrize(
    ("fields", "background", "ids"),
    [
        ({"label": [[0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1], [0] * 6]}, None, ["a@2", "a@5", "b@5", "c@9@none"]),
        ({"truth": BOXES}, None, ["a@2", "a@5", "b@5", "c@9@none"]),
        ({"truth": BOXES, "label": [7, 7, 7]}, None, ["a@2", "a@5", "b@5", "c@9@none"]),
        ({"mask": MAPS}, 0, ["a@2", "a@5", "b@5", "c@9@none"]),
        ({"mask": MAPS}, None, ["a@0", "a@2", "a@5", "b@0", "b@5", "c@9@0"]),
        ({"label": [3, -1, 0]}, None, ["a@3", "b@none", "c@9@0"]),
    ],
)
def test_every_class_that_an_image_shows_is_asked_once(fields, background, ids):
    batch = asked(background, **fields)
    assert batch.ids == ids
    known = [name.rpartition("@")[2] for name in ids]
    assert batch.labels.tolist() == [-1 if number == "none" else int(number) for number in known]
    assert batch.group == [image_of(name) for name in ids]
    assert [["a", "b", "c@9"][int(image[0, 0, 0])] for image in batch.images] == batch.group


def test_masks_boxes_groups_and_truth_stay_with_their_images():
    masks = torch.eye(4)[:3, None, :].expand(3, 4, 4) > 0
    boxes = [torch.full((1, 4), float(number)) for number in range(3)]
    batch = asked(truth=BOXES, mask=masks, boxes=boxes, group=["x", "x", "y"])
    places = batch.images[:, 0, 0, 0].long().tolist()
    assert places == [0, 0, 1, 2]
    assert torch.equal(batch.masks, masks[places])
    assert [int(one[0, 0]) for one in batch.boxes] == places
    assert all(one is BOXES[place] for one, place in zip(batch.truth, places, strict=True))
    assert batch.group == ["x", "x", "x", "y"]


def test_images_that_cannot_be_read_have_no_class():
    (batch,) = each_class(read_batches([{"failed": [("a@2", 1, "broken")]}]))
    assert batch.failed == [("a@2@none", 1, "broken")]
    assert not len(batch)


@pytest.mark.parametrize("fields", [{}, {"label": ["cat", "dog", "cow"]}])
def test_data_that_does_not_say_which_classes_are_shown_is_refused(fields):
    with pytest.raises(TargetError, match=r"the data does not say which: give labels \[N, K\] of zeros and ones, or objects"):
        asked(**fields)
