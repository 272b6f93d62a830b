"""From the confidences and flags of a batch to the rows of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.extensions import ExtensionArray
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Failure
from xaieval.errors import RunError, TargetError
from xaieval.metrics import Metric

__all__ = ["COUNTED", "EXCLUDED", "NO_LAYER", "Measured", "failed_rows", "joined", "measured_rows"]

COUNTED = ("ok", "constant_map")  # statuses of rows that take part in the means
EXCLUDED = "excluded"  # by the protocol's choice of images, so no failure
NO_LAYER = "input"  # the layer of a method that explains the model as a whole, or is a control map

Pair = tuple[str, str]  # layer and method


@dataclass(frozen=True)
class Measured:
    """What was measured on N images with P pairs of layer and method.

    Attributes:
        ids: N names.
        labels: `[N]`, or `[N, K]` zeros and ones, which no row holds; or None.
        predicted: `[N]` classes.
        targets: `[N]` classes; -1 where there is nothing to follow.
        found: `[N]`, whether there is anything to follow.
        confidence: `[N]`, of the targets on the original images.
        masked: `[P, N]`, of the targets on the masked images.
        inverse: `[P, N]`, of the targets on the images masked by what is left of 1, if a metric needs it.
        areas: `[P, N]`, means of the masks.
        constant: `[P, N]`, maps that had nothing to normalise.
        invalid: `[P, N]`, maps that held NaN or inf.
        values: by metric `[P, N]`, of those that need more than confidences.
        curves: by metric `[P, N, S]`, of those that keep them.
    """

    ids: Sequence[str]
    labels: Tensor | None
    predicted: Tensor
    targets: Tensor
    found: Tensor
    confidence: Tensor
    masked: Tensor
    areas: Tensor
    constant: Tensor
    invalid: Tensor
    inverse: Tensor | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    curves: Mapping[str, Tensor] = field(default_factory=dict)

    def cpu(self) -> Measured:
        """The same on the CPU, once the device is done with it."""
        tensors: dict[str, Any] = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        for name in ("values", "curves"):
            tensors[name] = {metric: value.cpu() for metric, value in getattr(self, name).items()}
        return replace(self, **tensors)


BY_IMAGE = ("labels", "predicted", "targets", "found", "confidence")  # the other tensors are by pair first


def joined(parts: Sequence[Measured]) -> Measured:
    """What was measured on parts of a batch, as if it had been measured on all of it."""
    names = [each.name for each in fields(Measured)]
    return Measured(**{name: _joined([getattr(part, name) for part in parts], name) for name in names})


def _joined(values: Sequence[Any], name: str) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values), dim=0 if name in BY_IMAGE else 1)
    if isinstance(first, Mapping):
        return {metric: _joined([value[metric] for value in values], name) for metric in first}
    return first if first is None else [image_id for ids in values for image_id in ids]


def measured_rows(measured: Measured, pairs: Sequence[Pair], metrics: Sequence[Metric], protocol: Protocol) -> pd.DataFrame:
    """The rows of a batch: image by image, and for each image pair by pair.

    Raises:
        RunError: the protocol refuses a row.
        TargetError: the protocol's choice of images needs labels.
    """
    measured = measured.cpu()
    y = measured.confidence.double()
    o = measured.masked.double().masked_fill(measured.invalid, torch.nan)
    status = _status(measured, y, o, protocol)
    evidence = {"confidence": y.repeat(len(pairs)), "masked_confidence": o.flatten(), "protocol": protocol}
    if measured.inverse is not None:
        evidence["inverse_confidence"] = measured.inverse.double().flatten()
    found = dict(measured.values)
    found |= {metric.name: metric.judge(evidence)[0].view(o.shape) for metric in metrics if metric.is_of_numbers}
    values = {metric.name: found[metric.name] for metric in metrics}
    counted = np.isin(status, COUNTED)
    return _table(
        pairs,
        {
            "image_id": measured.ids,
            "label": _classes(measured.labels, len(measured.ids)),
            "predicted": _classes(measured.predicted),
            "target": _classes(measured.targets),
            "confidence": y,
            "masked_confidence": o,
            "mask_area": measured.areas.double().masked_fill(measured.invalid, torch.nan),
            **{name: np.where(counted, column, np.nan) for name, column in values.items()},
            **{f"{name}_curve": _listed(curves, counted) for name, curves in measured.curves.items()},
            "status": status,
        },
    )


def failed_rows(failures: Sequence[Failure], pairs: Sequence[Pair], metrics: Sequence[Metric]) -> pd.DataFrame:
    """Rows of images that could not be read: one for each pair, as for any other image, so that no N differs."""
    nothing = np.full(len(failures), np.nan)
    unknown = _classes(None, len(failures))
    return _table(
        pairs,
        {
            "image_id": [name for name, _, _ in failures],
            "label": pd.array([label for _, label, _ in failures], dtype="Int64"),
            "predicted": unknown,
            "target": unknown,
            **dict.fromkeys(("confidence", "masked_confidence", "mask_area"), nothing),
            **{metric.name: nothing for metric in metrics},
            "status": ["unreadable"] * len(failures),
        },
    )


def _table(pairs: Sequence[Pair], columns: Mapping[str, Any]) -> pd.DataFrame:
    """Columns of values per image `[N]` or per pair and image `[P, N]` as rows; layer and method come second and third."""
    count = len(columns["image_id"])
    spread = {name: _by_image(values, len(pairs)) for name, values in columns.items()}
    named = {"image_id": spread.pop("image_id")} | {
        "layer": [layer for layer, _ in pairs] * count,
        "method": [method for _, method in pairs] * count,
    }
    return pd.DataFrame(named | spread)


def _by_image(values: Any, pairs: int) -> Any:
    """Values as a column, image by image."""
    if isinstance(values, ExtensionArray):
        return values.repeat(pairs)
    values = np.asarray(values)
    return np.repeat(values, pairs) if values.ndim == 1 else values.T.reshape(-1)


def _listed(curves: Tensor, counted: Any) -> Any:
    """Curves `[P, N, S]` as objects `[P, N]`; None where the row does not count."""
    listed = np.full(counted.shape, None, dtype=object)
    for place in np.argwhere(counted):
        listed[tuple(place)] = curves[tuple(place)].double().numpy()
    return listed


def _classes(values: Tensor | None, count: int = 0) -> ExtensionArray:
    """Classes as integers that may be missing; -1 is none, and so are several an image."""
    if values is None or values.ndim > 1:
        return pd.array([pd.NA] * count, dtype="Int64")
    classes = values.numpy().astype("int64")
    return pd.arrays.IntegerArray(classes, classes < 0)


def _status(measured: Measured, y: Tensor, o: Tensor, protocol: Protocol) -> Any:
    """The status of each pair and image, `[P, N]`: the first that applies."""
    invalid = {
        "no_target": ~measured.found.expand_as(o),
        "nan_confidence": ~y.isfinite().expand_as(o),
        "zero_confidence": (y == 0).expand_as(o),
        "negative_confidence": (y < 0).expand_as(o),
        "nan_map": measured.invalid,
        "nan_masked_confidence": ~o.isfinite(),
    }
    excluded = {EXCLUDED: _excluded(measured, y, protocol).expand_as(o)}
    constant = "constant_map_left_out" if protocol.constant_map == "leave_out" else "constant_map"
    cases = excluded | invalid | {constant: measured.constant}
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
        if measured.labels is None:
            raise TargetError("images='correct' needs labels, but the data has none")
        if measured.labels.ndim > 1:
            raise TargetError(
                "images='correct' needs one class an image as label, but the data has zeros and ones of each class"
            )
        excluded = excluded | (measured.predicted != measured.labels)
    return excluded & y.isfinite()  # what a model predicts whose logits are NaN is nobody's choice
