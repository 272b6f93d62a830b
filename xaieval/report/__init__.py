"""Figures of explanation maps, scores and rankings, and the HTML report of a run.

Each name is loaded when it is first used: tables need no figures, and reports without maps no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from xaieval.report.result_table import ResultTable, published_beside
    from xaieval.report.table_of_models import models_table

_HOMES = {  # none of these names is that of a module here, which would hide it
    "Maps": "xaieval.report.html.thumbnails",
    "ReportOptions": "xaieval.report.html.page",
    "ResultTable": "xaieval.report.result_table",
    "agreement_figure": "xaieval.report.figures.agreements",
    "classes_figure": "xaieval.report.figures.classes",
    "cross_figure": "xaieval.report.figures.crosses",
    "curves_figure": "xaieval.report.figures.curves",
    "heatmap_figure": "xaieval.report.figures.heatmaps",
    "images_to_show": "xaieval.report.html.image_choice",
    "maps_figure": "xaieval.report.figures.maps",
    "matched_figure": "xaieval.report.figures.matched",
    "models_table": "xaieval.report.table_of_models",
    "plot": "xaieval.report.figures.kinds",
    "published_beside": "xaieval.report.result_table",
    "ranking_figure": "xaieval.report.figures.rankings",
    "render_report": "xaieval.report.html.page",
    "save_figure": "xaieval.report.figures.style",
    "show": "xaieval.report.figures.maps",
    "spread_figure": "xaieval.report.figures.spreads",
    "summary_html": "xaieval.report.html.notebook",
    "tradeoff_figure": "xaieval.report.figures.tradeoffs",
    "write_report": "xaieval.report.html.page",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'xaieval.report' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
