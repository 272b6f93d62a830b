"""Confidence intervals of means, proportions and paired differences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from xaieval.errors import MetricError

__all__ = [
    "bootstrap_interval",
    "bootstrap_means",
    "check_level",
    "difference_interval",
    "mean_interval",
    "metric_interval",
    "why_no_interval",
    "wilson_interval",
]

_FEWEST = 4  # images of an interval: drops of 2 or 3 have none that holds
_FEW = 10  # images below which the error of an interval is divided by four, and it may leave the range of the values
_FEW_TO_RESAMPLE = 20  # images below which the percentile bootstrap is too narrow even for normal values
_BLOCK = 4_000_000  # random indices drawn at a time, which bounds the memory
_MANY = 100_000  # images above which the normal interval replaces the bootstrap, which would take minutes


def bootstrap_interval(values: ArrayLike, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, in the unit of the values.

    For more than 100,000 values it is the normal interval, from which the bootstrap differs only by its random noise. For fewer
    than 20 it is that of `mean_interval`, because resampled means of so few values spread too little.

    Args:
        values: One value per image, `[N]`, all finite.
        level: Level of the interval, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end; NaN where `mean_interval` has none.

    Raises:
        MetricError: The level is not in (0, 1).

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

    Example:
        >>> low, high = bootstrap_interval([10.0, 20.0, 30.0, 40.0] * 5)
        >>> 10 <= low < 25 < high <= 40
        True
    """
    sample = np.asarray(values, dtype=float)
    if len(sample) < _FEW_TO_RESAMPLE or not _has_interval(sample, level):
        return mean_interval(sample, level)
    if len(sample) > _MANY:
        low, high = norm.interval(level, sample.mean(), sample.std() / np.sqrt(len(sample)))
        return float(low), float(high)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(sample))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    means = [sample[rng.integers(len(sample), size=(size, len(sample)))].mean(axis=1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_means(table: ArrayLike, resamples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Means of bootstrap samples of the images, of several columns at once; all columns share the resampled images.

    For more than 100,000 images the means are drawn from their asymptotic normal distribution.

    Args:
        table: One row per image, `[N, K]`, all finite.
        resamples: R, the number of bootstrap samples.
        seed: Seed of the resampling.

    Returns:
        `[R, K]`, in the unit of the values.

    Raises:
        MetricError: The values are not a table, or it has no images.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 6.2 and, for pairs, 8.3.

    Example:
        >>> bootstrap_means([[10.0, 1.0], [30.0, 3.0]], resamples=500).shape
        (500, 2)
    """
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or not len(values):
        raise MetricError(f"bootstrap samples need a table [N, K] of at least one image; got shape {values.shape}")
    rng = np.random.default_rng(seed)
    images = len(values)
    if images > _MANY:
        spread = np.atleast_2d(np.cov(values, rowvar=False, ddof=0)) / images
        return rng.multivariate_normal(values.mean(axis=0), spread, size=resamples, method="eigh")
    means = []
    block = max(1, _BLOCK // images)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(images, size=(size, images)) + images * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images)
        means.append(times @ values / images)
    return np.concatenate(means)


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of a mean of skewed values, in their unit.

    Student's t interval, corrected for the skewness of the values: Hall's cubic transformation makes the t statistic symmetric,
    and is inverted at the ends. Without skewness it is Student's interval. For drops, many of which are 0 or 100, percentile
    bootstrap intervals contain the mean too rarely; docs/statistics.md has the coverage of both.

    From 10 values on, the interval stays within their range. Fewer values often all lie on one side of the true mean, so their
    interval may leave the range, and its error `1 - level` is divided by four, because the skewness of so few is hardly known.

    Args:
        values: One value per image, `[N]`, all finite.
        level: Level of the interval, in (0, 1).

    Returns:
        Lower and upper end. NaN for fewer than 4 values, and for equal values that are too few to rule out others: fewer than
        59 at a level of 0.95, where an unseen share of `1 - level` is more likely than the error. More equal values give an
        interval of width 0.

    Raises:
        MetricError: The level is not in (0, 1).

    Reference:
        Hall, "On the removal of skewness by transformation", Journal of the Royal Statistical Society B 54, 1992 (his cubic g,
        with Student's quantiles instead of bootstrap quantiles).

    Example:
        >>> drops = [0.0] * 22 + [10.0, 5.0, 40.0, 20.0, 8.0, 2.0, 30.0, 15.0]  # the mean is 4.3
        >>> [round(end, 1) for end in mean_interval(drops)]
        [1.5, 12.2]
    """
    sample = np.asarray(values, dtype=float)
    if not _has_interval(sample, level):
        return float("nan"), float("nan")
    mean, low, high, spread = sample.mean(), sample.min(), sample.max(), sample.std()
    if spread == 0:
        return float(low), float(high)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    bend = (((sample - mean) / spread) ** 3).mean() / np.sqrt(len(sample))
    reach = _reach(len(sample), level)
    ends = [float(mean - error * _inverse_hall(t, bend)) for t in (reach, -reach)]
    if len(sample) < _FEW:
        return ends[0], ends[1]
    return float(np.clip(ends[0], low, mean)), float(np.clip(ends[1], mean, high))


def _has_interval(values: NDArray[np.float64], level: float) -> bool:
    """Whether the values are enough for an interval of their mean: if all are equal, enough to rule out others.

    A share `1 - level` of other values stays unseen in n images with the probability `level ** n`.
    """
    check_level(level)
    if len(values) < _FEWEST:
        return False
    return bool(np.ptp(values) > 0 or level ** len(values) <= 1 - level)


def _reach(count: int, level: float) -> float:
    """Student's quantile for an interval of `count` values."""
    error = (1 - level) / (4 if count < _FEW else 1)
    return float(student.ppf(1 - error / 2, count - 1))


def _inverse_hall(t: float, bend: float) -> float:
    """The inverse of Hall's `g(t) = t + bend * t**2 / 3 + bend**2 * t**3 / 27 + bend / 6`."""
    if abs(bend) < 1e-9:  # the cube root would lose all digits
        return t
    return float(3 / bend * (np.cbrt(1 + bend * (t - bend / 6)) - 1))


def metric_interval(
    values: ArrayLike, kind: str = "mean", level: float = 0.95, resamples: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """The interval of a metric's mean, in its unit.

    Args:
        values: One value per image, `[N]`, all finite.
        kind: The `interval` of a metric: "wilson" for the values 0 and 100, "mean" for all others.
        level: Level of the interval, in (0, 1).
        resamples: Number of bootstrap samples: percentile bootstrap instead of `mean_interval`.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end; NaN for too few values, see `mean_interval`. A proportion has an interval from one value on.

    Raises:
        MetricError: The level is not in (0, 1), or the kind is unknown.

    Example:
        >>> [round(end, 1) for end in metric_interval([0, 0, 100, 0], "wilson")]
        [4.6, 69.9]
    """
    sample = np.asarray(values, dtype=float)
    if kind == "mean":
        return mean_interval(sample, level) if resamples is None else bootstrap_interval(sample, level, resamples, seed)
    if kind != "wilson":
        raise MetricError(f"no interval {kind!r}; known: mean, wilson")
    low, high = wilson_interval(int((sample > 0).sum()), len(sample), level)
    return 100 * low, 100 * high


def wilson_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion, both ends in [0, 1].

    Args:
        successes: Number of images with the property.
        n: Number of images.
        level: Level of the interval, in (0, 1).

    Returns:
        Lower and upper end; NaN for n = 0.

    Raises:
        MetricError: The level is not in (0, 1).

    Reference:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Example:
        >>> [round(end, 3) for end in wilson_interval(0, 20)]
        [0.0, 0.161]
    """
    check_level(level)
    if n == 0:
        return float("nan"), float("nan")
    interval = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    kind: str = "mean",
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the mean of `first` minus the mean of `second`, for paired values, in their unit.

    Student's t interval of the differences, or Newcombe's for proportions. There is no correction for skewness: differences of
    drops have heavy tails but hardly any skewness, and correcting for that of a sample lowers the coverage
    (docs/statistics.md). For fewer than 10 pairs the error `1 - level` is divided by four, as in `mean_interval`.

    Args:
        first: One value per image, `[N]`, all finite.
        second: Values of the same images in the same order.
        kind: The `interval` of a metric: "wilson" for the values 0 and 100 (Newcombe's interval), "mean" for all others.
        level: Level of the interval, in (0, 1).
        resamples: Number of bootstrap samples: percentile bootstrap of pairs instead of Student's interval, from 20 pairs on.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end. NaN if there are no pairs; for means also for fewer than 4 pairs, and for equal differences that
        are too few to rule out others, see `mean_interval`.

    Raises:
        MetricError: The values are not pairs, or the level is not in (0, 1).

    Reference:
        Student, "The probable error of a mean", Biometrika 6, 1908; Newcombe, "Improved confidence intervals for the
        difference between binomial proportions based on paired data", Statistics in Medicine 17, 1998, method 10.

    Example:
        >>> drops, other_drops = [30.0, 50.0, 70.0, 20.0] * 3, [10.0, 20.0, 30.0, 10.0] * 3
        >>> [round(end, 1) for end in difference_interval(drops, other_drops)]
        [17.6, 32.4]
        >>> [round(end, 1) for end in difference_interval([100] * 30, [100] * 20 + [0] * 10, kind="wilson")]
        [15.2, 51.2]
    """
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != other.shape or one.ndim != 1:
        raise MetricError(f"pairs are two vectors of the same images; got shapes {one.shape} and {other.shape}")
    if kind == "wilson":
        low, high = _newcombe(one > 0, other > 0, level)
        return 100 * low, 100 * high
    if resamples is not None and len(one) >= _FEW_TO_RESAMPLE:
        return bootstrap_interval(one - other, level, resamples, seed)
    return _student(one - other, level)


def check_level(level: float) -> None:
    """Raise an error if a level is not in (0, 1).

    Raises:
        MetricError: The level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise MetricError(f"the level of an interval is a probability in (0, 1), such as 0.95; got {level}")


def why_no_interval(level: float = 0.95) -> str:
    """The reason why a mean that has a value has no interval, as a sentence for tables.

    Example:
        >>> why_no_interval()
        'no interval: a mean takes at least 4 images, and at least 59 if their values are all equal'
    """
    equal = max(_FEWEST, math.ceil(math.log(1 - level) / math.log(level)))
    return f"no interval: a mean takes at least {_FEWEST} images, and at least {equal} if their values are all equal"


def _student(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    if not _has_interval(values, level):
        return float("nan"), float("nan")
    reach = _reach(len(values), level) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def _newcombe(first: NDArray[np.bool_], second: NDArray[np.bool_], level: float) -> tuple[float, float]:
    """Newcombe's interval of the difference of two proportions of the same images, in [-1, 1].

    It combines the Wilson intervals of both proportions with their correlation, so it has a width even if no two images
    differ, unlike a bootstrap interval.
    """
    n = len(first)
    lows, highs = np.array([wilson_interval(int(values.sum()), n, level) for values in (first, second)]).T
    if n == 0:
        return float("nan"), float("nan")
    shares = np.array([first.mean(), second.mean()])
    below, above = shares - lows, highs - shares
    correlation = _phi(first, second)
    theta = float(shares[0] - shares[1])
    down = _hypotenuse(below[0], above[1], correlation)
    up = _hypotenuse(above[0], below[1], correlation)
    return max(theta - down, -1.0), min(theta + up, 1.0)


def _phi(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Newcombe's phi coefficient, continuity-corrected towards 0 if it is positive; 0 if either vector is constant."""
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    area = (both + one) * (other + neither) * (both + other) * (one + neither)
    product = both * neither - one * other
    corrected = max(product - len(first) / 2, 0) if product > 0 else product
    return float(corrected / np.sqrt(area)) if area else 0.0


def _hypotenuse(a: Any, b: Any, cosine: float) -> float:
    return float(np.sqrt(max(a**2 - 2 * cosine * a * b + b**2, 0)))
