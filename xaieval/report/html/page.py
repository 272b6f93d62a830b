"""A report of a run as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from xaieval.analysis.controls import fooled_metrics
from xaieval.analysis.predictions import IMAGE_COLUMNS, predictions_of
from xaieval.analysis.summary import why_missing
from xaieval.errors import OutputError
from xaieval.report.figures.data import summary_of
from xaieval.report.html.cross_section import cross_section
from xaieval.report.html.curve_charts import curve_charts_of
from xaieval.report.html.explorer import explorer_of
from xaieval.report.html.galleries import galleries_of
from xaieval.report.html.image_choice import methods_to_explore, methods_to_show, pairs_to_show
from xaieval.report.html.matched import matched_of
from xaieval.report.html.overview import best_of, doubts_of, how_sure, size_note, winners_of
from xaieval.report.html.pictures import colour_stops
from xaieval.report.html.pooled import pooled_of
from xaieval.report.html.protocol_text import preset_of, protocol_sentences
from xaieval.report.html.provenance import command_of, facts_of, subject_of, without_folders
from xaieval.report.html.row_table import list_rows
from xaieval.report.html.scatter import scatter_of
from xaieval.report.html.sections import comparison_of, controls_beaten, lines_of, panels_of, selection_of
from xaieval.report.result_table import result_table
from xaieval.results.matched import without_excess
from xaieval.results.metric_display import groups_text, label_of
from xaieval.results.record import RunRecord

if TYPE_CHECKING:
    from xaieval.report.html.thumbnails import Maps

__all__ = ["ReportOptions", "render_report", "write_report"]

MOST_UNREADABLE = 10  # the largest number of unreadable images that are listed
STYLES = ("page.css", "instruments.css", "print.css")
SCRIPTS = ("shared.js", "rows.js", "grid.js", "viewer.js", "scatter.js", "export.js")
NOT_GIVEN = "no maps were kept or given; score with keep_maps=24, or pass them to Scores.to_html as maps="


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report shows in addition to the run itself.

    Attributes:
        maps: Images with their maps (default: those that the run kept).
        why_no_maps: The reason to give if there are no maps.
        methods: Methods whose maps and selected layers are shown (default: the first one that is not a control map).
        classes: Names of the labels.
        other: A run to compare with.
        names: Names of the two runs.
        cross: The result of `xaieval.cross_score`: which part of a difference between models is that of their maps.
        level: Level of intervals and tests, in (0, 1).
        across_protocols: Compare although the runs were measured under different protocols.
        attention: Name the layers that need attention, as FAL does.
        model_classes: Names of the model's classes, if they are not those of the labels.
    """

    maps: Maps | None = None
    why_no_maps: str = NOT_GIVEN
    methods: Sequence[str] = ()
    classes: Sequence[str] = ()
    other: RunRecord | None = None
    names: tuple[str, str] = ("this run", "the other run")
    cross: RunRecord | None = None
    level: float = 0.95
    across_protocols: bool = False
    attention: bool = False
    model_classes: Sequence[str] = ()


def write_report(scores: RunRecord, path: str | Path, options: ReportOptions) -> int:
    """Write a report of a run.

    Args:
        scores: The run (`xaieval.Scores`).
        path: The file.
        options: What to show in addition to the run.

    Returns:
        The size of the file in bytes.

    Raises:
        OutputError: The file cannot be written, or the manifest lists no metrics.
        MetricError: A method is not in the rows, or the runs cannot be compared.
        ProtocolError: The runs were measured under different protocols.
    """
    page = render_report(scores, options).encode()
    try:
        Path(path).write_bytes(page)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}; choose another file") from error
    return len(page)


def render_report(scores: RunRecord, options: ReportOptions) -> str:
    """The report of a run as HTML.

    Args:
        scores: The run (`xaieval.Scores`).
        options: What to show in addition to the run.

    Raises:
        OutputError: The manifest lists no metrics.
        MetricError: A method is not in the rows, or the runs cannot be compared.
        ProtocolError: The runs were measured under different protocols.
    """
    if not scores.metrics:
        raise OutputError("the manifest lists no metrics, so there is nothing to report; xaieval.score writes them")
    style, script = _joined(STYLES), f"(() => {{\n{_joined(SCRIPTS)}}})();\n"
    return (
        _templates()
        .get_template("page.html")
        .render(
            style=Markup(style),  # noqa: S704  # the package's own file
            script=Markup(script),  # noqa: S704  # the package's own file
            style_hash=_csp_hash(style),
            script_hash=_csp_hash(script),
            stops=colour_stops(),
            level=f"{options.level:.0%}",
            names=options.names,
            **_contents(scores, options),
        )
    )


