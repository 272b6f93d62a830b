"""Tables on the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    from xaieval.evaluation.search import SearchResult
    from xaieval.report.result_table import ResultTable
    from xaieval.results.findings import Finding

__all__ = [
    "print_arms",
    "print_findings",
    "print_missing_intervals",
    "print_pooled",
    "print_rankings",
    "print_search",
    "print_summary",
    "print_table",
    "print_text",
    "rankings_by_metric",
    "summary_if_interrupted",
]

MOST_RANKED = 8  # pairs of layer and method that fit into a line
WIDEST = 100_000  # characters, more than any table needs


@contextmanager
def summary_if_interrupted(folder: Path, level: float) -> Iterator[None]:
    """Print the summary of the rows so far if the run is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        from xaieval.errors import OutputError
        from xaieval.evaluation.scores import Scores

        with suppress(OutputError):  # no row was written yet
            scores = Scores.load(folder)
            if not scores.manifest["complete"] and not is_rank():
                print_summary(scores, scores.summary(level), None, level)
        raise


def print_summary(scores: Scores, summary: pd.DataFrame, tests: pd.DataFrame | None, level: float) -> None:
    """Print accuracy, warnings and the table of results, with metrics that can be fooled, statuses, and why a run stopped.

    Args:
        scores: The scores of a run.
        summary: Their summary at this level.
        tests: Their `controls_table`, for a run with controls.
        level: The confidence level of the intervals.
    """
    from xaieval.results.metric_display import groups_text

    print_findings(scores, scores.findings(level))
    lettered = _lettered(scores, level)
    print_table(_summary_table(scores, summary, tests, level, lettered), names=2)
    if lettered is not None:
        print_text(f"items that share a letter in a column cannot be told apart at {level:.0%}")
        print_text(lettered.in_words())
    print_missing_intervals([metric["name"] for metric in scores.manifest["metrics"]], summary, level)
    print_pooled(scores, level)
    if scores.n_groups is not None:
        print_text(f"{groups_text(scores.n_groups, scores.group_weights)}; intervals and tests allow for them")
    labels = {metric["name"]: metric["label"] for metric in scores.manifest["metrics"]}
    for name, text in scores.fooled_metrics(level).items():
        print_text(f"{labels[name]}: {text}")
    counts = scores.notable_statuses
    if set(counts) != {"ok"}:
        print_text("rows by status: " + ", ".join(f"{status} {count}" for status, count in counts.items()))
    if scores.sample_note:
        print_text(scores.sample_note)
    if "stop" in scores.manifest:
        print_text(f"stopped: {scores.manifest['stop']['reason']}")


def print_search(found: SearchResult, level: float) -> None:
    """Print how a search ended, and the table of its pairs.

    Args:
        found: The outcome of a search.
        level: The confidence level of the intervals.
    """
    from rich.table import Table

    scores = found.scores
    print_findings(scores, scores.findings(level))
    [metric] = scores.manifest["metrics"]
    arrow = "higher is better" if metric["higher_is_better"] else "lower is better"
    table = Table("layer", "method", box=None, header_style="bold")
    for heading in (f"{metric['label']} [{level:.0%} interval]\n{arrow}", "n"):
        table.add_column(heading, justify="right")
    for heading in ("outcome", "certainly worse than"):
        table.add_column(heading)
    for row in found.table(level).reset_index().to_dict("records"):
        cells = [_with_interval(row, metric), str(int(row["n_images"])), row["outcome"], row["beaten_by"]]
        table.add_row(row["layer"], row["method"], *cells)
    print_table(table, names=2)
    for (layer, method), reason in found.left_out.items():
        print_text(f"left out: {method} at {layer}: {reason}")
    print_text(f"{found.reason}; {100 * found.spent:.1f} % of the full grid was measured")


def _lettered(scores: Scores, level: float) -> ResultTable | None:
    """The table with letters of a run whose ranking does not fit into a line; None for any other."""
    if len(_ranked_pairs(scores)) <= MOST_RANKED:
        return None
    found = scores.table(level)
    return found if found.tests else None


