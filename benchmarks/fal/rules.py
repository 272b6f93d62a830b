"""Rules that say which levels need attention, and how well they foretell where it helps; registered in RULES.md.

    python benchmarks/fal/rules.py values FOLDER --data ucmerced:DIR --weights FILE   # rules.csv in FOLDER, from the FPN runs
    python benchmarks/fal/rules.py score FOLDER                                       # rule_scores.csv, from rules.csv and the rows

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
from rule_scores import rule_scores

from xaieval.analysis.rules import RULES
from xaieval.config.fal_options import FalOptions
from xaieval.evaluation.scores import Scores
from xaieval.models import LEVELS, levels_of
from xaieval.models.designs import design_of
from xaieval.training.fal import Experiment, prepare
from xaieval.training.fal.oracle_gate import with_oracle_gate
from xaieval.training.fal.probe import ProbeSettings, with_probe
from xaieval.training.fal.rows import read_rows
from xaieval.training.fal.runs import RECORD, SELECTION, Cell

VALUES, SCORES = "rules.csv", "rule_scores.csv"
HIGHER_IS_BETTER = {"accuracy": True, "average_drop_excess": False}
KEYS = ["fold", "seed"]

app = cyclopts.App(name="rules", help=__doc__)


@app.command
def values(folder: Path, /, *, data: str, weights: str) -> None:
    """What each rule says about each level of each FPN.

    Args:
        folder: The folder of the experiment.
        data: The data of the experiment, with its place.
        weights: Weights file of the backbone.
    """
    experiment = prepare(recorded_options(folder, data=data, weights=weights))
    path = folder / VALUES
    tables = [pd.read_csv(path)] if path.exists() else []
    done = set(tables[0][KEYS].itertuples(index=False, name=None)) if tables else set()
    for cell in finished_cells(folder, experiment):
        if (cell.fold, cell.seed) in done:
            continue
        started = time.perf_counter()
        tables.append(rule_values(with_all_columns(cell)).assign(fold=cell.fold, seed=cell.seed))
        table = pd.concat(tables)[[*KEYS, "rule", "level", "value", "rank", "selected", "among_2"]]
        table.sort_values([*KEYS, "rule", "level"]).to_csv(path, index=False, float_format="%.6g")
        print(f"fold {cell.fold}, seed {cell.seed}: {time.perf_counter() - started:.0f} s", flush=True)


@app.command
def score(folder: Path, /) -> None:
    """How well the rules foretell the measured effects; RULES.md says how the winner is found.

    Args:
        folder: A folder with rules.csv and the packed rows of an experiment.
    """
    from xaieval.training.fal.effects import effects, run_table

    runs = run_table(read_rows(folder))
    found = effects(runs, list(HIGHER_IS_BETTER), ["fal", "gate"])
    table = rule_scores(pd.read_csv(folder / VALUES), found, runs, HIGHER_IS_BETTER)
    table.to_csv(folder / SCORES, index=False, float_format="%.4g")
    print(table.to_string(index=False))


def recorded_options(folder: Path, **given: Any) -> FalOptions:
    """The options of an experiment from its manifest, with the places of files, which it does not record."""
    recorded = json.loads((folder / "manifest.json").read_text())["run"] | given
    names = {entry.name for entry in fields(FalOptions)}
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items() if name in names}
    return FalOptions(**kept)


def finished_cells(folder: Path, experiment: Experiment) -> list[Cell]:
    """The folds and seeds whose FPN is trained."""
    names = [place.parts[-3].removeprefix("fold").split("-seed") for place in folder.glob(f"fold*-seed*/fpn/{RECORD}")]
    return [Cell(experiment, folder, fold, seed) for fold, seed in sorted((int(fold), int(seed)) for fold, seed in names)]


def with_all_columns(cell: Cell) -> Scores:
    """The scores of an FPN on the selection images, by block, with the columns of all rules."""
    experiment, place = cell.experiment, cell.place("fpn")
    rows = pd.read_parquet(place / SELECTION)
    rows = rows[rows["method"] == experiment.options.methods[0]]
    metrics = json.loads((place / RECORD).read_text())["metrics"]
    scores = Scores(rows, {"metrics": metrics, "seed": experiment.options.seed})
    scores = scores.with_groups(experiment.groups)
    fpn = cell.trained("fpn")
    training, chosen = (
        experiment.pictures.subset(numbers).loader(experiment.options.batch_size)
        for numbers in (cell.images.train, cell.images.selection)
    )
    gate = design_of(experiment.options.design).gate
    scores = with_oracle_gate(scores, fpn, chosen, gate=gate)
    return with_probe(scores, fpn, training, chosen, settings=ProbeSettings(gate=gate))


def rule_values(scores: Scores) -> pd.DataFrame:
    """One row per rule and level: its value (more needs more attention), its rank (1 needs most), and whether it is selected."""
    records = []
    for name, rule in RULES.items():
        tested, two = scores.select_layers(by=name), scores.select_layers(2, by=name)
        ranking = tested.ranking
        ranking.index = levels_of(ranking.index)
        (column,) = rule.metrics if len(rule.metrics) == 1 else ("mean_rank",)
        for level in LEVELS:
            record = {"rule": name, "level": level, "value": ranking.loc[level, column]}
            record |= {"rank": ranking.index.get_loc(level) + 1}
            records.append(record | {"selected": int(level in levels_of(tested)), "among_2": int(level in levels_of(two))})
    return pd.DataFrame(records)


if __name__ == "__main__":
    app()
