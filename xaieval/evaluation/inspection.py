"""The method and the model on altered images, or for other targets: maps, logits and activations of one pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.errors import MetricError
from xaieval.evaluation.job import Job
from xaieval.evaluation.maps import BatchPass, finished_maps, raw_maps, run_batch
from xaieval.explainers import Context, joins_layers
from xaieval.inference.tasks import Followed
from xaieval.masking import upsample

__all__ = ["Inspected", "inspected", "logits_of_classifier"]


@dataclass(frozen=True)
class Inspected:
    """What the method and the model say about images; an `xaieval.metrics.metric.Inspection`.

    Attributes:
        job: Its only pair is the method and the layer.
        batch_pass: Of the images.
        raw: The method's maps `[N, h, w]`.
    """

    job: Job
    batch_pass: BatchPass
    raw: Tensor

    @property
    def attributions(self) -> Tensor:
        """The maps at the images' size, not normalised."""
        return upsample(self.raw, self.batch_pass.context.images.shape[2:])

    @cached_property
    def maps(self) -> Tensor:
        """The maps in [0, 1]; NaN where a map has NaN or inf."""
        finished = finished_maps(self.raw, self.batch_pass.context.images, self.job.protocol)
        return finished.maps.masked_fill(finished.invalid.view(-1, *[1] * (finished.maps.ndim - 1)), torch.nan)

    @property
    def predicted(self) -> Tensor:
        """The predicted classes."""
        return self.batch_pass.predicted

    @property
    def logits(self) -> Tensor:
        """The logits of a classifier."""
        return logits_of_classifier(self.batch_pass.context)

    @property
    def activation(self) -> Tensor | None:
        """The output of the method's layer; None without a layer, or with several."""
        [(explainer, layer)] = self.job.pairs
        return None if layer is None or joins_layers(explainer) else self.batch_pass.activations[layer].detach()


def inspected(job: Job, batch: Batch, followed: Followed | None) -> Inspected:
    """One pass of the method.

    Args:
        job: Its only pair is the method and the layer.
        batch: Original or altered images.
        followed: What is explained.
    """
    with torch.enable_grad():  # a metric's function may have switched gradients off
        batch_pass = run_batch(job, batch, followed)
    [raw] = raw_maps(job, batch_pass)
    return Inspected(job, batch_pass, raw)


def logits_of_classifier(context: Context) -> Tensor:
    """The logits `[N, K]` of a pass.

    Raises:
        MetricError: The model is not a classifier.
    """
    if context.logits is None:
        raise MetricError(
            f"a metric compares logits or classes of a whole image, which only a classifier has, and the task is "
            f"{type(context.task).__name__.lower()}; leave the metric out"
        )
    return context.logits
