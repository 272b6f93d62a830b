"""The kinds of `Scores.plot`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaieval.analysis.ranking import Over, rank
from xaieval.errors import MetricError, UsageError, choose_from
from xaieval.report.figures.classes import classes_figure
from xaieval.report.figures.curves import curves_figure
from xaieval.report.figures.data import metric_entry, subset
from xaieval.report.figures.heatmaps import heatmap_figure
from xaieval.report.figures.rankings import ranking_figure
from xaieval.report.figures.spreads import spread_figure
from xaieval.report.figures.style import Size
from xaieval.report.figures.tradeoffs import DEFAULT, tradeoff_figure
from xaieval.results.record import RunRecord

__all__ = ["KINDS", "Request", "plot"]


@dataclass(frozen=True)
class Request:
    """What a caller of `Scores.plot` may ask of a picture."""

    metrics: str | Sequence[str] | None = None
    classes: Sequence[str] | Mapping[int, str] | None = None
    level: float = 0.95
    size: Size = None
    ax: Axes | None = None

    def one(self) -> str | None:
        """The only metric, if one was named.

        Raises:
            MetricError: there are several.
        """
        if self.metrics is None or isinstance(self.metrics, str):
            return self.metrics
        if len(self.metrics) != 1:
            raise MetricError(f"this picture is of one metric; got {list(self.metrics)}")
        return self.metrics[0]

    def style(self) -> dict[str, Any]:
        """What all kinds take."""
        return {"level": self.level, "size": self.size, "ax": self.ax}


def plot(scores: RunRecord, kind: str, layers: Sequence[str] | None, methods: Sequence[str] | None, request: Request) -> Figure:
    """See `xaieval.Scores.plot`, which gives itself.

    Raises:
        MetricError: see there.
        UsageError: see there.
    """
    if kind not in KINDS:
        raise UsageError(f"no picture of the kind {kind!r}; {choose_from(kind, KINDS)}")
    if request.classes is not None and kind != "classes":
        raise UsageError(f"classes= names classes for kind='classes'; kind={kind!r} has none, leave it out")
    return KINDS[kind](subset(scores, layers, methods), request)


def _tradeoff(scores: RunRecord, request: Request) -> Figure:
    return tradeoff_figure(scores, DEFAULT if request.metrics is None else request.metrics, **request.style())


def _heatmap(scores: RunRecord, request: Request) -> Figure:
    return heatmap_figure(scores, request.one(), **request.style())


def _curves(scores: RunRecord, request: Request) -> Figure:
    """Curves of the metrics that kept them; their axis as their settings say."""
    kept = [str(name).removesuffix("_curve") for name in scores.rows if str(name).endswith("_curve")]
    names = kept if request.metrics is None else request.metrics
    if not names:
        raise MetricError("the run kept no curves; give score a metric that keeps them, such as insertion(keep_curve=True)")
    names = [names] if isinstance(names, str) else list(names)
    axes = {_shares(metric_entry(scores, name)) for name in names}
    if len(axes) > 1:
        raise MetricError(f"the curves of {', '.join(names)} have different axes; draw them one by one, by metrics=")
    return curves_figure(scores.rows, names, axes.pop(), seed=scores.seed, **request.style())


def _shares(entry: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The axis of a metric's curves where its settings list shares of pixels; None for equal steps."""
    settings = entry.get("settings", {})
    listed = settings.get("fractions", settings.get("steps"))
    return tuple(listed) if isinstance(listed, list | tuple) else None


def _ranking(scores: RunRecord, request: Request) -> Figure:
    """Over layers or methods where there is one of the others, else over both."""
    if request.ax is not None:
        raise UsageError("kind='ranking' takes two axes, and ax= is one; leave ax= out, or take kind='tradeoff'")
    metric = metric_entry(scores, request.one())["name"]
    counts = scores.rows[["layer", "method"]].nunique()
    over: Over = "layer" if counts["method"] == 1 else "method" if counts["layer"] == 1 else "both"
    ranking = rank(scores.rows, scores.metrics, metric, over, level=request.level, seed=scores.seed)
    return ranking_figure(ranking, size=request.size)


def _classes(scores: RunRecord, request: Request) -> Figure:
    return classes_figure(scores, request.one(), request.classes, **request.style())


def _spread(scores: RunRecord, request: Request) -> Figure:
    return spread_figure(scores, request.one(), **request.style())


KINDS: Mapping[str, Callable[[RunRecord, Request], Figure]] = {
    "tradeoff": _tradeoff,
    "heatmap": _heatmap,
    "curves": _curves,
    "ranking": _ranking,
    "classes": _classes,
    "spread": _spread,
}
