"""The experiment's results as files: tables in CSV, figures, and a page in Markdown that says what they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from xaieval.data.batches import read_batches
from xaieval.evaluation.loop import explain
from xaieval.models import LEVELS
from xaieval.report import maps_figure
from xaieval.training.fal.results import Results, read_results
from xaieval.training.fal.run import BASE, CONTROL, FoldRun, layers_of, rebuild
from xaieval.training.fal.setup import Setup
from xaieval.training.fal.tables import (
    DROP,
    INCREASE,
    accuracy_table,
    attention_table,
    comparison_table,
    level_table,
    subset_table,
)

__all__ = ["FILES", "write_report"]

PICTURES = 5
REPORT = "report.md"
FILES = {
    "table1": "AD and IC of each level of the FPN",
    "table2": "the arms beside the FPN control",
    "attention": "the models' own attention maps",
    "accuracy": "accuracy by the kind of split",
    "subsets": "all sets of levels with attention",
}


def write_report(setup: Setup, folder: Path, level: float = 0.95) -> list[str]:
    """Write tables, figures and `report.md` of the finished folds into the experiment's folder.

    Returns:
        The names of the files.

    Raises:
        OutputError: no fold is finished.
    """
    results = read_results(folder)
    label = None if setup.options.class_name is None else results.classes.index(setup.options.class_name)
    tables = _tables(results, label, level)
    written = []
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv")
        written.append(f"{name}.csv")
    figures = _figures(setup, results, folder, label)
    (folder / REPORT).write_text(_page(setup, results, tables, figures, level), encoding="utf-8")
    return [REPORT, *written, *figures]


def _tables(results: Results, label: int | None, level: float) -> dict[str, pd.DataFrame]:
    """By file name; those of the class alone come under its own name."""
    tables = {
        "table1": level_table(results, level=level),
        "table2": comparison_table(results, level=level),
        "attention": attention_table(results, level=level),
        "accuracy": accuracy_table(results, level),
        "subsets": subset_table(results),
    }
    if label is not None:
        name = results.classes[label]
        tables[f"table1_{name}"] = level_table(results, label, level)
        tables[f"table2_{name}"] = comparison_table(results, label, level)
        tables[f"attention_{name}"] = attention_table(results, label, level)
    return {name: table for name, table in tables.items() if not table.empty}


def _figures(setup: Setup, results: Results, folder: Path, label: int | None) -> list[str]:
    """Maps of a few test images of the first finished fold: of the FPN's levels, and of the control's beside FAL's."""
    number = min(results.choices)
    fold = FoldRun(setup, setup.folds[number], folder / f"fold{number}", setup.options.seed + number, lambda line: None)
    test = [i for i in fold.fold.test if label is None or setup.pictures.labels[i] == label]
    shown = setup.pictures.subset(test).spread(PICTURES)
    batch = next(read_batches(shown.loader(PICTURES)))
    if not len(batch):
        return []
    pixels = setup.preprocessing.to_pixels(batch.images)
    names = [Path(image_id).stem for image_id in batch.ids]
    base = rebuild(fold, BASE)

    def maps(model: nn.Module) -> dict[str, Any]:
        found = explain(model, batch.images, layers_of(model), setup.options.methods[0])
        return dict(zip(LEVELS, found.values(), strict=True))

    method = setup.options.methods[0]
    maps_figure(pixels, maps(base), names, f"FPN, {method}").savefig(folder / "figure4.png", dpi=120)
    arms = results.choices[number]["arms"]
    if arms.get("selected", CONTROL) == CONTROL:
        return ["figure4.png"]
    before, after = maps(rebuild(fold, CONTROL)), maps(rebuild(fold, arms["selected"]))
    columns = {f"{level} {name}": found[level] for level in LEVELS for name, found in (("FPN", before), ("FAL", after))}
    subtitle = f"FPN control beside {arms['selected']}, {method}"
    maps_figure(pixels, columns, names, subtitle).savefig(folder / "figure5.png", dpi=120)
    return ["figure4.png", "figure5.png"]