def _summary_table(
    scores: Scores,
    summary: pd.DataFrame,
    tests: pd.DataFrame | None,
    level: float,
    lettered: ResultTable | None,
) -> Table:
    """The table of results, with the letters of another one."""
    from rich.table import Table

    table = Table("layer", "method", box=None, header_style="bold")
    for metric in scores.manifest["metrics"]:
        arrow = {True: "higher is better", False: "lower is better", None: ""}[metric["higher_is_better"]]
        table.add_column(f"{metric['label']} [{level:.0%} interval]\n{arrow}", justify="right")
        if lettered is not None:
            table.add_column("")  # of its own, so that the numbers line up
    for heading in ("mask\narea %", "n", "failed"):
        table.add_column(heading, justify="right")
    beaten = {} if tests is None else {"controls beaten\nbeyond chance": _beaten(scores, summary, tests)}
    if scores.matched_controls:
        beaten["matched controls\nbeaten beyond chance"] = _beaten(scores, summary, scores.matched_table(level))
    for heading in beaten:
        table.add_column(heading)
    for row in summary.reset_index().to_dict("records"):
        pair = row["layer"], row["method"]
        cells = []
        for metric in scores.metrics:
            letters = [] if lettered is None else [str(lettered.frame.loc[pair, f"{metric['name']}_letters"])]
            cells += [_with_interval(row, metric), *letters]
        cells += [f"{100 * row.get('mask_area', float('nan')):.1f}", str(int(row["n_images"])), str(int(row["n_failed"]))]
        cells += [words[row["layer"], row["method"]] for words in beaten.values()]
        table.add_row(row["layer"], row["method"], *cells)
    return table


def print_pooled(scores: Scores, level: float) -> None:
    """Print the numbers over all images at once, of a run that has some."""
    from rich.table import Table

    from xaieval.analysis.pooled import pooled_numbers, why_no_pooled_interval

    numbers = pooled_numbers(scores.column_names, scores.metrics)
    if not numbers:
        return
    pooled = scores.pooled(level=level)
    table = Table("layer", "method", box=None, header_style="bold")
    for number in numbers:
        table.add_column(f"{number['label']} [{level:.0%} interval]\nhigher is better", justify="right")
        table.add_column("n", justify="right")
    for row in pooled.reset_index().to_dict("records"):
        cells = [cell for one in numbers for cell in (_with_interval(row, one), str(int(row[f"{one['name']}_n"])))]
        table.add_row(row["layer"], row["method"], *cells)
    print_text("over all images at once, as papers on localisation report it, and not a mean over images:")
    print_table(table, names=2)
    why = why_no_pooled_interval(pooled, numbers)
    if why:
        print_text(f"[-]: {why}")


def print_findings(scores: Scores, findings: Sequence[Finding]) -> None:
    """Print accuracy and mean confidence in one line, and each finding with its name."""
    if str(scores.predictions):
        print_text(str(scores.predictions))
    for finding in findings:
        print_text(f"warning: {finding.text} [{finding.name}]")


def print_missing_intervals(names: Sequence[str], table: pd.DataFrame, level: float) -> None:
    """Print the reason if a mean in a table has no interval."""
    from xaieval.analysis.summary import why_missing

    reason = why_missing(table, names, level)
    if reason:
        print_text(f"[-]: {reason}")


def _with_interval(row: Mapping[Any, Any], metric: Mapping[str, Any]) -> str:
    """The mean and its interval."""
    from xaieval.results.metric_display import mean_text

    name = metric["name"]
    return mean_text(row[name], row[f"{name}_low"], row[f"{name}_high"], metric)


def _beaten(scores: Scores, summary: pd.DataFrame, tests: pd.DataFrame) -> dict[Any, str]:
    """By layer and method, the number of controls beaten in each metric, as the cell of a table."""
    labels = {metric["name"]: metric["label"].removesuffix(" %") for metric in scores.manifest["metrics"]}
    counts = tests.groupby(["layer", "method", "metric"], sort=False)["beats"].agg(["sum", "size"])
    words: dict[Any, list[str]] = {pair: [] for pair in summary.index}
    for (layer, method, metric), won, count in counts.itertuples():
        words[layer, method].extend([f"{labels[metric]} {won}/{count}"] if won else [])
    return {pair: "(control)" if pair[1] in scores.controls else ", ".join(won) or "none" for pair, won in words.items()}


