"""Figures of effects and differences with their intervals."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaieval.report.figures.style import MARKERS, PAGE, colours, error_bars, fit_height, light_grid, new_figure

PANELS = {
    "accuracy": "accuracy, higher is better",
    "average_drop": "AD, lower is better",
    "average_drop_excess": "AD excess, lower is better",
    "increase_in_confidence": "IC, higher is better",
}
PARTS = {"fal": "maps used", "twin": "twin: maps not used", "gate": "difference: the gate"}
SCALE = "change in percentage points, 95 % interval over runs"
ROW = 0.55  # inches


def effects_figure(table: pd.DataFrame) -> Figure:
    """Main effects of the levels, with their intervals: one panel per outcome, one row per level.

    Args:
        table: The table of `xaieval.training.fal.statistics.effects.effects` with the four outcomes.
    """
    figure = new_figure(None, 1.4 * PAGE)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (outcome, title) in zip(panels, PANELS.items(), strict=True):
        _draw_effects(axes, table.loc[outcome])
        axes.set_title(title, fontsize="small")
    handles, labels = panels[0].get_legend_handles_labels()
    where = {"loc": "outside lower center", "ncols": len(PARTS), "frameon": False, "fontsize": "small"}
    figure.legend(handles, labels, title=SCALE, title_fontsize="small", **where)
    fit_height(panels[0], ROW * table.loc["accuracy"].index.get_level_values("level").nunique(), None)
    return figure


def _draw_effects(axes: Axes, table: pd.DataFrame) -> None:
    levels = list(table.index.get_level_values("level").unique())
    for number, (part, label) in enumerate(PARTS.items()):
        rows = table[table.index.get_level_values("part") == part]
        heights = [levels.index(level) + 0.22 * (number - 1) for level in rows.index.get_level_values("level")]
        _points(axes, rows, rows["effect"], heights, number, label)
    axes.set_yticks(range(len(levels)), ["all levels" if level == "all" else level for level in levels])
    axes.set_ylim(len(levels) - 0.5, -0.5)
    _zero(axes)


def differences_figure(table: pd.DataFrame) -> Figure:
    """Differences of arms from their twins, with their intervals: one panel per outcome, one row per arm.

    Args:
        table: The table of `arm_differences` with the four outcomes.
    """
    figure = new_figure(None, 1.4 * PAGE)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    order = table.loc["average_drop_excess"].sort_values("difference").index
    names = [arm.partition("@")[2] or arm for arm, _ in order]
    for axes, (outcome, title) in zip(panels, PANELS.items(), strict=True):
        rows = table.loc[outcome].loc[order]
        _points(axes, rows, rows["difference"], list(range(len(rows))), 0, "")
        axes.set_title(title, fontsize="small")
        _zero(axes)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("FAL minus its twin in percentage points, 95 % interval over runs", fontsize="small")
    fit_height(panels[0], 0.6 * ROW * len(names), None)
    return figure


def _points(axes: Axes, rows: pd.DataFrame, values: pd.Series, heights: list[float], number: int, label: str) -> None:
    ends = error_bars(values, rows["low"], rows["high"])
    style = {"fmt": MARKERS[number], "color": colours()[number], "capsize": 2, "markersize": 4}
    axes.errorbar(values, heights, xerr=ends, label=label, **style)


def _zero(axes: Axes) -> None:
    axes.axvline(0, color="0.5", linewidth=0.8, zorder=0)
    axes.tick_params(labelsize="small")
    light_grid(axes, "x")
