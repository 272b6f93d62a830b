"""Read the results of an experiment from its folder, as tables of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from xaieval.errors import OutputError
from xaieval.evaluation.scores import Scores
from xaieval.models import LEVELS
from xaieval.results.files import MANIFEST, is_complete
from xaieval.training.fal.run import BASE, CHOICE, COSTS

__all__ = ["Results", "read_results"]

Choices = dict[int, dict[str, Any]]  # by fold, the content of arms.json


@dataclass(frozen=True)
class Results:
    """Rows of all finished folds, with the columns of `Scores.rows`, `fold`, and `level` (p2 to p5).

    Attributes:
        run: The options of the experiment.
        classes: Names of the classes.
        metrics: Metrics, as in a manifest.
        versions: Versions of the packages, as in a manifest.
        seed: Seed of the bootstrap.
        base: Rows of the FPN whose levels were scored, all methods.
        compared: Rows of the compared models by the first method, with the column `arm`.
        attention: Rows of the compared models' own attention maps, with the column `arm`.
        random_split: Rows of the FPN on folds drawn image by image; empty unless the arm "random-split" was run.
        choices: By fold, the model of each arm, and the selection with its reasons.
        costs: By model, the numbers of `xaieval.models.Overhead`.
    """

    run: dict[str, Any]
    classes: list[str]
    metrics: list[dict[str, Any]]
    versions: dict[str, str]
    seed: int
    base: pd.DataFrame
    compared: pd.DataFrame
    attention: pd.DataFrame
    random_split: pd.DataFrame
    choices: Choices
    costs: dict[str, dict[str, float]]

    @property
    def arms(self) -> list[str]:
        """Names of the arms in the order of the tables, the control first."""
        return _arms(self.choices)


def read_results(folder: str | Path) -> Results:
    """Read the finished folds of an experiment.

    Raises:
        OutputError: The folder holds no experiment, or none of its folds is finished.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        costs = json.loads((folder / COSTS).read_text()) if (folder / COSTS).exists() else {}
        run, classes = manifest["run"], manifest["classes"]
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"'{folder}' holds no experiment that can be read; 'xaieval-bench fal' makes one") from error
    choices: Choices = {
        int(path.parent.name[4:]): json.loads(path.read_text()) for path in sorted(folder.glob(f"fold*/{CHOICE}"))
    }
    choices = {fold: choice for fold, choice in choices.items() if _finished(folder / f"fold{fold}", choice["arms"].values())}
    if not choices:
        raise OutputError(f"no fold of the experiment in '{folder}' is finished; run the same command again to go on")
    first = Scores.load(folder / f"fold{min(choices)}" / BASE / "test").manifest

    folders = {fold: folder / f"fold{fold}" for fold in choices}
    return Results(
        run=run,
        classes=classes,
        metrics=first["metrics"],
        versions=first["versions"],
        seed=int(run["seed"]),
        base=_rows({fold: path / BASE / "test" for fold, path in folders.items()}),
        compared=_rows_of_arms(folders, choices, "test"),
        attention=_rows_of_arms(folders, choices, "attention"),
        random_split=_rows({fold: path / "random-split" / BASE / "test" for fold, path in folders.items()}),
        choices=choices,
        costs=costs,
    )


def _finished(fold: Path, models: Iterable[str]) -> bool:
    return all(is_complete(fold / name / "test") for name in (BASE, *models))


def _arms(choices: Choices) -> list[str]:
    return list(dict.fromkeys(arm for choice in choices.values() for arm in choice["arms"]))


def _rows_of_arms(folders: Mapping[int, Path], choices: Choices, part: str) -> pd.DataFrame:
    """Rows of the models of all arms, arm by arm, with the column `arm`."""
    tables = []
    for arm in _arms(choices):
        models = {fold: choice["arms"][arm] for fold, choice in choices.items() if arm in choice["arms"]}
        tables.append(_rows({fold: folders[fold] / model / part for fold, model in models.items()}, arm=arm))
    return _concat(tables)


def _rows(runs: Mapping[int, Path], **columns: Any) -> pd.DataFrame:
    """Rows of one run per fold, with the columns `level` and `fold`; missing and unfinished runs are left out."""
    finished = {fold: path for fold, path in runs.items() if is_complete(path)}
    return _concat([_with_level(Scores.load(path).rows).assign(fold=fold, **columns) for fold, path in finished.items()])


def _concat(tables: list[pd.DataFrame]) -> pd.DataFrame:
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _with_level(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the column `level`: p2 to p5 as in the address or, for a plain backbone, by order of execution."""
    layers = list(rows["layer"].unique())
    levels = {layer: next((level for level in LEVELS if level in layer), None) for layer in layers}
    if None in levels.values():
        levels = dict(zip(layers, list(LEVELS)[len(LEVELS) - len(layers) :] if len(layers) > 1 else ["one"], strict=True))
    return rows.assign(level=rows["layer"].map(levels))
