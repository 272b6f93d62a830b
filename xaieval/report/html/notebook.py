"""A run as HTML for notebooks."""

from __future__ import annotations

from html import escape

from xaieval.analysis.controls import fooled_metrics
from xaieval.analysis.predictions import IMAGE_COLUMNS, predictions_of
from xaieval.analysis.warnings import find_warnings
from xaieval.report.figures.data import level_note
from xaieval.report.result_table import result_table
from xaieval.results.manifest import measured_text
from xaieval.results.metric_display import groups_text, label_of
from xaieval.results.record import RunRecord

__all__ = ["summary_html"]

FEW = 20_000  # the largest number of rows whose warnings are computed quickly enough


def summary_html(scores: RunRecord, level: float = 0.95) -> str:
    """The summary with intervals and warnings, as HTML without colours of its own, for light and dark pages.

    Args:
        scores: The run (`xaieval.Scores`).
        level: Level of the intervals, in (0, 1).

    Returns:
        One `<div>`, with all names escaped. Warnings are left out for more than 20,000 rows, since they would take long.

    Example:
        >>> import pandas as pd
        >>> from xaieval import Scores
        >>> rows = pd.DataFrame({"image_id": range(3), "layer": "<p2>", "method": "gradcam", "status": "ok"})
        >>> rows = rows.assign(a=[5.0, 9.0, 9.0])
        >>> scores = Scores(rows, {"metrics": [{"name": "a", "label": "A %", "higher_is_better": True, "interval": "mean"}]})
        >>> "<strong>7.7</strong> [" in summary_html(scores), "&lt;p2&gt;" in summary_html(scores)
        (True, True)
    """
    shown = result_table(scores, level)
    images = scores.n_images
    state = "" if scores.complete else ", the run is not complete"
    predictions = str(predictions_of(scores.images(IMAGE_COLUMNS), scores.manifest.get("classes")))
    told = f", {escape(predictions)}" if predictions else ""
    groups = "" if scores.n_groups is None else f" in {groups_text(scores.n_groups, scores.group_weights)}"
    measured = measured_text(scores.manifest)
    when = f", {escape(measured)}" if measured else ""
    head = f"<p><strong>Scores</strong> of {images:,} images{groups}{told}, {level_note(level)}{state}{when}</p>"
    wide = f'<div style="overflow-x: auto; white-space: nowrap">{shown.to_html()}</div>'  # an interval stays in one line
    return f"<div>{head}{wide}{_fooled(scores, level)}{_warnings(scores, level)}</div>"


def _fooled(scores: RunRecord, level: float) -> str:
    """The metrics that can be fooled, a line each."""
    labels = {entry["name"]: label_of(entry) for entry in scores.metrics}
    told = fooled_metrics(scores.sample.rows, scores.metrics, scores.controls, scores.group_weights, level, scores.seed)
    return "".join(f"<p>{escape(f'{labels[name]}: {text}')}</p>" for name, text in told.items())


def _warnings(scores: RunRecord, level: float) -> str:
    """The warnings as a list."""
    if scores.n_rows > FEW:
        return "<p>Call <code>warnings()</code> for reasons not to trust these numbers.</p>"
    found = find_warnings(scores, level)
    return f"<ul>{''.join(f'<li>{escape(finding.text)}</li>' for finding in found)}</ul>" if found else ""
