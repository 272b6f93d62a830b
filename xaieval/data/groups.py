"""Which group each image belongs to: given by the batches, or found by class, by name, in a file or in a mapping."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from xaieval.config.groups import BY_CLASS, Groups, is_group_file
from xaieval.errors import DataError, advice

__all__ = ["BY_BATCH", "check_weights", "find_groups", "group_lookup", "group_source", "read_groups"]

Lookup = Callable[[Sequence[str], Sequence[int | None] | None], list[str]]

ID_COLUMNS = ("id", "image_id")
COLUMN = "group"
BY_BATCH = "batch"  # the source of groups that the loader's batches carry


def read_groups(given: Any, ids: Sequence[str]) -> list[str] | None:
    """The groups of a batch as names: one text, number or truth value per image.

    Args:
        given: A list, an array or a tensor `[N]`; None for a batch without groups.
        ids: Of the N images.

    Raises:
        DataError: There is not one value per image, a value is missing, or it is no name.

    Example:
        >>> read_groups(np.array([7.0, 7.0]), ["a", "b"])
        ['7', '7']
    """
    if given is None:
        return None
    if isinstance(given, str | bytes | Mapping) or not hasattr(given, "__len__") or getattr(given, "ndim", 1) != 1:
        came = f"shape {list(given.shape)}" if hasattr(given, "shape") else repr(given)
        raise DataError(f"the groups of a batch are one value per image, [N]; got {came}")
    values = given.tolist() if isinstance(given, Tensor | np.ndarray) else list(given)
    if len(values) != len(ids):
        raise DataError(f"a batch has {len(ids)} images but {len(values)} groups; one group per image is expected")
    return [_name(value, image_id) for value, image_id in zip(values, ids, strict=True)]


def group_lookup(by: str | os.PathLike[str] | Mapping[str, Any]) -> Lookup:
    """A function from the ids and labels of images to their groups; a file is read once, here.

    Args:
        by: As in `xaieval.config.groups.Groups`, not None.

    Raises:
        DataError: The file cannot be read or has no such columns, an id has two groups, or a group is missing.
            The function raises it for an image without a group.

    Example:
        >>> group_lookup(r"^(.*)_frame")(["video7_frame12", "video7_frame13"], None)
        ['video7', 'video7']
        >>> group_lookup("class")(["a", "b"], [3, 3])
        ['3', '3']
    """
    if isinstance(by, Mapping):
        return _in_table({str(name): _name(group, str(name)) for name, group in by.items()}, "the mapping of groups=")
    if is_group_file(by):
        return _in_table(_read_file(Path(by)), f"'{os.fspath(by)}'")
    return _by_class if by == BY_CLASS else _by_expression(str(by))


def find_groups(ids: Sequence[str], labels: Sequence[int | None] | None, groups: Groups) -> list[str] | None:
    """The group of each image; None if `groups` takes what the batches carry.

    Args:
        ids: Of N images.
        labels: The class of each image, negative or None where there is none; None if there are no labels.
        groups: Which images belong together.

    Raises:
        DataError: An image has no group.
    """
    return None if groups.by is None else group_lookup(groups.by)(ids, labels)


def group_source(groups: Groups) -> str:
    """What gives the images their groups: "batch", "class", the expression, the name of the file, or "mapping".

    Example:
        >>> group_source(Groups("places.csv")), group_source(Groups({"a": 1}))
        ('places.csv', 'mapping')
    """
    if groups.by is None:
        return BY_BATCH
    return "mapping" if isinstance(groups.by, Mapping) else os.fspath(groups.by)


def check_weights(has_groups: bool, groups: Groups) -> None:
    """Refuse means that are weighted by groups where there are none.

    Raises:
        DataError: With the ways to give groups.
    """
    if groups.weights == "groups" and not has_groups:
        raise DataError(
            "means are to be weighted by groups, but the images have none; give 'group' in the loader's batches, or "
            + advice("groups='class', a regular expression, a CSV file or a mapping", "--groups")
        )


def _name(value: Any, image_id: str) -> str:
    """A group as text: whole numbers without a decimal point, so that 7, 7.0 and "7" are one group."""
    value = value.item() if isinstance(value, Tensor | np.generic) and np.ndim(value) == 0 else value
    if value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value)):
        raise DataError(
            f"image {image_id!r} has no group: its value is {value!r}; give every image a group, and one that belongs to no "
            "other a group of its own, such as its id"
        )
    if not isinstance(value, str | int | float):
        raise DataError(f"the group of image {image_id!r} is a {type(value).__name__}; a text or a number is expected")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not text.isprintable():  # groups stand in tables and messages
        raise DataError(f"the group {text!r} of image {image_id!r} has characters that cannot be printed; give it another name")
    return text


def _by_class(ids: Sequence[str], labels: Sequence[int | None] | None) -> list[str]:
    if labels is None and len(ids):
        raise DataError(
            f"groups='class' takes one label per image, but image {ids[0]!r} has none; give labels in the loader's batches, or "
            "other groups"
        )
    names = []
    for image_id, label in zip(ids, labels or (), strict=True):
        if label is None:
            raise DataError(
                f"groups='class' takes one label per image, but image {image_id!r} has none; leave out images without a label, "
                "or give other groups"
            )
        names.append(str(label))
    return names


def _by_expression(pattern: str) -> Lookup:
    expression = re.compile(pattern)

    def lookup(ids: Sequence[str], _: Sequence[int | None] | None) -> list[str]:
        return [_matched(expression, image_id) for image_id in ids]

    return lookup


def _matched(expression: re.Pattern[str], image_id: str) -> str:
    """The first bracketed part of the expression in an id, or the whole match."""
    match = expression.search(image_id)
    found = match and match[1 if expression.groups else 0]
    if not found:
        raise DataError(
            f"the expression {expression.pattern!r} of groups= finds no group in the id {image_id!r}; change it so that it "
            "matches the id of every image"
        )
    return _name(found, image_id)


def _in_table(known: Mapping[str, str], source: str) -> Lookup:
    def lookup(ids: Sequence[str], _: Sequence[int | None] | None) -> list[str]:
        missing = [image_id for image_id in ids if image_id not in known]
        if missing:
            example = f", such as {next(iter(known))!r}" if known else ""
            raise DataError(
                f"{source} has no group of image {missing[0]!r}; it has those of {len(known)} ids{example}; add one for every "
                "image"
            )
        return [known[image_id] for image_id in ids]

    return lookup


def _read_file(path: Path) -> dict[str, str]:
    """The groups of a CSV file by id; columns beside these two are not read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            column = _id_column(reader.fieldnames or (), path)
            return _groups_of(((row[column], row[COLUMN]) for row in reader), path)
    except FileNotFoundError as error:
        raise DataError(
            f"no file '{path}'; groups= that end in .csv are a file with the columns id and group, one row per image"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path}' cannot be read as CSV: {error}; it takes the columns id and group") from error


def _id_column(columns: Sequence[str], path: Path) -> str:
    found = [name for name in ID_COLUMNS if name in columns]
    if len(found) != 1 or columns.count(found[0]) > 1 or columns.count(COLUMN) != 1:
        came = ", ".join(map(repr, columns)) or "none"
        raise DataError(
            f"'{path}' has the columns {came}; id (or image_id) and group are expected, each once, separated by a comma "
            "without a space"
        )
    return found[0]


def _groups_of(entries: Iterable[tuple[str | None, str | None]], path: Path) -> dict[str, str]:
    known: dict[str, str] = {}
    for image_id, group in entries:
        if not image_id:
            raise DataError(f"'{path}' has the group {group!r} without an id; give every row an id and a group")
        name = _name(group, image_id)
        if known.setdefault(image_id, name) != name:
            raise DataError(
                f"'{path}' has image {image_id!r} in two groups, {known[image_id]!r} and {name!r}; it belongs to one"
            )
    return known
