"""The numbers over all images at once in a report, such as MaxBoxAccV2: a table and charts."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from xaieval.analysis.pooled import pooled, pooled_numbers, why_no_pooled_interval
from xaieval.report.html.interval_chart import Panel
from xaieval.report.html.sections import Line, lines_of, panels_of
from xaieval.results.metric_display import label_of
from xaieval.results.record import RunRecord

__all__ = ["PooledSection", "pooled_of"]


class PooledSection(NamedTuple):
    """The label of each number with its images, the rows of the table, the charts, and why an interval is missing."""

    headings: list[tuple[str, str]]
    lines: list[Line]
    panels: list[Panel]
    why_no_interval: str


def pooled_of(scores: RunRecord, summary: pd.DataFrame, level: float) -> PooledSection | None:
    """The section; None for a run without such numbers.

    Args:
        scores: A run.
        summary: Its summary.
        level: Level of the intervals.
    """
    numbers = pooled_numbers(scores.sample.rows, scores.metrics)
    if not numbers:
        return None
    table = pooled(scores.sample.rows, scores.metrics, None, level, seed=scores.seed, weights=scores.group_weights)
    counts = summary[["n_images", "n_failed"]].join(table)
    headings = [(label_of(number), _images(table[f"{number['name']}_n"])) for number in numbers]
    return PooledSection(
        headings, lines_of(scores, counts, numbers), panels_of(scores, table, numbers), why_no_pooled_interval(table, numbers)
    )


def _images(counts: pd.Series[int]) -> str:
    """The number of images, or the smallest and the largest one."""
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low}" if low == high else f"n = {low} to {high}"
