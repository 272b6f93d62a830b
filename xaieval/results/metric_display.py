"""How a metric is written in tables, figures and pages: its label and the number of decimals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["decimals_of", "label_of"]


def label_of(metric: Mapping[str, Any]) -> str:
    """Short name of a metric with its unit.

    Args:
        metric: The metric's entry in the manifest.

    Example:
        >>> label_of({"name": "average_drop", "label": "AD %"}), label_of({"name": "mine"})
        ('AD %', 'mine')
    """
    return str(metric.get("label") or metric["name"])


def decimals_of(metric: Mapping[str, Any]) -> int:
    """Number of decimals of a metric: 1 for percentages, 3 for all other units, since these may be fractions of 1.

    Args:
        metric: The metric's entry in the manifest.

    Example:
        >>> decimals_of({"name": "average_drop", "label": "AD %"}), decimals_of({"name": "insertion", "label": "Insertion"})
        (1, 3)
    """
    return 1 if "%" in label_of(metric) else 3
