"""The class of metrics that compare the maps of many images with each other."""

from __future__ import annotations

from typing import Any

import torch  # noqa: F401  # the examples use it
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.utilities import dim_zero_cat

from xaieval.metrics.sufficiency import Judge

__all__ = [
    "MeanOverSet",
]


class MeanOverSet(TorchMetric):
    """The mean of `sufficiency` or `consistency` over a set of images, in percent, across batches and processes.

    All maps are kept until `compute`, since each is compared with all others. Images without a value are left out; if no image
    has a value, the result is NaN.

    Args:
        judge: Function from maps `[N, H, W]` and predictions `[N]` to values `[N]`.
        **kwargs: Passed to torchmetrics.

    Example:
        >>> from xaieval.metrics import consistency
        >>> metric = MeanOverSet(consistency)
        >>> metric.update(torch.tensor([[[1.0, 0.0]], [[0.9, 0.1]]]), torch.tensor([3, 3]))
        >>> metric.update(torch.tensor([[[0.9, 0.0]], [[0.0, 1.0]]]), torch.tensor([5, 5]))
        >>> round(float(metric.compute()), 2)
        33.33
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    maps: list[Tensor]
    predicted: list[Tensor]

    def __init__(self, judge: Judge, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.judge = judge
        self.add_state("maps", [], dist_reduce_fx="cat")
        self.add_state("predicted", [], dist_reduce_fx="cat")

    def update(self, maps: Tensor, predicted: Tensor) -> None:
        """Add the maps `[N, H, W]` and predictions `[N]` of one batch."""
        self.maps.append(maps)
        self.predicted.append(predicted)

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean over all images so far, in percent."""
        return self.judge(dim_zero_cat(self.maps), dim_zero_cat(self.predicted)).nanmean()