def _page(setup: Setup, results: Results, tables: dict[str, pd.DataFrame], figures: list[str], level: float) -> str:
    options = setup.options
    folds = len(results.choices)
    tested = results.base.drop_duplicates(["fold", "image_id"])
    parts = [
        "# The FAL experiment",
        f"{setup.backbone} on {options.data.split(':')[0]}, head `{options.head}`, {options.image_size} px, {folds} of "
        f"{options.folds} folds of contiguous blocks, {len(tested)} test images, {options.epochs} epochs and "
        f"{options.further_epochs} further ones, seed {options.seed}. Intervals are at {level:.0%}. No test image took part in "
        "training or in the choice of levels.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results.versions.items()) + ".",
        "## Which levels need attention",
        *(f"Fold {fold}:\n\n```\n{choice['selection']['reasons']}\n```" for fold, choice in results.choices.items()),
    ]
    for name, table in tables.items():
        kind, _, group = name.partition("_")
        title = f"{FILES[kind][0].upper()}{FILES[kind][1:]}{f', class {group} alone' if group else ''}"
        parts += [f"## {title}", _markdown(SHOWN[kind](table))]
        if kind == "table2":
            parts += ["At each level, with the difference to the control:", _markdown(_at_levels(table))]
    if results.costs:
        used = dict.fromkeys(model for choice in results.choices.values() for model in choice["arms"].values())
        costs = pd.DataFrame({name: results.costs[name] for name in used if name in results.costs}).T
        parts += ["## Costs of a forward pass", _markdown(_costs(costs))]
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"


def _cell(row: Any, name: str) -> str:
    return f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"


def _by_level(table: pd.DataFrame) -> pd.DataFrame:
    rows = table.reset_index().to_dict("records")
    first, second = table.index.names
    return pd.DataFrame(
        {
            str(first): row[first],
            str(second): row[second],
            "AD %": _cell(row, DROP),
            "IC %": _cell(row, INCREASE),
            "AG %": _cell(row, "average_gain"),
            "mask area": f"{row['mask_area']:.2f}",
            "n": int(row["n_images"]),
        }
        for row in rows
    )


def _compared(table: pd.DataFrame) -> pd.DataFrame:
    shown = {"accuracy": "accuracy %", "macro_f1": "macro F1 %", DROP: "AD %", INCREASE: "IC %"}
    records = []
    for row in table.reset_index().to_dict("records"):
        record = {"arm": row["arm"], "model": row["model"]}
        for name, title in shown.items():
            if name in row:
                record[title] = _cell(row, name)
                difference = f"{name}_difference"
                known = difference in row and pd.notna(row[difference])
                record[f"to control, {title.removesuffix(' %')}"] = _cell(row, difference) if known else ""
        records.append(record | {"n": int(row["n_images"])})
    return pd.DataFrame(records)


def _at_levels(table: pd.DataFrame) -> pd.DataFrame:
    records = []
    for row in table.reset_index().to_dict("records"):
        cells = {}
        for metric, title in ((DROP, "AD"), (INCREASE, "IC")):
            for level in LEVELS:
                name = f"{metric}_{level}"
                difference = f" ({_cell(row, f'{name}_difference')})" if pd.notna(row.get(f"{name}_difference")) else ""
                cells[f"{title} {level}"] = f"{row[name]:.1f}{difference}" if name in row else ""
        records.append({"arm": row["arm"]} | cells)
    return pd.DataFrame(records)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return table.round(2).reset_index()


def _costs(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": table.index,
            "parameters": [f"{value:,.0f}" for value in table["parameters"]],
            "multiply-adds": [f"{value:,.0f}" for value in table["multiply_adds"]],
            **{
                f"{name.replace('_', '-')} ratio": [f"{value:.2f}" for value in table[f"{name}_ratio"]]
                for name in ("parameters", "multiply_adds", "memory")
            },
            "latency ratio": [
                f"{row['latency_ratio']:.2f} [{row['latency_low']:.2f}, {row['latency_high']:.2f}]"
                for row in table.to_dict("records")
            ],
        }
    )


SHOWN: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "table1": _by_level,
    "table2": _compared,
    "attention": _by_level,
    "accuracy": _plain,
    "subsets": _plain,
}


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
