"""Ground truth: masks and boxes of the objects in images, for metrics that compare explanation maps with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Mask

from xaieval.data.decoding import read_picture
from xaieval.errors import DataError

__all__ = ["boxes_around", "inside_boxes", "looks_like_shares", "mask_files", "read_boxes", "read_masks", "silhouette"]

UPRIGHT = (BoundingBoxFormat.XYXY, BoundingBoxFormat.XYWH, BoundingBoxFormat.CXCYWH)
BINARY = ({0}, {1}, {0, 1}, {255}, {0, 255})  # values of a torchvision mask that is no label map


def read_masks(given: Any, count: int, size: tuple[int, ...]) -> Tensor | None:
    """Read the masks of a batch, bool `[N, H, W]`, or `[N, D, H, W]` for volumes.

    Args:
        given: The masks in the batch: None, or bools of that form, with or without a channel axis of size 1. In a list, an
            image can have a mask `[k, H, W]` of each of its k objects. Masks of `torchvision.tv_tensors` can also have the
            values 0 and 1, or 0 and 255.
        count: Number of images in the batch, N.
        size: Height and width of the images.

    Raises:
        DataError: The masks do not match the images.
    """
    if given is None:
        return None
    if count == 0:
        return torch.zeros(0, *size, dtype=torch.bool)
    masks = _tensor(_of_objects(given, size), "masks are bool of the images' size")
    if masks.ndim == len(size) + 2 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.dtype != torch.bool or masks.shape != (count, *size):
        came = f"{str(masks.dtype).removeprefix('torch.')} {list(masks.shape)}"
        advice = "; give masks != 0 for masks of one object, or a label map as 'truth'" if masks.dtype != torch.bool else ""
        raise DataError(f"masks are bool of the images' size, {[count, *size]} here; got {came}{advice}")
    return masks


def _of_objects(given: Any, size: tuple[int, ...]) -> Any:
    """The masks with one for each image, where a list has the masks of each object, or masks of torchvision."""
    if isinstance(given, Mask):
        return _bools(given)
    if not isinstance(given, list | tuple) or not all(isinstance(one, Tensor | np.ndarray) for one in given):
        return given
    masks = [_bools(one) if isinstance(one, Mask) else torch.as_tensor(one) for one in given]
    if len(size) == 2 and any(one.ndim == 3 for one in masks) and all(one.dtype == torch.bool for one in masks):
        masks = [one.any(dim=0) if one.ndim == 3 else one for one in masks]
    return torch.stack(masks) if len({(one.shape, one.dtype) for one in masks}) == 1 else given


def _bools(mask: Mask) -> Tensor:
    """A mask of torchvision as bools if its values are those of one object; a label map is unchanged, and refused later."""
    plain = mask.as_subclass(Tensor)
    return plain != 0 if {*plain.unique().tolist()} in BINARY or not plain.numel() else plain


def read_boxes(given: Any, count: int, size: Sequence[int] | None = None) -> list[Tensor] | None:
    """Read the boxes of a batch: for each image `[k, 4]`, `(x1, y1, x2, y2)` in pixels of the model's input.

    Args:
        given: The boxes in the batch: None, one `[k, 4]` for each image, or `[N, 4]` for one box per image. Boxes of
            `torchvision.tv_tensors` can have any format; of a rotated one, the upright box around it is taken. If their canvas
            has another size than the image but the same proportions, they are scaled.
        count: Number of images in the batch, N.
        size: Height and width of the images.

    Raises:
        DataError: The boxes have another form, are not one entry per image, or belong to images of other proportions.

    Example:
        >>> [boxes.tolist() for boxes in read_boxes([[2, 3, 9, 8], [0, 0, 4, 4]], count=2)]
        [[[2.0, 3.0, 9.0, 8.0]], [[0.0, 0.0, 4.0, 4.0]]]
    """
    if given is None:
        return None
    came = len(given) if isinstance(given, Sized) else type(given).__name__
    if came != count:
        raise DataError(f"a batch has {count} images but boxes of {came}; boxes [k, 4] for each image are expected")
    if isinstance(given, BoundingBoxes):  # its rows would be plain numbers, without a format
        given = _corners(given, size)
    return [_boxes_of_one(_corners(boxes, size) if isinstance(boxes, BoundingBoxes) else boxes) for boxes in given]


def _corners(boxes: BoundingBoxes, size: Sequence[int] | None) -> Tensor:
    """Boxes of torchvision as `(x1, y1, x2, y2)` in pixels of an image of this height and width."""
    form, canvas = boxes.format, boxes.canvas_size
    floats = BoundingBoxes(boxes.as_subclass(Tensor).float(), format=form, canvas_size=canvas)
    rotated = form not in UPRIGHT
    goal = BoundingBoxFormat.XYXYXYXY if rotated else BoundingBoxFormat.XYXY
    corners = functional.convert_bounding_box_format(floats, new_format=goal).as_subclass(Tensor)
    if rotated:
        points = corners.view(-1, 4, 2)
        corners = torch.cat([points.amin(dim=1), points.amax(dim=1)], dim=1)
    if size is None or canvas == tuple(size):
        return corners
    if not same_proportions(canvas, size):
        raise DataError(
            f"boxes have a canvas of {canvas[0]} x {canvas[1]} pixels (height x width), and their image has {size[0]} x "
            f"{size[1]}, which has other proportions; resize and crop boxes and image in one transform of torchvision"
        )
    return corners * corners.new_tensor([size[1] / canvas[1], size[0] / canvas[0]] * 2)


def same_proportions(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one size is the other one enlarged, up to rounding to whole pixels.

    Example:
        >>> same_proportions((480, 640), (224, 299)), same_proportions((480, 640), (224, 224))
        (True, False)
    """
    small, large = sorted((one, other), key=lambda size: size[0] * size[1])
    share = [short / long for short, long in zip(small, large, strict=True)]
    return abs(small[1] - large[1] * share[0]) <= 1 or abs(small[0] - large[0] * share[1]) <= 1


