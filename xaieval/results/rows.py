"""The rows of a run: their statuses, and the table that holds them, one row per image, layer and method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from pandas.api.extensions import ExtensionArray

if TYPE_CHECKING:
    from xaieval.data.batches import Failure

__all__ = [
    "CONSTANT_MAP",
    "COUNTED",
    "CROSS_KEYS",
    "DISAGREE",
    "EXCLUDED",
    "GROUP",
    "KEYS",
    "NOT_POSITIVE",
    "NO_LAYER",
    "UNREADABLE",
    "VALUED",
    "Pair",
    "RowsInFile",
    "failed_rows",
    "in_pieces",
    "row_table",
    "with_group_column",
]

CONSTANT_MAP = "constant_map"
COUNTED = ("ok", CONSTANT_MAP)  # statuses of the rows that count: all of their metrics can have values
NOT_POSITIVE = ("zero_confidence", "negative_confidence")  # only metrics that do not divide by the confidence have values
VALUED = (*COUNTED, *NOT_POSITIVE)  # statuses of the rows whose values take part in the means
UNREADABLE = "unreadable"  # nothing is known of the image but its id, and perhaps its label
EXCLUDED = "excluded"  # by the protocol's choice of images, so not a failure
DISAGREE = "models_disagree"  # in cross scores: the models predict different classes, so there is no target for all of them
NO_LAYER = "input"  # the layer of methods that need none: those that explain the whole model, and control maps

KEYS = ("image_id", "layer", "method")  # identify a row
CROSS_KEYS = (*KEYS, "masks_of", "model")  # identify a row of cross scores
GROUP = "group"  # the column after `method` of a run whose images come in groups

Pair = tuple[str, str]  # layer and method


class RowsInFile(Protocol):
    """Rows that are read piece by piece: `xaieval.results.row_file.RowFile`."""

    def frames(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Some columns of all rows, as one data frame after the other."""


def in_pieces(rows: pd.DataFrame | RowsInFile, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Rows in memory as a single piece, others as one after the other, with at least these columns."""
    return iter([rows]) if isinstance(rows, pd.DataFrame) else rows.frames(columns)


def row_table(pairs: Sequence[Pair], columns: Mapping[str, Any]) -> pd.DataFrame:
    """Values per image `[N]`, or per pair and image `[P, N]`, as rows: image by image, and for each image pair by pair.

    Args:
        pairs: The P pairs of layer and method.
        columns: Values by column name, `image_id` among them; `layer` and `method` become the second and third column.
    """
    count = len(columns["image_id"])
    spread = {name: _by_image(values, len(pairs)) for name, values in columns.items()}
    named = {"image_id": spread.pop("image_id")} | {
        "layer": [layer for layer, _ in pairs] * count,
        "method": [method for _, method in pairs] * count,
    }
    return pd.DataFrame(named | spread)


def failed_rows(failures: Sequence[Failure], pairs: Sequence[Pair], metrics: Sequence[str]) -> pd.DataFrame:
    """Rows of images that could not be read: one for each pair, as for any other image, so that N is the same everywhere.

    Args:
        failures: Id, label and reason of each image.
        pairs: Layer and method of the rows.
        metrics: Names of the metric columns.
    """
    missing = np.full(len(failures), np.nan)
    unknown = pd.array([pd.NA] * len(failures), dtype="Int64")
    return row_table(
        pairs,
        {
            "image_id": [name for name, _, _ in failures],
            "label": pd.array([label for _, label, _ in failures], dtype="Int64"),
            "predicted": unknown,
            "target": unknown,
            **dict.fromkeys(("confidence", "masked_confidence", "mask_area", *metrics), missing),
            "status": [UNREADABLE] * len(failures),
        },
    )


def with_group_column(rows: pd.DataFrame, group: Sequence[str] | pd.Series[str] | None) -> pd.DataFrame:
    """The rows with the group of each of them in the column after `method`; None removes the column.

    Args:
        rows: Rows of a run, which stay unchanged.
        group: One name per row, missing for an image that could not be read.

    Example:
        >>> rows = pd.DataFrame({"image_id": ["a"], "layer": ["p5"], "method": ["gradcam"], "status": ["ok"]})
        >>> with_group_column(rows, ["lake"]).columns.tolist()
        ['image_id', 'layer', 'method', 'group', 'status']
    """
    rows = rows.drop(columns=GROUP, errors="ignore")
    if group is not None:
        rows.insert(list(rows.columns).index("method") + 1, GROUP, pd.Series(list(group), index=rows.index))
    return rows


def _by_image(values: Any, pairs: int) -> Any:
    """Values as a column, image by image."""
    if isinstance(values, ExtensionArray):
        return values.repeat(pairs)
    values = np.asarray(values)
    return np.repeat(values, pairs) if values.ndim == 1 else values.T.reshape(-1)
