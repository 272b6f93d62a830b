"""The command `agreement`: rank correlations between the metrics of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import app
from xaieval.cli.json_output import records
from xaieval.cli.tables import print_table, print_text
from xaieval.config.option_types import Json, Switch, Words
from xaieval.errors import OutputError

if TYPE_CHECKING:
    from xaieval.analysis.agreement import Agreement

__all__ = ["agreement"]

TABLE = ".csv"  # the suffix of a table; others are those of figures


@app.command
def agreement(
    folder: Path,
    /,
    *,
    metrics: Words | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    out: Annotated[Path | None, Parameter(negative=())] = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """How far the metrics of a run agree on which layers and methods are better.

    Args:
        folder: Folder of a run.
        metrics: Metrics to correlate. Default: all for which higher or lower is better.
        level: Confidence level of the intervals.
        resamples: Number of bootstrap samples of the images.
        out: File for the table (.csv), or for a figure of the matrix (.png, .pdf, .svg).
        as_json: Print one JSON document instead of the table.
        debug: Show the traceback of an error.
    """
    from xaieval.evaluation.scores import Scores

    found = Scores.load(folder).agreement(metrics, level=level, resamples=resamples)
    if out is not None:
        _write(found, out)
    if as_json:
        counts = {"n_pairs": found.n_pairs, "n_images": found.n_images, "n_groups": found.n_groups}
        return {"folder": str(folder), "level": level, **counts, "agreement": records(found.table)}
    _print(found)
    if out is not None:
        print_text(f"written to {out}")
    return None


def _write(found: Agreement, out: Path) -> None:
    from xaieval.report import agreement_figure, save_figure

    try:
        if out.suffix.lower() == TABLE:
            found.table.to_csv(out, index=False)
        else:
            save_figure(agreement_figure(found), out, dpi=150)
    except (OSError, ValueError) as error:  # matplotlib's error for an unknown suffix is a ValueError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OutputError(f"cannot write '{out}': {reason}; choose another file, such as agreement.csv or .png") from error


def _print(found: Agreement) -> None:
    """Print the correlations of all pairs of metrics, the highest first."""
    from rich.table import Table

    from xaieval.results.metric_display import interval_text

    shown = Table("metric", "other", box=None, header_style="bold")
    shown.add_column(f"rank correlation [{found.level:.0%} interval]", justify="right")
    ordered = found.table.sort_values("correlation", ascending=False, kind="stable")
    for row in ordered.to_dict("records"):
        ends = interval_text(row["low"], row["high"], "+.2f")
        number = "-" if row["correlation"] != row["correlation"] else f"{row['correlation']:+.2f}"  # NaN
        shown.add_row(found.labels[row["metric"]], found.labels[row["other"]], f"{number} {ends}")
    print_text(found.title)
    print_table(shown, names=2)
