"""From maps to masked confidences and metric values.

Raw maps, which are small, are made first, so that activations and gradients can be freed. Each map then costs one masked
forward pass, if a metric needs it; the masked images of several maps share a pass. What metrics need beyond that comes last,
map by map. Tensors stay on the device until the batch is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.evaluation.job import Job
from xaieval.evaluation.maps import BatchPass, finished_maps
from xaieval.evaluation.matched import MatchedControls
from xaieval.evaluation.metric_inputs import CountedPixels, MetricInputs
from xaieval.evaluation.shared import Shared
from xaieval.masking import Finished, filling, mask, occlude
from xaieval.metrics import Metric
from xaieval.results.matched import control_column

__all__ = ["MaskedConfidences", "judge_maps", "masked_confidences"]


@dataclass(frozen=True)
class MaskedConfidences:
    """Confidences and flags for P pairs of layer and method and N images.

    Attributes:
        confidence: On the original images, `[N]`.
        masked: On the masked images, `[P, N]`; None if no metric needs it.
        inverse: On the images masked by 1 minus the mask, `[P, N]`; None if no metric needs it.
        areas: Means of the masks, `[P, N]`.
        constant: Whether the map had nothing to normalise, `[P, N]`.
        invalid: Whether the map held NaN or inf, `[P, N]`.
        matched: By matched control, as `masked` with the control's mask; NaN where a map has no such control, and if no metric
            needs it.
        matched_inverse: By matched control, as `inverse`; empty if no metric needs it.
    """

    confidence: Tensor
    masked: Tensor | None
    inverse: Tensor | None
    areas: Tensor
    constant: Tensor
    invalid: Tensor
    matched: Mapping[str, Tensor] = field(default_factory=dict)
    matched_inverse: Mapping[str, Tensor] = field(default_factory=dict)

    def of_pair(self, number: int) -> dict[str, Tensor]:
        """The confidences of one pair, by the names of `xaieval.metrics.NEEDS`."""
        known = {"confidence": self.confidence}
        if self.masked is not None:
            known["masked_confidence"] = self.masked[number]
        if self.inverse is not None:
            known["inverse_confidence"] = self.inverse[number]
        return known

    def of_control(self, number: int, control: str) -> dict[str, Tensor]:
        """The same with the masks of a matched control."""
        known = {"confidence": self.confidence, "masked_confidence": self.matched[control][number]}
        if self.matched_inverse:
            known["inverse_confidence"] = self.matched_inverse[control][number]
        return known


def masked_confidences(job: Job, batch_pass: BatchPass, maps: Sequence[Tensor], controls: MatchedControls) -> MaskedConfidences:
    """One forward pass of each image for each mask, in passes as full as possible.

    There are two if a metric needs the inverse, and none if no metric needs a confidence on masked images.

    Args:
        job: What is measured.
        batch_pass: Of the original images.
        maps: Raw maps `[N, h, w]` of the P pairs.
        controls: Makes the matched controls of the maps.
    """
    context, images = batch_pass.context, batch_pass.context.images
    flags: list[tuple[Tensor, Tensor, Tensor]] = []
    missing: list[Tensor] = []
    needs = {need for metric in job.metrics for need in metric.needs}
    if not needs & {"masked_confidence", "inverse_confidence"}:
        return _without_masks(job, batch_pass, maps, again=job.runner.rounds_otherwise and "ask" in needs)
    with_inverse = "inverse_confidence" in needs

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        if job.runner.rounds_otherwise:  # confidences that are compared have to come from the same arithmetic
            yield images, context.everywhere
        fill = filling(images, job.protocol)
        for number, raw in enumerate(maps):
            finished = finished_maps(raw, images, job.protocol)
            masks = mask(finished.maps, job.protocol).to(images.dtype)
            flags.append(_flags(finished, masks))
            replacements = controls.masks(number, finished.maps, masks) if job.matched else {}
            missing.extend(~control.exists for control in replacements.values())
            for kept in (masks, *(control.values for control in replacements.values())):
                yield occlude(images, kept, fill(kept)), context.everywhere
                if with_inverse:
                    yield occlude(images, 1 - kept, fill(1 - kept)), context.everywhere

    confidences = context.ask(blocks(), "confidence").view(-1, len(images))
    masked = confidences[1:] if job.runner.rounds_otherwise else confidences
    by_mask = masked.view(len(maps), 1 + len(job.matched), 1 + with_inverse, len(images))
    areas, constant, invalid = (torch.stack(column) for column in zip(*flags, strict=True))
    if job.matched:
        by_mask = by_mask.clone()  # inference tensors cannot be written to
        by_mask[:, 1:].masked_fill_(torch.stack(missing).view(len(maps), -1, 1, len(images)), torch.nan)
    return MaskedConfidences(
        confidence=confidences[0] if job.runner.rounds_otherwise else batch_pass.confidence,
        masked=by_mask[:, 0, 0],
        inverse=by_mask[:, 0, 1] if with_inverse else None,
        areas=areas,
        constant=constant,
        invalid=invalid,
        matched={name: by_mask[:, 1 + place, 0] for place, name in enumerate(job.matched)},
        matched_inverse={name: by_mask[:, 1 + place, 1] for place, name in enumerate(job.matched) if with_inverse},
    )


def _flags(finished: Finished, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of each mask, and whether the map had nothing to normalise and held NaN or inf, `[N]` each."""
    return masks.mean(dim=tuple(range(1, masks.ndim))), finished.constant, finished.invalid


