"""Loaders from data that is there already: arrays, Hugging Face data sets, torchvision data sets."""

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

from xaieval.data.batches import check_images
from xaieval.data.decoding import UNREADABLE, check_pixels, read_picture, to_rgb
from xaieval.data.images import collate, sample_of
from xaieval.errors import DataError, TargetError, choose_from

__all__ = ["Arrays", "Records", "Stream", "arrays", "huggingface", "pairs"]

Prepare = Callable[[Image.Image], Tensor]
Sample = dict[str, Any]


@dataclass(frozen=True)
class Arrays(Dataset[Sample]):
    """Images, labels and ids as whole arrays; a batch is cut out of them in one piece."""

    images: Any
    labels: Any = None
    ids: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])

    def __getitems__(self, numbers: list[int]) -> Sample:
        """The images of these numbers as one batch, which a DataLoader asks for at once."""
        batch: Sample = {"image": self.images[numbers]}
        if self.labels is not None:
            batch["label"] = self.labels[numbers]
        if self.ids is not None:
            batch["id"] = [str(self.ids[number]) for number in numbers]
        return batch


def arrays(images: Any, labels: Any = None, ids: Sequence[Any] | None = None, batch_size: int = 32) -> DataLoader[Sample]:
    """Batches of whole arrays, or of tensors.

    Args:
        images: `[N, C, H, W]` of floats, normalised as the model expects; a memory-mapped array is read batch by batch.
        labels: `[N]` integers.
        ids: N names; images are called by their position unless told.
        batch_size: images a batch.

    Raises:
        DataError: the images are of another form, or labels and ids are not as many.

    Example:
        >>> images, labels = np.zeros((5, 3, 8, 8), dtype=np.float32), np.arange(5)
        >>> [batch["label"].tolist() for batch in arrays(images, labels, batch_size=2)]
        [[0, 1], [2, 3], [4]]
    """
    check_images(images[:1])
    for what, given in (("labels", labels), ("ids", ids)):
        if given is not None and len(given) != len(images):
            raise DataError(f"{len(images)} images have {len(given)} {what}; as many are expected")
    if labels is not None and not isinstance(labels, Tensor):
        labels = np.asarray(labels)
    return DataLoader(Arrays(images, labels, ids), batch_size=batch_size, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Sample:
    """What `__getitems__` of the arrays gave, which is a batch and no list of samples."""
    return batch


@dataclass(frozen=True)
class Records(Dataset[Sample]):
    """Records of another data set, each made a sample when it is asked for.

    Attributes:
        size: how many there are.
        sample: from a record's number to the sample.
    """

    size: int
    sample: Callable[[int], Sample]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def loader(self, batch_size: int, workers: int) -> DataLoader[Sample]:
        """Batches for `xaieval.score`."""
        return DataLoader(self, batch_size=batch_size, collate_fn=collate, num_workers=workers)


@dataclass(frozen=True)
class Stream:
    """Batches of records that come one after the other; can be read as often as they can.

    Attributes:
        records: what the samples are made of.
        sample: from a record's number and the record to the sample.
        batch_size: samples a batch.
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
                    f"the stream broke off after {number} images: {type(error).__name__}: {error}; a picture that cannot be "
                    "read is kept as a failed row if it comes undecoded: dataset.decode(False)"
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
    """Batches of a data set of Hugging Face's `datasets`, in memory, on disk or streamed.

    The package is not imported here: whatever has columns and gives mappings will do.

    Args:
        dataset: one split, whose records are mappings.
        preprocessing: from an RGB picture to the model's input.
        image: the column of pictures, decoded or not.
        label: the column of classes; None for data without labels.
        id: the column of ids; images are called by their position if there is none.
        batch_size: images a batch.
        workers: processes that read ahead; a stream is read in this one.

    Raises:
        DataError: it is a dictionary of splits, has no such column, or its pictures are none; while reading, a stream breaks
            off.
        TargetError: while reading, a label is no integer.

    Example:
        >>> from xaieval.data import Preprocessing
        >>> rows = [{"image": Image.new("RGB", (40, 30)), "label": 3}] * 5  # a stream of a data set
        >>> loader = huggingface(iter(rows), Preprocessing(32, 32), batch_size=2)
        >>> [batch["label"].tolist() for batch in loader]
        [[3, 3], [3, 3], [3]]
    """
    if isinstance(dataset, Mapping):
        raise DataError(f"this is a dictionary of the splits {', '.join(map(str, dataset))}; give one of them")
    columns = getattr(dataset, "column_names", None)  # a stream may not know
    if columns is not None:
        _check_column(image, columns, "image")
        _check_column(label, columns, "label", " (None for data without labels)")

    def sample(name: Any, known: Any, record: Callable[[], Any]) -> Sample:
        label_of = None if label is None else _to_label(known)
        return sample_of(str(name), label_of, lambda: {"image": preprocessing(_to_picture(record()[image]))})

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
    """Batches of a data set of `(picture, label)`, as torchvision's data sets without a transform are.

    Images are called by their position. A data set whose own transform prepares the images for the model needs none of this:
    its `DataLoader` is a loader as it is.

    Args:
        dataset: has a length and indices.
        preprocessing: from an RGB picture to the model's input.
        batch_size: images a batch.
        workers: processes that read ahead.

    Raises:
        DataError: the data set has no length or no indices; while reading, its items are no such pairs.
        TargetError: while reading, a label is no integer.

    Example:
        >>> from xaieval.data import Preprocessing
        >>> dataset = [(Image.new("RGB", (40, 30)), 7)] * 3
        >>> [batch["label"].tolist() for batch in pairs(dataset, Preprocessing(32, 32), batch_size=2)]
        [[7, 7], [7]]
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"a data set of pairs has a length and indices, which a {type(dataset).__name__} has not")
    targets = getattr(dataset, "targets", None)
    known = targets if targets is not None and len(targets) == len(dataset) else None

    def sample(number: int) -> Sample:
        def prepare() -> Sample:
            item = dataset[number]
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise DataError(f"an item of the data set is a {type(item).__name__}; a pair (picture, label) is expected")
            return {"image": preprocessing(_to_picture(item[0])), "label": _to_label(item[1])}

        return sample_of(str(number), None if known is None else _to_label(known[number]), prepare)

    return Records(len(dataset), sample).loader(batch_size, workers)


def _check_column(name: str | None, columns: Iterable[str], what: str, otherwise: str = "") -> None:
    if name is not None and name not in columns:
        raise DataError(f"no column {name!r}; name the one to take by {what}={otherwise}; {choose_from(name, columns)}")


def _to_picture(value: Any) -> Image.Image:
    """An upright picture in RGB, decoded or as `datasets` keeps it: a mapping with the file's bytes or its path."""
    if isinstance(value, Image.Image):
        check_pixels(value)
        return to_rgb(ImageOps.exif_transpose(value))
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        return read_picture(value.get("bytes") or Path(value["path"]), to_rgb)
    raise DataError(
        f"a picture of Pillow is expected, got a {type(value).__name__}; give the data set without its own transform or "
        "format, or, if that prepares images for the model, a DataLoader of it instead"
    )


def _to_label(value: Any) -> int | None:
    if value is None:
        return None
    number = value.item() if isinstance(value, Tensor | np.generic) and np.ndim(value) == 0 else value
    if not isinstance(number, int):
        raise TargetError(f"a label is an integer, the number of a class; got {value!r}")
    return int(number)
