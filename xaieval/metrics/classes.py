"""The metrics for one's own loop: torchmetrics classes that add up over batches and over processes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from xaieval.metrics.functional import drop, gain, increase

__all__ = ["AverageDrop", "AverageGain", "IncreaseInConfidence"]


class _Mean(TorchMetric):
    """The mean of one number an image; NaN values are left out and counted.

    The states carry the metric's name: torchmetrics' MetricCollection merges metrics whose states have equal names and
    values after the first batch.
    """

    full_state_update = False
    is_differentiable = False
    prefix: ClassVar[str]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_dtype(torch.float64)
        self.add_state(f"{self.prefix}_total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state(f"{self.prefix}_count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state(f"{self.prefix}_failed", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def compute(self) -> Float[Tensor, ""]:
        """The mean over all images so far, in percent."""
        mean: Tensor = getattr(self, f"{self.prefix}_total") / getattr(self, f"{self.prefix}_count")
        return mean

    def _add(self, values: Tensor) -> None:
        failed = values.isnan()
        for state, amount in (("total", values.nansum()), ("count", (~failed).sum()), ("failed", failed.sum())):
            name = f"{self.prefix}_{state}"
            setattr(self, name, getattr(self, name) + amount)


class AverageDrop(_Mean):
    """Average Drop, in percent, lower is better; adds up over batches and, under torch.distributed, over processes.

    Images whose confidence is not positive, or with a value that is not finite, are left out and counted in `drop_failed`;
    without any valid image the result is NaN.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> metric = AverageDrop()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        >>> metric.compute()
        tensor(12.5000, dtype=torch.float64)
    """

    higher_is_better = False
    prefix = "drop"

    def update(self, confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> None:
        """Add a batch of confidences on the original and on the masked images."""
        self._add(drop(confidence, masked_confidence))


class AverageGain(_Mean):
    """Average Gain, in percent, higher is better; adds up over batches and, under torch.distributed, over processes.

    Images whose confidences are no positive probabilities, or with a value that is not finite, are left out and counted in
    `gain_failed`; without any valid image the result is NaN.

    Reference:
        Zhang et al., "Opti-CAM", CVIU 2024 (arXiv 2301.07002), section 4.2.

    Example:
        >>> metric = AverageGain()
        >>> metric.update(torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4]))
        >>> metric.compute()
        tensor(10.0000, dtype=torch.float64)
    """

    higher_is_better = True
    prefix = "gain"

    def update(self, confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> None:
        """Add a batch of confidences on the original and on the masked images."""
        self._add(gain(confidence, masked_confidence))


class IncreaseInConfidence(_Mean):
    """Increase in Confidence, in percent, higher is better; adds up over batches and, under torch.distributed, over processes.

    Images whose confidence is not positive, or with a value that is not finite, are left out and counted in
    `increase_failed`; without any valid image the result is NaN.

    Reference:
        Chattopadhay et al., "Grad-CAM++", WACV 2018 (arXiv 1710.11063), section 4.1.

    Example:
        >>> metric = IncreaseInConfidence()
        >>> metric.update(torch.tensor([0.8, 0.5]), torch.tensor([0.6, 0.9]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    higher_is_better = True
    prefix = "increase"

    def update(self, confidence: Float[Tensor, " n"], masked_confidence: Float[Tensor, " n"]) -> None:
        """Add a batch of confidences on the original and on the masked images."""
        self._add(increase(confidence, masked_confidence))
