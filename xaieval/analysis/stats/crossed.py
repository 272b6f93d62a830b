"""Interval and test of a mean over two crossed samples, such as groups of images and seeds of training."""

from __future__ import annotations

import numpy as np
import scipy  # whose `stats` takes long to import, and is loaded when it is used
from numpy.typing import ArrayLike, NDArray

from xaieval.analysis.stats.estimates import check_level
from xaieval.errors import MetricError

__all__ = ["crossed_interval", "crossed_p_value"]

Floats = NDArray[np.float64]


def crossed_interval(table: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of a table whose rows and columns are both samples, in the unit of the values.

    If each of S networks is scored on the same B groups of images, neither the B x S values nor the B means of the groups are
    independent: another network would shift a whole column, other images a whole row. The variance of the mean is that of the
    two-way analysis of variance with random rows and columns, `(MS_rows + MS_columns - MS_rest) / (B * S)`, with the degrees of
    freedom of Satterthwaite. Neither is taken to be less than rows or columns alone give: their difference to the rest can be
    negative by chance.

    Args:
        table: One value per group of images and network, `[B, S]`, all finite; such as means of groups, or their differences
            between two arms.
        level: Level of the interval, in (0, 1).

    Returns:
        Lower and upper end; NaN if all values are the same, which says nothing about their spread.

    Raises:
        MetricError: The level is not in (0, 1), or the table has fewer than two rows or columns or values that are not finite.

    Reference:
        Searle, Casella and McCulloch, "Variance Components", 1992, section 4.6; Satterthwaite, Biometrics Bulletin 2, 1946.

    Example:
        >>> low, high = crossed_interval([[10.0, 12.0], [20.0, 22.0], [30.0, 32.0]])
        >>> low < 21 < high
        True
    """
    check_level(level)
    values = _checked(table)
    error, freedom = _standard_error(values)
    reach = scipy.stats.t.ppf((1 + level) / 2, freedom) * error
    return float(values.mean() - reach), float(values.mean() + reach)


def crossed_p_value(table: ArrayLike) -> float:
    """Two-sided p-value of the hypothesis that the mean of a table is 0 whose rows and columns are both samples.

    Args:
        table: As in `crossed_interval`, whose interval of level `1 - p` has 0 as an end.

    Returns:
        The p-value; NaN if all values are the same.

    Raises:
        MetricError: As in `crossed_interval`.

    Example:
        >>> round(crossed_p_value([[1.0, 2.0], [2.0, 3.0], [1.5, 2.5]]), 2)
        0.09
    """
    values = _checked(table)
    error, freedom = _standard_error(values)
    return float(2 * scipy.stats.t.sf(abs(values.mean()) / error, freedom))


def _checked(table: ArrayLike) -> Floats:
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or min(values.shape) < 2:
        raise MetricError(f"an interval over two samples needs at least 2 rows and 2 columns, got the shape {values.shape}")
    if not np.isfinite(values).all():
        raise MetricError(f"an interval over two samples needs finite values, got {np.sum(~np.isfinite(values))} others")
    return values


def _standard_error(values: Floats) -> tuple[float, float]:
    """The standard error of the mean, and its degrees of freedom; NaN if all values are the same."""
    squares, freedom = _mean_squares(values)
    total = max(squares[0] + squares[1] - squares[2], *squares[:2])
    if total == 0:
        return float("nan"), float("nan")
    satterthwaite = total**2 / np.sum(squares**2 / freedom)
    return float(np.sqrt(total / values.size)), float(max(satterthwaite, min(freedom)))


def _mean_squares(values: Floats) -> tuple[Floats, Floats]:
    """The mean squares of rows, columns and the rest, and their degrees of freedom."""
    rows, columns = values.shape
    of_rows, of_columns = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    rest = values - of_rows - of_columns + values.mean()
    freedom = np.array([rows - 1, columns - 1, (rows - 1) * (columns - 1)], dtype=float)
    sums = [columns * np.var(of_rows) * rows, rows * np.var(of_columns) * columns, np.sum(rest**2)]
    return np.array(sums) / freedom, freedom
