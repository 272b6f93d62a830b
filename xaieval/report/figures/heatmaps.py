"""Heatmaps of a metric over layers and methods."""

from __future__ import annotations

from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xaieval.report.figures.data import NO_VALUE, counts_note, metric_entry, subset, summary_of
from xaieval.report.figures.style import (
    COLUMN,
    PAGE,
    Size,
    add_title,
    axis_label,
    figure_of,
    fit_height,
    font_points,
    name_characters,
    one_axes,
    plain,
    row_inches,
    text_inches,
)
from xaieval.results.metric_display import decimals_of
from xaieval.results.record import RunRecord

__all__ = ["heatmap_figure"]

SHADES = "cividis"  # perceptually uniform, designed for colour-blind readers; bright is better
CELL = 0.75  # inches, the width of a cell if no size is given
LUMINANCE = (0.2126, 0.7152, 0.0722)  # weights of red, green and blue light
FILLED = 0.75  # the largest share of the width of a cell that its number takes


def heatmap_figure(
    scores: RunRecord, metric: str | None = None, *, level: float = 0.95, size: Size = None, ax: Axes | None = None
) -> Figure:
    """Draw a metric per layer (rows) and method (columns) as numbers in coloured cells; bright is better.

    The colours are those of the range of the methods; control maps beyond it have the colours of its ends. A cell is empty if
    the run does not have that pair, and shows a dash if none of its rows count.

    Args:
        scores: The run (`xaieval.Scores`).
        metric: Name of the metric (default: the first metric of the run).
        level: Not used, since cells show no intervals; accepted as in all kinds of figures.
        size: Width, or width and height, in inches.
        ax: Axes to draw on, with the colour bar below (default: those of a new figure).

    Returns:
        A new figure that is not shown in a window, or the figure of `ax`.

    Raises:
        MetricError: The run has no such metric.
        UsageError: Both `size` and `ax` are given.

    Example:
        >>> import pandas as pd
        >>> from xaieval import Scores
        >>> rows = pd.DataFrame({"image_id": [0, 0], "layer": ["p2", "p5"], "method": "gradcam", "a": [5.0, 9.0]})
        >>> rows["status"] = "ok"
        >>> scores = Scores(rows, {"metrics": [{"name": "a", "higher_is_better": True, "interval": "mean"}]})
        >>> [text.get_text() for text in heatmap_figure(scores).axes[0].texts]
        ['5.000', '9.000']
    """
    entry = metric_entry(scores, metric)
    table = summary_of(subset(scores), level)
    layers, methods = (list(table.index.unique(name)) for name in ("layer", "method"))
    values = np.array(
        [[table[entry["name"]].get((layer, method), np.nan) for method in methods] for layer in layers], dtype=float
    )
    axes = one_axes(size, ax, float(np.clip(CELL * len(methods) + 1.8, COLUMN, PAGE)))
    rows = [plain(layer, name_characters(figure_of(axes))) for layer in layers]
    high = row_inches(rows) * len(rows)
    own = [place for place, method in enumerate(methods) if method not in scores.controls] or [*range(len(methods))]
    low, top = _range(values[:, own])
    shown = {"vmin": low, "vmax": top, "edgecolors": mpl.rcParams["axes.facecolor"], "linewidth": 1}
    mesh = axes.pcolormesh(values, cmap=_shades(entry), **shown)
    figure_of(axes).colorbar(
        mesh,
        ax=axes,
        location="bottom",
        label=axis_label(entry),
        aspect=25,
        pad=0.12 / high if ax is None else 0.05,
        extend=_extend(values, low, top),
    )
    cell = _name(axes, rows, methods)
    add_title(axes, counts_note(table), ax)
    places = [(layers.index(layer), methods.index(method)) for layer, method in table.index]
    decimals = decimals_of(entry)
    written = {place: f"{values[place]:.{decimals}f}" if np.isfinite(values[place]) else NO_VALUE for place in places}
    _write(axes, mesh, written, cell)
    if ax is None:
        for _ in range(2):  # since the height of the colour bar depends on that of the figure
            fit_height(axes, high, size)
    return figure_of(axes)


def _range(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The smallest and the largest value; None if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (None, None)


def _extend(values: NDArray[np.float64], low: float | None, top: float | None) -> Literal["neither", "min", "max", "both"]:
    """At which ends of the colour bar there are values beyond it."""
    below = low is not None and bool((values < low).any())
    above = top is not None and bool((values > top).any())
    return "both" if below and above else "min" if below else "max" if above else "neither"


def _shades(entry: dict[str, Any]) -> str:
    """The colour map in which better values are brighter."""
    return f"{SHADES}_r" if entry["higher_is_better"] is False else SHADES


def _name(axes: Axes, rows: list[str], columns: list[str]) -> float:
    """Write layers on the left and methods above, rotated if they do not fit side by side.

    Returns:
        The width of a cell in inches, which depends on the names.
    """
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [plain(name) for name in columns], rotation=90)
    axes.invert_yaxis()
    axes.tick_params(length=0, labelbottom=False, labeltop=True)
    axes.spines[:].set_visible(False)
    figure = figure_of(axes)
    figure.draw_without_rendering()
    cell = axes.get_window_extent().width / figure.dpi / len(columns)
    broken = [plain(name, 16) for name in columns]
    points = font_points("xtick.labelsize")
    if cell > 1.1 * max(text_inches(name, points) for name in broken):
        axes.set_xticks(axes.get_xticks(), broken, rotation=0)
    return float(cell)


def _write(axes: Axes, mesh: QuadMesh, written: dict[tuple[int, int], str], cell: float) -> None:
    """Write the texts of the cells, black on bright and white on dark colours, in a smaller font if they do not fit."""
    points = font_points("font.size")
    widest = text_inches(max(written.values(), key=len), points)
    size = min(points, points * FILLED * cell / widest)
    values: Any = mesh.get_array()
    shades = mesh.to_rgba(values)
    for (row, column), text in written.items():
        bright = np.dot(np.power(shades[row, column, :3], 2.2), LUMINANCE) > 0.18  # where black and white have equal contrast
        colour = mpl.rcParams["text.color"] if text == NO_VALUE else "black" if bright else "white"
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=size)
