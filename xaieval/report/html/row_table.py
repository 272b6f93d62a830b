"""The rows of a run as columns of a table in a page, limited in size."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from xaieval.report.figures.data import NO_VALUE, first_directed
from xaieval.report.html.formatting import format_number
from xaieval.results.metric_display import decimals_of, label_of
from xaieval.results.rows import GROUP

__all__ = ["Column", "Listing", "list_rows"]

MOST_BYTES = 3_500_000  # the largest size of the rows in a page
FIRST_GUESS = 200  # images whose size tells how many fit
MOST_WORST = 20  # the number of rows shown without JavaScript
WORDS = ("image_id", "layer", "method", GROUP, "status")
CLASSES = ("label", "predicted", "target")
SHARES = {"confidence": 4, "masked_confidence": 4, "mask_area": 3}  # columns in [0, 1], with their decimals
LABELS = {"image_id": "image", "masked_confidence": "masked confidence", "mask_area": "mask area"}

Metrics = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: The name of the column in the rows.
        label: The heading.
        values: One value per row: a number, None, or an index into `words`.
        words: The texts that the values stand for, None for numbers.
        digits: Decimals of numbers.
    """

    name: str
    label: str
    values: Sequence[Any]
    words: Sequence[str] | None = None
    digits: int = 0

    def text(self, row: int) -> str:
        """The text of a cell."""
        value = self.values[row]
        if value is None:
            return NO_VALUE
        return format_number(value, self.digits) if self.words is None else self.words[value]

    def to_dict(self) -> dict[str, Any]:
        """The column as plain values, for JSON."""
        return {"name": self.name, "label": self.label, "values": self.values, "words": self.words, "digits": self.digits}


@dataclass(frozen=True)
class Listing:
    """The rows in a page.

    Attributes:
        columns: The columns of the table.
        worst: Positions of the rows that are shown without JavaScript.
        by: Label of the metric in which these rows are the worst; "" if they are simply the first rows.
        images: Number of images whose rows are in the page.
        all_images: Number of images in the run.
        rows: Number of rows in the run.
    """

    columns: list[Column]
    worst: list[int]
    by: str
    images: int
    all_images: int
    rows: int

    @property
    def data(self) -> dict[str, Any]:
        """The data for the script of the page."""
        return {"columns": [column.to_dict() for column in self.columns]}


def list_rows(
    rows: pd.DataFrame,
    metrics: Metrics,
    controls: Sequence[str] = (),
    classes: Sequence[str] = (),
    seed: int = 0,
    most_bytes: int = MOST_BYTES,
    *,
    shown: Collection[str] = (),
    model_classes: Sequence[str] = (),
) -> Listing:
    """The rows as a table; if they do not fit, the rows of the images that are shown and of others drawn at random.

    Args:
        rows: The rows of a run.
        metrics: The metrics of its manifest.
        controls: Methods whose rows are not counted among the worst.
        classes: Names of the labels.
        seed: Seed of the random draw.
        most_bytes: The largest size of the rows as JSON.
        shown: Ids of images whose rows are in the table in any case.
        model_classes: Names of the model's classes.

    Example:
        >>> rows = pd.DataFrame({"image_id": ["a", "b"], "layer": "p5", "method": "gradcam", "average_drop": [1.0, 2.0]})
        >>> listing = list_rows(rows, [{"name": "average_drop", "label": "AD %", "higher_is_better": False}])
        >>> [column.text(listing.worst[0]) for column in listing.columns]
        ['b', 'p5', 'gradcam', '2.0']
    """
    images = pd.Index(rows["image_id"].unique())
    drawn = np.random.default_rng(seed).permutation(len(images))
    first = images.isin(list(shown))[drawn]
    order = np.concatenate([drawn[first], drawn[~first]])

    def of(count: int) -> tuple[pd.DataFrame, list[Column]]:
        kept = rows if count == len(images) else rows[rows["image_id"].isin(images[order[:count]])]
        return kept, _columns(kept, metrics, classes, model_classes)

    count = min(len(images), FIRST_GUESS)
    kept, columns = of(count)
    if count < len(images):
        count = max(1, min(len(images), int(1.1 * count * most_bytes / _size(columns))))
        kept, columns = of(count)
    while (size := _size(columns)) > most_bytes and count > 1:
        count = max(1, min(count - 1, int(0.97 * count * most_bytes / size)))
        kept, columns = of(count)
    metric = first_directed(metrics)
    worst = [] if metric is None else _worst(kept, metric, controls)
    by = label_of(metric) if metric and worst else ""
    return Listing(columns, worst or list(range(min(MOST_WORST, len(kept)))), by, count, len(images), len(rows))


def _size(columns: Sequence[Column]) -> int:
    """The number of bytes of the columns as JSON."""
    return sum(len(json.dumps(column.to_dict(), separators=(",", ":"))) for column in columns)


def _columns(rows: pd.DataFrame, metrics: Metrics, classes: Sequence[str], model_classes: Sequence[str]) -> list[Column]:
    columns = []
    names = {metric["name"]: metric for metric in metrics}
    for name in ("image_id", "layer", "method", GROUP, *CLASSES, *SHARES, *names, "status"):
        if name not in rows or (name == "masked_confidence" and rows[name].isna().all()):  # no metric needed it
            continue
        label = label_of(names[name]) if name in names else LABELS.get(name, name)
        if name in WORDS:
            columns.append(_of_words(name, label, rows[name]))
        elif name in CLASSES:
            columns.append(_of_classes(name, label, rows[name], classes if name == "label" else model_classes))
        else:
            columns.append(_of_numbers(name, label, rows[name], SHARES.get(name) or decimals_of(names[name])))
    return columns


def _of_words(name: str, label: str, values: pd.Series[Any]) -> Column:
    places, words = pd.factorize(values.astype(object).where(values.notna(), NO_VALUE).astype(str))
    return Column(name, label, places.tolist(), [str(word) for word in words])


def _of_classes(name: str, label: str, values: pd.Series[Any], classes: Sequence[str]) -> Column:
    """A column of classes: by name if all of them have a name, else by number."""
    numbers = [None if pd.isna(value) else int(value) for value in values]
    known = all(number is None or 0 <= number < len(classes) for number in numbers)
    return Column(name, label, numbers, [str(one) for one in classes] if classes and known else None)


def _of_numbers(name: str, label: str, values: pd.Series[Any], digits: int) -> Column:
    rounded = np.round(values.to_numpy(dtype=float), digits)
    return Column(name, label, [float(value) + 0.0 if np.isfinite(value) else None for value in rounded], None, digits)


def _worst(rows: pd.DataFrame, metric: Mapping[str, Any], controls: Sequence[str]) -> list[int]:
    """Positions of the worst rows, without rows of control maps and rows without a value."""
    values = rows[metric["name"]].to_numpy(dtype=float)
    order = np.argsort(values if metric["higher_is_better"] else -values, kind="stable")
    eligible = np.isfinite(values) & ~rows["method"].isin(list(controls)).to_numpy()
    return [int(place) for place in order[eligible[order]][:MOST_WORST]]
