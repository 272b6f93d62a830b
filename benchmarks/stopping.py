"""Images that a run with early stopping needs, and how often its order of layers is wrong.

    python benchmarks/stopping.py

simulates drops of four layers (many zeros, the rest from a beta distribution; images that are hard for one layer are hard for
the others), shuffles the images 2,000 times for each setting, and writes `benchmarks/stopping/simulated.csv` (some minutes on
one core).

    python benchmarks/stopping.py --rows benchmarks/ucmerced_mobilenetv2/rows.parquet

shuffles the images of a real run 500 times, and writes `benchmarks/stopping/ucmerced.csv`. Both add versions, seed and settings
to `benchmarks/stopping/manifest.json`. The stopping rule is tested after every batch. A run is wrong if it stops before its
last image with two layers in the wrong order, judged by the whole data set (for "best" and "worst": with the wrong layer).
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import beta, norm

import xaieval
from xaieval.analysis.stats.intervals import wilson_interval
from xaieval.analysis.stats.sequential import SignTest, on_grid
from xaieval.evaluation.early_stopping import Stop, certain
from xaieval.metrics import METRICS
from xaieval.results.rows import COUNTED

Array = NDArray[Any]

RULES = ("ranking", "best", "worst")
GROUP = 100  # orders at a time, so that their tests fit into a processor cache
BATCH = 25
POPULATIONS = (200, 2000, 20_000)
STOP = Stop()

# By layer: the share of zeros, and the two parameters of the beta distribution.
DROPS = {
    "far apart": [(0.02, 6, 1), (0.05, 3, 1), (0.1, 2, 1.2), (0.25, 1, 1.2)],
    "close": [(0.05, 2.0, 1.5), (0.08, 1.9, 1.6), (0.11, 1.8, 1.7), (0.14, 1.7, 1.8)],
}


@dataclass
class Outcome:
    """By order of the images: how many were needed, and whether the result was wrong."""

    images: Array
    wrong: Array


def drops(layers: list[tuple[float, float, float]], population: int, rng: np.random.Generator) -> Array:
    """Drops in [0, 1], `[N, L]`, correlated over the layers."""
    shared = rng.normal(size=(population, 1))
    levels = norm.cdf(np.sqrt(0.6) * shared + np.sqrt(0.4) * rng.normal(size=(population, len(layers))))
    zero, a, b = np.array(layers).T
    return on_grid(np.where(levels < zero, 0, beta.ppf(np.clip((levels - zero) / (1 - zero), 0, 1), a, b)))


def simulated(setting: str, population: int, rng: np.random.Generator) -> Array:
    """Simulated values of four layers, higher is better, `[N, 1, L]`."""
    if setting == "rare increases":
        chances = np.array([0.01, 0.03, 0.08, 0.2])
        levels = norm.cdf(np.sqrt(0.6) * rng.normal(size=(population, 1)) + np.sqrt(0.4) * rng.normal(size=(population, 4)))
        return (levels < chances).astype(float)[:, None]
    values = drops(DROPS.get(setting, DROPS["far apart"]), population, rng)
    if setting in ("two tie", "two almost tie"):
        values[:, 1] = rng.permutation(values[:, 2])
    if setting == "two almost tie":
        values[np.argmax(values[:, 1]), 1] -= 2.0**-20
    return -values[:, None]


def measured(rows: pd.DataFrame, metric: str) -> tuple[Array, list[str]]:
    """Values `[N, M, L]`, higher is better, zero unless an image counts at every layer of a method; and the methods."""
    several = rows.groupby("method", sort=False)["layer"].transform("nunique") > 1
    rows = rows[several]
    methods, layers = list(rows["method"].unique()), list(rows["layer"].unique())
    columns = pd.MultiIndex.from_product([methods, layers])
    counted = rows[rows["status"].isin(COUNTED)]
    table = counted.pivot_table(index="image_id", columns=["method", "layer"], values=metric)
    values = (
        table.reindex(index=rows["image_id"].unique(), columns=columns)
        .to_numpy(dtype=float)
        .reshape(-1, len(methods), len(layers))
        / 100
    )
    values[~np.isfinite(values).all(axis=2)] = 0
    return on_grid(values if METRICS[metric].higher_is_better else -values), methods


def replay(values: Array, orders: int, rng: np.random.Generator, views: dict[str, list[int]], label: str) -> dict[Any, Outcome]:
    """Run over the same images in random orders; outcomes by view (methods tested together) and rule."""
    parts: dict[Any, list[Outcome]] = {(view, rule): [] for view in views for rule in RULES}
    for start in range(0, orders, GROUP):
        print(f"{label}: {start} of {orders}", end="\r", file=sys.stderr)
        for key, outcome in replay_group(values, min(GROUP, orders - start), rng, views).items():
            parts[key].append(outcome)
    print(f"{label}: {orders} of {orders}", file=sys.stderr)
    return {
        key: Outcome(np.concatenate([part.images for part in outcomes]), np.concatenate([part.wrong for part in outcomes]))
        for key, outcomes in parts.items()
    }


def replay_group(values: Array, orders: int, rng: np.random.Generator, views: dict[str, list[int]]) -> dict[Any, Outcome]:
    """`replay` for a group of orders at once."""
    population, _, layers = values.shape
    sums = values.sum(axis=0)
    truth = np.sign(sums[:, :, None] - sums[:, None, :]).astype(np.int64)
    outcomes = {
        (view, rule): Outcome(np.full(orders, population), np.zeros(orders, dtype=bool)) for view in views for rule in RULES
    }
    for seen, test in looks(values, orders, rng):
        for view, methods in views.items():
            signs = signs_of(test, STOP.error / (len(methods) * (layers - 1)), orders, layers)[:, methods]
            for rule in RULES:
                outcome = outcomes[view, rule]
                stopping = certain(signs, rule, 1).all(axis=1) & (outcome.images == population)
                outcome.images[stopping] = seen
                outcome.wrong[stopping] = wrong(signs[stopping], truth[methods], rule)
        if all((outcome.images < population).all() for outcome in outcomes.values()):
            break
    return outcomes


def looks(values: Array, orders: int, rng: np.random.Generator) -> Iterator[tuple[int, SignTest]]:
    """The tests after each batch except the last."""
    population, _, layers = values.shape
    first, second = np.triu_indices(layers, 1)
    differences = (values[:, :, first] - values[:, :, second]).reshape(population, -1)
    shuffled = rng.permuted(np.tile(np.arange(population), (orders, 1)), axis=1)
    test = SignTest(population, orders * differences.shape[1])
    for start in range(0, population - BATCH, BATCH):
        block = differences[shuffled[:, start : start + BATCH]]
        test.add(block.swapaxes(0, 1).reshape(BATCH, -1))
        if test.seen >= STOP.min_images:
            yield test.seen, test


def signs_of(test: SignTest, share: float, orders: int, layers: int) -> Array:
    """Signs of the differences between layers that are certain, `[orders, M, L, L]`."""
    first, second = np.triu_indices(layers, 1)
    pairs = test.signs(share).reshape(orders, -1, len(first))
    signs = np.zeros((*pairs.shape[:2], layers, layers), dtype=np.int64)
    signs[..., first, second] = pairs
    return signs - signs.swapaxes(-1, -2)


def wrong(signs: Array, truth: Array, rule: str) -> Array:
    """Whether a certain sign contradicts the true one in any method, `[orders]`."""
    if rule != "ranking":  # only comparisons of the layer that is certainly better, or worse, than all others
        inside = (signs == (1 if rule == "best" else -1)).all(axis=-1, where=~np.eye(signs.shape[-1], dtype=bool))
        signs = np.where(inside[..., None] | inside[..., None, :], signs, 0)
    return (signs * truth == -1).any(axis=(1, 2, 3))


def record(outcome: Outcome, population: int) -> dict[str, Any]:
    """The columns of the table for one setting."""
    runs, count = len(outcome.images), int(outcome.wrong.sum())
    low, high = wilson_interval(count, runs)
    tenth, median, ninth = np.quantile(outcome.images, [0.1, 0.5, 0.9], method="nearest")
    return {
        "population": population,
        "runs": runs,
        "wrong": count,
        "wrong_rate": round(count / runs, 5),
        "wrong_low": round(low, 5),
        "wrong_high": round(high, 5),
        "stopped_early": round(float((outcome.images < population).mean()), 4),
        "images_median": int(median),
        "images_10": int(tenth),
        "images_90": int(ninth),
        "saved": round(1 - float(outcome.images.mean()) / population, 4),
    }


def simulate(runs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Records of all settings and sizes."""
    records = []
    for setting in (*DROPS, "two almost tie", "two tie", "rare increases"):
        for population in POPULATIONS:
            values = simulated(setting, population, rng)
            outcomes = replay(values, runs, rng, {"": [0]}, f"{setting}, {population} images")
            records += [
                {"setting": setting, "rule": rule} | record(outcome, population) for (_, rule), outcome in outcomes.items()
            ]
    return records


