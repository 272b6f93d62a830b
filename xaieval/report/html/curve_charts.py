"""Layout of the charts of curves such as insertion and deletion, which the template draws as SVG."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.tables import column_means
from xaieval.report.figures.data import DIRECTIONS, pairs_of, rows_of
from xaieval.report.html.formatting import format_number
from xaieval.report.html.interval_chart import round_ticks
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.record import RunRecord
from xaieval.results.rows import GROUP

__all__ = ["Curve", "CurveChart", "curve_charts_of"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 230, 34, 10, 8, 34  # in SVG units
MOST_CURVES = 8  # which can be told apart


class Curve(NamedTuple):
    """The mean curve of a layer and method: its points as SVG writes them, and the mean of the metric as text."""

    layer: str
    method: str
    points: str
    text: str


class CurveChart(NamedTuple):
    """A chart of one metric; ticks are positions with labels, and `left_out` counts the curves that are not drawn."""

    title: str
    note: str
    curves: list[Curve]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    width: int
    height: int
    left_out: int


def curve_charts_of(scores: RunRecord) -> list[CurveChart]:
    """A chart for each metric whose curves are in the rows, over the share of the pixels that is changed; without controls."""
    charts = []
    for metric in scores.metrics:
        settings = metric.get("settings") or {}
        if "pooled" not in settings and f"{metric['name']}_curve" in scores.column_names:  # a pooled one is over thresholds
            charts += _chart(scores, metric)
    return charts


def _chart(scores: RunRecord, metric: dict[str, Any]) -> list[CurveChart]:
    """The chart of a metric; none if no row has a curve."""
    name = metric["name"]
    rows = scores.sample.rows[scores.sample.rows[f"{name}_curve"].notna() & ~scores.sample.rows["method"].isin(scores.controls)]
    pairs = pairs_of(rows)
    if not pairs:
        return []
    means = {pair: _mean(scores, rows_of(rows, pair), name) for pair in pairs}
    shown = {pair: points for pair, (points, _) in list(means.items())[:MOST_CURVES]}
    ticks = round_ticks([0.0, *(float(end) for points in shown.values() for end in (points.min(), points.max()))], False)
    low, high = ticks[0], ticks[-1]

    def across(share: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (value - low) / (high - low), 1)

    curves = [
        Curve(
            *pair,
            " ".join(f"{across(share)},{up(value)}" for share, value in zip(_axis(metric, len(points)), points, strict=True)),
            format_number(means[pair][1], decimals_of(metric)),
        )
        for pair, points in shown.items()
    ]
    note = f"{DIRECTIONS[metric['higher_is_better']]}; mean over the share of the pixels that is changed"
    steps = [(across(share), f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    levels = [(up(value), f"{value:g}") for value in ticks]
    return [CurveChart(label_of(metric), note, curves, steps, levels, WIDTH, HEIGHT, len(pairs) - len(shown))]


def _mean(scores: RunRecord, rows: Any, name: str) -> tuple[Any, float]:
    """The mean curve and the mean of the metric over the images of a layer and method."""
    groups = Grouping(rows[GROUP].to_numpy(dtype=object), scores.group_weights) if GROUP in rows else None
    points = np.stack([np.asarray(curve, dtype=float) for curve in rows[f"{name}_curve"]])
    return column_means(points, groups), float(column_means(rows[[name]].to_numpy(dtype=float), groups)[0])


def _axis(metric: dict[str, Any], count: int) -> Any:
    """The share of the pixels that is changed at each point."""
    return (metric.get("settings") or {}).get("fractions") or np.linspace(0, 1, count)
