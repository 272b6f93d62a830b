"""A run as a notebook shows it."""

from __future__ import annotations

from html import escape
from typing import Any

import pandas as pd

from xaieval.analysis.warnings import find_doubts
from xaieval.report.figures.data import level_note, summary_of
from xaieval.report.html.formatting import format_interval
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.record import RunRecord

__all__ = ["summary_html"]

FEW = 20_000  # rows for which the reasons to doubt them are found in a moment


def summary_html(scores: RunRecord, level: float = 0.95) -> str:
    """The summary with intervals and the reasons to doubt it, as HTML without colours of its own, for light and dark pages.

    Args:
        scores: a run.
        level: of the intervals, in (0, 1).

    Returns:
        One `<div>`, all names escaped. For more than 20,000 rows the warnings are left out, which would take a while.

    Example:
        >>> from xaieval import Scores
        >>> rows = pd.DataFrame({"image_id": range(3), "layer": "<p2>", "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(a=[5.0, 9.0, 9.0])
        >>> scores = Scores(rows, {"metrics": [{"name": "a", "label": "A %", "higher_is_better": True, "interval": "mean"}]})
        >>> "<td>7.7 [" in summary_html(scores), "&lt;p2&gt;" in summary_html(scores)
        (True, True)
    """
    table = _table(scores, level).to_html(escape=True, index=False, border=0, justify="left")
    images = scores.rows["image_id"].nunique()
    state = "" if scores.complete else ", the run is not complete"
    head = f"<p><strong>Scores</strong> of {images:,} images, {level_note(level)}{state}</p>"
    wide = f'<div style="overflow-x: auto; white-space: nowrap">{table}</div>'  # an interval stays in its line
    return f"<div>{head}{wide}{_doubts(scores, level)}</div>"


def _table(scores: RunRecord, level: float) -> pd.DataFrame:
    """A column a metric, the mean with its interval."""
    summary = summary_of(scores, level).reset_index()
    shown = summary[["layer", "method"]].astype(str)
    for entry in scores.metrics:
        arrow = {True: " ↑", False: " ↓", None: ""}[entry["higher_is_better"]]
        cells = [_cell(row, entry["name"], decimals_of(entry)) for row in summary.to_dict("records")]
        shown[f"{label_of(entry)}{arrow}"] = cells
    shown["n"] = summary["n_images"]
    shown["failed"] = summary["n_failed"]
    return shown


def _cell(row: dict[Any, Any], name: str, decimals: int) -> str:
    return format_interval(*(row[name + end] for end in ("", "_low", "_high")), decimals) if pd.notna(row[name]) else "no value"


def _doubts(scores: RunRecord, level: float) -> str:
    if len(scores.rows) > FEW:
        return "<p>Call <code>warnings()</code> for reasons to doubt these numbers.</p>"
    found = find_doubts(scores.rows, scores.metrics, scores.controls, level, scores.seed, scores.complete)
    return f"<ul>{''.join(f'<li>{escape(doubt)}</li>' for doubt in found)}</ul>" if found else ""