def replay_rows(rows: pd.DataFrame, runs: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Records of both metrics, with all methods together and with each method separately."""
    records = []
    for metric in ("average_drop", "increase_in_confidence"):
        values, methods = measured(rows, metric)
        views = {"all": list(range(len(methods)))} | {method: [number] for number, method in enumerate(methods)}
        outcomes = replay(values, runs, rng, views, f"{metric}, {len(values)} images")
        records += [
            {"metric": metric, "methods": view, "rule": rule} | record(outcome, len(values))
            for (view, rule), outcome in outcomes.items()
        ]
    return records


def main(
    *, rows: Path | None = None, runs: int | None = None, seed: int = 0, out: Path = Path(__file__).parent / "stopping"
) -> None:
    """Simulate, or replay the rows of a run.

    Args:
        rows: Rows of a run, `rows.parquet`. Default: simulated values.
        runs: Number of orders for each setting. Default: 2,000 with simulated values, 500 with rows.
        seed: Random seed.
        out: Folder of the results.
    """
    rng = np.random.default_rng(seed)
    name = "simulated" if rows is None else "ucmerced"
    runs = runs or (2000 if rows is None else 500)
    table = pd.DataFrame(simulate(runs, rng) if rows is None else replay_rows(pd.read_parquet(rows), runs, rng))
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / f"{name}.csv", index=False)
    manifest = out / "manifest.json"
    known = json.loads(manifest.read_text()) if manifest.exists() else {}
    known[name] = {
        "command": "python benchmarks/stopping.py" + (f" --rows {rows.name}" if rows else ""),
        "seed": seed,
        "runs": runs,
        "error": STOP.error,
        "min_images": STOP.min_images,
        "batch": BATCH,
        "versions": {"python": platform.python_version(), "xaieval": xaieval.__version__}
        | {package: importlib.metadata.version(package) for package in ("numpy", "pandas", "scipy")},
    }
    manifest.write_text(json.dumps(known, indent=2) + "\n")
    print(table.to_string(index=False))


if __name__ == "__main__":
    cyclopts.run(main)
