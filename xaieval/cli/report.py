"""The command `report`: a run as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from xaieval.cli.app import app
from xaieval.cli.loading import load_run
from xaieval.cli.remake_maps import RemadeMaps, kept_maps, remake_maps
from xaieval.cli.tables import print_text
from xaieval.config.groups import Weights
from xaieval.config.option_types import GroupsOption, Json, Switch, Words
from xaieval.errors import UsageError

if TYPE_CHECKING:
    from xaieval.evaluation.cross_result import CrossScores
    from xaieval.evaluation.scores import Scores

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
    cross: Annotated[Path | None, Parameter(negative=())] = None,
    attention: Switch = False,
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

    Maps are those that 'score --keep-maps' kept, or else computed again with the model and data that the run's manifest names.

    Args:
        folder: Folder of a run.
        other: Folder of another run on the same images, to compare with.
        out: File for the page. Default: report.html in the run's folder.
        maps: Show maps of images: of those that the run kept, or else of the best, the worst and random ones. --no-maps shows
            none, and loads neither model nor data.
        methods: Methods whose maps and selected layers are shown. Default: all but controls.
        cross: Folder that 'xaieval-bench cross' wrote for the two runs: adds the table of maps by models.
        attention: Name the layers that need attention, as FAL does.
        level: Confidence level of the intervals, and 1 minus the family-wise error rate in each table of tests.
        device: Device for the maps. Default: that of the run.
        import_code: Allow maps of a model or data that is a package.module:factory, whose code is imported and run.
        across_protocols: Compare runs even if their protocols differ.
        groups: See `GROUPS_HELP`.
        group_weights: What has equal weight in a mean: images or groups. Default: that of the run.
        as_json: Print one JSON document instead of text.
        debug: Show the traceback of an error.
    """
    from xaieval.analysis.stats.intervals import check_level
    from xaieval.report import ReportOptions, write_report

    check_level(level)
    scores = load_run(folder, groups, group_weights)
    compared = None if other is None else load_run(other, groups, group_weights)
    swapped = None if cross is None else _load_cross(cross, [scores, *([compared] if compared else [])])
    remade = RemadeMaps(reason="--no-maps was given")
    if maps:
        remade = kept_maps(scores, folder) or remake_maps(scores, methods, device, import_code)
    page = out or folder / PAGE
    wanted = ReportOptions(
        maps=remade.maps,
        why_no_maps=remade.reason,
        methods=methods,
        classes=remade.classes,
        model_classes=remade.model_classes,
        other=compared,
        names=_names(folder, other),
        cross=swapped,
        attention=attention,
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


def _load_cross(folder: Path, runs: Sequence[Scores]) -> CrossScores:
    """The cross scores of these runs' models.

    Raises:
        OutputError: The folder holds no cross scores.
        UsageError: They are those of other models.
    """
    from xaieval.evaluation.cross_result import CrossScores

    cross = CrossScores.load(folder)
    known = {model.get("fingerprint") for model in cross.manifest.get("models", {}).values()}
    strange = [run.manifest.get("model", {}).get("class") for run in runs if _fingerprint(run) not in known]
    if strange:
        models = ", ".join(cross.models)
        raise UsageError(f"'{folder}' has the cross scores of other models ({models}), not those of {' and '.join(strange)}")
    return cross


def _fingerprint(run: Scores) -> str | None:
    fingerprint: str | None = run.manifest.get("model", {}).get("fingerprint")
    return fingerprint


def _names(folder: Path, other: Path | None) -> tuple[str, str]:
    """Names of the two runs: as many of the last names of their folders as it takes to tell them apart."""
    one, two = folder.resolve().parts, (other or folder).resolve().parts
    count = next((count for count in range(1, max(len(one), len(two))) if one[-count:] != two[-count:]), 1)
    return "/".join(one[-count:]), "/".join(two[-count:])
