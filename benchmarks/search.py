"""What a search costs, and how often it is wrong, on the rows of a full grid.

    xaieval-bench score benchmarks/search.toml --weights FILE --data ucmerced:DIR
    python benchmarks/search.py benchmarks/search/rows.parquet

replays `xaieval.search` on the rows of a run in which all pairs were scored on all images: 500 random orders of the images,
error 0.05, a look after every batch. A race is wrong if it dropped the pair with the best mean over all images. The share of
the grid that was measured counts pairs and images; the pass over the images that all pairs share is not in it. Writes one line
per metric to `benchmarks/search/races.csv`, and versions, seed and settings to `benchmarks/search/races.json`.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import xaieval
from xaieval.analysis.stats.intervals import wilson_interval
from xaieval.evaluation.drawn_values import bounds_of
from xaieval.evaluation.race import Race, Racing
from xaieval.evaluation.scores import Scores
from xaieval.metrics import METRICS
from xaieval.results.rows import Pair

OUT = Path(__file__).parent / "search"
ROUNDING = 1e-5  # of the range, as in the race: means that differ by less are a tie

app = cyclopts.App(help=__doc__)


def table_of(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The values by image and pair."""
    return rows.pivot_table(index="image_id", columns=["layer", "method"], values=metric, sort=False)


def race(rows: pd.DataFrame, pairs: list[Pair], order: NDArray[np.intp], settings: Race, higher: bool, batch: int) -> Racing:
    """One race over the images in this order; the rows are image by image, and for each image pair by pair."""
    racing = settings.start(len(order), pairs, {settings.by: higher}, bounds_of(settings.by, [METRICS[settings.by]]))
    for start in range(0, len(order), batch):
        columns = np.array([pairs.index(pair) for pair in racing.running])
        places = order[start : start + batch, None] * len(pairs) + columns
        racing.add(rows.iloc[places.ravel()])
        if racing.finished:
            break
    return racing


def record(table: pd.DataFrame, races: list[Racing], metric: str, higher: bool) -> dict[str, Any]:
    """The line of a metric: what the races cost, and how many lost the best pair."""
    means = table.mean() if higher else -table.mean()
    low, high = bounds_of(metric, [METRICS[metric]])
    best = set(means.index[means >= means.max() - ROUNDING * (high - low)])
    wrong = sum(not best & set(one.running) for one in races)
    low, high = wilson_interval(wrong, len(races))
    spent = np.array([one.spent for one in races])
    tenth, median, ninth = np.quantile(spent, [0.1, 0.5, 0.9])
    return {
        "metric": metric,
        "pairs": table.shape[1],
        "images": table.shape[0],
        "races": len(races),
        "wrong": wrong,
        "wrong_low": round(low, 5),
        "wrong_high": round(high, 5),
        "spent": round(float(spent.mean()), 4),
        "spent_10": round(float(tenth), 4),
        "spent_median": round(float(median), 4),
        "spent_90": round(float(ninth), 4),
        "images_median": int(np.median([one.images for one in races])),
        "decided": sum(len(one.running) == 1 for one in races),
        "left_median": int(np.median([len(one.running) for one in races])),
        "best": " / ".join("{1} at {0}".format(*pair) for pair in means.index if pair in best),
        "mean": round(float(table.mean()[means.idxmax()]), 3),
        "next": "{1} at {0}".format(*means.drop(list(best)).idxmax()),
        "next_mean": round(float(table.mean()[means.drop(list(best)).idxmax()]), 3),
    }


@app.default
def main(
    run: Path,
    /,
    *,
    metrics: tuple[str, ...] = ("average_drop", "increase_in_confidence"),
    races: int = 500,
    batch: int = 25,
    seed: int = 0,
) -> None:
    """Replay races on the rows of a run.

    Args:
        run: rows.parquet of a run, with its manifest beside it.
        metrics: Metrics of the run, one table line each.
        races: Orders of the images.
        batch: Images between two looks.
        seed: Of the orders.
    """
    scores = Scores.load(run.parent)
    records = []
    for metric in metrics:
        higher = next(entry["higher_is_better"] for entry in scores.metrics if entry["name"] == metric)
        rows = scores.rows[["image_id", "layer", "method", "status", metric]]
        table, rng, settings = table_of(rows, metric), np.random.default_rng(seed), Race(by=metric)
        pairs = list(table.columns)
        first_image = rows[["layer", "method"]][: len(pairs)].itertuples(index=False, name=None)
        if len(rows) != table.size or list(first_image) != pairs:
            raise SystemExit(f"{run} is not a full grid: each image needs one row for each pair, in the same order")
        outcomes = [race(rows, pairs, rng.permutation(len(table)), settings, higher, batch) for _ in range(races)]
        records.append(record(table, outcomes, metric, higher))
        print(json.dumps(records[-1]))
    OUT.mkdir(exist_ok=True)
    pd.DataFrame(records).to_csv(OUT / "races.csv", index=False)
    facts = {
        "races": races,
        "batch": batch,
        "error": Race().error,
        "seed": seed,
        "run": {name: scores.manifest["run"][name] for name in ("layers", "methods", "metrics")},
        "versions": {"xaieval": xaieval.__version__} | {name: importlib.metadata.version(name) for name in ("numpy", "pandas")},
    }
    (OUT / "races.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    app()
