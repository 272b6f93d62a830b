"""The whole experiment: all runs of all folds and seeds, and what is measured on the trained networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from xaieval.config.options import to_settings
from xaieval.models import overhead
from xaieval.results.files import MANIFEST, check_folder, write_json, writing
from xaieval.results.manifest import digest
from xaieval.training.fal.arms import FPN, Arm, is_role
from xaieval.training.fal.choice import check_choices, choose, shared_roles
from xaieval.training.fal.experiment import Experiment
from xaieval.training.fal.rows import pack
from xaieval.training.fal.runs import Cell
from xaieval.training.fal.swap import swap

__all__ = ["COSTS", "run_experiment"]

COSTS = "costs.json"
LOCK = ".lock"  # held by the process that writes files of the whole experiment

# Options that may differ when an experiment is continued: they add runs or files, and change no number that is already there.
NOT_RECORDED = (
    *("arms", "run_folds", "seeds", "run_seeds", "class_name"),
    *("out", "keep_weights", "in_memory", "download", "progress"),
)
# Options that matter only if levels are selected, and are kept with each selection.
OF_SELECTION = ("by", "k", "level")

Log = Callable[[str], None]


def run_experiment(experiment: Experiment, folder: Path, log: Log = lambda line: None) -> None:
    """Train, score and compare the networks of each fold and seed; an interrupted experiment is continued.

    Several processes can work on the same folder: each run is done by one of them. All return when all runs are done.

    Args:
        experiment: The experiment, from `prepare`.
        folder: Where results are written: a folder for each run, and the packed results of all, see
            `xaieval.training.fal.rows`.
        log: Called with one line before each step.

    Raises:
        OutputError: The folder holds another experiment, or cannot be written.
    """
    identity = _identity(experiment)
    check_folder(folder, identity)
    cells = [Cell(experiment, folder, fold, seed) for seed in experiment.seeds for fold in experiment.run_folds]
    check_choices(cells)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK):
            write_json(folder / MANIFEST, {"run": identity, "classes": list(experiment.pictures.classes)})
        while unfinished := [cell for cell in cells if _next(cell)]:
            if not sum(_advance(cell, log) for cell in unfinished):  # other processes are at all that is left
                unfinished[0].wait(_next(unfinished[0])[0])
        for cell in cells[: len(experiment.run_folds)]:
            if shown := shown_arm(cell):
                swap(cell, shown, log)
        with FileLock(folder / LOCK):
            _measure_costs(experiment, folder, [name for cell in cells for name in arms_of(cell)], log)
            pack(folder, experiment.groups)


def arms_of(cell: Cell) -> list[str]:
    """Names of the arms of a cell, each once, the FPN first; those of roles are known when the FPN's run is finished."""
    wanted = list(cell.experiment.options.arms)
    if any(is_role(name) for name in wanted) and cell.finished(FPN):
        roles = choose(cell)["roles"]
        wanted = [roles.get(name, name) for name in wanted]
    return list(dict.fromkeys([FPN, *(name for name in wanted if not is_role(name))]))


def shown_arm(cell: Cell) -> str | None:
    """The arm that is compared with the FPN in depth: the first FAL of the cell, if there is one."""
    return next((name for name in arms_of(cell) if Arm.of(name).kind == "fal"), None)


def _next(cell: Cell) -> list[str]:
    """The arms of a cell that are not finished."""
    return [name for name in arms_of(cell) if not cell.finished(name)]


def _advance(cell: Cell, log: Log) -> int:
    """Do all runs of a cell that no other process is at; returns how many."""
    done = int(cell.run(FPN, log))
    roles = [name for name in cell.experiment.options.arms if is_role(name)]
    if done and roles and (shared := shared_roles(choose(cell)["roles"], roles)):
        log(f"fold {cell.fold}, seed {cell.seed}: {shared}")
    kept = shown_arm(cell) if cell.seed == cell.experiment.seeds[0] else None
    return done + sum(cell.run(name, log, keep=name == kept) for name in arms_of(cell))


def _identity(experiment: Experiment) -> dict[str, Any]:
    """The settings that identify an experiment: all that change a number in its folder."""
    options = experiment.options
    run = {name: value for name, value in to_settings(options).items() if name not in (*NOT_RECORDED, *OF_SELECTION)}
    run |= {"data": options.data.partition(":")[0], "weights": Path(options.weights).name if options.weights else None}
    run["backbone"] = experiment.backbone
    run["images"] = digest(f"{name}\n".encode() for name in experiment.pictures.ids)
    return run


def _measure_costs(experiment: Experiment, folder: Path, arms: list[str], log: Log, images: int = 16) -> None:
    """Measure what the arms cost relative to the FPN, if not yet measured."""
    known = json.loads((folder / COSTS).read_text()) if (folder / COSTS).exists() else {}
    missing = [name for name in dict.fromkeys(arms) if name not in known and Arm.of(name).kind in ("fal", "abn")]
    if not missing:
        return
    log("costs of the networks")
    side = experiment.options.image_size
    batch = torch.rand(images, 3, side, side)
    fpn = experiment.fpn().to(memory_format=torch.channels_last)
    for name in missing:
        model = experiment.build(Arm.of(name), experiment.options.seed).to(memory_format=torch.channels_last)
        known[name] = overhead(model, fpn, batch).to_dict()
    write_json(folder / COSTS, known)
