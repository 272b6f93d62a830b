"""How maps are coloured, in figures, files and pages alike."""

from __future__ import annotations

__all__ = ["COLOURS", "OPAQUE"]

COLOURS = "inferno"  # perceptually uniform, also for colour-blind readers
OPAQUE = 0.65  # opacity of a map over its image
