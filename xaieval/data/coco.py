"""Boxes of objects from annotations in COCO's format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xaieval.data.truth import looks_like_shares, same_proportions
from xaieval.errors import DataError

__all__ = ["coco_boxes", "corners_of", "entries_of", "id_of", "pictures_of", "scaled"]

FARTHEST = 1e9  # pixels; larger coordinates are errors
BEYOND = 1.1  # a box that ends beyond this share of the image does not fit in it

Size = tuple[int, int]  # width and height


def coco_boxes(
    file: str | Path, names: Sequence[str], size_of: Callable[[int], Size | None] = lambda number: None
) -> list[Tensor]:
    """Read the boxes `[k, 4]` of each image, `(x1, y1, x2, y2)` in the image's pixels, from a COCO file.

    Boxes of all categories are read, except crowds; segmentations are not read. An image that the file lists without
    annotations has no objects. Where the file gives an image another `width` and `height` in the same proportions, its boxes
    are scaled.

    Args:
        file: JSON with `images` (`id`, `file_name`) and `annotations` (`image_id`, `bbox` as `(x, y, width, height)`).
        names: The paths of the images below their folder. A `file_name` is such a path, the end of it, or a longer path with
            such an end, if that leaves only one image.
        size_of: Width and height of the upright image of a number; None if unknown.

    Raises:
        DataError: The file cannot be read, or its boxes do not fit the images: it does not list all images, sizes
            contradict the images, or boxes are not in pixels.
    """
    entries, annotated = _content(file)
    pictures = pictures_of(entries, names, file)
    boxes: list[list[list[float]]] = [[] for _ in names]
    for image_id, corners in annotated:
        if image_id not in entries:
            raise DataError(f"'{file}' has a box of the image {image_id!r}, which is not the id of one of its images")
        if image_id in pictures:
            boxes[pictures[image_id]].append(corners)
    found = [torch.tensor(corners, dtype=torch.float32).view(-1, 4) for corners in boxes]
    if looks_like_shares(found):
        raise DataError(
            f"all boxes of '{file}' lie in [0, 1]; multiply them by the image's width and height: boxes are in pixels"
        )
    sizes = {number: size_of(number) for number, corners in enumerate(boxes) if corners}
    frames = {pictures[image_id]: frame for image_id, (_, frame) in entries.items() if image_id in pictures and frame}
    for number, size in sizes.items():
        if size is not None and frames.get(number, size) != size:
            found[number] = scaled(found[number], frames[number], size, names[number], file)
    _check_inside(found, sizes, file)
    return found


def _content(file: str | Path) -> tuple[dict[str, tuple[str, Size | None]], list[tuple[str, list[float]]]]:
    """The name and size of each image by its id, and the image's id and corners of each box."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        entries = entries_of(content)
        boxes = [(id_of(one["image_id"]), corners_of(one["bbox"])) for one in content["annotations"] if not one.get("iscrowd")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"cannot read boxes from '{file}': {type(error).__name__}: {error}; a file in COCO format is expected, with "
            "'images' (id, file_name) and 'annotations' (image_id, bbox)"
        ) from error
    return entries, boxes


def entries_of(content: Any) -> dict[str, tuple[str, Size | None]]:
    """The name and size of each image by its id, from the content of a file."""
    entries = {id_of(image["id"]): (_name(image["file_name"]), _frame(image)) for image in content["images"]}
    if len(entries) < len(content["images"]):
        raise ValueError("two images have the same id")
    return entries


