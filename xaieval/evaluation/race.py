"""A race of layers and methods: a pair that is certainly not the best is not measured any further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.sequential import Floats, SignTest
from xaieval.config.counts import check_count
from xaieval.errors import ConfigError, MetricError
from xaieval.evaluation.drawn_values import DrawnValues
from xaieval.evaluation.early_stopping import check_error
from xaieval.results.rows import Pair

__all__ = ["Race", "Racing"]

_ROUNDING = 1e-5  # of the range: means of methods that are the same by their formulas differ by less


@dataclass(frozen=True, kw_only=True)
class Race:
    """How the best pair of layer and method is found.

    Args:
        by: A metric of the run that has a direction; the best pair has the best mean over all images.
        error: Probability, in (0, 1), that the best pair of the whole data set is dropped. It covers all pairs and all times at
            which one may be dropped.
        max_images: Number of images after which the race ends, whoever is left.
        left_out: Pairs that do not take part, each with the reason.

    Raises:
        ConfigError: A value is out of range.

    Example:
        >>> Race(by="insertion").error
        0.05
    """

    by: str = "average_drop"
    error: float = 0.05
    max_images: int | None = None
    left_out: Mapping[Pair, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_error(self.error)
        check_count("max_images", self.max_images, optional=True, kind=ConfigError)

    def start(
        self, population: int, pairs: Sequence[Pair], higher_is_better: Mapping[str, bool], bounds: tuple[float, float]
    ) -> Racing:
        """The race over these pairs, but for those that are left out; see `Racing`."""
        taking_part = [pair for pair in pairs if pair not in self.left_out]
        return Racing(self, population, taking_part, higher_is_better, bounds)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, for the manifest."""
        left_out = [{"layer": layer, "method": method, "reason": why} for (layer, method), why in self.left_out.items()]
        return {"by": self.by, "error": self.error, "max_images": self.max_images, "left_out": left_out}


