"""Whatever a loader gives, as batches of one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xaieval.data.truth import inside_boxes, read_boxes, read_masks
from xaieval.errors import DataError, TargetError

__all__ = ["Batch", "Failure", "check_images", "has_ids", "read_batch", "read_batches", "split_batch"]

Failure = tuple[str, int | None, str]

IMAGE_KEYS = ("image", "images", "pixel_values")
LABEL_KEYS = ("label", "labels")
ID_KEYS = ("id", "ids", "__key__")  # the last one is webdataset's
MASK_KEYS = ("mask", "masks")
BOX_KEYS = ("boxes",)

MOST_COLOURS = 4  # channels of a picture, by which an array with channels last is recognised
LEAST_SIDE = 16  # pixels; what is smaller may be anything


@dataclass(frozen=True)
class Batch:
    """Images with what is known of them.

    Attributes:
        images: `[N, C, H, W]`, or volumes `[N, C, D, H, W]`; N is 0 if none of the batch could be read.
        labels: true classes `[N]`, or which of K classes are true, `[N, K]` zeros and ones; or None.
        ids: N names.
        failed: id, label and reason of each image that could not be read.
        masks: where the object is on each image, `[N, H, W]` of bool, or None.
        boxes: around the objects of each image, N times `[k, 4]`, `(x1, y1, x2, y2)` in pixels of the image, or None.
    """

    images: Tensor
    labels: Tensor | None
    ids: list[str]
    failed: list[Failure]
    masks: Tensor | None = None
    boxes: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def objects(self) -> Tensor | None:
        """Where the object is on each image, `[N, H, W]` of bool: by masks, else inside of boxes; None without either."""
        if self.masks is not None or self.boxes is None:
            return self.masks
        return torch.stack([inside_boxes(boxes, self.images.shape[-2:]) for boxes in self.boxes])

    def part(self, start: int, stop: int, failed: list[Failure]) -> Batch:
        """The images from one number to another, with the failures given."""
        own = slice(start, stop)
        labels, masks = (None if given is None else given[own] for given in (self.labels, self.masks))
        boxes = None if self.boxes is None else self.boxes[own]
        return Batch(self.images[own], labels, self.ids[own], failed, masks, boxes)

    def copied(self) -> Batch:
        """The same with images in memory of their own: where a part of a batch begins in memory, bits can depend on."""
        return replace(self, images=self.images.clone(memory_format=torch.contiguous_format))

    def to_mapping(self) -> dict[str, Any]:
        """As a loader gives it, ids included."""
        return {
            "images": self.images,
            "labels": self.labels,
            "ids": self.ids,
            "failed": self.failed,
            "masks": self.masks,
            "boxes": self.boxes,
        }


def read_batches(loader: Iterable[Any], batch_size: int | None = None, max_images: int | None = None) -> Iterator[Batch]:
    """Batches of at most `batch_size` images out of any loader.

    Args:
        loader: gives `images [N, C, H, W]`, `(images, labels)`, or mappings with `image` / `images` / `pixel_values`, and
            optionally `label` / `labels` (`[N]` integers, or `[N, K]` zeros and ones where several classes can be true),
            `id` / `ids` / `__key__`, `mask` / `masks` (`[N, H, W]` of bool), `boxes` (N times `[k, 4]`, or `[N, 4]`), and
            `failed` (a list of `(id, label or None, reason)` for images that could not be read). Tensors may be NumPy arrays.
        batch_size: larger batches are split; as they come unless told.
        max_images: stop after so many.

    Raises:
        DataError: a batch is of none of these forms, an id comes twice, or the loader is empty.
        TargetError: labels are neither one integer an image nor zeros and ones of each class.
    """
    _refuse_arrays(loader)
    seen: set[str] = set()
    count = 0
    for item in loader:
        batch = read_batch(item, count)
        _check_new(seen, batch)
        left = None if max_images is None else max_images - count
        count += len(batch) + len(batch.failed)
        yield from split_batch(batch, batch_size, left)
        if max_images is not None and count >= max_images:
            break
    if count == 0:
        raise DataError("the loader is empty: it gave no images; an iterator that was read before has to be made anew")


def _refuse_arrays(loader: Any) -> None:
    """A pair of arrays would be read as two batches, the second of which is strange."""
    pair = isinstance(loader, tuple | list) and len(loader) == 2 and all(isinstance(one, np.ndarray | Tensor) for one in loader)
    if pair and loader[0].ndim == 4 and loader[1].ndim < 3:
        raise DataError(
            "images and labels as two whole arrays are no loader; xaieval.data.arrays(images, labels) makes one, and "
            "[(images, labels)] is a loader of one batch"
        )


def check_images(images: Any) -> Tensor:
    """The images as a tensor, if they can be a batch; arrays in float64, which is NumPy's default, become float32.

    Args:
        images: a tensor or a NumPy array `[N, C, H, W]`, or a sequence of `[C, H, W]` of one size.

    Raises:
        DataError: with what came and what was expected.
    """
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.dtype == object):
        images = _stacked(list(images))
    came = type(images).__name__
    if isinstance(images, Tensor | np.ndarray):
        channels_last = _channels_last(images.shape)
        given = images if isinstance(images, Tensor) else _from_numpy(images)
        if given.ndim in (4, 5) and given.is_floating_point() and 0 not in given.shape[1:] and not channels_last:
            return given
        came = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}{_mend(given, channels_last)}"
    raise DataError(f"images are a floating-point tensor [N, C, H, W], normalised as the model expects; got {came}")


def _from_numpy(images: np.ndarray[Any, Any]) -> Tensor:
    """The array's own memory where a tensor can have it."""
    if images.dtype == np.float64:
        images = images.astype(np.float32)
    usable = images.flags.writeable and images.dtype.isnative and all(stride >= 0 for stride in images.strides)
    native = images.dtype.newbyteorder("=")
    return torch.from_numpy(images if usable else np.array(images, dtype=native, order="C"))


