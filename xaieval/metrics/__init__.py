"""Metrics of explanations: pure functions, torchmetrics classes, and the registry of names for `score(metrics=...)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.classes import AverageDrop, AverageGain, IncreaseInConfidence
from xaieval.metrics.functional import average_drop, average_gain, drop, gain, increase, increase_in_confidence

__all__ = [
    "METRICS",
    "AverageDrop",
    "AverageGain",
    "IncreaseInConfidence",
    "Metric",
    "average_drop",
    "average_gain",
    "drop",
    "gain",
    "increase",
    "increase_in_confidence",
    "resolve_metrics",
]


@dataclass(frozen=True)
class Metric:
    """A metric for `score(metrics=...)`: one number an image, whose mean over the images is the result.

    Attributes:
        name: of the column in `rows` and `summary`.
        per_image: `(confidence [N], masked_confidence [N]) -> values [N]`, NaN where there is none.
        higher_is_better: its direction.
        interval: "bootstrap" for means; "wilson" if the values are 0 and 100, so that the mean is a proportion in percent.
        label: short name with its unit, for tables and figures.

    Example:
        A metric of your own is a function:

        >>> gain = Metric("gain", lambda y, o: 100 * (o - y).clamp(min=0), higher_is_better=True)
        >>> [metric.name for metric in resolve_metrics(["average_drop", gain])]
        ['average_drop', 'gain']
    """

    name: str
    per_image: Callable[[Tensor, Tensor], Tensor]
    higher_is_better: bool
    interval: Literal["bootstrap", "wilson"] = "bootstrap"
    label: str = ""


METRICS = {
    metric.name: metric
    for metric in (
        Metric("average_drop", drop, higher_is_better=False, label="AD %"),
        Metric("increase_in_confidence", increase, higher_is_better=True, interval="wilson", label="IC %"),
        Metric("average_gain", gain, higher_is_better=True, label="AG %"),
    )
}


def resolve_metrics(metrics: str | Metric | Sequence[str | Metric]) -> list[Metric]:
    """Metrics by name, or the objects themselves.

    Raises:
        MetricError: no metric has that name, one comes twice, or there is none.
    """
    if isinstance(metrics, str | Metric):
        metrics = [metrics]
    found = []
    for metric in metrics:
        if not isinstance(metric, Metric):
            if metric not in METRICS:
                raise MetricError(f"no metric {metric!r}; {choose_from(metric, METRICS)}; or give a Metric(...)")
            metric = METRICS[metric]
        found.append(metric)
    names = [metric.name for metric in found]
    if not names or len(set(names)) < len(names):
        raise MetricError(f"metrics are one or more, each once; got {names}")
    return found
