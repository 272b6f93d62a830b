"""Scatter plots of two metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xaieval.errors import MetricError
from xaieval.report.figures.data import common_names, counts_note, level_note, subset, summary_of, two_metrics
from xaieval.report.figures.style import (
    MARKERS,
    Size,
    Style,
    add_legend,
    add_title,
    axis_label,
    error_bars,
    figure_of,
    fit_height,
    legend_characters,
    light_grid,
    one_axes,
    plain,
    styles,
)
from xaieval.results.record import RunRecord

__all__ = ["tradeoff_figure"]

DEFAULT = ("average_drop", "increase_in_confidence")
HEIGHT = 2.8  # inches, the height of the axes
MOST_METHODS = 16
LINE, HOLLOW = {"marker": "o", "linestyle": "-"}, {"markerfacecolor": "none"}


def tradeoff_figure(
    scores: RunRecord,
    metrics: Sequence[str] = DEFAULT,
    *,
    level: float = 0.95,
    size: Size = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw two metrics against each other: one point per layer and method, with an interval on each axis.

    A line connects the layers of a method in order of execution. Colours show layers if there is one method; with several
    methods colours show methods, and markers show layers. The scales are those of the methods; control maps beyond them are
    named in the title.

    Args:
        scores: The run (`xaieval.Scores`).
        metrics: The metrics on the horizontal and the vertical axis.
        level: Level of the intervals, in (0, 1).
        size: Width, or width and height, in inches.
        ax: Axes to draw on (default: those of a new figure).

    Returns:
        A new figure that is not shown in a window, or the figure of `ax`.

    Raises:
        MetricError: The run lacks a metric, or has more layers or methods than can be told apart.
        UsageError: Both `size` and `ax` are given.

    Example:
        >>> import pandas as pd
        >>> from xaieval import Scores
        >>> rows = pd.DataFrame({"image_id": [*range(9)] * 2, "layer": ["p2"] * 9 + ["p5"] * 9, "method": "gradcam"})
        >>> rows = rows.assign(status="ok", a=[5.0] * 9 + [9.0] * 9, b=[2.0] * 9 + [3.0] * 9)
        >>> entries = [{"name": name, "higher_is_better": True, "interval": "mean"} for name in ("a", "b")]
        >>> tradeoff_figure(Scores(rows, {"metrics": entries}), ("a", "b")).axes[0].get_xlabel()
        'a, higher is better'
    """
    across, up = two_metrics(scores, metrics)
    table = summary_of(subset(scores), level)
    pairs = list(table.index)
    chosen = _styles(pairs)
    axes = one_axes(size, ax)
    control = table.index.get_level_values("method").isin(scores.controls)
    own = ~control if (~control).any() else control
    _draw_methods(axes, table[own], across["name"], up["name"], chosen)
    beyond = _add_controls(axes, table[~own], across["name"], up["name"], chosen)
    axes.set(xlabel=axis_label(across), ylabel=axis_label(up))
    add_title(axes, [*common_names(pairs), *counts_note(table), level_note(level), *beyond], ax)
    light_grid(axes, "both")
    if len(pairs) > 1:
        add_legend(axes, _legend(pairs, chosen, legend_characters(axes, ax)), ax)
    if ax is None:
        fit_height(axes, HEIGHT, size)
    return figure_of(axes)


def _styles(pairs: list[tuple[str, str]]) -> dict[tuple[str, str], Style]:
    """The style of each point."""
    layers, methods = ([*dict.fromkeys(names)] for names in zip(*pairs, strict=True))
    if len(methods) == 1:
        return dict(zip(pairs, styles(len(pairs), "layers"), strict=True))
    if len(layers) > len(MARKERS):
        raise MetricError(
            f"{len(layers)} layers of {len(methods)} methods cannot be told apart in one figure, at most {len(MARKERS)} can; "
            "choose layers with layers= or one method with methods=, or use kind='heatmap'"
        )
    hues = dict(zip(methods, styles(len(methods), "methods", MOST_METHODS), strict=True))
    shapes = dict(zip(layers, MARKERS, strict=False))
    return {(layer, method): Style(**{**vars(hues[method]), "marker": shapes[layer]}) for layer, method in pairs}


def _draw_methods(axes: Axes, table: pd.DataFrame, across: str, up: str, chosen: dict[Any, Style]) -> None:
    for _, group in table.groupby("method", sort=False):
        _draw_method(axes, group, across, up, chosen)


def _add_controls(axes: Axes, table: pd.DataFrame, across: str, up: str, chosen: dict[Any, Style]) -> list[str]:
    """Draw control maps without changing the scales, and name those that are beyond them."""
    if table.empty:
        return []
    (left, right), (low, top) = axes.get_xlim(), axes.get_ylim()
    _draw_methods(axes, table, across, up, chosen)
    axes.set(xlim=(left, right), ylim=(low, top))
    inside = table[across].between(left, right) & table[up].between(low, top)
    names = table.index.get_level_values("method")[~inside]
    return [f"beyond the scales: {', '.join(names)}"] if len(names) else []


def _draw_method(axes: Axes, table: pd.DataFrame, across: str, up: str, chosen: dict[Any, Style]) -> None:
    """Draw the points of a method with their intervals, and the line that connects them."""
    first = chosen[table.index[0]]
    joined = mpl.rcParams["text.color"] if len({chosen[pair].colour for pair in table.index}) > 1 else first.colour
    axes.plot(table[across], table[up], color=joined, alpha=0.35, linewidth=0.6 * mpl.rcParams["lines.linewidth"], zorder=1)
    for pair, row in zip(table.index, table.to_dict("records"), strict=True):
        style = chosen[pair]
        axes.errorbar(
            row[across],
            row[up],
            xerr=error_bars(row[across], row[f"{across}_low"], row[f"{across}_high"]),
            yerr=error_bars(row[up], row[f"{up}_low"], row[f"{up}_high"]),
            **_point(style),
            color=style.colour,
            elinewidth=0.7 * mpl.rcParams["lines.linewidth"],
        )


def _point(style: Style) -> dict[str, Any]:
    """The marker of a point, without a line."""
    return {"marker": style.marker, "linestyle": "", "markerfacecolor": style.colour if style.filled else "none"}


def _legend(pairs: list[tuple[str, str]], chosen: dict[Any, Style], width: int) -> list[list[tuple[Line2D, str]]]:
    """The groups of the legend: layers by colour, or methods by colour and layers by marker."""
    methods = {method: chosen[layer, method] for layer, method in pairs}
    layers = {layer: chosen[layer, method] for layer, method in pairs}
    if len(methods) == 1:
        return [[(Line2D([], [], color=style.colour, **_point(style)), plain(layer, width)) for layer, style in layers.items()]]
    ink = mpl.rcParams["text.color"]
    lines = {name: Line2D([], [], color=style.colour, **(_point(style) | LINE)) for name, style in methods.items()}
    shapes = {name: Line2D([], [], color=ink, **(_point(style) | HOLLOW)) for name, style in layers.items()}
    return [[(artist, plain(name, width)) for name, artist in group.items()] for group in (lines, shapes)]
