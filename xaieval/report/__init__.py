"""Figures of explanations, of what was measured of them, and of rankings."""

from __future__ import annotations

from xaieval.report.figures import curves_figure, maps_figure
from xaieval.report.rankings import ranking_figure

__all__ = ["curves_figure", "maps_figure", "ranking_figure"]
