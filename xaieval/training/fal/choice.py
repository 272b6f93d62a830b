"""Which levels of an FPN are selected, and which arms follow."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from xaieval.config.fal_options import ROLES, TWIN
from xaieval.errors import OutputError
from xaieval.evaluation.scores import Scores
from xaieval.models import LEVELS, levels_of
from xaieval.models.designs import design_of
from xaieval.results.files import write_json
from xaieval.training.fal.arms import FPN, fal_arm, twin_arm
from xaieval.training.fal.rules.oracle_gate import with_oracle_gate
from xaieval.training.fal.rules.probe import ProbeSettings, with_probe
from xaieval.training.fal.runs import RECORD, SELECTION, Cell

__all__ = ["CHOICE", "check_choices", "choose", "roles_of", "selection_scores", "shared_roles"]

CHOICE = "choice.json"  # in the folder of the FPN's run


def choose(cell: Cell) -> dict[str, Any]:
    """The arm of each role, `roles`, and the `selection` of levels with its reasons, once the FPN's run is finished.

    Both are kept in the folder of that run.
    """
    path = cell.place(FPN) / CHOICE
    if not path.exists():
        with FileLock(cell.place(FPN) / ".choice"):  # another process may be at it
            if not path.exists():
                write_json(path, _chosen(cell))
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _chosen(cell: Cell) -> dict[str, Any]:
    options = cell.experiment.options
    scores = selection_scores(cell, options.by)
    selection = scores.select_layers(options.k, options.by, method=options.methods[0], level=options.level)
    rng = np.random.default_rng([options.seed, cell.fold, cell.seed])
    roles = roles_of(levels_of(selection.ranking.index), levels_of(selection), rng)
    return {"settings": _settings(cell), "roles": roles, "selection": selection.to_dict()}


def check_choices(cells: Iterable[Cell]) -> None:
    """Check that levels that are already selected were selected in the same way.

    Raises:
        OutputError: An option of the selection was another one.
    """
    for cell in cells:
        path = cell.place(FPN) / CHOICE
        known = json.loads(path.read_text())["settings"] if path.exists() else {}
        for name, value in _settings(cell).items():
            if known and known[name] != value:
                raise OutputError(
                    f"'{cell.folder}' holds levels that were selected with {name} {known[name]}, this run's is {value}; choose "
                    "another folder"
                )


def _settings(cell: Cell) -> dict[str, Any]:
    """The options that the selection depends on, apart from those of the whole experiment."""
    options = cell.experiment.options
    return {"by": list(options.by), "k": options.k, "level": options.level}


def selection_scores(cell: Cell, rules: Iterable[str]) -> Scores:
    """The scores of an FPN on the selection images, by block, with the columns that the rules need.

    Args:
        cell: The fold and the seed; the FPN's run is finished.
        rules: Names of rules; metrics need no more than the scores have.
    """
    experiment, place = cell.experiment, cell.place(FPN)
    metrics = json.loads((place / RECORD).read_text())["metrics"]
    scores = Scores(pd.read_parquet(place / SELECTION), {"metrics": metrics, "seed": experiment.options.seed})
    scores = scores.with_groups(experiment.groups)
    options, wanted = experiment.options, set(rules)
    gate, chosen = design_of(options.design).gate, _images(cell, cell.images.selection)
    if "oracle-gate" in wanted:
        scores = with_oracle_gate(scores, cell.trained(FPN), chosen, gate=gate)
    if "probe" in wanted:
        training, settings = _images(cell, cell.images.train), ProbeSettings(gate=gate)
        scores = with_probe(scores, cell.trained(FPN), training, chosen, settings=settings, level=options.level)
    return scores


def _images(cell: Cell, numbers: list[int]) -> Iterable[Any]:
    return cell.experiment.pictures.subset(numbers).loader(cell.experiment.options.batch_size)


def roles_of(ranked: Sequence[str], selected: Iterable[str], rng: np.random.Generator) -> dict[str, str]:
    """Return the arm of each role.

    Args:
        ranked: All levels, worst first.
        selected: The levels that need attention.
        rng: Random numbers for the levels of "random".

    Returns:
        Names of arms by role. "random" and "best" have as many levels as were selected. "random" has other levels than
        "selected" and, where there are enough sets, than "best". Without selected levels, all three are the FPN.

    Example:
        >>> roles = roles_of(["p2", "p3", "p5", "p4"], ["p2", "p3"], np.random.default_rng(0))
        >>> roles["selected"], roles["selected-twin"], roles["best"]
        ('fal-p2-p3', 'twin-p2-p3', 'fal-p4-p5')
    """
    chosen = set(selected)
    best = set(ranked[len(ranked) - len(chosen) :])
    every = [set(levels) for levels in itertools.combinations(LEVELS, len(chosen))]
    others = [levels for levels in every if levels not in (chosen, best)] or every
    sets = {"selected": chosen, "random": others[int(rng.integers(len(others)))], "best": best, "all": set(LEVELS)}
    roles = {role: fal_arm(sets[role]) for role in ROLES}
    return roles | {role + TWIN: twin_arm(arm) for role, arm in roles.items()}


def shared_roles(roles: dict[str, str], wanted: Iterable[str]) -> str:
    """One line on the wanted roles that are the same network; empty if there are none.

    Example:
        >>> shared_roles({"selected": "fal-p5", "random": "fal-p3", "best": "fal-p3"}, ["selected", "random", "best"])
        'random and best are the same network, fal-p3'
    """
    by_arm: dict[str, list[str]] = {}
    for role in wanted:
        if role in roles:
            by_arm.setdefault(roles[role], []).append(role)
    return "; ".join(
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} {'the FPN' if arm == FPN else f'the same network, {arm}'}"
        for arm, names in by_arm.items()
        if len(names) > 1 or arm == FPN
    )
