"""How a metric is written in tables, figures and pages: its label, its decimals, and its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

__all__ = ["decimals_of", "interval_text", "label_of"]


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


def interval_text(low: float, high: float, form: str = ".1f", missing: str = "-") -> str:
    """The two ends of an interval in brackets, or `missing` where there is none, as for too few images.

    Example:
        >>> interval_text(19.13, 29.3), interval_text(float("nan"), float("nan"))
        ('[19.1, 29.3]', '[-]')
    """
    return f"[{missing}]" if pd.isna(low) or pd.isna(high) else f"[{low:{form}}, {high:{form}}]"
