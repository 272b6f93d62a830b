"""Masks and boxes stay with their images: in loaders, and when batches are split, shuffled, sharded, resized and cropped."""

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
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.tv_tensors import BoundingBoxes, Mask

from xaieval.data import Preprocessing, image_folder, scenes
from xaieval.data.batches import Batch, read_batch, read_batches, split_batch
from xaieval.data.decoding import picture_size
from xaieval.data.scenes import make_scene
from xaieval.data.truth import boxes_around, looks_like_shares, read_boxes, silhouette
from xaieval.errors import DataError
from xaieval.evaluation.batch_sources import SharedLoader, source_of
from xaieval.evaluation.image_order import Shuffled
from xaieval.training.fit import augmentation

PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
PROPERTY = settings(deadline=None, max_examples=40)

IMAGES = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 6, 8)
MASKS = torch.stack([torch.zeros(6, 8, dtype=torch.bool).index_fill(0, torch.tensor([number]), True) for number in range(4)])
BOXES = [torch.tensor([[0.0, number, 8.0, number + 1.0]] * number).view(-1, 4) for number in range(4)]


def _consistent(batch: Batch) -> bool:
    """Whether masks and boxes belong to the images' numbers."""
    numbers = batch.images[:, 0, 0, 0].long().tolist()
    return torch.equal(batch.masks, MASKS[numbers]) and all(
        torch.equal(boxes, BOXES[number]) for boxes, number in zip(batch.boxes, numbers, strict=True)
    )


# ---- batches


@pytest.mark.parametrize(
    "truth",
    [
        {"mask": MASKS, "boxes": BOXES},
        {"masks": MASKS[:, None], "boxes": [boxes.tolist() for boxes in BOXES]},
        {"masks": MASKS.numpy(), "boxes": [boxes.double().numpy() for boxes in BOXES]},
        {"masks": list(MASKS.numpy()), "boxes": BOXES},
    ],
)
def test_masks_and_boxes_of_a_mapping_are_kept(truth):
    (batch,) = read_batches([{"image": IMAGES} | truth])
    assert batch.masks.dtype == torch.bool
    assert batch.masks.shape == (4, 6, 8)
    assert [boxes.shape for boxes in batch.boxes] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert all(boxes.dtype == torch.float32 for boxes in batch.boxes)
    assert _consistent(batch)


def test_one_box_an_image_is_a_row():
    (batch,) = read_batches(
        [{"image": IMAGES, "boxes": torch.tensor([[0, 1, 2, 3], [1, 1, 1, 1], [0, 0, 8, 6], [2, 2, 4, 4]])}]
    )
    assert [boxes.tolist() for boxes in batch.boxes] == [[[0, 1, 2, 3]], [[1, 1, 1, 1]], [[0, 0, 8, 6]], [[2, 2, 4, 4]]]


@pytest.mark.parametrize("item", [IMAGES, (IMAGES, torch.arange(4)), {"image": IMAGES}, {"image": IMAGES, "masks": None}])
def test_batches_without_ground_truth_have_none(item):
    (batch,) = read_batches([item])
    assert batch.masks is None
    assert batch.boxes is None


@PROPERTY
@given(size=st.none() | st.integers(1, 5), left=st.none() | st.integers(0, 6), failures=st.integers(0, 2))
def test_splitting_keeps_ground_truth_beside_its_image(size, left, failures):
    batch = read_batch(
        {"image": IMAGES, "mask": MASKS, "boxes": BOXES, "failed": [(f"f{i}", None, "x") for i in range(failures)]}, 0
    )
    parts = list(split_batch(batch, size, left))
    assert all(_consistent(part) for part in parts)
    assert sum(len(part) for part in parts) == (4 if left is None else max(0, min(4, left - failures)))


def test_a_batch_of_unreadable_images_has_room_for_ground_truth():
    batch = read_batch({"mask": [], "boxes": [], "failed": [("a", 0, "broken")]}, 0)
    assert batch.masks.shape == (0, 1, 1)
    assert batch.boxes == []


