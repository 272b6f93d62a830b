"""Tests of the sign of a mean that may be looked at after every image, for images drawn without replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xaieval.errors import MetricError

__all__ = ["SignTest", "on_grid"]

Floats = NDArray[np.float64]

_GRID = 2.0**32  # multiples of its inverse add up without rounding for two million numbers in [-1, 1]
_LARGEST_STAKE = 0.9  # of what could be lost: of the clips and mixtures tried, the one that stops soonest over all settings
_PRIOR_SQUARE = 0.25  # of the one number that is taken as seen before the first, so that there is a variance to divide by


def on_grid(values: ArrayLike) -> Floats:
    """Numbers in [-1, 1] rounded to multiples of 2**-32, whose sums are exact, so that ties are ties in any order."""
    return np.round(np.asarray(values, dtype=float) * _GRID) / _GRID


class SignTest:
    """Is the mean of all N numbers positive or negative? Tests of many such means at once, of numbers in [-1, 1].

    For each mean, two players bet on each next number before they see it. The first bets that it is above what the numbers
    left average if the mean of all is zero, `m = -(sum so far) / (numbers left)`, the second that it is below; neither can lose
    more than there is. If the mean of all is not positive, the first player's capital `K = prod(1 + l * (x - m))` is a
    supermartingale that starts at 1, in whatever way the stakes `l` follow from the numbers before, and reaches `1 / error` at
    any time with at most the probability `error` (Ville). The stake is `(mean - m) / (variance + (mean - m)**2)` from what was
    seen (aGRAPA), at most nine tenths of `1 / (1 + m)`. A sign is known for sure once the numbers left cannot change it,
    so at the latest when all were seen.

    Args:
        population: N, the number of all numbers, in [1, 2**20].
        tests: T, how many means are tested beside each other.

    Attributes:
        population: N.
        seen: how many numbers of each mean were seen.
        sums: of the numbers seen, `[T]`, exact.
        capital: of the players for positive and for negative means, `[2, T]`, now.

    Raises:
        MetricError: there is nothing to test, or too much to add exactly.

    Reference:
        Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024 (arXiv 2010.09686),
        there for x in [0, 1], so with a mean of 1/2 in place of 0; and "Confidence sequences for sampling without replacement",
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
                f"a sign is tested of 1 to {2**20} numbers, in at least one test; got population {population}, tests {tests}"
            )
        self.population = population
        self.seen = 0
        self.sums: Floats = np.zeros(tests)
        self.capital: Floats = np.ones((2, tests))
        self._squares: Floats = np.zeros(tests)
        self._most: Floats = np.ones((2, tests))

    def add(self, block: ArrayLike) -> None:
        """See more numbers; how they are cut into blocks changes nothing.

        Args:
            block: `[n, T]` in [-1, 1], in the order in which they were drawn; rounded to multiples of 2**-32.

        Raises:
            MetricError: these are no numbers of that kind, or more than N.
        """
        values = on_grid(self._checked(np.asarray(block, dtype=float)))
        sums = np.cumsum(np.concatenate([self.sums[None], values]), axis=0)
        squares = np.cumsum(np.concatenate([self._squares[None], values**2]), axis=0)
        null, stake = self._bets(sums[:-1], squares[:-1])
        for side, sign in enumerate((1, -1)):
            room = 1 + sign * null  # where there is none, only one value is left to come, or the sign is known
            most = _LARGEST_STAKE / np.where(room > 0, room, np.inf)
            gains = 1 + np.clip(sign * stake, 0, most) * sign * (values - null)
            with np.errstate(over="ignore", under="ignore"):  # a fortune is a fortune
                path = np.cumprod(np.concatenate([self.capital[side][None], gains]), axis=0)
            self.capital[side] = path[-1]
            self._most[side] = np.maximum(self._most[side], path.max(axis=0))
        self.sums, self._squares = sums[-1], squares[-1]
        self.seen += len(values)

    @property
    def evidence(self) -> Floats:
        """The largest capital there ever was, `[2, T]`: for positive and for negative means; inf where the sign is sure."""
        return np.where(self._sure(), np.inf, self._most)

    @property
    def p_values(self) -> Floats:
        """Of "the mean is not positive" and "the mean is not negative", `[2, T]`, valid at whatever time they are looked at."""
        return 1 / self.evidence

    def signs(self, error: float) -> NDArray[np.int64]:
        """1 or -1 where the sign of the mean is certain, 0 where it is not (yet), `[T]`.

        Args:
            error: probability, of each test, that a sign which is wrong or of a mean of zero is ever called certain before all
                numbers were seen; in (0, 1).

        Raises:
            MetricError: that is no probability.
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
        """The mean of the numbers left if the mean of all is zero, and the stakes before limits; from the numbers before."""
        before = self.seen + np.arange(len(sums))[:, None]
        null = -sums / (self.population - before)
        mean = sums / (before + 1)
        variance = (squares + _PRIOR_SQUARE) / (before + 1) - mean**2
        edge = mean - null
        return null, edge / (variance + edge**2)

    def _sure(self) -> NDArray[np.bool_]:
        """Which signs the numbers left cannot change any more."""
        left = self.population - self.seen
        return np.stack([self.sums > left, -self.sums > left])

    def _checked(self, block: Floats) -> Floats:
        if block.ndim != 2 or block.shape[1] != len(self.sums):
            raise MetricError(f"a block is [n, {len(self.sums)}], one column a test; got shape {block.shape}")
        if not (np.abs(block) <= 1).all():
            raise MetricError("the sign of a mean is tested of numbers in [-1, 1]; scale them, and put 0 for what is missing")
        if self.seen + len(block) > self.population:
            raise MetricError(f"more numbers came than the {self.population} that there are: {self.seen + len(block)}")
        return block