def _joined(names: Sequence[str]) -> str:
    """The package's own files, one after another: a policy that allows one hash allows one script."""
    templates = files("xaieval.report.html") / "templates"
    return "".join((templates / name).read_text(encoding="utf-8") for name in names)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("xaieval.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def breakable(name: Any) -> Markup:
    """A name as HTML that may be broken after a slash.

    Example:
        >>> str(breakable("photos/cat & dog.png"))
        'photos/<wbr>cat &amp; dog.png'
    """
    return escape(name).replace("/", Markup("/<wbr>"))


def _contents(scores: RunRecord, options: ReportOptions) -> dict[str, Any]:
    """The variables of the template."""
    return {
        **_subject(scores),
        **_overview(scores, options),
        **_maps(scores, options),
        "directions": {metric["name"]: metric["higher_is_better"] for metric in scores.metrics},
        "pooled": pooled_of(scores, summary_of(scores, options.level), options.level),
        "matched": matched_of(scores, options.level),
        "curves": curve_charts_of(scores),
        "comparison": options.other
        and comparison_of(scores, options.other, options.names, options.level, options.across_protocols),
        "compared_with": options.other and " on ".join(filter(None, subject_of(options.other.manifest))),
        "cross": options.cross and cross_section(options.cross, options.level),
        **_origin(scores, options),
    }


def _subject(scores: RunRecord) -> dict[str, Any]:
    """What was scored, and what went wrong."""
    rows, manifest = scores.sample.rows, scores.manifest
    model, data = subject_of(manifest)
    unreadable = manifest.get("unreadable", [])
    return {
        "model": model,
        "data": data,
        "images": scores.n_images,
        "groups": "" if scores.n_groups is None else groups_text(scores.n_groups, scores.group_weights),
        "layers": rows.loc[~rows["method"].isin(scores.controls), "layer"].nunique(),
        "methods": rows["method"].nunique() - len(scores.controls),
        "controls": scores.controls,
        "complete": scores.complete,
        "stop": (manifest.get("stop") or {}).get("reason", ""),
        "predictions": predictions_of(scores.images(IMAGE_COLUMNS), manifest.get("classes")),
        "statuses": scores.notable_statuses,
        "unreadable": [one | {"reason": without_folders(one["reason"])} for one in unreadable[:MOST_UNREADABLE]],
        "more_unreadable": max(0, len(unreadable) - MOST_UNREADABLE),
    }


def _overview(scores: RunRecord, options: ReportOptions) -> dict[str, Any]:
    """What came out: the best, how sure that is, what to doubt, and the table with its charts."""
    level, weights = options.level, scores.group_weights
    summary, table = summary_of(scores, level), result_table(scores, level)
    fooled = fooled_metrics(scores.sample.rows, scores.metrics, scores.controls, weights, level, scores.seed)
    beaten = controls_beaten(scores, level)
    best = best_of(scores, table, fooled)
    winners = winners_of(best, beaten)
    methods = methods_to_show(scores, options.methods)
    return {
        "best": best,
        "winners": winners,
        "sure": how_sure(best, f"{level:.0%}") if best else "",
        "size": size_note(winners, summary, scores.controls),
        "doubts": doubts_of(scores, summary, level),
        "headings": [_heading(metric, fooled) for metric in without_excess(scores.metrics)],
        "lines": lines_of(scores, summary),
        "why_no_interval": why_missing(summary, [metric["name"] for metric in scores.metrics], level, weights),
        "panels": panels_of(scores, summary),
        "scatter": scatter_of(scores, summary),
        "exports": {"csv": table.to_csv(), "tex": table.to_latex(), "md": table.to_markdown()},
        "beaten": beaten,
        "selection": selection_of(scores, methods, level) if options.attention else [],
    }


def _maps(scores: RunRecord, options: ReportOptions) -> dict[str, Any]:
    """The maps, and the rows, which contain those of all images that are shown."""
    rows, methods = scores.sample.rows, methods_to_show(scores, options.methods)
    maps = scores.maps if options.maps is None else options.maps
    galleries = galleries_of(scores, maps, methods, without_folders(options.why_no_maps))
    known = set() if maps is None or not galleries.ids else set(maps.number) & set(rows["image_id"])
    pairs = pairs_to_show(scores, methods_to_explore(scores, options.methods))
    explorer = explorer_of(maps, [*galleries.ids, *sorted(known)] if known else [], pairs)
    own = options.classes if len(options.classes) == scores.manifest.get("classes") else ()  # else labels of another space
    classes = options.model_classes or own
    listing = list_rows(
        rows, scores.metrics, scores.controls, options.classes, scores.seed, shown=explorer.ids, model_classes=classes
    )
    return {
        "galleries": galleries,
        "strips": maps is not None and maps.are_volumes,
        "explorer": explorer,
        "listing": replace(listing, all_images=scores.n_images, rows=scores.n_rows),
    }


def _origin(scores: RunRecord, options: ReportOptions) -> dict[str, Any]:
    """The protocol and the origin of the numbers."""
    manifest = scores.manifest
    choices = {name.removeprefix("protocol."): value for name, value in manifest.get("run", {}).items() if "protocol." in name}
    return {
        "protocol": protocol_sentences(choices) if choices else [],
        "preset": preset_of(choices) if choices else None,
        "command": command_of(manifest),
        "facts": facts_of(manifest),
        "other_facts": facts_of(options.other.manifest) if options.other else [],
    }


def _heading(metric: Mapping[str, Any], fooled: Mapping[str, str]) -> dict[str, Any]:
    """What the heading of a metric's column says."""
    return {"label": label_of(metric), "higher": metric["higher_is_better"], "fooled": fooled.get(metric["name"], "")}


def _csp_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy allows one script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
