"""The command `report`: a run as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import app
from xaieval.cli.loading import load_run
from xaieval.cli.remake_maps import RemadeMaps, remake_maps
from xaieval.cli.tables import print_text
from xaieval.config.groups import Weights
from xaieval.config.option_types import GroupsOption, Json, Switch, Words

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
    groups: GroupsOption = None,
    group_weights: Weights | None = None,
    as_json: Json = False,
    debug: Switch = False,
) -> dict[str, Any] | None:
    """Write a run as one HTML file: results, warnings, maps, rows and protocol. With a second run, compare the two.

    Maps are computed again with the model and data that the run's manifest names.

    Args:
        folder: Folder of a run.
        other: Folder of another run on the same images, to compare with.
        out: File for the page. Default: report.html in the run's folder.
        maps: Show maps of the best, the worst and random images; --no-maps loads neither model nor data.
        methods: Methods whose maps and selected layers are shown. Default: the first one that is not a control.
        level: Confidence level of the intervals, and 1 minus the family-wise error rate in each table of tests.
        device: Device for the maps. Default: that of the run.
        import_code: Allow maps of a model or data that is a package.module:factory, whose code is imported and run.
        across_protocols: Compare runs even if their protocols differ.
        groups: See `GROUPS_HELP`.
        group_weights: What counts the same in a mean, images or groups. Default: that of the run.
        as_json: Print one JSON document instead of text.
        debug: Show the traceback of an error.
    """
    from xaieval.analysis.stats.intervals import check_level
    from xaieval.report import ReportOptions, write_report

    check_level(level)
    scores = load_run(folder, groups, group_weights)
    remade = RemadeMaps(reason="--no-maps was given")
    if maps:
        remade = remake_maps(scores, methods, device, import_code)
    page = out or folder / PAGE
    wanted = ReportOptions(
        maps=remade.maps,
        why_no_maps=remade.reason,
        methods=methods,
        classes=remade.classes,
        other=None if other is None else load_run(other, groups, group_weights),
        names=_names(folder, other),
        level=level,
        across_protocols=across_protocols,
    )
    size = write_report(scores, page, wanted)
    if as_json:
        return {"page": str(page), "bytes": size, "no_maps": remade.reason or None}
    if maps and remade.reason:
        print_text(f"no maps: {remade.reason}")
    print_text(f"written to {page} ({size / 1e6:.1f} MB)")
    return None


def _names(folder: Path, other: Path | None) -> tuple[str, str]:
    """Names of the two runs: the names of their folders, or the paths if these names are equal."""
    return (str(folder), str(other)) if other is None or folder.name == other.name else (folder.name, other.name)
