"""Distributions of a metric over the images."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from xaieval.errors import MetricError
from xaieval.report.figures.data import common_names, counts_note, metric_entry, pair_names, subset, summary_of
from xaieval.report.figures.style import (
    Size,
    add_legend,
    add_title,
    axis_label,
    colours,
    error_bars,
    figure_of,
    fit_height,
    light_grid,
    name_characters,
    one_axes,
    plain,
    row_inches,
)
from xaieval.results.record import RunRecord
from xaieval.results.rows import VALUED

__all__ = ["spread_figure"]

BINS = 50
DOTS = 100  # the largest number of images per row that are drawn as dots; more are drawn as a histogram
REACH = 0.42  # of the height of a row, above and below its middle
INCHES = 0.42  # the smallest height of a row


def spread_figure(
    scores: RunRecord, metric: str | None = None, *, level: float = 0.95, size: Size = None, ax: Axes | None = None
) -> Figure:
    """Draw the distribution of a metric over the images: one row per layer and method, with mean, interval, median, quartiles.

    Up to 100 images are drawn as one dot each, stacked within a bin; more as a mirrored histogram. Nothing is smoothed, so that
    peaks at 0 or 100 stay visible. The fullest of the 50 bins of a row takes the height of the row.

    Args:
        scores: The run (`xaieval.Scores`).
        metric: Name of the metric (default: the first metric of the run).
        level: Level of the intervals, in (0, 1).
        size: Width, or width and height, in inches.
        ax: Axes to draw on (default: those of a new figure).

    Returns:
        A new figure that is not shown in a window, or the figure of `ax`.

    Raises:
        MetricError: The run has no such metric, the metric is binary, or no row has a value.
        UsageError: Both `size` and `ax` are given.

    Example:
        >>> import pandas as pd
        >>> from xaieval import Scores
        >>> rows = pd.DataFrame({"image_id": range(3), "layer": "p2", "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(a=[5.0, 9.0, 9.0])
        >>> scores = Scores(rows, {"metrics": [{"name": "a", "higher_is_better": True, "interval": "mean"}]})
        >>> len(spread_figure(scores).axes[0].collections[0].get_offsets())  # dots
        3
    """
    entry = metric_entry(scores, metric)
    if entry["interval"] == "wilson":
        raise MetricError(
            f"{entry['name']} is 0 or 100 for each image, so its mean describes the whole distribution; use kind='tradeoff' "
            "or a metric such as average_drop"
        )
    shown = subset(scores)
    table, values = summary_of(shown, level), _values(shown.sample.rows, entry["name"])
    edges = _edges(values, entry["name"])
    axes = one_axes(size, ax)
    hues = dict(zip(table.index.unique("method"), colours() * len(table), strict=False))
    for place, pair in enumerate(table.index):
        draw = _draw_dots if max(map(len, values.values())) <= DOTS else _draw_histogram
        draw(axes, values[pair], edges, place, hues[pair[1]])
        _draw_middle(axes, values[pair], place)
    key = _draw_means(axes, table, entry["name"], level)
    names = [plain(name, name_characters(figure_of(axes))) for name in pair_names(list(table.index))]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(axis_label(entry))
    add_title(axes, [*common_names(list(table.index)), *counts_note(table)], ax)
    light_grid(axes, "x")
    add_legend(axes, [key], ax)
    if ax is None:
        fit_height(axes, max(INCHES, row_inches(names)) * len(names), size)
    return figure_of(axes)


def _values(rows: pd.DataFrame, name: str) -> dict[Any, NDArray[np.float64]]:
    """The values of the rows that count, per layer and method."""
    values = rows[name].where(rows["status"].isin(VALUED)).astype(float)
    pairs = values.groupby([rows["layer"], rows["method"]], sort=False)
    return {pair: np.asarray(group.dropna(), dtype=float) for pair, group in pairs}


def _edges(values: dict[Any, NDArray[np.float64]], name: str) -> NDArray[np.float64]:
    """The edges of the bins, the same for all rows."""
    every = np.concatenate(list(values.values()))
    if not len(every):
        raise MetricError(f"no row has a value of {name}; the column 'status' of scores.rows says why")
    return np.histogram_bin_edges(every, BINS)


def _draw_dots(axes: Axes, values: NDArray[np.float64], edges: NDArray[np.float64], place: int, hue: str) -> None:
    """Draw one dot per image; dots of one bin are stacked around the middle of the row."""
    values = np.sort(values)
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    order = np.arange(len(values)) - np.searchsorted(bins, bins)
    step = min(2 * REACH / max(counts.max(), 1), 0.14)
    heights = place + step * (order - (counts[bins] - 1) / 2)
    area = (0.6 * mpl.rcParams["lines.markersize"]) ** 2
    axes.scatter(values, heights, s=area, color=hue, alpha=0.6, linewidths=0, zorder=2)


def _draw_histogram(axes: Axes, values: NDArray[np.float64], edges: NDArray[np.float64], place: int, hue: str) -> None:
    """Draw a histogram, mirrored at the middle of the row."""
    counts = np.histogram(values, edges)[0]
    heights = REACH * np.append(counts, counts[-1]) / max(counts.max(), 1)
    axes.fill_between(edges, place - heights, place + heights, step="post", color=hue, alpha=0.5, linewidth=0, zorder=2)


def _draw_middle(axes: Axes, values: NDArray[np.float64], place: int) -> None:
    """Draw the interquartile range as a line, and the median as a stroke across it."""
    if not len(values):
        return
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    ink, wide = mpl.rcParams["text.color"], mpl.rcParams["lines.linewidth"]
    axes.hlines(place + 0.25, low, high, color=ink, linewidth=1.6 * wide, alpha=0.45, zorder=3)
    axes.vlines(median, place + 0.13, place + 0.37, color=ink, linewidth=wide, zorder=3)


def _draw_means(axes: Axes, table: pd.DataFrame, name: str, level: float) -> list[tuple[Any, str]]:
    """Draw the means with their intervals, and return the legend's entries for everything in a row."""
    ends = error_bars(table[name], table[f"{name}_low"], table[f"{name}_high"])
    ink, wide = mpl.rcParams["text.color"], mpl.rcParams["lines.linewidth"]
    paper = mpl.rcParams["axes.facecolor"]
    drawn = axes.errorbar(
        table[name], range(len(table)), xerr=ends, fmt="o", color=ink, markerfacecolor=paper, elinewidth=wide, zorder=4
    )
    middle = Line2D([], [], color=ink, linewidth=1.6 * wide, alpha=0.45)
    stroke = Line2D([], [], color=ink, marker="|", markersize=9, markeredgewidth=wide, linestyle="")
    return [(drawn, f"mean, {100 * level:g} % interval"), (stroke, "median"), (middle, "interquartile range")]
