"""The groups of images in a comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from xaieval.analysis.comparability import Names
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.tables import group_names, grouping_from
from xaieval.config.groups import Weights
from xaieval.errors import MetricError, advice
from xaieval.results.metric_display import groups_text
from xaieval.results.record import RunRecord

__all__ = ["GroupsOfBoth", "groups_of_both"]


@dataclass(frozen=True)
class GroupsOfBoth:
    """The groups of the images that two runs have in common.

    Attributes:
        names: The group of each image by its id; None if neither run has groups.
        weights: What a mean counts.
        notes: How many groups there are, and whose, if only one of the runs has any.
    """

    names: pd.Series[str] | None = None
    weights: Weights = "images"
    notes: Sequence[str] = ()

    def of(self, images: pd.Index[Any]) -> Grouping | None:
        """The grouping of these images; None if neither run has groups."""
        return None if self.names is None else grouping_from(self.names, images, self.weights)


def groups_of_both(first: RunRecord, second: RunRecord, images: ArrayLike, runs: Names) -> GroupsOfBoth:
    """The groups of the images that two runs have in common.

    Args:
        first: A run.
        second: Another one.
        images: The ids of these images.
        runs: What the two runs are called in the notes.

    Raises:
        MetricError: The runs have these images in different groups, or weight their means differently.
    """
    one, other = (group_names(run.sample.rows) for run in (first, second))
    if one is None and other is None:
        return GroupsOfBoth()
    if one is None or other is None:
        names, run, owner, without = (one, first, *runs) if other is None else (other, second, *runs[::-1])
        return _with_notes(
            names, run.group_weights, images, [f"{without} has no groups, so those of {owner} are used for both"]
        )
    if first.group_weights != second.group_weights:
        raise MetricError(
            f"means are weighted by {first.group_weights} in {runs[0]} and by {second.group_weights} in {runs[1]}; give both "
            + advice('the same weights, as in scores.with_groups(xaieval.Groups(weights="images"))', "the same --group-weights")
        )
    ids = pd.Index(np.asarray(images))
    _check_same_groups(one.reindex(ids), other.reindex(ids), runs)
    return _with_notes(one, first.group_weights, images, [])


def _with_notes(names: Any, weights: Weights, images: ArrayLike, notes: Sequence[str]) -> GroupsOfBoth:
    count = grouping_from(names, images, weights).count
    return GroupsOfBoth(names, weights, [f"the images are in {groups_text(count, weights)}", *notes])


def _check_same_groups(one: pd.Series[str], other: pd.Series[str], runs: Names) -> None:
    """Refuse groups that differ; their names may."""
    both = pd.DataFrame({"one": one, "other": other}).dropna()
    pairs = both.drop_duplicates()
    for column, names in (("one", runs), ("other", runs[::-1])):
        split = pairs[pairs[column].duplicated(keep=False)]
        if len(split):
            images = split.index[split[column] == split[column].iloc[0]]
            how = advice("as in scores.with_groups(...)", "by --groups")
            raise MetricError(
                f"the runs have their images in different groups: '{images[0]}' and '{images[1]}' are together in {names[0]}, "
                f"but not in {names[1]}; give both runs the same groups, {how}"
            )