def rankings_by_metric(scores: Scores, level: float) -> list[Ranking]:
    """A ranking for each metric with a direction; none if there are more pairs of layer and method than fit into a line."""
    from xaieval.errors import MetricError
    from xaieval.results.rows import NO_LAYER

    pairs = _ranked_pairs(scores)
    if not 2 <= len(pairs) <= MOST_RANKED:
        return []
    layers, methods = len({layer for layer, _ in pairs} - {NO_LAYER}), len({method for _, method in pairs})
    over: RankedItems = "layer" if methods == 1 else "method" if layers <= 1 else "both"
    rankings = []
    for metric in scores.manifest["metrics"]:
        if metric["higher_is_better"] is not None:
            with suppress(MetricError):  # no image counts for all of them, which the table shows
                rankings.append(scores.rank(metric["name"], over, level=level))
    return rankings


def _ranked_pairs(scores: Scores) -> list[tuple[str, str]]:
    """The layers and methods without the control maps."""
    return [pair for pair in scores.pairs if pair[1] not in scores.controls]


def print_rankings(scores: Scores, level: float) -> None:
    """Print one line for each metric: best first, with letters that join what the tests do not separate."""
    rankings = rankings_by_metric(scores, level)
    if rankings:
        print_text(f"best first; items that share a letter cannot be told apart at {level:.0%}")
    for ranking in rankings:
        print_text("  " + "; ".join(filter(None, [ranking.line, ranking.too_small])))


def print_arms(arms: pd.DataFrame, level: float) -> None:
    """Print the arms of the FAL experiment with their means.

    Args:
        arms: The result of `xaieval.training.fal.report.tables.arm_table`.
        level: The level of its intervals.
    """
    from rich.table import Table

    from xaieval.results.metric_display import interval_text

    names = {"accuracy": "accuracy %", "average_drop": "AD %", "average_drop_excess": "AD excess %"}
    names |= {"increase_in_confidence": "IC %"}
    names = {name: title for name, title in names.items() if arms[name].notna().any()}  # no accuracy without labels
    table = Table("arm", box=None, header_style="bold")
    for title in (*(f"{title} [{level:.0%} interval]" for title in names.values()), "mask area", "runs"):
        table.add_column(title, justify="right")
    for row in arms.reset_index().to_dict("records"):
        cells = [f"{row[name]:.1f} {interval_text(row[f'{name}_low'], row[f'{name}_high'], '.1f')}" for name in names]
        table.add_row(row["arm"], *cells, f"{row['mask_area']:.2f}", str(row["n_runs"]))
    print_table(table)


def print_table(table: Table, names: int = 1) -> None:
    """Print a table, or a block of lines for each row if the terminal is too narrow for the table.

    Args:
        table: A table with headings.
        names: The number of leading columns that name a row.
    """
    out = _console()
    needed = out.measure(table, options=out.options.update(width=WIDEST)).maximum
    if not sys.stdout.isatty():
        _console(needed).print(table)
    elif needed <= out.width:
        out.print(table)
    else:
        out.print(*_blocks(table, names), sep="\n")


def print_text(text: str) -> None:
    """Print text: wrapped between words on a terminal, in one line elsewhere."""
    _console().print(text, soft_wrap=not sys.stdout.isatty())


def _blocks(table: Table, names: int) -> Iterator[RenderableType]:
    """Each row as a title and its cells with their headings."""
    from rich.columns import Columns
    from rich.padding import Padding
    from rich.text import Text

    headings = [str(column.header).replace("\n", ", ").removesuffix(", ") for column in table.columns[names:]]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        yield Text("  ".join(str(cell) for cell in cells[:names]), style="bold")
        named = [Text(f"{heading}: {cell}") for heading, cell in zip(headings, cells[names:], strict=True) if cell]
        yield Padding(Columns(named, padding=(0, 2)), (0, 0, 0, 2))


def _console(width: int | None = None) -> Console:
    """Standard output without highlighting and markup."""
    from rich.console import Console

    size = shutil.get_terminal_size()  # rich assumes 80 columns for every terminal without control characters
    return Console(width=width or size.columns, height=size.lines, highlight=False, markup=False)
