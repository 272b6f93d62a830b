"""Objects from annotations in COCO's format: polygons, run lengths and boxes, each with its category."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from xaieval.data.annotations.listing import Listing, ReadTruth, Size
from xaieval.data.coco import corners_of, entries_of, id_of, pictures_of, scaled
from xaieval.data.truth import inside_boxes
from xaieval.data.truth_by_class import Truth
from xaieval.errors import DataError

__all__ = ["coco", "pixels_of"]

FINE = 5  # polygons are drawn so many times as large, and the middle of each pixel decides
MOST_PIXELS = 10**8  # of an enlarged polygon


def coco(place: Path, listing: Listing) -> ReadTruth:
    """Read the objects of a COCO file: the pixels of their segmentations, or their boxes where there is none.

    The number of a category is that of the class folder of its name; in a folder without classes, its id. Crowds count neither
    as objects nor as background.

    Args:
        place: A JSON file with `images` (`id`, `file_name`), `annotations` (`image_id`, `category_id`, `bbox`, and perhaps
            `segmentation` and `iscrowd`) and `categories` (`id`, `name`).
        listing: The images, all of which the file lists.

    Raises:
        DataError: The file cannot be read, does not list all images, or none of its categories has a number.
    """
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
        entries = entries_of(content)
        categories = {one["id"]: one["name"] for one in content["categories"]}
        objects: dict[str, list[Mapping[str, Any]]] = {image_id: [] for image_id in entries}
        for one in content["annotations"]:
            objects[id_of(one["image_id"])].append(one)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"cannot read objects from '{place}': {type(error).__name__}: {error}; a file in COCO format is expected, with "
            "'images' (id, file_name), 'annotations' (image_id, category_id, segmentation or bbox) and 'categories' (id, name)"
        ) from error
    by_number = {number: image_id for image_id, number in pictures_of(entries, listing.names, place).items()}
    numbers = listing.numbers_of(categories, f"'{place}'")

    def read(number: int, size: Size) -> Truth:
        image_id = by_number[number]
        frame = entries[image_id][1] or size
        known = [one for one in objects[image_id] if one.get("category_id") in numbers]
        truth = _truth(known, numbers, frame)
        return truth if frame == size else _scaled(truth, frame, size, listing.names[number], place)

    return read


def pixels_of(segmentation: Any, size: Size) -> Any:
    """The pixels of a segmentation, bool `[H, W]`.

    Args:
        segmentation: Polygons, each `[x1, y1, x2, y2, ...]`; or run lengths, a mapping with "size" `(H, W)` and "counts", a
            list or COCO's compressed text.
        size: Width and height of the image.

    Raises:
        ValueError: The run lengths are those of another size.

    Example:
        >>> pixels_of([[1, 0, 3, 0, 3, 1, 1, 1]], (4, 2)).astype(int)
        array([[0, 1, 1, 0],
               [0, 0, 0, 0]])
        >>> pixels_of({"size": (2, 4), "counts": [2, 1, 1, 1, 3]}, (4, 2)).astype(int)
        array([[0, 1, 1, 0],
               [0, 0, 0, 0]])
    """
    width, height = size
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        runs = np.array(_runs(counts) if isinstance(counts, str | bytes) else counts, dtype=np.int64)
        if list(segmentation["size"]) != [height, width] or (runs < 0).any() or runs.sum() != width * height:
            raise ValueError(
                f"a segmentation has {int(runs.sum())} pixels of {segmentation['size']}, its image {[height, width]}"
            )
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    found = np.zeros((height, width), dtype=bool)
    for polygon in segmentation:
        _fill(found, np.reshape(np.array(polygon, dtype=np.float64), (-1, 2)))
    return found


def _fill(found: Any, corners: Any) -> None:
    """Add a polygon's pixels: those whose middle is inside."""
    height, width = found.shape
    low = np.clip(np.floor(corners.min(axis=0)), 0, (width, height)).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0)), 0, (width, height)).astype(int)
    columns, rows = (high - low).tolist()
    if columns < 1 or rows < 1 or len(corners) < 3:
        return
    fine = FINE if columns * rows * FINE**2 < MOST_PIXELS else 1
    canvas = Image.new("L", (columns * fine, rows * fine))
    # Pillow takes points as the middles of pixels, and draws the border too.
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in ((corners - low) * fine - 0.5).tolist()], fill=1)
    found[low[1] : high[1], low[0] : high[0]] |= np.asarray(canvas)[fine // 2 :: fine, fine // 2 :: fine] == 1


def _runs(text: str | bytes) -> list[int]:
    """Run lengths from COCO's text: five bits a character, lowest first; from the third on the difference to two before."""
    runs: list[int] = []
    value = shift = 0
    for character in text.encode() if isinstance(text, str) else text:
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _truth(objects: list[Mapping[str, Any]], numbers: Mapping[Any, int], size: Size) -> Truth:
    """The truth of an image of this size."""
    classes = torch.tensor([numbers[one["category_id"]] for one in objects], dtype=torch.long)
    if not objects:
        return Truth(classes)
    boxes = torch.tensor([corners_of(one["bbox"]) for one in objects]) if all("bbox" in one for one in objects) else None
    masks = None
    if any(one.get("segmentation") for one in objects):
        masks = torch.stack([torch.from_numpy(_pixels(one, size).copy()) for one in objects])
    crowd = torch.tensor([bool(one.get("iscrowd")) for one in objects])
    return Truth(classes, masks, boxes, crowd)


def _pixels(one: Mapping[str, Any], size: Size) -> Any:
    if one.get("segmentation"):
        return pixels_of(one["segmentation"], size)
    return inside_boxes(torch.tensor([corners_of(one["bbox"])]), size[::-1]).numpy()


def _scaled(truth: Truth, frame: Size, size: Size, name: str, file: Path) -> Truth:
    """The truth of an image of another size but the same proportions.

    Raises:
        DataError: The proportions differ.
    """
    boxes = scaled(torch.zeros(0, 4) if truth.boxes is None else truth.boxes, frame, size, name, file)
    masks = None
    if truth.masks is not None:
        pictures = [Image.fromarray(mask.numpy()).resize(size, Image.Resampling.NEAREST) for mask in truth.masks]
        masks = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    return Truth(truth.classes, masks, None if truth.boxes is None else boxes, truth.crowd)
