"""The command that writes a run as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import app
from xaieval.cli.remake_maps import Remade, remake_maps
from xaieval.cli.tables import say
from xaieval.config.options import Json, Switch, Words

__all__ = ["report"]

PAGE = "report.html"


@app.command
def report(
    folder: Path,
    other: Annotated[Path | None, Parameter(negative=())] = None,
    /,
    *,
    out: Annotated[Path | None, Parameter(negative=())] = None,
    maps: bool = True,
    methods: Words = (),
    level: float = 0.95,
    device: str | None = None,
    import_code: Switch = False,
    across_protocols: Switch = False,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Write a run as one HTML file: results, reasons for doubt, maps, rows, protocol. With a second run, compare the two.

    Maps are made again, by the model and data that the run's manifest names.

    Args:
        folder: Folder of a run.
        other: Folder of another run on the same images, to compare with.
        out: File for the page; report.html in the run's folder unless told.
        maps: Show maps of the best, the worst and random images; --no-maps loads neither model nor data.
        methods: Whose maps and selected layers are shown; the first one that is no control map unless told.
        level: Of the intervals, and 1 minus the probability of a false verdict in each table of tests.
        device: Where maps are made; as in the run unless told.
        import_code: Make maps although the manifest names a package.module:factory, whose code is imported then.
        across_protocols: Compare although the runs were measured under other protocols.
        as_json: Print one JSON document in place of what was written.
        debug: Show the traceback of an error.
    """
    from xaieval.analysis.stats.intervals import check_level
    from xaieval.evaluation.scores import Scores
    from xaieval.report import ReportOptions, write_report

    check_level(level)
    scores = Scores.load(folder)
    remade = Remade(why="the report was asked for without them (--no-maps)")
    if maps:
        remade = remake_maps(scores, methods, device, import_code)
    page = out or folder / PAGE
    wanted = ReportOptions(
        maps=remade.maps,
        why_no_maps=remade.why,
        methods=methods,
        classes=remade.classes,
        other=None if other is None else Scores.load(other),
        names=_names(folder, other),
        level=level,
        across_protocols=across_protocols,
    )
    size = write_report(scores, page, wanted)
    if as_json:
        return {"page": str(page), "bytes": size, "no_maps": remade.why or None}
    if maps and remade.why:
        say(f"no maps: {remade.why}")
    say(f"written to {page} ({size / 1e6:.1f} MB)")
    return None


def _names(folder: Path, other: Path | None) -> tuple[str, str]:
    """What the two runs are called: by their folders, if these have other names."""
    return (str(folder), str(other)) if other is None or folder.name == other.name else (folder.name, other.name)
