"""What all classes have in common: the mean of a metric over images, across batches and processes.

`MeanOverImages` takes any `Metric`. `MeanOf` makes a class of one metric.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric as TorchMetric

from xaieval.metrics.metric import Metric

__all__ = ["MeanOf", "MeanOverImages"]


class MeanOverImages(TorchMetric):
    """The mean of any metric over images, in the metric's unit.

    Accumulates over batches and, under torch.distributed, over processes. Images without a value (NaN) are left out and counted
    in `<name>_failed`; if no image has a value, the result is NaN. The states carry the metric's name, because torchmetrics'
    `MetricCollection` merges metrics whose states have equal names and equal values after the first batch.

    Args:
        metric: The metric. `update` takes its inputs in the order of `metric.needs`.
        **kwargs: Passed to torchmetrics.

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

    def update(self, *inputs: Any) -> None:
        """Add one batch of the metric's inputs, such as the confidences on the original and on the masked images."""
        result = self.metric.per_image(*inputs)
        values = result if isinstance(result, Tensor) else result[0]
        failed = values.isnan()
        for state, amount in (("total", values.nansum()), ("count", (~failed).sum()), ("failed", failed.sum())):
            name = f"{self.metric.name}_{state}"
            setattr(self, name, getattr(self, name) + amount)

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean over all images so far, in the metric's unit."""
        mean: Tensor = getattr(self, f"{self.metric.name}_total") / getattr(self, f"{self.metric.name}_count")
        return mean


class MeanOf(MeanOverImages):
    """Base class for the mean of one metric, which the subclass names: `class AverageDrop(MeanOf, metric=AVERAGE_DROP)`.

    The subclass takes its direction from the metric. It is a class statement and not a function call, so that it can be
    pickled, documented and checked by type checkers.

    Args:
        **kwargs: Passed to torchmetrics.
    """

    of: ClassVar[Metric]

    def __init_subclass__(cls, metric: Metric | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if metric is not None:  # a subclass of `AverageDrop` keeps its metric
            cls.of, cls.higher_is_better = metric, metric.higher_is_better

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(self.of, **kwargs)
