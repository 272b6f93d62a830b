"""Whatever a loader gives, as batches of one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xaieval.errors import DataError, TargetError

__all__ = ["Batch", "Failure", "check_images", "has_ids", "read_batch", "read_batches", "split_batch"]

Failure = tuple[str, int | None, str]

IMAGE_KEYS = ("image", "images", "pixel_values")
LABEL_KEYS = ("label", "labels")
ID_KEYS = ("id", "ids")


@dataclass(frozen=True)
class Batch:
    """Images with what is known of them.

    Attributes:
        images: `[N, C, H, W]`, or volumes `[N, C, D, H, W]`; N is 0 if none of the batch could be read.
        labels: true classes `[N]`, or which of K classes are true, `[N, K]` zeros and ones; or None.
        ids: N names.
        failed: id, label and reason of each image that could not be read.
    """

    images: Tensor
    labels: Tensor | None
    ids: list[str]
    failed: list[Failure]

    def __len__(self) -> int:
        return len(self.ids)


def read_batches(loader: Iterable[Any], batch_size: int | None = None, max_images: int | None = None) -> Iterator[Batch]:
    """Batches of at most `batch_size` images out of any loader.

    Args:
        loader: gives `images [N, C, H, W]`, `(images, labels)`, or mappings with `image` / `images` / `pixel_values`, and
            optionally `label` / `labels` (`[N]` integers, or `[N, K]` zeros and ones where several classes can be true),
            `id` / `ids`, and `failed` (a list of `(id, label or None, reason)` for images that could not be read).
        batch_size: larger batches are split; as they come unless told.
        max_images: stop after so many.

    Raises:
        DataError: a batch is of none of these forms, an id comes twice, or the loader is empty.
        TargetError: labels are neither one integer an image nor zeros and ones of each class.
    """
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


def check_images(images: Any) -> Tensor:
    """The images, if they can be a batch.

    Raises:
        DataError: with what came and what was expected.
    """
    came = type(images).__name__
    if isinstance(images, Tensor):
        if images.ndim in (4, 5) and images.is_floating_point() and 0 not in images.shape[1:]:
            return images
        came = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        if images.ndim == 3:
            came += "; a loader gives batches: for one batch use [images], for a single image images[None]"
        elif images.ndim > 4:
            came += "; volumes are [N, C, D, H, W]"
    raise DataError(f"images are a floating-point tensor [N, C, H, W], normalised as the model expects; got {came}")


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
    labels, ids, failed = None, None, []
    images: Any = item
    if isinstance(item, Mapping):
        images = _first(item, IMAGE_KEYS)
        labels, ids, failed = _first(item, LABEL_KEYS), _first(item, ID_KEYS), item.get("failed", [])
        if images is None and failed:
            images = torch.zeros(0, 3, 1, 1)
        elif images is None:
            raise DataError(f"a batch has the keys {', '.join(map(str, item))}; one of {', '.join(IMAGE_KEYS)} is expected")
    elif isinstance(item, tuple | list) and len(item) in (1, 2):
        images, labels = item[0], item[1] if len(item) == 2 else None
    elif isinstance(item, tuple | list):
        raise DataError(f"a batch is a {type(item).__name__} of {len(item)}; images, (images, labels) or a mapping is expected")
    images = check_images(images)
    ids = [f"{prefix}{start + i}" for i in range(len(images))] if ids is None else [str(i) for i in ids]
    if len(ids) != len(images):
        raise DataError(f"a batch has {len(images)} images but {len(ids)} ids; one id an image is expected")
    return Batch(images, _labels(labels, len(images)), ids, [(str(i), _class(label), reason) for i, label, reason in failed])


def _labels(labels: Any, count: int) -> Tensor | None:
    if labels is None:
        return None
    labels = torch.as_tensor(labels) if count else torch.zeros(0, dtype=torch.long)
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
        part = slice(start, min(start + step, count))
        labels = None if batch.labels is None else batch.labels[part]
        yield Batch(batch.images[part], labels, batch.ids[part], failed if start == 0 else [])
