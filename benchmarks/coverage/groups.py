"""How often intervals hold if images come in groups: those that ignore the groups, and those that know them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from grouped import CORRELATIONS, COUNTS, SIZES, Array, at_ranks, groups_of, latent_correlation, normal
from recorded import LEVEL, grid, measured, percent

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.intervals import difference_interval, metric_interval

COLUMNS = ("kind", "data", "sizes", "groups")


@dataclass(frozen=True)
class Case:
    """Measured values whose mean, or mean difference, is known.

    Attributes:
        kind: Kind of interval.
        name: Description of the data.
        values: Values of images, `[P]`, or pairs `[P, 2]`, sorted by the value or the difference.
    """

    kind: str
    name: str
    values: Array

    @property
    def single(self) -> Array:
        """The values, or the differences, whose mean is sought."""
        return self.values if self.values.ndim == 1 else self.values[:, 0] - self.values[:, 1]


def cases(rows: pd.DataFrame) -> Iterator[Case]:
    """All data sets: AD and IC of Grad-CAM as measured, and their differences between two layers."""
    drops, increases = (measured(rows, metric) for metric in ("average_drop", "increase_in_confidence"))
    for layer in ("blocks.0", "blocks.3", "blocks.6"):
        yield sorted_case("mean", f"AD at {layer}", drops[layer])
    for layer in ("blocks.3", "blocks.5", "blocks.6"):
        yield sorted_case("proportion", f"IC at {layer}, {increases[layer].mean():.0f} %", increases[layer])
    for one, other in (("blocks.5", "blocks.6"), ("blocks.0", "blocks.1")):
        yield sorted_case("difference of means", f"AD, {one} and {other}", drops[[one, other]])
    for one, other in (("blocks.5", "blocks.6"), ("blocks.3", "blocks.4")):
        yield sorted_case("difference of proportions", f"IC, {one} and {other}", increases[[one, other]])


def sorted_case(kind: str, name: str, values: pd.Series | pd.DataFrame) -> Case:
    """A case whose images are sorted by their value or difference."""
    table = values.to_numpy()
    single = table if table.ndim == 1 else table[:, 0] - table[:, 1]
    return Case(kind, name, table[np.argsort(single, kind="stable")])


def interval(case: Case, values: Array, groups: Grouping | None) -> tuple[float, float]:
    """The interval of a summary or of a comparison."""
    kind = "wilson" if "proportion" in case.kind else "mean"
    if values.ndim == 1:
        return metric_interval(values, kind, LEVEL, groups=groups)
    return difference_interval(values[:, 0], values[:, 1], kind, LEVEL, groups=groups)


def measure(case: Case, sizes: str, count: int, correlation: float, latent: float, runs: int, seed: int) -> dict[str, Any]:
    """How often the intervals contain the true value, without and with the groups."""
    groups, true, rounding = groups_of(count, sizes), case.single.mean(), 1e-9
    rng = np.random.default_rng([seed, count, int(1000 * correlation), *f"{case.name}{sizes}".encode()])
    ends = np.empty((2, runs, 2))
    for run in range(runs):
        values = at_ranks(case.values, normal(groups, latent, rng))
        ends[:, run] = [interval(case, values, chosen) for chosen in (None, groups)]
    too_low, too_high = ends[..., 1] < true - rounding, ends[..., 0] > true + rounding
    given = ~np.isnan(ends[..., 0])
    held = (given & ~too_low & ~too_high).sum(axis=1)
    record = {"kind": case.kind, "data": case.name, "sizes": sizes, "groups": count, "correlation": correlation, "runs": runs}
    record |= percent("ignored", int(held[0]), int(given[0].sum())) | percent("coverage", int(held[1]), int(given[1].sum()))
    record |= {"too_low": round(100 * too_low[1].mean(), 2), "too_high": round(100 * too_high[1].mean(), 2)}
    return record | {"without": int((~given[1]).sum()), "width": round(float(np.nanmean(ends[1, :, 1] - ends[1, :, 0])), 2)}


def simulate(rows: pd.DataFrame, runs: int, seed: int) -> list[dict[str, Any]]:
    """All data sets, sizes, numbers of groups and correlations."""
    records = []
    for case in cases(rows):
        latents = [latent_correlation(partial(at_ranks, case.single), correlation) for correlation in CORRELATIONS]
        for sizes in SIZES:
            for count in COUNTS:
                print(f"{case.kind}: {case.name}, {count} groups of {sizes} images", file=sys.stderr)
                for correlation, latent in zip(CORRELATIONS, latents, strict=True):
                    records.append(measure(case, sizes, count, correlation, latent, runs, seed))
    return records


def tables(results: pd.DataFrame) -> Iterator[str]:
    """Tables of docs/statistics.md: coverage with the groups, and in parentheses without."""
    cells = [f"{row['coverage']:.1f} ({row['ignored']:.1f})" for row in results.to_dict("records")]
    for kind, part in results.assign(cell=cells).groupby("kind", sort=False):
        named = part.rename(columns={"data": kind})
        yield grid(named, [str(kind), "sizes", "groups"], "correlation", "cell", "ICC") + "\n"
