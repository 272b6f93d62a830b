"""Hold out a class: networks that have never seen it are tested on it."""

from __future__ import annotations

from dataclasses import replace

from xaieval.data import Fold, Pictures
from xaieval.errors import DataError, choose_from

__all__ = ["held_out_fold", "without_class"]


def without_class(pictures: Pictures, name: str) -> Pictures:
    """The same images with the classes that remain without one of them; images of that class have no label.

    Args:
        pictures: Images with classes.
        name: The class to hold out.

    Raises:
        DataError: There is no such class, or fewer than two others.

    Example:
        >>> from xaieval.data import Preprocessing, scenes
        >>> pictures = scenes(Preprocessing(32, 32), size=10)
        >>> len(pictures.classes), len(without_class(pictures, "cross").classes)
        (10, 9)
        >>> without_class(pictures, "cross").labels.count(None)
        1
    """
    if name not in pictures.classes:
        raise DataError(f"the data has no class {name!r} to hold out; {choose_from(name, pictures.classes)}")
    if len(pictures.classes) < 3:
        raise DataError(f"without the class {name!r} at least two others are needed, got {len(pictures.classes) - 1}")
    others = [known for known in pictures.classes if known != name]
    new = {pictures.classes.index(other): number for number, other in enumerate(others)}
    labels = [None if label is None else new.get(label) for label in pictures.labels]
    return replace(pictures, classes=others, labels=labels)


def held_out_fold(pictures: Pictures, blocks: int = 1) -> Fold:
    """The only fold with a class held out: training on labelled images, test on the others, no images for the selection.

    Args:
        pictures: Images of which those of the class have no label, from `without_class`.
        blocks: Number of blocks of consecutive images that the class is cut into.

    Raises:
        DataError: The class has too few images for the blocks.
    """
    labelled = [number for number, label in enumerate(pictures.labels) if label is not None]
    held_out = sorted(set(range(len(pictures))) - set(labelled))
    if not 1 <= blocks <= len(held_out):
        raise DataError(f"the {len(held_out)} images of the class held out cannot be cut into {blocks} blocks")
    return Fold(labelled, [], held_out)
