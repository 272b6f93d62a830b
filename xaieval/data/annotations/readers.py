"""Annotations by name: the readers of published layouts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xaieval.data.annotations.coco import coco
from xaieval.data.annotations.folders import clevr_xai, cub, funnybirds, imagenet_s
from xaieval.data.annotations.listing import Listing, Reader, ReadTruth
from xaieval.data.annotations.voc import pascal_part, voc_boxes, voc_masks
from xaieval.errors import DataError, choose_from

__all__ = ["READERS", "Annotations", "read_annotations"]

READERS: dict[str, Reader] = {
    "coco": coco,
    "voc": voc_boxes,
    "voc-masks": voc_masks,
    "imagenet-s": imagenet_s,
    "cub": cub,
    "funnybirds": funnybirds,
    "clevr-xai": clevr_xai,
    "pascal-part": pascal_part,
}
OF_PARTS = ("funnybirds", "pascal-part")


@dataclass(frozen=True)
class Annotations:
    """Where the objects of a folder of images are, and of which classes.

    Args:
        kind: The layout, a key of `READERS`: "coco", "voc" (boxes in XML), "voc-masks" (PNG files), "imagenet-s", "cub",
            "funnybirds", "clevr-xai" or "pascal-part".
        place: The file or folder, as the layout's reader takes it.
        classes: The model's number of each class by its name in the annotations. Default: the number of the class folder of
            that name; in a folder without classes, the number that the annotations have.
        parts: For "funnybirds" and "pascal-part", the parts that count. Default: the whole object.

    Raises:
        DataError: There is no such layout, or it has no parts.

    Example:
        >>> Annotations.of("coco:instances_val2017.json").kind
        'coco'
    """

    kind: str
    place: str | os.PathLike[str]
    classes: Mapping[str, int] | None = None
    parts: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.kind not in READERS:
            raise DataError(f"no annotations {self.kind!r}; {choose_from(self.kind, READERS)}")
        if self.parts and self.kind not in OF_PARTS:
            raise DataError(f"annotations {self.kind!r} have no parts; those of {' and '.join(OF_PARTS)} do")

    @classmethod
    def of(cls, given: str | Annotations) -> Annotations:
        """The annotations that a text such as "coco:FILE" names; others are returned unchanged.

        Raises:
            DataError: The text names none.
        """
        if isinstance(given, Annotations):
            return given
        kind, _, place = given.partition(":")
        if not place:
            raise DataError(f"annotations are KIND:PLACE, such as coco:FILE; got {given!r}; {choose_from(kind, READERS)}")
        return cls(kind, place)


def read_annotations(
    given: str | Annotations, names: Sequence[str], classes: Sequence[str] = (), labels: Sequence[int | None] = ()
) -> ReadTruth:
    """Return a function that reads the truth of an image, from its number and its width and height.

    Args:
        given: The annotations, or a text such as "coco:FILE".
        names: The paths of the images below their folder.
        classes: The names of the class folders; empty in a folder without classes.
        labels: The class of each image.

    Raises:
        DataError: The annotations cannot be read, do not fit the images, or have other classes.
    """
    found = Annotations.of(given)
    return READERS[found.kind](Path(found.place), Listing(names, classes, labels, found.classes, found.parts))
