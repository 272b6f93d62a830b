"""Classes of metrics that compare confidences on original and masked images, and of ADCC with its parts."""

from __future__ import annotations

import torch  # noqa: F401  # the examples use it

from xaieval.metrics.adcc import COHERENCY, COMPLEXITY, OF_IMAGE
from xaieval.metrics.confidence import AVERAGE_GAIN, CONFIDENCE_RATIO, DROP_IN_DELETION
from xaieval.metrics.drop_and_increase import AVERAGE_DROP, INCREASE_IN_CONFIDENCE
from xaieval.metrics.torchmetrics_classes.base import MeanOf
from xaieval.metrics.win_percentage import WIN_PERCENTAGE

__all__ = [
    "ADCC",
    "AverageDrop",
    "AverageGain",
    "Coherency",
    "Complexity",
    "ConfidenceRatio",
    "DropInDeletion",
    "IncreaseInConfidence",
    "WinPercentage",
]


class AverageDrop(MeanOf, metric=AVERAGE_DROP):
    """Average Drop, in percent, lower is better: the mean of `drop` over images; `update` takes Y and O, `[N]` each.

    Images without a value are left out and counted in `average_drop_failed`; if no image has one, the result is NaN.

    Example:
        >>> metric = AverageDrop()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        >>> metric.compute()
        tensor(12.5000, dtype=torch.float64)
    """


class IncreaseInConfidence(MeanOf, metric=INCREASE_IN_CONFIDENCE):
    """Increase in Confidence, in percent, higher is better: the mean of `increase` over images; `update` takes Y and O, `[N]`.

    Images without a value are left out and counted in `increase_in_confidence_failed`.

    Example:
        >>> metric = IncreaseInConfidence()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """


class AverageGain(MeanOf, metric=AVERAGE_GAIN):
    """Average Gain, in percent, higher is better: the mean of `gain` over images; `update` takes Y and O, `[N]` each.

    Images without a value are left out and counted in `average_gain_failed`.

    Example:
        >>> metric = AverageGain()
        >>> metric.update(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4]))
        >>> metric.compute()
        tensor(10.0000, dtype=torch.float64)
    """


class ConfidenceRatio(MeanOf, metric=CONFIDENCE_RATIO):
    """Confidence ratio, in percent, higher is better: the mean of `confidence_ratio` over images; `update` takes Y and O.

    Images without a value are left out and counted in `confidence_ratio_failed`.

    Example:
        >>> metric = ConfidenceRatio()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.75]))
        >>> metric.compute()
        tensor(112.5000, dtype=torch.float64)
    """


class DropInDeletion(MeanOf, metric=DROP_IN_DELETION):
    """Average Drop in Deletion (ADD), in percent, higher is better: the mean of `drop_in_deletion`; `update` takes Y and D.

    Images without a value are left out and counted in `drop_in_deletion_failed`.

    Example:
        >>> metric = DropInDeletion()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.75]))
        >>> metric.compute()
        tensor(12.5000, dtype=torch.float64)
    """


class WinPercentage(MeanOf, metric=WIN_PERCENTAGE):
    """Win percentage, in percent, higher is better: the mean of `win` over images; `update` takes the two methods' drops.

    Images without a value are left out and counted in `win_percentage_failed`.

    Example:
        >>> metric = WinPercentage()
        >>> metric.update(torch.tensor([10.0, 0.0, 30.0, 1.0]), torch.tensor([20.0, 0.0, 5.0, 2.0]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """


class ADCC(MeanOf, metric=OF_IMAGE):
    """ADCC, in percent, higher is better: the mean of `adcc` over images.

    `update` takes Y and O, `[N]` each, the maps, and the maps of the masked images, `[N, H, W]` each. Images without a value
    are left out and counted in `adcc_failed`.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
        >>> metric = ADCC()
        >>> metric.update(torch.tensor([0.8]), torch.tensor([0.8]), maps, maps)
        >>> metric.compute()  # 3 / (1 / 1 + 1 / 0.5 + 1 / 1)
        tensor(75., dtype=torch.float64)
    """


class Coherency(MeanOf, metric=COHERENCY):
    """Coherency, in percent, higher is better: the mean of `coherency` over images.

    `update` takes the maps and the maps of the masked images, `[N, H, W]` each. Images of which either map is constant are left
    out and counted in `coherency_failed`.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])
        >>> metric = Coherency()
        >>> metric.update(maps, 1 - maps)
        >>> metric.compute()
        tensor(0., dtype=torch.float64)
    """


class Complexity(MeanOf, metric=COMPLEXITY):
    """Complexity, in percent, lower is better: the mean of `complexity` over images; `update` takes the maps, `[N, H, W]`.

    Example:
        >>> metric = Complexity()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """
