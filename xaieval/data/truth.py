"""Where the objects are: masks and boxes that go with images, for metrics that compare explanations with them."""

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

FARTHEST = 1e9  # pixels; no picture is as large


def read_masks(given: Any, count: int, size: tuple[int, ...]) -> Tensor | None:
    """The masks of a batch, `[N, H, W]` of bool, or `[N, D, H, W]` of volumes.

    Args:
        given: what the batch has: None, or bools of that form, with or without an axis of one channel.
        count: images of the batch, N.
        size: of the images: their height and width.

    Raises:
        DataError: they are no masks of these images.
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
        mend = "; of a label map make one by masks == label" if masks.dtype != torch.bool else ""
        raise DataError(f"masks are bool of the images' size, {[count, *size]} here; got {came}{mend}")
    return masks


def read_boxes(given: Any, count: int) -> list[Tensor] | None:
    """The boxes of a batch: for each image `[k, 4]`, `(x1, y1, x2, y2)` in pixels of the image that the model sees.

    Args:
        given: what the batch has: None, one `[k, 4]` an image, or `[N, 4]` for one box an image.
        count: images of the batch, N.

    Raises:
        DataError: they are no boxes of so many images.

    Example:
        >>> [boxes.tolist() for boxes in read_boxes([[2, 3, 9, 8], [0, 0, 4, 4]], count=2)]
        [[[2.0, 3.0, 9.0, 8.0]], [[0.0, 0.0, 4.0, 4.0]]]
    """
    if given is None:
        return None
    came = len(given) if isinstance(given, Sized) else type(given).__name__
    if came != count:
        raise DataError(f"a batch has {count} images but boxes of {came}; boxes [k, 4] of each image are expected")
    return [_boxes_of_one(boxes) for boxes in given]


def _tensor(given: Any, expected: str) -> Tensor:
    try:
        return given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError) as error:
        raise DataError(f"{expected}, got a {type(given).__name__} that is no array of them: {error}") from error


def _boxes_of_one(given: Any) -> Tensor:
    boxes = _tensor(given, "boxes of an image are [k, 4]").float()
    if boxes.numel() == 0:
        return torch.zeros(0, 4)
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"boxes of an image are [k, 4], (x1, y1, x2, y2) in its pixels; got {list(boxes.shape)}")
    if not (boxes[:, :2] <= boxes[:, 2:]).all():
        raise DataError(
            "boxes are (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2, which these are not; others are converted by "
            "torchvision.ops.box_convert(boxes, 'xywh', 'xyxy')"
        )
    return boxes


def inside_boxes(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """The pixels `[H, W]` whose centre is in one of the boxes `[k, 4]`, `(x1, y1, x2, y2)`.

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
    """A mask of any kind as white on black: whatever is not 0 belongs to the object; transparency does not count."""
    values: Any = np.asarray(mask)
    if values.ndim == 3:
        colours = values.shape[2] - (mask.mode in ("LA", "PA", "RGBA"))
        values = values[..., :colours].any(axis=2)
    return Image.fromarray((values != 0).astype(np.uint8) * 255)


def mask_files(folder: str | Path, names: Sequence[str]) -> Callable[[int], Image.Image]:
    """Reads the mask of a picture by its number: a PNG file of the same name in another folder.

    Args:
        folder: of the masks, with the same sub-folders as that of the pictures.
        names: of the pictures, as paths below their folder.

    Raises:
        DataError: the folder or a mask is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder '{folder}'; give one that has a PNG file for each image, under the image's own path")
    paths = [folder / Path(name).with_suffix(".png") for name in names]
    missing = [(name, path) for name, path in zip(names, paths, strict=True) if not path.is_file()]
    if missing:
        name, path = missing[0]
        raise DataError(f"no mask for {len(missing)} of {len(names)} images; the first, {name!r}, needs '{path}'")

    return lambda number: read_picture(paths[number], silhouette)


def coco_boxes(file: str | Path, names: Sequence[str]) -> list[Tensor]:
    """Boxes `[k, 4]` of each picture, `(x1, y1, x2, y2)` in the picture's pixels, out of a file in the format of COCO.

    Boxes of all categories are taken, those of crowds are not. A picture without annotations has no boxes.

    Args:
        file: JSON with `images` (`id`, `file_name`) and `annotations` (`image_id`, `bbox` as `(x, y, width, height)`).
        names: of the pictures, as paths below their folder; a `file_name` is such a path, or its last part if only one
            picture ends in it.

    Raises:
        DataError: the file cannot be read, or is about none of the pictures.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        named = {image["id"]: _name(image["file_name"]) for image in content["images"]}
        found = [(named[one["image_id"]], _corners(one["bbox"])) for one in content["annotations"] if not one.get("iscrowd")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"cannot read boxes from '{file}': {type(error).__name__}: {error}; a file as COCO has it is expected, with "
            "'images' (id, file_name) and 'annotations' (image_id, bbox)"
        ) from error
    numbers = _numbers(names)
    if not any(name in numbers for name in named.values()):
        first = next(iter(named.values()), None)
        raise DataError(f"'{file}' is about other images: the first is {first!r}, the folder has {names[0]!r}")
    boxes: list[list[list[float]]] = [[] for _ in names]
    for name, corners in found:
        if name in numbers:
            boxes[numbers[name]].append(corners)
    return [torch.tensor(own, dtype=torch.float32).view(-1, 4) for own in boxes]


def _name(file_name: Any) -> str:
    if not isinstance(file_name, str):
        raise TypeError(f"a file_name is text, got {file_name!r}")
    return file_name


def _corners(box: Sequence[float]) -> list[float]:
    x, y, width, height = map(float, box)
    if not (abs(x) <= FARTHEST and abs(y) <= FARTHEST and 0 <= width <= FARTHEST and 0 <= height <= FARTHEST):  # nor NaN
        raise ValueError(f"a bbox is (x, y, width, height) in pixels, got {list(box)}")
    return [x, y, x + width, y + height]


def _numbers(names: Sequence[str]) -> Mapping[str, int]:
    """The number of each picture by its path, and by the path's last part where that is its alone."""
    last = [name.rsplit("/", 1)[-1] for name in names]
    count = Counter(last)
    short = {part: number for number, part in enumerate(last) if count[part] == 1}
    return short | {name: number for number, name in enumerate(names)}
