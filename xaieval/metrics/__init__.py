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
from xaieval.metrics.localisation import (
    LOCALISATION_METRICS,
    best_mask_iou,
    energy_inside,
    iou,
    iou_curve,
    mask_iou,
    pointing_game,
    pointing_hit,
    relevance_mass,
    relevance_rank,
)
from xaieval.metrics.localisation_classes import (
    BestMaskIoU,
    EnergyPointingGame,
    MaskIoU,
    PointingGame,
    RelevanceMassAccuracy,
    RelevanceRankAccuracy,
)
from xaieval.metrics.metric import NEEDS, Metric

__all__ = [
    "METRICS",
    "NEEDS",
    "AverageDrop",
    "AverageGain",
    "BestMaskIoU",
    "EnergyPointingGame",
    "IncreaseInConfidence",
    "MaskIoU",
    "MeanOverImages",
    "Metric",
    "PointingGame",
    "RelevanceMassAccuracy",
    "RelevanceRankAccuracy",
    "average_drop",
    "average_gain",
    "best_mask_iou",
    "drop",
    "energy_inside",
    "gain",
    "increase",
    "increase_in_confidence",
    "iou",
    "iou_curve",
    "mask_iou",
    "pointing_game",
    "pointing_hit",
    "relevance_mass",
    "relevance_rank",
    "resolve_metrics",
]

FAMILIES = (CONFIDENCE_METRICS, LOCALISATION_METRICS)

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
