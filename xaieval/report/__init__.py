"""Figures of explanations, of what was measured of them, and of rankings; and a run as one HTML page."""

from __future__ import annotations

from xaieval.report.choosing import images_to_show
from xaieval.report.figures import curves_figure, maps_figure
from xaieval.report.page import Wanted, render_report, write_report
from xaieval.report.rankings import ranking_figure
from xaieval.report.thumbnails import Maps

__all__ = [
    "Maps",
    "Wanted",
    "curves_figure",
    "images_to_show",
    "maps_figure",
    "ranking_figure",
    "render_report",
    "write_report",
]
