"""Numbers as the report writes them."""

from __future__ import annotations

from typing import Any

import pandas as pd

__all__ = ["NOTHING", "shown", "with_interval"]

NOTHING = "\N{EN DASH}"  # where there is no value


def shown(value: Any, digits: int, signed: bool = False) -> str:
    """A number with so many decimals, or a dash where there is none.

    Example:
        >>> shown(12.345, 1), shown(-0.01, 1), shown(float("nan"), 1) == NOTHING
        ('12.3', '0.0', True)
        >>> shown(3.0, 1, signed=True), shown(0.0, 1, signed=True)
        ('+3.0', '0.0')
    """
    if pd.isna(value):
        return NOTHING
    rounded = round(float(value), digits) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}"


def with_interval(mean: Any, low: Any, high: Any, digits: int) -> str:
    """A mean and its interval.

    Example:
        >>> with_interval(1.34, 0.4, 6.9, 1)
        '1.3 [0.4, 6.9]'
    """
    return f"{shown(mean, digits)} [{shown(low, digits)}, {shown(high, digits)}]"
