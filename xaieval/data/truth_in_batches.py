"""The places of objects in a batch, in the forms of common data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xaieval.data.labels import OtherLabels, read_labels
from xaieval.data.truth_by_class import BOXES, CLASSES, EXPECTED, MASKS, plain_tensor
from xaieval.errors import DataError

__all__ = ["find_truth"]

TRUTH = "truth"
TARGET_KEYS = ("target", "targets")  # as torchvision calls them; here they are read only where they say where objects are
SAYS_WHERE = {*MASKS, *BOXES}


def find_truth(fields: Mapping[Any, Any], labels: Any, masks: Any, boxes: Any, size: Sequence[int], count: int) -> Any:
    """The truth by class of a batch, one entry for each image; None if the batch has none. Entries are read by `truth_of`.

    Args:
        fields: The batch.
        labels: Its labels in any form.
        masks: Its masks in any form.
        boxes: Its boxes in any form.
        size: Height and width of the images.
        count: The number of images.

    Raises:
        DataError: The batch has the key "truth", and not one entry for each image.
    """
    if fields.get(TRUTH) is not None:
        return _one_each(fields[TRUTH], count)
    named = (
        *(_targets(fields[key], size, count) for key in TARGET_KEYS if key in fields),
        _paired(fields.get("class_labels"), fields.get("mask_labels"), "masks", len(size) + 1, count),
        _paired(labels, masks, "masks", len(size) + 1, count),
        _paired(labels, boxes, "boxes", 2, count),
        None if _of_two_values(masks) else _label_maps(masks, size, count),
        # Masks and boxes without classes that have a name of their own come before what labels may hold.
        *([_targets(labels, size, count)] if masks is None and boxes is None else []),
    )
    return next((found for found in named if found is not None), None)


def _one_each(given: Any, count: int) -> Any:
    came = len(given) if isinstance(given, Sized) and not isinstance(given, Mapping) else None
    if came != count:
        kind = type(given).__name__ if came is None else came
        raise DataError(f"a batch has {count} images but the truth of {kind}; one entry for each image is expected: {EXPECTED}")
    return list(given)


def _targets(given: Any, size: Sequence[int], count: int) -> list[Any] | None:
    """Targets as torchvision's detectors and segmentation networks take them."""
    if isinstance(given, Mapping) and given.keys() & SAYS_WHERE:  # as the default of a DataLoader joins them
        held: dict[str, Any] = {key: value for key, value in given.items() if _is_sequence(value) and len(value) == count}
        if {*CLASSES} & held.keys() and held.keys() & SAYS_WHERE:
            return [{key: value[number] for key, value in held.items()} for number in range(count)]
    if isinstance(given, list | tuple) and len(given) == count and all(isinstance(one, Mapping) for one in given):
        says = [one.keys() & SAYS_WHERE and "labels" in one for one in given]
        empty = [not one.keys() & {*SAYS_WHERE, *CLASSES} for one in given]
        if any(says) and all(a or b for a, b in zip(says, empty, strict=True)):
            return list(given)
    return None if isinstance(given, Mapping) else _label_maps(given, size, count)


def _paired(labels: Any, places: Any, what: str, axes: int, count: int) -> list[Any] | None:
    """Classes of objects beside their masks or boxes: as many of the one as of the other for every image."""
    if isinstance(labels, Tensor | np.ndarray) and not isinstance(read_labels(labels, count), OtherLabels):
        return None  # one class per image, or zeros and ones for each class
    if not all(_is_sequence(one) and len(one) == count for one in (labels, places)) or not count:
        return None
    if not all(_one_class_each(known, at, axes) for known, at in zip(labels, places, strict=True)):
        return None
    return [{"labels": known, what: at} for known, at in zip(labels, places, strict=True)]


def _is_sequence(given: Any) -> bool:
    return isinstance(given, list | tuple) or (isinstance(given, Tensor | np.ndarray) and given.ndim > 0)


def _one_class_each(classes: Any, places: Any, axes: int) -> bool:
    """Whether these are classes `[k]` of objects of which there are k places, arrays of so many axes in one."""
    if isinstance(classes, Tensor | np.ndarray):
        numbers = classes.ndim == 1 and "float" not in str(classes.dtype)
    else:
        numbers = isinstance(classes, list | tuple) and all(isinstance(one, int) for one in classes)
    return (
        numbers
        and getattr(places, "ndim", axes if isinstance(places, list | tuple) else 0) == axes
        and len(classes) == len(places)
    )


def _label_maps(given: Any, size: Sequence[int], count: int) -> list[Any] | None:
    """Label maps of the images' size; None for anything else, such as masks of objects."""
    if isinstance(given, list | tuple) and given and all(isinstance(one, Tensor | np.ndarray) for one in given):
        apart = [_label_maps(one[None], size, 1) for one in given]
        found = [one[0] for one in apart if one is not None]
        return found if len(found) == len(given) == count else None
    if not isinstance(given, Tensor | np.ndarray) or not _are_numbers(given) or not count:
        return None
    maps = plain_tensor(given)
    if maps.ndim == len(size) + 2 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if tuple(maps.shape) != (count, *size) or (maps.is_floating_point() and not bool((maps == maps.round()).all())):
        return None
    return list(maps)


def _of_two_values(given: Any) -> bool:
    """Whether these are numbers of which only two occur, as in masks that were meant to be bool.

    Whether 1 or 255 means "object" or a class cannot be known, so that `read_masks` asks.
    """
    if isinstance(given, list | tuple) and given and all(isinstance(one, Tensor | np.ndarray) for one in given):
        values: set[float] = set().union(*(_values(one) for one in given))
    else:
        values = _values(given) if isinstance(given, Tensor | np.ndarray) else set()
    return values in ({1}, {0, 1}, {255}, {0, 255})


def _values(given: Tensor | np.ndarray[Any, Any]) -> set[float]:
    return set(plain_tensor(given).unique().tolist()) if _are_numbers(given) and len(given) else set()


def _are_numbers(given: Tensor | np.ndarray[Any, Any]) -> bool:
    """Whether these are numbers, not truth values or words."""
    if isinstance(given, Tensor):
        return given.dtype != torch.bool and not given.is_complex()
    return given.dtype.kind in "iuf"
