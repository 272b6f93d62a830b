"""The kinds of figures that `Scores.plot` draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xaieval.analysis.agreement import agreement
from xaieval.analysis.ranking import RankedItems, rank
from xaieval.errors import MetricError, UsageError, choose_from
from xaieval.report.figures.agreements import agreement_figure
from xaieval.report.figures.classes import classes_figure
from xaieval.report.figures.curves import curves_figure
from xaieval.report.figures.data import metric_entry, subset
from xaieval.report.figures.heatmaps import heatmap_figure
from xaieval.report.figures.matched import matched_figure
from xaieval.report.figures.rankings import ranking_figure
from xaieval.report.figures.spreads import spread_figure
from xaieval.report.figures.style import Size
from xaieval.report.figures.tradeoffs import DEFAULT, tradeoff_figure
from xaieval.results.record import RunRecord

__all__ = ["KINDS", "Request", "plot"]


@dataclass(frozen=True)
class Request:
    """The arguments of `Scores.plot` that say what to draw and how.

    Attributes:
        metrics: One name or several (default: depends on the kind).
        classes: Names of classes, only for kind "classes".
        level: Level of the intervals, in (0, 1).
        size: Width, or width and height, in inches.
        ax: Axes to draw on (default: those of a new figure).
    """

    metrics: str | Sequence[str] | None = None
    classes: Sequence[str] | Mapping[int, str] | None = None
    level: float = 0.95
    size: Size = None
    ax: Axes | None = None

    def one(self) -> str | None:
        """The name of the single metric, None if none was given.

        Raises:
            MetricError: Several names were given.
        """
        if self.metrics is None or isinstance(self.metrics, str):
            return self.metrics
        if len(self.metrics) != 1:
            raise MetricError(f"this kind of figure shows one metric; got {list(self.metrics)}")
        return self.metrics[0]

    def common(self) -> dict[str, Any]:
        """The arguments that all kinds take."""
        return {"level": self.level, "size": self.size, "ax": self.ax}


def plot(scores: RunRecord, kind: str, layers: Sequence[str] | None, methods: Sequence[str] | None, request: Request) -> Figure:
    """Draw a figure of a run, as `xaieval.Scores.plot` does.

    Args:
        scores: The run (`xaieval.Scores`).
        kind: One of `KINDS`.
        layers: Addresses of the layers to show (default: all).
        methods: Names of the methods to show (default: all).
        request: What to draw and how.

    Returns:
        A new figure that is not shown in a window, or the figure of `request.ax`.

    Raises:
        MetricError: The run lacks what is to be drawn, or has more of it than can be told apart.
        UsageError: The kind is unknown, `ax` is given for several axes, or both `ax` and `size` are given.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind of figure {kind!r}; {choose_from(kind, KINDS)}")
    if request.classes is not None and kind != "classes":
        raise UsageError(f"classes= applies only to kind='classes', not to kind={kind!r}; leave it out")
    return KINDS[kind](subset(scores, layers, methods), request)


def _tradeoff(scores: RunRecord, request: Request) -> Figure:
    return tradeoff_figure(scores, DEFAULT if request.metrics is None else request.metrics, **request.common())


def _heatmap(scores: RunRecord, request: Request) -> Figure:
    return heatmap_figure(scores, request.one(), **request.common())


def _curves(scores: RunRecord, request: Request) -> Figure:
    """Curves of all metrics that kept them, or of some, over the fractions in their settings."""
    other = [entry["name"] for entry in scores.metrics if "pooled" in entry.get("settings", {})]  # on an axis of thresholds
    kept = [str(name).removesuffix("_curve") for name in scores.sample.rows if str(name).endswith("_curve")]
    kept = [name for name in kept if name not in other]
    names = kept if request.metrics is None else request.metrics
    if not names:
        raise MetricError("the run kept no curves; score it with a metric that keeps them, such as insertion(keep_curve=True)")
    names = [names] if isinstance(names, str) else list(names)
    axes = {_fractions(metric_entry(scores, name)) for name in names}
    if len(axes) > 1:
        raise MetricError(f"the curves of {', '.join(names)} have different axes; draw one at a time with metrics=")
    return curves_figure(scores.sample.rows, names, axes.pop(), weights=scores.group_weights, **request.common())


def _fractions(entry: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The fractions of pixels that a metric's settings list; None for equal steps."""
    settings = entry.get("settings", {})
    listed = settings.get("fractions", settings.get("steps"))
    return tuple(listed) if isinstance(listed, list | tuple) else None


def _ranking(scores: RunRecord, request: Request) -> Figure:
    """A ranking over layers if there is one method, over methods if there is one layer, else over both."""
    if request.ax is not None:
        raise UsageError("kind='ranking' needs two axes, but ax= is one; leave ax= out, or use kind='tradeoff'")
    metric = metric_entry(scores, request.one())["name"]
    own = scores.sample.rows[~scores.sample.rows["method"].isin(scores.controls)]
    counts = own[["layer", "method"]].nunique()
    over: RankedItems = "layer" if counts["method"] == 1 else "method" if counts["layer"] == 1 else "both"
    ranking = rank(
        scores.sample.rows,
        scores.metrics,
        metric,
        over,
        level=request.level,
        seed=scores.seed,
        weights=scores.group_weights,
        controls=scores.controls,
    )
    return ranking_figure(ranking, size=request.size)


def _classes(scores: RunRecord, request: Request) -> Figure:
    return classes_figure(scores, request.one(), request.classes, **request.common())


def _spread(scores: RunRecord, request: Request) -> Figure:
    return spread_figure(scores, request.one(), **request.common())


def _matched(scores: RunRecord, request: Request) -> Figure:
    return matched_figure(scores, request.one(), **request.common())


def _agreement(scores: RunRecord, request: Request) -> Figure:
    """All metrics that have a direction, or some."""
    found = agreement(
        scores.sample.rows,
        scores.metrics,
        request.metrics,
        scores.controls,
        request.level,
        resamples=1,
        weights=scores.group_weights,
    )
    return agreement_figure(found, size=request.size, ax=request.ax)


KINDS: Mapping[str, Callable[[RunRecord, Request], Figure]] = {
    "tradeoff": _tradeoff,
    "heatmap": _heatmap,
    "curves": _curves,
    "ranking": _ranking,
    "classes": _classes,
    "spread": _spread,
    "agreement": _agreement,
    "matched": _matched,
}
