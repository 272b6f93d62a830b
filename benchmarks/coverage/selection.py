"""How often `select_layers` finds a layer that needs attention among layers that do not differ, if images come in groups."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from grouped import CORRELATIONS, COUNTS, SIZES, Array, Rng, at_ranks, groups_of, latent_correlation, normal
from recorded import LEVEL, grid, measured, percent

from xaieval.analysis.stats.groups import Grouping
from xaieval.analysis.stats.paired import holm
from xaieval.analysis.stats.permutation import sign_flip_p_values

LAYERS, METRICS = 4, 2
FAMILY = LAYERS * (LAYERS - 1) * METRICS
SHARED = 0.7  # correlation of the latent values of an image at two layers
_AT_ONCE = 250  # runs whose tests share their random signs


def differences(values: Array) -> tuple[Array, Array]:
    """The differences that `select_layers` tests, `[N, T]`, and for each whether it tests "worse" than the best.

    Args:
        values: `[N, L, M]`, higher is better.
    """
    columns, worse = [], []
    means = values.mean(axis=0)
    for best_in in range(METRICS):
        best = int(means[:, best_in].argmax())
        for layer in [layer for layer in range(LAYERS) if layer != best]:
            for metric in range(METRICS):
                sign = 1 if metric == best_in else -1
                columns.append(sign * (values[:, best, metric] - values[:, layer, metric]))
                worse.append(metric == best_in)
    return np.stack(columns, axis=1), np.array(worse)


def selects(p_values: Array, worse: Array) -> bool:
    """Whether any layer needs attention: significantly worse in a metric, and not significantly better in the other."""
    significant = np.array(holm(p_values, FAMILY)) < 1 - LEVEL
    pairs = significant.reshape(-1, METRICS)
    return bool((pairs[worse.reshape(-1, METRICS)] & ~pairs[~worse.reshape(-1, METRICS)]).any())


def measured_pools(rows: pd.DataFrame) -> list[Array]:
    """AD (negative) and IC of Grad-CAM as measured at blocks.6, sorted."""
    drops, increases = (measured(rows, metric)["blocks.6"] for metric in ("average_drop", "increase_in_confidence"))
    return [np.sort(-drops.to_numpy()), np.sort(increases.to_numpy())]


def at_layers(pool: Array, own: Array, rng: Rng) -> Array:
    """Values of images at layers `[L, N]`: what layers share of an image is drawn anew, what they do not is given."""
    return at_ranks(pool, np.sqrt(SHARED) * rng.normal(size=own.shape[1]) + np.sqrt(1 - SHARED) * own)


def latent_of(pool: Array, correlation: float) -> float:
    """The latent correlation at which the differences of two layers have a correlation within a group."""
    rng = np.random.default_rng(2)
    return latent_correlation(lambda own: np.subtract(*at_layers(pool, own, rng)), correlation, 2)


def draw(pools: list[Array], latent: list[float], groups: Grouping, rng: Rng) -> Array:
    """Values of layers that do not differ, `[N, L, M]`."""
    own = [normal(groups, correlation, rng, LAYERS) for correlation in latent]
    return np.stack([at_layers(pool, normals, rng).T for pool, normals in zip(pools, own, strict=True)], axis=2)


def measure(
    pools: list[Array], sizes: str, count: int, correlation: float, latent: list[float], runs: int, seed: int
) -> dict[str, Any]:
    """The share of runs in which a layer is selected, without and with the groups."""
    groups = groups_of(count, sizes)
    rng = np.random.default_rng([seed, count, int(1000 * correlation), *sizes.encode()])
    wrong = np.zeros(2, dtype=int)
    for start in range(0, runs, _AT_ONCE):
        drawn = [differences(draw(pools, latent, groups, rng)) for _ in range(min(_AT_ONCE, runs - start))]
        table = np.concatenate([columns for columns, _ in drawn], axis=1)
        for place, chosen in enumerate((None, groups)):
            p_values = sign_flip_p_values(table, seed=seed + start, groups=chosen).reshape(len(drawn), -1)
            wrong[place] += sum(selects(own, worse) for own, (_, worse) in zip(p_values, drawn, strict=True))
    record = {"sizes": sizes, "groups": count, "correlation": correlation, "runs": runs}
    return record | percent("ignored", int(wrong[0]), runs) | percent("error", int(wrong[1]), runs)


def simulate(rows: pd.DataFrame, runs: int, seed: int) -> list[dict[str, Any]]:
    """All sizes, numbers of groups and correlations."""
    pools = measured_pools(rows)
    latents = [[latent_of(pool, correlation) for pool in pools] for correlation in CORRELATIONS]
    records = []
    for sizes in SIZES:
        for count in COUNTS:
            print(f"select_layers: {count} groups of {sizes} images", file=sys.stderr)
            for correlation, latent in zip(CORRELATIONS, latents, strict=True):
                records.append(measure(pools, sizes, count, correlation, latent, runs, seed))
    return records


def tables(results: pd.DataFrame) -> Iterator[str]:
    """The table of docs/statistics.md: wrong selections with the groups, and in parentheses without."""
    cells = [f"{row['error']:.1f} ({row['ignored']:.1f})" for row in results.to_dict("records")]
    yield grid(results.assign(cell=cells), ["sizes", "groups"], "correlation", "cell", "ICC") + "\n"
