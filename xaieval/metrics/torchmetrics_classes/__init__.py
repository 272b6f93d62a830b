"""Torchmetrics classes for your own loop: the mean of a metric over images, across batches and processes.

They are loaded on first use, because `score` needs none of them and torchmetrics takes long to import.
"""

from __future__ import annotations

from xaieval.metrics.torchmetrics_classes.base import (
    MeanOf,
    MeanOverImages,
)
from xaieval.metrics.torchmetrics_classes.of_confidences import (
    ADCC,
    AverageDrop,
    AverageGain,
    Coherency,
    Complexity,
    ConfidenceRatio,
    DropInDeletion,
    IncreaseInConfidence,
    WinPercentage,
)
from xaieval.metrics.torchmetrics_classes.of_maps import (
    F1,
    AreaAboveHalf,
    AveragePrecision,
    BestF1,
    BestMaskIoU,
    CenterX,
    CenterY,
    EnergyPointingGame,
    Entropy,
    MaskIoU,
    MeanIoU,
    PixelAccuracy,
    PointingGame,
    RelevanceMassAccuracy,
    RelevanceRankAccuracy,
    RocAUC,
    Sparseness,
    TwoClassAveragePrecision,
)
from xaieval.metrics.torchmetrics_classes.of_sets import (
    MeanOverSet,
)

__all__ = [
    "ADCC",
    "F1",
    "AreaAboveHalf",
    "AverageDrop",
    "AverageGain",
    "AveragePrecision",
    "BestF1",
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
    "MeanIoU",
    "MeanOf",
    "MeanOverImages",
    "MeanOverSet",
    "PixelAccuracy",
    "PointingGame",
    "RelevanceMassAccuracy",
    "RelevanceRankAccuracy",
    "RocAUC",
    "Sparseness",
    "TwoClassAveragePrecision",
    "WinPercentage",
]
