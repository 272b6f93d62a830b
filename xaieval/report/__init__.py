"""Figures of explanations and of what was measured of them."""

from __future__ import annotations

from xaieval.report.figures import curves_figure, maps_figure

__all__ = ["curves_figure", "maps_figure"]
