"""Write the results of an experiment: tables in CSV, figures, and a report in Markdown."""

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
from xaieval.results.metric_display import interval_text
from xaieval.training.fal.experiment import Experiment
from xaieval.training.fal.results import Results, read_results
from xaieval.training.fal.run import BASE, CONTROL, FoldRun, layers_of, rebuild
from xaieval.training.fal.tables import (
    DROP,
    IMAGE,
    INCREASE,
    accuracy_table,
    attention_table,
    comparison_table,
    level_table,
    subset_table,
)

__all__ = ["write_report"]

IMAGES = 5  # in each figure
REPORT = "report.md"
TITLES = {
    "table1": "AD and IC of each level of the FPN",
    "table2": "Arms compared with the FPN control",
    "attention": "The models' attention maps as explanations",
    "accuracy": "Accuracy by type of split",
    "subsets": "All sets of levels with attention",
}


def write_report(experiment: Experiment, folder: Path, level: float = 0.95) -> list[str]:
    """Write tables, figures and `report.md` of the finished folds into the experiment's folder.

    Args:
        experiment: The experiment, from `prepare`.
        folder: Its folder.
        level: Level of the intervals.

    Returns:
        Names of the written files.

    Raises:
        OutputError: No fold is finished.
    """
    results = read_results(folder)
    class_name = experiment.options.class_name
    label = None if class_name is None else results.classes.index(class_name)
    tables = _tables(results, label, level)
    written = []
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv")
        written.append(f"{name}.csv")
    figures = _figures(experiment, results, folder, label)
    (folder / REPORT).write_text(_page(experiment, results, tables, figures, level), encoding="utf-8")
    return [REPORT, *written, *figures]


def _tables(results: Results, label: int | None, level: float) -> dict[str, pd.DataFrame]:
    """Tables by file name; those of one class end with its name."""
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


def _figures(experiment: Experiment, results: Results, folder: Path, label: int | None) -> list[str]:
    """Maps of some test images of the first finished fold: the FPN's levels, and the levels of control and FAL together."""
    number = min(results.choices)
    fold = FoldRun.of(experiment, folder, number)
    test = [i for i in fold.fold.test if label is None or experiment.pictures.labels[i] == label]
    pictures = experiment.pictures.subset(test).spread(IMAGES)
    batch = next(read_batches(pictures.loader(IMAGES)))
    if not len(batch):
        return []
    pixels = experiment.preprocessing.to_pixels(batch.images)
    names = [Path(image_id).stem for image_id in batch.ids]
    method = experiment.options.methods[0]

    def maps(model: nn.Module) -> dict[str, Any]:
        return dict(zip(LEVELS, explain(model, batch.images, layers_of(model), method).values(), strict=True))

    maps_figure(pixels, maps(rebuild(fold, BASE)), names, f"FPN, {method}").savefig(folder / "figure4.png", dpi=120)
    selected = results.choices[number]["arms"].get("selected", CONTROL)
    if selected == CONTROL:
        return ["figure4.png"]
    control, fal = maps(rebuild(fold, CONTROL)), maps(rebuild(fold, selected))
    columns = {f"{level} {name}": of_model[level] for level in LEVELS for name, of_model in (("FPN", control), ("FAL", fal))}
    subtitle = f"FPN control and {selected}, {method}"
    maps_figure(pixels, columns, names, subtitle).savefig(folder / "figure5.png", dpi=120)
    return ["figure4.png", "figure5.png"]


def _page(experiment: Experiment, results: Results, tables: dict[str, pd.DataFrame], figures: list[str], level: float) -> str:
    options = experiment.options
    folds = len(results.choices)
    tested = results.base.drop_duplicates(IMAGE)
    parts = [
        "# The FAL experiment",
        f"{experiment.backbone} on {options.data.split(':')[0]}, head `{options.head}`, {options.image_size} px, {folds} of "
        f"{options.folds} folds of contiguous blocks, {len(tested)} test images, {options.epochs} epochs, then "
        f"{options.further_epochs} more, seed {options.seed}, {level:.0%} intervals. No test image was used for training or "
        "for the selection of levels.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results.versions.items()) + ".",
        "## Which levels need attention",
        *(f"Fold {fold}:\n\n```\n{choice['selection']['reasons']}\n```" for fold, choice in results.choices.items()),
    ]
    for name, table in tables.items():
        kind, _, group = name.partition("_")
        title = f"{TITLES[kind]}, class {group} only" if group else TITLES[kind]
        parts += [f"## {title}", _markdown(FORMATS[kind](table))]
        if kind == "table2":
            parts += ["At each level, with the difference from the control:", _markdown(_at_levels(table))]
    if results.costs:
        used = dict.fromkeys(model for choice in results.choices.values() for model in choice["arms"].values())
        costs = pd.DataFrame({name: results.costs[name] for name in used if name in results.costs}).T
        parts += ["## Cost of a forward pass", _markdown(_costs(costs))]
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"


def _cell(row: Any, name: str) -> str:
    return f"{row[name]:.1f} {interval_text(row[f'{name}_low'], row[f'{name}_high'])}"


def _by_level(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (method or arm, level), values with their intervals in one cell."""
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
    """One row per arm, each value with its difference from the control."""
    titles = {"accuracy": "accuracy %", "macro_f1": "macro F1 %", DROP: "AD %", INCREASE: "IC %"}
    records = []
    for row in table.reset_index().to_dict("records"):
        record = {"arm": row["arm"], "model": row["model"]}
        for name, title in titles.items():
            if name in row:
                record[title] = _cell(row, name)
                difference = f"{name}_difference"
                known = difference in row and pd.notna(row[difference])
                record[f"to control, {title.removesuffix(' %')}"] = _cell(row, difference) if known else ""
        records.append(record | {"n": int(row["n_images"])})
    return pd.DataFrame(records)


def _at_levels(table: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, AD and IC at each level, differences from the control in brackets."""
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
                f"{row['latency_ratio']:.2f} {interval_text(row['latency_low'], row['latency_high'], '.2f')}"
                for row in table.to_dict("records")
            ],
        }
    )


FORMATS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "table1": _by_level,
    "table2": _compared,
    "attention": _by_level,
    "accuracy": _plain,
    "subsets": _plain,
}


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
