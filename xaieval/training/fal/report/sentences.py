"""What an experiment found, in sentences: differences beyond the noise of folds and seeds, and those within it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from xaieval.models import LEVELS
from xaieval.results.metric_display import interval_text
from xaieval.training.fal.arms import FPN, Arm
from xaieval.training.fal.report.tables import difference_table, gate_table, swap_parts
from xaieval.training.fal.results import Results

__all__ = ["NAMES", "sentences"]

LISTED = 10  # pairs of arms up to which each has its sentence, whether something was found or not
NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "average_drop": "AD",
    "average_drop_excess": "AD excess",
    "increase_in_confidence": "IC",
}


def sentences(results: Results, level: float = 0.95) -> list[str]:
    """What was found.

    Args:
        results: Results of the experiment.
        level: Level of intervals and tests.
    """
    return [
        *_selected(results),
        *_noise(results),
        *_differences(difference_table(results, level=level), level),
        *_gates(gate_table(results)),
        *_swap(swap_parts(results, level)),
    ]


def _selected(results: Results) -> Iterator[str]:
    """How often each level was selected."""
    choices = list(results.choices.values())
    if choices:
        sets = [Arm.of(choice["roles"]["selected"]).levels for choice in choices]
        counts = ", ".join(f"{name} {sum(name in levels for levels in sets)}" for name in LEVELS)
        rule = choices[0]["selection"]["rule"] or ", ".join(choices[0]["settings"]["by"])
        yield f"Levels selected by {rule}, of {len(sets)} selections: {counts}."


def _noise(results: Results) -> Iterator[str]:
    """How much the seed alone scatters the FPN."""
    runs = results.runs()
    spread = runs[runs["arm"] == FPN].groupby("fold")[["accuracy", "average_drop"]].var().mean()
    parts = [f"{NAMES[str(name)]} by {np.sqrt(value):.1f}" for name, value in spread.items() if pd.notna(value)]
    if parts:
        yield f"The seed alone scatters the FPN's {' and its '.join(parts)} points (standard deviation of runs within a fold)."


def _differences(table: pd.DataFrame, level: float) -> Iterator[str]:
    """How differences are tested, and one sentence per pair of arms."""
    if table.empty:
        return
    yield (
        f"Of {len(table)} differences, those count as found whose p-value, corrected by Holm for all of them, is below "
        f"{1 - level:.2g}; the others are within the noise of folds and seeds."
    )
    pairs = table.groupby(["arm", "other"], sort=False)
    listed = {pair: rows for pair, rows in pairs if len(pairs) <= LISTED or not (rows["p_holm"] >= 1 - level).all()}
    for (arm, other), rows in listed.items():
        yield f"{arm} minus {other}: {_parts(rows, level)}."
    if len(listed) < len(pairs):
        yield f"The other {len(pairs) - len(listed)} pairs of arms are within the noise in all outcomes."


def _parts(rows: pd.DataFrame, level: float) -> str:
    """The differences of a pair of arms: those that are found, those within the noise, and those without a test."""
    kinds = {
        "": rows["p_holm"] < 1 - level,
        "within the noise: ": rows["p_holm"] >= 1 - level,
        "too few or equal runs to tell: ": rows["p_holm"].isna(),
    }
    parts = {said: [_value(row) for row in rows[chosen].reset_index().to_dict("records")] for said, chosen in kinds.items()}
    return "; ".join(f"{said}{', '.join(values)}" for said, values in parts.items() if values)


def _value(row: dict[Any, Any]) -> str:
    interval = "" if pd.isna(row["low"]) else f" {interval_text(row['low'], row['high'], '+.1f')}"
    return f"{NAMES[row['outcome']]} {row['difference']:+.1f}{interval}"


def _gates(table: pd.DataFrame) -> Iterator[str]:
    """How many predictions depend on the maps of each arm that uses them."""
    if table.empty:
        return
    for arm, rows in table.groupby("arm", sort=False):
        without, shuffled = (np.average(rows[name], weights=rows["n_runs"]) for name in ("changed_without", "changed_shuffled"))
        if without or shuffled:  # a twin does not use its maps
            yield f"{arm}: {without:.1f} % of the predictions change without the maps, {shuffled:.1f} % with shuffled maps."


def _swap(table: pd.DataFrame) -> Iterator[str]:
    """Whether a difference in AD is one of the maps or of the networks."""
    if table.empty:
        return
    words = {name: f"{row['value']:+.1f} {interval_text(row['low'], row['high'], '+.1f')}" for name, row in table.iterrows()}
    yield (
        f"AD of FAL minus that of the FPN on the same images: {words['difference']}, of which {words['map']} come from the "
        f"maps and {words['model']} from the networks."
    )
