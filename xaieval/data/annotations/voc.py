"""Objects from annotations of Pascal VOC: boxes in XML, segmentations in PNG files, and the parts of Pascal-Part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch

from xaieval.config.labels import IGNORED
from xaieval.data.annotations.listing import Listing, ReadTruth, Size, label_picture
from xaieval.data.truth_by_class import Truth
from xaieval.errors import DataError

__all__ = ["VOC_CLASSES", "pascal_part", "voc_boxes", "voc_masks"]

VOC_CLASSES = (  # 1 to 20 in this order, as in its segmentations and in the networks of torchvision
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
KEYS = dict(enumerate(VOC_CLASSES, start=1))


def voc_boxes(place: Path, listing: Listing) -> ReadTruth:
    """Read boxes from XML files as Pascal VOC has them: `Annotations/2007_000027.xml` for `2007_000027.jpg`.

    Objects that are marked as difficult count neither as objects nor as background, as in VOC's own evaluation.

    Args:
        place: The folder of one year, such as `VOCdevkit/VOC2012`, or its folder `Annotations`.
        listing: The images. In a folder without classes, classes are numbered from 1 as VOC numbers them.

    Raises:
        DataError: An image has no file; while reading, a class is not one of VOC's and has no number.
    """
    files = listing.files(_inner(place, "Annotations"), ".xml", "an XML file", flat=True)
    numbers = listing.by_name  # other data sets in this format have classes of any name

    def read(number: int, size: Size) -> Truth:
        found = [_object(one, files[number]) for one in ElementTree.parse(files[number]).getroot().iter("object")]  # noqa: S314
        known = _own_numbers({name for name, _, _ in found}, files[number]) if numbers is None else numbers
        kept = [(known[name], box, difficult) for name, box, difficult in found if name in known]
        if not kept:
            return Truth(torch.zeros(0, dtype=torch.long))
        classes, boxes, difficult = zip(*kept, strict=True)
        return Truth(torch.tensor(classes), boxes=torch.tensor(boxes), crowd=torch.tensor(difficult))

    return read


def voc_masks(place: Path, listing: Listing) -> ReadTruth:
    """Read objects from PNG files as Pascal VOC has them, in `SegmentationObject` and `SegmentationClass`.

    The value 255, around objects and on difficult ones, is neither object nor background.

    Args:
        place: The folder of one year, such as `VOCdevkit/VOC2012`. Without `SegmentationObject`, each class is one object.
        listing: The images. In a folder without classes, classes are numbered from 1 as VOC numbers them.

    Raises:
        DataError: An image has no file.
    """
    of_class = listing.files(place / "SegmentationClass", ".png", "a PNG file", flat=True)
    apart = place / "SegmentationObject"
    of_object = listing.files(apart, ".png", "a PNG file", flat=True) if apart.is_dir() else None
    numbers = listing.numbers_of(KEYS, f"'{place}'")

    def read(number: int, size: Size) -> Truth:
        classes = label_picture(of_class[number])
        objects = classes if of_object is None else label_picture(of_object[number])
        _check_size(classes, size)
        found = [(int(np.bincount(classes[objects == one]).argmax()), objects == one) for one in _values(objects)]
        kept = [(numbers[key], mask) for key, mask in found if key in numbers]
        return _truth([key for key, _ in kept], [mask for _, mask in kept], ignored=classes == IGNORED)

    return read


def pascal_part(place: Path, listing: Listing) -> ReadTruth:
    """Read objects and their parts from the files of Pascal-Part: `2008_000008.mat` for `2008_000008.jpg`.

    Args:
        place: The folder `Annotations_Part`.
        listing: The images. With parts, such as ("head", "torso"), only these pixels of an object count, and objects without
            any of them are left out; without, the whole object.

    Raises:
        DataError: An image has no file.

    Reference:
        Chen et al., "Detect What You Can", CVPR 2014 (arXiv 1406.2031).
    """
    from scipy.io import loadmat

    files = listing.files(place, ".mat", "a .mat file", flat=True)
    numbers = listing.numbers_of(KEYS, f"'{place}'")

    def read(number: int, size: Size) -> Truth:
        objects = _listed(loadmat(files[number], simplify_cells=True)["anno"]["objects"])
        kept = [(numbers[int(one["class_ind"])], _pixels(one, listing.parts)) for one in objects if one["class_ind"] in numbers]
        return _truth([key for key, mask in kept if mask.any()], [mask for _, mask in kept if mask.any()])

    return read


def _inner(place: Path, name: str) -> Path:
    return place / name if (place / name).is_dir() else place


def _object(element: Any, file: Path) -> tuple[str, list[float], bool]:
    """Class, corners and difficulty of an object. VOC counts pixels from 1, and the last ones belong to the box."""
    name, box = element.findtext("name"), element.find("bndbox")
    if name is None or box is None:
        raise ValueError(f"an object in '{file.name}' has no name or no bndbox")
    left, top, right, bottom = (float(box.findtext(side) or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
    if not (left <= right and top <= bottom):
        raise ValueError(f"a box in '{file.name}' is {[left, top, right, bottom]}")
    return name.strip(), [left - 1, top - 1, right, bottom], (element.findtext("difficult") or "0").strip() == "1"


def _own_numbers(names: set[str], file: Path) -> Mapping[str, int]:
    """VOC's own numbers.

    Raises:
        DataError: A name is not one of VOC's.
    """
    unknown = sorted(names - {*VOC_CLASSES})
    if unknown:
        raise DataError(
            f"'{file}' has the class {unknown[0]!r}, which is not one of Pascal VOC; give Annotations(..., classes={{name: "
            "number}), or class folders of these names"
        )
    return {name: number for number, name in KEYS.items()}


def _values(objects: Any) -> Any:
    """The numbers of objects: not those of the background and of ignored pixels."""
    values = np.unique(objects)
    return values[(values != 0) & (values != IGNORED)]


def _check_size(values: Any, size: Size) -> None:
    if values.shape != size[::-1]:
        raise ValueError(f"its labels have {values.shape[:2][::-1]} pixels, the image {size}")


def _truth(classes: Sequence[int], masks: Sequence[Any], ignored: Any = None) -> Truth:
    known = torch.from_numpy(np.stack(masks).astype(bool)) if masks else None
    return Truth(
        torch.tensor(list(classes), dtype=torch.long),
        known,
        ignored=None if ignored is None else torch.from_numpy(np.ascontiguousarray(ignored)),
    )


def _listed(given: Any) -> list[Any]:
    """The entries of a MATLAB struct array, which is a single mapping if there is one, and an empty array if there is none."""
    return [given] if isinstance(given, dict) else list(given)


def _pixels(one: Mapping[str, Any], parts: Sequence[str]) -> Any:
    """The pixels of an object, or of some of its parts."""
    whole = np.asarray(one["mask"]) > 0
    if not parts:
        return whole
    chosen = [np.asarray(part["mask"]) > 0 for part in _listed(one["parts"]) if part["part_name"] in parts]
    return np.any(chosen, axis=0) if chosen else np.zeros_like(whole)
