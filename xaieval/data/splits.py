"""Split a data set into folds, by contiguous blocks of images or at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from xaieval.errors import DataError

__all__ = ["Fold", "block_folds", "blocks_of", "random_folds"]


@dataclass(frozen=True)
class Fold:
    """The image numbers of three disjoint parts, each in ascending order.

    Attributes:
        train: Images that models are trained on.
        selection: Images that layers are selected on.
        test: Images that results are measured on.
    """

    train: list[int]
    selection: list[int]
    test: list[int]


def block_folds(labels: Sequence[int], folds: int = 5, *, blocks: int = 10, seed: int = 0) -> list[Fold]:
    """Split by contiguous blocks of each class: each image is tested once, and neighbouring images stay in the same part.

    In aerial data sets, images with neighbouring numbers often show the same place, so folds of single images leak.

    Args:
        labels: Class of each image, in an order where neighbours can be similar (file numbers).
        folds: Number of folds, at least 3. In each fold, a share of 1 / `folds` is for the test, and one block of each class is
            for the selection.
        blocks: Number of blocks of consecutive images per class, a multiple of `folds`.
        seed: The seed of the assignment of blocks to folds.

    Raises:
        DataError: A class has fewer images than blocks, or `blocks` is not a multiple of `folds`.

    Example:
        >>> fold = block_folds([0] * 20 + [1] * 20, folds=5)[0]
        >>> len(fold.train), len(fold.selection), len(fold.test)
        (28, 4, 8)
    """
    return _folds(labels, folds, blocks, seed, lambda members, rng: members)


def blocks_of(labels: Sequence[int], blocks: int = 10) -> list[str]:
    """The block of each image, which `block_folds` keeps together, as class and number: "3-0" is the first block of class 3.

    Args:
        labels: As in `block_folds`.
        blocks: As in `block_folds`.

    Example:
        >>> blocks_of([0, 0, 0, 1, 1], blocks=2)
        ['0-0', '0-0', '0-1', '1-0', '1-1']
    """
    names = [""] * len(labels)
    for label in sorted(set(labels)):
        for number, piece in enumerate(np.array_split(np.flatnonzero(np.asarray(labels) == label), blocks)):
            for index in piece:
                names[index] = f"{label}-{number}"
    return names


def random_folds(labels: Sequence[int], folds: int = 5, *, blocks: int = 10, seed: int = 0) -> list[Fold]:
    """Split at random: the images of each class are shuffled, and the folds have the same sizes as those of `block_folds`.

    Args:
        labels: As in `block_folds`.
        folds: As in `block_folds`.
        blocks: As in `block_folds`.
        seed: The seed of the shuffling.

    Raises:
        DataError: As in `block_folds`.
    """
    return _folds(labels, folds, blocks, seed, lambda members, rng: rng.permutation(members))


def _folds(
    labels: Sequence[int],
    folds: int,
    blocks: int,
    seed: int,
    arrange: Callable[[np.ndarray, np.random.Generator], np.ndarray],
) -> list[Fold]:
    if folds < 3 or blocks < 1 or blocks % folds:
        raise DataError(f"folds is at least 3 and divides the number of blocks, {blocks}; got {folds}")
    # Two generators, so that the folds of both functions have the same sizes.
    rng, shuffling = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    parts: list[Fold] = [Fold([], [], []) for _ in range(folds)]
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.asarray(labels) == label)
        if len(members) < blocks:
            raise DataError(
                f"class {label} has {len(members)} images, too few for {blocks} blocks; "
                "use more images of that class, or fewer folds and blocks"
            )
        fold_of = rng.permutation(np.arange(blocks) % folds)
        pieces = np.array_split(arrange(members, shuffling), blocks)
        for number, part in enumerate(parts):
            # The selection is the first block of the next fold, so that each image is used for selection in at most one fold.
            selection = int(np.flatnonzero(fold_of == (number + 1) % folds)[0])
            for index, piece in enumerate(pieces):
                use = part.test if fold_of[index] == number else part.selection if index == selection else part.train
                use.extend(int(i) for i in piece)
    return [Fold(sorted(part.train), sorted(part.selection), sorted(part.test)) for part in parts]
