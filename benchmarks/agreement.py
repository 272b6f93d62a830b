"""How often the interval of a rank correlation between metrics contains the true one, in simulated runs.

    python benchmarks/agreement.py

draws true means of two metrics for each pair of layer and method, images around them, and computes the 95 % interval of
`Scores.agreement` for each of 300 runs. Writes `benchmarks/agreement.csv` and prints the table of docs/statistics.md (about two
minutes on one core).
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from xaieval.analysis.agreement import agreement

OUT = Path(__file__).with_suffix(".csv")
RUNS, RESAMPLES, SEED = 300, 200, 0
PAIRS, IMAGES = (6, 12, 30), (50, 210)
SPREADS = (0.1, 0.3, 1.0)  # standard deviation of the pairs' true means; that of the values of one pair is 1.4
LIKENESS = (0.0, 0.7, 0.95)  # correlation of the true means of the two metrics
METRICS = [{"name": name, "higher_is_better": True} for name in ("one", "other")]


def simulated(pairs: int, images: int, spread: float, likeness: float, rng: np.random.Generator) -> tuple[pd.DataFrame, float]:
    """The rows of a run, and the rank correlation of its true means. Images are hard or easy for all pairs."""
    first, rest = rng.normal(0, spread, (2, pairs))
    true = np.stack([first, likeness * first + np.sqrt(1 - likeness**2) * rest])
    hard = rng.normal(0, 1, (images, 1))
    values = [means + hard + rng.normal(0, 1, (images, pairs)) for means in true]
    rows = pd.DataFrame(
        {"image_id": np.repeat(np.arange(images), pairs), "layer": np.tile(np.arange(pairs), images).astype(str)}
    )
    rows = rows.assign(method="gradcam", status="ok", one=values[0].ravel(), other=values[1].ravel())
    return rows, float(spearmanr(*true).statistic)


def case(pairs: int, images: int, spread: float, likeness: float) -> dict[str, float]:
    """How often the interval holds, how far the correlation lies from the true one, and how wide the interval is."""
    rng = np.random.default_rng(SEED)
    held, bias, width = np.zeros(RUNS), np.zeros(RUNS), np.zeros(RUNS)
    for number in range(RUNS):
        rows, true = simulated(pairs, images, spread, likeness, rng)
        found = agreement(rows, METRICS, resamples=RESAMPLES, seed=number).table.iloc[0]
        held[number] = found["low"] <= true <= found["high"]
        bias[number], width[number] = found["correlation"] - true, found["high"] - found["low"]
    found = {"pairs": pairs, "images": images, "spread": spread, "likeness": likeness}
    return found | {"coverage": 100 * held.mean(), "bias": bias.mean(), "width": width.mean()}


def main() -> None:
    """Run all cases, and print the table of coverages."""
    table = pd.DataFrame([case(*settings) for settings in product(PAIRS, IMAGES, SPREADS, LIKENESS)]).round(3)
    table.to_csv(OUT, index=False)
    wide = table.pivot_table(index=["pairs", "images"], columns=["spread", "likeness"], values="coverage", sort=False)
    print("| pairs | n |" + "".join(f" {spread:g}, {likeness:g} |" for spread, likeness in wide.columns))
    print("|---" * (len(wide.columns) + 2) + "|")
    for (pairs, images), row in wide.iterrows():
        print(f"| {pairs} | {images} |" + "".join(f" {value:.1f} |" for value in row))


if __name__ == "__main__":
    main()
