"""The results of an experiment, read from the packed files in its folder, and its table of runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xaieval.errors import OutputError
from xaieval.results.files import MANIFEST
from xaieval.training.fal.rows import read_methods, read_records, read_rows
from xaieval.training.fal.run import COSTS
from xaieval.training.fal.statistics.run_table import run_table
from xaieval.training.fal.swap import read_swaps

__all__ = ["Results", "macro_f1", "read_results", "with_roles"]

RUN = ["arm", "fold", "seed"]
Choices = dict[tuple[int, int], dict[str, Any]]  # by fold and seed, the roles and the selection


@dataclass(frozen=True)
class Results:
    """The results of all finished runs.

    Attributes:
        run: The options of the experiment.
        classes: Names of the classes.
        rows: One row per arm, fold, seed, test image and level, see `read_rows`.
        methods: The rows of the FPN by the other methods.
        records: One record per run: its gates, its time and versions.
        swaps: Masks of two networks on both, see `xaieval.training.fal.swap`.
        costs: By arm, the numbers of `xaieval.models.Overhead`.
    """

    run: dict[str, Any]
    classes: list[str]
    rows: pd.DataFrame
    methods: pd.DataFrame
    records: list[dict[str, Any]]
    swaps: pd.DataFrame
    costs: dict[str, dict[str, float]]

    @property
    def choices(self) -> Choices:
        """By fold and seed, the arm of each role and the selection of levels."""
        return {(record["fold"], record["seed"]): record["choice"] for record in self.records if "choice" in record}

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Fold and seed of all runs, in order."""
        return sorted({(record["fold"], record["seed"]) for record in self.records})

    @cached_property
    def roles(self) -> pd.DataFrame:
        """Which runs are shown under which name: columns `shown`, `arm`, `fold`, `seed`.

        A role has the runs of its arm in each fold and seed. An arm that has roles in all of its runs is not shown again.
        """
        runs = {(record["arm"], record["fold"], record["seed"]) for record in self.records}
        records = [
            (role, arm, fold, seed)
            for (fold, seed), choice in self.choices.items()
            for role, arm in choice["roles"].items()
            if (arm, fold, seed) in runs
        ]
        named = {record[1:] for record in records}
        own = {arm for arm, *_ in runs - named}
        records += [(run[0], *run) for run in sorted(runs) if run[0] in own]
        return pd.DataFrame(records, columns=["shown", *RUN])

    def runs(self, label: int | None = None) -> pd.DataFrame:
        """The table of runs (`run_table`) with `macro_f1` in percent and the arms under the names of their roles.

        Args:
            label: Only the test images of this class, without `macro_f1`. Default: all images.
        """
        rows = self.rows if label is None else self.rows[self.rows["label"] == label]
        table = run_table(rows)
        if label is None and rows["label"].notna().all():
            images = rows.drop_duplicates([*RUN, "image_id"])
            scores = {
                key: macro_f1(run["label"].to_numpy(int), run["predicted"].to_numpy(int), len(self.classes))
                for key, run in images.groupby(RUN)
            }
            table["macro_f1"] = [scores[key] for key in table[RUN].itertuples(index=False, name=None)]
        return with_roles(table, self.roles)


def read_results(folder: str | Path) -> Results:
    """Read the finished runs of an experiment.

    Raises:
        OutputError: The folder holds no experiment, or none of its runs is finished.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        costs = json.loads((folder / COSTS).read_text()) if (folder / COSTS).exists() else {}
        run, classes = manifest["run"], manifest["classes"]
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"'{folder}' holds no experiment that can be read; 'xaieval-bench fal' makes one") from error
    return Results(run, classes, read_rows(folder), read_methods(folder), read_records(folder), read_swaps(folder), costs)


def with_roles(table: pd.DataFrame, roles: pd.DataFrame) -> pd.DataFrame:
    """A table with one row per run, under the names that runs are shown by; a run with two names is there twice."""
    return roles.merge(table, on=RUN).drop(columns="arm").rename(columns={"shown": "arm"})


def macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> float:
    """The mean F1 of all classes that occur among the labels or the predictions, in percent.

    Example:
        >>> round(macro_f1(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), classes=3), 1)
        73.3
    """
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    seen = confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(100 * (2 * np.diag(confusion)[seen > 0] / seen[seen > 0]).mean())