def _stacked(images: Any) -> Any:
    """Images `[C, H, W]` of one size as one batch; anything else as it is."""
    if not len(images) or not all(_is_image(image) for image in images):
        return images
    shapes = list(dict.fromkeys(tuple(image.shape) for image in images))
    if len(shapes) > 1:
        several = " and ".join(str(list(shape)) for shape in shapes[:2])
        raise DataError(
            f"a batch has images of several sizes, such as {several}; have the loader's collate function bring them to one "
            "size (resize or pad), or make batches of one image"
        )
    return torch.stack(images) if isinstance(images[0], Tensor) else np.stack(images)


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 3


def _channels_last(shape: Sequence[int]) -> bool:
    """Whether a batch is as pictures lie in memory: colours last, and where channels are expected a side of a picture."""
    return len(shape) == 4 and 1 <= shape[3] <= MOST_COLOURS and min(shape[1:3]) >= LEAST_SIDE


def _mend(images: Tensor, channels_last: bool) -> str:
    if images.ndim == 3:
        return "; a loader gives batches: for one batch use [images], for a single image images[None]"
    if images.ndim > 4:
        return "; volumes are [N, C, D, H, W]"
    mends = ["move the channels to the second place, as in images.transpose(0, 3, 1, 2) of an array"] if channels_last else []
    if images.dtype == torch.uint8:
        mends.append("scale and normalise the bytes, as in (images / 255 - mean) / std")
    return "".join(f"; {mend}" for mend in mends)


def has_ids(item: Any) -> bool:
    """Whether a batch names its images itself, rather than by their position."""
    return isinstance(item, Mapping) and _first(item, ID_KEYS) is not None


