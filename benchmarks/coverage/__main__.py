"""How often the package's intervals hold and its tests are wrong, by simulation; the tables of docs/statistics.md.

    python benchmarks/coverage images      # intervals of independent images: images.csv
    python benchmarks/coverage groups      # intervals of images that come in groups: groups.csv
    python benchmarks/coverage selection   # wrong selections of layers of images that come in groups: selection.csv
    python benchmarks/coverage skewness    # tests of means of skewed differences: skewness.csv
    python benchmarks/coverage tables      # the tables of the page, from these files

Values are those that were measured on UC Merced (`rows.parquet` of benchmarks/ucmerced_mobilenetv2) or simulated. Each command
writes its table and its part of `manifest.json`, and prints the tables of the page. A few minutes each on one core.
"""

from __future__ import annotations

from pathlib import Path

import cyclopts
import groups as groups_of_images
import images as independent_images
import pandas as pd
import selection as selection_of_layers
import skewness as skewed_differences
from recorded import HERE, LEVEL, ROWS, save

app = cyclopts.App(name="coverage", help=__doc__)

MODULES = {
    "images": independent_images,
    "groups": groups_of_images,
    "selection": selection_of_layers,
    "skewness": skewed_differences,
}


def _run(name: str, rows: Path, runs: int, seed: int, out: Path) -> None:
    module = MODULES[name]
    results = save(module.simulate(pd.read_parquet(rows), runs, seed), name, out, seed=seed, runs=runs, level=LEVEL)
    print("\n".join(module.tables(results)))


@app.command
def images(*, rows: Path = ROWS, runs: int = 2000, seed: int = 0, out: Path = HERE) -> None:
    """Coverage of intervals of independent images, by their number."""
    _run("images", rows, runs, seed, out)


@app.command
def groups(*, rows: Path = ROWS, runs: int = 1000, seed: int = 0, out: Path = HERE) -> None:
    """Coverage of intervals of images in groups, by intraclass correlation."""
    _run("groups", rows, runs, seed, out)


@app.command
def selection(*, rows: Path = ROWS, runs: int = 1000, seed: int = 0, out: Path = HERE) -> None:
    """Family-wise error of `select_layers`, by intraclass correlation."""
    _run("selection", rows, runs, seed, out)


@app.command
def skewness(*, rows: Path = ROWS, runs: int = 2000, seed: int = 0, out: Path = HERE) -> None:
    """Level and power of tests of means."""
    _run("skewness", rows, runs, seed, out)


@app.command
def tables(*, out: Path = HERE) -> None:
    """Print the tables of docs/statistics.md from the files."""
    for name, module in MODULES.items():
        print("\n".join(module.tables(pd.read_csv(out / f"{name}.csv"))))


if __name__ == "__main__":
    app()
