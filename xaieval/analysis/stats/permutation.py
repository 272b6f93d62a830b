"""The paired test by signs for many columns at once: the same signs serve all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm

from xaieval.errors import MetricError

__all__ = ["sign_flip_p_values"]

Floats = NDArray[np.float64]

EXACT = 13  # differences up to which all signs are tried: 8192 of them
MANY = 10_000  # differences from which the normal distribution stands for random signs: it is off by less than the draws are
# The smallest c for which a sum of random signs, with weights whose squares sum to 1, reaches any x with at most c times the
# probability with which a standard normal variable does (Bentkus and Dzindzalieta 2015, theorem 1.1): 3.178.
RADEMACHER = 1 / (4 * norm.sf(np.sqrt(2)))
ROUNDING = 1e-12  # of the sum of all sizes: sums of the same numbers in another order are ties
TINY = np.finfo(float).tiny

_BLOCK = 4_000_000  # numbers held at a time, so that memory stays bounded


def sign_flip_p_values(differences: ArrayLike, resamples: int = 9999, seed: int = 0) -> Floats:
    """One-sided p-values in (0, 1] of "the mean is above 0", one for each column of paired differences; lower is more certain.

    Each equals that of `xaieval.analysis.stats.intervals.paired_p_value`: McNemar's exact test where all differences have one
    size, all signs where there are few differences, random signs elsewhere. What makes thousands of columns cheap:

    - a column whose mean is not above 0 gets 1, since its p-value is at least one half;
    - a column so far above 0 that it would take more than `resamples` draws to say how far gets an upper bound of its
      p-value in place of 1 / (resamples + 1); at most 3.18 times the normal approximation, and never too small;
    - a column with the weight of 10,000 differences or more has a sum of random signs that is taken as normal;
    - the other columns share their random signs, so that one product of matrices gives all of their sums.

    Args:
        differences: `[N, T]`, a row an image, a column a test. NaN where there is no pair: left out, as ties are.
        resamples: draws of all signs.
        seed: of the draws.

    Returns:
        `[T]`; 1 where no difference is left to test.

    Raises:
        MetricError: the differences are no table.

    Reference:
        Fisher, "The Design of Experiments", 1935, chapter 3; McNemar, Psychometrika 1947; for the bound Bentkus and
        Dzindzalieta, Bernoulli 2015 (arXiv 1307.3451), theorem 1.1.

    Example:
        >>> sign_flip_p_values([[100, 3, -1], [100, 2, -2], [100, 1, float("nan")], [0, 4, -1]]).tolist()
        [0.125, 0.0625, 1.0]
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 2:
        raise MetricError(f"differences are a table [images, tests]; got shape {list(values.shape)}")
    values = np.where(np.isfinite(values), values, 0.0)
    found = np.ones(values.shape[1])
    above = values.sum(axis=0) > ROUNDING * np.abs(values).sum(axis=0)
    alike, few, far, many, rest = _kinds(values, above, resamples)
    found[alike] = _mcnemar(values[:, alike])
    found[few] = _all_signs(values[:, few])
    found[far] = _bound(values[:, far])
    found[many] = _normal(values[:, many])
    found[rest] = _random_signs(values[:, rest], resamples, seed)
    return np.maximum(found, TINY)


def _kinds(values: Floats, above: Any, resamples: int) -> tuple[Any, Any, Any, Any, Any]:
    """Which of the columns with a mean above 0 are tested in which way: each in one."""
    sizes = np.abs(values)
    smallest = np.where(sizes > 0, sizes, np.inf).min(axis=0, initial=np.inf)
    alike = above & (sizes.max(axis=0, initial=0.0) == smallest)
    few = above & ~alike & ((values != 0).sum(axis=0) <= EXACT)
    others = above & ~alike & ~few
    far = others.copy()
    far[others] = _bound(values[:, others]) < 1 / (resamples + 1)
    many = others & ~far
    many[many] = _weight(values[:, many]) >= MANY
    return alike, few, far, many, others & ~far & ~many


def _weight(values: Floats) -> Floats:
    """How many differences of one size are as near to normal: the largest ones count, the smallest hardly do."""
    return np.asarray((values**2).sum(axis=0) ** 2 / (values**4).sum(axis=0), dtype=float)


def _mcnemar(values: Floats) -> Floats:
    wins, count = (values > 0).sum(axis=0), (values != 0).sum(axis=0)
    return np.asarray(binom.sf(wins - 1, count, 0.5), dtype=float)


def _normal(values: Floats) -> Floats:
    return np.asarray(norm.sf(values.sum(axis=0) / np.linalg.norm(values, axis=0)), dtype=float)


def _bound(values: Floats) -> Floats:
    """An upper bound of the p-value for any differences that are not all 0."""
    return RADEMACHER * _normal(values)


def _all_signs(values: Floats) -> Floats:
    """Columns of at most `EXACT` differences other than 0, which are brought to the top."""
    order = np.argsort(values == 0, axis=0, kind="stable")[:EXACT]
    kept = np.take_along_axis(values, order, axis=0)
    digits = np.arange(2 ** len(kept))[:, None] >> np.arange(len(kept))
    return _reached(2.0 * (digits & 1) - 1, kept) / len(digits)


def _random_signs(values: Floats, resamples: int, seed: int) -> Floats:
    if not values.shape[1]:
        return np.ones(0)
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(values))
    reached = np.zeros(values.shape[1])
    for start in range(0, resamples, rows):
        size = (min(rows, resamples - start), len(values))
        reached += _reached(2.0 * rng.integers(0, 2, size, dtype=np.int8) - 1, values)
    return (reached + 1) / (resamples + 1)


def _reached(signs: NDArray[Any], values: Floats) -> Floats:
    """How many of the sums with other signs are as large as the sum itself, by column."""
    least = values.sum(axis=0) - ROUNDING * np.abs(values).sum(axis=0)
    width = max(1, _BLOCK // len(signs))
    starts = range(0, values.shape[1], width)
    counts = [(signs @ values[:, i : i + width] >= least[i : i + width]).sum(axis=0) for i in starts]
    return np.concatenate(counts).astype(float) if counts else np.zeros(0)
