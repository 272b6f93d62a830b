"""Intervals of proportions and of their paired differences, for independent images or for groups of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from xaieval.analysis.stats.estimates import (
    FEWEST,
    ROUNDING,
    check_level,
    estimate,
    residuals,
)
from xaieval.analysis.stats.groups import Grouping

__all__ = ["difference_of_proportions", "proportion_interval", "wilson_interval"]

Floats = NDArray[np.float64]
Yes = NDArray[np.bool_]

NO_INTERVAL = float("nan"), float("nan")

_PRIOR = 1  # images that the largest design effect counts for: the fewest that keep coverage where a share is small


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
        return NO_INTERVAL
    return _wilson(successes / n, n, level)


def proportion_interval(values: Yes, level: float, groups: Grouping | None = None) -> tuple[float, float]:
    """Wilson's interval of the share of images with a property, in [0, 1].

    With groups, the number of images is divided by the design effect: the squared standard error (CR2) relative to that of
    independent images, at least 1, raised for the degrees of freedom of that error. A few images with the property, or a few
    without it, hardly show how similar the images of a group are. So the design effect is averaged with the largest possible
    one, at which each group counts as one image: the former weighs as much as the rarer kind has images, the latter as one
    image. If all images or none have the property, it is the largest.

    Returns:
        Lower and upper end; NaN for no images, or fewer than 4 groups.

    Reference:
        Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts estimated from
        survey data", Survey Methodology 24, 1998; Franco, Little, Louis and Slud, "Comparative study of confidence intervals
        for proportions in complex sample surveys", Journal of Survey Statistics and Methodology 7, 2019.
    """
    if groups is None:
        return wilson_interval(int(values.sum()), len(values), level)
    check_level(level)
    if groups.count < FEWEST:
        return NO_INTERVAL
    share = min(groups.mean(values), 1.0)
    return _wilson(share, _effective_images(values, share, level, groups), level)


def difference_of_proportions(first: Yes, second: Yes, level: float, groups: Grouping | None = None) -> tuple[float, float]:
    """Newcombe's interval of the difference of two proportions of the same images, in [-1, 1].

    It combines the intervals of both proportions with their correlation, so it has a width even if no two images differ,
    unlike a bootstrap interval. With groups, the correlation is that of what the groups add to the two proportions (MOVER).

    Reference:
        Newcombe, Statistics in Medicine 17, 1998, method 10; for correlated estimates of any kind Zou and Donner,
        "Construction of confidence limits about effect measures: a general approach", Statistics in Medicine 27, 2008.
    """
    if groups is not None and FEWEST <= groups.count == len(groups):
        groups = None  # every image is a group of its own
    lows, highs = np.array([proportion_interval(values, level, groups) for values in (first, second)]).T
    if np.isnan(lows).any():
        return NO_INTERVAL
    shares = np.array([values.mean() if groups is None else groups.mean(values) for values in (first, second)])
    correlation = _phi(first, second) if groups is None else _correlation(first, second, groups)
    below, above = shares - lows, highs - shares
    theta = float(shares[0] - shares[1])
    down = _hypotenuse(below[0], above[1], correlation)
    up = _hypotenuse(above[0], below[1], correlation)
    return max(theta - down, -1.0), min(theta + up, 1.0)


def _effective_images(values: Yes, share: float, level: float, groups: Grouping) -> float:
    """The number of independent images that would give an interval as wide."""
    images = len(groups)
    rarer = min(int(values.sum()), images - int(values.sum()))
    alike = images * float((groups.shares**2).sum())
    if rarer == 0:
        return images / alike
    effect = _design_effect(values.astype(float), share, level, groups)
    return images / max((rarer * effect + _PRIOR * alike) / (rarer + _PRIOR), 1.0)


def _design_effect(values: Floats, share: float, level: float, groups: Grouping) -> float:
    """How many times as large as that of independent images the variance is, raised for its few degrees of freedom."""
    images = len(groups)
    found = estimate(values, groups)
    tail = (1 - level) / 2
    effect = max(found.error**2 * (images - 1) / (share * (1 - share)), 1.0)
    return float(effect * (stdtrit(found.freedom, tail) / stdtrit(images - 1, tail)) ** 2)


def _wilson(share: float, n: float, level: float) -> tuple[float, float]:
    """Wilson's interval for a share of a number of images that need not be whole."""
    square = float(ndtri((1 - level) / 2)) ** 2 / n
    centre = (share + square / 2) / (1 + square)
    reach = float(np.sqrt(square * (share * (1 - share) + square / 4))) / (1 + square)
    # Within [0, 1] and around the share, which rounding would miss by a digit where no image or every image has the property.
    return min(max(centre - reach, 0.0), share), max(min(centre + reach, 1.0), share)


def _correlation(first: Yes, second: Yes, groups: Grouping) -> float:
    """The correlation of two proportions from what each group adds to them, lower if few groups tell them apart.

    It is averaged with 0, which counts for one group, because where no group differs the correlation is 1 and hides that others
    may differ, as in Newcombe's correction. 0 if either is the same in all groups.
    """
    if any(np.ptp(groups.means(values)) <= ROUNDING for values in (first, second)):
        return 0.0
    (_, one), (_, other) = (residuals(values.astype(float), groups) for values in (first, second))
    weights = 1 / (1 - groups.shares)
    area = float((weights * one**2).sum() * (weights * other**2).sum())
    differ = int((groups.means(first) != groups.means(second)).sum())
    return float((weights * one * other).sum() / np.sqrt(area)) * differ / (differ + 1)


def _phi(first: Yes, second: Yes) -> float:
    """Newcombe's phi coefficient, continuity-corrected towards 0 if it is positive; 0 if either vector is constant."""
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    area = (both + one) * (other + neither) * (both + other) * (one + neither)
    product = both * neither - one * other
    corrected = max(product - len(first) / 2, 0) if product > 0 else product
    return float(corrected / np.sqrt(area)) if area else 0.0


def _hypotenuse(a: Any, b: Any, cosine: float) -> float:
    return float(np.sqrt(max(a**2 - 2 * cosine * a * b + b**2, 0)))
