"""Metrics of explanations: pure functions, torchmetrics classes, and the registry of names for `score(metrics=...)`."""

from __future__ import annotations

from collections.abc import Sequence

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.adcc import ADCC, ADCC_METRICS, Coherency, Complexity, adcc, coherency, complexity
from xaieval.metrics.confidence import CONFIDENCE_METRICS, drop_by, increase_by
from xaieval.metrics.curves import CURVE_METRICS, area_under, deletion, insertion, lerf, morf, perturbed_pixels, pixel_ranks
from xaieval.metrics.description import (
    DESCRIPTION_METRICS,
    AreaAboveHalf,
    CenterX,
    CenterY,
    Entropy,
    Sparseness,
    area_above_half,
    center_of_mass,
    entropy,
    sparseness,
)
from xaieval.metrics.functional import (
    average_drop,
    average_gain,
    confidence_ratio,
    drop,
    drop_in_deletion,
    gain,
    increase,
    increase_in_confidence,
    win,
    win_percentage,
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
from xaieval.metrics.metric import NEEDS, Metric
from xaieval.metrics.noisy_imputation import linear_imputation
from xaieval.metrics.road import ROAD_METRICS, road, road_lerf, road_morf
from xaieval.metrics.robustness import ROBUSTNESS_METRICS, infidelity, max_sensitivity, stability_flip, stability_shift
from xaieval.metrics.similarity import SIMILARITIES, pearson, spearman, ssim
from xaieval.metrics.torchmetrics_classes import (
    AverageDrop,
    AverageGain,
    ConfidenceRatio,
    DropInDeletion,
    IncreaseInConfidence,
    MeanOverImages,
    WinPercentage,
)
from xaieval.metrics.torchmetrics_localisation import (
    BestMaskIoU,
    EnergyPointingGame,
    MaskIoU,
    PointingGame,
    RelevanceMassAccuracy,
    RelevanceRankAccuracy,
)

__all__ = [
    "ADCC",
    "METRICS",
    "NEEDS",
    "SIMILARITIES",
    "AreaAboveHalf",
    "AverageDrop",
    "AverageGain",
    "BestMaskIoU",
    "CenterX",
    "CenterY",
    "Coherency",
    "Complexity",
    "ConfidenceRatio",
    "DropInDeletion",
    "EnergyPointingGame",
    "Entropy",
    "IncreaseInConfidence",
    "MaskIoU",
    "MeanOverImages",
    "Metric",
    "PointingGame",
    "RelevanceMassAccuracy",
    "RelevanceRankAccuracy",
    "Sparseness",
    "WinPercentage",
    "adcc",
    "area_above_half",
    "area_under",
    "average_drop",
    "average_gain",
    "best_mask_iou",
    "center_of_mass",
    "coherency",
    "complexity",
    "confidence_ratio",
    "deletion",
    "drop",
    "drop_by",
    "drop_in_deletion",
    "energy_inside",
    "entropy",
    "gain",
    "increase",
    "increase_by",
    "increase_in_confidence",
    "infidelity",
    "insertion",
    "iou",
    "iou_curve",
    "lerf",
    "linear_imputation",
    "mask_iou",
    "max_sensitivity",
    "morf",
    "pearson",
    "perturbed_pixels",
    "pixel_ranks",
    "pointing_game",
    "pointing_hit",
    "relevance_mass",
    "relevance_rank",
    "resolve_metrics",
    "road",
    "road_lerf",
    "road_morf",
    "sparseness",
    "spearman",
    "ssim",
    "stability_flip",
    "stability_shift",
    "win",
    "win_percentage",
]

FAMILIES = (
    CONFIDENCE_METRICS,
    ADCC_METRICS,
    DESCRIPTION_METRICS,
    CURVE_METRICS,
    ROAD_METRICS,
    LOCALISATION_METRICS,
    ROBUSTNESS_METRICS,
)

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
