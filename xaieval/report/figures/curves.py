"""Mean curves of metrics such as insertion and deletion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaieval.analysis.stats.intervals import mean_interval
from xaieval.errors import MetricError, UsageError
from xaieval.report.figures.data import common_names, count_range, level_note, pair_names, rows_of
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

__all__ = ["curves_figure"]

PANEL, HEIGHT = 2.6, 2.3  # inches, the smallest width of one of several panels, and the height of its axes


def curves_figure(
    rows: pd.DataFrame,
    metrics: str | Sequence[str],
    fractions: Sequence[float] | None = None,
    level: float = 0.95,
    *,
    size: Size = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the mean curve of each layer and method with a pointwise interval of the mean, one panel per metric.

    Intervals are those of `xaieval.analysis.stats.intervals.mean_interval`; there is none where the curves of a few images are
    equal, such as at their common first point. The legend shows the mean of each metric.

    Args:
        rows: The rows of a run whose metrics kept their curves, such as `insertion(keep_curve=True)`.
        metrics: Names of metrics.
        fractions: The horizontal axis, fractions of the pixels in [0, 1] (default: equal steps from 0 to 1).
        level: Level of the intervals, in (0, 1).
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
    curves = [_curves(rows, name) for name in names]
    chosen = styles(len(curves[0]), "curves")
    panels, high = _panels(len(names), size, ax)
    for axes, name, by_pair in zip(panels, names, curves, strict=True):
        for (pair, values), style in zip(by_pair.items(), chosen, strict=True):
            label = plain(f"{', '.join(pair)}: {_mean(rows, pair, name):.3f}")
            _band(axes, values, fractions, level, style, label)
        axes.set_xlim(0, 1)
        axes.set_ylabel(plain(name, 30))
        axes.grid(alpha=0.35)
    _name_axes(panels, high)
    width = max(legend_characters(panels[0], ax) - 2 - 7 * len(names), 12)  # the means take the rest
    words = [plain(word, width) for word in pair_names(list(curves[0]))]
    means = [", ".join(f"{_mean(rows, pair, name):.3f}" for name in names) for pair in curves[0]]
    labels = [f"{word}: {mean}" for word, mean in zip(words, means, strict=True)]
    counts = [len(values) for by_pair in curves for values in by_pair.values()]
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


def _curves(rows: pd.DataFrame, name: str) -> dict[tuple[str, str], np.ndarray]:
    """The curves `[N, S]` of each layer and method."""
    if f"{name}_curve" not in rows:
        raise MetricError(f"the rows have no curves of {name!r}; create the metric with keep_curve=True to keep them")
    kept = rows[rows[f"{name}_curve"].notna()]
    if kept.empty:
        raise MetricError(f"no row has a curve of {name!r}; the column 'status' of scores.rows says why")
    pairs = kept.groupby(["layer", "method"], sort=False)[f"{name}_curve"]
    return {(str(layer), str(method)): np.stack([np.asarray(curve) for curve in group]) for (layer, method), group in pairs}


def _mean(rows: pd.DataFrame, pair: tuple[str, str], name: str) -> float:
    """The mean of a metric over the rows that have a curve."""
    own = rows_of(rows, pair)
    return float(own.loc[own[f"{name}_curve"].notna(), name].mean())


def _band(axes: Axes, curves: np.ndarray, fractions: Sequence[float] | None, level: float, style: Style, label: str) -> None:
    """Draw one mean curve with its interval."""
    points = curves.shape[1]
    axis = np.linspace(0, 1, points) if fractions is None else np.asarray(fractions)
    if len(axis) != points:
        raise MetricError(f"the curves have {points} points, but fractions has {len(axis)}; pass the fractions of the metric")
    low, high = np.transpose([mean_interval(values, level) for values in curves.T])
    axes.plot(axis, curves.mean(axis=0), color=style.colour, linestyle=style.dash, label=label)
    axes.fill_between(axis, low, high, color=style.colour, alpha=0.2, linewidth=0)
