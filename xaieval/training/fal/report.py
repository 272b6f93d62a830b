"""Write the results of an experiment: tables in CSV, figures, and a page in Markdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from xaieval.data.batches import read_batches
from xaieval.errors import DataError, choose_from
from xaieval.evaluation.loop import explain
from xaieval.models import LEVELS
from xaieval.report import maps_figure
from xaieval.results.metric_display import interval_text
from xaieval.training.fal.arms import FPN
from xaieval.training.fal.experiment import Experiment
from xaieval.training.fal.results import Results, read_results
from xaieval.training.fal.run import shown_arm
from xaieval.training.fal.runs import Cell, layers_of
from xaieval.training.fal.sentences import NAMES, sentences
from xaieval.training.fal.tables import (
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

__all__ = ["write_figures", "write_report"]

IMAGES = 5  # in each figure
REPORT = "report.md"
LEVELS_FIGURE, ARMS_FIGURE = "levels.png", "arms.png"
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


def write_figures(experiment: Experiment, folder: Path) -> None:
    """Draw maps of some test images of the first fold and seed: at the levels of the FPN, and next to them those of FAL.

    Args:
        experiment: The experiment, from `prepare`, whose runs are finished.
        folder: Its folder.
    """
    options = experiment.options
    cell = Cell(experiment, folder, experiment.run_folds[0], experiment.seeds[0])
    label = None if options.class_name is None else list(experiment.pictures.classes).index(options.class_name)
    test = [index for index in cell.images.test if label is None or experiment.pictures.labels[index] == label]
    pictures = experiment.pictures.subset(test).spread(IMAGES)
    batch = next(read_batches(pictures.loader(IMAGES)))
    method = options.methods[0]

    def maps(model: nn.Module) -> dict[str, Any]:
        return dict(zip(LEVELS, explain(model, batch.images, layers_of(model), method).values(), strict=True))

    def draw(columns: dict[str, Any], subtitle: str, name: str) -> None:
        pixels, titles = experiment.preprocessing.to_pixels(batch.images), [Path(image_id).stem for image_id in batch.ids]
        maps_figure(pixels, columns, titles, f"{subtitle}, {method}").savefig(folder / name, dpi=120)

    of_fpn = maps(cell.trained(FPN))
    draw(of_fpn, "FPN", LEVELS_FIGURE)
    if fal := shown_arm(cell):
        pair = {"FPN": of_fpn, "FAL": maps(cell.trained(fal))}
        columns = {f"{level} {name}": pair[name][level] for level in LEVELS for name in pair}
        draw(columns, f"FPN and {fal}", ARMS_FIGURE)


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
        parts += [f"## {title}", _markdown(FORMATS.get(kind, _plain)(table))]
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


def _cell(row: Any, name: str, decimals: int = 1) -> str:
    ends = interval_text(row[f"{name}_low"], row[f"{name}_high"], f".{decimals}f")
    return "" if pd.isna(row[name]) else f"{row[name]:.{decimals}f} {ends}"


def _by_level(table: pd.DataFrame) -> pd.DataFrame:
    titles = {"average_drop": "AD %", "average_drop_excess": "AD excess %", "increase_in_confidence": "IC %"}
    return pd.DataFrame(
        {
            "method": row["method"],
            "level": row["level"],
            **{title: _cell(row, name) for name, title in titles.items()},
            "mask area": _cell(row, "mask_area", 2),
            "n": row["n_images"],
        }
        for row in table.reset_index().to_dict("records")
    )


def _of_arms(table: pd.DataFrame) -> pd.DataFrame:
    records = []
    for row in table.reset_index().to_dict("records"):
        record = {"arm": row["arm"], "networks": row["networks"]}
        for name, title in NAMES.items():
            if name in row:
                record[f"{title} %"] = f"{row[name]:.1f}" if name == "macro_f1" else _cell(row, name)
        records.append(record | {"mask area": f"{row['mask_area']:.2f}", "runs": row["n_runs"]})
    return pd.DataFrame(records)


def _differences(table: pd.DataFrame) -> pd.DataFrame:
    """One row per pair, the difference in each outcome with its interval and corrected p-value in one cell."""
    records = []
    for (arm, other), rows in table.groupby(["arm", "other"], sort=False):
        cells = {
            NAMES[row["outcome"]]: f"{row['difference']:+.1f} {interval_text(row['low'], row['high'], '+.1f')}"
            + ("" if pd.isna(row["p_holm"]) else f", p = {row['p_holm']:.2g}")
            for row in rows.reset_index().to_dict("records")
        }
        records.append({"arm minus other": f"{arm} minus {other}", **cells, "pairs": rows["n_pairs"].max()})
    return pd.DataFrame(records)


def _effects(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "outcome": NAMES[row["outcome"]],
            "level": row["level"],
            "part": row["part"],
            "effect": f"{row['effect']:+.2f} {interval_text(row['low'], row['high'], '+.2f')}",
            "for other folds": interval_text(row["low_folds"], row["high_folds"], "+.2f"),
            "p, Holm": f"{row['p_holm']:.2g}",
        }
        for row in table.reset_index().to_dict("records")
    )


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return table.round(3).reset_index()


FORMATS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "table1": _by_level,
    "table2": _of_arms,
    "differences": _differences,
    "effects": _effects,
}


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
