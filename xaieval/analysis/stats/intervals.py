"""Intervals of the numbers in a summary, and tests of paired differences."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, permutation_test
from scipy.stats import t as student

from xaieval.errors import MetricError

__all__ = [
    "bootstrap_interval",
    "bootstrap_means",
    "check_level",
    "holm",
    "mean_interval",
    "metric_interval",
    "paired_p_value",
    "wilson_interval",
]

_BLOCK = 4_000_000  # random indices drawn at a time, so that memory stays bounded
_MANY = 100_000  # images from which the normal interval stands for the bootstrap, which would take minutes for a large run


def bootstrap_interval(values: ArrayLike, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, in the unit of the values.

    For more than 100,000 values it is the normal interval: the bootstrap differs from that by no more than by its own noise.

    Args:
        values: one number an image, `[N]`, all finite.
        level: probability that the interval is made for, in (0, 1).
        resamples: number of bootstrap samples.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        Lower and upper end; NaN for no values.

    Raises:
        MetricError: the level is not a probability.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

    Example:
        >>> low, high = bootstrap_interval([10.0, 20.0, 30.0, 40.0])
        >>> 10 <= low < 25 < high <= 40
        True
    """
    sample = np.asarray(values, dtype=float)
    check_level(level)
    if not len(sample):
        return float("nan"), float("nan")
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
    """Means of resampled images, of several columns at once: each resample takes the same images in all of them.

    For more than 100,000 images the means are drawn from the normal distribution that they come close to.

    Args:
        table: one row an image, `[N, K]`, all finite.
        resamples: R, number of bootstrap samples.
        seed: of the resampling.

    Returns:
        `[R, K]`, in the unit of the values.

    Raises:
        MetricError: this is no table, or there is no image in it.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 6.2 and, for pairs, 8.3.

    Example:
        >>> bootstrap_means([[10.0, 1.0], [30.0, 3.0]], resamples=500).shape
        (500, 2)
    """
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or not len(values):
        raise MetricError(f"images are resampled from a table [N, K] of at least one; got shape {values.shape}")
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
    """Interval of a mean of skewed values, in their unit and within their range.

    Student's t interval, moved for the skewness of the values: Hall's cubic transformation makes the statistic symmetric, and
    is undone at the ends. Of drops, which crowd at 0 or 100, the bootstrap's percentiles hold the mean too rarely;
    docs/statistics.md has how often either does. Where there is no skewness this is Student's interval.

    Args:
        values: one number an image, `[N]`, all finite.
        level: probability that the interval is made for, in (0, 1).

    Returns:
        Lower and upper end; NaN for less than two values, which say nothing of their spread. Values that are all the same have
        no width.

    Raises:
        MetricError: the level is not a probability.

    Reference:
        Hall, "On the removal of skewness by transformation", Journal of the Royal Statistical Society B 54, 1992 (his cubic g,
        with Student's quantiles in place of those of a bootstrap).

    Example:
        >>> drops = [0.0] * 22 + [10.0, 5.0, 40.0, 20.0, 8.0, 2.0, 30.0, 15.0]  # the mean is 4.3
        >>> [round(end, 1) for end in mean_interval(drops)]
        [1.5, 12.2]
    """
    check_level(level)
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return float("nan"), float("nan")
    mean, low, high, spread = sample.mean(), sample.min(), sample.max(), sample.std()
    if spread == 0:
        return float(low), float(high)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    bend = (((sample - mean) / spread) ** 3).mean() / np.sqrt(len(sample))
    reach = student.ppf((1 + level) / 2, len(sample) - 1)
    ends = [mean - error * _unbent(t, bend) for t in (reach, -reach)]
    return float(np.clip(ends[0], low, mean)), float(np.clip(ends[1], mean, high))


def _unbent(t: float, bend: float) -> float:
    """The inverse of Hall's `g(t) = t + bend * t**2 / 3 + bend**2 * t**3 / 27 + bend / 6`."""
    if abs(bend) < 1e-9:  # where a cube root would lose all digits
        return t
    return float(3 / bend * (np.cbrt(1 + bend * (t - bend / 6)) - 1))


def metric_interval(
    values: ArrayLike, kind: str = "mean", level: float = 0.95, resamples: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """The interval of a metric's mean, in its unit.

    Args:
        values: one number an image, `[N]`, all finite.
        kind: as a metric's `interval`: "wilson" for the values 0 and 100, "mean" for any others.
        level: probability that the interval is made for, in (0, 1).
        resamples: take the percentile bootstrap with so many samples, in place of `mean_interval`.
        seed: of the resampling.

    Returns:
        Lower and upper end; NaN for no values.

    Raises:
        MetricError: the level is not a probability, or there is no such kind.

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
        successes: number of images with the property.
        n: number of images.
        level: probability that the interval is made for, in (0, 1).

    Returns:
        Lower and upper end; NaN for n = 0.

    Raises:
        MetricError: the level is not a probability.

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


def paired_p_value(
    larger: ArrayLike,
    smaller: ArrayLike,
    resamples: int = 9999,
    seed: int = 0,
    alternative: Literal["greater", "two-sided"] = "greater",
) -> float:
    """One-sided p-value of "the mean of `larger` is the larger one" for values that belong together in pairs.

    Under the null hypothesis the sign of each difference is a toss of a coin. For differences of one size (yes or no for each
    image) that gives McNemar's exact test; for others the signs are drawn at random, or enumerated where there are few.

    Args:
        larger: one number an image, `[N]`, all finite.
        smaller: of the same images in the same order.
        resamples: draws of all signs, so the smallest p-value is 1 / (resamples + 1).
        seed: of the draws.
        alternative: "two-sided" tests whether the means differ, in whatever direction.

    Returns:
        In (0, 1]; 1 where no difference is left to test.

    Raises:
        MetricError: the values are not pairs.

    Reference:
        Fisher, "The Design of Experiments", 1935, chapter 3; McNemar, Psychometrika 1947.

    Example:
        >>> paired_p_value([100, 100, 100, 0], [0, 0, 0, 0])  # three of three: one half, three times
        0.125
    """
    pairs = [np.asarray(values, dtype=float) for values in (larger, smaller)]
    if pairs[0].shape != pairs[1].shape or pairs[0].ndim != 1:
        raise MetricError(f"pairs are two vectors of the same images; got shapes {pairs[0].shape} and {pairs[1].shape}")
    differences = pairs[0] - pairs[1]
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    if np.ptp(np.abs(differences)) == 0:
        exact = binomtest(int((differences > 0).sum()), len(differences), alternative=alternative).pvalue
        return max(float(exact), np.finfo(float).tiny)
    found = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BLOCK // len(differences)),
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p_values: ArrayLike, family: int | None = None) -> list[float]:
    """p-values corrected for being several, such that one false rejection among all is as improbable as among one.

    Args:
        p_values: of the tests that were made.
        family: number of tests that could have been made, where the data decided which ones were; as many as were made unless
            told.

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


def check_level(level: float) -> None:
    """Refuse what is no level of an interval.

    Raises:
        MetricError: it is not in (0, 1).
    """
    if not 0 < level < 1:
        raise MetricError(f"the level of an interval is a probability in (0, 1), such as 0.95; got {level}")
