"""Values of images that come in groups, with a known mean and a chosen intraclass correlation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from xaieval.analysis.stats.groups import Grouping

Array = NDArray[Any]
Rng = np.random.Generator

CORRELATIONS = (0.0, 0.05, 0.1, 0.2, 0.4)
COUNTS = (20, 42, 210)
SIZES = {"10": (10,), "1 to 30": (1, 2, 3, 5, 8, 12, 19, 30)}  # images of a group, 10 on average
_PAIRS = 200_000  # simulated pairs of images from which a correlation is computed
_STEPS = 14  # halvings of the interval of the latent correlation


@cache
def groups_of(count: int, sizes: str) -> Grouping:
    """Groups of these sizes, one after the other."""
    return Grouping(np.repeat(np.arange(count), np.resize(SIZES[sizes], count)))


def normal(groups: Grouping, correlation: float, rng: Rng, *shape: int) -> Array:
    """Standard normal values `[*shape, N]` with this correlation within a group."""
    shared = rng.normal(size=(*shape, groups.count))[..., groups.codes]
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=(*shape, len(groups)))


def at_ranks(values: Array, normals: Array) -> Array:
    """Of sorted values, those at the ranks of standard normal values: a Gaussian copula."""
    return values[np.minimum((ndtr(normals) * len(values)).astype(int), len(values) - 1)]


def latent_correlation(values: Callable[[Array], Array], correlation: float, *shape: int) -> float:
    """The correlation of normal values `[*shape, N]` within a group at which `values` `[N]` of them have a correlation."""
    if correlation == 0:
        return 0.0
    shared, one, other = np.random.default_rng(1).normal(size=(3, *shape, _PAIRS))
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        pair = [values(np.sqrt(middle) * shared + np.sqrt(1 - middle) * own) for own in (one, other)]
        low, high = (middle, high) if np.corrcoef(*pair)[0, 1] < correlation else (low, middle)
    return (low + high) / 2
