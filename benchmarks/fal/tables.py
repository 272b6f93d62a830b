"""Remake all tables of an experiment on FAL from its packed rows, without training.

    python benchmarks/fal/tables.py FOLDER

FOLDER holds `manifest.json`, `rows-seed*.parquet` and `runs-seed*.json` of `xaieval-bench fal`. Writes its report and tables
anew, and, where its arms tell them:

- `designs.csv`, `designs.png`: each design of the attention against its twin and against the FPN; `sets.csv`, `sets.png` if the
  arms are sets of levels;
- `effects.png`: main effects of the levels and of the gate over all runs, which `effects.csv` of the report has;
- `effects_label.csv`, `effects_group.csv`: the same with intervals that also hold for other classes or blocks of images;
- `effects_at_levels.csv`: the effects on AD at each level;
- `rule_scores.csv`: how well rules foretell the effects, from `rules.csv`;
- `findings.md`: a page with all of these.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cyclopts
import numpy as np
import pandas as pd
from effect_figures import differences_figure, effects_figure
from rules import SCORES, VALUES, score

from xaieval.analysis.rules import RULES
from xaieval.errors import MetricError
from xaieval.models import LEVELS
from xaieval.report.figures.style import save_figure
from xaieval.results.markdown import markdown_table
from xaieval.training.fal.arms import FPN, Arm, twin_among
from xaieval.training.fal.report.page import write_report
from xaieval.training.fal.report.tables import effect_table, gate_table
from xaieval.training.fal.results import Results, read_results
from xaieval.training.fal.rules.rule_scores import winner
from xaieval.training.fal.statistics.contrasts import contrasts
from xaieval.training.fal.statistics.effects import arm_differences, effects, effects_beyond, errors_by_seeds, run_table
from xaieval.training.fal.statistics.run_table import OUTCOMES

NAMES = {"accuracy": "accuracy", "average_drop": "AD", "average_drop_excess": "AD excess", "increase_in_confidence": "IC"}
F1 = {"macro_f1": "macro F1"}
PLACES = {"label": "classes", "group": "blocks of images"}
MANY = 10  # pairs of networks from which on a difference has an error of its own
GAIN, DROP, COST = (
    1.0,
    -2.0,
    1.3,
)  # the aim: accuracy gained, or excess lost, in percentage points; and multiply-adds to the FPN
ERRORS = {"accuracy": 0.4, "average_drop": 0.65}  # the aim for standard errors of the effects of levels

app = cyclopts.App(name="tables", help=__doc__)


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes:
        title: Its heading.
        lines: Its lines in Markdown.
    """

    title: str
    lines: list[str]


