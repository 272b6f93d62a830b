"""Samples for the tests of statistics, and SciPy's permutation test as a reference for the package's own."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, permutation_test


def skewed(count: int, mean: float, seed: int = 0) -> np.ndarray:
    """Values like differences of drops: a third are zero, the others are skewed."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(count) < 1 / 3, 0.0, rng.gamma(2, 10, count) - 20 + mean)


def yes_no(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[float], list[float]]:
    """Two vectors of 0 and 100 with these numbers of concordant and discordant images."""
    first = [100.0] * (both + only_first) + [0.0] * (only_second + neither)
    second = [100.0] * both + [0.0] * only_first + [100.0] * only_second + [0.0] * neither
    return first, second


def scipy_p_value(
    differences: ArrayLike, resamples: int = 9999, seed: int = 0, alternative: Literal["greater", "two-sided"] = "greater"
) -> float:
    """p-value of paired differences: McNemar's exact test if all have one size, else SciPy's permutation test of signs."""
    values = np.asarray(differences, dtype=float)
    values = values[values != 0]
    if not len(values):
        return 1.0
    if np.ptp(np.abs(values)) == 0:
        return float(binomtest(int((values > 0).sum()), len(values), alternative=alternative).pvalue)
    actual = permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 4_000_000 // len(values)),
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(actual.pvalue)
