"""Mean curves of metrics such as insertion and deletion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import mean_interval
from xaieval.analysis.tables import column_means
from xaieval.config.groups import Weights
from xaieval.errors import MetricError, UsageError
from xaieval.report.figures.data import common_names, count_range, level_note, pair_names
from xaieval.report.figures.style import (
    COLUMN,
    PAGE,
    Size,
    Style,
    add_legend,
    add_title,
    figure_of,
    fit_height,
    legend_characters,
    new_figure,
    one_axes,
    plain,
    styles,
)
from xaieval.results.rows import GROUP

__all__ = ["curves_figure"]

PANEL, HEIGHT = 2.6, 2.3  # inches, the smallest width of one of several panels, and the height of its axes


def curves_figure(
    rows: pd.DataFrame,
    metrics: str | Sequence[str],
    fractions: Sequence[float] | None = None,
    level: float = 0.95,
    *,
    weights: Weights = "images",
    size: Size = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the mean curve of each layer and method with a pointwise interval of the mean, one panel per metric.

    Intervals are those of `xaieval.analysis.stats.intervals.mean_interval`, by group if the rows have the column `group`; there
    is none where the curves of a few images are equal, such as at their common first point. The legend shows the mean of each
    metric.

    Args:
        rows: The rows of a run whose metrics kept their curves, such as `insertion(keep_curve=True)`.
        metrics: Names of metrics.
        fractions: The horizontal axis, fractions of the pixels in [0, 1] (default: equal steps from 0 to 1).
        level: Level of the intervals, in (0, 1).
        weights: "images", or "groups" if every group counts the same in a mean.
        size: Width, or width and height, in inches.
        ax: Axes to draw on, for a single metric (default: those of a new figure).

    Returns:
        A new figure that is not shown in a window, or the figure of `ax`.

    Raises:
        MetricError: The rows have no curves of a metric, curves that do not have the length of `fractions`, or too many curves.
        UsageError: There are several metrics for one `ax`, or both `size` and `ax` are given.

    Example:
        >>> rows = pd.DataFrame({"layer": "p2", "method": "gradcam", "area": [0.5, 0.7]})
        >>> rows["area_curve"] = [[1.0, 0.0], [1.0, 0.4]]
        >>> curves_figure(rows, "area").axes[0].get_legend_handles_labels()[1]
        ['p2, gradcam: 0.600']
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    curves = [_curves(rows, name, weights) for name in names]
    chosen = styles(len(curves[0]), "curves")
    panels, high = _panels(len(names), size, ax)
    for axes, name, by_pair in zip(panels, names, curves, strict=True):
        for (pair, drawn), style in zip(by_pair.items(), chosen, strict=True):
            _band(axes, drawn, fractions, level, style, plain(f"{', '.join(pair)}: {drawn.mean:.3f}"))
        axes.set_xlim(0, 1)
        axes.set_ylabel(plain(name, 30))
        axes.grid(alpha=0.35)
    _name_axes(panels, high)
    width = max(legend_characters(panels[0], ax) - 2 - 7 * len(names), 12)  # the means take the rest
    words = [plain(word, width) for word in pair_names(list(curves[0]))]
    means = [", ".join(f"{by_pair[pair].mean:.3f}" for by_pair in curves) for pair in curves[0]]
    labels = [f"{word}: {mean}" for word, mean in zip(words, means, strict=True)]
    counts = [len(drawn.points) for by_pair in curves for drawn in by_pair.values()]
    add_title(panels[0], [*common_names(list(curves[0])), count_range(counts), level_note(level)], ax)
    key = list(zip(panels[0].get_lines(), labels, strict=True))
    add_legend(panels[0], [key], ax, title=f"mean {', '.join(plain(name) for name in names)}")
    if ax is None:
        fit_height(panels[0], HEIGHT, size, high)
    return figure_of(panels[0])


def _panels(count: int, size: Size, ax: Axes | None) -> tuple[list[Axes], int]:
    """One panel per metric, side by side if the width allows, and the number of rows of panels."""
    if ax is not None and count > 1:
        raise UsageError(f"{count} metrics need {count} axes, but ax= is one; draw one metric, or leave ax= out")
    if ax is not None or count == 1:
        return [one_axes(size, ax, COLUMN + 1.5)], 1
    figure = new_figure(size, PAGE)
    columns = min(count, max(1, int(figure.get_figwidth() // PANEL)))
    high = -(-count // columns)
    grid = figure.subplots(high, columns, sharex=True, sharey=True, squeeze=False)
    for spare in grid.flat[count:]:
        spare.remove()
    return list(grid.flat[:count]), high


def _name_axes(panels: Sequence[Axes], high: int) -> None:
    """Name the horizontal axis below the lowest panel of each column."""
    columns = -(-len(panels) // high)
    for axes in panels[-columns:]:
        axes.set_xlabel("share of pixels changed")
        axes.tick_params(labelbottom=True)


@dataclass(frozen=True)
class _Curves:
    """The curves of a layer and method.

    Attributes:
        points: `[N, S]`.
        mean: The mean of the metric over these N images.
        groups: Which of them belong together; None for a run without groups.
    """

    points: np.ndarray
    mean: float
    groups: Grouping | None

    def band(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the upper end at each point, `[S]`."""
        low, high = np.transpose([mean_interval(values, level, groups=self.groups) for values in self.points.T])
        return low, high


def _curves(rows: pd.DataFrame, name: str, weights: Weights) -> dict[tuple[str, str], _Curves]:
    """The curves of each layer and method."""
    if f"{name}_curve" not in rows:
        raise MetricError(f"the rows have no curves of {name!r}; create the metric with keep_curve=True to keep them")
    kept = rows[rows[f"{name}_curve"].notna()]
    if kept.empty:
        raise MetricError(f"no row has a curve of {name!r}; the column 'status' of scores.rows says why")
    parts: Any = kept.groupby(["layer", "method"], sort=False)
    return {(str(layer), str(method)): _curves_of(part, name, weights) for (layer, method), part in parts}


def _curves_of(part: pd.DataFrame, name: str, weights: Weights) -> _Curves:
    points = np.stack([np.asarray(curve) for curve in part[f"{name}_curve"]])
    groups = Grouping(part[GROUP].to_numpy(dtype=object), weights) if GROUP in part else None
    return _Curves(points, float(column_means(part[[name]], groups)[0]), groups)


def _band(axes: Axes, drawn: _Curves, fractions: Sequence[float] | None, level: float, style: Style, label: str) -> None:
    """Draw one mean curve with its interval."""
    count = drawn.points.shape[1]
    axis = np.linspace(0, 1, count) if fractions is None else np.asarray(fractions)
    if len(axis) != count:
        raise MetricError(f"the curves have {count} points, but fractions has {len(axis)}; pass the fractions of the metric")
    low, high = drawn.band(level)
    axes.plot(axis, column_means(drawn.points, drawn.groups), color=style.colour, linestyle=style.dash, label=label)
    axes.fill_between(axis, low, high, color=style.colour, alpha=0.2, linewidth=0)
