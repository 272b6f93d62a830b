"""All checks of the first batch, in at most three forward passes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.errors import XaievalError
from xaieval.evaluation.first_pass import FirstPass
from xaieval.evaluation.model_check.data import OTHER_CLASSES, find_in_data, find_other_classes
from xaieval.evaluation.model_check.look import Look, look_at
from xaieval.evaluation.model_check.normalisation import find_wrong_normalisation
from xaieval.evaluation.model_check.outputs import find_in_outputs, find_several_outputs
from xaieval.evaluation.model_check.precision import find_in_precision
from xaieval.evaluation.model_check.repeats import find_in_repeats
from xaieval.evaluation.model_check.weights import find_random_weights
from xaieval.evaluation.request import Request
from xaieval.inference.batch_limit import BatchLimit, is_out_of_memory
from xaieval.inference.reproducibility import same_random_numbers
from xaieval.probe.hooks import to_device
from xaieval.results.findings import Finding

__all__ = ["ModelCheck", "check_model"]

MOST = 32  # images; more would tell little more
MOST_IN_BUDGET = 2  # images where memory is limited, and nothing has been measured yet


@dataclass
class ModelCheck:
    """What the first batch shows about a model.

    Attributes:
        findings: Reasons not to trust the numbers.
        classes: The number of classes of the model; None if its output does not tell.
        trial: How the precision of the run was chosen; empty if it was named.
    """

    findings: list[Finding] = field(default_factory=list)
    classes: int | None = None
    trial: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The entries of the manifest."""
        trial = {"precision_trial": dict(self.trial)} if self.trial else {}
        return {"classes": self.classes, "findings": [finding.to_dict() for finding in self.findings], **trial}


def check_model(looked: FirstPass, batch: Batch, device: torch.device, limit: BatchLimit, loader: Any = ()) -> ModelCheck:
    """What the first images show about the model, its weights, the preparation of its images, and the data.

    A model that cannot run these passes is not judged by them: its own errors show when the run begins.

    Args:
        looked: The first pass, whose findings come first.
        batch: The first batch that has a readable image.
        device: The device of the borrowed model.
        limit: The number of images in a pass.
        loader: Where the batch is from.
    """
    checked = _check_passes(looked, batch, device, limit)
    checked.findings += find_in_data(batch, loader) + find_in_precision(looked.request)
    checked.trial = looked.trial
    return checked


def _check_passes(looked: FirstPass, batch: Batch, device: torch.device, limit: BatchLimit) -> ModelCheck:
    """The checks that run the model, on fewer images if they do not fit in memory."""
    size = min(len(batch), limit.size, MOST if limit.budget is None else MOST_IN_BUDGET)
    while size:
        with same_random_numbers(), suppress(_TooManyError):
            return _check(looked, batch.part(0, size, []), device)
        size //= 2
    return ModelCheck(list(looked.findings))


class _TooManyError(Exception):
    """The images do not fit in memory."""


class _CannotRunError(Exception):
    """The model does not take these images, such as half of a batch."""


def _check(looked: FirstPass, batch: Batch, device: torch.device) -> ModelCheck:
    request, images = looked.request, to_device(batch.images, device)
    checked = ModelCheck([*looked.findings, *find_random_weights(request.model)])
    look_again = partial(_look, request)
    with suppress(_CannotRunError):
        look = look_again(images)
        checked.classes = look.classes
        checked.findings += find_in_outputs(look, request.protocol.confidence, getattr(request.task, "single", None))
        alone = request.inference.deterministic  # which runs one image at a time
        checked.findings += find_in_repeats(request.model, look, partial(_confidences, request, look), alone)
        checked.findings += _other_classes(request, look, batch)
        found = {finding.name for finding in checked.findings[len(looked.findings) :]}
        if found <= {
            "probabilities_for_logits",
            "near_uniform_outputs",
            OTHER_CLASSES,
        }:  # a random or broken model has no right one
            checked.findings += find_wrong_normalisation(request.model, request.call, look, look_again)
        with _models_may_fail():
            checked.findings += find_several_outputs(look, request.task, request.call)
    return checked


def _other_classes(request: Request, look: Look, batch: Batch) -> list[Finding]:
    """What the truth of the first images says of the classes that are followed, if a metric compares maps with it."""
    of_classes = getattr(request.task, "single", None) != "value"
    if batch.truth is None or not of_classes or not any("masks" in metric.needs for metric in request.metrics):
        return []
    with suppress(XaievalError):  # which the run raises itself
        labels = to_device(batch.labels, look.images.device) if isinstance(batch.labels, Tensor) else batch.labels
        followed = request.task.follow(look.read, request.protocol.target, labels)
        return find_other_classes(batch, followed.classes[followed.has_target].tolist())
    return []


@contextmanager
def _models_may_fail() -> Iterator[None]:
    """A model can raise anything. Its errors show when the run begins."""
    try:
        yield
    except Exception as error:
        raise (_TooManyError if is_out_of_memory(error) else _CannotRunError) from error


def _look(request: Request, images: Tensor) -> Look:
    with _models_may_fail():
        return look_at(request.model, request.call, request.task, request.protocol.confidence, images)


def _confidences(request: Request, look: Look, images: Tensor, numbers: Tensor) -> Tensor:
    """The confidences of what is followed on the images of these numbers."""
    with torch.no_grad(), _models_may_fail():
        read = request.task.read(request.call(images))
        return request.task.confidence(read, look.followed.of(numbers), request.protocol.confidence)
