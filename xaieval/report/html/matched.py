"""The section of a report that compares maps with others of the same size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from xaieval.analysis.matched import compare_with_matched_controls
from xaieval.report.figures.data import DIRECTIONS
from xaieval.report.html.formatting import format_interval, format_number
from xaieval.report.html.interval_chart import Interval, Panel, draw_panel
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.record import RunRecord

__all__ = ["MatchedLine", "MatchedSection", "matched_of"]

MOST_PANELS = 4  # the largest number of metrics with a chart


class MatchedLine(NamedTuple):
    """A layer, method and metric: the mean, those of its matched controls, the excess, and which controls are not beaten."""

    layer: str
    method: str
    metric: str
    value: str
    controls: list[str]
    excess: str
    won: str
    missed: list[str]


class MatchedSection(NamedTuple):
    """The section: the controls, the charts of the excess over the first one, and the table."""

    controls: list[str]
    panels: list[Panel]
    lines: list[MatchedLine]


def matched_of(scores: RunRecord, level: float) -> MatchedSection | None:
    """The section; None for a run without matched controls."""
    if not scores.matched_controls:
        return None
    table = compare_with_matched_controls(
        scores.sample.rows, scores.metrics, scores.matched_controls, scores.controls, level, scores.seed, scores.group_weights
    )
    entries = {metric["name"]: metric for metric in scores.metrics}
    lines = [
        _line(str(layer), str(method), entries[metric], tests, scores.matched_controls)
        for (layer, method, metric), tests in table.groupby(["layer", "method", "metric"], sort=False)
    ]
    first = table[table["control"] == scores.matched_controls[0]]
    panels = [_panel(entries[name], tests) for name, tests in first.groupby("metric", sort=False)][:MOST_PANELS]
    return MatchedSection(scores.matched_controls, panels, lines)


def _line(layer: str, method: str, metric: Mapping[str, Any], tests: pd.DataFrame, controls: list[str]) -> MatchedLine:
    by_control = {row["control"]: row for row in tests.to_dict("records")}
    digits, missing = decimals_of(metric), {"control_value": float("nan")}
    row = by_control.get(controls[0], {"excess": float("nan"), "low": float("nan"), "high": float("nan")})
    missed = [name for name, one in by_control.items() if not one["beats"]]
    return MatchedLine(
        layer,
        method,
        label_of(metric),
        format_number(tests["value"].iloc[0], digits),
        [format_number(by_control.get(name, missing)["control_value"], digits) for name in controls],
        format_interval(row["excess"], row["low"], row["high"], digits, signed=True),
        f"{len(by_control) - len(missed)} of {len(by_control)}",
        missed,
    )


def _panel(metric: Mapping[str, Any], tests: pd.DataFrame) -> Panel:
    """A chart of the excess over one control; muted where the method does not beat it."""
    digits = decimals_of(metric)
    intervals = [
        Interval(
            row["layer"],
            row["method"],
            row["excess"],
            row["low"],
            row["high"],
            format_interval(row["excess"], row["low"], row["high"], digits, signed=True),
            muted=not row["beats"],
        )
        for row in tests.to_dict("records")
    ]
    title = f"{label_of(metric).removesuffix(' %')} minus that of {tests['control'].iloc[0]} maps"
    return draw_panel(title, DIRECTIONS[metric["higher_is_better"]], intervals, percent=False, with_zero=True)
