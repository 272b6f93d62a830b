"""A metric beside its matched controls: whether maps are better than others of the same size."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xaieval.analysis.matched import compare_with_matched_controls
from xaieval.errors import MetricError
from xaieval.report.figures.data import common_names, count_range, level_note, metric_entry, pair_names, pairs_of
from xaieval.report.figures.style import (
    MARKERS,
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

__all__ = ["matched_figure"]

INCHES = 0.34  # the smallest height of a row


def matched_figure(
    scores: RunRecord, metric: str | None = None, *, level: float = 0.95, size: Size = None, ax: Axes | None = None
) -> Figure:
    """Draw a metric beside its matched controls: one row per layer and method, without control maps.

    A filled dot is the mean of the method; hollow markers are the means of its controls over the same images. The bar beside
    the first control is the interval of the excess, the difference of both, drawn around the method's mean: where it does not
    reach the control, the difference is significant by itself.

    Args:
        scores: The run (`xaieval.Scores`).
        metric: Name of the metric (default: the first that has matched controls).
        level: Level of the intervals, in (0, 1).
        size: Width, or width and height, in inches.
        ax: Axes to draw on (default: those of a new figure).

    Returns:
        A new figure that is not shown in a window, or the figure of `ax`.

    Raises:
        MetricError: The run has no matched controls, or the metric has none.
        UsageError: Both `size` and `ax` are given.

    Example:
        >>> from xaieval import Scores
        >>> rows = pd.DataFrame({"image_id": range(9), "layer": "p5", "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(a=range(9), a_shifted=range(10, 19), a_excess=-10.0)
        >>> entry = {"name": "a", "higher_is_better": False, "interval": "mean"}
        >>> manifest = {"metrics": [entry, entry | {"name": "a_excess", "excess_of": "a"}], "matched_controls": ["shifted"]}
        >>> [text.get_text() for text in matched_figure(Scores(rows, manifest)).legends[0].texts]
        ['method, 95 % interval of the excess', 'shifted']
    """
    table = compare_with_matched_controls(
        scores.sample.rows, scores.metrics, scores.matched_controls, scores.controls, level, scores.seed, scores.group_weights
    )
    entry = metric_entry(scores, metric or next(iter(table["metric"]), None))
    if table.empty:
        raise MetricError(
            f"no map of this run has a matched control of {', '.join(scores.matched_controls)}: constant maps have none, and "
            "swapped takes two images"
        )
    table = table[table["metric"] == entry["name"]]
    if table.empty:
        raise MetricError(
            f"{entry['name']} has no matched controls in this run; those of confidences and curves have, such as average_drop"
        )
    pairs = [pair for pair in pairs_of(scores.sample.rows) if pair in set(zip(table["layer"], table["method"], strict=True))]
    axes = one_axes(size, ax)
    key = _draw(axes, table, pairs, scores.matched_controls, level)
    names = [plain(name, name_characters(figure_of(axes))) for name in pair_names(pairs)]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(axis_label(entry))
    add_title(axes, [*common_names(pairs), count_range(table["n_images"])], ax)
    light_grid(axes, "x")
    add_legend(axes, [key], ax)
    if ax is None:
        fit_height(axes, max(INCHES, row_inches(names)) * len(names), size)
    return figure_of(axes)


def _draw(
    axes: Axes, table: pd.DataFrame, pairs: list[tuple[str, str]], controls: list[str], level: float
) -> list[tuple[Any, str]]:
    """Draw the means and return the entries of the legend."""
    own, *hues = colours()
    place = {pair: number for number, pair in enumerate(pairs)}
    heights = [place[pair] for pair in zip(table["layer"], table["method"], strict=True)]
    table = table.assign(height=heights)
    first = table.drop_duplicates("height")
    ends = error_bars(first["excess"], first["low"], first["high"])
    axes.hlines(first["height"], *_reach(table), color=mpl.rcParams["grid.color"], linewidth=0.8, zorder=1)
    axes.errorbar(first["value"], first["height"], xerr=ends, fmt="o", color=own, capsize=3, zorder=4)
    key: list[tuple[Any, str]] = [(Line2D([], [], color=own, marker="o"), f"method, {level_note(level)[:-1]} of the excess")]
    for number, name in enumerate(controls):
        part = table[table["control"] == name]
        style: dict[str, Any] = {"marker": MARKERS[1 + number], "color": hues[number], "markerfacecolor": "none"}
        if len(part):
            axes.plot(part["control_value"], part["height"], linestyle="", zorder=3, **style)
            key.append((Line2D([], [], linestyle="", **style), name))
    return key


def _reach(table: pd.DataFrame) -> tuple[Any, Any]:
    """The smallest and the largest mean of each row."""
    both = table.assign(least=table[["value", "control_value"]].min(axis=1), most=table[["value", "control_value"]].max(axis=1))
    rows = both.groupby("height", sort=False)
    return rows["least"].min(), rows["most"].max()
