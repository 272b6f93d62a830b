"""Layout of the charts of intervals, which the template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

__all__ = ["Interval", "Mark", "Panel", "draw_panel", "round_ticks"]

WIDTH, EDGE = 340, 10  # in SVG units; a phone's screen is about as wide
TOP, ROW = 6, 35
LONGEST = 26  # characters of a name that fit beside the numbers


class Interval(NamedTuple):
    """A mean with its interval, to be drawn as one row of a chart.

    Attributes:
        layer: Address of the layer.
        method: Name of the method.
        mean: The mean; NaN if it has no value, as the ends are then.
        low: Lower end of the interval.
        high: Upper end of the interval.
        text: Text beside it.
        muted: Whether to draw it in a muted style, as for control maps.
    """

    layer: str
    method: str
    mean: float
    low: float
    high: float
    text: str
    muted: bool = False


class Mark(NamedTuple):
    """One row of a chart; the positions `x`, `low` and `high` are in SVG units, None if there is no value."""

    name: str
    of: str
    full: str
    text: str
    y: int
    x: float | None
    low: float | None
    high: float | None
    muted: bool


class Panel(NamedTuple):
    """A chart of one metric.

    Attributes:
        title: Title of the chart.
        note: Which direction is better.
        marks: The rows.
        ticks: Positions and labels of the ticks.
        zero: Position of the line at zero, None if zero is not inside the chart.
        width: Width in SVG units.
        height: Height in SVG units.
        left_out: Number of rows that did not fit.
    """

    title: str
    note: str
    marks: list[Mark]
    ticks: list[tuple[float, str]]
    zero: float | None
    width: int
    height: int
    left_out: int


def draw_panel(
    title: str, note: str, intervals: Sequence[Interval], percent: bool, most: int = 40, *, with_zero: bool = False
) -> Panel:
    """Lay out a chart.

    Args:
        title: Title of the chart.
        note: Which direction is better.
        intervals: The rows, from top to bottom.
        percent: Whether the axis starts at 0 and ends at 100 at most, if the values allow it.
        most: The largest number of rows that are drawn; the others are counted.
        with_zero: Whether the axis includes zero whatever the values are, as for differences.

    Example:
        >>> panel = draw_panel("AD %", "lower is better", [Interval("p5", "gradcam", 50.0, 0.0, 100.0, "50")], True)
        >>> panel.marks[0].x, [words for _, words in panel.ticks]
        (170.0, ['0', '25', '50', '75', '100'])
    """
    drawn = intervals[:most]
    ticks = round_ticks([*([0.0] if with_zero else []), *(value for one in drawn for value in one[2:5])], percent)
    low, high = ticks[0], ticks[-1]

    def place(value: float) -> float | None:
        inside = EDGE + (WIDTH - 2 * EDGE) * (value - low) / (high - low)
        return round(min(max(inside, EDGE), WIDTH - EDGE), 1) if math.isfinite(value) else None

    marks = [_mark(one, TOP + ROW * number, [place(value) for value in one[2:5]]) for number, one in enumerate(drawn)]
    words = [(place(tick) or 0.0, f"{tick:g}") for tick in ticks]
    height = TOP + ROW * len(drawn) + 20
    zero = place(0.0) if low < 0 < high else None
    return Panel(title, note, marks, words, zero, WIDTH, height, len(intervals) - len(drawn))


def _mark(one: Interval, y: int, places: Sequence[float | None]) -> Mark:
    """A row of the chart at height `y`."""
    mean, low, high = places
    left = LONGEST - len(one.layer)
    full = f"{one.layer}, {one.method}: {one.text}"
    return Mark(
        _short(one.layer, LONGEST), _short(one.method, left) if left > 3 else "", full, one.text, y, mean, low, high, one.muted
    )


def _short(name: str, most: int) -> str:
    """The name, or the end of a name that is too long, since addresses differ at their ends."""
    return name if len(name) <= most else "\N{HORIZONTAL ELLIPSIS}" + name[len(name) - most + 1 :]


def round_ticks(values: Sequence[Any], percent: bool) -> list[float]:
    """Round numbers from one end of the axis to the other."""
    finite = [float(value) for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    if percent:
        low = min(low, 0.0)
        high = 100.0 if 50 < high <= 100 else high
    if high - low < 1e-9:
        low, high = low - 0.5 * (low != 0), high + 0.5
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(tick) for tick in np.round(ticks, 10)]
