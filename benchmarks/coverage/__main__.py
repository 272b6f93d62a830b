"""How often the package's intervals hold and its tests are wrong, by simulation; the tables of docs/statistics.md.

    python benchmarks/coverage images      # intervals of independent images: images.csv
    python benchmarks/coverage groups      # intervals of images that come in groups: groups.csv
    python benchmarks/coverage selection   # wrong selections of layers of images that come in groups: selection.csv
    python benchmarks/coverage skewness    # tests of means of skewed differences: skewness.csv

Values are those that were measured on UC Merced (`rows.parquet` of benchmarks/ucmerced_mobilenetv2) or simulated. Each command
writes its table and its part of `manifest.json`, and prints the tables of the page. A few minutes each on one core.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import cyclopts
import groups as groups_of_images
import images as independent_images
import pandas as pd
import selection as selection_of_layers
import skewness as skewed_differences
from record import HERE, LEVEL, ROWS, save

app = cyclopts.App(name="coverage", help=__doc__)


def _run(module: ModuleType, name: str, rows: Path, runs: int, seed: int, out: Path) -> None:
    results = save(module.simulate(pd.read_parquet(rows), runs, seed), name, out, seed=seed, runs=runs, level=LEVEL)
    print("\n".join(module.tables(results)))


@app.command
def images(*, rows: Path = ROWS, runs: int = 2000, seed: int = 0, out: Path = HERE) -> None:
    """Coverage of intervals of independent images, by their number."""
    _run(independent_images, "images", rows, runs, seed, out)


@app.command
def groups(*, rows: Path = ROWS, runs: int = 1000, seed: int = 0, out: Path = HERE) -> None:
    """Coverage of intervals of images in groups, by intraclass correlation."""
    _run(groups_of_images, "groups", rows, runs, seed, out)


@app.command
def selection(*, rows: Path = ROWS, runs: int = 1000, seed: int = 0, out: Path = HERE) -> None:
    """Family-wise error of `select_layers`, by intraclass correlation."""
    _run(selection_of_layers, "selection", rows, runs, seed, out)


@app.command
def skewness(*, rows: Path = ROWS, runs: int = 2000, seed: int = 0, out: Path = HERE) -> None:
    """Level and power of tests of means."""
    _run(skewed_differences, "skewness", rows, runs, seed, out)


if __name__ == "__main__":
    app()
