"""Matrices of the agreement of metrics."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaieval.analysis.agreement import Agreement
from xaieval.report.figures.data import NO_VALUE
from xaieval.report.figures.style import (
    COLUMN,
    PAGE,
    Size,
    add_title,
    figure_of,
    fit_height,
    font_points,
    name_characters,
    one_axes,
    plain,
    row_inches,
    text_inches,
)

__all__ = ["agreement_figure"]

SHADES = "PuOr_r"  # from purple over white to orange, which colour-blind readers can tell apart
CELL = 0.42  # inches, the side of a cell if no size is given
FILLED = 0.8  # the largest share of the width of a cell that its number takes
DARK = 0.7  # correlations of larger size have a colour on which white is easier to read


def agreement_figure(agreement: Agreement, *, size: Size = None, ax: Axes | None = None) -> Figure:
    """Draw the rank correlations between metrics as a matrix: orange for the same order, purple for the reverse order.

    A dash means that a metric has the same mean everywhere, or too few means.

    Args:
        agreement: The result of `Scores.agreement`.
        size: Width, or width and height, in inches.
        ax: Axes to draw on, with the colour bar below (default: those of a new figure).

    Returns:
        A new figure that is not shown in a window, or the figure of `ax`.

    Raises:
        UsageError: Both `size` and `ax` are given.

    Example:
        >>> import pandas as pd
        >>> from xaieval.analysis.agreement import agreement
        >>> rows = pd.DataFrame({"image_id": 0, "layer": ["p2", "p3", "p4", "p5"], "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(drop=[40.0, 30, 20, 10], gain=[1.0, 2, 4, 3])
        >>> entries = [{"name": "drop", "higher_is_better": False}, {"name": "gain", "higher_is_better": True}]
        >>> [text.get_text() for text in agreement_figure(agreement(rows, entries)).axes[0].texts]
        ['1.00', '0.80', '0.80', '1.00']
    """
    names = [agreement.labels[str(name)] for name in agreement.matrix]
    values = agreement.matrix.to_numpy()
    axes = one_axes(size, ax, float(np.clip(CELL * len(names) + 2.2, COLUMN, PAGE)))
    mesh = axes.pcolormesh(values, cmap=SHADES, vmin=-1, vmax=1, edgecolors=mpl.rcParams["axes.facecolor"], linewidth=1)
    rows = [plain(name, name_characters(figure_of(axes))) for name in names]
    high = row_inches(rows) * len(rows)
    bar = figure_of(axes).colorbar(mesh, ax=axes, location="bottom", aspect=25, pad=0.12 / high if ax is None else 0.05)
    bar.set_label("rank correlation")
    axes.set_yticks(np.arange(len(names)) + 0.5, rows)
    axes.set_xticks(np.arange(len(names)) + 0.5, [plain(name) for name in names], rotation=90)
    axes.invert_yaxis()
    axes.tick_params(length=0, labelbottom=False, labeltop=True)
    axes.spines[:].set_visible(False)
    add_title(axes, [f"{agreement.n_pairs} pairs of layer and method", agreement.counts], ax)
    _write(axes, values)
    if ax is None:
        for _ in range(2):  # since the height of the colour bar depends on that of the figure
            fit_height(axes, high, size)
    return figure_of(axes)


def _write(axes: Axes, values: Any) -> None:
    """Write the correlations into the cells, and the names above them, in a font in which they fit."""
    figure = figure_of(axes)
    figure.draw_without_rendering()
    cell = axes.get_window_extent().width / figure.dpi / len(values)
    axes.tick_params(axis="x", labelsize=min(font_points("xtick.labelsize"), 72 * FILLED * cell))
    decimals, points = (2 if cell > CELL else 1), font_points("font.size")
    points = min(points, points * FILLED * cell / text_inches(f"{-0.5:.{decimals}f}", points))
    for (row, column), value in np.ndenumerate(values):
        known = np.isfinite(value)
        colour = mpl.rcParams["text.color"] if not known else "white" if abs(value) > DARK else "black"
        text = f"{value:z.{decimals}f}" if known else NO_VALUE  # z: no negative zero
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=points)
