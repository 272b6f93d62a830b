"""Lend the model to a metric of another library, for one image at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from xaieval.data.batches import Batch
from xaieval.errors import MetricError
from xaieval.evaluation.inspection import inspected, logits_of_classifier
from xaieval.evaluation.job import Job
from xaieval.explainers import Context
from xaieval.explainers.adapters.base import CalledModel, errors_as, seeded
from xaieval.explainers.adapters.lending import lent
from xaieval.inference.tasks import Followed

__all__ = ["LentImage", "judge_one_by_one"]


@dataclass(frozen=True)
class LentImage:
    """One image with what another library needs; an `xaieval.metrics.metric.Lent`.

    Attributes:
        model: A module from images to logits.
        image: The image, `[1, C, H, W]`.
        target: The explained class, `[1]`.
        attribution: The map before normalisation, at the size of the image, `[1, H, W]`.
        explain: A function from altered images `[G, C, H, W]` and classes `[G]` to maps like this one, `[G, H, W]`.
    """

    model: nn.Module
    image: Tensor
    target: Tensor
    attribution: Tensor
    explain: Callable[[Tensor, Tensor], Tensor]


def judge_one_by_one(
    job: Job, batch: Batch, context: Context, attributions: Tensor, judge: Callable[[LentImage, int], float]
) -> Tensor:
    """What a library's metric says of each image, `[N]`.

    Random numbers of torch and NumPy are seeded for each image, so that values do not depend on the batch. The model comes back
    as it was.

    Args:
        job: Its only pair is the method and the layer.
        batch: The original images.
        context: Of the original images.
        attributions: Their maps, not normalised.
        judge: From an image and its number in the batch to the value of the metric.

    Raises:
        MetricError: The model is not a classifier, or the library raised an error.
    """
    logits_of_classifier(context.logits, context.task)
    values = []
    with job.runner.lent(), lent(job.runner.model):
        plain = replace(job, runner=replace(job.runner, forward=job.runner.inside, folding=None))
        for number, image_id in enumerate(batch.ids):
            here = slice(number, number + 1)

            def explain(images: Tensor, classes: Tensor, name: str = image_id) -> Tensor:
                altered = Batch(images, labels=None, ids=[name] * len(images), failed=[])
                [found] = inspected(plain, altered, Followed.all(classes))
                return found.attributions

            one = LentImage(
                CalledModel(context, context.read), context.images[here], context.targets[here], attributions[here], explain
            )
            with seeded(context.seed, image_id, context.images.device), errors_as(_does_not_work):
                values.append(judge(one, number))
    return torch.tensor(values, dtype=torch.float64, device=context.images.device)


def _does_not_work(reason: str) -> MetricError:
    return MetricError(f"a metric of another library does not work here: {reason}; leave it out, or change how it is set up")