def looks_like_shares(boxes: Sequence[Tensor]) -> bool:
    """Whether boxes are in shares of the image instead of pixels: there are some, and all coordinates lie in [0, 1].

    Args:
        boxes: For each image `[k, 4]`, as in `Batch.boxes`.

    Example:
        >>> looks_like_shares([torch.tensor([[0.1, 0.2, 0.5, 0.6]])]), looks_like_shares([torch.zeros(0, 4)])
        (True, False)
    """
    known = [one for one in boxes if one.numel()]
    return bool(known) and all(bool(((one >= 0) & (one <= 1)).all()) for one in known)


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


def boxes_around(masks: Tensor) -> Tensor:
    """The box around the pixels of each mask, `(x1, y1, x2, y2)`, `[k, 4]`, on the CPU; zeros for a mask without pixels.

    Args:
        masks: Bool `[k, H, W]`; of volumes `[k, D, H, W]`, whose boxes are those of all slices together.

    Example:
        >>> boxes_around(torch.tensor([[[False, True, True], [False, True, False]]]))
        tensor([[1., 0., 3., 2.]])
    """
    flat = masks.cpu().flatten(1, -3).any(dim=1) if masks.ndim > 3 else masks.cpu()
    sides = []
    for other in (1, 2):  # the columns that have a pixel, then the rows
        seen = flat.any(dim=other)
        place = torch.arange(1, seen.shape[1] + 1)
        last = (seen * place).amax(dim=1)
        first = torch.where(seen, place - 1, seen.shape[1]).amin(dim=1)
        sides.append((first.minimum(last), last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], dim=1).float()


def silhouette(mask: Image.Image) -> Image.Image:
    """Convert a mask of any mode to white on black: non-zero pixels belong to the object; transparency is ignored."""
    values: Any = np.asarray(mask)
    if values.ndim == 3:
        colours = values.shape[2] - (mask.mode in ("LA", "PA", "RGBA"))
        values = values[..., :colours].any(axis=2)
    return Image.fromarray((values != 0).astype(np.uint8) * 255)


def mask_files(folder: str | Path, names: Sequence[str]) -> Callable[[int], Image.Image]:
    """Return a function that reads the mask of an image's number: a PNG file with the same name in another folder.

    Args:
        folder: The folder of the masks, with the same sub-folders as the images.
        names: The paths of the images below their folder.

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
