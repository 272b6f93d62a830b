"""Differences of values that belong together in pairs: tests, intervals, and sizes."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, wilcoxon
from scipy.stats import t as student

from xaieval.analysis.stats.intervals import bootstrap_interval, check_level, paired_p_value, wilson_interval
from xaieval.analysis.stats.permutation import sign_flip_p_values
from xaieval.errors import MetricError, choose_from

__all__ = [
    "PairedTest",
    "check_test",
    "cohens_dz",
    "difference_interval",
    "discordant_odds",
    "newcombe_interval",
    "paired_p_values",
    "rank_biserial",
    "wilcoxon_p_value",
]

PairedTest = Literal["signs", "wilcoxon"]
Floats = NDArray[np.float64]

_TINY = float(np.finfo(float).tiny)


def paired_p_values(differences: ArrayLike, test: PairedTest = "signs", resamples: int = 9999, seed: int = 0) -> Floats:
    """Two-sided p-values of "the differences are as often and as much above zero as below", of many tests at once, in (0, 1].

    Each is twice the one-sided p-value of the observed side, which equals the test over all signs, since signs are symmetric;
    `xaieval.analysis.stats.permutation` tests many columns at once. Differences of one size (yes or no for each image) are
    tested by McNemar's exact test, whatever `test` says.

    Args:
        differences: of N pairs, one column a test, `[N, T]`; NaN where a pair is missing. Neither that nor zero says anything.
        test: "signs", of the mean; "wilcoxon", of the ranks of the sizes, which feels outliers less.
        resamples: draws of all signs, which is how finely p-values are told that are not far from certain.
        seed: of the draws.

    Returns:
        `[T]`; 1 where no difference is left to test.

    Raises:
        MetricError: there is no such test, or the differences are no table of them.

    Reference:
        As `sign_flip_p_values`; Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945.

    Example:
        >>> paired_p_values([[100, 4], [100, 2], [100, -1], [0, 0]]).tolist()  # one half, three times, on both sides; 4 of 8
        [0.25, 0.5]
    """
    check_test(test)
    table = _table(differences)
    if test == "wilcoxon":
        return np.array([wilcoxon_p_value(column) for column in table.T])
    seen = np.sign(table.sum(axis=0))
    return np.minimum(2 * sign_flip_p_values(seen * table, resamples, seed), 1.0)


def wilcoxon_p_value(differences: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, in (0, 1]; by SciPy, differences of zero left out.

    Args:
        differences: of N pairs, `[N]`.

    Returns:
        1 where no difference is left; of differences of one size, that of McNemar's exact test, which SciPy only approximates.

    Reference:
        Wilcoxon, "Individual comparisons by ranking methods", Biometrics Bulletin 1945.

    Example:
        >>> wilcoxon_p_value([3, 4, 9, -1])  # ranks 2, 3, 4 and -1: the sum 8 or more is reached by 2 of 16, on both sides
        0.25
    """
    left = _present(differences)
    if not len(left):
        return 1.0
    if np.ptp(np.abs(left)) == 0:
        return paired_p_value(left, np.zeros(len(left)), alternative="two-sided")
    return max(float(wilcoxon(left).pvalue), _TINY)


def difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    kind: str = "mean",
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean of `first` minus that of `second`, for values that belong together in pairs, in their unit.

    Student's t interval of the differences. Differences of drops have heavy tails on both sides, but hardly a skewness, and a
    correction for what little there is in a sample makes it worse (docs/statistics.md).

    Args:
        first: one number an image, `[N]`, all finite.
        second: of the same images in the same order.
        kind: as a metric's `interval`: "wilson" for the values 0 and 100, see `newcombe_interval`; "mean" for any others.
        level: probability that the interval is made for, in (0, 1).
        resamples: take the percentile bootstrap of pairs with so many samples, in place of Student's interval.
        seed: of the resampling.

    Returns:
        Lower and upper end; NaN for no pairs, and for Student's of a single one.

    Raises:
        MetricError: the values are not pairs, or the level is not a probability.

    Reference:
        Student, "The probable error of a mean", Biometrika 6, 1908.

    Example:
        >>> [round(end, 1) for end in difference_interval([30.0, 50.0, 70.0], [10.0, 20.0, 30.0])]
        [5.2, 54.8]
    """
    one, other = _pairs(first, second)
    if kind == "wilson":
        low, high = newcombe_interval(one > 0, other > 0, level)
        return 100 * low, 100 * high
    if resamples is not None:
        return bootstrap_interval(one - other, level, resamples, seed)
    return _student(one - other, level)


def newcombe_interval(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two proportions of the same images, both ends in [-1, 1].

    It is made of the Wilson intervals of both proportions and of how far they go together, so it has a width also where no
    two images differ, which a bootstrap has not.

    Args:
        first: yes or no for each image, `[N]`.
        second: of the same images in the same order.
        level: probability that the interval is made for, in (0, 1).

    Returns:
        Lower and upper end; NaN for no images.

    Raises:
        MetricError: the values are not pairs, or the level is not a probability.

    Reference:
        Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
        Statistics in Medicine 17, 1998, method 10.

    Example:
        >>> [round(end, 3) for end in newcombe_interval([1] * 30, [1] * 20 + [0] * 10)]
        [0.152, 0.512]
    """
    yes, also = (values > 0 for values in _pairs(first, second))
    n = len(yes)
    lows, highs = np.array([wilson_interval(int(values.sum()), n, level) for values in (yes, also)]).T
    if n == 0:
        return float("nan"), float("nan")
    shares = np.array([yes.mean(), also.mean()])
    below, above = shares - lows, highs - shares
    together = _phi(yes, also)
    theta = float(shares[0] - shares[1])
    down = _hypotenuse(below[0], above[1], together)
    up = _hypotenuse(above[0], below[1], together)
    return max(theta - down, -1.0), min(theta + up, 1.0)


