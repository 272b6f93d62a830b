"""Which images belong together: the choice that `groups=` and `--groups` make. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from xaieval.errors import ConfigError, choose_from

__all__ = ["BY_CLASS", "Groups", "GroupsOf", "Weights", "is_group_file", "resolve_groups"]

Weights = Literal["images", "groups"]

BY_CLASS = "class"  # the label of an image is its group


@dataclass(frozen=True)
class Groups:
    """Which images belong together, such as the views of a place or the frames of a video, and what a mean counts.

    Images of one group may be alike, so intervals and tests count groups instead of images.

    Args:
        by: "class", the label of each image; a regular expression, whose first bracketed part in the id is the group (the whole
            match, if it has no brackets); a text that ends in ".csv" or a path, a CSV file with the columns `id` (or
            `image_id`) and `group`; or a mapping from ids to groups. Default: the `group` of the loader's batches.
        weights: "images": every image counts the same in a mean. "groups": every group counts the same, however many images it
            has.

    Raises:
        ConfigError: `by` is none of these, the expression is not valid, or the weights are unknown.

    Example:
        >>> Groups(r"^(.*)_frame")  # video7_frame12 belongs to video7
        Groups(by='^(.*)_frame', weights='images')
    """

    by: str | os.PathLike[str] | Mapping[str, Any] | None = None
    weights: Weights = "images"

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            raise ConfigError(f"no weights {self.weights!r} of groups; {choose_from(self.weights, get_args(Weights))}")
        if not isinstance(self.by, str | os.PathLike | Mapping | None):
            raise ConfigError(
                f"groups= takes 'class', a regular expression, a CSV file or a mapping from ids to groups, "
                f"such as a dict; got {type(self.by).__name__}"
            )
        if isinstance(self.by, str) and self.by != BY_CLASS and not is_group_file(self.by):
            _check_expression(self.by)


GroupsOf = Groups | str | os.PathLike[str] | Mapping[str, Any] | None  # an argument `groups=`


def resolve_groups(groups: GroupsOf) -> Groups:
    """Convert the argument `groups=` to `Groups`; any other type is taken as its `by`.

    Raises:
        ConfigError: It is none of these.

    Example:
        >>> resolve_groups("class")
        Groups(by='class', weights='images')
    """
    return groups if isinstance(groups, Groups) else Groups(groups)


def is_group_file(by: object) -> bool:
    """Whether `by` names a file: a path, or a text that ends in ".csv"."""
    return isinstance(by, os.PathLike) or (isinstance(by, str) and by.lower().endswith(".csv"))


def _check_expression(pattern: str) -> None:
    if not pattern:
        raise ConfigError("groups='' is an empty expression; give 'class', a regular expression or a CSV file")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"groups={pattern!r} is not a regular expression: {error}; a file ends in .csv") from error
