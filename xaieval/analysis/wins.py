"""How often each method is the best one on an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import check_level, metric_interval
from xaieval.analysis.tables import directions, grouping_of, mean_of, metric_tables
from xaieval.config.groups import Weights
from xaieval.errors import MetricError
from xaieval.results.rows import NO_LAYER

__all__ = ["win_percentages"]


def win_percentages(
    rows: pd.DataFrame,
    metrics: Sequence[Mapping[str, Any]],
    by: str = "average_drop",
    level: float = 0.95,
    weights: Weights = "images",
    *,
    controls: Sequence[str] = (),
) -> pd.DataFrame:
    """How often each method is the best one at its layer, in percent of the images.

    A method wins an image if no other is as good; if several are the best, they tie. Ties are common: every map under which
    the confidence does not fall has a drop of 0. Methods without a layer compete at every layer; control maps do not compete.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        by: A metric of the run that has a direction.
        level: Level of the intervals, in (0, 1).
        weights: "images", or "groups" if every group counts the same in a mean.
        controls: Names of the methods that are control maps.

    Returns:
        Index `(layer, method)` for every layer with at least two methods; `win` with its Wilson interval `win_low` and
        `win_high` (which allows for groups, if the rows have the column `group`), `tied` (the best, but not alone), and
        `n_images`, the images whose rows count for every method at the layer.

    Raises:
        MetricError: The run has no such metric, or no layer with two methods.

    Reference:
        For two methods and the drop, the win percentage of Chattopadhay et al., "Grad-CAM++: Improved visual explanations for
        deep convolutional networks", WACV 2018, section 4.1.

    Example:
        >>> rows = pd.DataFrame({"image_id": [*range(4)] * 2, "layer": "p2", "method": ["gradcam"] * 4 + ["random"] * 4})
        >>> rows = rows.assign(status="ok", average_drop=[0.0, 10.0, 5.0, 90.0, 0.0, 40.0, 30.0, 80.0])
        >>> drop = {"name": "average_drop", "higher_is_better": False, "interval": "mean"}
        >>> print(win_percentages(rows, [drop])[["win", "tied", "n_images"]])
                        win  tied  n_images
        layer method
        p2    gradcam  50.0  25.0         4
              random   25.0  25.0         4
    """
    check_level(level)
    [(by, higher_is_better)] = directions(metrics, by, "to win by").items()
    sign = 1 if higher_is_better else -1
    records = []
    own = rows[~rows["method"].isin(list(controls))]
    for layer, layer_rows in _rows_by_layer(own):
        goodness = sign * metric_tables(layer_rows, [by], "method")[by].dropna()
        groups = grouping_of(rows, goodness.index, weights)
        records += [{"layer": layer} | record for record in _win_records(goodness, level, groups)]
    if not records:
        methods = ", ".join(map(str, own["method"].unique()))
        without = " besides control maps, which do not compete" if len(own) < len(rows) else ""
        raise MetricError(
            f"win percentages need at least two methods at a layer; the run has {methods}{without}; add some by methods="
        )
    return pd.DataFrame(records).set_index(["layer", "method"])


def _rows_by_layer(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each layer with the rows of its methods, if there are several; methods without a layer are added to every layer."""
    layers = [layer for layer in rows["layer"].unique() if layer != NO_LAYER] or [NO_LAYER]
    for layer in layers:
        layer_rows = rows[rows["layer"].isin([layer, NO_LAYER])]
        if len(layer_rows["method"].unique()) > 1:
            yield layer, layer_rows


def _win_records(goodness: pd.DataFrame, level: float, groups: Grouping | None) -> Iterator[dict[str, Any]]:
    """One record per method, from values `images x methods` of which higher is better."""
    best = goodness.to_numpy() == goodness.max(axis=1).to_numpy()[:, None]
    alone = best.sum(axis=1) == 1
    for number, method in enumerate(goodness.columns):
        wins, ties = best[:, number] & alone, best[:, number] & ~alone
        low, high = metric_interval(100 * wins, "wilson", level, groups=groups)
        yield {
            "method": method,
            "win": 100 * mean_of(wins, groups),
            "win_low": low,
            "win_high": high,
            "tied": 100 * mean_of(ties, groups),
            "n_images": len(goodness),
        }
