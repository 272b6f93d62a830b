"""Labels in every form that loaders give: classes are read, all others are kept until somebody needs them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.tv_tensors import Mask

from xaieval.data.batches import read_batch
from xaieval.data.labels import OtherLabels, boxes_in_labels, one_class_each, read_labels
from xaieval.errors import TargetError

NAN = math.nan
IMAGES = torch.zeros(3, 3, 8, 8)
BOXES = [torch.tensor([[1.0, 2, 5, 6]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8]])]


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        (torch.tensor([2, 0, 1]), [2, 0, 1]),
        (torch.tensor([2, 0, 1], dtype=torch.uint8), [2, 0, 1]),
        (torch.tensor([[2], [0], [1]]), [2, 0, 1]),
        (torch.tensor([True, False, True]), [1, 0, 1]),
        (torch.tensor([2.0, 0.0, NAN]), [2, 0, -1]),
        (torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float16), [1, 0, 1]),
        (torch.tensor([-1, 255, 0]), [-1, 255, 0]),
        (torch.tensor([NAN, NAN, NAN]), [-1, -1, -1]),
        (np.array([2, 0, 1], dtype=np.uint16), [2, 0, 1]),
        (np.array([2, 0, 1], dtype=object), [2, 0, 1]),
        (np.array([2, None, 1], dtype=object), [2, -1, 1]),
        (np.array([2.0, 0.0, 1.0]), [2, 0, 1]),
        ([2, 0, 1], [2, 0, 1]),
        ((2, None, 1), [2, -1, 1]),
        ([np.int64(2), torch.tensor(0), 1.0], [2, 0, 1]),
        ([torch.tensor([2]), torch.tensor([0]), torch.tensor([1])], [2, 0, 1]),
        ([2**40 + 1, None, 0], [2**40 + 1, -1, 0]),
    ],
    ids=str,
)
def test_one_class_per_image(given, classes):
    labels = read_labels(given, 3)
    assert labels.dtype == torch.long
    assert labels.tolist() == classes
    assert one_class_each(labels, "a test", "no") is labels


@pytest.mark.parametrize("given", [torch.eye(3), torch.eye(3).bool(), np.eye(3), [[1, 0], [1, 1], [0, 0]]], ids=str)
def test_zeros_and_ones_of_each_class(given):
    labels = read_labels(given, 3)
    assert labels.dtype == torch.long
    assert labels.tolist() == [[int(one) for one in row] for row in given]


@pytest.mark.parametrize(
    ("given", "came"),
    [
        (torch.tensor([23.5, 40.1, 2.0]), "float32 [3]"),
        (torch.tensor([math.inf, 1, 2]), "float32 [3]"),
        (torch.tensor([[1, 0, NAN], [NAN, 1, 0], [0, 0, 1]]), "float32 [3, 3]"),
        (torch.eye(3) * 0.9, "float32 [3, 3]"),
        (torch.zeros(3, 8, 8, dtype=torch.long), "int64 [3, 8, 8]"),
        (torch.arange(2), "int64 [2]"),
        (np.array(["a", "b", "c"]), "<U1 [3]"),
        (["cat", "dog", "cow"], "a list of str"),
        ([[1, 2], [3], []], "a list of list"),
        ([{"boxes": torch.rand(1, 4)}] * 3, "a list of dict"),
        (({"bbox": [1, 2, 3, 4]},) * 3, "a tuple of dict"),
        ({"species": torch.arange(3), "sex": torch.arange(3)}, "a mapping with 'species', 'sex'"),
        ("abc", "a str of str"),
        (7, "a int"),
    ],
)
def test_other_labels_are_kept_until_they_are_needed(given, came):
    labels = read_batch((IMAGES, given), 0).labels
    assert isinstance(labels, OtherLabels)
    assert labels.given is given
    with pytest.raises(TargetError) as caught:
        one_class_each(labels, "target 'label'", "give a class index")
    assert str(caught.value) == (
        f"target 'label' needs one class per image: integers [3], such as [3, 0]; the labels are {came}, and zeros and ones "
        "for each class, [3, K], would name several; give a class index"
    )


def test_parts_of_a_batch_keep_the_labels_of_their_images():
    batch = read_batch((IMAGES, ["cat", "dog", "cow"]), 0)
    assert batch.part(1, 3, []).labels.given == ["dog", "cow"]
    assert batch.part(1, 3, []).labels.count == 2
    table = {"species": [1, 2, 3]}
    assert read_batch((IMAGES, table), 0).part(1, 3, []).labels.given is table
    again = read_batch(batch.to_mapping(), 0)
    assert again.labels is batch.labels


TARGETS = [{"boxes": boxes, "labels": torch.ones(len(boxes), dtype=torch.long)} for boxes in BOXES]


def test_the_boxes_of_torchvisions_targets_are_those_of_the_objects():
    batch = read_batch((tuple(IMAGES), tuple(TARGETS)), 0)
    assert [boxes.tolist() for boxes in batch.boxes] == [boxes.tolist() for boxes in BOXES]
    joined = {"boxes": torch.stack([BOXES[0]] * 3), "labels": torch.ones(3, 1)}  # as the default of a DataLoader joins them
    assert [boxes.tolist() for boxes in read_batch((IMAGES, joined), 0).boxes] == [BOXES[0].tolist()] * 3


@pytest.mark.parametrize(
    "targets",
    [
        [{"boxes": boxes, "class_labels": 1} for boxes in BOXES],  # transformers: centres and sizes, in shares
        [{"boxes": torch.tensor([[5.0, 5, 2, 2]]), "labels": torch.ones(1)}] * 3,  # corners in the wrong order
        TARGETS[:2],
        [*TARGETS[:2], None],
    ],
)
def test_boxes_that_may_be_others_are_not_used(targets):
    assert read_batch((IMAGES, targets), 0).boxes is None


def test_boxes_that_are_named_come_before_those_of_labels():
    assert read_batch({"image": IMAGES, "label": TARGETS, "boxes": BOXES[::-1]}, 0).boxes[0].tolist() == BOXES[2].tolist()
    assert boxes_in_labels(None, 3) is None


@pytest.mark.parametrize("kind", [torch.long, torch.uint8, torch.float32])
@pytest.mark.parametrize("axes", [(), (1,)])
def test_label_maps_are_no_masks_of_objects(kind, axes):
    maps = (torch.arange(3 * 64).view(3, *axes, 8, 8) % 5).to(kind)
    batch = read_batch({"image": IMAGES, "mask": maps}, 0)
    assert batch.objects is None
    assert batch.labels.given is maps
    with_labels = read_batch({"image": IMAGES, "mask": maps, "label": [1, 2, 3]}, 0)
    assert with_labels.labels.tolist() == [1, 2, 3]
    as_mask = read_batch({"image": IMAGES, "mask": Mask(maps)}, 0)
    assert as_mask.objects is None
