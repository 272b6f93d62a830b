"""Splits of a data set into folds, by contiguous blocks of images or at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from xaieval.errors import DataError

__all__ = ["Fold", "block_folds", "random_folds"]


@dataclass(frozen=True)
class Fold:
    """Numbers of the images of three parts that have none in common, each in ascending order.

    Attributes:
        train: what models learn from.
        selection: what layers are chosen by.
        test: what results come from.
    """

    train: list[int]
    selection: list[int]
    test: list[int]


def block_folds(labels: Sequence[int], folds: int = 5, *, blocks: int = 10, seed: int = 0) -> list[Fold]:
    """Folds that keep contiguous blocks of each class together: every image is tested once, neighbours on the same side.

    In aerial data sets, images with neighbouring numbers often show the same place, so folds of single images leak.

    Args:
        labels: class of each image, in an order in which neighbours may be alike (file numbers).
        folds: number of folds, at least 3: one part in `folds` is for the test, and one block of each class for the selection.
        blocks: each class is cut into so many runs of images that follow each other, a multiple of `folds`.
        seed: of the assignment of blocks to folds.

    Raises:
        DataError: a class has fewer images than blocks, or the numbers do not fit together.

    Example:
        >>> fold = block_folds([0] * 20 + [1] * 20, folds=5)[0]
        >>> len(fold.train), len(fold.selection), len(fold.test)
        (28, 4, 8)
    """
    return _folds(labels, folds, blocks, seed, lambda members, rng: members)


def random_folds(labels: Sequence[int], folds: int = 5, *, blocks: int = 10, seed: int = 0) -> list[Fold]:
    """Folds of the same sizes as those of `block_folds`, with the images of each class shuffled first: the usual random split.

    Raises:
        DataError: likewise.
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
        raise DataError(f"folds are at least 3 and divide the number of blocks, {blocks}; got {folds}")
    rng, shuffling = np.random.default_rng(seed), np.random.default_rng([seed, 1])  # so that all folds have the same sizes
    parts: list[Fold] = [Fold([], [], []) for _ in range(folds)]
    for label in sorted(set(labels)):
        members = np.flatnonzero(np.asarray(labels) == label)
        if len(members) < blocks:
            raise DataError(
                f"class {label} has {len(members)} images, too few for {blocks} blocks; "
                "give more images of it, or fewer folds and blocks"
            )
        fold_of = rng.permutation(np.arange(blocks) % folds)
        pieces = np.array_split(arrange(members, shuffling), blocks)
        for number, part in enumerate(parts):
            # The selection is the first block of the next fold, so that over all folds each image selects at most once.
            selecting = int(np.flatnonzero(fold_of == (number + 1) % folds)[0])
            for index, piece in enumerate(pieces):
                use = part.test if fold_of[index] == number else part.selection if index == selecting else part.train
                use.extend(int(i) for i in piece)
    return [Fold(sorted(part.train), sorted(part.selection), sorted(part.test)) for part in parts]
