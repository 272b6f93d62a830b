"""The test of the mean of many columns of paired differences at once: sign flips, corrected for skewness."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtrc, ndtr, stdtr

from xaieval.analysis.stats.groups import Grouping
from xaieval.errors import MetricError

__all__ = ["sign_flip_p_values"]

Floats = NDArray[np.float64]

EXACT = 13  # differences up to which all sign vectors are enumerated: 8192 of them
MANY = 10_000  # differences above which the normal approximation is used: its error is below the noise of random signs
# The smallest c such that P(sum of random signs with weights of norm 1 >= x) <= c * P(Z >= x) for every x and a standard normal
# Z (Bentkus and Dzindzalieta 2015, theorem 1.1): 3.178.
RADEMACHER = 1 / (4 * ndtr(-np.sqrt(2)))
ROUNDING = 1e-12  # of the sum of absolute differences: sums that differ by less are ties
TINY = float(np.finfo(float).tiny)

_BLOCK = 4_000_000  # numbers held at a time, which bounds the memory


def sign_flip_p_values(
    differences: ArrayLike, resamples: int = 9999, seed: int = 0, *, groups: Grouping | None = None
) -> Floats:
    """One-sided p-values of "the mean is not above 0", one per column of paired differences, in (0, 1].

    The larger of two p-values, because neither is safe alone (docs/statistics.md has the error rates of both):

    - of the sign-flip test, which is exact if the differences are symmetric about 0, however few they are. Each of the 2 ** N
      sign vectors is then equally likely, and the p-value is the share of them that give a sum as large as the observed one. If
      the mean is 0 but rare differences are large and negative, it rejects far too often;
    - of Student's t test, corrected for the skewness of the differences by Hall's transformation. It allows for skewness, but
      not for very few differences.

    If all differences of a column have the same size (binary values), the p-value is that of McNemar's exact test alone. Up to
    13 differences, all sign vectors are enumerated; otherwise they are drawn at random. Thousands of columns are fast because

    - a column whose mean is not above 0 gets 1, since its p-value is at least one half;
    - a column so far above 0 that more than `resamples` draws would be needed gets an upper bound of its p-value instead of
      1 / (resamples + 1): 3.18 times the normal approximation, never too small;
    - a column whose weights are equivalent to 10,000 differences or more gets the normal approximation;
    - all other columns share their random signs, so one matrix product gives all of their sums.

    Args:
        differences: Paired differences `[N, T]`, one row per image and one column per test. Missing pairs are NaN; NaN and 0
            are left out.
        resamples: Number of random sign vectors.
        seed: Seed of the random signs.
        groups: Which images belong together: the signs of a whole group are flipped at once, so its differences count as one
            (their sum, or their mean if every group counts the same). Default: all images are independent.

    Returns:
        `[T]`; 1 for a column without differences.

    Raises:
        MetricError: The differences are not a table.

    Reference:
        Fisher, "The Design of Experiments", 1935, chapter 3; Hall, "On the removal of skewness by transformation", Journal of
        the Royal Statistical Society B 54, 1992; McNemar, Psychometrika 1947; for the bound Bentkus and Dzindzalieta, Bernoulli
        2015 (arXiv 1307.3451), theorem 1.1.

    Example:
        >>> sign_flip_p_values([[100, 3, -1], [100, 2, -2], [100, 1, float("nan")], [0, 4, -1]]).tolist()
        [0.125, 0.0625, 1.0]
    """
    values = np.asarray(differences, dtype=float)
    if values.ndim != 2:
        raise MetricError(f"differences are [N, T], one column per test; got shape {values.shape}")
    if groups is not None:
        values = groups.totals(np.where(np.isfinite(values), values, np.nan))
    values = _scaled(np.where(np.isfinite(values), values, 0.0))
    p_values = np.ones(values.shape[1])
    above = values.sum(axis=0) > ROUNDING * np.abs(values).sum(axis=0)
    alike, few, far, many, rest = _kinds(values, above, resamples)
    p_values[alike] = _mcnemar(values[:, alike])
    p_values[few] = _all_signs(values[:, few])
    p_values[far] = _bound(values[:, far])
    p_values[many] = _normal(values[:, many])
    p_values[rest] = _random_signs(values[:, rest], resamples, seed)
    skewed = above & ~alike
    p_values[skewed] = np.maximum(p_values[skewed], _skewness_corrected(values[:, skewed]))
    return np.maximum(p_values, TINY)


def _scaled(values: Floats) -> Floats:
    """Columns multiplied by powers of 2, which rounds nothing, so that their powers neither overflow nor underflow."""
    return np.ldexp(values, -np.frexp(np.abs(values).max(axis=0, initial=0.0))[1])


def _kinds(values: Floats, above: Any, resamples: int) -> tuple[Any, Any, Any, Any, Any]:
    """One mask for each way to test a column; each column with a mean above 0 is in exactly one of them."""
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
    """The number of differences of equal size whose signed sum is as close to normal (an effective sample size)."""
    return np.asarray((values**2).sum(axis=0) ** 2 / (values**4).sum(axis=0), dtype=float)


def _mcnemar(values: Floats) -> Floats:
    wins, count = (values > 0).sum(axis=0), (values != 0).sum(axis=0)
    return np.asarray(np.where(wins > 0, bdtrc(wins - 1, count, 0.5), 1.0), dtype=float)


def _normal(values: Floats) -> Floats:
    return np.asarray(ndtr(-values.sum(axis=0) / np.linalg.norm(values, axis=0)), dtype=float)


def _bound(values: Floats) -> Floats:
    """An upper bound of the p-value of columns that are not all 0."""
    return RADEMACHER * _normal(values)


def _skewness_corrected(values: Floats) -> Floats:
    """p-values of Student's t, made symmetric by Hall's transformation, of the differences that are not 0."""
    differ = values != 0
    count = differ.sum(axis=0)
    mean = values.sum(axis=0) / count
    centred = np.where(differ, values - mean, 0.0)
    squares = centred * centred
    variance = squares.sum(axis=0) / count
    skewness = (squares * centred).sum(axis=0) / (count * variance) ** 1.5
    t = mean * np.sqrt((count - 1) / variance)
    symmetric = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
    return np.asarray(stdtr(count - 1, -symmetric), dtype=float)


def _all_signs(values: Floats) -> Floats:
    """Exact p-values of columns with at most `EXACT` nonzero differences, which are sorted to the top."""
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
    """For each column, the number of sign vectors whose sum is at least the observed sum."""
    least = values.sum(axis=0) - ROUNDING * np.abs(values).sum(axis=0)
    width = max(1, _BLOCK // len(signs))
    starts = range(0, values.shape[1], width)
    counts = [(signs @ values[:, i : i + width] >= least[i : i + width]).sum(axis=0) for i in starts]
    return np.concatenate(counts).astype(float) if counts else np.zeros(0)
