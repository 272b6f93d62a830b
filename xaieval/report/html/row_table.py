"""The rows of a run as columns for a page's table, small enough to be read there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xaieval.report.figures.data import NO_VALUE, first_directed
from xaieval.report.html.formatting import shown
from xaieval.results.metric_display import decimals_of, label_of

__all__ = ["Column", "Listing", "list_rows"]

MOST_BYTES = 5_000_000  # of the rows in a page
MOST_WORST = 20  # rows that can be read without JavaScript
WORDS = ("image_id", "layer", "method", "status")
CLASSES = ("label", "predicted", "target")
SHARES = {"confidence": 4, "masked_confidence": 4, "mask_area": 3}  # and their decimals
LABELS = {"image_id": "image", "masked_confidence": "masked confidence", "mask_area": "mask area"}

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        label: its heading.
        values: one a row: a number, None, or a place in `words`.
        words: what the values stand for, if they are no numbers.
        digits: decimals of numbers.
    """

    label: str
    values: Sequence[Any]
    words: Sequence[str] | None = None
    digits: int = 0

    def text(self, row: int) -> str:
        """A cell as it is shown."""
        value = self.values[row]
        if value is None:
            return NO_VALUE
        return shown(value, self.digits) if self.words is None else self.words[value]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"label": self.label, "values": self.values, "words": self.words, "digits": self.digits}


@dataclass(frozen=True)
class Listing:
    """The rows that a page holds.

    Attributes:
        columns: of all of them.
        worst: places of the rows that are shown without JavaScript.
        by: label of the metric that those are the worst in; "" if they are the first rows.
        images: how many images they are of.
        all_images: how many images the run has.
        rows: how many rows the run has.
    """

    columns: list[Column]
    worst: list[int]
    by: str
    images: int
    all_images: int
    rows: int

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"columns": [column.to_dict() for column in self.columns]}


def list_rows(
    rows: pd.DataFrame,
    metrics: Metrics,
    controls: Sequence[str] = (),
    classes: Sequence[str] = (),
    seed: int = 0,
    most_bytes: int = MOST_BYTES,
) -> Listing:
    """The rows, or those of as many images drawn at random as fit.

    Args:
        rows: of a run.
        metrics: what its manifest says of them.
        controls: methods whose rows are not among the worst.
        classes: names of the labels.
        seed: of the draw.
        most_bytes: of the rows as JSON.

    Example:
        >>> rows = pd.DataFrame({"image_id": ["a", "b"], "layer": "p5", "method": "gradcam", "average_drop": [1.0, 2.0]})
        >>> listing = list_rows(rows, [{"name": "average_drop", "label": "AD %", "higher_is_better": False}])
        >>> [column.text(listing.worst[0]) for column in listing.columns]
        ['b', 'p5', 'gradcam', '2.0']
    """
    images = pd.Index(rows["image_id"].unique())
    order = np.random.default_rng(seed).permutation(len(images))
    kept = rows
    columns = _columns(kept, metrics, classes)
    count = len(images)
    while (size := _size(columns)) > most_bytes and count > 1:
        count = max(1, min(count - 1, int(0.97 * count * most_bytes / size)))
        kept = rows[rows["image_id"].isin(images[np.sort(order[:count])])]
        columns = _columns(kept, metrics, classes)
    metric = first_directed(metrics)
    worst = [] if metric is None else _worst(kept, metric, controls)
    by = label_of(metric) if metric and worst else ""
    return Listing(columns, worst or list(range(min(MOST_WORST, len(kept)))), by, count, len(images), len(rows))


def _size(columns: Sequence[Column]) -> int:
    return sum(len(json.dumps(column.to_dict(), separators=(",", ":"))) for column in columns)


def _columns(rows: pd.DataFrame, metrics: Metrics, classes: Sequence[str]) -> list[Column]:
    found = []
    names = {metric["name"]: metric for metric in metrics}
    for name in ("image_id", "layer", "method", *CLASSES, *SHARES, *names, "status"):
        if name not in rows:
            continue
        label = label_of(names[name]) if name in names else LABELS.get(name, name)
        if name in WORDS:
            found.append(_of_words(label, rows[name]))
        elif name in CLASSES:
            found.append(_of_classes(label, rows[name], classes if name == "label" else ()))
        else:
            found.append(_of_numbers(label, rows[name], SHARES.get(name) or decimals_of(names[name])))
    return found


def _of_words(label: str, values: pd.Series[Any]) -> Column:
    places, words = pd.factorize(values.astype(str))
    return Column(label, places.tolist(), [str(word) for word in words])


def _of_classes(label: str, values: pd.Series[Any], classes: Sequence[str]) -> Column:
    """By name where names are known for all of them."""
    numbers = [None if pd.isna(value) else int(value) for value in values]
    known = all(number is None or 0 <= number < len(classes) for number in numbers)
    return Column(label, numbers, [str(name) for name in classes] if classes and known else None)


def _of_numbers(label: str, values: pd.Series[Any], digits: int) -> Column:
    rounded = np.round(values.to_numpy(dtype=float), digits)
    return Column(label, [float(value) + 0.0 if np.isfinite(value) else None for value in rounded], None, digits)


def _worst(rows: pd.DataFrame, metric: Mapping[str, Any], controls: Sequence[str]) -> list[int]:
    """Places of the worst rows that have a value and are of no control."""
    values = rows[metric["name"]].to_numpy(dtype=float)
    order = np.argsort(values if metric["higher_is_better"] else -values, kind="stable")
    asked = np.isfinite(values) & ~rows["method"].isin(list(controls)).to_numpy()
    return [int(place) for place in order[asked[order]][:MOST_WORST]]