def test_shuffling_and_sharing_keep_ground_truth_beside_its_image():
    samples = [{"image": IMAGES[i], "mask": MASKS[i], "boxes": BOXES[i]} for i in range(4)]

    def join(some: list[dict[str, Any]]) -> dict[str, Any]:
        stacked = {key: torch.stack([sample[key] for sample in some]) for key in ("image", "mask")}
        return stacked | {"boxes": [sample["boxes"] for sample in some]}

    loader = DataLoader(samples, batch_size=2, collate_fn=join)
    sources = (source_of(SharedLoader(loader), iter, 1, None, planned=True, shuffled=shuffled) for shuffled in (False, True))
    for batches in (list(read_batches(Shuffled(loader, seed=1))), *([one for _, one, _ in s.sweep(bool)] for s in sources)):
        assert batches
        assert all(_consistent(batch) for batch in batches)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"mask": MASKS[:3]}, "masks are bool of the images' size, [4, 6, 8] here; got bool [3, 6, 8]"),
        ({"mask": MASKS.transpose(1, 2)}, "masks are bool of the images' size, [4, 6, 8] here; got bool [4, 8, 6]"),
        ({"boxes": BOXES[:3]}, "a batch has 4 images but boxes of 3; boxes [k, 4] for each image are expected"),
        ({"boxes": torch.zeros(4, 2, 5)}, "boxes of an image are [k, 4], (x1, y1, x2, y2) in its pixels; got [2, 5]"),
        (
            {"boxes": torch.tensor([[5.0, 5, 2, 2]] * 4)},
            "boxes are (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, which these are not; convert other forms with "
            "torchvision.ops.box_convert(boxes, 'xywh', 'xyxy')",
        ),
    ],
)
def test_ground_truth_that_does_not_fit_is_refused_word_for_word(truth, message):
    with pytest.raises(DataError) as caught:
        list(read_batches([{"image": IMAGES} | truth]))
    assert str(caught.value) == message


# ---- boxes and masks of torchvision


@pytest.mark.parametrize(
    ("numbers", "form"),
    [
        ([20, 30, 60, 64], "XYXY"),
        ([20, 30, 40, 34], "XYWH"),
        ([40, 47, 40, 34], "CXCYWH"),
        ([40, 47, 40, 34, 0], "CXCYWHR"),
        ([60, 64, 40, 34, 180], "XYWHR"),
        ([40, 47, 34, 40, 90], "CXCYWHR"),
        ([20, 30, 60, 30, 60, 64, 20, 64], "XYXYXYXY"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_boxes_of_torchvision_are_converted_by_their_format(numbers, form, dtype):
    dtype = dtype if form in ("XYXY", "XYWH", "CXCYWH") else torch.float64  # torchvision's rotated boxes are floats
    boxes = BoundingBoxes(torch.tensor([numbers], dtype=dtype), format=form, canvas_size=(64, 64))
    images = torch.zeros(2, 3, 64, 64)
    for both in ([boxes, boxes], BoundingBoxes(torch.cat([boxes, boxes]), format=form, canvas_size=(64, 64))):
        found = read_batch({"image": images, "boxes": both}, 0).boxes
        for one in found:
            torch.testing.assert_close(one, torch.tensor([[20.0, 30.0, 60.0, 64.0]]), rtol=0, atol=1e-4)


def test_a_rotated_box_becomes_the_upright_one_around_it():
    # A square of side 20 around (32, 32), turned by 45 degrees, is a diamond with half a diagonal of 14.14.
    boxes = BoundingBoxes([[32.0, 32.0, 20.0, 20.0, 45.0]], format="CXCYWHR", canvas_size=(64, 64))
    (found,) = read_boxes([boxes], 1, (64, 64))
    half = 10 * 2**0.5
    torch.testing.assert_close(found, torch.tensor([[32 - half, 32 - half, 32 + half, 32 + half]]), rtol=0, atol=1e-4)


def test_boxes_follow_an_image_that_was_resized_without_them():
    boxes = BoundingBoxes([[10, 20, 40, 60]], format="XYXY", canvas_size=(128, 256))
    (found,) = read_boxes([boxes], 1, (64, 128))
    assert found.tolist() == [[5, 10, 20, 30]]
    with pytest.raises(DataError) as caught:
        read_boxes([boxes], 1, (64, 64))
    assert str(caught.value) == (
        "boxes have a canvas of 128 x 256 pixels (height x width), and their image has 64 x 64, which has other proportions; "
        "resize and crop boxes and image in one transform of torchvision"
    )
    empty = BoundingBoxes(torch.zeros(0, 4), format="CXCYWH", canvas_size=(128, 256))
    assert read_boxes([empty], 1, (64, 128))[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[[0.1, 0.2, 0.5, 0.6]]], True),
        ([[], [[0, 0, 1, 1]]], True),
        ([[[0.1, 0.2, 0.5, 0.6]], [[3, 4, 9, 9]]], False),
        ([[[-0.5, 0, 1, 1]]], False),
        ([[], []], False),
        ([], False),
    ],
)
def test_boxes_in_shares_of_the_image_are_recognised(boxes, expected):
    assert looks_like_shares([torch.tensor(one, dtype=torch.float32).view(-1, 4) for one in boxes]) is expected


