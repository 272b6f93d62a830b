"""Level and power of tests of a mean that is 0, or is not, for symmetric and for skewed differences."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from grouped import Array, Rng
from recorded import grid, measured, percent
from scipy.special import stdtr

from xaieval.analysis.stats.permutation import sign_flip_p_values

ALPHA = 0.05
SIZES = (10, 30, 105, 210)
DRAWS = 1999  # sign vectors and bootstrap samples
SHIFT = 2.5  # standard errors by which the mean is moved to measure the power
SYMMETRIC = ("normal", "normal, 3 of 5 zero", "Laplace", "Student, 3 degrees of freedom")  # of `data`, by their distribution
_MANY = 1_000_000  # values from which a standard deviation is computed


def data(rows: pd.DataFrame) -> dict[str, Callable[[Rng, tuple[int, int]], Array]]:
    """Differences with a mean of 0, by name."""
    drops = measured(rows, "average_drop")

    def between(one: str, other: str) -> Callable[[Rng, tuple[int, int]], Array]:
        values = (drops[one] - drops[other]).to_numpy()
        return lambda rng, shape: (values - values.mean())[rng.integers(len(values), size=shape)]

    return {
        "-95 in 5 %, else +5": lambda rng, shape: np.where(rng.random(shape) < 0.05, -95.0, 5.0),
        "-90 in 10 %, else +10, with noise": lambda rng, shape: (
            np.where(rng.random(shape) < 0.1, -90.0, 10.0) + rng.normal(0, 3, shape)
        ),
        "negative exponential": lambda rng, shape: 20 - rng.exponential(20, shape),
        "negative exponential, 3 of 5 zero": lambda rng, shape: np.where(
            rng.random(shape) < 0.6, 0.0, 20 - rng.exponential(20, shape)
        ),
        "negative log-normal": lambda rng, shape: np.exp(0.5) - rng.lognormal(0, 1, shape),
        "AD, blocks.3 and blocks.4": between("blocks.3", "blocks.4"),
        "AD, blocks.0 and blocks.1": between("blocks.0", "blocks.1"),
        "AD, blocks.5 and blocks.6": between("blocks.5", "blocks.6"),
        "normal": lambda rng, shape: rng.normal(0, 20, shape),
        "normal, 3 of 5 zero": lambda rng, shape: np.where(rng.random(shape) < 0.6, 0.0, rng.normal(0, 20, shape)),
        "Laplace": lambda rng, shape: rng.laplace(0, 20, shape),
        "Student, 3 degrees of freedom": lambda rng, shape: 20 * rng.standard_t(3, shape),
    }


def hall(sums: Array, squares: Array, cubes: Array, n: int) -> tuple[Array, Array]:
    """Student's t, and t by Hall's transformation, from sums of values, squares and cubes."""
    mean = sums / n
    variance = np.maximum(squares / n - mean**2, 1e-9)
    bend = (cubes / n - 3 * mean * squares / n + 2 * mean**3) / variance**1.5 / np.sqrt(n)
    t = mean / np.sqrt(variance / (n - 1))
    return t, t + bend * t**2 / 3 + bend**2 * t**3 / 27 + bend / 6


def p_values(values: Array, rng: Rng) -> dict[str, tuple[Array, Array]]:
    """p-values of "the mean is not above 0" and "the mean is not below 0", by test; one column per sample, `[n, R]`."""
    n = len(values)
    sums, squares, cubes = (values**power for power in (1, 2, 3))
    totals = [powers.sum(axis=0) for powers in (sums, squares, cubes)]
    t, symmetric = hall(*totals, n)
    signs = 2.0 * rng.integers(0, 2, (DRAWS, n)) - 1
    flips = beyond(signs @ values, totals[0])
    flips_of_hall = beyond(hall(signs @ values, totals[1], signs @ cubes, n)[1], symmetric)
    centred = values - values.mean(axis=0)
    times = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(float)
    resampled = hall(times @ centred, times @ centred**2, np.zeros(1), n)[0]
    return {
        "sign flips": flips,
        "Student's t": (stdtr(n - 1, -t), stdtr(n - 1, t)),
        "Hall's t": (stdtr(n - 1, -symmetric), stdtr(n - 1, symmetric)),
        "bootstrap t": beyond(resampled, t),
        "flips of Hall's t": flips_of_hall,
        "larger of both flips": tuple(np.maximum(one, other) for one, other in zip(flips, flips_of_hall, strict=True)),
        "used": tuple(sign_flip_p_values(side * values, DRAWS, 1) for side in (1, -1)),
    }


def beyond(drawn: Array, seen: Array) -> tuple[Array, Array]:
    """The shares of drawn statistics `[B, R]` at least as large, and at most as large, as those seen."""
    rounding = 1e-9 * np.abs(seen)
    return tuple(((side * drawn >= side * seen - rounding).sum(axis=0) + 1) / (len(drawn) + 1) for side in (1, -1))


def measure(name: str, draw: Callable[..., Array], n: int, shift: float, runs: int, seed: int) -> Iterator[dict[str, Any]]:
    """How often each test rejects at a level of 5 %: two-sided, and one-sided that the mean is above 0."""
    rng = np.random.default_rng([seed, n, int(10 * shift), *name.encode()])
    spread = draw(np.random.default_rng(1), (_MANY, 1)).std()
    values = draw(rng, (n, runs))
    if shift:  # differences that are 0 stay so, and the others move further
        moved = values != 0
        values = values + moved * shift * spread / np.sqrt(n) / moved.mean()
    for test, (above, below) in p_values(values, rng).items():
        record = {"data": name, "n": n, "shift": shift, "test": test, "runs": runs}
        record |= percent("two_sided", int((2 * np.minimum(above, below) <= ALPHA).sum()), runs)
        yield record | percent("above", int((above <= ALPHA).sum()), runs)


def simulate(rows: pd.DataFrame, runs: int, seed: int) -> list[dict[str, Any]]:
    """All data and sizes, without and with a mean to find."""
    records = []
    for name, draw in data(rows).items():
        print(f"skewness: {name}", file=sys.stderr)
        for shift in (0, SHIFT):
            for n in SIZES:
                records += measure(name, draw, n, shift, runs, seed)
    return records


def tables(results: pd.DataFrame) -> Iterator[str]:
    """Tables of docs/statistics.md: rejections two-sided, and in parentheses one-sided."""
    cells = [f"{row['two_sided']:.1f} ({row['above']:.1f})" for row in results.to_dict("records")]
    shown = results.assign(cell=cells)
    level, power = shown[(shown["shift"] == 0) & (shown["n"] > 10)], shown[(shown["shift"] > 0) & (shown["n"] != 105)]
    yield grid(level.rename(columns={"data": "level"}), ["level", "n"], "test", "cell") + "\n"
    power = power[power["data"].isin([*SYMMETRIC, "AD, blocks.5 and blocks.6"])]
    yield grid(power.rename(columns={"data": "power"}), ["power", "n"], "test", "cell") + "\n"
