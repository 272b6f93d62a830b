"""The results in a report: the table, controls, selected layers, the comparison of two runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from xaieval.analysis.comparability import protocols_of
from xaieval.analysis.comparison import compare
from xaieval.analysis.controls import compare_with_controls, rivals
from xaieval.analysis.selection import select_layers
from xaieval.errors import MetricError
from xaieval.report.figures.data import DIRECTIONS, Pair, pairs_of
from xaieval.report.html.formatting import format_ends, format_interval, format_number
from xaieval.report.html.interval_chart import Interval, Panel, draw_panel
from xaieval.results.matched import without_excess
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.record import RunRecord

__all__ = [
    "Cell",
    "Comparison",
    "Line",
    "SelectedLayers",
    "best_pair",
    "comparison_of",
    "controls_beaten",
    "lines_of",
    "panels_of",
    "selection_of",
    "title_of",
]

MOST_PANELS = 6  # the largest number of metrics with a chart
ATTENTION = ("increase_in_confidence", "average_drop")  # the metrics that select layers, if the run has them

Metric = Mapping[str, Any]


class Cell(NamedTuple):
    """A mean and its interval as text, and whether it is the best in its column."""

    mean: str
    interval: str
    best: bool


class Line(NamedTuple):
    """A row of the table of results."""

    layer: str
    method: str
    control: bool
    cells: list[Cell]
    area: str
    images: int
    failed: int


class SelectedLayers(NamedTuple):
    """The layers that need attention by a method, worst first, and the reasons: a conclusion, the tests, and their settings."""

    method: str
    layers: list[str]
    lines: list[str]


class Comparison(NamedTuple):
    """The comparison of two runs; the notes say what took part, and in what the runs differ."""

    lines: list[dict[str, Any]]
    panels: list[Panel]
    verdict: str
    differences: list[tuple[str, str, str]]
    notes: list[str]


def lines_of(scores: RunRecord, summary: pd.DataFrame, metrics: Sequence[Metric] | None = None) -> list[Line]:
    """The rows of the table of results, of the metrics of the run or of others that the summary has."""
    metrics, controls = without_excess(scores.metrics) if metrics is None else metrics, scores.controls
    best = {metric["name"]: best_pair(summary, metric, controls) for metric in metrics}
    return [
        Line(
            layer=pair[0],
            method=pair[1],
            control=pair[1] in controls,
            cells=[_cell(row, metric, best[metric["name"]] == pair) for metric in metrics],
            area=format_number(100 * row.get("mask_area", float("nan")), 1),
            images=int(row["n_images"]),
            failed=int(row["n_failed"]),
        )
        for pair, row in zip(summary.index, summary.to_dict("records"), strict=True)
    ]


def panels_of(scores: RunRecord, summary: pd.DataFrame, metrics: Sequence[Metric] | None = None) -> list[Panel]:
    """A chart of intervals for each metric, as in `lines_of`. Controls, which would set its scale, are only in the table."""
    own = summary.loc[[pair[1] not in scores.controls for pair in summary.index]]
    shown = own if len(own) else summary
    rows = list(zip(shown.index, shown.to_dict("records"), strict=True))
    return [
        draw_panel(
            title_of(metric),
            DIRECTIONS[metric["higher_is_better"]],
            [_interval(layer, method, row, metric, method in scores.controls) for (layer, method), row in rows],
            "%" in label_of(metric),
        )
        for metric in (without_excess(scores.metrics) if metrics is None else metrics)[:MOST_PANELS]
    ]


def controls_beaten(scores: RunRecord, level: float) -> dict[Pair, list[tuple[str, list[str]]]]:
    """Per layer and method, for each metric that has a direction: how many controls it beats, and which it does not beat."""
    if not scores.sample.rows["method"].isin(rivals(scores.controls)).any():
        return {}
    table = compare_with_controls(scores.sample.rows, scores.metrics, scores.controls, level, scores.seed, scores.group_weights)
    beaten: dict[Pair, list[tuple[str, list[str]]]] = {}
    groups: Any = table.groupby(["layer", "method", "metric"], sort=False)
    for (layer, method, _), tests in groups:
        missed = list(tests.loc[~tests["beats"], "control"])
        beaten.setdefault((layer, method), []).append((f"{len(tests) - len(missed)} of {len(tests)}", missed))
    return beaten


def selection_of(scores: RunRecord, methods: Sequence[str], level: float) -> list[SelectedLayers]:
    """For each method that has several layers, the layers that need attention, and the reasons."""
    counts = Counter(method for _, method in pairs_of(scores.sample.rows))
    names = [metric["name"] for metric in scores.metrics if metric["higher_is_better"] is not None]
    by = [name for name in ATTENTION if name in names] or names[:1]
    several = [method for method in methods if counts[method] > 1]
    return [_selected(scores, method, by, level) for method in several if by]


def _selected(scores: RunRecord, method: str, by: Sequence[str], level: float) -> SelectedLayers:
    """The layers that need attention by one method, or the reason why the tests cannot be made."""
    try:
        selection = select_layers(
            scores.sample.rows, scores.metrics, None, by, method, level, scores.seed, scores.group_weights
        )
    except MetricError as error:  # no image has rows that count at every layer
        return SelectedLayers(method, [], [str(error)])
    return SelectedLayers(method, list(selection), [line.strip() for line in repr(selection).split("\n")])


def comparison_of(
    scores: RunRecord, other: RunRecord, names: tuple[str, str], level: float, across_protocols: bool
) -> Comparison:
    """Compare two runs, paired by image.

    Args:
        scores: A run.
        other: A run on the same images.
        names: Names of the two runs.
        level: Level of the intervals, and 1 minus the probability of even one false positive, in (0, 1).
        across_protocols: Compare although the runs were measured under different protocols.

    Raises:
        MetricError: The runs have no image, layer and method, or metric in common.
        ProtocolError: They were measured under different protocols.
    """
    table = compare(scores, other, level=level, across_protocols=across_protocols, runs=names)
    notes, table = table.attrs["notes"], table.reset_index()
    metrics = {metric["name"]: metric for metric in scores.metrics}
    better = dict(zip(("this", "other"), names, strict=True))
    lines = [_compared(row, metrics[row["metric"]], better) for row in table.to_dict("records")]
    panels = []
    for name, part in table.groupby("metric", sort=False):
        metric = metrics[str(name)]
        intervals = [_difference(row, decimals_of(metric)) for row in part.to_dict("records")]
        panels.append(draw_panel(title_of(metric), f"difference; {DIRECTIONS[metric['higher_is_better']]}", intervals, False))
    wins = {name: int((table["better"] == which).sum()) for which, name in better.items()}
    better_in = " and ".join(f"{count} are significantly better in {name}" for name, count in wins.items())
    verdict = f"Of {len(table)} comparisons, {better_in}; the others are not significant."
    if not any(wins.values()):
        verdict = f"None of the {len(table)} comparisons is significant."
    one, two = protocols_of(scores, other)
    if one != two:
        verdict = "The two protocols differ, so no run is called better."
    return Comparison(lines, panels, verdict, _differences(scores, other), notes)


def _interval(layer: str, method: str, row: Mapping[Any, Any], metric: Metric, muted: bool) -> Interval:
    """A row of a chart of means."""
    mean, low, high = (row[f"{metric['name']}{end}"] for end in ("", "_low", "_high"))
    return Interval(layer, method, mean, low, high, format_interval(mean, low, high, decimals_of(metric)), muted)


def _compared(row: Mapping[Any, Any], metric: Metric, better: Mapping[str, str]) -> dict[str, Any]:
    """A row of the table of the comparison, as text."""
    digits = decimals_of(metric)
    return {
        "layer": row["layer"],
        "method": row["method"],
        "metric": label_of(metric),
        "mean": format_number(row["mean"], digits),
        "other": format_number(row["other_mean"], digits),
        "difference": _difference(row, digits).text,
        "p": f"{row['p_holm']:.2g}",
        "images": int(row["n_images"]),
        "better": better.get(row["better"], ""),
    }


def _difference(row: Mapping[Any, Any], digits: int) -> Interval:
    """A row of a chart of differences."""
    ends = row["difference"], row["low"], row["high"]
    return Interval(row["layer"], row["method"], *ends, format_interval(*ends, digits, signed=True), not row["better"])


def _differences(scores: RunRecord, other: RunRecord) -> list[tuple[str, str, str]]:
    """The settings in which two runs differ: name, value in this run, value in the other."""
    one, two = (run.manifest.get("run", {}) for run in (scores, other))
    return [(name, str(one.get(name)), str(two.get(name))) for name in {**one, **two} if one.get(name) != two.get(name)]


def title_of(metric: Metric) -> str:
    """The name of a metric with its label, such as "average drop (AD %)"."""
    name = str(metric["name"]).replace("_", " ")
    label = label_of(metric)
    return name if label.casefold() == name.casefold() else f"{name} ({label})"


def _cell(row: Mapping[Any, Any], metric: Metric, best: bool) -> Cell:
    """A cell of the table of results."""
    name, digits = metric["name"], decimals_of(metric)
    ends = format_ends(row[f"{name}_low"], row[f"{name}_high"], digits)
    return Cell(format_number(row[name], digits), ends, best)


def best_pair(summary: pd.DataFrame, metric: Metric, controls: Sequence[str]) -> Pair | None:
    """The layer and method with the best mean, without controls."""
    higher = metric["higher_is_better"]
    own: Any = summary.loc[[pair[1] not in controls for pair in summary.index], metric["name"]].dropna()
    if higher is None or own.empty:
        return None
    pair: Pair = own.idxmax() if higher else own.idxmin()
    return pair
