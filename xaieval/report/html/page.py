"""A report of a run as one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xaieval.analysis.controls import fooled_metrics
from xaieval.analysis.predictions import IMAGE_COLUMNS, predictions_of
from xaieval.analysis.summary import why_missing
from xaieval.errors import OutputError
from xaieval.report.figures.data import Pair, rows_of, summary_of
from xaieval.report.html.cross_section import cross_section
from xaieval.report.html.formatting import format_number
from xaieval.report.html.image_choice import MOST_PAIRS, ImageChoice, choose_images, methods_to_show, pairs_to_show
from xaieval.report.html.matched import matched_of
from xaieval.report.html.pooled import pooled_of
from xaieval.report.html.protocol_text import preset_of, protocol_sentences
from xaieval.report.html.provenance import command_of, facts_of, subject_of
from xaieval.report.html.row_table import Listing, list_rows
from xaieval.report.html.sections import (
    best_of,
    comparison_of,
    controls_beaten,
    doubts_of,
    lines_of,
    panels_of,
    selection_of,
)
from xaieval.report.html.thumbnails import Maps, colour_stops, data_url
from xaieval.results.matched import without_excess
from xaieval.results.metric_display import decimals_of, groups_text, label_of
from xaieval.results.record import RunRecord

__all__ = ["ReportOptions", "render_report", "write_report"]

MOST_UNREADABLE = 10  # the largest number of unreadable images that are listed
NOT_GIVEN = "no maps were given; pass them to Scores.to_html as maps="


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report shows in addition to the run itself.

    Attributes:
        maps: Images with their maps (default: no maps).
        why_no_maps: The reason to give if there are no maps.
        methods: Methods whose maps and selected layers are shown (default: the first one that is not a control map).
        classes: Names of the labels.
        other: A run to compare with.
        names: Names of the two runs.
        cross: The result of `xaieval.cross_score`: which part of a difference between models is that of their maps.
        level: Level of intervals and tests, in (0, 1).
        across_protocols: Compare although the runs were measured under different protocols.
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


class Picture(NamedTuple):
    """An image, its map over it, and the text below them."""

    image_id: str
    image: str
    overlay: str
    value: str
    confidence: str


class Gallery(NamedTuple):
    """The pictures of a layer and method, by kind: best, worst, at random."""

    layer: str
    method: str
    kinds: list[tuple[str, list[Picture]]]


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
    templates = files("xaieval.report.html") / "templates"
    style, script = ((templates / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
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


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("xaieval.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _contents(scores: RunRecord, options: ReportOptions) -> dict[str, Any]:
    """The variables of the template."""
    rows, manifest, level = scores.sample.rows, scores.manifest, options.level
    summary = summary_of(scores, level)
    methods = methods_to_show(scores, options.methods)
    model, data = subject_of(manifest)
    choices = {name.removeprefix("protocol."): value for name, value in manifest.get("run", {}).items() if "protocol." in name}
    unreadable = manifest.get("unreadable", [])
    fooled = fooled_metrics(rows, scores.metrics, scores.controls, scores.group_weights, level, scores.seed)
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
        "metrics": [_heading(metric, fooled) for metric in without_excess(scores.metrics)],
        "lines": lines_of(scores, summary),
        "why_no_interval": why_missing(summary, [metric["name"] for metric in scores.metrics], level, scores.group_weights),
        "panels": panels_of(scores, summary),
        "best": best_of(scores, summary, level),
        "doubts": doubts_of(scores, summary, level),
        "predictions": str(predictions_of(scores.images(IMAGE_COLUMNS), scores.manifest.get("classes"))),
        "statuses": scores.statuses,
        "unreadable": unreadable[:MOST_UNREADABLE],
        "more_unreadable": max(0, len(unreadable) - MOST_UNREADABLE),
        "beaten": controls_beaten(scores, level),
        "pooled": pooled_of(scores, summary, level),
        "matched": matched_of(scores, level),
        "selection": selection_of(scores, methods, level),
        "comparison": options.other and comparison_of(scores, options.other, options.names, level, options.across_protocols),
        "cross": options.cross and cross_section(options.cross, level),
        **_pictures(scores, options, methods),
        "listing": _listing(scores, options),
        "protocol": protocol_sentences(choices) if choices else [],
        "preset": preset_of(choices) if choices else None,
        "command": command_of(manifest),
        "facts": facts_of(manifest),
        "other_facts": facts_of(options.other.manifest) if options.other else [],
    }


def _listing(scores: RunRecord, options: ReportOptions) -> Listing:
    """The rows of the page, with the numbers of images and rows of the whole run."""
    listing = list_rows(scores.sample.rows, scores.metrics, scores.controls, options.classes, scores.seed)
    return replace(listing, all_images=scores.n_images, rows=scores.n_rows)


def _heading(metric: Mapping[str, Any], fooled: Mapping[str, str]) -> dict[str, Any]:
    """What the heading of a metric's column says."""
    return {"label": label_of(metric), "higher": metric["higher_is_better"], "fooled": fooled.get(metric["name"], "")}


