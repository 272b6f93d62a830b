"""One forward pass of the first images: outputs, confidences, and the statistics at the BatchNorms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.evaluation.model_check.last_operation import LastOperations
from xaieval.inference.targets import Confidence, find
from xaieval.inference.tasks import Followed, Task

__all__ = ["BatchNormInput", "Look", "look_at", "recorded_inputs", "trained_batch_norms"]

Call = Callable[[Tensor], Any]


@dataclass(frozen=True)
class BatchNormInput:
    """How far the inputs of a BatchNorm are from those that it was trained on, by channel.

    Attributes:
        variance_ratio: Variance of the batch divided by the stored one, `[C]`.
        divergence: Kullback-Leibler divergence of the normal distribution of the batch from the stored one, `[C]`.
    """

    variance_ratio: Tensor
    divergence: Tensor


@dataclass(frozen=True)
class Look:
    """What a model makes of images in one forward pass.

    Attributes:
        images: The images `[N, C, H, W]`, on the model's device.
        output: The model's output.
        read: What the task reads from it.
        followed: The predicted class, detection or region of each image.
        confidence: Its confidence, `[N]`.
        batch_norms: The inputs of the BatchNorms, in order of execution.
        made_by: The kind of operation that made the output; see `LastOperations.kind_of`.
        logits_at: Where the output has the logits of probabilities that the task reads: an index or a key.
    """

    images: Tensor
    output: Any
    read: Any
    followed: Followed
    confidence: Tensor
    batch_norms: list[BatchNormInput]
    made_by: str | None = None
    logits_at: int | str | None = None

    @property
    def classes(self) -> int | None:
        """The number of classes; None for a detector, whose output does not tell."""
        return self.read.shape[1] if isinstance(self.read, Tensor) and self.read.ndim > 1 else None


def look_at(model: nn.Module, call: Call, task: Task, kind: Confidence, images: Tensor) -> Look:
    """Run the model on images.

    Args:
        model: The borrowed model.
        call: Runs it.
        task: How its output is read.
        kind: The confidence of the protocol.
        images: Images `[N, C, H, W]`, on the model's device.
    """
    with recorded_inputs(model) as batch_norms, torch.no_grad():
        with LastOperations() as operations:
            output = call(images)
        read = task.read(output)
        followed = task.follow(read, "predicted", None)
        found = find(output, getattr(task, "output", None))
        confidence = task.confidence(read, followed, kind)
        made_by, logits_at = operations.kind_of(found), _logits_at(output, found)
        return Look(images, output, read, followed, confidence, batch_norms, made_by, logits_at)


def _logits_at(output: Any, found: Any) -> int | str | None:
    """Where an output of several parts has the logits whose softmax or sigmoid was found instead; None if nowhere."""
    parts = output.items() if isinstance(output, Mapping) else enumerate(output) if isinstance(output, tuple | list) else ()
    for where, part in parts:
        if part is not found and isinstance(part, Tensor) and isinstance(found, Tensor) and part.shape == found.shape:
            made = (part.sigmoid(), part.softmax(dim=1)) if part.ndim > 1 else (part.sigmoid(),)
            if any(torch.allclose(one, found, atol=1e-4) for one in made):
                return where
    return None


@contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[list[BatchNormInput]]:
    """Record the statistics at BatchNorms with stored statistics, in order of execution, while the context is active."""
    records: list[BatchNormInput] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        stored = _stored(module)
        if stored is not None:
            records.append(_statistics(inputs[0], *stored, float(module.eps)))  # type: ignore[arg-type]  # a number

    handles = [module.register_forward_pre_hook(record) for module in trained_batch_norms(model)]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def trained_batch_norms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorms whose stored statistics are not those of a new network."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [module for module in norms if (stored := _stored(module)) and (stored[0].any() or (stored[1] != 1).any())]


def _stored(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """The mean and the variance that a BatchNorm keeps, in float32; None if it keeps none."""
    mean, variance = module.running_mean, module.running_var
    return (mean.float(), variance.float()) if isinstance(mean, Tensor) and isinstance(variance, Tensor) else None


def _statistics(inputs: Tensor, mean: Tensor, variance: Tensor, epsilon: float) -> BatchNormInput:
    """The inputs `[N, C, ...]` against the stored statistics."""
    values = inputs.detach().float()
    others = [axis for axis in range(values.ndim) if axis != 1]
    centre = values.mean(dim=others, keepdim=True)
    spread = (values - centre).square_().mean(dim=others)  # Tensor.var takes several times as long on a CPU
    ratio = (spread + epsilon) / (variance + epsilon)
    shift = (centre.flatten() - mean).square() / (variance + epsilon)
    return BatchNormInput(ratio, (ratio + shift - 1 - ratio.log()) / 2)
