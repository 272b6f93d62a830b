"""Mean curves, such as those of insertion and deletion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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

PANEL, HEIGHT = 2.6, 2.3  # inches, the least width of a panel beside others, and the height of its axes


def curves_figure(
    rows: pd.DataFrame,
    metrics: str | Sequence[str],
    fractions: Sequence[float] | None = None,
    level: float = 0.95,
    seed: int = 0,
    *,
    size: Size = None,
    ax: Axes | None = None,
) -> Figure:
    """The mean curve of each layer and method, one panel a metric, with a band: the mean's interval at each point by itself.

    The intervals are by percentile bootstrap over the images (1,000 resamples). The key gives the mean of each metric.

    Args:
        rows: of a run whose metrics kept their curves, such as `insertion(keep_curve=True)`.
        metrics: names.
        fractions: the curves' axis, shares of pixels in [0, 1]; equal steps from 0 to 1 unless told.
        level: of the intervals, in (0, 1).
        seed: of the resamples.
        size: width, or width and height, in inches.
        ax: axes to draw the only metric on, in place of a new figure.

    Returns:
        A figure that belongs to no window, or that of `ax`.

    Raises:
        MetricError: the rows hold no curves of a metric, curves of other lengths than `fractions`, or too many to tell apart.
        UsageError: several metrics are to be drawn on one `ax`, or both `size` and `ax` are given.

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
    for axes, name, found in zip(panels, names, curves, strict=True):
        for (pair, values), style in zip(found.items(), chosen, strict=True):
            label = plain(f"{', '.join(pair)}: {_mean(rows, pair, name):.3f}")
            _band(axes, values, fractions, level, seed, style, label)
        axes.set_xlim(0, 1)
        axes.set_ylabel(plain(name, 30))
        axes.grid(alpha=0.35)
    _name_axes(panels, high)
    room = max(legend_characters(panels[0], ax) - 2 - 7 * len(names), 12)  # beside the means
    words = [plain(word, room) for word in pair_names(list(curves[0]))]
    means = [", ".join(f"{_mean(rows, pair, name):.3f}" for name in names) for pair in curves[0]]
    labels = [f"{word}: {mean}" for word, mean in zip(words, means, strict=True)]
    counts = [len(values) for found in curves for values in found.values()]
    add_title(panels[0], [*common_names(list(curves[0])), count_range(counts), level_note(level)], ax)
    key = list(zip(panels[0].get_lines(), labels, strict=True))
    add_legend(panels[0], [key], ax, title=f"mean {', '.join(plain(name) for name in names)}")
    if ax is None:
        fit_height(panels[0], HEIGHT, size, high)
    return figure_of(panels[0])


def _panels(count: int, size: Size, ax: Axes | None) -> tuple[list[Axes], int]:
    """A panel a metric, side by side where the width allows, and how many stand above each other."""
    if ax is not None and count > 1:
        raise UsageError(f"{count} metrics take {count} axes, and ax= is one; draw one metric, or leave ax= out")
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
    """What the horizontal axis is, below the lowest panel of each column."""
    columns = -(-len(panels) // high)
    for axes in panels[-columns:]:
        axes.set_xlabel("share of pixels changed")
        axes.tick_params(labelbottom=True)


def _curves(rows: pd.DataFrame, name: str) -> dict[tuple[str, str], np.ndarray]:
    """The curves `[N, S]` of each layer and method."""
    if f"{name}_curve" not in rows:
        raise MetricError(f"the rows hold no curves of {name!r}; a metric made with keep_curve=True keeps them")
    kept = rows[rows[f"{name}_curve"].notna()]
    if kept.empty:
        raise MetricError(f"no row has a curve of {name!r}; the column 'status' of scores.rows says why")
    pairs = kept.groupby(["layer", "method"], sort=False)[f"{name}_curve"]
    return {(str(layer), str(method)): np.stack([np.asarray(curve) for curve in group]) for (layer, method), group in pairs}


def _mean(rows: pd.DataFrame, pair: tuple[str, str], name: str) -> float:
    """Of a metric, over the rows that have a curve."""
    own = rows_of(rows, pair)
    return float(own.loc[own[f"{name}_curve"].notna(), name].mean())


def _band(
    axes: Axes, curves: np.ndarray, fractions: Sequence[float] | None, level: float, seed: int, style: Style, label: str
) -> None:
    """One mean curve with its band."""
    count, points = curves.shape
    axis = np.linspace(0, 1, points) if fractions is None else np.asarray(fractions)
    if len(axis) != points:
        raise MetricError(f"the curves have {points} points, but fractions has {len(axis)}; give the metric's own shares")
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=1000)
    low, high = np.quantile(drawn @ curves / count, [(1 - level) / 2, (1 + level) / 2], axis=0)
    axes.plot(axis, curves.mean(axis=0), color=style.colour, linestyle=style.dash, label=label)
    axes.fill_between(axis, low, high, color=style.colour, alpha=0.2, linewidth=0)
