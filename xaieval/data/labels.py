"""Labels of a batch in any form: read if they are classes, otherwise kept unchanged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.tv_tensors import Mask

from xaieval.errors import TargetError

__all__ = ["Labels", "OtherLabels", "boxes_in_labels", "has_label_maps", "one_class_each", "read_labels"]

LARGEST = 2**53  # whole numbers above it are not exact in float64


@dataclass(frozen=True)
class OtherLabels:
    """Labels of N images that are neither one class per image nor zeros and ones for each class. Only a function uses them.

    Attributes:
        given: The labels as the loader gave them.
        count: The number of images, N.
    """

    given: Any
    count: int

    def __getitem__(self, images: slice) -> OtherLabels:
        """The labels of some of the images, if the values have an entry for each image."""
        values, chosen = self.given, range(self.count)[images]
        sliced = isinstance(values, Tensor | np.ndarray | list | tuple) and _length(values) == self.count
        return OtherLabels(values[images] if sliced else values, len(chosen))

    @property
    def came(self) -> str:
        """The form of the given labels, for messages."""
        values = self.given
        if isinstance(values, Tensor | np.ndarray):
            return f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}"
        if isinstance(values, Mapping):
            return f"a mapping with {', '.join(map(repr, values))}"
        inner = f" of {type(values[0]).__name__}" if isinstance(values, Sequence) and len(values) else ""
        return f"a {type(values).__name__}{inner}"


Labels = Tensor | OtherLabels | None


def read_labels(given: Any, count: int) -> Labels:
    """Read the labels of a batch of N images.

    Args:
        given: One class per image: integers, whole floats or bools, `[N]` or `[N, 1]`, as a tensor, an array or a list; None
            and NaN are images without a label. Or zeros and ones for each class, `[N, K]`. Or None, or anything else.
        count: N.

    Returns:
        Classes `[N]`, negative where an image has none; or zeros and ones `[N, K]`; both int64. Labels of another form are
        returned as `OtherLabels`, because most runs do not need them.

    Example:
        >>> read_labels([2, None, 0], 3), read_labels([[1.0], [0.0]], 2), read_labels(["cat", "dog"], 2).came
        (tensor([ 2, -1,  0]), tensor([1, 0]), 'a list of str')
    """
    if given is None or isinstance(given, OtherLabels):
        return given
    if not count:
        return torch.zeros(0, dtype=torch.long)
    table = _table(given)
    classes = None if table is None else _classes(table, count)
    return OtherLabels(given, count) if classes is None else classes


def one_class_each(labels: Labels, wanted_by: str, remedy: str) -> Tensor:
    """The labels `[N]`, if they are one class per image.

    Args:
        labels: As `read_labels` returns them.
        wanted_by: What needs them, for the message.
        remedy: What to do instead.

    Raises:
        TargetError: There are none, or they have another form.
    """
    if labels is None:
        raise TargetError(f"{wanted_by} needs labels, but the data has none; {remedy}")
    if isinstance(labels, OtherLabels):
        raise TargetError(
            f"{wanted_by} needs one class per image: integers [{labels.count}], such as [3, 0]; the labels are {labels.came}, "
            f"and zeros and ones for each class, [{labels.count}, K], would name several; {remedy}"
        )
    if labels.ndim > 1:
        raise TargetError(
            f"{wanted_by} needs one class per image, but the labels are zeros and ones for each class, {list(labels.shape)}; "
            f"{remedy}"
        )
    return labels


def boxes_in_labels(labels: Any, count: int) -> list[Any] | None:
    """The boxes of labels as torchvision's detectors take them: one mapping per image with "boxes" `[k, 4]` and "labels".

    Other mappings with boxes, in which they may have another form, are not used.
    """
    if isinstance(labels, Mapping) and {"boxes", "labels"} <= labels.keys() and _length(labels["boxes"]) == count:
        return list(labels["boxes"])  # as the default of a DataLoader joins them
    if not isinstance(labels, list | tuple) or len(labels) != count or not count:
        return None
    if all(isinstance(one, Mapping) and {"boxes", "labels"} <= one.keys() for one in labels):
        return [one["boxes"] for one in labels]
    return None


def has_label_maps(masks: Any) -> bool:
    """Whether masks hold numbers of classes, as for segmentation, and not whether a pixel belongs to the object.

    Masks of `torchvision.tv_tensors` with the values 0 and 1, or 0 and 255, are those of objects.
    """
    if isinstance(masks, Mask):
        return not {*masks.unique().tolist()} <= {0, 1} and not {*masks.unique().tolist()} <= {0, 255}
    if isinstance(masks, list | tuple) and masks:
        return any(has_label_maps(one) for one in masks)
    return isinstance(masks, Tensor | np.ndarray) and masks.ndim > 1 and masks.dtype not in (torch.bool, bool, object)


def _table(given: Any) -> Tensor | None:
    """Labels as numbers; None if they are no table of numbers. NaN stands for None."""
    try:
        if isinstance(given, Tensor):
            return given
        if isinstance(given, np.ndarray) and given.dtype != object:
            return torch.as_tensor(np.array(given))  # a copy, because the array may be read-only
        items: Any = given.tolist() if isinstance(given, np.ndarray) else given
        if isinstance(items, Iterable) and not isinstance(items, Mapping | str):
            items = [math.nan if one is None else one for one in items]
        table = torch.as_tensor(items)
        return torch.as_tensor(items, dtype=torch.float64) if table.is_floating_point() else table
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def _classes(table: Tensor, count: int) -> Tensor | None:
    """Classes `[N]` with -1 for NaN, or zeros and ones `[N, K]`; None for other numbers."""
    if table.is_complex():
        return None
    if table.ndim == 2 and len(table) == count and table.shape[1] > 1:
        return table.long() if bool(((table == 0) | (table == 1)).all()) else None
    if table.shape not in ((count,), (count, 1)) and not (table.ndim == 0 and count == 1):
        return None
    table = table.reshape(count)
    if not table.is_floating_point():
        return table.long()
    missing = table.isnan()
    whole = missing | ((table == table.round()) & (table.abs() < LARGEST))
    return table.masked_fill(missing, -1).long() if bool(whole.all()) else None


def _length(values: Any) -> int | None:
    """The number of entries; None of a single number."""
    if isinstance(values, Tensor | np.ndarray) and not values.ndim:
        return None
    return len(values) if isinstance(values, Sized) else None
