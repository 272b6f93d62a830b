"""The groups of images in a comparison of two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike

from xaieval.analysis.comparability import Names
from xaieval.analysis.stats.groups import Grouping, Weights
from xaieval.analysis.tables import group_names, grouping_from
from xaieval.errors import MetricError
from xaieval.results.record import RunRecord

__all__ = ["GroupsOfBoth", "groups_of_both"]


@dataclass(frozen=True)
class GroupsOfBoth:
    """The groups of the images that two runs have in common.

    Attributes:
        names: The group of each image by its id; None if neither run has groups.
        weights: What a mean counts.
        notes: Whose groups these are, if only one of the runs has any.
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
    known = [group_names(run.rows) for run in (first, second)]
    if known[0] is None and known[1] is None:
        return GroupsOfBoth()
    if known[0] is None or known[1] is None:
        owner, names = (0, known[0]) if known[0] is not None else (1, known[1])
        note = f"{runs[1 - owner]} has no groups of images; those of {runs[owner]} are used for both"
        return GroupsOfBoth(names, (first, second)[owner].group_weights, [note])
    if first.group_weights != second.group_weights:
        raise MetricError(
            f"means are weighted by {first.group_weights} in {runs[0]} and by {second.group_weights} in {runs[1]}; give both "
            'the same weights, as in scores.with_groups(xaieval.Groups(weights="images")) (--group-weights)'
        )
    index = pd.Index(images)
    _check_same_groups(known[0].reindex(index), known[1].reindex(index), runs)
    return GroupsOfBoth(known[0], first.group_weights)


def _check_same_groups(one: pd.Series[str], other: pd.Series[str], runs: Names) -> None:
    """Refuse groups that differ; their names may."""
    both = pd.DataFrame({"one": one, "other": other}).dropna()
    pairs = both.drop_duplicates()
    for column, names in (("one", runs), ("other", runs[::-1])):
        split = pairs[pairs[column].duplicated(keep=False)]
        if len(split):
            images = split.index[split[column] == split[column].iloc[0]]
            raise MetricError(
                f"the runs have their images in different groups: '{images[0]}' and '{images[1]}' are together in {names[0]}, "
                f"but not in {names[1]}; give both runs the same groups, as in scores.with_groups(...) (--groups)"
            )
