"""Classes of metrics that describe maps, or compare them with the object."""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  # the examples use it

from xaieval.metrics.description import AREA_ABOVE_HALF, CENTER_X, CENTER_Y, ENTROPY, SPARSENESS
from xaieval.metrics.localisation import (
    BEST_IOU,
    ENERGY_POINTING_GAME,
    RELEVANCE_MASS_ACCURACY,
    RELEVANCE_RANK_ACCURACY,
    THRESHOLD,
    iou,
)
from xaieval.metrics.pixel_classification import BEST_F1, Threshold, f1, mean_iou, pixel_accuracy
from xaieval.metrics.pixel_ranking import AVERAGE_PRECISION, ROC_AUC, TWO_CLASS_AP
from xaieval.metrics.pointing_game import TOLERANCE, pointing_game
from xaieval.metrics.torchmetrics_classes.base import MeanOf, MeanOverImages

__all__ = [
    "F1",
    "AreaAboveHalf",
    "AveragePrecision",
    "BestF1",
    "BestMaskIoU",
    "CenterX",
    "CenterY",
    "EnergyPointingGame",
    "Entropy",
    "MaskIoU",
    "MeanIoU",
    "PixelAccuracy",
    "PointingGame",
    "RelevanceMassAccuracy",
    "RelevanceRankAccuracy",
    "RocAUC",
    "Sparseness",
    "TwoClassAveragePrecision",
]


class AreaAboveHalf(MeanOf, metric=AREA_ABOVE_HALF):
    """Area above 0.5, in percent: the mean of `area_above_half` over images; `update` takes the maps, `[N, H, W]`.

    Example:
        >>> metric = AreaAboveHalf()
        >>> metric.update(torch.tensor([[[0.0, 0.5], [0.6, 1.0]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """


class CenterX(MeanOf, metric=CENTER_X):
    """Horizontal centre of mass, 0 (left) to 1 (right): the mean over images; `update` takes the maps, `[N, H, W]`.

    Example:
        >>> metric = CenterX()
        >>> metric.update(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """


class CenterY(MeanOf, metric=CENTER_Y):
    """Vertical centre of mass, 0 (top) to 1 (bottom): the mean over images; `update` takes the maps, `[N, H, W]`.

    Example:
        >>> metric = CenterY()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]))
        >>> metric.compute()
        tensor(0.2500, dtype=torch.float64)
    """


class Entropy(MeanOf, metric=ENTROPY):
    """Entropy, in nats: the mean of `entropy` over images; `update` takes the maps, `[N, H, W]`.

    Maps of zeros are left out and counted in `entropy_failed`.

    Example:
        >>> metric = Entropy()
        >>> metric.update(torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]))
        >>> metric.compute()
        tensor(1.3863, dtype=torch.float64)
    """


class Sparseness(MeanOf, metric=SPARSENESS):
    """Sparseness, 0 to 1: the mean of `sparseness` over images; `update` takes the maps, `[N, H, W]`.

    Maps of zeros are left out and counted in `sparseness_failed`.

    Example:
        >>> metric = Sparseness()
        >>> metric.update(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """


class PointingGame(MeanOverImages):
    """The pointing game, in percent of the images, higher is better: the mean of `pointing_hit`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `pointing_game_failed`.

    Args:
        tolerance: Distance in pixels.
        **kwargs: Passed to torchmetrics.

    Example:
        >>> metric = PointingGame(tolerance=0)
        >>> metric.update(torch.tensor([[[0.1, 0.9]], [[0.9, 0.1]]]), torch.tensor([[[True, False]]] * 2))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, tolerance: float = TOLERANCE, **kwargs: Any) -> None:
        super().__init__(pointing_game(tolerance), **kwargs)


class EnergyPointingGame(MeanOf, metric=ENERGY_POINTING_GAME):
    """The energy-based pointing game, in percent, higher is better: the mean of `energy_inside`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object and maps of zeros are left
    out and counted in `energy_pointing_game_failed`.

    Example:
        >>> metric = EnergyPointingGame()
        >>> metric.update(torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[True, False]]]))
        >>> metric.compute()
        tensor(75., dtype=torch.float64)
    """


class RelevanceMassAccuracy(MeanOf, metric=RELEVANCE_MASS_ACCURACY):
    """Relevance mass accuracy, in percent, higher is better: the mean of `relevance_mass`.

    `update` takes the relevance and the masks of the objects, `[N, H, W]` each. Images without an object or without positive
    relevance are left out and counted in `relevance_mass_accuracy_failed`.

    Example:
        >>> metric = RelevanceMassAccuracy()
        >>> metric.update(torch.tensor([[[3.0, 1.0, -5.0]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(75., dtype=torch.float64)
    """


class RelevanceRankAccuracy(MeanOf, metric=RELEVANCE_RANK_ACCURACY):
    """Relevance rank accuracy, in percent, higher is better: the mean of `relevance_rank`.

    `update` takes the relevance and the masks of the objects, `[N, H, W]` each. Images without an object are left out and
    counted in `relevance_rank_accuracy_failed`.

    Example:
        >>> metric = RelevanceRankAccuracy()
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """


class MaskIoU(MeanOverImages):
    """Intersection over union at a threshold, in percent, higher is better: the mean of `mask_iou`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `iou_failed`.

    Args:
        threshold: A number in (0, 1].
        **kwargs: Passed to torchmetrics.

    Example:
        >>> metric = MaskIoU(threshold=0.5)
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, True, True]]]))
        >>> metric.compute()
        tensor(66.6667, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, threshold: float = THRESHOLD, **kwargs: Any) -> None:
        super().__init__(iou(threshold), **kwargs)


