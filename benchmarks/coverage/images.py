"""How often the intervals of independent images contain the true value, for measured and simulated values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from grouped import Array, Rng
from recorded import LEVEL, measured, percent
from scipy.stats import skew

from xaieval.analysis.stats.intervals import difference_interval, metric_interval

SIZES = (2, 3, 4, 5, 8, 10, 20, 50, 100, 210, 500)
MANY = 1_000_000  # simulated images from which the true mean is computed if there is no formula


@dataclass(frozen=True)
class Case:
    """Data whose mean is known.

    Attributes:
        kind: Kind of interval: mean, proportion, or a difference of two means or proportions, paired by image.
        name: Description of the data.
        draw: Function from a size n and a generator to values of n images, `[n]` or pairs `[n, 2]`, and the true mean.
        skewness: Skewness of the values, or of their differences.
        resamples: Number of resamples for the percentile bootstrap. Default: the default interval.
    """

    kind: str
    name: str
    draw: Callable[[int, Rng], tuple[Array, float]]
    skewness: float
    resamples: int | None = None


def cases(rows: pd.DataFrame) -> list[Case]:
    """All data sets."""
    drops, increases = (measured(rows, metric) for metric in ("average_drop", "increase_in_confidence"))
    return [
        *[resampled("mean", f"AD at {layer}", drops[layer]) for layer in ("blocks.0", "blocks.3", "blocks.5", "blocks.6")],
        simulated("normal, not drops", lambda n, rng: rng.normal(50, 10, n)),
        simulated("exponential, not drops", lambda n, rng: rng.exponential(20, n)),
        *[simulated(name, drawn) for name, drawn in DROPS.items()],
        resampled("difference of means", "AD, blocks.5 and blocks.6", drops[["blocks.5", "blocks.6"]]),
        resampled("difference of means", "AD, blocks.3 and blocks.4", drops[["blocks.3", "blocks.4"]]),
        resampled("difference of means", "AD, blocks.0 and blocks.1", drops[["blocks.0", "blocks.1"]]),
        *[proportion(share) for share in (0.02, 0.07, 0.14, 0.31)],
        Case("proportion", "any share", any_share, float("nan")),
        resampled("difference of proportions", "IC, blocks.5 and blocks.6", increases[["blocks.5", "blocks.6"]]),
        resampled("difference of proportions", "IC, blocks.3 and blocks.4", increases[["blocks.3", "blocks.4"]]),
        *[
            replace(resampled("mean", f"AD at {layer}", drops[layer]), kind="mean, by the percentile bootstrap", resamples=1000)
            for layer in ("blocks.0", "blocks.3", "blocks.6")
        ],
        resampled(
            "difference of means, moved for skewness", "AD, blocks.0 and blocks.1", drops["blocks.0"] - drops["blocks.1"]
        ),
    ]


DROPS: dict[str, Callable[[int, Rng], Array]] = {
    "two in five zero, the others a gamma": lambda n, rng: np.where(
        rng.random(n) < 0.4, 0.0, np.minimum(rng.gamma(1, 25, n), 100)
    ),
    "beta(1, 1.2), a quarter zero": lambda n, rng: np.where(rng.random(n) < 0.25, 0.0, 100 * rng.beta(1, 1.2, n)),
    "beta(0.3, 2)": lambda n, rng: 100 * rng.beta(0.3, 2, n),
    "beta(0.2, 4)": lambda n, rng: 100 * rng.beta(0.2, 4, n),
    "19 of 20 zero, the others a beta(1, 3)": lambda n, rng: np.where(rng.random(n) < 0.95, 0.0, 100 * rng.beta(1, 3, n)),
}


def resampled(kind: str, name: str, values: pd.Series | pd.DataFrame) -> Case:
    """A case that draws measured values with replacement."""
    table = values.to_numpy()
    single = table if table.ndim == 1 else table[:, 0] - table[:, 1]
    return Case(kind, name, lambda n, rng: (table[rng.integers(len(table), size=n)], single.mean()), float(skew(single)))


def simulated(name: str, drawn: Callable[[int, Rng], Array]) -> Case:
    """A case that draws values from a distribution."""
    many = drawn(MANY, np.random.default_rng(1))
    true = many.mean()
    return Case("mean", name, lambda n, rng: (drawn(n, rng), true), float(skew(many)))


def proportion(share: float) -> Case:
    """A case that draws yes or no with a given share of yes."""
    return Case(
        "proportion",
        f"share {share:.0%}",
        lambda n, rng: (100.0 * (rng.random(n) < share), 100 * share),
        (1 - 2 * share) / np.sqrt(share * (1 - share)),
    )


def any_share(n: int, rng: Rng) -> tuple[Array, float]:
    """Draw yes or no, with a new random share of yes each time."""
    share = rng.random()
    return 100.0 * (rng.random(n) < share), 100 * share


def interval(case: Case, values: Array, seed: int) -> tuple[float, float]:
    """The interval of a summary or a comparison, or of the percentile bootstrap."""
    made = "wilson" if "proportion" in case.kind else "mean"
    if values.ndim == 2:
        return difference_interval(values[:, 0], values[:, 1], made, LEVEL, case.resamples, seed)
    return metric_interval(values, made, LEVEL, case.resamples, seed)


def measure(case: Case, n: int, runs: int, seed: int) -> dict[str, Any]:
    """How often the interval contains the true mean, among the runs that have an interval."""
    rng = np.random.default_rng([seed, n, *case.name.encode()])
    ends, true = np.empty((runs, 2)), np.empty(runs)
    for run in range(runs):
        values, true[run] = case.draw(n, rng)
        ends[run] = interval(case, values, run)
    rounding = 1e-9
    below, above = ends[:, 1] < true - rounding, ends[:, 0] > true + rounding
    given = int((~np.isnan(ends[:, 0])).sum())
    held = int(given - below.sum() - above.sum())
    return {
        "kind": case.kind,
        "data": case.name,
        "skewness": round(case.skewness, 2),
        "n": n,
        "runs": runs,
        "without": runs - given,
        **percent("coverage", held, given),
        "too_low": round(100 * below.sum() / max(given, 1), 2),
        "too_high": round(100 * above.sum() / max(given, 1), 2),
        "width": round(float(np.nanmean(ends[:, 1] - ends[:, 0])), 2) if given else float("nan"),
    }


def tables(results: pd.DataFrame) -> Iterator[str]:
    """Tables of docs/statistics.md: a row for each data set, a column for each size."""
    for kind, group in results.groupby("kind", sort=False):
        yield f"| {kind} | skewness | {' | '.join(f'n = {n}' for n in SIZES)} |\n|---|---|{'---|' * len(SIZES)}"
        for name, part in group.groupby("data", sort=False):
            cells = [_cell(row) for row in part.to_dict("records")]
            skewness = part["skewness"].iloc[0]
            yield f"| {name} | {'' if pd.isna(skewness) else f'{skewness:.1f}'} | {' | '.join(cells)} |"
        yield ""


def _cell(row: dict[str, Any]) -> str:
    """The coverage, with the share of runs without an interval if there are such runs."""
    if row["without"] == row["runs"]:
        return "none"
    share = row["without"] / row["runs"]
    return f"{row['coverage']:.1f}" + (f" (none in {share:.0%})" if share >= 0.005 else "")


def simulate(rows: pd.DataFrame, runs: int, seed: int) -> list[dict[str, Any]]:
    """Every data set at every size."""
    records = []
    for case in cases(rows):
        print(f"{case.kind}: {case.name}", file=sys.stderr)
        records += [measure(case, n, runs, seed) for n in SIZES]
    return records
