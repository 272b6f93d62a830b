"""Where the objects of each class are: every form in which people's loaders say it, and the mask of one class or object."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.tv_tensors import BoundingBoxes, Mask

from tests.mutants import mutation_tests
from xaieval.data.batches import read_batch, split_batch
from xaieval.data.truth_by_class import Truth, masks_of, truth_of
from xaieval.errors import DataError
from xaieval.results import tensors

SIZE = (6, 8)
IMAGES = torch.zeros(2, 3, *SIZE)
CAT, DOG = 3, 5
CAT_BOX, DOG_BOX, OTHER_CAT = [0.0, 0, 4, 3], [4.0, 3, 8, 6], [5.0, 0, 8, 2]


def inside(*boxes: list[float]) -> Tensor:
    """The pixels of boxes whose corners are whole numbers."""
    mask = torch.zeros(*SIZE, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    return mask


BOXES = [torch.tensor([CAT_BOX, DOG_BOX, OTHER_CAT]), torch.tensor([DOG_BOX])]
CLASSES = [torch.tensor([CAT, DOG, CAT]), torch.tensor([DOG])]
MASKS = [torch.stack([inside(box) for box in boxes.tolist()]) for boxes in BOXES]
MAPS = torch.stack([inside(CAT_BOX, OTHER_CAT) * CAT + inside(DOG_BOX) * DOG, inside(DOG_BOX) * DOG])
NAMED = [{"boxes": boxes, "labels": classes} for boxes, classes in zip(BOXES, CLASSES, strict=True)]
FULL = [one | {"masks": masks.byte()} for one, masks in zip(NAMED, MASKS, strict=True)]


@pytest.mark.parametrize(
    "item",
    [
        {"image": IMAGES, "truth": [Truth(CLASSES[0], MASKS[0]), Truth(CLASSES[1], boxes=BOXES[1])]},
        {"image": IMAGES, "truth": NAMED},
        {"image": IMAGES, "truth": MAPS},
        {"image": IMAGES, "target": FULL, "label": [1, 0]},
        {"image": IMAGES, "targets": [Mask(one) for one in MAPS]},
        (IMAGES, tuple(FULL)),
        (IMAGES, [{"masks": Mask(one), "labels": classes} for one, classes in zip(MASKS, CLASSES, strict=True)]),
        (
            IMAGES,
            [
                {"boxes": BoundingBoxes(b, format="XYXY", canvas_size=SIZE), "labels": c}
                for b, c in zip(BOXES, CLASSES, strict=True)
            ],
        ),
        (IMAGES, MAPS),
        (IMAGES, MAPS[:, None]),
        (list(IMAGES), [Mask(one.byte()) for one in MAPS]),
        (IMAGES, MAPS.numpy().astype(np.uint8)),
        {"image": IMAGES, "mask": MAPS},
        {"image": IMAGES, "mask": MAPS.float()},
        {"image": IMAGES, "bbox_xyxy": BOXES, "label": CLASSES},  # torchgeo's detection
        {"image": IMAGES, "mask": [one.byte() for one in MASKS], "bbox_xyxy": BOXES, "label": CLASSES},  # and its instances
        {"pixel_values": IMAGES, "mask_labels": [one.float() for one in MASKS], "class_labels": CLASSES},  # transformers
    ],
    ids=lambda item: f"{list(item)}" if isinstance(item, dict) else type(item[1]).__name__,
)
def test_the_mask_is_that_of_the_class_in_every_form(item):
    batch = read_batch(item, 0)
    for wanted, expected in (
        ((CAT, DOG), [inside(CAT_BOX, OTHER_CAT), inside(DOG_BOX)]),
        ((DOG, CAT), [inside(DOG_BOX), inside()]),
    ):
        masks, ignored = masks_of(batch.truth, torch.tensor(wanted), SIZE)
        assert torch.equal(masks, torch.stack(expected))
        assert ignored is None
    assert [truth_of(one, SIZE).present() for one in batch.truth] in ([[CAT, DOG], [DOG]], [[0, CAT, DOG], [0, DOG]])
    again = read_batch(batch.to_mapping(), 0)
    assert torch.equal(masks_of(again.truth, torch.tensor([CAT, DOG]), SIZE)[0][1], inside(DOG_BOX))


@pytest.mark.parametrize(
    "item",
    [
        IMAGES,
        (IMAGES, [1, 0]),
        (IMAGES, torch.tensor([[0, 1], [1, 1]])),
        (IMAGES, ["cat", "dog"]),
        (IMAGES, [{"boxes": BOXES[0], "class_labels": CLASSES[0]}] * 2),  # transformers: shares of the image, by their centres
        {"image": IMAGES, "mask": torch.stack([one.any(dim=0) for one in MASKS]), "label": [1, 0]},
        {"image": IMAGES, "masks": MASKS, "label": [1, 0]},
        {"image": IMAGES, "boxes": BOXES, "label": [1, 0]},
        {"image": IMAGES, "boxes": BOXES, "label": FULL},  # somebody has named these boxes
        {"image": IMAGES, "mask": MAPS + 0.5},
        {"image": IMAGES, "target": [1, 0]},
    ],
    ids=lambda item: f"{list(item)}" if isinstance(item, dict) else type(item).__name__,
)
def test_what_names_no_classes_of_objects_is_no_truth_by_class(item):
    assert read_batch(item, 0).truth is None


def test_targets_that_a_data_loader_has_joined_are_taken_apart():
    joined = {
        "boxes": torch.stack([BOXES[0]] * 2),
        "labels": torch.stack(CLASSES[:1] * 2),
        "image_id": torch.arange(2),
        "all": torch.tensor(1),
    }
    batch = read_batch((IMAGES, joined), 0)
    assert torch.equal(masks_of(batch.truth, torch.tensor([CAT, DOG]), SIZE)[0][1], inside(DOG_BOX))


def test_an_image_without_objects_has_an_empty_target():
    batch = read_batch((IMAGES, [FULL[0], {"image_id": 7}]), 0)
    masks, _ = masks_of(batch.truth, torch.tensor([DOG, DOG]), SIZE)
    assert masks.flatten(1).any(dim=1).tolist() == [True, False]


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 3), left=st.integers(1, 2))
def test_parts_of_a_batch_keep_the_truth_of_their_images(size, left):
    batch = read_batch((IMAGES, FULL), 0)
    truth = [one for part in split_batch(batch, size, left) for one in part.truth]
    assert all(a is b for a, b in zip(truth, FULL[:left], strict=True))


def test_another_truth_is_another_batch_for_a_run_that_resumes():
    one, other, same = (
        read_batch({"image": IMAGES, "truth": truth}, 0)
        for truth in (FULL, [FULL[0], FULL[1] | {"labels": torch.tensor([CAT])}], [dict(one) for one in FULL])
    )
    assert tensors.check_of(one) == tensors.check_of(same) != tensors.check_of(other)
    dense = [read_batch({"image": IMAGES, "truth": [Truth(CLASSES[0], MASKS[0])] * 2}, 0) for _ in range(2)]
    assert tensors.check_of(dense[0]) == tensors.check_of(dense[1]) != tensors.check_of(read_batch({"image": IMAGES}, 0))


# ---- what is counted, and which object


def check_crowds_are_neither_object_nor_background(made):
    crowd = made.Truth(CLASSES[0], boxes=BOXES[0], crowd=torch.tensor([False, True, True]))
    mask, ignored = crowd.of_class(CAT, SIZE)
    assert torch.equal(mask, inside(CAT_BOX))
    assert torch.equal(ignored, inside(OTHER_CAT)), "a crowd of dogs is background for a cat"
    mask, ignored = crowd.of_class(DOG, SIZE)
    assert not mask.any()
    assert torch.equal(ignored, inside(DOG_BOX))
    assert crowd.present() == [CAT]
    within = made.Truth(torch.tensor([CAT, CAT]), boxes=BOXES[0][[0, 0]], crowd=torch.tensor([False, True]))
    assert not within.of_class(CAT, SIZE)[1].any(), "an object within a crowd is an object"


def check_pixels_without_a_class_are_ignored(made):
    values = torch.tensor([[0, 3, 255, -1], [3, 5, 255, 0]])
    mask, ignored = made.Truth(CLASSES[0], label_map=values).of_class(3, (2, 4))
    assert mask.int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert ignored.int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    many = made.Truth(CLASSES[0], label_map=values.where(values != 5, 919))
    assert many.present() == [0, 3, 255, 919], "of more classes than 255, that number is one"
    assert many.of_class(3, (2, 4))[1].int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    whole = made.Truth(CLASSES[0], label_map=values)
    for wanted in (0, 3, 5):
        for one, other in zip(whole.of_class(wanted, (2, 4)), whole.by_object().of_class(wanted, (2, 4)), strict=True):
            assert torch.equal(one, other)


def check_an_object_of_any_class_counts_whatever_is_followed(made):
    truth = made.Truth(torch.tensor([made.ANY_CLASS]), boxes=torch.tensor([CAT_BOX]))
    assert torch.equal(truth.of_class(7, SIZE)[0], inside(CAT_BOX))
    assert truth.present() == []


def check_all_objects_are_one_where_there_are_no_classes(made):
    assert torch.equal(made.Truth(CLASSES[0], MASKS[0]).of_class(None, SIZE)[0], inside(CAT_BOX, DOG_BOX, OTHER_CAT))
    mask, ignored = made.Truth(CLASSES[0], label_map=torch.tensor([[0, 3, 255, 5]])).of_class(None, (1, 4))
    assert mask.int().tolist() == [[0, 1, 0, 1]]
    assert ignored.int().tolist() == [[0, 0, 1, 0]]


def check_the_object_is_that_of_the_detection(made):
    boxed = made.Truth(CLASSES[0], boxes=BOXES[0])
    masked = made.Truth(CLASSES[0], MASKS[0])
    for truth in (boxed, masked):
        near = torch.tensor([5.0, 0, 8, 3])  # 6 of its 9 pixels are the second cat's: 0.67
        assert torch.equal(truth.of_class(CAT, SIZE, near)[0], inside(OTHER_CAT))
        assert not truth.of_class(DOG, SIZE, near)[0].any(), "there is no dog"
        half = torch.tensor([5.0, 0, 8, 4])  # 6 of 12: just enough
        assert torch.equal(truth.of_class(CAT, SIZE, half)[0], inside(OTHER_CAT))
        far = torch.tensor([5.0, 0, 8, 5])  # 6 of 15
        assert not truth.of_class(CAT, SIZE, far)[0].any()


MUTANTS = {
    "crowds count": ("chosen = self._of(wanted) & ~self._crowd", "chosen = self._of(wanted)"),
    "crowds of all classes": ("self._union(self._of(wanted) & self._crowd, size)", "self._union(self._crowd, size)"),
    "an object within a crowd is lost": ("& ~inside\n", "\n"),
    "255 is a class": ("void | (label_map == IGNORED)", "void"),
    "255 is none among many classes": ("return void if (label_map > IGNORED).any() else ", "return "),
    "any object": ("masked_fill(~chosen, 0)", "masked_fill(~chosen, 1)"),
    "a loose match": ("(overlap >= SAME_OBJECT)", "(overlap >= 0.3)"),
    "a strict match": ("(overlap >= SAME_OBJECT)", "(overlap > SAME_OBJECT)"),
    "a pixel too small": ("torch.arange(1, seen.shape[1] + 1", "torch.arange(0, seen.shape[1]"),
    "only objects of any class": ("(self.classes == wanted) | (self.classes == ANY_CLASS)", "self.classes == ANY_CLASS"),
    "no objects of any class": ("(self.classes == wanted) | (self.classes == ANY_CLASS)", "self.classes == wanted"),
}

test_checks_pass, test_mutants_are_noticed = mutation_tests(
    globals(), ["xaieval.data.truth", "xaieval.data.truth_by_class", "xaieval.data.truth_in_batches"], MUTANTS
)


# ---- errors


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ([{"labels": [1]}], "a batch has 2 images but the truth of 1; one entry for each image is expected: the truth of an "),
        ({"labels": [1], "boxes": [CAT_BOX]}, "a batch has 2 images but the truth of dict; one entry for each image is "),
        ([{"labels": [1, 2], "boxes": [CAT_BOX]}] * 2, "got 2 labels and boxes of 1 objects"),
        ([{"labels": [1], "masks": MASKS[0]}] * 2, "got 1 labels and masks of 3 objects"),
        ([{"boxes": [CAT_BOX]}] * 2, "or a label map [H, W]; got a mapping with boxes"),
        ([MAPS[0].float() + 0.5] * 2, "or a label map [H, W]; got float32 [6, 8]"),
        (["cat", "dog"], "or a label map [H, W]; got a str that is not an array"),
        (
            [MAPS[0].T] * 2,
            "the truth has a label map of [8, 6] pixels for an image of [6, 8]; resize and crop both alike, as torchvision's "
            "transforms do with tv_tensors",
        ),
        ([{"labels": [1], "masks": torch.ones(1, 4, 4)}] * 2, "the truth has masks of [4, 4] pixels for an image of [6, 8]"),
    ],
)
def test_a_truth_that_cannot_be_read_is_refused_with_what_came(truth, message):
    with pytest.raises(DataError) as caught:
        masks_of(read_batch({"image": IMAGES, "truth": truth}, 0).truth, torch.tensor([1, 1]), SIZE)
    assert message in str(caught.value)
