"""The label that stands for no class."""

from __future__ import annotations

__all__ = ["IGNORED"]

IGNORED = 255  # the label of pixels and images without a class in many data sets; others use negative numbers
