"""A mean with its standard error, skewness and degrees of freedom, for independent images or for groups of images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from xaieval.analysis.stats.groups import Grouping
from xaieval.errors import MetricError

__all__ = [
    "FEW",
    "FEWEST",
    "ROUNDING",
    "Estimate",
    "anova_size",
    "check_level",
    "degrees_of_freedom",
    "estimate",
    "has_interval",
    "intraclass_correlation",
    "mean_squares",
    "residuals",
]

Floats = NDArray[np.float64]

ROUNDING = 1e-12  # of the largest value: means of groups that differ by less are equal
FEWEST = 4  # images or groups of an interval: drops of 2 or 3 have none that holds
FEW = 10  # images or groups below which the error of an interval is divided by four, and it may leave the range of the values


@dataclass(frozen=True)
class Estimate:
    """A mean and what an interval of it takes.

    Attributes:
        mean: The mean, weighted by images or by groups.
        error: Its standard error.
        skewness: The skewness of the mean: that of the values, divided by the square root of their number.
        freedom: Degrees of freedom of the error.
        count: Number of independent images or groups.
    """

    mean: float
    error: float
    skewness: float
    freedom: float
    count: int

    def reach(self, level: float) -> float:
        """Student's quantile for an interval of that level, wider for few images or groups."""
        error = (1 - level) / (4 if self.count < FEW else 1)
        return float(stdtrit(self.freedom, 1 - error / 2))


def check_level(level: float) -> None:
    """Raise an error if a level is not in (0, 1).

    Raises:
        MetricError: The level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise MetricError(f"the level of an interval is a probability in (0, 1), such as 0.95; got {level}")


def has_interval(values: Floats, level: float, groups: Grouping | None = None) -> bool:
    """Whether there are enough values for an interval of their mean: if all are equal, enough to rule out others.

    A share `1 - level` of other values stays unseen in n images with the probability `level ** n`. With groups, n is their
    number, and it is their means that may be equal.
    """
    check_level(level)
    independent = values if groups is None else groups.means(values)
    if len(independent) < FEWEST:
        return False
    differ = np.ptp(independent) > ROUNDING * np.abs(values).max()
    return bool(differ or level ** len(independent) <= 1 - level)


def estimate(values: Floats, groups: Grouping | None = None) -> Estimate:
    """The mean of at least two images or groups.

    With groups, the standard error is the cluster-robust one that has no bias if images are independent (CR2):

        error ** 2 = sum(share ** 2 * (mean of the group - mean) ** 2 / (1 - share))

    where `share` is the weight of a group.

    Reference:
        Bell and McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage samples", Survey
        Methodology 28, 2002.
    """
    if groups is None:
        mean, count = float(values.mean()), len(values)
        parts = values - mean
        squares = (parts * parts).sum()
        error, spread = float(np.sqrt(squares / (count - 1)) / np.sqrt(count)), np.sqrt(squares / count)
        ratios = parts / spread if spread > 0 else np.zeros(1)
        skewness = float((ratios * ratios * ratios).mean() / np.sqrt(count))  # faster than a power
        return Estimate(mean, error, skewness, count - 1, count)
    mean, parts = residuals(values, groups)
    error = float(np.sqrt((parts**2 / (1 - groups.shares)).sum()))
    freedom = degrees_of_freedom(groups, intraclass_correlation(values, groups))
    spread = np.sqrt((parts**2).sum())
    skewness = float(((parts / spread) ** 3).sum()) if spread > 0 else 0.0
    return Estimate(mean, error, skewness, freedom, groups.count)


def residuals(values: Floats, groups: Grouping) -> tuple[float, Floats]:
    """The mean, and by how much each group pulls it, `[G]`; these add up to 0."""
    means = groups.means(values)
    mean = float(groups.shares @ means)
    return mean, groups.shares * (means - mean)


def intraclass_correlation(values: Floats, groups: Grouping) -> float:
    """The correlation of two images of the same group, in [0, 1], by the analysis of variance; 0 if no group has two images.

    Reference:
        Donner, "A review of inference procedures for the intraclass correlation coefficient in the one-way random effects
        model", International Statistical Review 54, 1986.
    """
    images, count = len(groups), groups.count
    if count == images or count < 2:
        return 0.0
    between, within = mean_squares(values, groups.codes, groups.sizes)
    size = anova_size(groups.sizes)
    spread = between + (size - 1) * within
    return float(np.clip((between - within) / spread, 0, 1)) if spread > 0 else 0.0


def mean_squares(values: Floats, codes: NDArray[np.intp], sizes: NDArray[np.intp]) -> tuple[float, float]:
    """The mean squares between and within groups.

    Args:
        values: `[N]`, without NaN.
        codes: The number of each value's group, `[N]`, from 0.
        sizes: The number of values of each group, `[G]`, at least two groups and one group of two values.
    """
    means = np.bincount(codes, values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (len(sizes) - 1)
    within = float(((values - means[codes]) ** 2).sum()) / (len(values) - len(sizes))
    return between, within


def anova_size(sizes: NDArray[np.intp]) -> float:
    """The size of groups that an analysis of variance takes for groups of these sizes; their size if they are equal."""
    images = int(sizes.sum())
    return (images - float((sizes**2).sum()) / images) / (len(sizes) - 1)


def degrees_of_freedom(groups: Grouping, correlation: float) -> float:
    """Satterthwaite's degrees of freedom of the CR2 error, for values with this intraclass correlation.

    The squared error is a quadratic form of the groups' means. Its mean and variance under normal values whose groups' means
    have variances `s`, proportional to `correlation + (1 - correlation) / size`, give the chi-squared distribution with the
    same ratio of both. For G groups that are alike it is G - 1.

    Reference:
        Imbens and Kolesar, "Robust standard errors in small samples: some practical advice", Review of Economics and
        Statistics 98, 2016; Pustejovsky and Tipton, Journal of Business and Economic Statistics 36, 2018.
    """
    share = groups.shares
    s = correlation + (1 - correlation) / groups.sizes
    a = share**2 / (1 - share)
    # The covariance of the residuals of two groups is total - pull[g] - pull[h], plus s[g] if they are the same group.
    pull, total = share * s, float((share**2 * s).sum())
    expected = (a * (s + total - 2 * pull)).sum()
    a0, a1, a2 = a.sum(), (a * pull).sum(), (a * pull**2).sum()
    square = total**2 * a0**2 - 4 * total * a0 * a1 + 2 * a0 * a2 + 2 * a1**2
    square += (a**2 * s * (s + 2 * (total - 2 * pull))).sum()
    return float(expected**2 / square)