class Racing:
    """The pairs that are still in a race, decided from the rows of images that come in random order.

    Each two pairs are compared by a `SignTest` of their difference on the images on which both have a value. A pair is dropped
    as soon as another one is certainly better. The best pair b of P has P - 1 rivals, none of which is better: so b is dropped
    only if one of P - 1 hypotheses is rejected that are true and were fixed before any image was seen, and each of them has a
    share of 1 / (P - 1) of the error.

    Args:
        race: What is searched for.
        population: N, the number of all images, including unreadable ones.
        pairs: All pairs of layer and method, in order.
        higher_is_better: Whether higher values are better, by metric of the run.
        bounds: Smallest and largest value of the metric for one image.

    Attributes:
        race: What is searched for.
        population: N.
        pairs: All pairs.
        running: The pairs that are left, in order.

    Raises:
        MetricError: The run has no such metric, or there is only one pair.

    Example:
        >>> racing = Racing(Race(), 100, [("p3", "gradcam"), ("p5", "gradcam")], {"average_drop": False})
        >>> drops = pd.DataFrame({"p3": 80.0, "p5": 20.0}, index=pd.RangeIndex(20, name="image_id"))
        >>> rows = drops.melt(ignore_index=False, var_name="layer", value_name="average_drop").reset_index()
        >>> racing.add(rows.assign(method="gradcam", status="ok"))
        >>> racing.running, racing.finished
        ([('p5', 'gradcam')], True)
    """

    def __init__(
        self,
        race: Race,
        population: int,
        pairs: Sequence[Pair],
        higher_is_better: Mapping[str, bool],
        bounds: tuple[float, float] = (0.0, 100.0),
    ) -> None:
        if len(pairs) < 2:
            raise MetricError(f"a race needs two pairs of layer and method, got {list(pairs)}; add layers or methods")
        self.race, self.population, self.pairs = race, population, list(pairs)
        self._values = DrawnValues(race.by, population, pairs, higher_is_better, bounds)
        self._left = np.arange(len(pairs))
        self._first, self._second = np.triu_indices(len(pairs), 1)
        self._test = SignTest(population, len(self._first))
        self._sums: Floats = np.zeros(len(pairs))
        self._counts = np.zeros(len(pairs), dtype=np.int64)
        self._dropped: dict[Pair, tuple[int, Pair]] = {}

    def add(self, rows: pd.DataFrame) -> None:
        """Add the rows of one batch of images, including unreadable ones, in the order in which they were drawn.

        Args:
            rows: Columns `image_id`, `layer`, `method`, `status` and the metric; each image once, with its rows of all pairs
                that are running.

        Raises:
            MetricError: An image comes twice, there are more than N, or a value is outside the bounds.
        """
        values = self._values.of(rows)
        known = np.isfinite(values)
        self._sums += np.where(known, values, 0).sum(axis=0)
        self._counts += known.sum(axis=0)
        # N has to stay known, so an image on which one of two pairs has no value counts as a difference of 0.
        self._test.add(np.nan_to_num(values[:, self._first] - values[:, self._second]))
        self._drop()

    @property
    def images(self) -> int:
        """Number of images seen."""
        return self._test.seen

    @property
    def running(self) -> list[Pair]:
        """The pairs that are left, in order."""
        return [self.pairs[number] for number in self._left]

    @property
    def finished(self) -> bool:
        """Whether the race is over: one pair is left, or all images (or `max_images`) have been seen."""
        most = self.population if self.race.max_images is None else min(self.population, self.race.max_images)
        return len(self._left) == 1 or self.images >= most

    @property
    def spent(self) -> float:
        """The share of the full grid, all pairs on all images, that was measured, in [0, 1]."""
        return float(self._raced().sum()) / (len(self.pairs) * self.population)

    def order(self) -> list[Pair]:
        """All pairs: those that are left by their means so far, best first; then the others, the last one dropped first."""
        means = np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1), -np.inf)
        dropped = ~np.isin(np.arange(len(self.pairs)), self._left)
        return [self.pairs[number] for number in np.lexsort((-means, -self._raced(), dropped))]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for the manifest."""
        order = self.order()
        return self.race.to_dict() | {
            "images": self.images,
            "population": self.population,
            "best": list(order[0]),
            "undecided": [list(pair) for pair in order[1 : len(self._left)]],
            "dropped": [
                {"layer": layer, "method": method, "images": images, "beaten_by": list(rival)}
                for layer, method, images, rival in ((*pair, *self._dropped[pair]) for pair in order[len(self._left) :])
            ],
            "pairs": len(self.pairs),
            "spent": self.spent,
            "reason": self.reason(),
        }

    def reason(self) -> str:
        """How the race stands, as a sentence."""
        after = f"after {self.images} of {self.population} images"
        best, left = self.order()[0], len(self._left)
        named = f"{best[1]} at {best[0]}"
        if left == 1:
            return f"{named} is the best of {len(self.pairs)} pairs by {self.race.by}, at error {self.race.error:g}, {after}"
        if self.images == self.population:
            return f"{left} of {len(self.pairs)} pairs have the same mean {self.race.by} on all {self.population} images"
        return (
            f"{left} of {len(self.pairs)} pairs cannot be told apart by {self.race.by}, at error {self.race.error:g}, {after}; "
            f"{named} has the best mean so far"
        )

    def _raced(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The number of images on which each pair was measured."""
        return np.array([self._dropped[pair][0] if pair in self._dropped else self.images for pair in self.pairs])

    def _drop(self) -> None:
        """Take out every pair that another one, which may be taken out with it, certainly beats."""
        signs = self._test.signs(self.race.error / (len(self.pairs) - 1))
        if self.images == self.population:
            signs[np.abs(self._test.sums) <= _ROUNDING * self.population] = 0
        first, second = self._first.tolist(), self._second.tolist()
        beaten_by = {second[test]: first[test] for test in np.flatnonzero(signs == 1)}
        beaten_by |= {first[test]: second[test] for test in np.flatnonzero(signs == -1)}
        if len(beaten_by) == len(self._left):  # in a circle, which missing values make possible: the best mean stays
            beaten_by.pop(self.pairs.index(self.order()[0]))
        for number, rival in sorted(beaten_by.items()):
            self._dropped[self.pairs[number]] = self.images, self.pairs[rival]
        self._left = np.setdiff1d(self._left, list(beaten_by))
        kept = np.isin(self._first, self._left) & np.isin(self._second, self._left)
        self._test.keep(np.flatnonzero(kept))
        self._first, self._second = self._first[kept], self._second[kept]
