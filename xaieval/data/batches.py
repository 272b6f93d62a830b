"""Bring the batches of any loader into one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xaieval.config.groups import Groups
from xaieval.data.groups import check_weights, group_lookup, read_groups
from xaieval.data.labels import OtherLabels, boxes_in_labels, has_label_maps, read_labels
from xaieval.data.truth import inside_boxes, read_boxes, read_masks
from xaieval.data.truth_in_batches import find_truth
from xaieval.errors import DataError

__all__ = ["Batch", "Failure", "check_images", "grouped", "has_ids", "read_batch", "read_batches", "split_batch"]

Failure = tuple[str, int | None, str]

IMAGE_KEYS = ("image", "images", "pixel_values")
LABEL_KEYS = ("label", "labels")
ID_KEYS = ("id", "ids", "__key__")  # "__key__" is the key of webdataset
MASK_KEYS = ("mask", "masks")
BOX_KEYS = ("boxes", "bbox_xyxy")  # the latter in torchgeo
GROUP_KEYS = ("group", "groups")

MOST_COLOURS = 4  # most channels of an array that counts as channels-last
LEAST_SIDE = 16  # pixels; the layout of smaller arrays is ambiguous


@dataclass(frozen=True)
class Batch:
    """Images with their labels, ids, groups, and masks or boxes.

    Attributes:
        images: Images `[N, C, H, W]` or volumes `[N, C, D, H, W]`; N is 0 if no image of the batch could be read.
        labels: True classes `[N]`, negative where an image has none; or zeros and ones for K classes `[N, K]`; or labels of
            another form, which only a target function uses; or None.
        ids: N names.
        failed: Id, label and reason for each image that could not be read.
        masks: Masks of the objects, bool `[N, H, W]`, or None.
        boxes: Boxes around the objects: for each image `[k, 4]`, `(x1, y1, x2, y2)` in pixels of the image; or None.
        group: The name of the group that each image belongs to, `[N]`; or None.
        truth: Where the objects of each class are: for each image an entry as `xaieval.data.truth_by_class.truth_of` reads it;
            or None. It has priority over masks and boxes, which do not contain the class of an object.
    """

    images: Tensor
    labels: Tensor | OtherLabels | None
    ids: list[str]
    failed: list[Failure]
    masks: Tensor | None = None
    boxes: list[Tensor] | None = None
    group: list[str] | None = None
    truth: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def objects(self) -> Tensor | None:
        """The object masks, bool `[N, H, W]`: the given masks, else the insides of the boxes; None without either."""
        if self.masks is not None or self.boxes is None:
            return self.masks
        return torch.stack([inside_boxes(boxes, self.images.shape[-2:]) for boxes in self.boxes])

    def part(self, start: int, stop: int, failed: list[Failure]) -> Batch:
        """Select the images from `start` to `stop`, with the given failures."""
        images = slice(start, stop)
        labels, masks = None if self.labels is None else self.labels[images], None if self.masks is None else self.masks[images]
        boxes, group = None if self.boxes is None else self.boxes[images], None if self.group is None else self.group[images]
        truth = None if self.truth is None else self.truth[images]
        return Batch(self.images[images], labels, self.ids[images], failed, masks, boxes, group, truth)

    def copied(self) -> Batch:
        """Copy the images to their own memory, because bits of results can depend on where a part of a batch starts."""
        return replace(self, images=self.images.clone(memory_format=torch.contiguous_format))

    def to_mapping(self) -> dict[str, Any]:
        """Return the batch as a mapping, a form that `read_batches` accepts."""
        return {
            "images": self.images,
            "labels": self.labels,
            "ids": self.ids,
            "failed": self.failed,
            "masks": self.masks,
            "boxes": self.boxes,
            "group": self.group,
            "truth": self.truth,
        }


def read_batches(
    loader: Iterable[Any], batch_size: int | None = None, max_images: int | None = None, prefix: str = ""
) -> Iterator[Batch]:
    """Yield batches of at most `batch_size` images from any loader.

    Args:
        loader: Yields `images [N, C, H, W]`, `(images, labels)`, or mappings with `image` / `images` / `pixel_values`, and
            optionally `label` / `labels` (integers `[N]`, or zeros and ones `[N, K]` if an image can have several classes;
            other forms are kept for target functions), `id` / `ids` / `__key__`, `mask` / `masks` (bool `[N, H, W]`; label maps
            of another type are labels), `boxes` / `bbox_xyxy` (N times `[k, 4]`, or `[N, 4]`), `group` / `groups` (one text or
            number per image), `truth` (the objects of each image with their classes, see `xaieval.data.truth_by_class`), and
            `failed` (a list of `(id, label or None, reason)` for images that could not be read). Tensors can be NumPy arrays.
        batch_size: Larger batches are split. Default: the loader's batches.
        max_images: Stop after this number of images.
        prefix: The prefix of the names of images without ids.

    Raises:
        DataError: A batch has none of these forms, two images have the same id, or the loader is empty.
    """
    _refuse_arrays(loader)
    known_ids: set[str] = set()
    count = 0
    for item in loader:
        batch = read_batch(item, count, prefix)
        _check_new(known_ids, batch)
        left = None if max_images is None else max_images - count
        count += len(batch) + len(batch.failed)
        yield from split_batch(batch, batch_size, left)
        if max_images is not None and count >= max_images:
            break
    if count == 0:
        raise DataError("the loader is empty: it yielded no images; an iterator can be read only once, so create a new one")


def grouped(batches: Iterator[Batch], groups: Groups) -> Iterator[Batch]:
    """Yield the batches with the group of each image; a file of groups is read before the first batch.

    Args:
        batches: From `read_batches`.
        groups: Which images belong together. It overrides the groups of the batches.

    Raises:
        DataError: An image has no group; or some batches have groups and others have none; or means are to be weighted by
            groups and there are none.

    Example:
        >>> batches = read_batches([{"image": torch.zeros(2, 3, 8, 8), "id": ["lake1", "lake2"]}])
        >>> next(grouped(batches, Groups("[a-z]+"))).group
        ['lake', 'lake']
    """
    lookup = None if groups.by is None else group_lookup(groups.by)
    first: Batch | None = None
    for batch in batches:
        if lookup is not None:
            batch = replace(batch, group=lookup(batch.ids, _classes(batch.labels)))
        if len(batch):
            first = first or batch
            check_weights(first.group is not None, groups)
            _check_alike(first, batch)
        yield batch


def _refuse_arrays(loader: Any) -> None:
    """Refuse a pair of arrays, which would be read as a batch of images and a wrong second batch."""
    pair = isinstance(loader, tuple | list) and len(loader) == 2 and all(isinstance(one, np.ndarray | Tensor) for one in loader)
    if pair and loader[0].ndim == 4 and loader[1].ndim < 3:
        raise DataError(
            "an array of images and an array of labels are not a loader; xaieval.data.arrays(images, labels) makes one, and "
            "[(images, labels)] is a loader of one batch"
        )


def check_images(images: Any) -> Tensor:
    """Return the images as a tensor if they are a valid batch. Float64 arrays, NumPy's default, become float32.

    Args:
        images: A tensor or NumPy array `[N, C, H, W]`, of volumes `[N, C, D, H, W]`, or a sequence of single ones of one size.

    Raises:
        DataError: The images are not a valid batch.
    """
    if isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.dtype == object):
        images = _stacked(list(images))
    came = type(images).__name__
    if isinstance(images, Tensor | np.ndarray):
        channels_last = _channels_last(images.shape)
        tensor = images if isinstance(images, Tensor) else _from_numpy(images)
        if tensor.ndim in (4, 5) and tensor.is_floating_point() and 0 not in tensor.shape[1:] and not channels_last:
            return tensor
        came = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}{_advice(tensor, channels_last)}"
    raise DataError(f"images are a floating-point tensor [N, C, H, W], normalised as the model expects; got {came}")


def _from_numpy(images: np.ndarray[Any, Any]) -> Tensor:
    """Convert an array to a tensor that shares its memory if possible."""
    if images.dtype == np.float64:
        images = images.astype(np.float32)
    usable = images.flags.writeable and images.dtype.isnative and all(stride >= 0 for stride in images.strides)
    native = images.dtype.newbyteorder("=")
    return torch.from_numpy(images if usable else np.array(images, dtype=native, order="C"))


def _stacked(images: Any) -> Any:
    """Stack images `[C, H, W]` or volumes `[C, D, H, W]` of one size to a batch; return anything else unchanged."""
    if not len(images) or not (all(map(_is_image, images)) or all(map(_is_volume, images))):
        return images
    shapes = list(dict.fromkeys(tuple(image.shape) for image in images))
    if len(shapes) > 1:
        several = " and ".join(str(list(shape)) for shape in shapes[:2])
        raise DataError(
            f"a batch has images of several sizes, such as {several}; bring them to one size in the loader's collate function "
            "(resize or pad), or use batches of one image"
        )
    return torch.stack(images) if isinstance(images[0], Tensor) else np.stack(images)


def _is_image(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 3


def _is_volume(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim == 4


def _channels_last(shape: Sequence[int]) -> bool:
    """Whether a batch has its channels last: few channels in the last place, and the side of an image in the second."""
    return len(shape) == 4 and 1 <= shape[3] <= MOST_COLOURS and min(shape[1:3]) >= LEAST_SIDE


def _advice(images: Tensor, channels_last: bool) -> str:
    if images.ndim == 3:
        return "; a loader yields batches: for one batch use [images], for a single image images[None]"
    if images.ndim > 4:
        return "; volumes are [N, C, D, H, W]"
    steps = ["move the channels to the second place, as in images.transpose(0, 3, 1, 2) of an array"] if channels_last else []
    if images.dtype == torch.uint8:
        steps.append("scale and normalise the bytes, as in (images / 255 - mean) / std")
    elif not images.is_floating_point():
        steps.append("make them floats and normalise each channel, as in (images - mean) / std, in the unit of mean and std")
    return "".join(f"; {step}" for step in steps)


def has_ids(item: Any) -> bool:
    """Whether a batch contains ids for its images."""
    return isinstance(item, Mapping) and _first(item, ID_KEYS) is not None


def read_batch(item: Any, start: int, prefix: str = "") -> Batch:
    """Read one batch of a loader.

    Args:
        item: A batch in one of the forms that `read_batches` accepts.
        start: The number of images before this batch. Images without ids are named by their position in the data.
        prefix: The prefix of those names.

    Raises:
        DataError: The batch has none of these forms.

    Example:
        >>> read_batch(torch.zeros(2, 3, 8, 8), start=6).ids
        ['6', '7']
    """
    fields = _named(item)
    failed = [(str(name), _class(label), reason) for name, label, reason in fields.get("failed") or ()]
    images = _first(fields, IMAGE_KEYS)
    if images is None and failed:
        images = torch.zeros(0, 3, 1, 1)
    images = check_images(images)
    count, size = len(images), tuple(images.shape[2:])
    ids = _first(fields, ID_KEYS)
    ids = [f"{prefix}{start + i}" for i in range(count)] if ids is None else [str(name) for name in ids]
    if len(ids) != count:
        raise DataError(f"a batch has {count} images but {len(ids)} ids; one id per image is expected")
    _check_text([*ids, *(name for name, _, _ in failed)])
    labels, given, around = (_first(fields, keys) for keys in (LABEL_KEYS, MASK_KEYS, BOX_KEYS))
    truth = find_truth(fields, labels, given, around, size, count)
    if has_label_maps(given):  # classes of pixels, which are no objects
        masks, labels = None, given if labels is None else labels
    else:
        masks = read_masks(given, count, size)
    boxes = read_boxes(around, count, size[-2:])
    if masks is None and boxes is None and (known := boxes_in_labels(labels, count)) is not None:
        with suppress(DataError):  # nobody has called them the boxes of the objects
            boxes = read_boxes(known, count, size[-2:])
    group = read_groups(_first(fields, GROUP_KEYS), ids)
    return Batch(images, read_labels(labels, count), ids, failed, masks, boxes, group, truth)


def _check_text(ids: Iterable[str]) -> None:
    """Refuse ids that rows cannot hold: names that are not valid UTF-8, and NUL, where pandas cuts a text off."""
    for name in ids:
        if "\0" in name:
            raise DataError(f"the id {name!r} contains a NUL character, where tables cut it off; give the image another id")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"the id {name!r} cannot be encoded as UTF-8, which rows are written in; give the image another id"
            ) from error


def _named(item: Any) -> Mapping[Any, Any]:
    """Return a batch of any form as a mapping."""
    if isinstance(item, Mapping):
        if not any(key in item for key in IMAGE_KEYS) and not item.get("failed"):
            raise DataError(
                f"a batch has the keys {', '.join(map(str, item))}; one of {', '.join(IMAGE_KEYS)} is expected: rename the key "
                "in the data set, or let the loader's collate function return (images, labels)"
            )
        return item
    if not isinstance(item, tuple | list) or (len(item) and all(_is_image(one) for one in item)):
        return {"images": item}
    if len(item) not in (1, 2):
        raise DataError(f"a batch is a {type(item).__name__} of {len(item)}; images, (images, labels) or a mapping is expected")
    return {"images": item[0], "labels": item[1] if len(item) == 2 else None}


def _class(label: Any) -> int | None:
    """The label of an unreadable image if it is a single class."""
    classes = read_labels([label], 1)
    return int(classes) if isinstance(classes, Tensor) and classes.ndim == 1 and classes >= 0 else None


def _first(item: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if key in item), None)


def _check_new(known_ids: set[str], batch: Batch) -> None:
    for image_id in [*batch.ids, *(failure[0] for failure in batch.failed)]:
        if image_id in known_ids:
            raise DataError(f"two images have the id {image_id!r}; rows are identified by id, so each image needs its own")
        known_ids.add(image_id)


def _check_alike(first: Batch, batch: Batch) -> None:
    """Refuse a run in which some images have groups and others have none."""
    if (first.group is None) != (batch.group is None):
        one, other = (first, batch) if first.group is None else (batch, first)
        raise DataError(
            f"image {one.ids[0]!r} has no group, but image {other.ids[0]!r} has one; give 'group' in every batch, and an image "
            "that belongs to no other a group of its own, such as its id"
        )


def _classes(labels: Any) -> list[int | None] | None:
    """One class per image, None where there is none; None for labels of another form."""
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        return None
    return [label if label >= 0 else None for label in labels.tolist()]


def split_batch(batch: Batch, size: int | None, left: int | None) -> Iterator[Batch]:
    """Split a batch into parts of at most `size` images, and stop after `left` images; unreadable images count first."""
    failed = batch.failed[:left]
    count = len(batch) if left is None else max(0, min(len(batch), left - len(failed)))
    step = size or max(count, 1)
    for start in range(0, max(count, 1), step):
        yield batch.part(start, min(start + step, count), failed if start == 0 else [])
