"""Figures of docs/speed.md, from the CSV files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from compare import OURS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from record import read
from speed_tables import NAMES

__all__ = ["draw"]

# Colours that colour-blind people can distinguish (Okabe and Ito), and markers.
STYLES = [("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v")]


def draw(out: Path) -> None:
    """Draw every figure that has results."""
    for name, make in (("peers", _peers), ("limit", _limit), ("growth", _growth)):
        rows = read(out / f"{name}.csv")
        if not rows.empty:
            make(rows).savefig(out / f"{name}.png", dpi=150)


def _peers(rows: pd.DataFrame) -> Figure:
    """How many times faster xaieval is than each tool: a panel per model and processor, a line of dots per setting."""
    rows = rows[rows["tool"] != OURS]
    rows = rows.assign(panel=list(zip(rows["model"], rows["processor"], strict=True)))
    models = sorted(set(rows["panel"]), key=lambda panel: (list(NAMES).index(panel[0]), panel[1]))
    tools = list(rows["tool"].unique())
    heights = [_settings(rows[rows["panel"] == panel]) for panel in models]
    figure = Figure(figsize=(7.5, 1.2 + sum(0.55 * len(height) + 0.55 for height in heights)), layout="constrained")
    panels = figure.subplots(
        len(models), 1, sharex=True, squeeze=False, height_ratios=[len(height) + 0.5 for height in heights]
    )[:, 0]
    for axes, panel, settings in zip(panels, models, heights, strict=True):
        _dots(axes, rows[rows["panel"] == panel], settings, tools)
        axes.set_title(f"{NAMES[panel[0]]} ({panel[1]})", fontsize="medium", loc="left")
    panels[-1].set_xlabel(
        "how many times as fast xaieval is, each at its best batch size (median and range of rounds)", fontsize="small"
    )
    handles, labels = _legend(panels)
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure


def _settings(rows: pd.DataFrame) -> list[tuple[int, int]]:
    pairs = {(row.layers, row.methods) for row in rows.itertuples()}
    return sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair))


def _title(layers: int, methods: int) -> str:
    return f"{layers} layer{'s' * (layers > 1)}, {methods} method{'s' * (methods > 1)}"


def _dots(axes: Axes, rows: pd.DataFrame, settings: list[tuple[int, int]], tools: list[str]) -> None:
    for number, tool in enumerate(tools):
        part = rows[rows["tool"] == tool]
        heights = [
            settings.index((row.layers, row.methods)) + 0.18 * (number - (len(tools) - 1) / 2) for row in part.itertuples()
        ]
        middle = part["ours_is_faster"]
        reach = [middle - part["ours_is_faster_low"], part["ours_is_faster_high"] - middle]
        colour, marker = STYLES[number % len(STYLES)]
        axes.errorbar(
            middle, heights, xerr=reach, fmt=marker, color=colour, label=tool, markersize=5, capsize=2, linestyle="none"
        )
    axes.set_yticks(range(len(settings)), [_title(*setting) for setting in settings], fontsize="small")
    axes.set_ylim(len(settings) - 0.4, -0.6)
    axes.axvline(1, color="0.4", linewidth=0.8)
    axes.grid(axis="x", which="both", color="0.9")
    _log(axes, [0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20])


def _log(axes: Axes, ticks: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def _legend(panels: list[Axes]) -> tuple[list[object], list[str]]:
    entries = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(entries.values()), list(entries)


def _limit(rows: pd.DataFrame) -> Figure:
    """Efficiency over the number of maps per image, a panel per baseline."""
    baselines = list(rows["baseline"].unique())
    figure = Figure(figsize=(4.2 * len(baselines), 3.6), layout="constrained")
    panels = figure.subplots(1, len(baselines), sharey=True, squeeze=False)[0]
    for axes, baseline in zip(panels, baselines, strict=True):
        for (model, part), (colour, marker) in zip(rows[rows["baseline"] == baseline].groupby("model"), STYLES, strict=False):
            part = part.sort_values("maps")
            middle = part["efficiency"]
            reach = [middle - part["efficiency_low"], part["efficiency_high"] - middle]
            axes.errorbar(part["maps"], middle, yerr=reach, color=colour, marker=marker, capsize=2, label=NAMES[model])
        axes.axhline(1, color="0.4", linewidth=0.8)
        axes.set_title(f"the model {baseline}", fontsize="medium")
        axes.set_xlabel("maps an image (layers x methods)")
        _log(axes, sorted(rows["maps"].unique()))
        axes.grid(color="0.9")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("time of bare passes / time of score")
    panels[0].legend(frameon=False, fontsize="small", loc="lower right")
    return figure


AXES = {"images": "images N", "layers": "layers L", "methods": "methods M", "batch_size": "batch size"}


def _growth(rows: pd.DataFrame) -> Figure:
    """Time (above) and memory (below) over each axis."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    grid = figure.subplots(2, len(AXES), sharex="col", sharey="row")
    for column, (axis, label) in enumerate(AXES.items()):
        for (_, part), (colour, marker) in zip(rows[rows["axis"] == axis].groupby("model"), STYLES, strict=False):
            part = part.sort_values(axis)
            for row, value in enumerate(("seconds", "added_mib")):
                middle = part[value]
                reach = [middle - part[f"{value}_low"], part[f"{value}_high"] - middle]
                grid[row, column].errorbar(
                    part[axis], middle, yerr=reach, color=colour, marker=marker, capsize=2, label=NAMES[part["model"].iloc[0]]
                )
        grid[1, column].set_xlabel(label)
    for axes in grid.flat:  # at the end, since shared axes adapt to what is drawn
        axes.grid(color="0.9")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    grid[0, 0].set_ylabel("seconds of the call")
    grid[1, 0].set_ylabel("memory of the call, MiB")
    grid[0, 0].legend(frameon=False, fontsize="small")
    return figure