def id_of(value: Any) -> str:
    """An id as text, because some tools write the same id once as a number and once as text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"an id is a whole number or text, got {value!r}")
    return str(value)


def _name(file_name: Any) -> str:
    if not isinstance(file_name, str):
        raise TypeError(f"a file_name is text, got {file_name!r}")
    return file_name.replace("\\", "/").removeprefix("./")


def _frame(image: Any) -> Size | None:
    """Width and height that the file gives an image, if it does."""
    size = image.get("width"), image.get("height")
    return (int(size[0]), int(size[1])) if all(size) else None


def corners_of(box: Sequence[float]) -> list[float]:
    """The corners `(x1, y1, x2, y2)` of a box `(x, y, width, height)`."""
    x, y, width, height = map(float, box)
    if not (abs(x) <= FARTHEST and abs(y) <= FARTHEST and 0 <= width <= FARTHEST and 0 <= height <= FARTHEST):  # NaN fails too
        raise ValueError(f"a bbox is (x, y, width, height) in pixels, got {list(box)}")
    return [x, y, x + width, y + height]


def pictures_of(entries: dict[str, tuple[str, Size | None]], names: Sequence[str], file: str | Path) -> dict[str, int]:
    """The number of our image for each image of the file that is one of ours.

    Raises:
        DataError: An image is not listed.
    """
    numbers = _numbers({name for name, _ in entries.values()}, names)
    if not numbers:
        first = next((name for name, _ in entries.values()), None)
        raise DataError(f"'{file}' has boxes of other images: its first is {first!r}, the folder has {names[0]!r}")
    listed = {*numbers.values()}
    missing = [name for number, name in enumerate(names) if number not in listed]
    if missing:
        raise DataError(
            f"'{file}' does not list {len(missing)} of {len(names)} images, such as {missing[0]!r}, by a file_name of their "
            "own; list images without objects too, without annotations, and move other images out of the folder"
        )
    return {image_id: numbers[name] for image_id, (name, _) in entries.items() if name in numbers}


def _numbers(file_names: set[str], names: Sequence[str]) -> dict[str, int]:
    """The number of the image that each file name means: its path, an end of only its path, or a longer path."""
    count = Counter(end for name in names for end in _ends(name))
    by_path = {name: number for number, name in enumerate(names)}
    by_end = {end: number for name, number in by_path.items() for end in _ends(name) if count[end] == 1} | by_path
    found = {name: by_end[name] for name in file_names if name in by_end}
    longer = {
        name: number for name in file_names - {*found} for end in _ends(name)[:0:-1] if (number := by_path.get(end)) is not None
    }
    times = Counter([*found.values(), *longer.values()])  # of two names that differ, it is not known which one is meant
    return {name: number for name, number in (found | longer).items() if times[number] == 1}


def _ends(path: str) -> list[str]:
    """The path, and what remains without its first folders: of "a/b/c", also "b/c" and "c"."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def scaled(boxes: Tensor, frame: Size, size: Size, name: str, file: str | Path) -> Tensor:
    """Boxes in pixels of an image of this size, from those of an image of another size.

    Raises:
        DataError: The proportions differ.
    """
    turned = frame == size[::-1]
    if turned or not same_proportions(frame, size):
        reason = "; the sides are swapped, as if the boxes were drawn before its EXIF data turned the image" if turned else ""
        raise DataError(
            f"'{file}' says that {name!r} has {frame[0]} x {frame[1]} pixels, but the image has {size[0]} x {size[1]}"
            f"{reason}; give boxes of this image, with its width and height"
        )
    return boxes * boxes.new_tensor([size[0] / frame[0], size[1] / frame[1]] * 2)


def _check_inside(boxes: Sequence[Tensor], sizes: dict[int, Size | None], file: str | Path) -> None:
    """Refuse boxes most of which end beyond their image, as corners do that are read as sizes."""
    ends = [one[:, 2:] / one.new_tensor(size) for number, one in enumerate(boxes) if (size := sizes.get(number)) is not None]
    beyond = torch.cat([(one > BEYOND).any(dim=1) for one in ends]) if ends else torch.zeros(1)
    if beyond.float().mean() > 0.5:
        raise DataError(
            f"{int(beyond.sum())} of {len(beyond)} boxes of '{file}' end beyond their image; a bbox in COCO format is (x, y, "
            "width, height) in pixels, not two corners"
        )
