"""What came out of a run, as the report shows it: the table, the best, reasons for doubt, the selection, the comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from xaieval.analysis.comparison import compare
from xaieval.analysis.controls import compare_with_controls
from xaieval.analysis.ranking import Over, rank
from xaieval.analysis.selection import select_layers
from xaieval.analysis.warnings import find_doubts
from xaieval.errors import MetricError
from xaieval.report.figures.data import DIRECTIONS, Pair, pairs_of
from xaieval.report.html.formatting import format_interval, shown
from xaieval.report.html.interval_chart import Interval, Panel, draw_panel
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.record import RunRecord
from xaieval.results.rows import COUNTED, NO_LAYER

__all__ = [
    "Best",
    "Cell",
    "Comparison",
    "Line",
    "SelectedLayers",
    "best_of",
    "comparison_of",
    "controls_beaten",
    "doubts_of",
    "lines_of",
    "panels_of",
    "selection_of",
]

FEW = 50  # images, below which intervals of skewed values hold the mean too rarely (benchmarks/coverage)
MOST_RANKED = 8  # layers and methods that are tested against each other
MOST_PANELS = 6  # metrics that get a chart
ATTENTION = ("increase_in_confidence", "average_drop")  # what layers are selected by, where the run has it

Metric = Mapping[str, Any]


class Cell(NamedTuple):
    """A mean and its interval as text, and whether it is the best of its column."""

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


class Best(NamedTuple):
    """The best layer and method in a metric.

    Attributes:
        metric: its label.
        way: what is better.
        value: its mean.
        interval: around it.
        layer: where.
        method: by what.
        ties: those that cannot be told apart from it; None where that was not tested.
    """

    metric: str
    way: str
    value: str
    interval: str
    layer: str
    method: str
    ties: list[str] | None


class SelectedLayers(NamedTuple):
    """The layers of a method that need attention, worst first, and the reasons: a verdict, tests, and how they were made."""

    method: str
    layers: list[str]
    lines: list[str]


class Comparison(NamedTuple):
    """Two runs beside each other."""

    lines: list[dict[str, Any]]
    panels: list[Panel]
    verdict: str
    differences: list[tuple[str, str, str]]


def lines_of(scores: RunRecord, summary: pd.DataFrame) -> list[Line]:
    """The summary as text."""
    metrics, controls = scores.metrics, scores.controls
    best = {metric["name"]: _best_pair(summary, metric, controls) for metric in metrics}
    areas = _areas(scores.rows)
    return [
        Line(
            layer=pair[0],
            method=pair[1],
            control=pair[1] in controls,
            cells=[_cell(row, metric, best[metric["name"]] == pair) for metric in metrics],
            area=shown(100 * areas.get(pair, float("nan")), 1),
            images=int(row["n_images"]),
            failed=int(row["n_failed"]),
        )
        for pair, row in zip(summary.index, summary.to_dict("records"), strict=True)
    ]


def panels_of(scores: RunRecord, summary: pd.DataFrame) -> list[Panel]:
    """A chart of intervals for each metric."""
    controls = scores.controls
    rows = list(zip(summary.index, summary.to_dict("records"), strict=True))
    return [
        draw_panel(
            _title(metric),
            DIRECTIONS[metric["higher_is_better"]],
            [_interval(layer, method, row, metric, method in controls) for (layer, method), row in rows],
            "%" in label_of(metric),
        )
        for metric in scores.metrics[:MOST_PANELS]
    ]


def best_of(scores: RunRecord, summary: pd.DataFrame, level: float) -> list[Best]:
    """For each metric that has a direction the best layer and method, controls aside."""
    controls = scores.controls
    found = []
    for metric in scores.metrics:
        pair = _best_pair(summary, metric, controls)
        if metric["higher_is_better"] is not None and pair is not None:
            cell = _cell(summary.loc[[pair]].to_dict("records")[0], metric, True)
            ties = _ties(scores, metric, pair, level)
            way = DIRECTIONS[metric["higher_is_better"]]
            found.append(Best(_title(metric), way, cell.mean, cell.interval, *pair, ties))
    return found


def doubts_of(scores: RunRecord, summary: pd.DataFrame, level: float) -> list[str]:
    """Reasons to doubt the numbers: the run's own, and too few images."""
    doubts = find_doubts(scores.rows, scores.metrics, scores.controls, level, scores.seed, scores.complete)
    fewest = int(summary["n_images"].min())
    few = (
        f"only {fewest} {'image counts' if fewest == 1 else 'images count'} at a layer and method: below {FEW}, intervals of "
        "skewed values hold the true mean too rarely; take more images"
    )
    return [*([few] if fewest < FEW else []), *doubts]


def controls_beaten(scores: RunRecord, level: float) -> dict[Pair, list[tuple[str, list[str]]]]:
    """By layer and method, for each metric that has a direction: how many controls it beats, and which not."""
    if not scores.rows["method"].isin(scores.controls).any():
        return {}
    table = compare_with_controls(scores.rows, scores.metrics, scores.controls, level, scores.seed)
    found: dict[Pair, list[tuple[str, list[str]]]] = {}
    groups: Any = table.groupby(["layer", "method", "metric"], sort=False)
    for (layer, method, _), tests in groups:
        missed = list(tests.loc[~tests["beats"], "control"])
        found.setdefault((layer, method), []).append((f"{len(tests) - len(missed)} of {len(tests)}", missed))
    return found


def selection_of(scores: RunRecord, methods: Sequence[str], level: float) -> list[SelectedLayers]:
    """For each method that has several layers, which of them need attention, and why."""
    counts = Counter(method for _, method in pairs_of(scores.rows))
    names = [metric["name"] for metric in scores.metrics if metric["higher_is_better"] is not None]
    by = [name for name in ATTENTION if name in names] or names[:1]
    several = [method for method in methods if counts[method] > 1]
    return [_chosen(scores, method, by, level) for method in several if by]


