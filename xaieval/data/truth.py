"""Ground truth: masks and boxes of the objects in images, for metrics that compare explanation maps with them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xaieval.data.decoding import read_picture
from xaieval.errors import DataError

__all__ = ["coco_boxes", "inside_boxes", "mask_files", "read_boxes", "read_masks", "silhouette"]

FARTHEST = 1e9  # pixels; larger coordinates are errors


def read_masks(given: Any, count: int, size: tuple[int, ...]) -> Tensor | None:
    """Read the masks of a batch, bool `[N, H, W]`, or `[N, D, H, W]` for volumes.

    Args:
        given: The masks in the batch: None, or bools of that form, with or without a channel axis of size 1.
        count: Number of images in the batch, N.
        size: Height and width of the images.

    Raises:
        DataError: The masks do not match the images.
    """
    if given is None:
        return None
    if count == 0:
        return torch.zeros(0, *size, dtype=torch.bool)
    masks = _tensor(given, "masks are bool of the images' size")
    if masks.ndim == len(size) + 2 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.dtype != torch.bool or masks.shape != (count, *size):
        came = f"{str(masks.dtype).removeprefix('torch.')} {list(masks.shape)}"
        advice = "; to convert a label map, use masks == label" if masks.dtype != torch.bool else ""
        raise DataError(f"masks are bool of the images' size, {[count, *size]} here; got {came}{advice}")
    return masks


def read_boxes(given: Any, count: int) -> list[Tensor] | None:
    """Read the boxes of a batch: for each image `[k, 4]`, `(x1, y1, x2, y2)` in pixels of the model's input.

    Args:
        given: The boxes in the batch: None, one `[k, 4]` for each image, or `[N, 4]` for one box per image.
        count: Number of images in the batch, N.

    Raises:
        DataError: The boxes have another form, or are not one entry per image.

    Example:
        >>> [boxes.tolist() for boxes in read_boxes([[2, 3, 9, 8], [0, 0, 4, 4]], count=2)]
        [[[2.0, 3.0, 9.0, 8.0]], [[0.0, 0.0, 4.0, 4.0]]]
    """
    if given is None:
        return None
    came = len(given) if isinstance(given, Sized) else type(given).__name__
    if came != count:
        raise DataError(f"a batch has {count} images but boxes of {came}; boxes [k, 4] for each image are expected")
    return [_boxes_of_one(boxes) for boxes in given]


def _tensor(given: Any, expected: str) -> Tensor:
    try:
        return given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError) as error:
        raise DataError(f"{expected}, got a {type(given).__name__} that is not an array: {error}") from error


def _boxes_of_one(given: Any) -> Tensor:
    boxes = _tensor(given, "boxes of an image are [k, 4]").float()
    if boxes.numel() == 0:
        return torch.zeros(0, 4)
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"boxes of an image are [k, 4], (x1, y1, x2, y2) in its pixels; got {list(boxes.shape)}")
    if not (boxes[:, :2] <= boxes[:, 2:]).all():
        raise DataError(
            "boxes are (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, which these are not; convert other forms with "
            "torchvision.ops.box_convert(boxes, 'xywh', 'xyxy')"
        )
    return boxes


def inside_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return a mask `[H, W]` of the pixels whose centre is inside one of the boxes `[k, 4]`, `(x1, y1, x2, y2)`.

    Example:
        >>> inside_boxes(torch.tensor([[1.0, 0.0, 3.0, 1.0]]), (2, 4)).int()
        tensor([[0, 1, 1, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    y, x = (torch.arange(side, device=boxes.device) + 0.5 for side in size)
    left, top, right, bottom = (column[:, None] for column in boxes.unbind(dim=1))
    across, down = (left <= x) & (x < right), (top <= y) & (y < bottom)
    return (down[:, :, None] & across[:, None, :]).any(dim=0)


def silhouette(mask: Image.Image) -> Image.Image:
    """Convert a mask of any mode to white on black: non-zero pixels belong to the object; transparency is ignored."""
    values: Any = np.asarray(mask)
    if values.ndim == 3:
        colours = values.shape[2] - (mask.mode in ("LA", "PA", "RGBA"))
        values = values[..., :colours].any(axis=2)
    return Image.fromarray((values != 0).astype(np.uint8) * 255)


def mask_files(folder: str | Path, names: Sequence[str]) -> Callable[[int], Image.Image]:
    """Return a function that reads the mask of a picture's number: a PNG file with the same name in another folder.

    Args:
        folder: The folder of the masks, with the same sub-folders as the pictures.
        names: The paths of the pictures below their folder.

    Raises:
        DataError: The folder or a mask is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder '{folder}'; give a folder with a PNG file for each image, at the path of the image")
    paths = [folder / Path(name).with_suffix(".png") for name in names]
    missing = [(name, path) for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        name, path = missing[0]
        raise DataError(f"no mask for {len(missing)} of {len(names)} images; the first, {name!r}, needs '{path}'")

    return lambda number: read_picture(paths[number], silhouette)


def coco_boxes(file: str | Path, names: Sequence[str]) -> list[Tensor]:
    """Read the boxes `[k, 4]` of each picture, `(x1, y1, x2, y2)` in the picture's pixels, from a COCO file.

    Boxes of all categories are read, except crowds. A picture without annotations has no boxes.

    Args:
        file: JSON with `images` (`id`, `file_name`) and `annotations` (`image_id`, `bbox` as `(x, y, width, height)`).
        names: The paths of the pictures below their folder. A `file_name` is such a path, or its last part if that is unique.

    Raises:
        DataError: The file cannot be read, or contains none of the pictures.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        named = {image["id"]: _name(image["file_name"]) for image in content["images"]}
        annotated = [
            (named[one["image_id"]], _corners(one["bbox"])) for one in content["annotations"] if not one.get("iscrowd")
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"cannot read boxes from '{file}': {type(error).__name__}: {error}; a file in COCO format is expected, with "
            "'images' (id, file_name) and 'annotations' (image_id, bbox)"
        ) from error
    numbers = _numbers(names)
    if not any(name in numbers for name in named.values()):
        first = next(iter(named.values()), None)
        raise DataError(f"'{file}' has boxes of other images: its first is {first!r}, the folder has {names[0]!r}")
    boxes: list[list[list[float]]] = [[] for _ in names]
    for name, corners in annotated:
        if name in numbers:
            boxes[numbers[name]].append(corners)
    return [torch.tensor(corners, dtype=torch.float32).view(-1, 4) for corners in boxes]


def _name(file_name: Any) -> str:
    if not isinstance(file_name, str):
        raise TypeError(f"a file_name is text, got {file_name!r}")
    return file_name


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = map(float, box)
    if not (abs(x) <= FARTHEST and abs(y) <= FARTHEST and 0 <= width <= FARTHEST and 0 <= height <= FARTHEST):  # NaN fails too
        raise ValueError(f"a bbox is (x, y, width, height) in pixels, got {list(box)}")
    return [x, y, x + width, y + height]


def _numbers(names: Sequence[str]) -> Mapping[str, int]:
    """The number of each picture by its path, and by the last part of the path if that is unique."""
    last = [name.rsplit("/", 1)[-1] for name in names]
    count = Counter(last)
    short = {part: number for number, part in enumerate(last) if count[part] == 1}
    return short | {name: number for number, name in enumerate(names)}
