"""Numbers as the report writes them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from xaieval.report.figures.data import NO_VALUE

__all__ = ["format_interval", "shown"]


def shown(value: Any, digits: int, signed: bool = False) -> str:
    """A number with so many decimals, or a dash where there is none.

    Example:
        >>> shown(12.345, 1), shown(-0.01, 1), shown(float("nan"), 1) == NO_VALUE
        ('12.3', '0.0', True)
        >>> shown(3.0, 1, signed=True), shown(0.0, 1, signed=True)
        ('+3.0', '0.0')
    """
    if pd.isna(value):
        return NO_VALUE
    rounded = round(float(value), digits) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}"


def format_interval(mean: Any, low: Any, high: Any, digits: int, signed: bool = False) -> str:
    """A mean and its interval.

    Example:
        >>> format_interval(1.34, 0.4, 6.9, 1)
        '1.3 [0.4, 6.9]'
    """
    mean, low, high = (shown(value, digits, signed) for value in (mean, low, high))
    return f"{mean} [{low}, {high}]"
