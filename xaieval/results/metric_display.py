"""How a metric is written in tables, figures and pages: its label, its decimals, and its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from xaieval.config.groups import Weights

__all__ = ["counts_text", "decimals_of", "groups_text", "interval_text", "label_of", "mean_text"]


def label_of(metric: Mapping[str, Any]) -> str:
    """Short name of a metric with its unit.

    Args:
        metric: The metric's entry in the manifest.

    Example:
        >>> label_of({"name": "average_drop", "label": "AD %"}), label_of({"name": "mine"})
        ('AD %', 'mine')
    """
    return str(metric.get("label") or metric["name"])


def groups_text(groups: int, weights: Weights) -> str:
    """The number of groups, and what a mean counts.

    Example:
        >>> groups_text(21, "images"), groups_text(1, "groups")
        ('21 groups, weighted by images', '1 group, weighted by groups')
    """
    return f"{groups:,} {'group' if groups == 1 else 'groups'}, weighted by {weights}"


def counts_text(images: int, groups: int | None = None, weights: Weights = "images") -> str:
    """The number of images, and of their groups if there are any.

    Example:
        >>> counts_text(210), counts_text(210, 21)
        ('n = 210', 'n = 210 in 21 groups, weighted by images')
    """
    return f"n = {images}" + ("" if groups is None else f" in {groups_text(groups, weights)}")


def decimals_of(metric: Mapping[str, Any]) -> int:
    """Number of decimals of a metric: 1 for percentages, 3 for all other units, since these may be fractions of 1.

    Args:
        metric: The metric's entry in the manifest.

    Example:
        >>> decimals_of({"name": "average_drop", "label": "AD %"}), decimals_of({"name": "insertion", "label": "Insertion"})
        (1, 3)
    """
    return 1 if "%" in label_of(metric) else 3


def mean_text(mean: float, low: float, high: float, metric: Mapping[str, Any], sign: str = "") -> str:
    """A mean of a metric and its interval.

    Args:
        mean: The mean.
        low: Lower end of the interval; NaN for none.
        high: Upper end.
        metric: The metric's entry in the manifest.
        sign: "+" writes the sign of positive numbers, too.

    Example:
        >>> mean_text(23.94, 19.13, 29.3, {"name": "average_drop", "label": "AD %"})
        '23.9 [19.1, 29.3]'
    """
    form = f"{sign}z.{decimals_of(metric)}f"  # z: no negative zero
    return f"{mean:{form}} {interval_text(low, high, form)}"


def interval_text(low: float, high: float, form: str = ".1f", missing: str = "-") -> str:
    """The two ends of an interval in brackets, or `missing` where there is none, as for too few images.

    Example:
        >>> interval_text(19.13, 29.3), interval_text(float("nan"), float("nan"))
        ('[19.1, 29.3]', '[-]')
    """
    return f"[{missing}]" if pd.isna(low) or pd.isna(high) else f"[{low:{form}}, {high:{form}}]"
