"""A batch becomes what was measured on it.

One forward pass and one partial backward pass serve all layers and methods. Raw maps, which are small, are made first, so that
what the layers left is not held any longer; each map then costs one masked forward pass, and the masked images of several maps
share a batch. Nothing leaves the device before the batch is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.data.batches import Batch
from xaieval.errors import ExplainerError
from xaieval.explainers import Context, Explainer, needs_model
from xaieval.masking import Finished, baseline, finish, mask, occlude
from xaieval.probe import ProbeLayer, run, to_device
from xaieval.protocol import Protocol
from xaieval.rows import Measured
from xaieval.speedup import Runner
from xaieval.targets import Output, choose_targets, confidences, logits_of, take

__all__ = ["NO_LAYER", "Job", "Look", "finished_maps", "in_groups", "look", "make_pairs", "measure", "raw_maps"]

NO_LAYER = "input"  # the layer of a method that explains the model as a whole, or is a control map


@dataclass(frozen=True)
class Job:
    """What is asked of every batch.

    Attributes:
        layers: to probe.
        pairs: explainer and layer (None for an explainer that needs none), in the order of the rows.
        protocol: how maps become numbers.
        output: where the logits are in the model's output.
        seed: for explainers that draw random numbers.
    """

    layers: Sequence[ProbeLayer]
    pairs: Sequence[tuple[Explainer, str | None]]
    protocol: Protocol
    output: Output = None
    seed: int = 0

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
    """What one pass over the original images showed, on the device."""

    model: nn.Module
    images: Tensor
    ids: Sequence[str]
    logits: Tensor
    targets: Tensor
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]
    seed: int

    def context(self, layer: str | None) -> Context:
        """What an explainer is given at a layer."""
        return Context(
            model=self.model,
            images=self.images,
            targets=self.targets,
            logits=self.logits,
            ids=self.ids,
            seed=self.seed,
            layer=layer,
            activation=self.activations[layer] if layer else None,
            gradient=self.gradients.get(layer) if layer else None,
        )


def look(runner: Runner, batch: Batch, job: Job, device: torch.device) -> Look:
    """Run the original images once: logits, targets, and activations and gradients at all layers."""
    images = to_device(batch.images, device).contiguous()
    labels = None if batch.labels is None else to_device(batch.labels, device)
    differentiable = any(explainer.needs_gradient for explainer, _ in job.pairs)
    seen = run(runner.model, runner.lay_out(images), job.layers, differentiable)
    logits = logits_of(seen.output, job.output)
    targets = choose_targets(job.protocol.target, logits.detach(), labels)
    gradients = {}
    if differentiable:
        scores = logits if job.protocol.gradient == "logit" else confidences(logits, job.protocol.confidence)
        gradients = seen.gradients(take(scores, targets))
    activations = {address: tensor.contiguous() for address, tensor in seen.activations.items()}
    gradients = {address: tensor.contiguous() for address, tensor in gradients.items()}
    return Look(runner.model, images, batch.ids, logits.detach(), targets, activations, gradients, job.seed)


def raw_maps(runner: Runner, seen: Look, job: Job) -> list[Tensor]:
    """What the explainers give, a tensor `[N, h, w]` for each pair.

    Raises:
        ExplainerError: an explainer did not give one map an image.
    """
    found = []
    for explainer, layer in job.pairs:
        with runner.lent() if needs_model(explainer) else nullcontext():
            raw: Any = explainer(seen.context(layer))
        if not isinstance(raw, Tensor) or raw.ndim != 3 or len(raw) != len(seen.images):
            came = list(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
            raise ExplainerError(
                f"method '{explainer.name}' gave {came} for {len(seen.images)} images; maps [N, h, w] are expected"
            )
        found.append(raw.detach().to(seen.images.device, torch.float32))
    return found


def finished_maps(raw: Tensor, images: Tensor, protocol: Protocol) -> Finished:
    """The explanation maps `[N, H, W]` in [0, 1] of images `[N, C, H, W]`."""
    return finish(raw, (images.shape[2], images.shape[3]), protocol)


def measure(runner: Runner, batch: Batch, job: Job, device: torch.device) -> Measured:
    """Confidences on the original images and on the images masked by each map; on the device, which may still be at it.

    Args:
        runner: how passes are made; masked images of all maps share passes of `runner.size`.
        batch: of at least one image.
        job: what is asked.
        device: of the model.
    """
    seen = look(runner, batch, job, device)
    explanations = raw_maps(runner, seen, job)
    seen = replace(seen, activations={}, gradients={})
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        if runner.rounds_otherwise:  # what is compared has to come from the same arithmetic
            yield seen.images, seen.targets
        replacement = baseline(seen.images, job.protocol)
        for raw in explanations:
            finished = finished_maps(raw, seen.images, job.protocol)
            masks = mask(finished.maps, job.protocol).to(seen.images.dtype)
            found.append((masks.mean(dim=(1, 2)), finished.constant, finished.invalid))
            yield occlude(seen.images, masks, replacement), seen.targets

    def confidence(images: Tensor, targets: Tensor) -> Tensor:
        logits = logits_of(runner.output(images), job.output)[: len(images)]
        return take(confidences(logits, job.protocol.confidence), targets)

    found_there = in_groups(blocks(), confidence, runner.size).view(-1, len(batch))
    first = take(confidences(seen.logits, job.protocol.confidence), seen.targets)
    areas, constant, invalid = (torch.stack(column) for column in zip(*found, strict=True))
    return Measured(
        ids=batch.ids,
        labels=batch.labels,
        predicted=seen.logits.argmax(dim=1),
        targets=seen.targets,
        confidence=found_there[0] if runner.rounds_otherwise else first,
        masked=found_there[-len(job.pairs) :],
        areas=areas,
        constant=constant,
        invalid=invalid,
    )


def in_groups(blocks: Iterable[tuple[Tensor, Tensor]], forward: Callable[[Tensor, Tensor], Tensor], size: int) -> Tensor:
    """Results of a forward function over blocks that are joined and cut to groups of `size`, in order.

    Args:
        blocks: images and their classes; less than `size` images and one block are held at a time.
        forward: from images `[G, C, H, W]` and classes `[G]` to results `[G]`.
        size: of a group, at least 1; the last one may be smaller.

    Example:
        >>> blocks = [(torch.ones(2, 3, 1, 1), torch.zeros(2))] * 5
        >>> in_groups(blocks, lambda images, classes: torch.full_like(classes, len(images)), size=4)
        tensor([4., 4., 4., 4., 4., 4., 4., 4., 2., 2.])
    """
    results: list[Tensor] = []
    rest: list[tuple[Tensor, Tensor]] = []
    for block in blocks:
        images, classes = (torch.cat(parts) for parts in zip(*rest, block, strict=True)) if rest else block
        whole = len(images) - len(images) % size
        groups = (slice(start, start + size) for start in range(0, whole, size))
        results += [forward(images[group], classes[group]) for group in groups]
        rest = [(images[whole:], classes[whole:])] if whole < len(images) else []
    results += [forward(*last) for last in rest]
    return torch.cat(results)
