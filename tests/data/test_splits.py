"""Splits by contiguous blocks and at random, and parts of a data set."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xaieval.data import Fold, Pictures, Preprocessing, block_folds, blocks_of, random_folds, ucmerced
from xaieval.errors import DataError

PROPERTY = settings(deadline=None, max_examples=60)

SMALL = Preprocessing(image_size=16, resize=16, mean=(0.5,) * 3, std=(0.5,) * 3)
SPLITTERS = [block_folds, random_folds]
PARTS = ("train", "selection", "test")

# Ten blocks a class, classes of any sizes, all mixed up.
labels_of_classes = (
    st.lists(st.integers(10, 35), min_size=1, max_size=4)
    .map(lambda sizes: [label for label, size in enumerate(sizes) for _ in range(size)])
    .flatmap(st.permutations)
)
even_labels = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(
    lambda tens: [label for label, size in enumerate(tens) for _ in range(10 * size)]
)
folds_of_ten_blocks = st.sampled_from([5, 10])
seeds = st.integers(0, 2**31)


def _parts_of_class(fold: Fold, labels: list[int], label: int) -> list[str]:
    """The name of the part of each image of a class, in order."""
    part_of = {number: part for part in PARTS for number in getattr(fold, part)}
    return [part_of[number] for number, other in enumerate(labels) if other == label]


def _counts(fold: Fold, labels: list[int]) -> dict[str, dict[int, int]]:
    return {part: dict(Counter(labels[number] for number in getattr(fold, part))) for part in PARTS}


# ---- both splits


@pytest.mark.parametrize("split", SPLITTERS)
@PROPERTY
@given(labels=labels_of_classes, folds=folds_of_ten_blocks, seed=seeds)
def test_three_parts_have_no_image_in_common_and_are_all_images(split, labels, folds, seed):
    found = split(labels, folds, seed=seed)
    assert len(found) == folds
    for fold in found:
        assert sorted(fold.train + fold.selection + fold.test) == list(range(len(labels)))
        for part in PARTS:
            numbers = getattr(fold, part)
            assert numbers == sorted(numbers)
            assert {type(number) for number in numbers} == {int}
            assert {labels[number] for number in numbers} == set(labels), "every class is in every part"


@pytest.mark.parametrize("split", SPLITTERS)
@PROPERTY
@given(labels=labels_of_classes, folds=folds_of_ten_blocks, seed=seeds)
def test_over_all_folds_an_image_is_tested_once_and_selects_at_most_once(split, labels, folds, seed):
    found = split(labels, folds, seed=seed)
    assert sorted(itertools.chain(*(fold.test for fold in found))) == list(range(len(labels)))
    assert set(Counter(itertools.chain(*(fold.selection for fold in found))).values()) == {1}


@pytest.mark.parametrize("split", SPLITTERS)
@PROPERTY
@given(labels=labels_of_classes, folds=folds_of_ten_blocks, seed=seeds)
def test_the_sizes_of_a_class_are_those_of_whole_blocks(split, labels, folds, seed):
    for fold in split(labels, folds, seed=seed):
        counts = _counts(fold, labels)
        for label, size in Counter(labels).items():
            low, high = size // 10, -(-size // 10)
            assert 10 // folds * low <= counts["test"][label] <= 10 // folds * high
            assert low <= counts["selection"][label] <= high


@pytest.mark.parametrize("split", SPLITTERS)
@pytest.mark.parametrize(
    ("folds", "blocks", "sizes"), [(5, 10, (70, 10, 20)), (10, 10, (80, 10, 10)), (5, 20, (75, 5, 20)), (4, 4, (50, 25, 25))]
)
def test_the_parts_of_a_hundred_images_a_class_are_as_worked_by_hand(split, folds, blocks, sizes):
    labels = [label for label in range(3) for _ in range(100)]
    for fold in split(labels, folds, blocks=blocks):
        assert _counts(fold, labels) == {part: dict.fromkeys(range(3), size) for part, size in zip(PARTS, sizes, strict=True)}


@pytest.mark.parametrize("split", SPLITTERS)
def test_the_same_seed_gives_the_same_folds_and_another_seed_others(split):
    labels = [0] * 40 + [1] * 50
    assert split(labels, seed=3) == split(np.array(labels), seed=3) == split(tuple(labels), seed=3)
    assert len({str(split(labels, seed=seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("split", SPLITTERS)
def test_splitting_leaves_the_global_generator_alone(split):
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # the global generator is what may not change
    split([0] * 40)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002  # it is the one to watch


@pytest.mark.parametrize("split", SPLITTERS)
def test_folds_of_different_classes_do_not_all_lie_at_the_same_places(split):
    labels = [label for label in range(6) for _ in range(20)]
    (first, *_) = split(labels)
    assert len({tuple(_parts_of_class(first, labels, label)) for label in range(6)}) > 1


# ---- blocks


@PROPERTY
@given(labels=labels_of_classes, folds=folds_of_ten_blocks, seed=seeds)
def test_parts_of_a_class_are_runs_of_at_least_a_block_of_neighbours(labels, folds, seed):
    for fold, label in itertools.product(block_folds(labels, folds, seed=seed), sorted(set(labels))):
        runs = [len(list(run)) for _, run in itertools.groupby(_parts_of_class(fold, labels, label))]
        assert min(runs) >= labels.count(label) // 10
        assert len(runs) <= 10


@PROPERTY
@given(labels=even_labels, folds=folds_of_ten_blocks, seed=seeds)
def test_a_block_is_never_torn_apart(labels, folds, seed):
    for fold, label in itertools.product(block_folds(labels, folds, seed=seed), sorted(set(labels))):
        parts = _parts_of_class(fold, labels, label)
        size = len(parts) // 10
        blocks = [parts[start : start + size] for start in range(0, len(parts), size)]
        assert all(len(set(block)) == 1 for block in blocks)
        assert Counter(block[0] for block in blocks)["test"] == 10 // folds
        assert Counter(block[0] for block in blocks)["selection"] == 1


def test_blocks_are_of_a_class_also_where_classes_take_turns():
    labels = list(range(4)) * 20
    for fold in block_folds(labels):
        for label in range(4):
            parts = _parts_of_class(fold, labels, label)
            assert parts[::2] == parts[1::2]


@PROPERTY
@given(labels=even_labels, folds=folds_of_ten_blocks, seed=seeds)
def test_random_folds_have_the_sizes_of_block_folds(labels, folds, seed):
    for ours, theirs in zip(random_folds(labels, folds, seed=seed), block_folds(labels, folds, seed=seed), strict=True):
        assert _counts(ours, labels) == _counts(theirs, labels)


@pytest.mark.parametrize("size", [23, 37])
def test_random_folds_have_the_sizes_of_block_folds_also_where_blocks_are_not_all_equal(size):
    labels = [0] * size + [1] * 15
    for ours, theirs in zip(random_folds(labels), block_folds(labels), strict=True):
        assert _counts(ours, labels) == _counts(theirs, labels)


def test_random_folds_tear_neighbours_apart():
    labels = [0] * 200
    for fold in random_folds(labels):
        runs = [len(list(run)) for _, run in itertools.groupby(_parts_of_class(fold, labels, 0))]
        assert np.mean(runs) < 4, "blocks would give runs of 20 and more"


# ---- errors


@pytest.mark.parametrize("split", SPLITTERS)
@pytest.mark.parametrize(
    ("folds", "blocks", "message"),
    [
        (2, 10, "folds is at least 3 and divides the number of blocks, 10; got 2"),
        (1, 10, "folds is at least 3 and divides the number of blocks, 10; got 1"),
        (0, 10, "folds is at least 3 and divides the number of blocks, 10; got 0"),
        (-5, 10, "folds is at least 3 and divides the number of blocks, 10; got -5"),
        (4, 10, "folds is at least 3 and divides the number of blocks, 10; got 4"),
        (20, 10, "folds is at least 3 and divides the number of blocks, 10; got 20"),
        (
            5,
            20,
            "class 1 has 19 images, too few for 20 blocks; use more images of that class, or fewer folds and blocks",
        ),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused_word_for_word(split, folds, blocks, message):
    with pytest.raises(DataError) as error:
        split([0] * 20 + [1] * 19, folds, blocks=blocks)
    assert str(error.value) == message


@pytest.mark.parametrize("blocks", [0, -5])
def test_a_number_of_blocks_below_one_is_refused(blocks):
    with pytest.raises(DataError, match=f"divides the number of blocks, {blocks}"):
        block_folds([0] * 20, 5, blocks=blocks)


# ---- real images


@pytest.fixture
def real(ucmerced_folder: Path) -> Pictures:
    return ucmerced(ucmerced_folder, SMALL)


@pytest.mark.shared
@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_uc_merced_keep_ten_numbers_together_and_so_the_image_that_is_there_twice(real, seed):
    for fold in block_folds(real.labels, seed=seed):
        assert (len(fold.train), len(fold.selection), len(fold.test)) == (1470, 210, 420)
        part_of = {Path(real.ids[number]).stem: part for part in PARTS for number in getattr(fold, part)}
        assert part_of["airplane01"] == part_of["airplane02"]
        for name, ten in itertools.product(real.classes, range(10)):
            assert len({part_of[f"{name}{10 * ten + one:02d}"] for one in range(10)}) == 1


@pytest.mark.shared
def test_the_image_that_is_there_twice_holds_the_same_pixels_and_random_folds_tear_it_apart(real):
    first, second = real.ids.index("airplane/airplane01.jpg"), real.ids.index("airplane/airplane02.jpg")
    assert np.array_equal(np.asarray(real.read(first)), np.asarray(real.read(second)))
    assert any(
        (first in fold.test) != (second in fold.test) for seed in range(4) for fold in random_folds(real.labels, seed=seed)
    )


@pytest.mark.shared
def test_far_fewer_neighbours_of_uc_merced_are_on_both_sides_of_blocks_than_of_random_folds(real):
    def torn(folds: list[Fold]) -> int:
        """Count pairs of neighbouring images of a class where one is in training and the other in the test."""
        together = [
            itertools.pairwise(_parts_of_class(fold, list(real.labels), label)) for fold in folds for label in range(21)
        ]
        return sum({*pair} == {"train", "test"} for pairs in together for pair in pairs)

    blocks, at_random = torn(block_folds(real.labels)), torn(random_folds(real.labels))
    # Ten blocks have nine borders in 99 pairs, and of random pairs 2 * 0.2 * 0.7 are torn, in each of 21 classes and 5 folds.
    assert blocks <= 5 * 21 * 9
    assert at_random == pytest.approx(5 * 21 * 99 * 0.28, rel=0.1)
    assert 5 * blocks < at_random


# ---- parts of the pictures


def _numbered(count: int) -> Pictures:
    """Pictures whose only pixel value is their number."""

    def read(index: int) -> Image.Image:
        return Image.new("RGB", (16, 16), (index, index, index))

    prepare = Preprocessing(16, 16, mean=(0, 0, 0), std=(1, 1, 1))
    return Pictures([f"id {i}" for i in range(count)], [i % 3 for i in range(count)], ["a", "b", "c"], read, prepare)


@PROPERTY
@given(st.data(), st.integers(1, 40))
def test_a_subset_has_the_pictures_of_its_numbers_in_their_order_also_of_a_subset(data, count):
    numbers = data.draw(st.lists(st.integers(0, count - 1), max_size=20))
    some = data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=10)) if numbers else []
    for part, expected in (
        (_numbered(count).subset(numbers), numbers),
        (_numbered(count).subset(numbers).subset(some), [numbers[one] for one in some]),
    ):
        assert len(part) == len(expected)
        assert list(part.classes) == ["a", "b", "c"]
        assert list(part.ids) == [f"id {number}" for number in expected]
        assert list(part.labels) == [number % 3 for number in expected]
        for index, number in enumerate(expected):
            sample = part[index]
            assert (sample["id"], sample["label"]) == (f"id {number}", number % 3)
            assert round(float(sample["image"].mean()) * 255) == number


def test_the_parts_of_a_fold_are_pictures_that_can_be_loaded():
    pictures = _numbered(60)
    for fold in block_folds(pictures.labels, 5):
        (batch,) = pictures.subset(fold.selection).loader(100)
        assert batch["id"] == [f"id {number}" for number in fold.selection]
        assert (batch["image"].mean(dim=(1, 2, 3)) * 255).round().int().tolist() == fold.selection


@PROPERTY
@given(labels_of_classes, folds_of_ten_blocks, seeds)
def test_images_of_a_block_stay_together_and_blocks_are_even(labels, folds, seed):
    blocks = blocks_of(labels)
    for fold in block_folds(labels, folds, seed=seed):
        parts = [{blocks[number] for number in getattr(fold, part)} for part in PARTS]
        assert sum(map(len, parts)) == len(set().union(*parts)) == len(set(blocks))
    for label in set(labels):
        own = [block for block, other in zip(blocks, labels, strict=True) if other == label]
        assert list(dict.fromkeys(own)) == [f"{label}-{number}" for number in range(10)], "in the order of the images"
        sizes = Counter(own).values()
        assert max(sizes) - min(sizes) <= 1
