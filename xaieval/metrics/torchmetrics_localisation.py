"""The metrics of localisation for one's own loop, as torchmetrics classes; `update(maps, masks)` takes a batch."""

from __future__ import annotations

from typing import Any

from xaieval.metrics.localisation import (
    BEST_IOU,
    ENERGY_POINTING_GAME,
    RELEVANCE_MASS_ACCURACY,
    RELEVANCE_RANK_ACCURACY,
    THRESHOLD,
    TOLERANCE,
    iou,
    pointing_game,
)
from xaieval.metrics.torchmetrics_classes import MeanOverImages

__all__ = [
    "BestMaskIoU",
    "EnergyPointingGame",
    "MaskIoU",
    "PointingGame",
    "RelevanceMassAccuracy",
    "RelevanceRankAccuracy",
]


class PointingGame(MeanOverImages):
    """The pointing game, in percent of the images, higher is better; see `xaieval.metrics.pointing_hit`.

    Images without an object are left out and counted in `pointing_game_failed`.

    Args:
        tolerance: in pixels.
        **kwargs: for torchmetrics.

    Reference:
        Zhang et al., "Top-Down Neural Attention by Excitation Backprop", ECCV 2016 (arXiv 1608.00507), section 4.1.

    Example:
        >>> import torch
        >>> metric = PointingGame(tolerance=0)
        >>> metric.update(torch.tensor([[[0.1, 0.9]], [[0.9, 0.1]]]), torch.tensor([[[True, False]]] * 2))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, tolerance: float = TOLERANCE, **kwargs: Any) -> None:
        super().__init__(pointing_game(tolerance), **kwargs)


class EnergyPointingGame(MeanOverImages):
    """The energy-based pointing game, in percent, higher is better; see `xaieval.metrics.energy_inside`.

    Images without an object and maps of zeros are left out and counted in `energy_pointing_game_failed`.

    Reference:
        Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv 1910.01279), section 4.3.

    Example:
        >>> import torch
        >>> metric = EnergyPointingGame()
        >>> metric.update(torch.tensor([[[0.75, 0.25]]]), torch.tensor([[[True, False]]]))
        >>> metric.compute()
        tensor(75., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(ENERGY_POINTING_GAME, **kwargs)


class RelevanceMassAccuracy(MeanOverImages):
    """Relevance mass accuracy, in percent, higher is better; see `xaieval.metrics.relevance_mass`.

    Images without an object or without positive relevance are left out and counted in `relevance_mass_accuracy_failed`.

    Reference:
        Arras et al., "CLEVR-XAI", Information Fusion 81, 2022 (arXiv 2003.07258), equations 1 to 4.

    Example:
        >>> import torch
        >>> metric = RelevanceMassAccuracy()
        >>> metric.update(torch.tensor([[[3.0, 1.0, -5.0]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(75., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RELEVANCE_MASS_ACCURACY, **kwargs)


class RelevanceRankAccuracy(MeanOverImages):
    """Relevance rank accuracy, in percent, higher is better; see `xaieval.metrics.relevance_rank`.

    Images without an object are left out and counted in `relevance_rank_accuracy_failed`.

    Reference:
        Arras et al., "CLEVR-XAI", Information Fusion 81, 2022 (arXiv 2003.07258), equations 1 to 4.

    Example:
        >>> import torch
        >>> metric = RelevanceRankAccuracy()
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(RELEVANCE_RANK_ACCURACY, **kwargs)


class MaskIoU(MeanOverImages):
    """Intersection over union at a threshold, in percent, higher is better; see `xaieval.metrics.mask_iou`.

    Images without an object are left out and counted in `iou_failed`.

    Args:
        threshold: of the maps, in (0, 1].
        **kwargs: for torchmetrics.

    Example:
        >>> import torch
        >>> metric = MaskIoU(threshold=0.5)
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, True, True]]]))
        >>> metric.compute()
        tensor(66.6667, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, threshold: float = THRESHOLD, **kwargs: Any) -> None:
        super().__init__(iou(threshold), **kwargs)


class BestMaskIoU(MeanOverImages):
    """Intersection over union at each image's best threshold, in percent, higher is better.

    See `xaieval.metrics.best_mask_iou`.

    Images without an object are left out and counted in `best_iou_failed`.

    Example:
        >>> import torch
        >>> metric = BestMaskIoU()
        >>> metric.update(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, True, True]]]))
        >>> metric.compute()
        tensor(100., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(BEST_IOU, **kwargs)
