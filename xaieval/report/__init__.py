"""Figures of explanations, of what was measured of them, and of rankings; and a run as one HTML page."""

from __future__ import annotations

from xaieval.report.canvas import save_figure
from xaieval.report.choosing import images_to_show
from xaieval.report.classes import classes_figure
from xaieval.report.curves import curves_figure
from xaieval.report.heatmaps import heatmap_figure
from xaieval.report.maps import maps_figure, show
from xaieval.report.notebook import summary_html
from xaieval.report.page import Wanted, render_report, write_report
from xaieval.report.plots import plot
from xaieval.report.rankings import ranking_figure
from xaieval.report.spreads import spread_figure
from xaieval.report.thumbnails import Maps
from xaieval.report.tradeoffs import tradeoff_figure

__all__ = [
    "Maps",
    "Wanted",
    "classes_figure",
    "curves_figure",
    "heatmap_figure",
    "images_to_show",
    "maps_figure",
    "plot",
    "ranking_figure",
    "render_report",
    "save_figure",
    "show",
    "spread_figure",
    "summary_html",
    "tradeoff_figure",
    "write_report",
]