def _without_masks(job: Job, batch_pass: BatchPass, maps: Sequence[Tensor], again: bool) -> MaskedConfidences:
    """What is known of maps whose masked images nobody asks for; `again` if the images are asked for by another arithmetic."""
    context, images = batch_pass.context, batch_pass.context.images
    flags = []
    for raw in maps:
        finished = finished_maps(raw, images, job.protocol)
        flags.append(_flags(finished, mask(finished.maps, job.protocol).to(images.dtype)))
    areas, constant, invalid = (torch.stack(column) for column in zip(*flags, strict=True))
    confidence = context.ask([(images, context.everywhere)], "confidence") if again else batch_pass.confidence
    matched = {name: torch.full_like(areas, torch.nan) for name in job.matched}
    return MaskedConfidences(confidence, None, None, areas, constant, invalid, matched)


def judge_maps(
    job: Job,
    batch: Batch,
    batch_pass: BatchPass,
    maps: Sequence[Tensor],
    confidences: MaskedConfidences,
    controls: MatchedControls,
    judged: BatchPass | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By metric the values `[P, N]`, and for some the curves `[P, N, S]`; by control column the values of matched controls.

    Metrics that need only confidences are computed when the rows are made. With `judged`, the pass of a second model, metrics
    ask that model about altered images.
    """
    metrics = [metric for metric in job.metrics if not metric.is_of_numbers]
    values: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    curves: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    of_batch = Shared(job, batch, batch_pass, maps, (judged or batch_pass).context)
    for shared, together in of_batch.by_images(metrics):
        for number in range(len(maps)):
            inputs = MetricInputs(shared, number, confidences.of_pair(number))
            for metric in together:
                value, curve = metric.judge(CountedPixels(inputs) if "masks" in metric.needs else inputs)
                values[metric.name].append(value)
                curves[metric.name] += [] if curve is None else [curve]
            for column, value in _judge_controls(job, together, inputs, confidences, controls).items():
                values.setdefault(column, []).append(value)
    return _stacked(values), _stacked(curves)


def _judge_controls(
    job: Job, together: Sequence[Metric], inputs: MetricInputs, confidences: MaskedConfidences, controls: MatchedControls
) -> dict[str, Tensor]:
    """By control column the values `[N]` of metrics that need more than confidences; NaN where there is no such control.

    There is no column of `dimmed`: an image that is dimmed everywhere has no order of pixels.
    """
    metrics, number = [metric for metric in together if job.matched and metric.has_matched_controls], inputs.number
    values: dict[str, Tensor] = {}
    for name, control in controls.maps(number, inputs.maps).items() if metrics else ():
        replaced = replace(inputs, known={**confidences.of_control(number, name), "maps": control.values})
        for metric in metrics:
            value, _ = metric.judge(replaced)
            values[control_column(metric.name, name)] = value.masked_fill(~control.exists, torch.nan)
    return values


def _stacked(columns: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack(list(column)) for name, column in columns.items() if column}
