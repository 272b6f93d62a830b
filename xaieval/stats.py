"""Intervals of the numbers in a summary."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from xaieval.errors import MetricError

__all__ = ["bootstrap_interval", "check_level", "wilson_interval"]

_BLOCK = 4_000_000  # random indices drawn at a time, so that memory stays bounded


def bootstrap_interval(values: ArrayLike, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, in the unit of the values.

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
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(sample))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    means = [sample[rng.integers(len(sample), size=(size, len(sample)))].mean(axis=1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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


def check_level(level: float) -> None:
    """Refuse what is no level of an interval.

    Raises:
        MetricError: it is not in (0, 1).
    """
    if not 0 < level < 1:
        raise MetricError(f"the level of an interval is a probability in (0, 1), such as 0.95; got {level}")
