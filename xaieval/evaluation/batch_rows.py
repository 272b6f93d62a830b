"""What was measured on a batch, and the rows that it becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.extensions import ExtensionArray
from torch import Tensor

from xaieval.config.labels import IGNORED
from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.data.labels import Labels, OtherLabels, one_class_each
from xaieval.errors import RunError, TargetError
from xaieval.evaluation.maps import BatchPass
from xaieval.evaluation.measure import MaskedConfidences
from xaieval.metrics import Metric
from xaieval.results.matched import control_column, excess_column
from xaieval.results.rows import EXCLUDED, VALUED, Pair, row_table

__all__ = ["Measured", "check_labelled", "class_column", "joined", "measured_rows"]


@dataclass(frozen=True)
class Measured:
    """What was measured on N images with P pairs of layer and method.

    Attributes:
        ids: The N image ids.
        labels: As of `Batch`; the rows have those that are one class per image.
        predicted: Classes `[N]`.
        targets: Classes `[N]`; -1 where the image has no target.
        has_target: Whether the image has a target, `[N]`.
        confidence: Confidence of the targets on the original images, `[N]`.
        masked: Confidence of the targets on the masked images, `[P, N]`; None if no metric needs it.
        areas: Means of the masks, `[P, N]`.
        constant: Whether the map had nothing to normalise, `[P, N]`.
        invalid: Whether the map held NaN or inf, `[P, N]`.
        inverse: Confidence on the images masked by 1 minus the mask, `[P, N]`; None if no metric needs it.
        matched: By matched control, confidence on the images masked by it, `[P, N]`; NaN where a map has no such control.
        matched_inverse: By matched control, as `inverse`; empty if no metric needs it.
        values: By metric `[P, N]`, of the metrics that need more than confidences; and by column, those of matched controls.
        curves: By metric `[P, N, S]`, of the metrics that keep them.
        group: The group of each image, `[N]`; None without groups.
    """

    ids: Sequence[str]
    labels: Labels
    predicted: Tensor
    targets: Tensor
    has_target: Tensor
    confidence: Tensor
    masked: Tensor | None
    areas: Tensor
    constant: Tensor
    invalid: Tensor
    inverse: Tensor | None = None
    matched: Mapping[str, Tensor] = field(default_factory=dict)
    matched_inverse: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Tensor] = field(default_factory=dict)
    group: Sequence[str] | None = None

    @classmethod
    def of(
        cls,
        batch: Batch,
        batch_pass: BatchPass,
        confidences: MaskedConfidences,
        values: Mapping[str, Tensor],
        curves: Mapping[str, Tensor],
    ) -> Measured:
        """The measurements of a batch, from what the steps before gave."""
        return cls(
            ids=batch.ids,
            group=batch.group,
            labels=batch.labels,
            predicted=batch_pass.predicted,
            targets=batch_pass.targets,
            has_target=batch_pass.has_target,
            values=values,
            curves=curves,
            **vars(confidences),
        )

    def cpu(self) -> Measured:
        """A copy on the CPU; waits until the device has finished."""
        tensors: dict[str, Any] = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name in ("matched", "matched_inverse", "values", "curves"):
            tensors[name] = {key: value.cpu() for key, value in getattr(self, name).items()}
        return replace(self, **tensors)


BY_IMAGE = ("labels", "predicted", "targets", "has_target", "confidence")  # all other tensors have the pairs first


def joined(parts: Sequence[Measured]) -> Measured:
    """Measurements of the parts of a batch as one, as if the whole batch had been measured at once."""
    names = [each.name for each in fields(Measured)]
    return Measured(**{name: _joined([getattr(part, name) for part in parts], name) for name in names})


def _joined(values: Sequence[Any], name: str) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values), dim=0 if name in BY_IMAGE else 1)
    if isinstance(first, OtherLabels):
        return first
    if isinstance(first, Mapping):
        return {metric: _joined([value[metric] for value in values], name) for metric in first}
    return first if first is None else [name for names in values for name in names]


def measured_rows(measured: Measured, pairs: Sequence[Pair], metrics: Sequence[Metric], protocol: Protocol) -> pd.DataFrame:
    """The rows of a batch: image by image, and for each image pair by pair.

    Raises:
        RunError: The protocol refuses a row.
        TargetError: The protocol's choice of images needs labels.
    """
    measured = measured.cpu()
    nothing = ~measured.has_target
    y = measured.confidence.double().masked_fill(nothing, torch.nan)
    masked = torch.full_like(measured.areas, torch.nan) if measured.masked is None else measured.masked
    o = masked.double().masked_fill(measured.invalid | nothing, torch.nan)
    quotients = {metric.name for metric in metrics if metric.is_quotient}
    status = _status(measured, y, o, protocol, needs_positive=bool(quotients))
    valued = np.isin(status, VALUED)
    divisible = valued & (y > 0).numpy()
    values = {
        name: np.where(divisible if name in quotients else valued, column, np.nan)
        for name, column in _metric_values(measured, y, o, metrics, protocol).items()
    }
    values |= _control_values(measured, y, values, metrics, protocol)
    return row_table(
        pairs,
        {
            "image_id": measured.ids,
            **({} if measured.group is None else {"group": measured.group}),
            "label": class_column(measured.labels, len(measured.ids)),
            "predicted": class_column(measured.predicted),
            "target": class_column(measured.targets),
            "confidence": y,
            "masked_confidence": o,
            "mask_area": measured.areas.double().masked_fill(measured.invalid, torch.nan),
            **values,
            **{f"{name}_curve": _as_objects(curves, valued) for name, curves in measured.curves.items()},
            "status": status,
        },
    )


def class_column(classes: Labels, count: int = 0) -> ExtensionArray:
    """Classes `[N]` as integers that may be missing: negative numbers are no class.

    Args:
        classes: Anything else than one class per image gives missing values.
        count: The number of images where `classes` has no class for each.
    """
    if not isinstance(classes, Tensor) or classes.ndim > 1:
        return pd.array([pd.NA] * count, dtype="Int64")
    values = classes.numpy().astype("int64")
    return pd.arrays.IntegerArray(values, values < 0)


def check_labelled(
    protocol: Protocol, labels: Sequence[Any] | pd.Series[Any], has_target: Sequence[Any] | pd.Series[Any]
) -> None:
    """Refuse target "label" where no image has a label.

    Args:
        protocol: With the target.
        labels: Of each image, missing or negative where there is none.
        has_target: Whether each image has a target.

    Raises:
        TargetError: With what counts as no label.
    """
    known, targeted = pd.Series(labels, dtype="Int64").fillna(-1), np.asarray(has_target, dtype=bool)
    if protocol.target == "label" and len(known) and not targeted.any() and ((known < 0) | (known == IGNORED)).all():
        raise TargetError(
            "target 'label' needs labels, but no image has one: a label that is negative, NaN, None or 255 is none; use "
            "target='predicted' or a class index"
        )


def _metric_values(
    measured: Measured, y: Tensor, o: Tensor, metrics: Sequence[Metric], protocol: Protocol
) -> dict[str, Tensor]:
    """By metric `[P, N]`, in the order of the metrics; those that need only confidences are computed here."""
    values = dict(measured.values)
    values |= _judged(metrics, y, o, measured.inverse, protocol)
    return {metric.name: values[metric.name] for metric in metrics}


def _judged(metrics: Sequence[Metric], y: Tensor, o: Tensor, inverse: Tensor | None, protocol: Protocol) -> dict[str, Tensor]:
    """By metric that needs only confidences, its values `[P, N]`."""
    inputs = {"confidence": y.repeat(len(o)), "masked_confidence": o.flatten(), "protocol": protocol}
    if inverse is not None:
        inputs["inverse_confidence"] = inverse.double().flatten()
    return {metric.name: metric.judge(inputs)[0].view(o.shape) for metric in metrics if metric.is_of_numbers}


def _control_values(
    measured: Measured, y: Tensor, values: Mapping[str, Any], metrics: Sequence[Metric], protocol: Protocol
) -> dict[str, Any]:
    """By column `[P, N]`: the values of matched controls, and the excess over the first one; NaN where either is missing."""
    able = [metric for metric in metrics if measured.matched and metric.has_matched_controls]
    by_column: dict[str, Any] = dict(measured.values)
    for control, o in measured.matched.items():
        judged = _judged(able, y, o.double(), measured.matched_inverse.get(control), protocol)
        by_column |= {
            control_column(name, control): column.masked_fill(o.isnan(), torch.nan) for name, column in judged.items()
        }
    columns: dict[str, Any] = {}
    for metric in able:
        own = values[metric.name]
        missing = np.full_like(own, np.nan)
        for control in measured.matched:
            name = control_column(metric.name, control)
            columns[name] = np.where(np.isnan(own), np.nan, by_column.get(name, missing))
        columns[excess_column(metric.name)] = own - columns[control_column(metric.name, next(iter(measured.matched)))]
    return columns


def _as_objects(curves: Tensor, valued: Any) -> Any:
    """Curves `[P, N, S]` as objects `[P, N]`; None where the row has no values."""
    objects = np.full(valued.shape, None, dtype=object)
    for place in np.argwhere(valued):
        objects[tuple(place)] = curves[tuple(place)].double().numpy()
    return objects


def _status(measured: Measured, y: Tensor, o: Tensor, protocol: Protocol, needs_positive: bool) -> Any:
    """The status of each pair and image, `[P, N]`: the first that applies.

    A confidence that is not positive is one only if a metric divides by it. Rows with that status keep the values of the other
    metrics, so that it comes after all statuses of rows without any value.
    """
    unusable = {
        "no_target": ~measured.has_target.expand_as(o),
        "nan_confidence": ~y.isfinite().expand_as(o),
        "nan_map": measured.invalid,
        **({} if measured.masked is None else {"nan_masked_confidence": ~o.isfinite()}),
    }
    not_positive = {
        "zero_confidence": (y == 0).expand_as(o) & needs_positive,
        "negative_confidence": (y < 0).expand_as(o) & needs_positive,
    }
    excluded = {EXCLUDED: _excluded(measured, y, protocol).expand_as(o)}
    leave_out = protocol.constant_map == "leave_out"
    constant = "constant_map_left_out" if leave_out else "constant_map"
    last = {constant: measured.constant}
    cases = excluded | unusable | (last | not_positive if leave_out else not_positive | last)
    invalid = unusable | not_positive
    status = np.select([case.numpy() for case in cases.values()], list(cases), default="ok")
    refused = list(invalid) if protocol.invalid == "error" else []
    refused += [constant] if protocol.constant_map == "error" else []
    met = [name for name in refused if (status == name).any()]
    if met:
        image = measured.ids[int(np.argwhere(status == met[0])[0, 1])]
        raise RunError(f"image {image!r} has the status {met[0]}, which the protocol refuses (invalid=, constant_map=)")
    return status


def _excluded(measured: Measured, y: Tensor, protocol: Protocol) -> Tensor:
    excluded = y < protocol.minimum_confidence if protocol.minimum_confidence > 0 else torch.zeros_like(y, dtype=torch.bool)
    if protocol.images == "correct":
        labels = one_class_each(measured.labels, "images='correct'", "use images='all'")
        excluded = excluded | (measured.predicted != labels)
    return excluded & y.isfinite()  # the prediction from NaN logits is arbitrary, so such an image is not excluded by it
