"""The rule that selects layers, and its tests, in plain loops, as a reference for the tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import scipy.stats

Table = dict[str, dict[str, list[float]]]  # metric, layer, image


def slow_p(differences: Sequence[float]) -> float:
    """Of all sign vectors, the share whose sum is at least the observed one; exact for few integers."""
    reached = [
        sum(sign * abs(difference) for sign, difference in zip(signs, differences, strict=True)) >= sum(differences)
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(reached) / len(reached)


def slow_p_of_skewed(differences: Sequence[float]) -> float:
    """Student's one-sided p-value of differences that are not 0, for Hall's transformation of t; 0 if all have one size."""
    kept = [value for value in differences if value]
    if len({abs(value) for value in kept}) <= 1:
        return 0.0
    t = scipy.stats.ttest_1samp(kept, 0).statistic
    a = scipy.stats.skew(kept) / math.sqrt(len(kept))
    return float(scipy.stats.t.sf(t + a / 3 * t**2 + a**2 / 27 * t**3 + a / 6, len(kept) - 1))


def slow_p_above(differences: Sequence[float]) -> float:
    """The larger p-value, of sign flips and with the correction for skewness, if the sum is above 0, else 1."""
    return max(slow_p(differences), slow_p_of_skewed(differences)) if sum(differences) > 0 else 1.0


def slow_holm(values: Sequence[float], more: int = 0) -> list[float]:
    """Holm's step-down method: the smallest p-value times their number, the next times one less, and so on; at most 1.

    `more` is the number of tests of the family that were not made, whose p-values count as the largest.
    """
    corrected, before = [0.0] * len(values), 0.0
    left = list(range(len(values)))
    while left:
        smallest = min(left, key=lambda index: values[index])
        before = max(before, min(1.0, (len(left) + more) * values[smallest]))
        corrected[smallest] = before
        left.remove(smallest)
    return corrected


def slow_tests(table: Table, higher: Mapping[str, bool]) -> dict[Any, tuple[float, float]]:
    """Both p-values by (layer, best, best_in, metric, verdict)."""
    keys, values = [], []
    pairs = [(metric, pair) for metric, layers in table.items() for pair in itertools.permutations(layers, 2)]
    for best_in, layers in table.items():
        side = 1 if higher[best_in] else -1
        best = max(layers, key=lambda name: side * sum(layers[name]))  # the first of several
        for layer, metric in itertools.product([name for name in layers if name != best], table):
            side = 1 if higher[metric] else -1
            better = [side * (a - b) for a, b in zip(table[metric][best], table[metric][layer], strict=True)]
            worse = metric == best_in
            keys.append((layer, best, best_in, metric, "worse" if worse else "better"))
            values.append(slow_p_above(better if worse else [-one for one in better]))
    return dict(zip(keys, zip(values, slow_holm(values, len(pairs) - len(values)), strict=True), strict=True))


def slow_order(table: Table, higher: Mapping[str, bool]) -> list[str]:
    """All layers, worst first: by mean rank, by each metric, by execution."""
    layers = list(next(iter(table.values())))
    good = {metric: {name: sum(v) if higher[metric] else -sum(v) for name, v in of.items()} for metric, of in table.items()}

    def place(name: str) -> tuple[float, ...]:
        above = sum(other > of[name] for of in good.values() for other in of.values())
        beside = sum(other == of[name] for of in good.values() for other in of.values())
        return (-(above + beside / 2), *(of[name] for of in good.values()), layers.index(name))

    return sorted(layers, key=place)


def slow_selection(table: Table, higher: Mapping[str, bool], alpha: float) -> list[str]:
    """The layers that need attention, worst first."""
    tests = slow_tests(table, higher)
    needing = set()
    for layer, best_in in itertools.product(slow_order(table, higher), table):
        mine = {key[3]: p[1] < alpha for key, p in tests.items() if (key[0], key[2]) == (layer, best_in)}
        if mine.pop(best_in, False) and not any(mine.values()):
            needing.add(layer)
    return [layer for layer in slow_order(table, higher) if layer in needing]
