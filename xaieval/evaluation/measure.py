"""A batch becomes what was measured on it.

Raw maps, which are small, are made first, so that what the layers left is not held any longer; each map then costs one masked
forward pass, and the masked images of several maps share a batch. What metrics ask beyond that comes last, map by map. Nothing
leaves the device before the batch is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.evaluation.maps import Job, Look, finished_maps, look, raw_maps
from xaieval.evaluation.metric_inputs import MetricInputs
from xaieval.inference.batch_limit import in_batches
from xaieval.inference.forward_passes import Runner
from xaieval.masking import baseline, mask, occlude
from xaieval.results.rows import Measured, joined

__all__ = ["measure"]


@dataclass(frozen=True)
class _Masked:
    """What the masked passes gave: for each of P pairs and N images."""

    confidence: Tensor  # of the original images, [N]
    masked: Tensor
    inverse: Tensor | None  # of the images under the inverted masks, if a metric needs them
    areas: Tensor
    constant: Tensor
    invalid: Tensor


def measure(runner: Runner, batch: Batch, job: Job, device: torch.device) -> Measured:
    """Confidences on the original images and on the images masked by each map, and what metrics make of the maps.

    All of it is on the device, which may still be at it. A batch that does not fit in memory is measured in parts.

    Args:
        runner: how passes are made; masked images of all maps share passes of `runner.size`.
        batch: of at least one image.
        job: what is asked.
        device: of the model.

    Raises:
        RunError: a single image does not fit in memory.
    """
    return joined(in_batches(runner.batch_limit, batch, lambda part: _measure(runner, part, job, device)))


def _measure(runner: Runner, batch: Batch, job: Job, device: torch.device) -> Measured:
    """Likewise, of as many images as memory has room for."""
    seen = look(runner, batch, job, device)
    raw = raw_maps(runner, seen, job)
    seen = replace(seen, activations={}, gradients={})
    found = _masked_passes(runner, job, seen, raw)
    values, curves = _judged(runner, batch, job, seen, raw, found)
    return Measured(
        ids=batch.ids,
        labels=batch.labels,
        predicted=seen.predicted,
        targets=seen.context.targets,
        found=seen.found,
        confidence=found.confidence,
        masked=found.masked,
        inverse=found.inverse,
        areas=found.areas,
        constant=found.constant,
        invalid=found.invalid,
        values=values,
        curves=curves,
    )


def _masked_passes(runner: Runner, job: Job, seen: Look, raw: Sequence[Tensor]) -> _Masked:
    """One forward pass of each image for each map, or two, together in full passes."""
    context, images = seen.context, seen.context.images
    flags: list[tuple[Tensor, Tensor, Tensor]] = []
    both = any("inverse_confidence" in metric.needs for metric in job.metrics)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        everywhere = context.everywhere
        if runner.rounds_otherwise:  # what is compared has to come from the same arithmetic
            yield images, everywhere
        replacement = baseline(images, job.protocol)
        for one in raw:
            finished = finished_maps(one, images, job.protocol)
            masks = mask(finished.maps, job.protocol).to(images.dtype)
            flags.append((masks.mean(dim=tuple(range(1, masks.ndim))), finished.constant, finished.invalid))
            yield occlude(images, masks, replacement), everywhere
            if both:
                yield occlude(images, 1 - masks, replacement), everywhere

    confidences = context.ask(blocks(), "confidence").view(-1, len(images))
    masked = confidences[1:] if runner.rounds_otherwise else confidences
    areas, constant, invalid = (torch.stack(column) for column in zip(*flags, strict=True))
    return _Masked(
        confidence=confidences[0] if runner.rounds_otherwise else seen.confidence,
        masked=masked[::2] if both else masked,
        inverse=masked[1::2] if both else None,
        areas=areas,
        constant=constant,
        invalid=invalid,
    )


def _judged(
    runner: Runner, batch: Batch, job: Job, seen: Look, raw: Sequence[Tensor], found: _Masked
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By metric the values `[P, N]`, and of some the curves `[P, N, S]`; metrics of mere confidences are left to the rows."""
    asked = [metric for metric in job.metrics if not metric.is_of_numbers]
    values: dict[str, list[Tensor]] = {metric.name: [] for metric in asked}
    curves: dict[str, list[Tensor]] = {metric.name: [] for metric in asked}
    for number, (pair, one) in enumerate(zip(job.pairs, raw, strict=True)):
        layers = [item for item in job.layers if item.address == pair[1]]
        alone = replace(job, layers=layers, pairs=[pair])
        evidence = MetricInputs(runner, batch, alone, seen, one, _of_pair(found, number))
        for metric in asked:
            judged, curve = metric.judge(evidence)
            values[metric.name].append(judged)
            curves[metric.name] += [] if curve is None else [curve]
    return _stacked(values), _stacked(curves)


def _of_pair(found: _Masked, number: int) -> dict[str, Tensor]:
    """The confidences of one pair by their names."""
    known = {"confidence": found.confidence, "masked_confidence": found.masked[number]}
    if found.inverse is not None:
        known["inverse_confidence"] = found.inverse[number]
    return known


def _stacked(found: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(list(columns)) for name, columns in found.items() if columns}