@app.default
def tables(folder: Path, /) -> None:
    """Remake the tables, with intervals of 95 %.

    Args:
        folder: The folder of the experiment.
    """
    results = read_results(folder)
    written = write_report(folder)
    parts = [part for make in (gate_part, effects_part, beyond_part, rules_part) for part in make(folder, results)]
    if parts:
        lines = [f"# Findings in {folder.name}", "", counts(results), ""]
        lines += [line for part in parts for line in (f"## {part.title}", "", *part.lines, "")]
        (folder / "findings.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        written = [*written, "findings.md"]
    print(f"{folder}: {', '.join(written)}")


def counts(results: Results) -> str:
    """How many runs there are, and of what."""
    cells = results.cells
    folds, seeds = ({cell[place] for cell in cells} for place in (0, 1))
    arms = {record["arm"] for record in results.records}
    missing = len(arms) * len(cells) - len(results.records)
    words = "seed" if len(seeds) == 1 else "seeds"
    return (
        f"{len(results.records)} networks: {len(arms)} arms, {len(folds)} folds, {len(seeds)} {words}"
        f"{f' ({missing} runs missing)' if missing else ''}. The unit of every claim is a network. Numbers are percentage "
        "points, with intervals of 95 % in brackets; a star marks p < 0.05 after Holm's correction for all claims of a table."
    )


# ---- FAL and its twin


def gate_part(folder: Path, results: Results) -> Iterator[Part]:
    """Each FAL against its twin and against the FPN: the designs of an experiment, or its sets of levels."""
    names = {record["arm"] for record in results.records}
    arms = [arm for arm in map(Arm.of, sorted(names)) if arm.kind == "fal"]
    twins = {arm.name: twin_among(arm.name, names, results.run["design"]) for arm in arms}
    pairs = [(name, twin) for name, twin in twins.items() if twin]
    if len(pairs) < 2 or results.choices:  # arms that follow from a selection are in the report
        return
    name = "designs" if len({arm.design for arm in arms}) > 1 else "sets"
    runs = run_table(results.rows)
    gate = with_aim(differences(runs, pairs), results)
    whole = differences(runs, [(arm, FPN) for arm in twins])
    pd.concat([gate, whole]).to_csv(folder / f"{name}.csv", float_format="%.6g")
    save_figure(differences_figure(gate), folder / f"{name}.png", dpi=120)
    yield Part("The gate: FAL against its twin", [aim_sentence(gate), "", *difference_lines(gate)])
    yield Part("FAL against the FPN", [f"{len(whole)} claims. {whole.attrs['error']}", "", *difference_lines(whole)])


def differences(runs: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Differences in all outcomes; with few folds and seeds, with the error of all arms."""
    cells = len(runs[["fold", "seed"]].drop_duplicates())
    table = arm_differences(runs, pairs, OUTCOMES, error="pair" if cells >= MANY else "all")
    table.attrs["error"] = (
        "Each error is that of the pair's own differences."
        if cells >= MANY
        else "The error is estimated from all arms together."
    )
    return table


def with_aim(table: pd.DataFrame, results: Results) -> pd.DataFrame:
    """The table with gate statistics, the multiply-adds relative to the FPN, and whether it reaches the aim."""
    gates = gate_table(results)
    gates = gates.groupby("arm")[["changed_without", "changed_shuffled"]].mean() if len(gates) else pd.DataFrame()
    arms = table.index.get_level_values("arm")
    found = table.assign(**{name: gates[name].reindex(arms).to_numpy() for name in gates})
    found["multiply_adds_ratio"] = [results.costs.get(arm, {}).get("multiply_adds_ratio", np.nan) for arm in arms]
    found["aim"] = reaches_aim(found)
    found.attrs = table.attrs
    return found


def reaches_aim(table: pd.DataFrame) -> pd.Series:
    """Whether accuracy is higher, or the excess lower, by enough and for certain, at an allowed cost."""
    outcome = table.index.get_level_values("outcome")
    better = (outcome == "accuracy") & (table["difference"] >= GAIN) & (table["low"] > 0)
    better |= (outcome == "average_drop_excess") & (table["difference"] <= DROP) & (table["high"] < 0)
    return better & (table["multiply_adds_ratio"] <= COST)


def aim_sentence(table: pd.DataFrame) -> str:
    """Which arms reach the aim."""
    reached = list(dict.fromkeys(table.index.get_level_values("arm")[table["aim"]]))
    unknown = table["multiply_adds_ratio"].isna().any()
    return (
        f"{len(table)} claims. {table.attrs['error']} The aim is an accuracy higher by at least {GAIN:g} or an AD excess lower "
        f"by at least {-DROP:g}, with an interval on that side of 0, at no more than {COST} times the multiply-adds of the "
        f"FPN; it is reached by {', '.join(reached) or 'none'}{', but costs are missing' if unknown else ''}."
    )


def difference_lines(table: pd.DataFrame) -> list[str]:
    """Differences in Markdown, one pair of arms per line; with what the maps do and the costs, if these are known."""
    further = {
        "changed_without": "changed without maps, %",
        "changed_shuffled": "shuffled, %",
        "multiply_adds_ratio": "multiply-adds",
    }
    shown = {name: title for name, title in further.items() if name in table}
    heads = ["arm", "against", "pairs", *NAMES.values(), *shown.values(), *(["aim"] if "aim" in table else [])]
    rows = []
    for (arm, other), part in table.groupby(["arm", "other"], sort=False):
        values = part.droplevel(["arm", "other"])
        first = values.iloc[0]
        numbers = ["" if np.isnan(first[name]) else f"{first[name]:.3g}" for name in shown]
        aim = [", ".join(NAMES[name] for name in values.index[values["aim"]])] if "aim" in table else []
        rows.append(
            [arm, other, f"{first['n_pairs']:.0f}", *(cell(values.loc[name], "difference") for name in NAMES), *numbers, *aim]
        )
    return [markdown_table(heads, rows), *notes(table)]


# ---- effects


def effects_part(folder: Path, results: Results) -> Iterator[Part]:
    """Main effects of the levels and of the gate."""
    runs, table = told(run_table(results.rows)), effect_table(results)
    if runs is None or table.empty:
        return
    names = {name: title for name, title in (NAMES | F1).items() if name in table.index.unique("outcome")}
    save_figure(effects_figure(table), folder / "effects.png", dpi=120)
    yield Part("Effects of the levels and of the gate", [*effect_lines(table, names), "", *error_lines(table, runs)])
    at_levels = {f"average_drop_{name}": f"AD at {name}" for name in LEVELS if f"average_drop_{name}" in runs}
    table = effects(runs, list(at_levels))
    table.to_csv(folder / "effects_at_levels.csv", float_format="%.6g")
    yield Part("Effects on AD at each level", effect_lines(table, at_levels))


def beyond_part(folder: Path, results: Results) -> Iterator[Part]:
    """How far the effects hold beyond these classes and images."""
    for by, words in PLACES.items():
        runs = told(run_table(results.rows, by)) if len(results.rows[by].unique()) > 1 else None
        if runs is None:
            continue
        table = effects_beyond(runs, by, OUTCOMES)
        table.to_csv(folder / f"effects_{by}.csv", float_format="%.6g")
        said = f"These intervals also hold for other {words}."
        if by == "label":
            said += " Behind them, in how many classes the effect has the same sign."
        else:
            table = table.drop(columns="same_sign")  # of few images each
        yield Part(f"Effects beyond these {words}", [said, "", *effect_lines(table, NAMES)])


def told(runs: pd.DataFrame) -> pd.DataFrame | None:
    """The runs, if they are of one design and tell an effect of a level."""
    try:
        found = contrasts(runs["arm"].unique())
    except MetricError:
        return None
    return runs if any(level in LEVELS for level, _ in found.weights) else None


def effect_lines(table: pd.DataFrame, names: dict[str, str]) -> list[str]:
    """Effects in Markdown, one line per level and part."""
    rows = []
    for level, part in table.loc[next(iter(names))].index:
        rows.append([level, part, *(effect_cell(table.loc[name, level, part]) for name in names)])
    models = {"mixed": "a mixed model", "cells": "least squares with an intercept for each fold and seed"}
    used = [models[name] for name in table["model"].unique()] if "model" in table else ["least squares with two-way clusters"]
    said = (
        f"{table.attrs['claims']} claims, by {' and '.join(used)}. Part fal: networks that use their maps; twin: the same "
        "branches and loss without that; gate: the difference."
    )
    return [said, "", markdown_table(["level", "part", *names.values()], rows), *notes(table)]


def effect_cell(row: pd.Series) -> str:
    """An effect with its interval and, if it is known, the number of classes with the same sign."""
    signs = f" ({row['same_sign']:.0f}/{row['groups']:.0f})" if "same_sign" in row else ""
    return cell(row, "effect") + signs


def error_lines(table: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """What standard errors were reached, and how many seeds the aim takes."""
    folds = runs["fold"].nunique()
    lines = []
    for name, most in ERRORS.items():
        found = table.loc[name]
        parts = found.index.get_level_values("part")
        reached = found.loc[(parts != "gate") & (found.index.get_level_values("level") != "all"), "error"].max()
        planned = errors_by_seeds(found["spread"].iloc[0], folds, range(1, 101))["level"]
        enough = planned.index[planned <= most]
        lines.append(
            f"{NAMES[name]}: a run scatters by {found['spread'].iloc[0]:.2f} (SD); the largest standard error of the effect of "
            f"a level is {reached:.2f}, the aim {most} takes {enough[0] if len(enough) else 'more than 100'} seeds in {folds} "
            "folds."
        )
    return lines


# ---- rules


def rules_part(folder: Path, results: Results) -> Iterator[Part]:
    """How well rules foretell the effects."""
    if not (folder / VALUES).exists():
        return
    score(folder)
    table = pd.read_csv(folder / SCORES)
    wins = winner(table, RULES)
    chosen = table[table["choice"].isin(["tests", "fixed"]) & (table["part"] == "fal")]
    rows = [
        [
            row["rule"],
            NAMES[row["outcome"]],
            f"{row['levels']:.1f}",
            share(row, "correlation"),
            share(row, "regret_share"),
            f"{row['regret']:.2f}",
            f"{100 * row['found']:.0f} %",
        ]
        for row in chosen.to_dict("records")
    ]
    heads = ["rule", "outcome", "levels", "correlation", "share of regret", "regret", "found"]
    said = (
        "The levels that each rule selects by its tests, and three sets that look at nothing: how many levels, the rank "
        "correlation of what the rule says with the effects of the levels (part fal), how far its set is from the "
        "best (as a share of the way to the worst, and in points), and how often its set is the best. "
        f"{chosen['networks'].max()} FPNs. The rule that wins: {wins}."
    )
    yield Part("Rules that select levels", [said, "", markdown_table(heads, rows)])


def share(row: dict[Hashable, float], name: str) -> str:
    """A number between -1 and 1 with its interval, if all is known."""
    if np.isnan(row[name]):
        return ""
    ends = "" if np.isnan(row[f"{name}_low"]) else f" [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
    return f"{row[name]:.2f}{ends}"


# ---- cells and notes


def cell(row: pd.Series, name: str) -> str:
    """A number with its interval, and a star if it is significant after the correction."""
    if np.isnan(row["low"]):
        return f"{row[name]:+.1f}"
    return f"{row[name]:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]{'*' if row['p_holm'] < 0.05 else ''}"


def notes(table: pd.DataFrame) -> list[str]:
    """The notes of a table as a list; what is noted on several outcomes is said once."""
    said: dict[str, list[str]] = {}
    for note in table.attrs["notes"]:
        name, _, rest = note.partition(": ")
        said.setdefault(rest or note, []).append(name)
    lines = [f"- {', '.join(names)}: {rest}." if rest != names[0] else f"- {rest}." for rest, names in said.items()]
    return ["", *lines] if lines else []


if __name__ == "__main__":
    app()
