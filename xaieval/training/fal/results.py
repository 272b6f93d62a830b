"""What an experiment left in its folder, as tables of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
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


@dataclass(frozen=True)
class Results:
    """Rows of all finished folds; each has the columns of `Scores.rows`, `fold`, and `level` (p2 to p5).

    Attributes:
        run: the settings.
        classes: names of the classes.
        metrics: as in a manifest.
        versions: of the packages that made them, likewise.
        seed: of the bootstrap.
        base: of the FPN whose levels were scored, all methods.
        compared: of the models that are compared, by the column `arm`; the first method.
        attention: likewise, of the models' own attention maps.
        random_split: of the FPN on folds that are drawn image by image; empty if that was not asked for.
        choices: by fold, which model stands for each arm, and the selection with its reasons.
        costs: by model, see `xaieval.models.Overhead`.
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
    choices: dict[int, dict[str, Any]]
    costs: dict[str, dict[str, float]]

    @property
    def arms(self) -> list[str]:
        """In the order of the tables, the control first."""
        return list(dict.fromkeys(arm for choice in self.choices.values() for arm in choice["arms"]))


def read_results(folder: str | Path) -> Results:
    """Read the finished folds of an experiment.

    Raises:
        OutputError: the folder holds no experiment, or none of its folds is finished.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        costs = json.loads((folder / COSTS).read_text()) if (folder / COSTS).exists() else {}
        run, classes = manifest["run"], manifest["classes"]
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(f"'{folder}' holds no experiment that can be read; 'xaieval-bench fal' makes one") from error
    choices = {int(path.parent.name[4:]): json.loads(path.read_text()) for path in sorted(folder.glob(f"fold*/{CHOICE}"))}
    choices = {fold: choice for fold, choice in choices.items() if _finished(folder / f"fold{fold}", choice["arms"].values())}
    if not choices:
        raise OutputError(f"no fold of the experiment in '{folder}' is finished; run the same command again to go on")
    first = Scores.load(folder / f"fold{min(choices)}" / BASE / "test").manifest

    def gather(part: str, arm: str | None = None) -> pd.DataFrame:
        """Rows of a part of all folds, by an arm or of the FPN."""
        frames = []
        for fold, choice in choices.items():
            place = folder / f"fold{fold}" / (choice["arms"].get(arm, "none") if arm else BASE) / part
            if is_complete(place):
                frames.append(_named(Scores.load(place).rows).assign(fold=fold, **({"arm": arm} if arm else {})))
        return _joined(frames)

    arms = list(dict.fromkeys(arm for choice in choices.values() for arm in choice["arms"]))
    return Results(
        run=run,
        classes=classes,
        metrics=first["metrics"],
        versions=first["versions"],
        seed=int(run["seed"]),
        base=gather("test"),
        compared=_joined([gather("test", arm) for arm in arms]),
        attention=_joined([gather("attention", arm) for arm in arms]),
        random_split=_random_split(folder, choices),
        choices=choices,
        costs=costs,
    )


def _finished(fold: Path, models: Iterable[str]) -> bool:
    return all(is_complete(fold / name / "test") for name in (BASE, *models))


def _random_split(folder: Path, choices: Iterable[int]) -> pd.DataFrame:
    places = {fold: folder / f"fold{fold}" / "random-split" / BASE / "test" for fold in choices}
    frames = [_named(Scores.load(place).rows).assign(fold=fold) for fold, place in places.items() if is_complete(place)]
    return _joined(frames)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """With the column `level`: p2 to p5, as the address says or, in a plain backbone, by order of execution."""
    layers = list(rows["layer"].unique())
    said = {layer: next((level for level in LEVELS if level in layer), None) for layer in layers}
    if None in said.values():
        said = dict(zip(layers, list(LEVELS)[len(LEVELS) - len(layers) :] if len(layers) > 1 else ["one"], strict=True))
    return rows.assign(level=rows["layer"].map(said))
