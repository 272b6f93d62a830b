"""Tests of paired differences, their effect size, and Holm's correction for several tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import scipy  # whose `stats` takes long to import, and is loaded when it is used
from numpy.typing import ArrayLike, NDArray

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.permutation import TINY, sign_flip_p_values
from xaieval.errors import MetricError, choose_from

__all__ = ["PairedTest", "check_test", "holm", "paired_p_values", "rank_biserial"]

PairedTest = Literal["signs", "wilcoxon"]
Floats = NDArray[np.float64]


def paired_p_values(
    differences: ArrayLike,
    test: PairedTest = "signs",
    resamples: int = 9999,
    seed: int = 0,
    *,
    groups: Grouping | None = None,
) -> Floats:
    """Two-sided p-values of "there is no difference", one per test, in (0, 1].

    "signs" tests whether the mean of the differences is 0, by sign flips with a correction for skewness. "wilcoxon" is
    Wilcoxon's signed-rank test, which is less sensitive to outliers, and tests whether the differences are symmetric about 0:
    skewed differences are significant even if their mean is 0. If all differences of a test have the same size (binary values),
    both are McNemar's exact test.

    With groups, "signs" flips whole groups, and "wilcoxon" ranks their means, each of which counts the same.

    Args:
        differences: Paired differences `[N, T]`, one column per test. Missing pairs are NaN; NaN and 0 are left out.
        test: "signs" or "wilcoxon".
        resamples: Number of random sign vectors, which limits how small a p-value can be resolved.
        seed: Seed of the random signs.
        groups: Which images belong together. Default: all are independent.

    Returns:
        `[T]`; 1 for a column without differences.

    Raises:
        MetricError: The test is unknown, or the differences are not a table.

    Reference:
        As for `sign_flip_p_values`, whose one-sided p-value of the observed side is doubled; Wilcoxon, "Individual comparisons
        by ranking methods", Biometrics Bulletin 1945.

    Example:
        >>> paired_p_values([[100, 4], [100, 2], [100, -1], [0, 0]]).tolist()  # 2 of 8 and 4 of 8 sign vectors
        [0.25, 0.5]
    """
    check_test(test)
    table = _table(differences)
    if test == "wilcoxon":
        independent = table if groups is None else replace(groups, weights="groups").totals(table)
        return np.array([_wilcoxon(column) for column in independent.T])
    independent = np.where(np.isnan(table), 0.0, table) if groups is None else groups.totals(table)
    observed = np.sign(independent.sum(axis=0))
    return np.minimum(2 * sign_flip_p_values(observed * independent, resamples, seed), 1.0)


def holm(p_values: ArrayLike, family: int | None = None) -> list[float]:
    """p-values corrected for multiple tests by Holm's method, which controls the family-wise error rate.

    Args:
        p_values: p-values of the tests.
        family: Number of tests in the family, if the data decided which of them were made (default: the number of p-values).

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=float)
    order = np.argsort(given, kind="stable")
    steps = given[order] * np.arange(family or len(given), (family or len(given)) - len(given), -1)
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in corrected]


def rank_biserial(differences: ArrayLike) -> float:
    """Matched-pairs rank-biserial correlation, in [-1, 1]: 1 if every difference is positive, 0 if they balance.

    The share of the ranks of absolute differences that belongs to positive differences, minus the share of negative ones. For
    binary values it is the difference of the two numbers of discordant images, divided by their sum.

    Args:
        differences: Paired differences `[N]`; zeros and NaN are left out.

    Returns:
        NaN if no difference is left.

    Reference:
        Kerby, "The simple difference formula: an approach to teaching nonparametric correlation", Comprehensive Psychology
        3, 2014.

    Example:
        >>> rank_biserial([3, 4, 9, -1])  # ranks 2 + 3 + 4 against 1, of 10
        0.8
    """
    values = _nonzero(differences)
    if not len(values):
        return float("nan")
    ranks = _ranks(np.abs(values))
    return float((np.sign(values) * ranks).sum() / ranks.sum())


def check_test(test: str) -> None:
    """Raise an error if there is no paired test of that name.

    Raises:
        MetricError: The test is unknown.
    """
    if test not in get_args(PairedTest):
        raise MetricError(f"no paired test {test!r}; {choose_from(test, get_args(PairedTest))}")


def _wilcoxon(differences: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test without zeros; McNemar's exact test for differences of one size.

    SciPy only approximates the latter.

    Example:
        >>> _wilcoxon([3, 4, 9, -1])  # ranks 2, 3, 4 and -1: 2 of 16 sign vectors have a sum of 8 or more, on each side
        0.25
    """
    values = _nonzero(differences)
    if not len(values):
        return 1.0
    if np.ptp(np.abs(values)) == 0:
        return max(float(scipy.stats.binomtest(int((values > 0).sum()), len(values)).pvalue), TINY)
    return max(float(scipy.stats.wilcoxon(values).pvalue), TINY)


def _table(differences: ArrayLike) -> Floats:
    """Differences `[N, T]`."""
    table = np.asarray(differences, dtype=float)
    if table.ndim != 2:
        raise MetricError(f"differences are [N, T], one column per test; got shape {table.shape}")
    return table


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values have the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def _nonzero(differences: ArrayLike) -> Floats:
    values = np.asarray(differences, dtype=float)
    return values[~np.isnan(values) & (values != 0)]