class BestMaskIoU(MeanOf, metric=BEST_IOU):
    """Intersection over union at the best threshold of each image, in percent, higher is better: the mean of `best_mask_iou`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `best_iou_failed`.

    Example:
        >>> metric = BestMaskIoU()
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, True, True]]]))
        >>> metric.compute()
        tensor(100., dtype=torch.float64)
    """


class RocAUC(MeanOf, metric=ROC_AUC):
    """Area under the ROC curve of pixels, in percent, 50 by chance, higher is better: the mean of `roc_auc`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `roc_auc_failed`.

    Example:
        >>> metric = RocAUC()
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """


class AveragePrecision(MeanOf, metric=AVERAGE_PRECISION):
    """Average precision of pixels, in percent, higher is better: the mean of `average_precision`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `average_precision_failed`.

    Example:
        >>> metric = AveragePrecision()
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(83.3333, dtype=torch.float64)
    """


class TwoClassAveragePrecision(MeanOf, metric=TWO_CLASS_AP):
    """Average precision of object and background together, in percent: the mean of `two_class_average_precision`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `two_class_average_precision_failed`.

    Example:
        >>> metric = TwoClassAveragePrecision()
        >>> metric.update(torch.tensor([[[0.9, 0.5]]]), torch.tensor([[[True, False]]]))
        >>> metric.compute()
        tensor(83.3333, dtype=torch.float64)
    """


class F1(MeanOverImages):
    """F1 of pixels at a threshold, in percent, higher is better: the mean of `mask_f1`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `f1_failed`.

    Args:
        threshold: A number in (0, 1], or "mean".
        **kwargs: Passed to torchmetrics.

    Example:
        >>> metric = F1(threshold=0.5)
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, threshold: Threshold = 0.5, **kwargs: Any) -> None:
        super().__init__(f1(threshold), **kwargs)


class BestF1(MeanOf, metric=BEST_F1):
    """F1 of pixels at the best threshold of each image, in percent, higher is better: the mean of `best_mask_f1`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `best_f1_failed`.

    Example:
        >>> metric = BestF1()
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(80., dtype=torch.float64)
    """


class PixelAccuracy(MeanOverImages):
    """Pixel accuracy at a threshold, in percent, higher is better: the mean of `mask_accuracy`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `pixel_accuracy_failed`.

    Args:
        threshold: A number in (0, 1], or "mean".
        **kwargs: Passed to torchmetrics.

    Example:
        >>> metric = PixelAccuracy()
        >>> metric.update(torch.tensor([[[0.9, 0.4, 0.1]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(66.6667, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, threshold: Threshold = "mean", **kwargs: Any) -> None:
        super().__init__(pixel_accuracy(threshold), **kwargs)


class MeanIoU(MeanOverImages):
    """Mean IoU of object and background at a threshold, in percent, higher is better: the mean of `mask_mean_iou`.

    `update` takes the maps and the masks of the objects, `[N, H, W]` each. Images without an object are left out and counted in
    `mean_iou_failed`.

    Args:
        threshold: A number in (0, 1], or "mean".
        **kwargs: Passed to torchmetrics.

    Example:
        >>> metric = MeanIoU()
        >>> metric.update(torch.tensor([[[0.9, 0.4, 0.1]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, threshold: Threshold = "mean", **kwargs: Any) -> None:
        super().__init__(mean_iou(threshold), **kwargs)
