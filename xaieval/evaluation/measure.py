"""From maps to masked confidences and metric values.

Raw maps, which are small, are made first, so that activations and gradients can be freed. Each map then costs one masked
forward pass, and the masked images of several maps share a pass. What metrics need beyond that comes last, map by map. Tensors
stay on the device until the batch is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.evaluation.job import Job
from xaieval.evaluation.maps import BatchPass, finished_maps
from xaieval.evaluation.metric_inputs import MetricInputs
from xaieval.masking import baseline, mask, occlude

__all__ = ["MaskedConfidences", "judge_maps", "masked_confidences"]


@dataclass(frozen=True)
class MaskedConfidences:
    """Confidences and flags for P pairs of layer and method and N images.

    Attributes:
        confidence: On the original images, `[N]`.
        masked: On the masked images, `[P, N]`.
        inverse: On the images masked by 1 minus the mask, `[P, N]`; None if no metric needs it.
        areas: Means of the masks, `[P, N]`.
        constant: Whether the map had nothing to normalise, `[P, N]`.
        invalid: Whether the map held NaN or inf, `[P, N]`.
    """

    confidence: Tensor
    masked: Tensor
    inverse: Tensor | None
    areas: Tensor
    constant: Tensor
    invalid: Tensor

    def of_pair(self, number: int) -> dict[str, Tensor]:
        """The confidences of one pair, by the names of `xaieval.metrics.NEEDS`."""
        known = {"confidence": self.confidence, "masked_confidence": self.masked[number]}
        if self.inverse is not None:
            known["inverse_confidence"] = self.inverse[number]
        return known


def masked_confidences(job: Job, batch_pass: BatchPass, maps: Sequence[Tensor]) -> MaskedConfidences:
    """One forward pass of each image for each map (two if a metric needs the inverse), in passes as full as possible.

    Args:
        job: What is measured.
        batch_pass: Of the original images.
        maps: Raw maps `[N, h, w]` of the P pairs.
    """
    context, images = batch_pass.context, batch_pass.context.images
    flags: list[tuple[Tensor, Tensor, Tensor]] = []
    with_inverse = any("inverse_confidence" in metric.needs for metric in job.metrics)

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        if job.runner.rounds_otherwise:  # confidences that are compared have to come from the same arithmetic
            yield images, context.everywhere
        replacement = baseline(images, job.protocol)
        for raw in maps:
            finished = finished_maps(raw, images, job.protocol)
            masks = mask(finished.maps, job.protocol).to(images.dtype)
            flags.append((masks.mean(dim=tuple(range(1, masks.ndim))), finished.constant, finished.invalid))
            yield occlude(images, masks, replacement), context.everywhere
            if with_inverse:
                yield occlude(images, 1 - masks, replacement), context.everywhere

    confidences = context.ask(blocks(), "confidence").view(-1, len(images))
    masked = confidences[1:] if job.runner.rounds_otherwise else confidences
    areas, constant, invalid = (torch.stack(column) for column in zip(*flags, strict=True))
    return MaskedConfidences(
        confidence=confidences[0] if job.runner.rounds_otherwise else batch_pass.confidence,
        masked=masked[::2] if with_inverse else masked,
        inverse=masked[1::2] if with_inverse else None,
        areas=areas,
        constant=constant,
        invalid=invalid,
    )


def judge_maps(
    job: Job, batch: Batch, batch_pass: BatchPass, maps: Sequence[Tensor], confidences: MaskedConfidences
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By metric the values `[P, N]`, and for some the curves `[P, N, S]`.

    Metrics that need only confidences are computed when the rows are made.
    """
    metrics = [metric for metric in job.metrics if not metric.is_of_numbers]
    values: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    curves: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    for number, raw in enumerate(maps):
        inputs = MetricInputs(job.of_pair(number), batch, batch_pass, raw, confidences.of_pair(number))
        for metric in metrics:
            value, curve = metric.judge(inputs)
            values[metric.name].append(value)
            curves[metric.name] += [] if curve is None else [curve]
    return _stacked(values), _stacked(curves)


def _stacked(columns: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(list(column)) for name, column in columns.items() if column}
