"""Figures of cross scores: the maps of each model on each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xaieval.analysis.cross import cross_table
from xaieval.errors import MetricError, choose_from
from xaieval.report.figures.data import counts_note, level_note, metric_entry
from xaieval.report.figures.style import (
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
    name_characters,
    one_axes,
    plain,
    row_inches,
    styles,
)
from xaieval.results.record import RunRecord

__all__ = ["cross_figure"]

SPREAD = 0.5  # of a row, over which the maps of all models are drawn
MOST_MAPS = 16


def cross_figure(
    scores: RunRecord,
    metric: str | None = None,
    method: str | None = None,
    *,
    level: float = 0.95,
    size: Size = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the means of a metric for all maps on all models, with intervals: one row per layer and model, a point per map.

    Points of one row that lie apart differ by the maps, on the same model. Rows of one layer that lie apart differ by the
    model, with the same maps.

    Args:
        scores: The result of `xaieval.cross_score`.
        metric: Name of the metric (default: the first one).
        method: The method whose maps are shown (default: the only one).
        level: Level of the intervals, in (0, 1).
        size: Width, or width and height, in inches.
        ax: Axes to draw on (default: those of a new figure).

    Returns:
        A new figure that is not shown in a window, or the figure of `ax`.

    Raises:
        MetricError: A metric or method is unknown, there are several methods and none is named, or there are more maps than can
            be told apart.
        UsageError: Both `size` and `ax` are given.

    Example:
        >>> import pandas as pd
        >>> from xaieval import CrossScores
        >>> rows = pd.DataFrame({"image_id": range(4), "layer": "p5", "method": "gradcam", "status": "ok"})
        >>> cells = [("a", "a", 30.0), ("a", "b", 20.0), ("b", "a", 33.0), ("b", "b", 22.0)]
        >>> rows = pd.concat([rows.assign(masks_of=one, model=on, drop=value) for one, on, value in cells])
        >>> drop = {"name": "drop", "higher_is_better": False, "interval": "mean"}
        >>> scores = CrossScores(rows, {"metrics": [drop], "cross": {"models": ["a", "b"]}})
        >>> [label.get_text() for label in cross_figure(scores).axes[0].get_yticklabels()]
        ['p5, on a', 'p5, on b']
    """
    entry = metric_entry(scores, metric)
    shown, models = _shown(scores, method), list(scores.manifest["cross"]["models"])
    table = cross_table(shown, scores.metrics, [entry["name"]], level, scores.group_weights).reset_index()
    own = table[table["masks_of"].isin(models)]
    places = {place: number for number, place in enumerate((layer, on) for layer in own["layer"].unique() for on in models)}
    maps = [*models, *(name for name in table["masks_of"].unique() if name not in models)]
    chosen = dict(zip(maps, styles(len(maps), "maps", MOST_MAPS), strict=True))
    axes = one_axes(size, ax)
    for number, name in enumerate(maps):
        below = SPREAD * ((number + 0.5) / len(maps) - 0.5)
        _draw_maps(axes, _at_layers(table[table["masks_of"] == name], own), places, below, chosen[name])
    rows = [plain(f"{layer}, on {on}", name_characters(figure_of(axes))) for layer, on in places]
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for edge in range(len(models), len(rows), len(models)):
        axes.axhline(edge - 0.5, color="grey", linewidth=0.5)
    axes.set_xlabel(axis_label(entry))
    light_grid(axes, "x")
    [name] = own["method"].unique()
    add_title(axes, [name, *counts_note(own.assign(n_failed=0)), level_note(level)], ax)
    _add_legend(axes, chosen, scores.controls, ax)
    if ax is None:
        fit_height(axes, len(rows) * max(row_inches(rows), 0.14 * len(maps)), size)
    return figure_of(axes)


def _shown(scores: RunRecord, method: str | None) -> pd.DataFrame:
    """The rows of one method, and those of control maps."""
    rows = scores.sample.rows
    known = [str(name) for name in rows["method"].unique() if name not in scores.controls]
    if method is None and len(known) > 1:
        raise MetricError(f"the figure shows one method; choose one by method=; known: {', '.join(known)}")
    if method is not None and method not in known:
        raise MetricError(f"the cross scores have no method {method!r}; {choose_from(method, known)}")
    return rows[rows["method"].isin([method or known[0], *scores.controls])]


def _at_layers(cells: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The cells of some maps at every layer; control maps have none, and are shown at each."""
    layers = own["layer"].unique()
    if cells["layer"].isin(layers).all():
        return cells
    return pd.concat([cells.assign(layer=layer) for layer in layers])


def _draw_maps(axes: Axes, cells: pd.DataFrame, places: dict[Any, int], below: float, style: Style) -> None:
    """Draw the maps of one model, or a control map, on every model."""
    at = np.array([places[row["layer"], row["model"]] for row in cells.to_dict("records")]) + below
    axes.errorbar(
        cells["mean"],
        at,
        xerr=error_bars(cells["mean"], cells["low"], cells["high"]),
        color=style.colour,
        marker=style.marker,
        markerfacecolor=style.colour if style.filled else "none",
        linestyle="",
    )


def _add_legend(axes: Axes, chosen: dict[str, Style], controls: Sequence[str], ax: Axes | None) -> None:
    width = legend_characters(axes, ax)
    entries = [
        (
            Line2D([], [], color=style.colour, marker=style.marker, linestyle=""),
            plain(name if name in controls else f"maps of {name}", width),
        )
        for name, style in chosen.items()
    ]
    add_legend(axes, [entries], ax)
