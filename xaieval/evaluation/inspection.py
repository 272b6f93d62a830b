"""Methods and the model on altered images, or for other targets: maps, and if wanted logits and activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.errors import MetricError
from xaieval.evaluation.job import Job
from xaieval.evaluation.maps import BatchPass, given_without_pass, raw_maps, run_batch
from xaieval.inference.tasks import Followed, Task
from xaieval.masking import finish, upsample

__all__ = ["Inspected", "inspected", "logits_of_classifier"]


@dataclass(frozen=True)
class Inspected:
    """What a method and the model say about images; an `xaieval.metrics.metric.Inspection`. It does not hold the images.

    Attributes:
        raw: The method's maps `[N, h, w]`.
        size: Of the images.
        task: How the model's output is read.
        protocol: How maps are normalised.
        said: The predicted classes, and the logits of a classifier; None where only maps were asked for.
        activation: The output of the method's layer, if it is kept.
    """

    raw: Tensor
    size: Sequence[int]
    task: Task
    protocol: Protocol
    said: tuple[Tensor, Tensor | None] | None = None
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
    def predicted(self) -> Tensor:
        """The predicted classes."""
        return self._said[0]

    @property
    def logits(self) -> Tensor:
        """The logits of a classifier."""
        return logits_of_classifier(self._said[1], self.task)

    @property
    def _said(self) -> tuple[Tensor, Tensor | None]:
        if self.said is None:
            raise MetricError(
                "a metric reads the model's output for altered images, but it asked for maps alone; let it need 'inspect'"
            )
        return self.said


def inspected(
    job: Job, batch: Batch, followed: Followed | None, with_output: bool = False, with_layers: bool = False
) -> list[Inspected]:
    """What is seen of each pair of a job, in one pass at most beside those of the methods themselves.

    Args:
        job: With any number of pairs.
        batch: Original or altered images.
        followed: What is explained.
        with_output: Keep what the model says of the images.
        with_layers: Keep the output of each method's layer.
    """
    without = None if with_output or followed is None else given_without_pass(job, batch, followed)
    with torch.enable_grad():  # a metric's function may have switched gradients off
        given = without or run_batch(job, batch, followed)
    size = given.context.images.shape[2:]
    said = (given.predicted, given.context.logits) if with_output and isinstance(given, BatchPass) else None
    kept = {layer: activation.detach() for layer, activation in given.activations.items()} if with_layers else {}
    return [
        Inspected(raw, size, job.task, job.protocol, said, None if layer is None else kept.get(layer))
        for raw, (_, layer) in zip(raw_maps(job, given), job.pairs, strict=True)
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