def _chosen(scores: RunRecord, method: str, by: Sequence[str], level: float) -> SelectedLayers:
    try:
        selection = select_layers(scores.rows, scores.metrics, None, by, method, level, scores.seed)
    except MetricError as error:  # no image counts at every layer
        return SelectedLayers(method, [], [str(error)])
    return SelectedLayers(method, list(selection), [line.strip() for line in repr(selection).split("\n")])


def comparison_of(
    scores: RunRecord, other: RunRecord, names: tuple[str, str], level: float, across_protocols: bool
) -> Comparison:
    """Two runs beside each other, paired by image.

    Raises:
        MetricError: see `Scores.compare`.
        ProtocolError: see there.
    """
    runs = (scores.rows, scores.manifest), (other.rows, other.manifest)
    table = compare(*runs, level=level, across_protocols=across_protocols).reset_index()
    metrics = {metric["name"]: metric for metric in scores.metrics}
    better = dict(zip(("this", "other"), names, strict=True))
    lines = [_compared(row, metrics[row["metric"]], better) for row in table.to_dict("records")]
    panels = []
    for name, part in table.groupby("metric", sort=False):
        metric = metrics[str(name)]
        intervals = [_difference(row, decimals_of(metric)) for row in part.to_dict("records")]
        panels.append(draw_panel(_title(metric), f"difference; {DIRECTIONS[metric['higher_is_better']]}", intervals, False))
    wins = {name: int((table["better"] == which).sum()) for which, name in better.items()}
    verdict = f"Of {len(table)} comparisons, " + " and ".join(f"{count} are better in {name}" for name, count in wins.items())
    return Comparison(lines, panels, f"{verdict}, beyond chance; the others are not certain.", _differences(scores, other))


def _interval(layer: str, method: str, row: Mapping[Any, Any], metric: Metric, muted: bool) -> Interval:
    mean, low, high = (row[f"{metric['name']}{end}"] for end in ("", "_low", "_high"))
    return Interval(layer, method, mean, low, high, format_interval(mean, low, high, decimals_of(metric)), muted)


def _compared(row: Mapping[Any, Any], metric: Metric, better: Mapping[str, str]) -> dict[str, Any]:
    digits = decimals_of(metric)
    return {
        "layer": row["layer"],
        "method": row["method"],
        "metric": label_of(metric),
        "mean": shown(row["mean"], digits),
        "other": shown(row["other_mean"], digits),
        "difference": _difference(row, digits).text,
        "p": f"{row['p_holm']:.2g}",
        "images": int(row["n_images"]),
        "better": better.get(row["better"], ""),
    }


def _difference(row: Mapping[Any, Any], digits: int) -> Interval:
    ends = row["difference"], row["low"], row["high"]
    return Interval(row["layer"], row["method"], *ends, format_interval(*ends, digits, signed=True), not row["better"])


def _differences(scores: RunRecord, other: RunRecord) -> list[tuple[str, str, str]]:
    """What makes the two other runs: what, of this, of the other."""
    one, two = (run.manifest.get("run", {}) for run in (scores, other))
    return [(name, str(one.get(name)), str(two.get(name))) for name in {**one, **two} if one.get(name) != two.get(name)]


def _title(metric: Metric) -> str:
    name = str(metric["name"]).replace("_", " ")
    label = label_of(metric)
    return name if label.casefold() == name.casefold() else f"{name} ({label})"


def _cell(row: Mapping[Any, Any], metric: Metric, best: bool) -> Cell:
    name, digits = metric["name"], decimals_of(metric)
    low, high = (shown(row[f"{name}_{end}"], digits) for end in ("low", "high"))
    return Cell(shown(row[name], digits), f"[{low}, {high}]", best)


def _best_pair(summary: pd.DataFrame, metric: Metric, controls: Sequence[str]) -> Pair | None:
    """Layer and method of the best mean that is of no control."""
    higher = metric["higher_is_better"]
    own: Any = summary.loc[[pair[1] not in controls for pair in summary.index], metric["name"]].dropna()
    if higher is None or own.empty:
        return None
    pair: Pair = own.idxmax() if higher else own.idxmin()
    return pair


def _ties(scores: RunRecord, metric: Metric, best: Pair, level: float) -> list[str] | None:
    """What cannot be told apart from the best; None where there is nothing to test, or too much."""
    rows = scores.rows[~scores.rows["method"].isin(scores.controls)]
    pairs = pairs_of(rows)
    if not 2 <= len(pairs) <= MOST_RANKED:
        return None
    layers, methods = (set(names) for names in zip(*pairs, strict=True))
    over: Over = "layer" if len(methods) == 1 else "method" if len(layers - {NO_LAYER}) <= 1 else "both"
    try:
        ranking = rank(rows, scores.metrics, metric["name"], over, level=level, resamples=1, seed=scores.seed)
    except MetricError:  # no image counts everywhere, as the table shows
        return None
    letters = {(row["layer"], row["method"]): row["group"] for row in ranking.table.to_dict("records")}
    own = set(letters.pop(best, ""))
    return [_named(pair, over) for pair, group in letters.items() if own & set(group)]


def _named(pair: Pair, over: Over) -> str:
    return pair[0] if over == "layer" else pair[1] if over == "method" else ", ".join(pair)


def _areas(rows: pd.DataFrame) -> dict[Any, float]:
    if "mask_area" not in rows:
        return {}
    means: Any = rows[rows["status"].isin(COUNTED)].groupby(["layer", "method"])["mask_area"].mean()
    return dict(means.items())
