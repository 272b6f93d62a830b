"""How often the finding `images_in_groups` fires: for independent images, where it must not, and for images in groups.

    python benchmarks/images_in_groups.py

draws runs of 20 layers whose values share what an image and its class add, with a given intraclass correlation of classes, and
looks for the finding in each. Writes `benchmarks/images_in_groups.csv` and prints it (about five minutes on one core).
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from xaieval.analysis.grouping import find_in_groups
from xaieval.analysis.stats.intervals import wilson_interval
from xaieval.results.record import RunRecord

Floats = NDArray[np.float64]

OUT = Path(__file__).with_suffix(".csv")
METRICS = [
    {"name": "average_drop", "higher_is_better": False, "interval": "mean"},
    {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson"},
]
SIZES = ((30, 5), (210, 21), (210, 100))  # images and classes
CORRELATIONS = (0.0, 0.1, 0.2)  # within classes, of the normal values that others are made from
OF_IMAGE = 0.6  # share of an image's own part that its layers have in common
LAYERS = 20


def drops_and_increases(kind: str, latent: Floats) -> tuple[Floats, Floats]:
    """Drops and increases `[N, L]` from standard normal values: normal, skewed as drops are, or two rare values."""
    share = norm.cdf(latent)
    if kind == "rare":
        return np.where(share > 0.97, 95.0, 5.0), 100.0 * (share < 0.02)
    drops = 50 + 10 * latent if kind == "normal" else np.where(share < 0.4, 0.0, 100 * ((share - 0.4) / 0.6) ** 3)
    return drops, 100.0 * (share < 0.3)


def draw_run(images: int, classes: int, correlation: float, kind: str, rng: np.random.Generator) -> RunRecord:
    """A run of images in the order of their classes."""
    labels = np.sort(np.arange(images) % classes)
    own = np.sqrt(OF_IMAGE) * rng.normal(size=(images, 1)) + np.sqrt(1 - OF_IMAGE) * rng.normal(size=(images, LAYERS))
    latent = np.sqrt(correlation) * rng.normal(size=classes)[labels][:, None] + np.sqrt(1 - correlation) * own
    drops, increases = drops_and_increases(kind, latent)
    rows = pd.DataFrame(
        {
            "image_id": np.repeat([f"class{label}/{number}" for number, label in enumerate(labels)], LAYERS),
            "layer": np.tile([f"layer{number}" for number in range(LAYERS)], images),
            "method": "gradcam",
            "label": np.repeat(labels, LAYERS),
            "average_drop": drops.ravel(),
            "increase_in_confidence": increases.ravel(),
            "status": "ok",
        }
    )
    return RunRecord(rows, {"metrics": METRICS})


def main(runs: int = 200, runs_in_groups: int = 20, seed: int = 0) -> None:
    """Count findings.

    Args:
        runs: Number of runs of independent images, for each size and kind of values.
        runs_in_groups: Number of runs of images in groups.
        seed: Seed of all random numbers.
    """
    rng = np.random.default_rng(seed)
    records = []
    for correlation in CORRELATIONS:
        for images, classes in SIZES:
            for kind in ("normal", "drops", "rare"):
                count = runs if correlation == 0 else runs_in_groups
                fired = sum(bool(find_in_groups(draw_run(images, classes, correlation, kind, rng))) for _ in range(count))
                low, high = wilson_interval(fired, count)
                records.append(
                    {
                        "correlation": correlation,
                        "images": images,
                        "classes": classes,
                        "values": kind,
                        "runs": count,
                        "found": fired,
                        "share": round(fired / count, 4),
                        "low": round(low, 4),
                        "high": round(high, 4),
                    }
                )
                print(records[-1], flush=True)
    table = pd.DataFrame(records)
    table.to_csv(OUT, index=False)
    print(table.to_string(index=False))
    independent = table[table["correlation"] == 0]
    fired, count = int(independent["found"].sum()), int(independent["runs"].sum())
    low, high = wilson_interval(fired, count)
    print(f"independent images: {fired} of {count} runs, {fired / count:.2%} [{low:.2%}, {high:.2%}]")


if __name__ == "__main__":
    cyclopts.run(main)
