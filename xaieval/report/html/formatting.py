"""Numbers and intervals as text."""

from __future__ import annotations

from typing import Any

import pandas as pd

from xaieval.report.figures.data import NO_VALUE

__all__ = ["format_interval", "format_number"]


def format_number(value: Any, digits: int, signed: bool = False) -> str:
    """A number as text with `digits` decimals; a dash for a missing value.

    Example:
        >>> format_number(12.345, 1), format_number(-0.01, 1), format_number(float("nan"), 1) == NO_VALUE
        ('12.3', '0.0', True)
        >>> format_number(3.0, 1, signed=True), format_number(0.0, 1, signed=True)
        ('+3.0', '0.0')
    """
    if pd.isna(value):
        return NO_VALUE
    rounded = round(float(value), digits) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}"


def format_interval(mean: Any, low: Any, high: Any, digits: int, signed: bool = False) -> str:
    """A mean and its interval as text.

    Example:
        >>> format_interval(1.34, 0.4, 6.9, 1)
        '1.3 [0.4, 6.9]'
    """
    mean, low, high = (format_number(value, digits, signed) for value in (mean, low, high))
    return f"{mean} [{low}, {high}]"
