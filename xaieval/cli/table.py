"""The command `table`: the results of a run for a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from xaieval.cli.app import app
from xaieval.cli.loading import load_run
from xaieval.config.groups import Weights
from xaieval.config.option_types import GroupsOption, Switch

__all__ = ["table"]


@app.command
def table(
    folder: Path,
    /,
    *,
    format: Literal["text", "markdown", "latex", "csv"] = "text",
    letters: Annotated[bool | None, Parameter(negative="--no-letters")] = None,
    label: str = "",
    level: float = 0.95,
    groups: GroupsOption = None,
    group_weights: Weights | None = None,
    debug: Switch = False,
) -> None:
    """Print the means of a run with intervals, and letters for what cannot be told apart, as text, Markdown, LaTeX or CSV.

    Args:
        folder: Folder of a run.
        format: latex needs the package booktabs; csv has all numbers unrounded.
        letters: Test all pairs of layer and method in each metric. Default: up to 32 of them.
        label: Of the LaTeX table, for references.
        level: Confidence level of the intervals, and 1 minus the family-wise error rate in each column of tests.
        groups: See `GROUPS_HELP`.
        group_weights: What counts the same in a mean, images or groups. Default: that of the run.
        debug: Show the traceback of an error.
    """
    found = load_run(folder, groups, group_weights).table(level, letters)
    written = {
        "text": lambda: f"{found}\n\n{found.caption}",
        "markdown": found.to_markdown,
        "latex": lambda: found.to_latex(label),
        "csv": lambda: found.to_csv().rstrip(),
    }
    print(written[format]())
