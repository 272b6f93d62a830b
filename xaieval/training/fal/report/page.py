"""Write the results of an experiment: tables in CSV, and a page in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from xaieval.errors import DataError, choose_from
from xaieval.training.fal.report.cells import shown_table
from xaieval.training.fal.report.figures import ARMS_FIGURE, LEVELS_FIGURE
from xaieval.training.fal.report.sentences import sentences
from xaieval.training.fal.report.tables import (
    arm_table,
    cost_table,
    difference_table,
    effect_table,
    gate_table,
    level_table,
    selection_table,
    swap_parts,
    swap_table,
)
from xaieval.training.fal.results import Results, read_results

__all__ = ["write_report"]

REPORT = "report.md"
TITLES = {
    "table1": "Table 1: the levels of the FPN",
    "table2": "Table 2: the arms",
    "differences": "Differences between arms",
    "effects": "Effects of the levels and of the gate",
    "gates": "What the attention maps do",
    "swap": "Masks of both networks on both networks",
    "swap_parts": "FAL minus FPN: maps or networks",
    "selection": "The arms that were selected",
    "costs": "Cost of a forward pass, relative to the FPN",
}
Table = Callable[[Results, int | None, float], pd.DataFrame]
OF_CLASSES: dict[str, Table] = {"table1": level_table, "table2": arm_table, "differences": difference_table}


def write_report(folder: str | Path, level: float = 0.95, class_name: str | None = None) -> list[str]:
    """Write the tables and `report.md` of an experiment into its folder, from its packed rows alone.

    Args:
        folder: The folder of the experiment.
        level: Level of the intervals.
        class_name: Also report this class on its own.

    Returns:
        Names of the written files.

    Raises:
        OutputError: The folder holds no finished run.
        DataError: The experiment has no such class.
    """
    folder = Path(folder)
    results = read_results(folder)
    if class_name is not None and class_name not in results.classes:
        raise DataError(f"the data has no class {class_name!r}; {choose_from(class_name, results.classes)}")
    tables = _tables(results, level, class_name)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", float_format="%.6g")
    figures = [name for name in (LEVELS_FIGURE, ARMS_FIGURE) if (folder / name).exists()]
    (folder / REPORT).write_text(_page(results, tables, figures, level), encoding="utf-8")
    return [REPORT, *(f"{name}.csv" for name in tables), *figures]


def _tables(results: Results, level: float, class_name: str | None) -> dict[str, pd.DataFrame]:
    """Tables by file name; those of one class end with its name."""
    label = None if class_name is None else results.classes.index(class_name)
    tables = {name: make(results, None, level) for name, make in OF_CLASSES.items()}
    if label is not None:
        tables |= {f"{name}_{class_name}": make(results, label, level) for name, make in OF_CLASSES.items()}
    tables |= {
        "effects": effect_table(results, level),
        "gates": gate_table(results),
        "swap": swap_table(results, level),
        "swap_parts": swap_parts(results, level),
    }
    tables |= {"selection": selection_table(results), "costs": cost_table(results)}
    return {name: table for name, table in tables.items() if not table.empty}


def _page(results: Results, tables: dict[str, pd.DataFrame], figures: list[str], level: float) -> str:
    parts = ["# The FAL experiment", _setting(results, level), "## What was found"]
    parts += ["\n".join(f"- {sentence}" for sentence in sentences(results, level))]
    for name, table in tables.items():
        kind = max((known for known in TITLES if name.startswith(known)), key=len)
        of_class = name[len(kind) + 1 :]
        title = f"{TITLES[kind]}, class {of_class} only" if of_class else TITLES[kind]
        parts += [f"## {title}", shown_table(kind, table)]
        parts += _notes(table)
    parts += [f"![Maps of {'the FPN' if name == LEVELS_FIGURE else 'the FPN and of FAL'}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"


def _notes(table: pd.DataFrame) -> list[str]:
    """What the notes of a table say: rows that were left out, and why differences have no interval."""
    notes = table.attrs.get("notes", [])
    missing = [note for note in notes if " has no interval" in note]
    said = [f"{note}." for note in notes if note not in missing]
    return [*said, *(["[-]: all pairs are equal, or there are too few."] if missing else [])]


def _setting(results: Results, level: float) -> str:
    run = results.run
    folds, seeds = ({cell[place] for cell in results.cells} for place in (0, 1))
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()) for record in results.records
    )
    trained = f"{len(folds)} folds x {len(seeds)} seeds, {len(results.records)} networks"
    images = results.rows["image_id"].nunique()
    held_out = run.get("held_out_class")
    without = f", of the class {held_out}, which no network was trained on" if held_out else ""
    return (
        f"{run['backbone']} on {run['data']}, head {run['head']}, {run['channels']} channels, {run['image_size']} px, "
        f"attention {run['design']}. {trained}, each trained from the backbone in one cycle, {run['epochs']} epochs, with the "
        f"same images in the same order; {images} test images{without}, none of which was used for training or for a "
        f"selection. Intervals of {level:.0%}: those of means hold for other blocks of images and other seeds, those of "
        f"differences for other seeds on these folds. {'; '.join(versions)}."
    )
