"""Rules that say which levels need attention, and how well they foretell where it helps; registered in RULES.md.

    python benchmarks/fal/rules.py values FOLDER --data ucmerced:DIR --weights FILE    # rules.csv, from the FPNs
    python benchmarks/fal/rules.py score FOLDER    # rule_scores.csv, from rules.csv and the packed rows

FOLDER is the folder of an experiment with the weights of its FPNs (`fold*-seed*/fpn`). The first command takes about 20 seconds
per FPN on one core, and continues where it was interrupted; the second one takes seconds and needs no weights.
"""

from __future__ import annotations

import json
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import cyclopts
import pandas as pd

from xaieval.analysis.rules import RULES
from xaieval.config.fal_options import FalOptions
from xaieval.evaluation.scores import Scores
from xaieval.models import LEVELS, levels_of
from xaieval.results.files import MANIFEST
from xaieval.training.fal import Experiment, prepare, read_rows
from xaieval.training.fal.arms import FPN
from xaieval.training.fal.choice import selection_scores
from xaieval.training.fal.rules.rule_scores import rule_scores, winner
from xaieval.training.fal.runs import RECORD, Cell
from xaieval.training.fal.statistics.effects import effects, run_table

VALUES, SCORES = "rules.csv", "rule_scores.csv"
HIGHER_IS_BETTER = {"accuracy": True, "average_drop_excess": False}
PARTS = ("fal", "gate")

app = cyclopts.App(name="rules", help=__doc__)


@app.command
def values(folder: Path, /, *, data: str, weights: str | None = None) -> None:
    """What each rule says about each level of each FPN.

    Args:
        folder: The folder of the experiment.
        data: The data of the experiment, with its place.
        weights: Weights file of the backbone; none for scenes.
    """
    experiment = prepare(recorded_options(folder, data=data, weights=weights))
    path = folder / VALUES
    known = pd.read_csv(path) if path.exists() else pd.DataFrame({"fold": [], "seed": []})
    done = set(known[["fold", "seed"]].itertuples(index=False, name=None))
    for cell in finished_cells(folder, experiment):
        if (cell.fold, cell.seed) in done:
            continue
        started = time.perf_counter()
        found = rule_values(selection_scores(cell, RULES))
        found.insert(0, "seed", cell.seed)
        found.insert(0, "fold", cell.fold)
        known = found if known.empty else pd.concat([known, found])
        known.sort_values(["fold", "seed", "rule", "level"]).to_csv(path, index=False, float_format="%.6g")
        print(f"fold {cell.fold}, seed {cell.seed}: {time.perf_counter() - started:.0f} s", flush=True)


@app.command
def score(folder: Path, /) -> None:
    """How well the rules foretell the measured effects; RULES.md says how the winner is found.

    Args:
        folder: A folder with rules.csv and the packed rows of an experiment.
    """
    runs = run_table(read_rows(folder))
    found = effects(runs, list(HIGHER_IS_BETTER), PARTS)
    table = rule_scores(pd.read_csv(folder / VALUES), found[found.index.isin(LEVELS, level="level")], runs, HIGHER_IS_BETTER)
    table.to_csv(folder / SCORES, index=False, float_format="%.4g")
    print(found.round(2).to_string(), table.round(3).to_string(index=False), sep="\n\n")
    print(f"\nthe rule that wins: {winner(table, RULES)}")


def recorded_options(folder: Path, **given: Any) -> FalOptions:
    """The options of an experiment from its manifest, and those that it does not record."""
    recorded = json.loads((folder / MANIFEST).read_text())["run"] | given
    names = {entry.name for entry in fields(FalOptions)}
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items() if name in names}
    return FalOptions(**kept)


def finished_cells(folder: Path, experiment: Experiment) -> list[Cell]:
    """The folds and seeds whose FPN is trained."""
    names = [place.parts[-3].removeprefix("fold").split("-seed") for place in folder.glob(f"fold*-seed*/{FPN}/{RECORD}")]
    return [Cell(experiment, folder, fold, seed) for fold, seed in sorted((int(fold), int(seed)) for fold, seed in names)]


def rule_values(scores: Scores) -> pd.DataFrame:
    """One row per rule and level: its value (more needs attention), its rank (1 needs most), and whether it is selected."""
    records = []
    for name, rule in RULES.items():
        tested, two = scores.select_layers(by=name), levels_of(scores.select_layers(2, by=name))
        ranking = tested.ranking.set_axis(levels_of(tested.ranking.index))
        column = rule.metrics[0] if len(rule.metrics) == 1 else "mean_rank"
        for level in LEVELS:
            record = {"rule": name, "level": level, "value": ranking.loc[level, column]}
            record |= {"rank": ranking.index.get_loc(level) + 1, "selected": int(level in levels_of(tested))}
            records.append(record | {"among_2": int(level in two)})
    return pd.DataFrame(records)


if __name__ == "__main__":
    app()
