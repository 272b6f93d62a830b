"""Figures of explanations."""

from __future__ import annotations

from xaieval.report.figures import maps_figure

__all__ = ["maps_figure"]
