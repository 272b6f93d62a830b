"""Confidence intervals of means, proportions and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from xaieval.analysis.stats.estimates import FEW, FEWEST, check_level, estimate, has_interval
from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.proportions import difference_of_proportions, proportion_interval, wilson_interval
from xaieval.config.counts import check_count
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

Floats = NDArray[np.float64]

_FEW_TO_RESAMPLE = 20  # images or groups below which the percentile bootstrap is too narrow even for normal values
_BLOCK = 4_000_000  # random indices drawn at a time, which bounds the memory
_MANY = 100_000  # images or groups above which the normal interval replaces the bootstrap, which would take minutes


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, resamples: int = 1000, seed: int = 0, *, groups: Grouping | None = None
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, in the unit of the values.

    For more than 100,000 values it is the normal interval, from which the bootstrap differs only by its random noise. For fewer
    than 20 it is that of `mean_interval`, because resampled means of so few values spread too little. With groups, whole groups
    are resampled, and both limits are numbers of groups.

    Args:
        values: One value per image, `[N]`, all finite.
        level: Level of the interval, in (0, 1).
        resamples: Number of bootstrap samples.
        seed: Seed of the resampling.
        groups: Which images belong together. Default: all are independent.

    Returns:
        Lower and upper end; NaN where `mean_interval` has none.

    Raises:
        MetricError: The level is not in (0, 1), or there are no samples.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

    Example:
        >>> low, high = bootstrap_interval([10.0, 20.0, 30.0, 40.0] * 5)
        >>> 10 <= low < 25 < high <= 40
        True
    """
    _check_resamples(resamples)
    sample = np.asarray(values, dtype=float)
    count = len(sample) if groups is None else groups.count
    if count < _FEW_TO_RESAMPLE or not has_interval(sample, level, groups):
        return mean_interval(sample, level, groups=groups)
    if groups is not None:
        means = bootstrap_means(sample[:, None], resamples, seed, groups=groups)[:, 0]
    elif count > _MANY:
        reach = ndtri((1 + level) / 2) * sample.std() / np.sqrt(count)
        return float(sample.mean() - reach), float(sample.mean() + reach)
    else:
        means = _resampled_means(sample, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_resamples(resamples: int) -> None:
    check_count("resamples", resamples, kind=MetricError)


def _resampled_means(sample: Floats, resamples: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(sample))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([sample[rng.integers(len(sample), size=(size, len(sample)))].mean(axis=1) for size in sizes])


def bootstrap_means(
    table: ArrayLike, resamples: int = 1000, seed: int = 0, *, groups: Grouping | None = None
) -> NDArray[np.float64]:
    """Means of bootstrap samples of the images, of several columns at once; all columns share the resampled images.

    For more than 100,000 images the means are drawn from their asymptotic normal distribution. With groups, whole groups are
    resampled, so samples differ in their number of images if groups do.

    Args:
        table: One row per image, `[N, K]`, all finite.
        resamples: R, the number of bootstrap samples.
        seed: Seed of the resampling.
        groups: Which images belong together. Default: all are independent.

    Returns:
        `[R, K]`, in the unit of the values.

    Raises:
        MetricError: The values are not a table, it has no images, or there are no samples.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 6.2 and, for pairs, 8.3.

    Example:
        >>> bootstrap_means([[10.0, 1.0], [30.0, 3.0]], resamples=500).shape
        (500, 2)
    """
    _check_resamples(resamples)
    values = np.asarray(table, dtype=float)
    if values.ndim != 2 or not len(values):
        raise MetricError(f"bootstrap samples need a table [N, K] of at least one image; got shape {values.shape}")
    rng = np.random.default_rng(seed)
    sums, counts = (values, np.ones(len(values))) if groups is None else _parts(values, groups)
    drawable = len(sums)
    if drawable > _MANY:
        mean = sums.sum(axis=0) / counts.sum()
        pulls = (sums - counts[:, None] * mean) / counts.sum()
        return rng.multivariate_normal(mean, pulls.T @ pulls, size=resamples, method="eigh")
    means = []
    block = max(1, _BLOCK // drawable)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(drawable, size=(size, drawable)) + drawable * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * drawable).reshape(size, drawable)
        means.append(times @ sums / (times @ counts)[:, None])
    return np.concatenate(means)


def _parts(values: Floats, groups: Grouping) -> tuple[Floats, Floats]:
    """What each group adds to the numerator `[G, K]` and the denominator `[G]` of a mean."""
    return groups.totals(values), groups.sizes.astype(float) if groups.weights == "images" else np.ones(groups.count)


def mean_interval(values: ArrayLike, level: float = 0.95, *, groups: Grouping | None = None) -> tuple[float, float]:
    """Interval of a mean of skewed values, in their unit.

    Student's t interval, corrected for the skewness of the values: Hall's cubic transformation makes the t statistic symmetric,
    and is inverted at the ends. Without skewness it is Student's interval. For drops, many of which are 0 or 100, percentile
    bootstrap intervals contain the mean too rarely; docs/statistics.md has the coverage of both.

    From 10 values on, the interval stays within their range. Fewer values often all lie on one side of the true mean, so their
    interval may leave the range, and its error `1 - level` is divided by four, because the skewness of so few is hardly known.

    With groups, the standard error is cluster-robust (CR2) with Satterthwaite's degrees of freedom, the skewness is that of
    what the groups add to the mean, and groups take the place of images in all limits: 4, 10 and 59 groups.

    Args:
        values: One value per image, `[N]`, all finite.
        level: Level of the interval, in (0, 1).
        groups: Which images belong together. Default: all are independent.

    Returns:
        Lower and upper end. NaN for fewer than 4 values, and for equal values that are too few to rule out others: fewer than
        59 at a level of 0.95, where an unseen share of `1 - level` is more likely than the error. More equal values give an
        interval of width 0.

    Raises:
        MetricError: The level is not in (0, 1), or there is not one value per image of the groups.

    Reference:
        Hall, "On the removal of skewness by transformation", Journal of the Royal Statistical Society B 54, 1992 (his cubic g,
        with Student's quantiles instead of bootstrap quantiles). For groups Bell and McCaffrey, Survey Methodology 28, 2002,
        and Imbens and Kolesar, Review of Economics and Statistics 98, 2016.

    Example:
        >>> drops = [0.0] * 22 + [10.0, 5.0, 40.0, 20.0, 8.0, 2.0, 30.0, 15.0]  # the mean is 4.3
        >>> [round(end, 1) for end in mean_interval(drops)]
        [1.5, 12.2]
        >>> from xaieval.analysis.stats.groups import Grouping
        >>> [round(end, 1) for end in mean_interval(drops, groups=Grouping([image // 3 for image in range(30)]))]
        [0.0, 28.5]
    """
    sample = np.asarray(values, dtype=float)
    if not has_interval(sample, level, groups):
        return float("nan"), float("nan")
    found = estimate(sample, groups)
    low, high, reach = float(sample.min()), float(sample.max()), found.reach(level)
    if found.error == 0:
        equal = sample if groups is None else groups.means(sample)
        return float(equal.min()), float(equal.max())
    ends = [found.mean - found.error * _inverse_hall(t, found.skewness) for t in (reach, -reach)]
    if found.count < FEW:
        return ends[0], ends[1]
    return float(np.clip(ends[0], low, found.mean)), float(np.clip(ends[1], found.mean, high))


def _inverse_hall(t: float, bend: float) -> float:
    """The inverse of Hall's `g(t) = t + bend * t**2 / 3 + bend**2 * t**3 / 27 + bend / 6`."""
    if abs(bend) < 1e-9:  # the cube root would lose all digits
        return t
    return float(3 / bend * (np.cbrt(1 + bend * (t - bend / 6)) - 1))


def metric_interval(
    values: ArrayLike,
    kind: str = "mean",
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    *,
    groups: Grouping | None = None,
    bounds: Sequence[float] | None = None,
) -> tuple[float, float]:
    """The interval of a metric's mean, in its unit.

    Args:
        values: One value per image, `[N]`, all finite.
        kind: The `interval` of a metric: "wilson" for the values 0 and 100, "mean" for all others.
        level: Level of the interval, in (0, 1).
        resamples: Number of bootstrap samples: percentile bootstrap instead of `mean_interval`.
        seed: Seed of the resampling.
        groups: Which images belong together. Default: all are independent.
        bounds: Smallest and largest value that an image can have. The interval does not leave them, since no mean does, unless
            a value does.

    Returns:
        Lower and upper end; NaN for too few values, see `mean_interval`. A proportion has an interval from one value on, or
        from 4 groups on.

    Raises:
        MetricError: The level is not in (0, 1), or the kind is unknown.

    Example:
        >>> [round(end, 1) for end in metric_interval([0, 0, 100, 0], "wilson")]
        [4.6, 69.9]
        >>> [round(end, 1) for end in metric_interval([0.0, 40.0, 10.0, 2.0])]
        [-17.2, 137.2]
        >>> [round(end, 1) for end in metric_interval([0.0, 40.0, 10.0, 2.0], bounds=(0, 100))]
        [0.0, 100.0]
    """
    sample = np.asarray(values, dtype=float)
    if kind == "wilson":
        low, high = proportion_interval(sample > 0, level, groups)
        return 100 * low, 100 * high
    if kind != "mean":
        raise MetricError(f"no interval {kind!r}; known: mean, wilson")
    if resamples is not None:
        return bootstrap_interval(sample, level, resamples, seed, groups=groups)
    low, high = mean_interval(sample, level, groups=groups)
    if bounds is None or np.isnan(low) or sample.min() < bounds[0] or sample.max() > bounds[1]:
        return low, high
    return max(low, float(bounds[0])), min(high, float(bounds[1]))


def difference_interval(
    first: ArrayLike,
    second: ArrayLike,
    kind: str = "mean",
    level: float = 0.95,
    resamples: int | None = None,
    seed: int = 0,
    *,
    groups: Grouping | None = None,
) -> tuple[float, float]:
    """Interval of the mean of `first` minus the mean of `second`, for paired values, in their unit.

    Student's t interval of the differences, or Newcombe's for proportions. There is no correction for skewness: differences of
    drops have heavy tails but hardly any skewness, and correcting for that of a sample lowers the coverage
    (docs/statistics.md). For fewer than 10 pairs the error `1 - level` is divided by four, as in `mean_interval`.

    With groups, standard errors and degrees of freedom are those of `mean_interval`, and Newcombe's interval combines intervals
    of both proportions that allow for the groups, by what groups add to both (MOVER).

    Args:
        first: One value per image, `[N]`, all finite.
        second: Values of the same images in the same order.
        kind: The `interval` of a metric: "wilson" for the values 0 and 100 (Newcombe's interval), "mean" for all others.
        level: Level of the interval, in (0, 1).
        resamples: Number of bootstrap samples: percentile bootstrap of pairs instead of Student's interval, from 20 pairs on.
        seed: Seed of the resampling.
        groups: Which images belong together. Default: all are independent.

    Returns:
        Lower and upper end. NaN if there are no pairs; for means also for fewer than 4 pairs, and for equal differences that
        are too few to rule out others, see `mean_interval`.

    Raises:
        MetricError: The values are not pairs, or the level is not in (0, 1).

    Reference:
        Student, "The probable error of a mean", Biometrika 6, 1908; Newcombe, "Improved confidence intervals for the
        difference between binomial proportions based on paired data", Statistics in Medicine 17, 1998, method 10; for groups
        Zou and Donner, "Construction of confidence limits about effect measures: a general approach", Statistics in Medicine
        27, 2008.

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
        low, high = difference_of_proportions(one > 0, other > 0, level, groups)
        return 100 * low, 100 * high
    if resamples is not None and (len(one) if groups is None else groups.count) >= _FEW_TO_RESAMPLE:
        return bootstrap_interval(one - other, level, resamples, seed, groups=groups)
    return _student(one - other, level, groups)


def _student(values: Floats, level: float, groups: Grouping | None) -> tuple[float, float]:
    if not has_interval(values, level, groups):
        return float("nan"), float("nan")
    found = estimate(values, groups)
    reach = found.reach(level) * found.error
    return found.mean - reach, found.mean + reach


def why_no_interval(level: float = 0.95, *, groups: Grouping | None = None) -> str:
    """The reason why a mean that has a value has no interval, as a sentence for tables.

    Example:
        >>> why_no_interval()
        'no interval: a mean takes at least 4 images, and at least 59 if their values are all equal'
        >>> from xaieval.analysis.stats.groups import Grouping
        >>> why_no_interval(groups=Grouping(["lake", "lake", "road"]))
        'no interval: a mean takes at least 4 groups, and at least 59 if their means are all equal; here are 2 groups'
    """
    equal = max(FEWEST, math.ceil(math.log(1 - level) / math.log(level)))
    if groups is None:
        return f"no interval: a mean takes at least {FEWEST} images, and at least {equal} if their values are all equal"
    return (
        f"no interval: a mean takes at least {FEWEST} groups, and at least {equal} if their means are all equal; "
        f"here {'is 1 group' if groups.count == 1 else f'are {groups.count} groups'}"
    )