def rank_biserial(differences: ArrayLike) -> float:
    """Matched-pairs rank-biserial correlation, in [-1, 1]: 1 if every difference is above zero, 0 if they balance.

    Of the ranks of the sizes, the share that belongs to positive differences minus the share of negative ones. For yes or no
    that is the difference of the two kinds of images that disagree, over their number.

    Args:
        differences: of N pairs, `[N]`; zeros and NaN are left out.

    Returns:
        NaN where no difference is left.

    Reference:
        Kerby, "The simple difference formula: an approach to teaching nonparametric correlation", Comprehensive Psychology
        3, 2014.

    Example:
        >>> rank_biserial([3, 4, 9, -1])  # ranks 2 + 3 + 4 against 1, of 10
        0.8
    """
    left = _present(differences)
    if not len(left):
        return float("nan")
    ranks = rankdata(np.abs(left))
    return float((np.sign(left) * ranks).sum() / ranks.sum())


def cohens_dz(differences: ArrayLike) -> float:
    """Cohen's d of paired differences: their mean in units of their standard deviation (with N - 1), unbounded.

    Args:
        differences: of N pairs, `[N]`; NaN are left out.

    Returns:
        NaN for fewer than two differences, or where all are the same.

    Reference:
        Cohen, "Statistical Power Analysis for the Behavioral Sciences", 2nd edition, 1988, section 2.3.5.

    Example:
        >>> cohens_dz([1.0, 2.0, 3.0])
        2.0
    """
    left = _finite(differences)
    spread = left.std(ddof=1) if len(left) > 1 else 0.0
    return float(left.mean() / spread) if spread > 0 else float("nan")


def discordant_odds(differences: ArrayLike) -> float:
    """Odds ratio of yes and no in pairs, in [0, inf]: only the first says yes, over only the second.

    Args:
        differences: of N pairs, `[N]`; only their signs count, zeros and NaN are left out.

    Returns:
        inf where only the first ever says yes alone; NaN where no two differ.

    Reference:
        Agresti, "Categorical Data Analysis", 3rd edition, 2013, section 11.2.3, the conditional estimate.

    Example:
        >>> discordant_odds([100, 100, 100, 0, 0, -100])
        3.0
    """
    left = _present(differences)
    more, less = int((left > 0).sum()), int((left < 0).sum())
    if not more + less:
        return float("nan")
    return more / less if less else float("inf")


def check_test(test: str) -> None:
    """Refuse what is no paired test.

    Raises:
        MetricError: there is none of that name.
    """
    if test not in get_args(PairedTest):
        raise MetricError(f"no paired test {test!r}; {choose_from(test, get_args(PairedTest))}")


def _student(differences: Floats, level: float) -> tuple[float, float]:
    check_level(level)
    if len(differences) < 2:
        return float("nan"), float("nan")
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    reach = student.ppf((1 + level) / 2, len(differences) - 1) * error
    return float(differences.mean() - reach), float(differences.mean() + reach)


def _phi(yes: NDArray[np.bool_], also: NDArray[np.bool_]) -> float:
    """Newcombe's correlation of both, moved towards zero where it is positive; 0 where one of them never changes."""
    both, neither = int((yes & also).sum()), int((~yes & ~also).sum())
    one, other = int((yes & ~also).sum()), int((~yes & also).sum())
    area = (both + one) * (other + neither) * (both + other) * (one + neither)
    product = both * neither - one * other
    corrected = max(product - len(yes) / 2, 0) if product > 0 else product
    return float(corrected / np.sqrt(area)) if area else 0.0


def _hypotenuse(a: Any, b: Any, cosine: float) -> float:
    return float(np.sqrt(max(a**2 - 2 * cosine * a * b + b**2, 0)))


def _pairs(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != other.shape or one.ndim != 1:
        raise MetricError(f"pairs are two vectors of the same images; got shapes {one.shape} and {other.shape}")
    return one, other


def _table(differences: ArrayLike) -> Floats:
    """Finite, and zero where there is none."""
    table = np.asarray(differences, dtype=float)
    if table.ndim != 2:
        raise MetricError(f"differences are [N, T], one column a test; got shape {table.shape}")
    return np.where(np.isnan(table), 0.0, table)


def _finite(differences: ArrayLike) -> Floats:
    values = np.asarray(differences, dtype=float)
    return values[~np.isnan(values)]


def _present(differences: ArrayLike) -> Floats:
    values = _finite(differences)
    return values[values != 0]
