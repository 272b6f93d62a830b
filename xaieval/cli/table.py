"""The command `table`: the results of one run or of several for a paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from cyclopts import Parameter

from xaieval.cli.app import app
from xaieval.cli.loading import load_run
from xaieval.cli.tables import print_text
from xaieval.config.groups import Weights
from xaieval.config.option_types import GroupsOption, Switch, Words
from xaieval.errors import OutputError, UsageError, choose_from

if TYPE_CHECKING:
    from xaieval.evaluation.scores import Scores
    from xaieval.report.result_table import ResultTable

__all__ = ["beside", "check_published", "name_and_network", "table", "written"]

Format = Literal["text", "markdown", "latex", "csv", "html", "excel"]
ENDINGS: dict[str, Format] = {
    ".txt": "text",
    ".md": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".html": "html",
    ".xlsx": "excel",
}


@app.command
def table(
    first: Path,
    /,
    *others: Path,
    format: Format | None = None,
    out: Annotated[Path | None, Parameter(negative=())] = None,
    by: str | None = None,
    layer: Words | None = None,
    method: Words | None = None,
    across_protocols: Switch = False,
    published: str | None = None,
    letters: Annotated[bool | None, Parameter(negative="--no-letters")] = None,
    label: str = "",
    level: float = 0.95,
    groups: GroupsOption = None,
    group_weights: Weights | None = None,
    debug: Switch = False,
) -> None:
    """Print the means of a run with intervals, and letters for what cannot be told apart; or one row for each of several runs.

    Several runs are compared on the images that all of them have, each at its best layer and method by a metric; the intervals
    allow for that choice. Differences between the settings of the runs are listed first.

    Args:
        first: Folder of a run.
        others: Folders of more runs, of other models on the same images.
        format: text, markdown, latex (needs the package booktabs), csv (all numbers unrounded), html, or excel (needs --out).
            Default: as the ending of --out says, or text.
        out: File for the table, such as table.tex, table.md, table.csv, table.html or table.xlsx.
        by: For several runs: the metric that chooses the best layer and method. Default: their first metric.
        layer: For several runs: the layer, or one for each run in order. Default: the best.
        method: For several runs: the method, or one for each run in order. Default: the best.
        across_protocols: Show runs in one table even if their protocols differ.
        published: Published table to put beside one run, such as opti-cam, or opti-cam/ResNet50 to name its network too;
            `xaieval-bench published` lists them.
        letters: Test all pairs of layer and method of one run in each metric. Default: up to 32 of them.
        label: Of the LaTeX table, for references.
        level: Confidence level of the intervals, and 1 minus the family-wise error rate in each column of tests.
        groups: See `GROUPS_HELP`.
        group_weights: What has equal weight in a mean: images or groups. Default: that of the run.
        debug: Show the traceback of an error.
    """
    form = _format(format, out)
    runs = [load_run(folder, groups, group_weights) for folder in (first, *others)]
    of_several: dict[str, Any] = {"by": by, "layer": layer, "method": method}
    if others:
        from xaieval.report import models_table

        of_one = {"letters": letters, "published": published}
        odd = next((name for name, value in of_one.items() if value is not None), None)
        if odd is not None:
            raise UsageError(f"--{odd} goes with one run, and here are {len(runs)}")
        found = models_table(_by_name([first, *others], runs), **of_several, level=level, across_protocols=across_protocols)
    else:
        given = next((name for name, value in of_several.items() if value is not None), None)
        if given is not None:
            raise UsageError(f"--{given} chooses the row of each of several runs, and here is one; give more folders")
        found = runs[0].table(level, letters) if published is None else beside(runs[0], published, level)
    written(found, form, label, out)


def check_published(published: str | None, model: str, methods: Sequence[str], as_json: bool = False) -> None:
    """Refuse a published table that a run cannot be put beside, before anything is measured.

    Args:
        published: NAME or NAME/NETWORK; None if none is wanted.
        model: The name of the run's model.
        methods: The names of its methods.
        as_json: Whether the run prints a JSON document.
    """
    if published is None:
        return

    from xaieval.analysis.published import network_rows, published_table

    name, network = name_and_network(published)
    rows = network_rows(published_table(name), network, model)
    again = list(rows["rerun"].dropna().unique())
    if not again:
        raise UsageError(f"no row of {published} can be measured again; `xaieval-bench published {name}` says why")
    if not set(again) & set(methods):
        raise UsageError(
            f"--published {published} has the methods {', '.join(again)}, and the run none of them; add some by --methods"
        )
    if as_json:
        raise UsageError("--published prints a table beside the results; leave out --json, or take it from 'table' later")


def name_and_network(published: str) -> tuple[str, str | None]:
    """The parts of NAME or NAME/NETWORK."""
    name, _, network = published.partition("/")
    return name, network or None


def beside(run: Scores, published: str, level: float) -> ResultTable:
    """The table of a run with the numbers of a published one, NAME or NAME/NETWORK."""
    from xaieval.report import published_beside

    return published_beside(run, *name_and_network(published), level)


def written(found: ResultTable, form: Format, label: str = "", out: Path | None = None) -> None:
    """Print a table, or write it to a file."""
    if form == "excel":
        if out is None:
            raise UsageError("an Excel file takes --out, such as --out table.xlsx")
        found.to_excel(out)
    else:
        text = {
            "text": lambda: "\n\n".join(filter(None, [str(found), found.caption, found.in_words()])),
            "markdown": found.to_markdown,
            "latex": lambda: found.to_latex(label),
            "csv": lambda: found.to_csv().rstrip(),
            "html": found.to_html,
        }[form]()
        if out is None:
            print(text)
            return
        try:
            out.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write '{out}': {error.strerror or error}; choose another file") from error
    print_text(f"written to {out}")


def _format(given: Format | None, out: Path | None) -> Format:
    """The form of a table.

    Raises:
        UsageError: The file's ending says none.
    """
    if given is not None or out is None:
        return given or "text"
    if out.suffix not in ENDINGS:
        raise UsageError(
            f"a table is written to a file that ends in {', '.join(ENDINGS)}; got '{out}': rename it, or name the form by "
            f"--format, {choose_from(out.suffix.removeprefix('.'), get_args(Format))}"
        )
    return ENDINGS[out.suffix]


def _by_name(folders: list[Path], runs: list[Scores]) -> dict[str, Scores]:
    """The runs by the names of their models, with their folders where these are not different."""
    from xaieval.report.html.provenance import subject_of

    names = [subject_of(run.manifest)[0] for run in runs]
    times, short = Counter(names), Counter(folder.name for folder in folders)
    unique = [
        name if times[name] == 1 else f"{name} ({folder.name if short[folder.name] == 1 else folder})"
        for name, folder in zip(names, folders, strict=True)
    ]
    if len(set(unique)) < len(unique):
        raise UsageError("a folder is given twice; give each run once")
    return dict(zip(unique, runs, strict=True))
