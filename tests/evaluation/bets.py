"""The bets of the sequential test as a slow loop, with which faster code is compared."""

from __future__ import annotations

import math
from collections.abc import Sequence


def largest_capital(differences: Sequence[float], population: int) -> float:
    """The largest capital of a player who bets on a positive mean; inf if it is certain."""
    capital = most = 1.0
    for t, difference in enumerate(differences):
        null = -sum(differences[:t]) / (population - t)
        mean = sum(differences[:t]) / (t + 1)
        variance = (0.25 + sum(one**2 for one in differences[:t])) / (t + 1) - mean**2
        stake = max(0, (mean - null) / (variance + (mean - null) ** 2))
        capital *= 1 + (min(stake, 0.9 / (1 + null)) if null > -1 else 0) * (difference - null)
        most = max(most, capital)
    return math.inf if sum(differences) > population - len(differences) else most
