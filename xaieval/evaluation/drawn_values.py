"""The values of a metric, image by image, in a run whose images come in random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xaieval.analysis.stats.sequential import Floats, on_grid
from xaieval.errors import MetricError, choose_from
from xaieval.metrics import Metric
from xaieval.results.matched import excess_column
from xaieval.results.rows import VALUED, Pair

__all__ = ["DrawnValues", "bounds_of"]

_ROUNDING = 1e-6  # of the range: how far rounding may move a value outside its bounds


def bounds_of(by: str, metrics: Sequence[Metric]) -> tuple[float, float]:
    """The smallest and the largest value of a column of the rows for one image: a metric of the run, or its excess.

    Raises:
        MetricError: It has none.

    Example:
        >>> from xaieval.metrics import METRICS
        >>> bounds_of("insertion", [METRICS["insertion"]])
        (0.0, 1.0)
    """
    metric = next((metric for metric in metrics if by in (metric.name, excess_column(metric.name))), None)
    if metric is None:
        return 0.0, 100.0  # refused by its name
    if metric.bounds is None:
        raise MetricError(
            f"the values of {metric.name!r} have no bounds, which a decision before the last image needs; decide by a metric "
            "that has, such as average_drop; a Metric of your own takes bounds="
        )
    low, high = metric.bounds
    return (low, high) if by == metric.name else (low - high, high - low)


class DrawnValues:
    """Turns the rows of each batch into numbers in [0, 1], or in [-1, 0] if lower is better, for tests that need bounds.

    Args:
        by: A metric of the run.
        population: N, the number of all images, including unreadable ones.
        pairs: The pairs of layer and method, in the order of the columns.
        higher_is_better: Whether higher values are better, by metric of the run.
        bounds: Smallest and largest value of the metric for one image.

    Attributes:
        seen: Number of images so far.

    Raises:
        MetricError: The run has no such metric.

    Example:
        >>> values = DrawnValues("average_drop", 10, [("p3", "gradcam"), ("p4", "gradcam")], {"average_drop": False})
        >>> rows = pd.DataFrame({"image_id": "a", "layer": ["p3", "p4"], "method": "gradcam", "average_drop": [25.0, 50.0]})
        >>> values.of(rows.assign(status="ok")).tolist()
        [[-0.25, -0.5]]
    """

    def __init__(
        self,
        by: str,
        population: int,
        pairs: Sequence[Pair],
        higher_is_better: Mapping[str, bool],
        bounds: tuple[float, float] = (0.0, 100.0),
    ) -> None:
        if by not in higher_is_better:
            raise MetricError(f"the run has no metric {by!r} to stop by; {choose_from(by, higher_is_better)}")
        self._by, self._population, self._bounds = by, population, bounds
        self._sign = 1 if higher_is_better[by] else -1
        self._columns = pd.MultiIndex.from_tuples(list(pairs))
        self._ids: set[Any] = set()

    @property
    def seen(self) -> int:
        """Number of images so far."""
        return len(self._ids)

    def of(self, rows: pd.DataFrame) -> Floats:
        """The values by image and pair, `[n, P]`, higher is better; NaN where there is no row, or it does not count.

        Args:
            rows: Columns `image_id`, `layer`, `method`, `status` and the metric; each image once, with all its rows.

        Raises:
            MetricError: An image comes twice, there are more than N, or a value is outside the bounds.
        """
        ids = self._new_images(rows)
        values = rows[self._by].to_numpy(dtype=float, na_value=np.nan)
        low, high = self._bounds
        share = (values - low) / (high - low)
        columns = self._columns.get_indexer(pd.MultiIndex.from_frame(rows[["layer", "method"]]))
        used = rows["status"].isin(VALUED).to_numpy() & (columns >= 0)
        outside = used & ((share < -_ROUNDING) | (share > 1 + _ROUNDING))
        if outside.any():
            image = rows["image_id"].to_numpy()[outside][0]
            raise MetricError(
                f"{self._by} of image '{image}' is {values[outside][0]:g}, outside [{low:g}, {high:g}]; early "
                "stopping needs bounds, so stop by another metric, or use a confidence that is a probability"
            )
        goodness = np.full((len(ids), len(self._columns)), np.nan)
        goodness[ids.get_indexer(pd.Index(rows["image_id"]))[used], columns[used]] = self._sign * on_grid(
            np.clip(share[used], 0, 1)
        )
        return goodness

    def _new_images(self, rows: pd.DataFrame) -> pd.Index[Any]:
        """The images of a batch in order; an image that came twice would count twice among the N."""
        ids = pd.Index(rows["image_id"].unique())
        twice = rows.loc[rows.duplicated(["image_id", "layer", "method"]) | rows["image_id"].isin(self._ids), "image_id"]
        if len(twice):
            raise MetricError(f"image '{twice.iloc[0]}' came twice; early stopping needs each image once, with its own id")
        if self.seen + len(ids) > self._population:
            raise MetricError(f"got more images than the {self._population} of the data set; check its length")
        self._ids.update(ids)
        return ids
