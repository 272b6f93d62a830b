"""One look at a batch, from which explainers make their raw maps.

One forward pass and one partial backward pass serve all layers and methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.errors import ExplainerError
from xaieval.explainers import Context, Explainer, needs_model
from xaieval.inference.forward_passes import Runner
from xaieval.inference.tasks import Classification, Followed, Task
from xaieval.masking import Finished, finish
from xaieval.metrics import Metric
from xaieval.probe.hooks import ProbeLayer, run, to_device
from xaieval.probe.layouts import Layout
from xaieval.results.rows import NO_LAYER

__all__ = ["Job", "Look", "finished_maps", "look", "make_pairs", "raw_maps"]


@dataclass(frozen=True)
class Job:
    """What is asked of every batch.

    Attributes:
        layers: to probe.
        pairs: explainer and layer (None for an explainer that needs none), in the order of the rows.
        protocol: how maps become numbers.
        task: how the model's output is read, and what is followed.
        seed: for explainers and metrics that draw random numbers.
        metrics: of the maps.
    """

    layers: Sequence[ProbeLayer]
    pairs: Sequence[tuple[Explainer, str | None]]
    protocol: Protocol
    task: Task = field(default_factory=Classification)
    seed: int = 0
    metrics: Sequence[Metric] = ()

    @property
    def names(self) -> list[tuple[str, str]]:
        """Layer and method of each pair, as in the rows."""
        return [(layer or NO_LAYER, explainer.name) for explainer, layer in self.pairs]


def make_pairs(explainers: Sequence[Explainer], layers: Sequence[ProbeLayer]) -> list[tuple[Explainer, str | None]]:
    """Layer by layer, method by method; then the methods that need no layer."""
    pairs: list[tuple[Explainer, str | None]] = [(e, at.address) for at in layers for e in explainers if e.needs_layer]
    return pairs + [(e, None) for e in explainers if not e.needs_layer]


@dataclass(frozen=True)
class Look:
    """What one pass over the original images showed, on the device.

    Attributes:
        context: what all explainers are given.
        predicted: classes `[N]`.
        found: `[N]`, whether there is anything to explain on an image.
        confidence: of what is followed, `[N]`.
        activations: by layer.
        gradients: by layer.
        layouts: by layer.
    """

    context: Context
    predicted: Tensor
    found: Tensor
    confidence: Tensor
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    layouts: dict[str, Layout]

    def at(self, layer: str | None, laid_out: bool = True) -> Context:
        """What an explainer is given at a layer.

        Args:
            layer: address; None for an explainer that needs none.
            laid_out: whether tensors have to be contiguous, as somebody who views them expects; else in what order the model
                left them, which saves copies.
        """
        if layer is None:
            return self.context
        activation, gradient = self.activations[layer], self.gradients.get(layer)
        if laid_out:
            activation, gradient = activation.contiguous(), None if gradient is None else gradient.contiguous()
        return replace(self.context, layer=layer, activation=activation, gradient=gradient, layout=self.layouts[layer])


def look(runner: Runner, batch: Batch, job: Job, device: torch.device, followed: Followed | None = None) -> Look:
    """Run the images once: what is predicted and followed, and activations and gradients at all layers.

    Args:
        runner: how passes are made.
        batch: of at least one image.
        job: what is asked.
        device: of the model.
        followed: on altered images, what is followed on the original ones.
    """
    images = to_device(batch.images, device).contiguous()
    labels = None if batch.labels is None else to_device(batch.labels, device)
    task, protocol = job.task, job.protocol
    differentiable = any(explainer.needs_gradient for explainer, _ in job.pairs)
    seen = run(runner.model, runner.lay_out(images), job.layers, differentiable, runner.inside)
    read = task.read(seen.output)
    followed = followed or task.follow(read, protocol.target, labels)
    confidence = task.confidence(read, followed, protocol.confidence)
    gradients: dict[str, Tensor] = {}
    if differentiable and followed.found.any():
        gradients = seen.gradients(task.score(read, followed) if protocol.gradient == "logit" else confidence)
    elif differentiable:  # nothing is followed on any image, so that nothing has a gradient
        gradients = {address: torch.full_like(activation, torch.nan) for address, activation in seen.activations.items()}
    context = Context(
        model=runner.model,
        images=images,
        targets=followed.classes,
        logits=read.detach() if isinstance(task, Classification) else None,
        ids=batch.ids,
        seed=job.seed,
        task=task,
        protocol=protocol,
        followed=followed,
        call=runner.inside,
        output=runner.output,
        size=runner.size,
        batch_limit=runner.batch_limit,
    )
    return Look(
        context,
        task.predicted(read),
        followed.found,
        confidence.detach(),
        seen.activations,
        gradients,
        {item.address: item.layout for item in job.layers},
    )


def raw_maps(runner: Runner, seen: Look, job: Job) -> list[Tensor]:
    """What the explainers give, a tensor `[N, h, w]` for each pair, of volumes `[N, d, h, w]`.

    Raises:
        ExplainerError: an explainer did not give one map an image.
    """
    images, found = seen.context.images, []
    frames = {at.address: at.frame for at in job.layers}
    for explainer, layer in job.pairs:
        inside = needs_model(explainer)
        with runner.lent() if inside else nullcontext():
            raw: Any = explainer(seen.at(layer, laid_out=inside))
        if not isinstance(raw, Tensor) or raw.ndim != images.ndim - 1 or len(raw) != len(images):
            came = list(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            wanted = ", ".join(("N", *"dhw"[-(images.ndim - 2) :]))
            raise ExplainerError(
                f"method '{explainer.name}' gave {came} for {len(images)} images; maps [{wanted}] are expected"
            )
        raw, frame = raw.detach().to(images.device, torch.float32), frames[layer] if layer else None
        found.append(raw if frame is None else frame.cut(raw))
    return found


def finished_maps(raw: Tensor, images: Tensor, protocol: Protocol) -> Finished:
    """The explanation maps `[N, H, W]` in [0, 1] of images `[N, C, H, W]`; of volumes `[N, D, H, W]`."""
    return finish(raw, images.shape[2:], protocol)