def read_batch(item: Any, start: int, prefix: str = "") -> Batch:
    """One batch of a loader.

    Args:
        item: what the loader gave, in one of the forms that `read_batches` takes.
        start: how many images came before: images without ids get their position in the data.
        prefix: of those ids.

    Raises:
        DataError: the batch is of none of the forms.
        TargetError: labels are neither one integer an image nor zeros and ones of each class.

    Example:
        >>> read_batch(torch.zeros(2, 3, 8, 8), start=6).ids
        ['6', '7']
    """
    given = _named(item)
    failed = [(str(name), _class(label), reason) for name, label, reason in given.get("failed") or ()]
    images = _first(given, IMAGE_KEYS)
    if images is None and failed:
        images = torch.zeros(0, 3, 1, 1)
    images = check_images(images)
    count, size = len(images), tuple(images.shape[2:])
    ids = _first(given, ID_KEYS)
    ids = [f"{prefix}{start + i}" for i in range(count)] if ids is None else [str(name) for name in ids]
    if len(ids) != count:
        raise DataError(f"a batch has {count} images but {len(ids)} ids; one id an image is expected")
    _check_text([*ids, *(name for name, _, _ in failed)])
    masks, boxes = read_masks(_first(given, MASK_KEYS), count, size), read_boxes(_first(given, BOX_KEYS), count)
    return Batch(images, _labels(_first(given, LABEL_KEYS), count), ids, failed, masks, boxes)


def _check_text(ids: Iterable[str]) -> None:
    """Refuse ids that rows cannot hold: names that are no UTF-8, and NUL, at which pandas takes a text to end."""
    for name in ids:
        if "\0" in name:
            raise DataError(f"the id {name!r} holds a NUL, at which tables cut it off; give the image another one")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the id {name!r} is no text in UTF-8, which rows are written in; give the image another one"
            ) from error


def _named(item: Any) -> Mapping[Any, Any]:
    """A batch of any form as a mapping."""
    if isinstance(item, Mapping):
        if not any(key in item for key in IMAGE_KEYS) and not item.get("failed"):
            raise DataError(f"a batch has the keys {', '.join(map(str, item))}; one of {', '.join(IMAGE_KEYS)} is expected")
        return item
    if not isinstance(item, tuple | list) or (len(item) and all(_is_image(one) for one in item)):
        return {"images": item}
    if len(item) not in (1, 2):
        raise DataError(f"a batch is a {type(item).__name__} of {len(item)}; images, (images, labels) or a mapping is expected")
    return {"images": item[0], "labels": item[1] if len(item) == 2 else None}


def _labels(labels: Any, count: int) -> Tensor | None:
    if labels is None:
        return None
    try:
        labels = np.array(labels) if isinstance(labels, np.ndarray) else labels  # one's own, which may be written to
        labels = torch.as_tensor(labels) if count else torch.zeros(0, dtype=torch.long)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TargetError(f"labels are one integer an image, [{count}] here; got {labels!r}") from error
    if labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1 and ((labels == 0) | (labels == 1)).all():
        return labels.long()
    if labels.shape != (count,) or labels.is_floating_point():
        raise TargetError(f"labels are one integer an image, [{count}] here; got {labels.dtype} {list(labels.shape)}")
    return labels.long()


def _class(label: Any) -> int | None:
    """The label of an image that could not be read, if it is one class."""
    return None if label is None or torch.as_tensor(label).ndim else int(label)


def _first(item: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _check_new(seen: set[str], batch: Batch) -> None:
    for image_id in [*batch.ids, *(failure[0] for failure in batch.failed)]:
        if image_id in seen:
            raise DataError(f"two images have the id {image_id!r}; rows are told apart by id, so each needs its own")
        seen.add(image_id)


def split_batch(batch: Batch, size: int | None, left: int | None) -> Iterator[Batch]:
    """A batch in parts of at most `size` images, cut off after `left` in all; unreadable ones count first."""
    failed = batch.failed[:left]
    count = len(batch) if left is None else max(0, min(len(batch), left - len(failed)))
    step = size or max(count, 1)
    for start in range(0, max(count, 1), step):
        yield batch.part(start, min(start + step, count), failed if start == 0 else [])
