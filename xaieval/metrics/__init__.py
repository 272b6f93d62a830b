"""Metrics of explanations: pure functions, torchmetrics classes, and the registry of names for `score(metrics=...)`."""

from __future__ import annotations

from collections.abc import Sequence

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.classes import AverageDrop, AverageGain, IncreaseInConfidence, MeanOverImages
from xaieval.metrics.functional import (
    CONFIDENCE_METRICS,
    average_drop,
    average_gain,
    drop,
    gain,
    increase,
    increase_in_confidence,
)
from xaieval.metrics.metric import NEEDS, Metric
from xaieval.metrics.robustness import ROBUSTNESS_METRICS, infidelity, max_sensitivity, stability_flip, stability_shift
from xaieval.metrics.similarity import SIMILARITIES, pearson, spearman, ssim

__all__ = [
    "METRICS",
    "NEEDS",
    "SIMILARITIES",
    "AverageDrop",
    "AverageGain",
    "IncreaseInConfidence",
    "MeanOverImages",
    "Metric",
    "average_drop",
    "average_gain",
    "drop",
    "gain",
    "increase",
    "increase_in_confidence",
    "infidelity",
    "max_sensitivity",
    "pearson",
    "resolve_metrics",
    "spearman",
    "ssim",
    "stability_flip",
    "stability_shift",
]

FAMILIES = (CONFIDENCE_METRICS, ROBUSTNESS_METRICS)

METRICS = {metric.name: metric for family in FAMILIES for metric in family}


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
