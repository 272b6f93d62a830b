"""Sample size and power of the paired tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from xaieval.analysis.stats.groups import Grouping
from xaieval.errors import MetricError

__all__ = ["images_needed", "paired_power"]

_ROUNDING = 1e-12  # of the root mean square: a mean or a standard deviation below that counts as 0


def images_needed(differences: ArrayLike, alpha: float = 0.05, power: float = 0.8, *, groups: Grouping | None = None) -> float:
    """Number of images at which a difference like the observed one is significant with probability `power`, in [1, inf].

    The observed mean and standard deviation of the differences are taken for the true ones. If the difference is uncertain, the
    result is only an order of magnitude. Under the null hypothesis the sum of random signs has the variance of the mean
    square, so

        n = ((z_alpha * sqrt(mean(d ** 2)) + z_power * std(d)) / mean(d)) ** 2

    For binary values it is Connor's sample size for McNemar's test. For others it is that of sign flips: the correction of the
    test for skewness takes a few images more, or many more if a few large differences are against the finding.

    With groups, d are the sums (or means) of the groups' differences and n is a number of groups, which is then multiplied by
    the mean number of images of a group. So the result is the number of images in more groups like these, not more images of
    the same groups: that of independent images, times the design effect.

    Args:
        differences: Paired differences `[N]`; NaN are left out.
        alpha: Significance level of the two-sided test, in (0, 1); for one of several tests, its share.
        power: Power of the test, in (0, 1).
        groups: Which images belong together. Default: all are independent.

    Returns:
        A whole number, at least the smallest sample for which a p-value can be below `alpha`; inf for a mean of 0; NaN for
        fewer than two differences or groups.

    Raises:
        MetricError: alpha or power is not in (0, 1).

    Reference:
        Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43, 1987,
        page 209.

    Example:
        >>> images_needed([1] * 45 + [-1] * 5 + [0] * 50)
        23.0
    """
    _check(alpha=alpha, power=power)
    values, size = _independent(differences, groups)
    mean, root, spread = _moments(values)
    if np.isnan(mean):
        return float("nan")
    if mean <= _ROUNDING * root:
        return float("inf")
    count = ((-ndtri(alpha / 2) * root + ndtri(power) * spread) / mean) ** 2
    return float(np.ceil(size * np.ceil(max(count - 1e-9, 1 - np.log2(alpha))) - 1e-9))


def paired_power(differences: ArrayLike, images: float, alpha: float = 0.05, *, groups: Grouping | None = None) -> float:
    """Power, in [0, 1], of the paired test of a difference like the observed one; the inverse of `images_needed`.

    Args:
        differences: Paired differences `[N]`; NaN are left out.
        images: Number of images, with groups in groups of the same mean size.
        alpha: Significance level of the two-sided test, in (0, 1).
        groups: Which images belong together. Default: all are independent.

    Returns:
        `alpha` for a mean of 0; NaN for fewer than two differences or groups.

    Raises:
        MetricError: alpha is not in (0, 1).

    Reference:
        Connor, Biometrics 43, 1987, page 209.

    Example:
        >>> round(paired_power([1] * 45 + [-1] * 5 + [0] * 50, images=23), 2)
        0.82
    """
    _check(alpha=alpha)
    values, size = _independent(differences, groups)
    mean, root, spread = _moments(values)
    if np.isnan(mean):
        return float("nan")
    reach, bar = np.sqrt(images / size) * mean, -ndtri(alpha / 2) * root
    if spread <= _ROUNDING * root:
        return float(reach >= bar) if root > 0 else alpha
    return float(ndtr((reach - bar) / spread) + ndtr(-(bar + reach) / spread))


def _check(**probabilities: float) -> None:
    for name, value in probabilities.items():
        if not 0 < value < 1:
            raise MetricError(f"{name} is a probability in (0, 1), such as 0.05 or 0.8; got {value}")


def _independent(differences: ArrayLike, groups: Grouping | None) -> tuple[NDArray[np.float64], float]:
    """The independent differences without NaN, those of images or of groups, and the mean number of images of each."""
    values = np.asarray(differences, dtype=float)
    kept = ~np.isnan(values)
    if groups is None or not kept.any():
        return values[kept], 1.0
    left = groups.of(kept)
    return left.totals(values[kept, None])[:, 0], len(left) / left.count


def _moments(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Absolute mean, root mean square and standard deviation; NaN for fewer than two differences."""
    if len(values) < 2:
        return float("nan"), float("nan"), float("nan")
    return abs(float(values.mean())), float(np.sqrt((values**2).mean())), float(values.std())