def test_masks_of_torchvision_and_of_each_object_are_one_for_each_image():
    apart = [torch.stack([mask & (torch.arange(6)[:, None] < 3), mask & (torch.arange(6)[:, None] >= 3)]) for mask in MASKS]
    for masks in (
        apart,
        [Mask(one.byte()) for one in apart],
        [Mask(one.byte() * 255) for one in MASKS],
        Mask(MASKS.byte()),
        [Mask(mask) for mask in MASKS],
    ):
        batch = read_batch({"image": IMAGES, "masks": masks, "boxes": BOXES}, 0)
        assert torch.equal(batch.masks, MASKS)
    none = read_batch({"image": IMAGES, "masks": [torch.zeros(0, 6, 8, dtype=torch.bool)] * 4}, 0)
    assert not none.masks.any()
    label_maps = read_batch({"image": IMAGES, "masks": [Mask(mask.byte() * 7) for mask in MASKS]}, 0)
    assert label_maps.objects is None


# ---- geometry


def _planted(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A white rectangle on black; size is width and height."""
    canvas = np.zeros((size[1], size[0]), np.uint8)
    canvas[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(canvas)


def _around(mask: Tensor) -> list[int]:
    """The box around a mask."""
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def test_a_planted_rectangle_is_resized_and_cropped_as_worked_by_hand():
    # 60 x 40 pixels become 30 x 20, of which the 20 x 20 in the middle start 5 from the left.
    prepare = Preprocessing(image_size=20, resize=20, **PLAIN)
    placed = prepare.boxes(torch.tensor([[20.0, 10.0, 36.0, 30.0]]), (60, 40))
    assert placed.tolist() == [[5, 5, 13, 15]]
    mask = prepare.mask(_planted((60, 40), (20, 10, 36, 30)))
    assert mask.dtype == torch.bool
    assert _around(mask) == [5, 5, 13, 15]
    assert mask.sum() == 8 * 10


def test_boxes_are_cut_off_at_the_border_and_left_out_beyond_it():
    prepare = Preprocessing(image_size=20, resize=20, **PLAIN)
    boxes = torch.tensor([[0.0, 0.0, 20.0, 40.0], [0.0, 0.0, 10.0, 40.0], [50.0, 0.0, 60.0, 9.0], [40.0, 20.0, 60.0, 40.0]])
    assert prepare.boxes(boxes, (60, 40)).tolist() == [[0, 0, 5, 20], [15, 10, 20, 20]]
    assert prepare.boxes(torch.zeros(0, 4), (60, 40)).shape == (0, 4)


@PROPERTY
@given(
    width=st.integers(24, 90),
    height=st.integers(24, 90),
    crop=st.integers(8, 40),
    more=st.integers(0, 12),
    squash=st.booleans(),
    corner=st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)),
    extent=st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)),
)
def test_image_mask_and_box_stay_one_on_the_other(width, height, crop, more, squash, corner, extent):
    left, top = (int(share * side) for share, side in zip(corner, (width, height), strict=True))
    right = min(width, left + max(6, int(extent[0] * width)))
    bottom = min(height, top + max(6, int(extent[1] * height)))
    picture = _planted((width, height), (left, top, right, bottom))
    prepare = Preprocessing(image_size=crop, resize=crop + more, squash=squash, **PLAIN)
    image, mask = prepare(picture.convert("RGB")), prepare.mask(picture)
    # The image is resized like the mask, so that it is bright exactly where the mask is.
    assert torch.equal(image[0] * 255 > 127.5, mask)
    boxes = prepare.boxes(torch.tensor([[left, top, right, bottom]], dtype=torch.float32), (width, height))
    if mask.any():
        # A mask's border lies where the box's border is rounded to.
        assert torch.tensor(_around(mask)).sub(boxes[0]).abs().max() <= 1
    else:
        assert len(boxes) == 0 or (boxes[0, 2:] - boxes[0, :2]).min() < 1


@pytest.mark.parametrize("shape", [(6, 9), (1, 1), (3, 5, 4)])
def test_boxes_around_masks_are_those_of_a_loop_over_their_pixels(shape):
    masks = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0)) < 0.1
    masks[0] = False
    for mask, box in zip(masks, boxes_around(masks), strict=True):
        pixels = [tuple(place[-2:]) for place in mask.nonzero().tolist()]
        rows, columns = ([place[axis] for place in pixels] for axis in (0, 1))
        expected = [min(columns), min(rows), max(columns) + 1, max(rows) + 1] if pixels else [0, 0, 0, 0]
        assert box.tolist() == expected
    assert boxes_around(masks[:0]).shape == (0, 4)


# ---- folders


def _folder(root: Path) -> tuple[Path, Path]:
    """Three pictures with one planted rectangle each, and their masks in another folder."""
    for number, name in enumerate(("cat/1.jpg", "cat/2.png", "dog/1.png")):
        picture = _planted((60, 40), (20 + number, 10, 36 + number, 30))
        for path, content in ((root / "images" / name, picture.convert("RGB")), (root / "masks" / name, picture)):
            path.parent.mkdir(parents=True, exist_ok=True)
            content.save(path.with_suffix(".png") if "masks" in path.parts else path)
    return root / "images", root / "masks"


def _coco(root: Path, names: list[str], **changes: Any) -> Path:
    content = {
        "images": [{"id": 7 + number, "file_name": name, "width": 60, "height": 40} for number, name in enumerate(names)],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [20, 10, 16, 20]},
            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [22, 10, 16, 20]},
            {"id": 3, "image_id": 9, "category_id": 2, "bbox": [0, 0, 20, 40]},
            {"id": 4, "image_id": 9, "category_id": 2, "bbox": [0, 0, 60, 40], "iscrowd": 1},
        ],
    }
    (root / "boxes.json").write_text(json.dumps(content | changes))
    return root / "boxes.json"


PREPARE = Preprocessing(image_size=20, resize=20, **PLAIN)


def test_masks_of_a_folder_follow_the_pictures(tmp_path):
    images, masks = _folder(tmp_path)
    pictures = image_folder(images, PREPARE, masks=masks)
    (batch,) = read_batches(pictures.loader(8))
    assert batch.masks.shape == (3, 20, 20)
    assert torch.equal(batch.images[:, 0] > 0.5, batch.masks)
    assert _around(batch.masks[0]) == [5, 5, 13, 15]
    assert batch.boxes is None
    (part,) = read_batches(pictures.subset([2, 0]).kept_in_memory().loader(8))
    assert torch.equal(part.masks, batch.masks[[2, 0]])


@pytest.mark.parametrize("names", [["cat/1.jpg", "cat/2.png", "dog/1.png"], ["1.jpg", "2.png", "1.png"]])
def test_boxes_of_a_folder_follow_the_pictures(tmp_path, names):
    images, masks = _folder(tmp_path)
    pictures = image_folder(images, PREPARE, masks=masks, boxes=_coco(tmp_path, names))
    (batch,) = read_batches(pictures.loader(8))
    assert [boxes.tolist() for boxes in batch.boxes] == [[[5, 5, 13, 15]], [], [[6, 5, 14, 15], [0, 0, 5, 20]]]
    assert batch.masks is not None
    (part,) = read_batches(pictures.subset([2]).loader(8))
    assert torch.equal(part.boxes[0], batch.boxes[2])


def test_names_that_several_pictures_share_list_none_of_them(tmp_path):
    images, _ = _folder(tmp_path)
    (images / "dog/1.png").rename(images / "dog/2.png")
    file = _coco(tmp_path, ["1.jpg", "no.png", "2.png"])
    with pytest.raises(
        DataError, match=r"does not list 2 of 3 images, such as 'cat/2\.png', by a file_name of their own; list "
    ):
        image_folder(images, PREPARE, boxes=file)


def test_a_broken_or_foreign_mask_makes_its_picture_unreadable(tmp_path):
    images, masks = _folder(tmp_path)
    (masks / "cat/2.png").write_bytes(b"no picture")
    _planted((40, 60), (1, 1, 5, 5)).save(masks / "dog/1.png")
    (batch,) = read_batches(image_folder(images, PREPARE, masks=masks).loader(8))
    assert batch.ids == ["cat/1.jpg"]
    assert [failure[0] for failure in batch.failed] == ["cat/2.png", "dog/1.png"]
    assert batch.failed[1][2] == "ValueError: its mask has (40, 60) pixels, the image (60, 40)"


def test_a_transform_that_moves_things_leaves_ground_truth_out(tmp_path):
    images, masks = _folder(tmp_path)
    pictures = image_folder(
        images, augmentation(PREPARE), masks=masks, boxes=_coco(tmp_path, ["cat/1.jpg", "cat/2.png", "dog/1.png"])
    )
    assert set(pictures[0]) == {"id", "label", "image"}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_all_modes_are_what_is_not_zero(mode):
    values = np.zeros((4, 6), np.uint8)
    values[1:3, 2:5] = 1  # as class numbers in a palette image
    picture = Image.fromarray(values.astype(np.uint16) if mode == "I;16" else values)
    if mode == "P":
        picture.putpalette([0, 0, 0, 9, 9, 9])
    elif mode not in ("L", "I;16"):
        picture = picture.point(lambda value: 255 * value).convert(mode)
    assert picture.mode == mode
    assert np.array_equal(np.asarray(silhouette(picture)), values * 255)


def test_masks_that_are_missing_are_refused_word_for_word(tmp_path):
    images, masks = _folder(tmp_path)
    (masks / "dog/1.png").unlink()
    with pytest.raises(DataError) as caught:
        image_folder(images, PREPARE, masks=masks)
    assert str(caught.value) == f"no mask for 1 of 3 images; the first, 'dog/1.png', needs '{masks / 'dog/1.png'}'"
    with pytest.raises(DataError) as caught:
        image_folder(images, PREPARE, masks=tmp_path / "nowhere")
    assert str(caught.value) == (
        f"no folder '{tmp_path / 'nowhere'}'; give a folder with a PNG file for each image, at the path of the image"
    )


MEND = "a file in COCO format is expected, with 'images' (id, file_name) and 'annotations' (image_id, bbox)"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "TypeError: list indices must be integers or slices, not str"),
        ('{"images": []}', "KeyError: 'annotations'"),
        ("no json", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_files_without_boxes_are_refused_word_for_word(tmp_path, content, reason):
    images, _ = _folder(tmp_path)
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(DataError) as caught:
        image_folder(images, PREPARE, boxes=tmp_path / "boxes.json")
    assert str(caught.value) == f"cannot read boxes from '{tmp_path / 'boxes.json'}': {reason}; {MEND}"


def test_boxes_of_other_images_are_refused_word_for_word(tmp_path):
    images, _ = _folder(tmp_path)
    file = _coco(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    with pytest.raises(DataError) as caught:
        image_folder(images, PREPARE, boxes=file)
    assert str(caught.value) == f"'{file}' has boxes of other images: its first is 'a.jpg', the folder has 'cat/1.jpg'"


NAMES = ["cat/1.jpg", "cat/2.png", "dog/1.png"]
FOUND = [[[5, 5, 13, 15]], [], [[6, 5, 14, 15], [0, 0, 5, 20]]]


def _listed(names: list[str], **changes: Any) -> list[dict[str, Any]]:
    return [{"id": 7 + number, "file_name": name} | changes for number, name in enumerate(names)]


def _boxes_of(root: Path, **changes: Any) -> list[Any]:
    images, _ = _folder(root)
    (batch,) = read_batches(image_folder(images, PREPARE, boxes=_coco(root, NAMES, **changes)).loader(8))
    return [boxes.tolist() for boxes in batch.boxes]


@pytest.mark.parametrize(
    "images",
    [
        _listed([name.replace("/", "\\") for name in NAMES]),
        _listed([f"./{name}" for name in NAMES]),
        _listed([f"data/photos/{name}" for name in NAMES]),
        _listed([f"C:\\photos\\{name}" for name in NAMES]),
        [image | {"id": str(image["id"])} for image in _listed(NAMES)],
        [image | {"id": float(image["id"])} for image in _listed(NAMES)],
        [*_listed(NAMES), {"id": 99, "file_name": "elsewhere.jpg"}],
    ],
)
def test_images_of_a_file_are_found_by_any_form_of_path_and_id(tmp_path, images):
    assert _boxes_of(tmp_path, images=images) == FOUND


def test_boxes_are_scaled_to_a_picture_of_the_same_proportions(tmp_path):
    doubled = [
        {"image_id": 7, "bbox": [40, 20, 32, 40]},
        {"image_id": 9, "bbox": [44, 20, 32, 40]},
        {"image_id": 9, "bbox": [0, 0, 40, 80]},
    ]
    assert _boxes_of(tmp_path, images=_listed(NAMES, width=120, height=80), annotations=doubled) == FOUND


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": _listed(NAMES, width=60, height=60)},
            "'{}' says that 'cat/1.jpg' has 60 x 60 pixels, but the image has 60 x 40; give boxes of this image, with its "
            "width and height",
        ),
        (
            {"images": _listed(NAMES, width=40, height=60)},
            "'{}' says that 'cat/1.jpg' has 40 x 60 pixels, but the image has 60 x 40; the sides are swapped, as if the "
            "boxes were drawn before its EXIF data turned the image; give boxes of this image, with its width and height",
        ),
        (
            {"annotations": [{"image_id": 7, "bbox": [0.1, 0.2, 0.5, 0.5]}]},
            "all boxes of '{}' lie in [0, 1]; multiply them by the image's width and height: boxes are in pixels",
        ),
        (
            {"annotations": [{"image_id": 7, "bbox": [40, 20, 55, 38]}]},
            "1 of 1 boxes of '{}' end beyond their image; a bbox in COCO format is (x, y, width, height) in pixels, not two "
            "corners",
        ),
        (
            {"annotations": [{"image_id": "11", "bbox": [0, 0, 9, 9]}]},
            "'{}' has a box of the image '11', which is not the id of one of its images",
        ),
        (
            {"images": _listed(NAMES[:1]), "annotations": []},
            "'{}' does not list 2 of 3 images, such as 'cat/2.png', by a file_name of their own; list images without objects "
            "too, without annotations, and move other images out of the folder",
        ),
        (
            {"images": _listed(["a/cat/1.jpg", "b/cat/1.jpg", "cat/2.png"]), "annotations": []},
            "'{}' does not list 2 of 3 images, such as 'cat/1.jpg', by a file_name of their own; list images without objects "
            "too, without annotations, and move other images out of the folder",
        ),
    ],
)
def test_files_that_contradict_the_pictures_are_refused_word_for_word(tmp_path, changes, message):
    with pytest.raises(DataError) as caught:
        _boxes_of(tmp_path, **changes)
    assert str(caught.value) == message.format(tmp_path / "boxes.json")


def test_the_size_of_a_turned_picture_is_the_upright_one(tmp_path):
    (tmp_path / "a").mkdir()
    turned = Image.Exif()
    turned[274] = 6  # the orientation of a camera that was held upright
    Image.new("RGB", (60, 40)).save(tmp_path / "a" / "1.jpg", exif=turned)
    assert picture_size(tmp_path / "a" / "1.jpg") == (40, 60)
    assert picture_size(tmp_path / "missing.jpg") is None
    images = [{"id": 7, "file_name": "a/1.jpg", "width": 40, "height": 60}]
    file = _coco(tmp_path, [], images=images, annotations=[{"image_id": 7, "bbox": [0, 0, 40, 30]}])
    (boxes,) = image_folder(tmp_path, PREPARE, boxes=file).boxes
    assert boxes.tolist() == [[0, 0, 40, 30]]


# ---- scenes


def test_scenes_bring_their_masks_if_asked():
    prepare = Preprocessing(image_size=128, resize=128, **PLAIN)
    pictures = scenes(prepare, size=6, masks=True)
    (batch,) = read_batches(pictures.loader(6))
    for index in range(6):
        assert np.array_equal(batch.masks[index].numpy(), make_scene(index).mask)
    assert torch.equal(batch.images, next(read_batches(scenes(prepare, size=6).loader(6))).images)
    assert next(read_batches(scenes(prepare, size=6).loader(6))).masks is None
    (part,) = read_batches(pictures.spread(2).loader(2))
    assert torch.equal(part.masks, batch.masks[:2])


def test_smaller_scenes_have_smaller_masks():
    (batch,) = read_batches(scenes(Preprocessing(32, 32, **PLAIN), size=4, masks=True).loader(4))
    for index in range(4):
        shares = make_scene(index).mask.reshape(32, 4, 32, 4).mean(axis=(1, 3))
        found = batch.masks[index].numpy()
        assert found[shares == 1].mean() > 0.9
        assert not found[shares == 0].mean() > 0.02
