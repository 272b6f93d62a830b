"""Methods and the model on altered images, or for other targets: maps, logits and activations of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.errors import MetricError
from xaieval.evaluation.job import Job
from xaieval.evaluation.maps import raw_maps, run_batch
from xaieval.inference.tasks import Followed, Task
from xaieval.masking import finish, upsample

__all__ = ["Inspected", "inspected", "logits_of_classifier"]


@dataclass(frozen=True)
class Inspected:
    """What a method and the model say about images; an `xaieval.metrics.metric.Inspection`. It does not hold the images.

    Attributes:
        raw: The method's maps `[N, h, w]`.
        size: Of the images.
        predicted: The predicted classes.
        outputs: The logits; None if the model is not a classifier.
        task: How the model's output is read.
        protocol: How maps are normalised.
        activation: The output of the method's layer, if it is kept.
    """

    raw: Tensor
    size: Sequence[int]
    predicted: Tensor
    outputs: Tensor | None
    task: Task
    protocol: Protocol
    activation: Tensor | None = None

    @property
    def attributions(self) -> Tensor:
        """The maps at the images' size, not normalised."""
        return upsample(self.raw, self.size)

    @property
    def finished(self) -> Tensor:
        """The maps in [0, 1]; zeros where a map has NaN or inf."""
        return finish(self.raw, self.size, self.protocol).maps

    @property
    def maps(self) -> Tensor:
        """The maps in [0, 1]; NaN where a map has NaN or inf."""
        finished = finish(self.raw, self.size, self.protocol)
        return finished.maps.masked_fill(finished.invalid.view(-1, *[1] * (finished.maps.ndim - 1)), torch.nan)

    @property
    def logits(self) -> Tensor:
        """The logits of a classifier."""
        return logits_of_classifier(self.outputs, self.task)


def inspected(job: Job, batch: Batch, followed: Followed | None, with_layers: bool = False) -> list[Inspected]:
    """What is seen of each pair of a job, in one pass.

    Args:
        job: With any number of pairs.
        batch: Original or altered images.
        followed: What is explained.
        with_layers: Keep the output of each method's layer.
    """
    with torch.enable_grad():  # a metric's function may have switched gradients off
        seen = run_batch(job, batch, followed)
    outputs, size = seen.context.logits, seen.context.images.shape[2:]
    kept = {layer: activation.detach() for layer, activation in seen.activations.items()} if with_layers else {}
    return [
        Inspected(raw, size, seen.predicted, outputs, job.task, job.protocol, None if layer is None else kept.get(layer))
        for raw, (_, layer) in zip(raw_maps(job, seen), job.pairs, strict=True)
    ]


def logits_of_classifier(logits: Tensor | None, task: Task) -> Tensor:
    """The logits `[N, K]` of a pass.

    Raises:
        MetricError: The model is not a classifier.
    """
    if logits is None:
        raise MetricError(
            f"a metric compares logits or classes of a whole image, which only a classifier has, and the task is "
            f"{type(task).__name__.lower()}; leave the metric out"
        )
    return logits
