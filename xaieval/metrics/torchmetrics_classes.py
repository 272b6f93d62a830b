"""The metrics for one's own loop: torchmetrics classes that add up over batches and over processes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from xaieval.metrics.confidence import (
    AVERAGE_DROP,
    AVERAGE_GAIN,
    CONFIDENCE_RATIO,
    DROP_IN_DELETION,
    INCREASE_IN_CONFIDENCE,
    WIN_PERCENTAGE,
)
from xaieval.metrics.metric import Metric

__all__ = [
    "AverageDrop",
    "AverageGain",
    "ConfidenceRatio",
    "DropInDeletion",
    "IncreaseInConfidence",
    "MeanOverImages",
    "WinPercentage",
]


class MeanOverImages(TorchMetric):
    """The mean of any metric over images; adds up over batches and, under torch.distributed, over processes.

    Images without a value (NaN) are left out and counted in `<name>_failed`; without any value the result is NaN. The states
    carry the metric's name: torchmetrics' MetricCollection merges metrics whose states have equal names and values after the
    first batch.

    Args:
        metric: which one; `update` takes what it needs, in the order of `metric.needs`.
        **kwargs: for torchmetrics.

    Example:
        >>> bright = Metric("bright", lambda maps: (maps > 0.5).flatten(1).double().mean(1), None, needs=("maps",))
        >>> metric = MeanOverImages(bright)
        >>> metric.update(torch.tensor([[[0.0, 0.9]], [[0.8, 0.9]]]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, metric: Metric, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_dtype(torch.float64)
        self.metric = metric
        self.add_state(f"{metric.name}_total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(f"{metric.name}_count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state(f"{metric.name}_failed", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, *evidence: Any) -> None:
        """Add a batch of what the metric needs, such as confidences on the original and on the masked images."""
        found = self.metric.per_image(*evidence)
        values = found if isinstance(found, Tensor) else found[0]
        failed = values.isnan()
        for state, amount in (("total", values.nansum()), ("count", (~failed).sum()), ("failed", failed.sum())):
            name = f"{self.metric.name}_{state}"
            setattr(self, name, getattr(self, name) + amount)

    def compute(self) -> Float[Tensor, ""]:
        """The mean over all images so far, in the metric's unit."""
        mean: Tensor = getattr(self, f"{self.metric.name}_total") / getattr(self, f"{self.metric.name}_count")
        return mean


class AverageDrop(MeanOverImages):
    """Average Drop, in percent, lower is better; adds up over batches and, under torch.distributed, over processes.

    Images whose confidence is not positive, or with a value that is not finite, are left out and counted in
    `average_drop_failed`; without any valid image the result is NaN.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> metric = AverageDrop()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        >>> metric.compute()
        tensor(12.5000, dtype=torch.float64)
    """

    higher_is_better = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(AVERAGE_DROP, **kwargs)


class AverageGain(MeanOverImages):
    """Average Gain, in percent, higher is better; adds up over batches and, under torch.distributed, over processes.

    Images whose confidences are no positive probabilities, or with a value that is not finite, are left out and counted in
    `average_gain_failed`; without any valid image the result is NaN.

    Reference:
        Zhang et al., "Opti-CAM", CVIU 2024 (arXiv 2301.07002), section 4.2.

    Example:
        >>> metric = AverageGain()
        >>> metric.update(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4]))
        >>> metric.compute()
        tensor(10.0000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(AVERAGE_GAIN, **kwargs)


class IncreaseInConfidence(MeanOverImages):
    """Increase in Confidence, in percent, higher is better; adds up over batches and, under torch.distributed, over processes.

    Images whose confidence is not positive, or with a value that is not finite, are left out and counted in
    `increase_in_confidence_failed`; without any valid image the result is NaN.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> metric = IncreaseInConfidence()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(INCREASE_IN_CONFIDENCE, **kwargs)


class DropInDeletion(MeanOverImages):
    """Average Drop in Deletion (ADD), in percent, higher is better; adds up over batches and processes.

    `update` takes Y and the confidence on the image masked by `1 - m`. Images whose Y is not positive, or with a value that is
    not finite, are left out and counted in `drop_in_deletion_failed`.

    Reference:
        Jung and Oh, "Towards Better Explanations of Class Activation Mapping" (LIFT-CAM), ICCV 2021 (arXiv 2102.05228).

    Example:
        >>> metric = DropInDeletion()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.75]))
        >>> metric.compute()
        tensor(12.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(DROP_IN_DELETION, **kwargs)


class ConfidenceRatio(MeanOverImages):
    """Confidence ratio, in percent, higher is better: the mean of `confidence_ratio` over images.

    Images whose confidence is not positive, or with a value that is not finite, are left out and counted in
    `confidence_ratio_failed`.

    Example:
        >>> metric = ConfidenceRatio()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.75]))
        >>> metric.compute()
        tensor(112.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(CONFIDENCE_RATIO, **kwargs)


class WinPercentage(MeanOverImages):
    """Win percentage, in percent, higher is better: how often one method's drop is smaller than another's.

    `update` takes the drops of the one and of the other on the same images. A tie is no win. Images with a value that is not
    finite are left out and counted in `win_percentage_failed`.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> metric = WinPercentage()
        >>> metric.update(torch.tensor([10.0, 0.0, 30.0, 1.0]), torch.tensor([20.0, 0.0, 5.0, 2.0]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(WIN_PERCENTAGE, **kwargs)
