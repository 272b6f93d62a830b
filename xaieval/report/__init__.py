"""Figures of explanations and of rankings."""

from __future__ import annotations

from xaieval.report.figures import maps_figure
from xaieval.report.rankings import ranking_figure

__all__ = ["maps_figure", "ranking_figure"]
