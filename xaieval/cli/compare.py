"""The command `compare`: paired comparison of two runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from xaieval.cli.app import app
from xaieval.cli.json_output import records
from xaieval.cli.loading import load_run
from xaieval.cli.tables import print_table, print_text
from xaieval.config.groups import Weights
from xaieval.config.option_types import GroupsOption, Json, Switch, Words
from xaieval.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

    from xaieval.evaluation.scores import Scores

__all__ = ["compare"]


@app.command
def compare(
    first: Path,
    second: Path,
    /,
    *,
    metrics: Words | None = None,
    test: Literal["signs", "wilcoxon"] = "signs",
    level: float = 0.95,
    across_protocols: Switch = False,
    groups: GroupsOption = None,
    group_weights: Weights | None = None,
    out: Annotated[Path | None, Parameter(negative=())] = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Compare two runs on the same images, paired by image, per layer, method and metric.

    Args:
        first: Folder of a run.
        second: Folder of another run, with the same images, layers and methods.
        metrics: Metrics to compare. Default: those in both runs for which higher or lower is better.
        test: Test of means: signs (random sign flips) or wilcoxon (signed ranks). Yes/no metrics use McNemar's test.
        level: Confidence level of the intervals, and 1 minus the family-wise error rate of the tests.
        across_protocols: Compare runs even if their protocols differ.
        groups: See `GROUPS_HELP`.
        group_weights: What has equal weight in a mean: images or groups. Default: that of the runs.
        out: CSV file for the table.
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    from xaieval.analysis.comparison import compare as compare_runs

    one, other = (load_run(folder, groups, group_weights) for folder in (first, second))
    names = ("the first run", "the second run")
    table = compare_runs(one, other, metrics, test, level, across_protocols=across_protocols, runs=names)
    if out is not None:
        _write(table, out)
    if as_json:
        run = {"first": str(first), "second": str(second), "test": test, "level": level}
        return run | {"notes": table.attrs["notes"], "comparison": records(table)}
    _print(table, one, level)
    if out is not None:
        print_text(f"written to {out}")
    return None


def _write(table: pd.DataFrame, out: Path) -> None:
    try:
        table.to_csv(out)
    except OSError as error:
        raise OutputError(f"cannot write '{out}': {error.strerror or error}; choose another file") from error


def _print(table: pd.DataFrame, run: Scores, level: float) -> None:
    """Print what took part and in what the runs differ, the differences of the numbers, and how they were tested."""
    from rich.table import Table

    from xaieval.results.metric_display import decimals_of, label_of

    metrics = {metric["name"]: metric for metric in run.manifest["metrics"]}
    shown = Table("layer", "method", "metric", box=None, header_style="bold")
    for heading in ("first", "second", f"difference [{level:.0%} interval]", "p", "effect", "n"):
        shown.add_column(heading, justify="right")
    shown.add_column("better")
    for row in table.reset_index().to_dict("records"):
        metric = metrics[row["metric"]]
        shown.add_row(row["layer"], row["method"], label_of(metric), *_cells(row, decimals_of(metric) + 1))
    for note in table.attrs["notes"]:
        print_text(f"note: {note}")
    print_table(shown, names=2)
    print_text(
        "difference: first minus second, paired by image; its interval is for that row alone; p: two-sided, corrected by Holm "
        f"for {len(table)} tests; effect: rank-biserial, in [-1, 1], whose sign can differ from that of the mean"
    )


def _cells(row: dict[Any, Any], digits: int) -> list[str]:
    from xaieval.results.metric_display import interval_text

    form = f"z.{digits}f"  # z: no minus before a 0
    return [
        f"{row['mean']:{form}}",
        f"{row['other_mean']:{form}}",
        f"{row['difference']:+{form}} {interval_text(row['low'], row['high'], f'+{form}')}",
        f"{row['p_holm']:.2g}",
        "-" if math.isnan(row["effect_size"]) else f"{row['effect_size']:+.2f}",  # of no differences
        str(row["n_images"]),
        {"this": "first", "other": "second"}.get(row["better"], ""),
    ]
