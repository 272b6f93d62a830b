"""Figures of maps over their images, and of curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from xaieval.errors import MetricError

__all__ = ["curves_figure", "maps_figure"]

LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's, for all eyes
COLOURS = "inferno"  # perceptually uniform, and told apart by people who are colour-blind
CELL = 1.35  # inches


def maps_figure(
    pixels: Float[Tensor, "n 3 h w"],
    maps: Mapping[str, Float[Tensor, "n h w"]],
    titles: Sequence[str] = (),
    subtitle: str = "",
) -> Figure:
    """Images in the left column, and to the right of each its maps laid over it in grey, one column a layer, one colour scale.

    Args:
        pixels: images in [0, 1], `[N, 3, H, W]`.
        maps: by column title, `[N, H, W]` in [0, 1].
        titles: of the rows, N of them.
        subtitle: below the figure.

    Returns:
        A figure that belongs to no window; save it by `savefig`.

    Example:
        >>> import torch
        >>> figure = maps_figure(torch.rand(2, 3, 32, 32), {"layer4": torch.rand(2, 32, 32)})
        >>> len(figure.axes)
        5
    """
    rows, columns = len(pixels), 1 + len(maps)
    figure = Figure(figsize=(CELL * columns + 1.1, CELL * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for row in range(rows):
        picture = pixels[row].permute(1, 2, 0).numpy()
        grid[row, 0].imshow(picture)
        grid[row, 0].set_ylabel(titles[row] if titles else "", fontsize="small", parse_math=False)  # a name may have dollars
        for column, (name, layer_maps) in enumerate(maps.items(), start=1):
            axes = grid[row, column]
            axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
            shown = axes.imshow(layer_maps[row].numpy(), cmap=COLOURS, vmin=0, vmax=1, alpha=0.65)
            if row == 0:
                axes.set_title(name, fontsize="small")
    grid[0, 0].set_title("image", fontsize="small")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    if shown is not None:
        figure.colorbar(shown, ax=grid, label="explanation map", fraction=0.04, shrink=0.8)
    if subtitle:
        figure.supxlabel(subtitle, fontsize="small")
    return figure


def curves_figure(
    rows: pd.DataFrame,
    metrics: str | Sequence[str],
    fractions: Sequence[float] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Figure:
    """The mean curve of each layer and method, one panel a metric, with a band: the mean's interval at each point by itself.

    The intervals are by percentile bootstrap over the images (1,000 resamples). The legend gives the mean of the metric.

    Args:
        rows: of a run whose metrics kept their curves, such as `insertion(keep_curve=True)`.
        metrics: names.
        fractions: the curves' axis, shares of pixels in [0, 1]; equal steps from 0 to 1 unless told.
        level: of the intervals, in (0, 1).
        seed: of the resamples.

    Returns:
        A figure that belongs to no window; save it by `savefig`.

    Raises:
        MetricError: the rows hold no curves of a metric, or curves of other lengths than `fractions`.

    Example:
        >>> rows = pd.DataFrame({"layer": "p2", "method": "gradcam", "area": [0.5, 0.7]})
        >>> rows["area_curve"] = [[1.0, 0.0], [1.0, 0.4]]
        >>> curves_figure(rows, "area").axes[0].get_legend_handles_labels()[1]
        ['p2, gradcam: 0.600']
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for number, (label, curves) in enumerate(_curves(rows, name).items()):
            _band(axes, curves, fractions, level, seed, LINES[number % len(LINES)], label)
        axes.set(title=name, xlabel="share of pixels changed", xlim=(0, 1))
        axes.legend(fontsize="x-small", frameon=False)
    panels[0].set_ylabel(f"mean over images, {100 * level:g} % interval")
    return figure


def _curves(rows: pd.DataFrame, name: str) -> dict[str, np.ndarray]:
    """The curves `[N, S]` of each layer and method by what the legend calls them."""
    if f"{name}_curve" not in rows:
        raise MetricError(f"the rows hold no curves of {name!r}; a metric made with keep_curve=True keeps them")
    kept = rows[rows[f"{name}_curve"].notna()]
    return {
        f"{layer}, {method}: {group[name].mean():.3f}": np.stack([np.asarray(curve) for curve in group[f"{name}_curve"]])
        for (layer, method), group in kept.groupby(["layer", "method"], sort=False)
    }


def _band(
    axes: Axes, curves: np.ndarray, fractions: Sequence[float] | None, level: float, seed: int, colour: str, label: str
) -> None:
    """One mean curve with its band."""
    count, points = curves.shape
    axis = np.linspace(0, 1, points) if fractions is None else np.asarray(fractions)
    if len(axis) != points:
        raise MetricError(f"the curves have {points} points, but fractions has {len(axis)}; give the metric's own shares")
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=1000)
    low, high = np.quantile(drawn @ curves / count, [(1 - level) / 2, (1 + level) / 2], axis=0)
    axes.plot(axis, curves.mean(axis=0), color=colour, label=label)
    axes.fill_between(axis, low, high, color=colour, alpha=0.2, linewidth=0)
