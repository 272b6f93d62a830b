"""Numbers and intervals as text."""

from __future__ import annotations

from typing import Any

import pandas as pd

from xaieval.report.figures.data import NO_VALUE

__all__ = ["format_ends", "format_interval", "format_number"]


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
    """A mean and its interval as text; a dash for a missing interval.

    Example:
        >>> format_interval(1.34, 0.4, 6.9, 1)
        '1.3 [0.4, 6.9]'
    """
    return f"{format_number(mean, digits, signed)} {format_ends(low, high, digits, signed)}"


def format_ends(low: Any, high: Any, digits: int, signed: bool = False) -> str:
    """The two ends of an interval in brackets; a dash if there is none, as for too few images.

    Example:
        >>> format_ends(0.4, 6.9, 1)
        '[0.4, 6.9]'
    """
    ends = [format_number(value, digits, signed) for value in (low, high)]
    return f"[{NO_VALUE}]" if NO_VALUE in ends else f"[{', '.join(ends)}]"
