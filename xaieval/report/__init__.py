"""Figures of explanation maps, scores and rankings, and the HTML report of a run."""

from __future__ import annotations

from xaieval.report.figures.agreements import agreement_figure
from xaieval.report.figures.classes import classes_figure
from xaieval.report.figures.crosses import cross_figure
from xaieval.report.figures.curves import curves_figure
from xaieval.report.figures.heatmaps import heatmap_figure
from xaieval.report.figures.kinds import plot
from xaieval.report.figures.maps import maps_figure, show
from xaieval.report.figures.matched import matched_figure
from xaieval.report.figures.rankings import ranking_figure
from xaieval.report.figures.spreads import spread_figure
from xaieval.report.figures.style import save_figure
from xaieval.report.figures.tradeoffs import tradeoff_figure
from xaieval.report.html.image_choice import images_to_show
from xaieval.report.html.notebook import summary_html
from xaieval.report.html.page import ReportOptions, render_report, write_report
from xaieval.report.html.thumbnails import Maps
from xaieval.report.models_table import models_table
from xaieval.report.result_table import ResultTable, published_beside

__all__ = [
    "Maps",
    "ReportOptions",
    "ResultTable",
    "agreement_figure",
    "classes_figure",
    "cross_figure",
    "curves_figure",
    "heatmap_figure",
    "images_to_show",
    "maps_figure",
    "matched_figure",
    "models_table",
    "plot",
    "published_beside",
    "ranking_figure",
    "render_report",
    "save_figure",
    "show",
    "spread_figure",
    "summary_html",
    "tradeoff_figure",
    "write_report",
]
