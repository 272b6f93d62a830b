"""How many images it takes to see a difference."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from xaieval.errors import MetricError

__all__ = ["images_needed", "paired_power"]

_ROUNDING = 1e-12  # of the size of the differences: a mean or a spread below that is none


def images_needed(differences: ArrayLike, alpha: float = 0.05, power: float = 0.8) -> float:
    """Number of images at which a difference like this one is found with probability `power`, in [1, inf].

    The mean and the spread of the differences at hand are taken for those of all images. That is a guess, and a wide one where
    the difference is uncertain: read it as an order of magnitude. Under the null hypothesis the sum of random signs has the
    variance of the mean square, so

        n = ((z_alpha * sqrt(mean(d ** 2)) + z_power * std(d)) / mean(d)) ** 2

    For yes or no that is Connor's number for McNemar's test.

    Args:
        differences: of N pairs, `[N]`; NaN are left out.
        alpha: of the two-sided test, in (0, 1); for one of several tests, its share.
        power: probability to find the difference, in (0, 1).

    Returns:
        A whole number, no smaller than what any p-value below `alpha` takes; inf for a mean of zero; NaN for fewer than two
        differences.

    Raises:
        MetricError: alpha or power are no probabilities.

    Reference:
        Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43, 1987,
        page 209.

    Example:
        >>> images_needed([1] * 45 + [-1] * 5 + [0] * 50)
        23.0
    """
    _check(alpha=alpha, power=power)
    mean, root, spread = _moments(differences)
    if np.isnan(mean):
        return float("nan")
    if mean <= _ROUNDING * root:
        return float("inf")
    images = ((norm.isf(alpha / 2) * root + norm.isf(1 - power) * spread) / mean) ** 2
    return float(np.ceil(max(images - 1e-9, 1 - np.log2(alpha))))


def paired_power(differences: ArrayLike, images: float, alpha: float = 0.05) -> float:
    """Probability, in [0, 1], to find a difference like this one on so many images; see `images_needed`, its inverse.

    Args:
        differences: of N pairs, `[N]`; NaN are left out.
        images: how many there would be.
        alpha: of the two-sided test, in (0, 1).

    Returns:
        `alpha` at a mean of zero; NaN for fewer than two differences.

    Raises:
        MetricError: alpha is no probability.

    Reference:
        Connor, Biometrics 43, 1987, page 209.

    Example:
        >>> round(paired_power([1] * 45 + [-1] * 5 + [0] * 50, images=23), 2)
        0.82
    """
    _check(alpha=alpha)
    mean, root, spread = _moments(differences)
    if np.isnan(mean):
        return float("nan")
    reach, bar = np.sqrt(images) * mean, norm.isf(alpha / 2) * root
    if spread <= _ROUNDING * root:
        return float(reach >= bar) if root > 0 else alpha
    return float(norm.sf((bar - reach) / spread) + norm.sf((bar + reach) / spread))


def _check(**probabilities: float) -> None:
    for name, value in probabilities.items():
        if not 0 < value < 1:
            raise MetricError(f"{name} is a probability in (0, 1), such as 0.05 or 0.8; got {value}")


def _moments(differences: ArrayLike) -> tuple[float, float, float]:
    """Size of the mean, root of the mean square, and spread; NaN for fewer than two differences."""
    values: NDArray[np.float64] = np.asarray(differences, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan"), float("nan")
    return abs(float(values.mean())), float(np.sqrt((values**2).mean())), float(values.std())
