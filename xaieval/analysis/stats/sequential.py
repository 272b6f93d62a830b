"""Sequential tests of the sign of a mean, valid at any time, for values drawn without replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xaieval.errors import MetricError

__all__ = ["SignTest", "on_grid"]

Floats = NDArray[np.float64]

_GRID = 2.0**32  # multiples of its inverse add up without rounding for two million values in [-1, 1]
_LARGEST_STAKE = 0.9  # of the stake that can lose everything; of the limits and mixtures tried, it stops earliest overall
_PRIOR_SQUARE = 0.25  # square of a pseudo-observation before the first value, so that the variance is never 0


def on_grid(values: ArrayLike) -> Floats:
    """Values in [-1, 1] rounded to multiples of 2**-32: their sums are exact, so ties are ties in any order."""
    return np.round(np.asarray(values, dtype=float) * _GRID) / _GRID


class SignTest:
    """Sequential tests of whether the mean of a population of N values is positive or negative, for many means at once.

    The values lie in [-1, 1]. For each mean, two players bet on each next value before they see it: the first that it is above
    `m = -(sum so far) / (number of values left)`, the mean of the values left if the mean of all is 0, the second that it is
    below. If the mean of all is not positive, the capital of the first player, `K = prod(1 + l * (x - m))`, is a
    nonnegative supermartingale that starts at 1 for any stakes `l` that depend on earlier values only, so it ever reaches
    `1 / error` with probability at most `error` (Ville's inequality). The stake is `(mean - m) / (variance + (mean - m)**2)`
    of the values seen (aGRAPA), at most nine tenths of `1 / (1 + m)`. A sign is certain as soon as the values left cannot
    change it, so at the latest when all have been seen.

    Args:
        population: N, the number of all values, in [1, 2**20].
        tests: T, the number of means to test.

    Attributes:
        population: N.
        seen: Number of values seen of each mean.
        sums: Sums of the values seen, `[T]`, exact.
        capital: Current capital of the players for positive and for negative means, `[2, T]`.

    Raises:
        MetricError: `population` or `tests` is out of range.

    Reference:
        Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024 (arXiv 2010.09686),
        there for x in [0, 1], so with a mean of 1/2 instead of 0; and "Confidence sequences for sampling without replacement",
        NeurIPS 2020 (arXiv 2006.04448).

    Example:
        >>> test = SignTest(population=100, tests=2)
        >>> test.add([[0.5, 0.1], [0.6, -0.1], [0.4, 0.0]] * 4)
        >>> test.signs(error=0.05).tolist()  # after 12 of 100
        [1, 0]
    """

    def __init__(self, population: int, tests: int) -> None:
        if not 1 <= population <= 2**20 or tests < 1:
            raise MetricError(
                f"population is 1 to {2**20} values, and tests is at least 1; got population {population}, tests {tests}"
            )
        self.population = population
        self.seen = 0
        self.sums: Floats = np.zeros(tests)
        self.capital: Floats = np.ones((2, tests))
        self._squares: Floats = np.zeros(tests)
        self._most: Floats = np.ones((2, tests))

    def add(self, block: ArrayLike) -> None:
        """Add values; how they are cut into blocks changes nothing.

        Args:
            block: `[n, T]` in [-1, 1], in the order in which they were drawn; rounded to multiples of 2**-32.

        Raises:
            MetricError: The values have the wrong shape or range, or are more than N.
        """
        values = on_grid(self._checked(np.asarray(block, dtype=float)))
        sums = np.cumsum(np.concatenate([self.sums[None], values]), axis=0)
        squares = np.cumsum(np.concatenate([self._squares[None], values**2]), axis=0)
        null, stake = self._bets(sums[:-1], squares[:-1])
        for side, sign in enumerate((1, -1)):
            room = 1 + sign * null  # 0 if only one value of the rest is possible, or the sign is certain
            most = _LARGEST_STAKE / np.where(room > 0, room, np.inf)
            gains = 1 + np.clip(sign * stake, 0, most) * sign * (values - null)
            with np.errstate(over="ignore", under="ignore"):  # a capital of inf or 0 is as good as a very large or small one
                path = np.cumprod(np.concatenate([self.capital[side][None], gains]), axis=0)
            self.capital[side] = path[-1]
            self._most[side] = np.maximum(self._most[side], path.max(axis=0))
        self.sums, self._squares = sums[-1], squares[-1]
        self.seen += len(values)

    def keep(self, tests: ArrayLike) -> None:
        """Go on with some of the tests only.

        Args:
            tests: Their indices in [0, T), in the order that they are to have from now on.
        """
        kept = np.asarray(tests, dtype=np.intp)
        self.sums, self._squares = self.sums[kept], self._squares[kept]
        self.capital, self._most = self.capital[:, kept], self._most[:, kept]

    @property
    def evidence(self) -> Floats:
        """The largest capital so far, `[2, T]`, for positive and for negative means; inf if the sign is certain."""
        return np.where(self._sure(), np.inf, self._most)

    @property
    def p_values(self) -> Floats:
        """p-values of "the mean is not positive" and "the mean is not negative", `[2, T]`; valid at any time."""
        return 1 / self.evidence

    def signs(self, error: float) -> NDArray[np.int64]:
        """1 or -1 if the sign of the mean is certain, 0 if it is not (yet), `[T]`.

        Args:
            error: Error probability of each test, in (0, 1): that it ever calls a sign certain, before all values were seen,
                that is wrong or of a mean of 0.

        Raises:
            MetricError: The error is not in (0, 1).
        """
        if not 0 < error < 1:
            raise MetricError(f"the error of a test is a probability in (0, 1), such as 0.05; got {error}")
        positive, negative = self.evidence
        certain = np.maximum(positive, negative) >= 1 / error
        likely = np.where(positive > negative, 1, -1)
        if self.seen == self.population:
            return np.sign(self.sums).astype(np.int64)
        return np.where(certain, likely, 0).astype(np.int64)

    def _bets(self, sums: Floats, squares: Floats) -> tuple[Floats, Floats]:
        """The mean of the values left if the mean of all is 0, and the stakes before limits; from earlier values."""
        before = self.seen + np.arange(len(sums))[:, None]
        null = -sums / (self.population - before)
        mean = sums / (before + 1)
        variance = (squares + _PRIOR_SQUARE) / (before + 1) - mean**2
        edge = mean - null
        return null, edge / (variance + edge**2)

    def _sure(self) -> NDArray[np.bool_]:
        """Which signs the values left can no longer change."""
        left = self.population - self.seen
        return np.stack([self.sums > left, -self.sums > left])

    def _checked(self, block: Floats) -> Floats:
        if block.ndim != 2 or block.shape[1] != len(self.sums):
            raise MetricError(f"a block is [n, {len(self.sums)}], one column per test; got shape {block.shape}")
        if not (np.abs(block) <= 1).all():
            raise MetricError("values have to be in [-1, 1]; scale them, and use 0 for missing ones")
        if self.seen + len(block) > self.population:
            raise MetricError(f"got {self.seen + len(block)} values of a population of {self.population}")
        return block
