"""Tests of the gain of each layer against zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.permutation import sign_flip_p_values

__all__ = ["gain_p_values"]


def gain_p_values(
    gains: ArrayLike, family: int, level: float = 0.95, seed: int = 0, groups: Grouping | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One-sided p-values of "the mean gain is not above 0", and the same corrected by Bonferroni.

    Args:
        gains: One row per image and one column per layer, `[N, L]`.
        family: The number of layers that can be tested, at least L. It is the same in every round of a greedy search, so that
            the rounds and a later test of all layers agree.
        level: 1 minus the probability of even one false positive, in (0, 1).
        seed: Seed of the random signs.
        groups: Which images belong together; their signs are flipped together.

    Returns:
        Two times `[L]`.

    Example:
        >>> plain, corrected = gain_p_values([[1.0, -1.0]] * 8, family=4)
        >>> plain.tolist(), corrected.tolist()
        ([0.00390625, 1.0], [0.015625, 1.0])
    """
    resamples = max(9999, int(10 * family / (1 - level)))
    p_values = sign_flip_p_values(gains, resamples, seed, groups=groups)
    return p_values, np.minimum(family * p_values, 1.0)