def _pictures(scores: RunRecord, options: ReportOptions, methods: Sequence[str]) -> dict[str, Any]:
    """The variables of the template that concern maps."""
    maps, pairs = options.maps, pairs_to_show(scores, methods)
    variables: dict[str, Any] = {
        "galleries": [],
        "strips": maps is not None and maps.are_volumes,
        "why_no_maps": options.why_no_maps,
        "chosen_by": "",
        "among": 0,
        "pairs_left": 0,
    }
    if maps is None:
        return variables
    pairs = [pair for pair in pairs if pair[0] in maps.maps.get(pair[1], {})]
    choice = choose_images(scores, pairs[:MOST_PAIRS])
    among = 0
    if choice is not None and not set(choice.ids) <= set(maps.number):
        choice = choose_images(scores, pairs[:MOST_PAIRS], among=maps.number)
        among = len(set(maps.number) & set(scores.sample.rows["image_id"]))
    if choice is None or not choice.ids:
        return variables | {"why_no_maps": "none of the given maps belongs to an image, layer and method that has a value"}
    return variables | {
        "galleries": [_gallery(scores, maps, choice, pair) for pair in pairs[:MOST_PAIRS]],
        "chosen_by": label_of(choice.metric),
        "among": among,
        "pairs_left": max(0, len(pairs) - MOST_PAIRS),
    }


def _gallery(scores: RunRecord, maps: Maps, choice: ImageChoice, pair: Pair) -> Gallery:
    """The pictures of a layer and method."""
    layer, method = pair
    rows = rows_of(scores.sample.rows, pair).set_index("image_id")
    kinds = (("Best", choice.best[pair]), ("Worst", choice.worst[pair]), ("At random", choice.others))
    return Gallery(
        layer, method, [(kind, [_picture(maps, choice, rows, pair, one) for one in ids]) for kind, ids in kinds if ids]
    )


def _picture(maps: Maps, choice: ImageChoice, rows: Any, pair: Pair, image_id: str) -> Picture:
    """An image with its map and its scores."""
    place, row = maps.number[image_id], rows.loc[image_id]
    columns = [name for name in ("confidence", "masked_confidence") if name in rows and rows[name].notna().any()]
    return Picture(
        image_id=image_id,
        image=data_url(maps.picture(place)),
        overlay=data_url(maps.map_over(place, *pair)),
        value=f"{label_of(choice.metric)} {format_number(row[choice.metric['name']], decimals_of(choice.metric))}",
        confidence=" \N{RIGHTWARDS ARROW} ".join(format_number(row[name], 2) for name in columns),
    )


def _csp_hash(text: str) -> str:
    """The hash by which a Content-Security-Policy allows one script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
