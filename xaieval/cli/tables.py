"""Tables on the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaieval.evaluation.distributed.rank import is_rank

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, RenderableType
    from rich.table import Table

    from xaieval.analysis.ranking import RankedItems, Ranking
    from xaieval.evaluation.scores import Scores

__all__ = [
    "find_rankings",
    "print_comparison",
    "print_rankings",
    "print_summary",
    "print_table",
    "say",
    "summary_if_interrupted",
]

MOST_RANKED = 8  # pairs of layer and method that fit into a line
WIDEST = 100_000  # characters: more than any table has


@contextmanager
def summary_if_interrupted(folder: Path, level: float) -> Iterator[None]:
    """Print what was measured so far, if somebody interrupts a run."""
    try:
        yield
    except KeyboardInterrupt:
        from xaieval.errors import OutputError
        from xaieval.evaluation.scores import Scores

        with suppress(OutputError):  # there is nothing yet
            scores = Scores.load(folder)
            if not scores.manifest["complete"] and not is_rank():
                print_summary(scores, scores.summary(level), None, level)
        raise


def print_summary(scores: Scores, summary: pd.DataFrame, tests: pd.DataFrame | None, level: float) -> None:
    """The table of results, and what a reader has to know about it.

    Args:
        scores: of the run.
        summary: of the scores at this level.
        tests: their `controls_table`, of a run with controls.
        level: of the intervals.
    """
    from rich.table import Table

    table = Table("layer", "method", box=None, header_style="bold")
    for metric in scores.manifest["metrics"]:
        arrow = {True: "higher is better", False: "lower is better", None: ""}[metric["higher_is_better"]]
        table.add_column(f"{metric['label']} [{level:.0%} interval]\n{arrow}", justify="right")
    for heading in ("n", "failed"):
        table.add_column(heading, justify="right")
    beaten = {} if tests is None else _beaten(scores, summary, tests)
    if beaten:
        table.add_column("controls beaten\nbeyond chance")
    for row in summary.reset_index().to_dict("records"):
        cells = [_with_interval(row, metric) for metric in scores.manifest["metrics"]]
        cells += [str(int(row["n_images"])), str(int(row["n_failed"])), *beaten.get((row["layer"], row["method"]), ())]
        table.add_row(row["layer"], row["method"], *cells)
    print_table(table, names=2)
    counts = scores.rows["status"].value_counts()
    if set(counts.index) != {"ok"}:
        say("rows by status: " + ", ".join(f"{status} {count}" for status, count in counts.items()))
    if "stop" in scores.manifest:
        say(f"stopped: {scores.manifest['stop']['reason']}")
    for reason in scores.warnings(level):
        say(f"warning: {reason}")


def _with_interval(row: Mapping[Any, Any], metric: Mapping[str, Any]) -> str:
    """The mean and its interval."""
    from xaieval.results.metric_display import decimals_of

    name, decimals = metric["name"], decimals_of(metric)
    mean, low, high = (f"{row[column]:.{decimals}f}" for column in (name, f"{name}_low", f"{name}_high"))
    return f"{mean} [{low}, {high}]"


def _beaten(scores: Scores, summary: pd.DataFrame, tests: pd.DataFrame) -> dict[Any, tuple[str]]:
    """By layer and method how many controls it beats in which metrics."""
    labels = {metric["name"]: metric["label"].removesuffix(" %") for metric in scores.manifest["metrics"]}
    counts = tests.groupby(["layer", "method", "metric"], sort=False)["beats"].agg(["sum", "size"])
    words: dict[Any, list[str]] = {pair: [] for pair in summary.index}
    for (layer, method, metric), won, count in counts.itertuples():
        words[layer, method].extend([f"{labels[metric]} {won}/{count}"] if won else [])
    controls = scores.manifest["controls"]
    return {pair: ("(control)" if pair[1] in controls else ", ".join(found) or "none",) for pair, found in words.items()}


def find_rankings(scores: Scores, level: float) -> list[Ranking]:
    """By metric what is best; none where there are more layers and methods than fit into a line."""
    from xaieval.errors import MetricError
    from xaieval.results.rows import NO_LAYER

    pairs = scores.rows[["layer", "method"]].drop_duplicates()
    if not 2 <= len(pairs) <= MOST_RANKED:
        return []
    layers, methods = len(set(pairs["layer"]) - {NO_LAYER}), len(set(pairs["method"]))
    over: RankedItems = "layer" if methods == 1 else "method" if layers <= 1 else "both"
    found = []
    for metric in scores.manifest["metrics"]:
        with suppress(MetricError):  # no image counts everywhere, as the table shows
            found += [] if metric["higher_is_better"] is None else [scores.rank(metric["name"], over, level=level)]
    return found


def print_rankings(scores: Scores, level: float) -> None:
    """A line a metric: what is best, and what cannot be told apart."""
    rankings = find_rankings(scores, level)
    if rankings:
        say(f"best first; a letter in common: cannot be told apart at {level:.0%}")
    for ranking in rankings:
        say("  " + "; ".join(filter(None, [ranking.line, ranking.too_small])))


def print_comparison(comparison: pd.DataFrame, level: float) -> None:
    """The models of the experiment beside the FPN control."""
    import pandas as pd
    from rich.table import Table

    table = Table("arm", "model", box=None, header_style="bold")
    names = {"accuracy": "accuracy %", "average_drop": "AD %", "increase_in_confidence": "IC %"}
    for title in names.values():
        table.add_column(f"{title}\nto control [{level:.0%} interval]", justify="right")
    table.add_column("n", justify="right")
    for row in comparison.reset_index().to_dict("records"):
        cells = []
        for name in names:
            difference = row.get(f"{name}_difference")
            ends = (
                f"[{row[f'{name}_difference_low']:+.1f}, {row[f'{name}_difference_high']:+.1f}]" if pd.notna(difference) else ""
            )
            cells.append(f"{row[name]:.1f}" + (f"  {difference:+.1f} {ends}" if ends else ""))
        table.add_row(row["arm"], row["model"], *cells, str(int(row["n_images"])))
    print_table(table, names=2)


def print_table(table: Table, names: int = 1) -> None:
    """A table as it is where it fits; on a narrow terminal a block for each row, since cells that are cut cannot be read.

    Args:
        table: with headings.
        names: how many columns at its start say what a row is of.
    """
    out = _console()
    needed = out.measure(table, options=out.options.update(width=WIDEST)).maximum
    if not sys.stdout.isatty():
        _console(needed).print(table)
    elif needed <= out.width:
        out.print(table)
    else:
        out.print(*_blocks(table, names), sep="\n")


def say(text: str) -> None:
    """A line of text: broken between words on a terminal, whole elsewhere."""
    _console().print(text, soft_wrap=not sys.stdout.isatty())


def _blocks(table: Table, names: int) -> Iterator[RenderableType]:
    """What stands in each row, one cell after the other with its heading."""
    from rich.columns import Columns
    from rich.padding import Padding
    from rich.text import Text

    headings = [str(column.header).replace("\n", ", ").removesuffix(", ") for column in table.columns[names:]]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        yield Text("  ".join(str(cell) for cell in cells[:names]), style="bold")
        said = [Text(f"{heading}: {cell}") for heading, cell in zip(headings, cells[names:], strict=True) if cell]
        yield Padding(Columns(said, padding=(0, 2)), (0, 0, 0, 2))


def _console(width: int | None = None) -> Console:
    """Standard output, where nothing is coloured or read as markup by what it looks like."""
    from rich.console import Console

    size = shutil.get_terminal_size()  # or rich takes every terminal without control characters for one of 80 columns
    return Console(width=width or size.columns, height=size.lines, highlight=False, markup=False)
