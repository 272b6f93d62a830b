"""Make loaders from arrays, Hugging Face data sets and torchvision data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xaieval.config.counts import check_count
from xaieval.data.batches import check_images
from xaieval.data.decoding import UNREADABLE, check_pixels, read_picture, to_rgb
from xaieval.data.samples import collate, sample_of
from xaieval.errors import DataError, TargetError, choose_from

__all__ = ["Arrays", "Prepare", "Records", "Stream", "arrays", "huggingface", "pairs", "to_picture"]

Prepare = Callable[[Image.Image], Tensor]
Sample = dict[str, Any]


@dataclass(frozen=True)
class Arrays(Dataset[Sample]):
    """A data set of images, labels, ids and groups in whole arrays. Each batch is one slice of them."""

    images: Any
    labels: Any = None
    ids: Sequence[Any] | None = None
    groups: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])

    def __getitems__(self, numbers: list[int]) -> Sample:
        """Return the images of these numbers as one batch. A DataLoader calls this instead of `__getitem__`."""
        batch: Sample = {"image": self.images[numbers]}
        if self.labels is not None:
            batch["label"] = self.labels[numbers]
        if self.ids is not None:
            batch["id"] = [str(self.ids[number]) for number in numbers]
        if self.groups is not None:
            batch["group"] = [self.groups[number] for number in numbers]
        return batch


def arrays(
    images: Any,
    labels: Any = None,
    ids: Sequence[Any] | None = None,
    batch_size: int = 32,
    groups: Sequence[Any] | None = None,
) -> DataLoader[Sample]:
    """Make a loader from whole arrays or tensors.

    Args:
        images: Floats `[N, C, H, W]`, normalised as the model expects. A memory-mapped array is read batch by batch.
        labels: Integers `[N]`.
        ids: N names. Default: the position of each image.
        batch_size: Images in a batch.
        groups: The group that each image belongs to, N texts or numbers. Default: none.

    Raises:
        DataError: The images have another form, or labels, ids and groups have another length.

    Example:
        >>> images, labels = np.zeros((5, 3, 8, 8), dtype=np.float32), np.arange(5)
        >>> [batch["label"].tolist() for batch in arrays(images, labels, batch_size=2)]
        [[0, 1], [2, 3], [4]]
    """
    check_images(images[:1])
    for what, values in (("labels", labels), ("ids", ids), ("groups", groups)):
        if values is not None and len(values) != len(images):
            raise DataError(f"{len(images)} images have {len(values)} {what}; as many are expected")
    check_count("batch_size", batch_size, kind=DataError)
    if labels is not None and not isinstance(labels, Tensor):
        labels = np.asarray(labels)
    return DataLoader(Arrays(images, labels, ids, groups), batch_size=batch_size, collate_fn=_unchanged)


def _unchanged(batch: Any) -> Sample:
    """Return the result of `Arrays.__getitems__`, which is already a batch."""
    return batch


@dataclass(frozen=True)
class Records(Dataset[Sample]):
    """A data set that converts the records of another data set to samples when they are read.

    Attributes:
        size: Number of records.
        sample: Makes the sample of a record's number.
    """

    size: int
    sample: Callable[[int], Sample]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def loader(self, batch_size: int, workers: int) -> DataLoader[Sample]:
        """Return a loader for `xaieval.score`."""
        check_count("batch_size", batch_size, kind=DataError)
        check_count("workers", workers, 0, kind=DataError)
        return DataLoader(self, batch_size=batch_size, collate_fn=collate, num_workers=workers)


@dataclass(frozen=True)
class Stream:
    """Batches of a stream of records. It can be read as often as the stream.

    Attributes:
        records: The records.
        sample: Makes a sample from a record's number and the record.
        batch_size: Samples in a batch.
    """

    records: Iterable[Any]
    sample: Callable[[int, Any], Sample]
    batch_size: int

    def __iter__(self) -> Iterator[Sample]:
        samples = self._samples()
        while batch := list(islice(samples, self.batch_size)):
            yield collate(batch)

    def _samples(self) -> Iterator[Sample]:
        number, records = 0, iter(self.records)
        while True:
            try:
                record = next(records, None)
            except UNREADABLE as error:
                raise DataError(
                    f"the stream failed after {number} images: {type(error).__name__}: {error}; with dataset.decode(False), an "
                    "image that cannot be read becomes a failed row instead"
                ) from error
            if record is None:
                return
            yield self.sample(number, record)
            number += 1


def huggingface(
    dataset: Any,
    preprocessing: Prepare,
    *,
    image: str = "image",
    label: str | None = "label",
    id: str = "id",
    batch_size: int = 32,
    workers: int = 0,
) -> Iterable[Sample]:
    """Make a loader from a data set of Hugging Face's `datasets`, in memory, on disk or streamed.

    The package `datasets` is not imported: any object with columns and mappings as records works.

    Args:
        dataset: One split, whose records are mappings.
        preprocessing: Turns an RGB image into the model's input.
        image: The column of images, decoded or not.
        label: The column of classes; None for data without labels.
        id: The column of ids. If it does not exist, images are named by their position.
        batch_size: Images in a batch.
        workers: Number of processes that load images; a stream is read in this process.

    Raises:
        DataError: The data set is a dictionary of splits, or has no such column, or its values are not images; while
            reading, the stream fails.
        TargetError: While reading, a label is not an integer.

    Example:
        >>> from xaieval.data import Preprocessing
        >>> rows = [{"image": Image.new("RGB", (40, 30)), "label": 3}] * 5  # a stream of a data set
        >>> loader = huggingface(iter(rows), Preprocessing(32, 32), batch_size=2)
        >>> [batch["label"].tolist() for batch in loader]
        [[3, 3], [3, 3], [3]]
    """
    if isinstance(dataset, Mapping):
        raise DataError(f"this is a dictionary of the splits {', '.join(map(str, dataset))}; give one of them")
    columns = getattr(dataset, "column_names", None)  # unknown for some streams
    if columns is not None:
        _check_column(image, columns, "image")
        _check_column(label, columns, "label", " (None for data without labels)")

    def sample(name: Any, known: Any, record: Callable[[], Any]) -> Sample:
        label_of = None if label is None else _to_label(known)
        return sample_of(str(name), label_of, lambda: {"image": preprocessing(to_picture(record()[image]))})

    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        names = dataset[id] if id in (columns or ()) else range(len(dataset))
        labels = [None] * len(dataset) if label is None else dataset[label]
        by_number = Records(len(dataset), lambda n: sample(names[n], labels[n], lambda: dataset[n]))
        return by_number.loader(batch_size, workers)

    def streamed(number: int, record: Mapping[str, Any]) -> Sample:
        _check_column(image, record, "image")
        _check_column(label, record, "label", " (None for data without labels)")
        return sample(record.get(id, number), None if label is None else record[label], lambda: record)

    return Stream(dataset, streamed, batch_size)


def pairs(dataset: Any, preprocessing: Prepare, *, batch_size: int = 32, workers: int = 0) -> DataLoader[Sample]:
    """Make a loader from a data set of `(image, label)` pairs, such as torchvision's data sets without a transform.

    Images are named by their position. If the data set's own transform prepares the images for the model, use a `DataLoader` of
    it directly.

    Args:
        dataset: A data set with a length and indices.
        preprocessing: Turns an RGB image into the model's input.
        batch_size: Images in a batch.
        workers: Number of processes that load images.

    Raises:
        DataError: The data set has no length or no indices; while reading, an item is not a pair.
        TargetError: While reading, a label is not an integer.

    Example:
        >>> from xaieval.data import Preprocessing
        >>> dataset = [(Image.new("RGB", (40, 30)), 7)] * 3
        >>> [batch["label"].tolist() for batch in pairs(dataset, Preprocessing(32, 32), batch_size=2)]
        [[7, 7], [7]]
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"a data set of pairs needs a length and indices; a {type(dataset).__name__} does not have both")
    targets = getattr(dataset, "targets", None)
    known = targets if targets is not None and len(targets) == len(dataset) else None

    def sample(number: int) -> Sample:
        def prepare() -> Sample:
            item = dataset[number]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(f"an item of the data set is a {type(item).__name__}; a pair (image, label) is expected")
            return {"image": preprocessing(to_picture(item[0])), "label": _to_label(item[1])}

        return sample_of(str(number), None if known is None else _to_label(known[number]), prepare)

    return Records(len(dataset), sample).loader(batch_size, workers)


def _check_column(name: str | None, columns: Iterable[str], what: str, otherwise: str = "") -> None:
    if name is not None and name not in columns:
        raise DataError(
            f"no column {name!r}; give the name of the column with {what}={otherwise}; {choose_from(name, columns)}"
        )


def to_picture(value: Any) -> Image.Image:
    """Convert a decoded image, or a mapping with the bytes or path of a file as `datasets` stores it, to an upright RGB."""
    if isinstance(value, Image.Image):
        check_pixels(value)
        return to_rgb(ImageOps.exif_transpose(value))
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        return read_picture(value.get("bytes") or Path(value["path"]), to_rgb)
    raise DataError(
        f"a Pillow image is expected, got a {type(value).__name__}; give the data set without its own transform or format, "
        "or, if that prepares images for the model, use a DataLoader of it instead"
    )


def _to_label(value: Any) -> int | None:
    if value is None:
        return None
    number = value.item() if isinstance(value, Tensor | np.generic) and np.ndim(value) == 0 else value
    if not isinstance(number, int):
        raise TargetError(f"a label is an integer, the index of a class; got {value!r}")
    return int(number)
