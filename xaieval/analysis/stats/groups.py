"""Images that belong together, so that their values are not independent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from xaieval.config.groups import Weights
from xaieval.errors import MetricError, choose_from

__all__ = ["Grouping"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which images belong together (the views of a place, the frames of a video), and what a mean counts.

    Values of the same group may be correlated; those of different groups are independent.

    Attributes:
        names: The group of each image, `[N]`: any values, equal for images of the same group.
        weights: "images": every image counts the same, so the mean is that of all values. "groups": every group counts the
            same, however many images it has, so the mean is that of the groups' means.

    Raises:
        MetricError: The names are not a vector, one of them is missing (None or NaN), or the weights are unknown.

    Example:
        >>> places = Grouping(["lake", "lake", "lake", "road"])
        >>> places.count, places.mean([10.0, 20.0, 30.0, 60.0])
        (2, 30.0)
        >>> Grouping(["lake", "lake", "lake", "road"], weights="groups").mean([10.0, 20.0, 30.0, 60.0])
        40.0
    """

    names: ArrayLike
    weights: Weights = "images"

    def __post_init__(self) -> None:
        if self.weights not in get_args(Weights):
            raise MetricError(f"no weights {self.weights!r}; {choose_from(self.weights, get_args(Weights))}")
        names = np.asarray(self.names, dtype=object)
        if names.ndim != 1:
            raise MetricError(f"groups are one value per image, [N]; got shape {names.shape}")
        missing = np.flatnonzero(pd.isna(names))
        if len(missing):
            raise MetricError(
                f"{len(missing)} of {len(names)} images have no group (the first is number {missing[0]}, from 0); give every "
                "image a group, of its own if it belongs to no other"
            )
        object.__setattr__(self, "names", names)

    def __len__(self) -> int:
        return len(self.codes)

    @cached_property
    def codes(self) -> NDArray[np.intp]:
        """The number of each image's group, `[N]`, from 0 in the order in which groups appear."""
        return pd.factorize(np.asarray(self.names, dtype=object))[0]

    @cached_property
    def sizes(self) -> NDArray[np.intp]:
        """The number of images of each group, `[G]`."""
        return np.bincount(self.codes)

    @property
    def count(self) -> int:
        """G, the number of groups."""
        return len(self.sizes)

    @cached_property
    def shares(self) -> Floats:
        """The weight of each group in a mean, `[G]`; they add up to 1."""
        return self.sizes / len(self) if self.weights == "images" else np.full(self.count, 1 / self.count)

    def of(self, where: Any) -> Grouping:
        """The grouping of some of the images, in the order of a mask or of indices."""
        return Grouping(np.asarray(self.names)[where], self.weights)

    def means(self, values: ArrayLike) -> Floats:
        """The mean of each group, `[G]`, of values `[N]` without NaN.

        Raises:
            MetricError: There is not one value per image.
        """
        given = np.asarray(values, dtype=float)
        if given.shape != (len(self),):
            raise MetricError(f"groups of {len(self)} images take as many values; got shape {given.shape}")
        return np.bincount(self.codes, given, self.count) / self.sizes

    def mean(self, values: ArrayLike) -> float:
        """The mean of values `[N]` without NaN, weighted by images or by groups; NaN if there are none."""
        return float(self.shares @ self.means(values)) if len(self) else float("nan")

    def totals(self, table: ArrayLike) -> Floats:
        """What each group adds to the mean of each column: its sum, or with equal weights of groups its mean.

        Args:
            table: One row per image, `[N, T]`. NaN is left out.

        Returns:
            `[G, T]`; 0 for a group without values.

        Raises:
            MetricError: There is not one row per image.
        """
        values = np.asarray(table, dtype=float)
        if values.ndim != 2 or len(values) != len(self):
            raise MetricError(f"groups of {len(self)} images take a table of as many rows; got shape {values.shape}")
        there = ~np.isnan(values)
        sums = self._sums(np.where(there, values, 0.0))
        if self.weights == "images":
            return sums
        counts = self._sums(there.astype(float))
        return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)

    def _sums(self, table: Floats) -> Floats:
        in_order = np.argsort(self.codes, kind="stable")
        return np.asarray(np.add.reduceat(table[in_order], np.cumsum(self.sizes) - self.sizes, axis=0), dtype=float)
