"""The section of a report on cross scores: the maps of each model on each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from xaieval.analysis.cross import PARTS, cross_notes, cross_table, split_differences
from xaieval.report.figures.data import DIRECTIONS
from xaieval.report.html.formatting import format_ends, format_interval, format_number
from xaieval.report.html.interval_chart import Interval, Panel, draw_panel
from xaieval.results.metric_display import counts_text, decimals_of, label_of
from xaieval.results.record import RunRecord

__all__ = ["CrossLine", "CrossSection", "cross_section"]

WORDS = dict(zip(PARTS, ("", ": maps", ": models"), strict=True))  # after the name of the method


class CrossLine(NamedTuple):
    """The maps of one model, or a control map, on every model: means with intervals as text."""

    layer: str
    method: str
    metric: str
    masks_of: str
    control: bool
    cells: list[tuple[str, str]]
    images: int


class CrossSection(NamedTuple):
    """Cross scores as text and charts.

    Attributes:
        models: The names of the models.
        lines: The rows of the table.
        panels: For each metric and two models, a chart of the differences between their own scores and of both parts.
        notes: How many images do not count, and why.
        counts: The numbers of images and groups.
        tests: The number of tests, which are corrected together.
    """

    models: list[str]
    lines: list[CrossLine]
    panels: list[Panel]
    notes: list[str]
    counts: str
    tests: int


def cross_section(cross: RunRecord, level: float) -> CrossSection:
    """The tables of `xaieval.cross_score` for a page.

    Args:
        cross: The result of `xaieval.cross_score` (`xaieval.CrossScores`).
        level: Level of the intervals, and 1 minus the probability of even one false positive, in (0, 1).

    Raises:
        MetricError: The level is not in (0, 1).
    """
    models, weights = list(cross.manifest["cross"]["models"]), cross.group_weights
    table = cross_table(cross.rows, cross.metrics, None, level, weights)
    parts = split_differences(cross.rows, cross.metrics, models, None, level, seed=cross.seed, weights=weights)
    images = int(cross.rows["image_id"].nunique())
    groups = cross.manifest.get("groups", {}).get("count")
    return CrossSection(
        models,
        _lines(cross, table, models),
        _panels(cross, parts, level),
        cross_notes(cross.rows),
        counts_text(images, groups, weights),
        len(parts),
    )


def _lines(cross: RunRecord, table: pd.DataFrame, models: list[str]) -> list[CrossLine]:
    """A row for each layer, method, metric, and maps."""
    metrics = {metric["name"]: metric for metric in cross.metrics}
    lines = []
    groups: Any = table.groupby(["layer", "method", "metric", "masks_of"], sort=False)
    for (layer, method, metric, masks_of), cells in groups:
        by_model = {row["model"]: row for row in cells.reset_index().to_dict("records")}
        texts = [_cell(by_model[model], metrics[metric]) for model in models]
        count = int(cells["n_images"].min())
        lines.append(CrossLine(layer, method, label_of(metrics[metric]), masks_of, masks_of in cross.controls, texts, count))
    return lines


def _cell(row: Mapping[Any, Any], metric: Mapping[str, Any]) -> tuple[str, str]:
    digits = decimals_of(metric)
    return format_number(row["mean"], digits), format_ends(row["low"], row["high"], digits)


def _panels(cross: RunRecord, parts: pd.DataFrame, level: float) -> list[Panel]:
    """A chart for each metric and two models."""
    metrics = {metric["name"]: metric for metric in cross.metrics}
    panels = []
    for (name, first, second), rows in parts.reset_index().groupby(["metric", "first", "second"], sort=False):
        metric = metrics[name]
        intervals = [_interval(row, decimals_of(metric), level) for row in rows.to_dict("records")]
        title = f"{label_of(metric)}, {first} minus {second}"
        panels.append(draw_panel(title, f"differences; {DIRECTIONS[metric['higher_is_better']]}", intervals, False))
    return panels


def _interval(row: Mapping[Any, Any], digits: int, level: float) -> Interval:
    """A row of a chart; what is not significant is muted."""
    ends = row["value"], row["low"], row["high"]
    text = format_interval(*ends, digits, signed=True)
    return Interval(row["layer"], f"{row['method']}{WORDS[row['part']]}", *ends, text, not row["p_holm"] < 1 - level)
