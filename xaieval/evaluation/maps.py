"""From a batch to the explainers' maps: one forward and one partial backward pass serve all layers and methods."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.errors import ExplainerError
from xaieval.evaluation.job import Job
from xaieval.explainers import Context, Explainer, joins_layers, needs_logits, needs_model
from xaieval.inference.targets import compared_classes
from xaieval.inference.tasks import Classification, Followed
from xaieval.masking import Finished, finish
from xaieval.probe.detector_frames import Frame
from xaieval.probe.hooks import run, to_device
from xaieval.probe.layouts import Layout

__all__ = ["BatchPass", "Given", "finished_maps", "given_without_pass", "raw_maps", "run_batch"]


@dataclass(frozen=True)
class Given:
    """What explainers are given to make maps of, on the device.

    Attributes:
        context: What every explainer is given.
        activations: By layer address.
        gradients: By layer address.
        layouts: By layer address.
        frame: Position of the images in the model's padded input, for detectors that resize and pad images themselves.
    """

    context: Context
    activations: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    frame: Frame | None = None

    def at(self, layer: str | None, contiguous: bool = True) -> Context:
        """The context of an explainer at a layer.

        Args:
            layer: Its address; None for an explainer that needs none.
            contiguous: Make the tensors contiguous, as other libraries expect; False keeps the model's memory order, which
                saves copies.
        """
        if layer is None:
            return self.context
        activation, gradient = self.activations[layer], self.gradients.get(layer)
        if contiguous:
            activation, gradient = activation.contiguous(), None if gradient is None else gradient.contiguous()
        return replace(self.context, layer=layer, activation=activation, gradient=gradient, layout=self.layouts[layer])

    def for_explainer(self, explainer: Explainer, layer: str | None) -> Context:
        """The context of a pair of a job; for an explainer that joins layers, with those of the single layers."""
        contiguous = needs_model(explainer)
        if not joins_layers(explainer):
            return self.at(layer, contiguous)
        return replace(self.context, layer=layer, layers=tuple(self.at(address, contiguous) for address in self.activations))


@dataclass(frozen=True, kw_only=True)
class BatchPass(Given):
    """The result of one pass over images: what explainers are given, and what the model says.

    Attributes:
        predicted: Predicted classes `[N]`.
        has_target: Whether an image has a target to explain, `[N]`.
        confidence: Confidence of the targets, `[N]`.
    """

    predicted: Tensor
    has_target: Tensor
    confidence: Tensor

    @property
    def targets(self) -> Tensor:
        """The explained classes `[N]`; -1 where an image has no target."""
        followed = self.context.followed
        return self.context.targets if followed is None else followed.classes

    def without_layers(self) -> BatchPass:
        """A copy that holds no activations and gradients, so that their memory can be freed."""
        return replace(self, activations={}, gradients={})


def run_batch(job: Job, batch: Batch, followed: Followed | None = None) -> BatchPass:
    """One forward and one partial backward pass: predictions, targets, and activations and gradients at all layers.

    Args:
        job: What is measured.
        batch: At least one image.
        followed: For altered images, the targets of the original ones. Default: chosen by the protocol.
    """
    images = _on_device(job, batch)
    labels = to_device(batch.labels, job.device) if isinstance(batch.labels, Tensor) else batch.labels
    runner, task, protocol = job.runner, job.task, job.protocol
    differentiable = any(explainer.needs_gradient for explainer, _ in job.pairs)
    passed = run(runner.model, runner.lay_out(images), job.layers, differentiable, runner.inside)
    read = task.read(passed.output)
    followed = followed or task.follow(read, protocol.target, labels)
    if protocol.against is not None and not followed.details:
        followed = replace(
            followed, details=compared_classes(read, followed.classes, protocol.against, protocol.against_weight)
        )
    confidence = task.confidence(read, followed, protocol.confidence)
    gradients: dict[str, Tensor] = {}
    if differentiable and followed.has_target.any():
        gradients = passed.gradients(task.score(read, followed) if protocol.gradient == "logit" else confidence)
    elif differentiable:  # no image has a target, so nothing has a gradient
        gradients = {address: torch.full_like(activation, torch.nan) for address, activation in passed.activations.items()}
    return BatchPass(
        context=_context(job, batch, images, followed, read),
        predicted=task.predicted(read),
        has_target=followed.has_target,
        confidence=confidence.detach(),
        activations=passed.activations,
        gradients=gradients,
        layouts=passed.layouts,
        frame=passed.frame,
    )


def given_without_pass(job: Job, batch: Batch, followed: Followed) -> Given | None:
    """What explainers are given that need no pass of the run, for known targets; None if one of the job needs it."""
    compares = job.protocol.against is not None and not followed.details  # by the logits of these images
    explainers = [explainer for explainer, _ in job.pairs]
    if compares or any(one.needs_layer or one.needs_gradient or needs_logits(one) for one in explainers):
        return None
    return Given(_context(job, batch, _on_device(job, batch), followed, None))


def _on_device(job: Job, batch: Batch) -> Tensor:
    return to_device(batch.images, job.device).contiguous()


def _context(job: Job, batch: Batch, images: Tensor, followed: Followed, read: Any) -> Context:
    """What every explainer is given; without logits if nothing was read."""
    return Context(
        model=job.runner.model,
        images=images,
        targets=followed.classes.clamp(min=0) if isinstance(job.task, Classification) else followed.classes,
        logits=read.detach() if isinstance(job.task, Classification) and read is not None else None,
        ids=batch.ids,
        seed=job.seed,
        task=job.task,
        protocol=job.protocol,
        followed=followed,
        call=job.runner.inside,
        output=job.runner.output,
        size=job.runner.size,
        batch_limit=job.runner.batch_limit,
    )


def raw_maps(job: Job, given: Given) -> list[Tensor]:
    """The maps as the explainers give them, one tensor `[N, h, w]` for each pair; for volumes `[N, d, h, w]`.

    Raises:
        ExplainerError: An explainer did not give one map per image.
    """
    images = given.context.images
    maps = []
    for explainer, layer in job.pairs:
        context = given.for_explainer(explainer, layer)
        if job.progress is not None:
            context = replace(context, progress=partial(job.progress, explainer.name))
        with job.runner.lent() if needs_model(explainer) else nullcontext(), _read_only(explainer.name, context):
            raw = _checked(explainer.name, explainer(context), images)
        raw, frame = raw.detach().to(images.device, torch.float32), given.frame if layer else None
        maps.append(raw if frame is None else frame.cut(raw))
    return maps


@contextmanager
def _read_only(name: str, context: Context) -> Iterator[None]:
    """Refuse a method that writes into what other methods are given too.

    Raises:
        ExplainerError: It does.
    """
    given = [context.images, context.targets, context.logits]
    given += [tensor for at in (context, *context.layers) for tensor in (at.activation, at.gradient)]
    tensors = [tensor for tensor in given if tensor is not None]
    versions = [tensor._version for tensor in tensors]
    yield
    if versions != [tensor._version for tensor in tensors]:
        raise ExplainerError(
            f"method '{name}' writes into its context, which other methods are given too; let it write into a copy, such as "
            "context.images.clone()"
        )


def _checked(name: str, raw: Any, images: Tensor) -> Tensor:
    """The maps of a method, if there is one per image."""
    if not isinstance(raw, Tensor) or raw.ndim != images.ndim - 1 or len(raw) != len(images):
        came = list(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        shape = ", ".join(("N", *"dhw"[-(images.ndim - 2) :]))
        raise ExplainerError(f"method '{name}' gave {came} for {len(images)} images; maps [{shape}] are expected")
    return raw


def finished_maps(raw: Tensor, images: Tensor, protocol: Protocol) -> Finished:
    """The explanation maps `[N, H, W]` in [0, 1] of images `[N, C, H, W]`; of volumes `[N, D, H, W]`."""
    return finish(raw, images.shape[2:], protocol)
