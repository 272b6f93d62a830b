"""Batches: every form that a loader may return, split and counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xaieval.data.batches import check_images, read_batches
from xaieval.errors import DataError

PROPERTY = settings(deadline=None, max_examples=80)


@st.composite
def loaders(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Batches with good and failed images; each image's value is its number."""
    number, batches = 0, []
    for sizes in draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=6)):
        good = range(number, number + sizes[0])
        bad = range(good.stop, good.stop + sizes[1])
        number = bad.stop
        batches.append(
            {
                "images": torch.tensor(list(good), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2),
                "labels": torch.tensor(list(good), dtype=torch.long),
                "ids": [f"image {i}" for i in good],
                "failed": [(f"image {i}", i, "broken") for i in bad],
            }
        )
    return batches


def _ids(batches: list[Any]) -> tuple[list[str], list[str]]:
    return [name for batch in batches for name in batch.ids], [name for batch in batches for name, _, _ in batch.failed]


def _count(loader: list[dict[str, Any]]) -> int:
    return sum(len(batch["ids"]) + len(batch["failed"]) for batch in loader)


@PROPERTY
@given(loader=loaders().filter(_count), size=st.integers(1, 8))
def test_splitting_keeps_all_images_in_order_and_no_batch_is_too_large(loader, size):
    whole, split = list(read_batches(loader)), list(read_batches(loader, batch_size=size))
    assert _ids(split) == _ids(whole)
    assert all(len(batch) <= size for batch in split)
    for batch in split:
        assert batch.images[:, 0, 0, 0].tolist() == batch.labels.tolist()
        assert batch.ids == [f"image {label}" for label in batch.labels.tolist()]


@PROPERTY
@given(loader=loaders().filter(_count), size=st.none() | st.integers(1, 8), most=st.integers(1, 30))
def test_exactly_so_many_images_are_read_as_asked_for(loader, size, most):
    good, bad = _ids(list(read_batches(loader, size, most)))
    assert len(good) + len(bad) == min(most, _count(loader))
    everything = _ids(list(read_batches(loader)))
    assert good == everything[0][: len(good)]
    assert bad == everything[1][: len(bad)]


def test_no_batch_is_drawn_that_is_not_needed():
    drawn = []

    def loader() -> Any:
        for index in range(10):
            drawn.append(index)
            yield torch.zeros(4, 3, 2, 2)

    assert sum(len(batch) for batch in read_batches(loader(), max_images=8)) == 8
    assert drawn == [0, 1]


IMAGES = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2)
LABELS = torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    ("item", "labels", "ids"),
    [
        (IMAGES, None, ["0", "1", "2"]),
        ((IMAGES,), None, ["0", "1", "2"]),
        ((IMAGES, LABELS), [2, 0, 1], ["0", "1", "2"]),
        ([IMAGES, [2, 0, 1]], [2, 0, 1], ["0", "1", "2"]),
        ((IMAGES, None), None, ["0", "1", "2"]),
        ({"image": IMAGES}, None, ["0", "1", "2"]),
        ({"pixel_values": IMAGES, "labels": LABELS}, [2, 0, 1], ["0", "1", "2"]),
        ({"images": IMAGES, "label": LABELS.int(), "id": ["a", "b", "c"]}, [2, 0, 1], ["a", "b", "c"]),
        ({"images": IMAGES, "ids": torch.tensor([5, 6, 7]).tolist(), "other": 1}, None, ["5", "6", "7"]),
    ],
)
def test_batches_of_every_documented_form_are_read(item, labels, ids):
    (batch,) = read_batches([item])
    assert torch.equal(batch.images, IMAGES)
    assert batch.ids == ids
    assert batch.labels is None if labels is None else batch.labels.tolist() == labels
    assert batch.failed == []


def test_images_without_ids_are_numbered_through():
    batches = read_batches([IMAGES, (IMAGES, LABELS), IMAGES], batch_size=2)
    assert _ids(list(batches))[0] == [str(number) for number in range(9)]


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (
            {"picture": IMAGES, "label": LABELS},
            DataError,
            "a batch has the keys picture, label; one of image, images, pixel_values is expected: rename the key in the data "
            "set, or let the loader's collate function return (images, labels)",
        ),
        ((IMAGES, LABELS, LABELS), DataError, "a batch is a tuple of 3; images, (images, labels) or a mapping is expected"),
        ([], DataError, "a batch is a list of 0; images, (images, labels) or a mapping is expected"),
        (
            {"image": IMAGES, "id": ["a", "b"]},
            DataError,
            "a batch has 3 images but 2 ids; one id per image is expected",
        ),
        (
            {"image": IMAGES, "id": ["a", "b", "a"]},
            DataError,
            "two images have the id 'a'; rows are identified by id, so each image needs its own",
        ),
        (
            IMAGES[0],
            DataError,
            "images are a floating-point tensor [N, C, H, W], normalised as the model expects; got float32 [3, 2, 2]; "
            "a loader yields batches: for one batch use [images], for a single image images[None]",
        ),
        (
            IMAGES.to(torch.uint8),
            DataError,
            "images are a floating-point tensor [N, C, H, W], normalised as the model expects; got uint8 [3, 3, 2, 2]; "
            "scale and normalise the bytes, as in (images / 255 - mean) / std",
        ),
        (
            "photo.jpg",
            DataError,
            "images are a floating-point tensor [N, C, H, W], normalised as the model expects; got str",
        ),
    ],
)
def test_batches_of_other_forms_are_refused_word_for_word(item, error, message):
    with pytest.raises(error) as raised:
        list(read_batches([item]))
    assert str(raised.value) == message


def test_an_id_that_comes_again_in_a_later_batch_is_refused():
    batch = {"image": IMAGES[:1], "id": ["a"]}
    with pytest.raises(DataError, match=r"^two images have the id 'a'"):
        list(read_batches([batch, batch]))
    failed = {"failed": [("a", None, "broken")]}
    with pytest.raises(DataError, match=r"^two images have the id 'a'"):
        list(read_batches([batch, failed]))


def test_an_iterator_that_was_read_before_is_refused_word_for_word():
    used = iter([IMAGES])
    list(read_batches(used))
    with pytest.raises(DataError) as error:
        list(read_batches(used))
    assert str(error.value) == (
        "the loader is empty: it yielded no images; an iterator can be read only once, so create a new one"
    )


def test_images_that_can_be_a_batch_come_back_as_they_are():
    for images in (IMAGES, IMAGES.half(), IMAGES.double(), IMAGES[:0]):
        assert check_images(images) is images
