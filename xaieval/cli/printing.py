"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xaieval.ranks import is_rank

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from xaieval.ranking import Over
    from xaieval.scores import Scores

__all__ = ["console", "print_comparison", "print_files", "print_rankings", "print_summary", "summary_if_interrupted"]

MOST_RANKED = 8  # pairs of layer and method that fit into a line


@contextmanager
def summary_if_interrupted(folder: Path, level: float) -> Iterator[None]:
    """Print what was measured so far, if somebody interrupts a run."""
    try:
        yield
    except KeyboardInterrupt:
        from xaieval.errors import OutputError
        from xaieval.scores import Scores

        with suppress(OutputError):  # there is nothing yet
            scores = Scores.load(folder)
            if not scores.manifest["complete"] and not is_rank():
                print_summary(scores, scores.summary(level), level)
        raise


def print_summary(scores: Scores, summary: pd.DataFrame, level: float) -> None:
    """The table of results, and what a reader has to know about it."""
    from rich.table import Table

    table = Table("layer", "method", box=None, header_style="bold")
    for metric in scores.manifest["metrics"]:
        arrow = {True: "higher is better", False: "lower is better", None: ""}[metric["higher_is_better"]]
        table.add_column(f"{metric['label']} [{level:.0%} interval]\n{arrow}", justify="right")
    for heading in ("n", "failed"):
        table.add_column(heading, justify="right")
    beaten = _beaten(scores, summary, level)
    if beaten:
        table.add_column("controls beaten\nbeyond chance")
    for row in summary.reset_index().to_dict("records"):
        cells = [_with_interval(row, metric) for metric in scores.manifest["metrics"]]
        cells += [str(int(row["n_images"])), str(int(row["n_failed"])), *beaten.get((row["layer"], row["method"]), ())]
        table.add_row(row["layer"], row["method"], *cells)
    out = console()
    out.print(table)
    counts = scores.rows["status"].value_counts()
    if set(counts.index) != {"ok"}:
        out.print("rows by status: " + ", ".join(f"{status} {count}" for status, count in counts.items()))
    if "stop" in scores.manifest:
        out.print(f"stopped: {scores.manifest['stop']['reason']}", soft_wrap=True)
    for reason in scores.warnings(level):
        out.print(f"warning: {reason}", soft_wrap=True)


def print_files(files: Sequence[str], folder: Path) -> None:
    """What was written where."""
    console().print(f"written to {folder}: {', '.join(files)}", soft_wrap=True)


def _with_interval(row: Mapping[Any, Any], metric: Mapping[str, Any]) -> str:
    """The mean and its interval: percentages to a tenth, other units, which may be shares of one, to a thousandth."""
    name, digits = metric["name"], 1 if "%" in metric["label"] else 3
    mean, low, high = (f"{row[column]:.{digits}f}" for column in (name, f"{name}_low", f"{name}_high"))
    return f"{mean} [{low}, {high}]"


def _beaten(scores: Scores, summary: pd.DataFrame, level: float) -> dict[Any, tuple[str]]:
    """By layer and method how many controls it beats in which metrics; empty for a run without controls."""
    if "beats_controls" not in summary:
        return {}
    labels = {metric["name"]: metric["label"].removesuffix(" %") for metric in scores.manifest["metrics"]}
    tests = scores.controls_table(level).groupby(["layer", "method", "metric"], sort=False)["beats"].agg(["sum", "size"])
    words: dict[Any, list[str]] = {pair: [] for pair in summary.index}
    for (layer, method, metric), won, count in tests.itertuples():
        words[layer, method].extend([f"{labels[metric]} {won}/{count}"] if won else [])
    controls = scores.manifest["controls"]
    return {pair: ("(control)" if pair[1] in controls else ", ".join(found) or "none",) for pair, found in words.items()}


def print_rankings(scores: Scores, level: float) -> None:
    """A line a metric: what is best, and what cannot be told apart; for as many layers and methods as fit into it."""
    from xaieval.errors import MetricError
    from xaieval.rows import NO_LAYER

    pairs = scores.rows[["layer", "method"]].drop_duplicates()
    if not 2 <= len(pairs) <= MOST_RANKED:
        return
    layers, methods = len(set(pairs["layer"]) - {NO_LAYER}), len(set(pairs["method"]))
    over: Over = "layer" if methods == 1 else "method" if layers <= 1 else "both"
    out = console()
    out.print(f"best first; a letter in common: cannot be told apart at {level:.0%}")
    for metric in scores.manifest["metrics"]:
        try:
            ranking = None if metric["higher_is_better"] is None else scores.rank(metric["name"], over, level=level)
        except MetricError:  # no image counts everywhere, as the table shows
            ranking = None
        if ranking is not None:
            out.print("  " + "; ".join(filter(None, [ranking.line, ranking.too_small])), soft_wrap=True)


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
    console().print(table)


def console() -> Console:
    """stdout; as wide as it takes where it is no terminal, so that nothing is cut off in a file."""
    from rich.console import Console

    out = Console(highlight=False, markup=False)
    return out if out.is_terminal else Console(width=200, highlight=False, markup=False)
