"""Data sets of Hugging Face's `datasets` by name: of the Hub, or a folder of `save_to_disk`, of images or of Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xaieval.data.images import Pictures
from xaieval.data.sources import Prepare, to_picture
from xaieval.errors import DataError, UsageError, advice, choose_from

__all__ = ["hub_pictures"]

_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves: a data set, or several splits
_LABELS = ("label", "labels")  # names of a column of numbers that is taken for the class


def hub_pictures(
    place: str,
    preprocessing: Prepare,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    download: bool = False,
) -> Pictures:
    """Load images by the package `datasets` (extra `[datasets]`), which runs no code of a data set.

    The columns are found by their types: the images are the column of images, the class is the column of class labels, or a
    column of integers named "label". Ids are those of the column `id`, or the split with the position.

    Args:
        place: A name of the Hub, such as "cifar10"; a folder that `save_to_disk` wrote; a folder that `load_dataset` takes,
            with images in a sub-folder for each class or Parquet files; or a Parquet file. `datasets` keeps a copy of what it
            reads in its cache, apart from the folders of `save_to_disk`.
        preprocessing: Turns an image into the model's input.
        split: Such as "test". Default: the only one.
        image_column: The column of images. Default: the only one of images.
        label_column: The column of classes. Default: the only one that can be.
        download: Whether a data set of the Hub may be downloaded, if the cache does not have it.

    Raises:
        DataError: There is no such data set, split or column, or several could be meant.
        UsageError: The package `datasets` is not installed.
    """
    found = _opened(place, download)
    splits = dict(found) if isinstance(found, Mapping) else {str(found.split or "all"): found}
    name = _one("split", split, list(splits), place)
    if name is None:
        raise DataError(f"hf:{place} has no split")
    dataset = splits[name]
    features = dataset.features
    image = _one("image_column", image_column, _of_type(features, "Image"), place, features)
    if image is None:
        raise DataError(f"hf:{place} has no column of images; its columns are {', '.join(features)}")
    label = _one("label_column", label_column, _of_type(features, "ClassLabel") or _named_labels(features), place, features)
    files = dataset.cast_column(image, type(features[image])(decode=False))  # a broken one then becomes a failed row
    named = "id" in features
    return Pictures(
        ids=[str(one) for one in dataset["id"]] if named else [f"{name}/{number:05d}" for number in range(len(dataset))],
        labels=_labels(dataset, label),
        classes=list(getattr(features[label], "names", ())) if label is not None else [],
        read=lambda number: to_picture(files[number][image]),
        preprocessing=preprocessing,
    )


def _opened(place: str, download: bool) -> Any:
    """The data set, or its splits by name."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UsageError("data hf:NAME needs datasets, which is missing: pip install 'xaieval[datasets]'") from error
    path = Path(place)
    if not path.exists() and not download:
        raise DataError(
            f"no folder or file '{place}'; a data set of that name on the Hub is downloaded by "
            + advice("download=True", "--download")
        )
    try:
        if any((path / file).is_file() for file in _SAVED):
            return datasets.load_from_disk(place)
        if path.suffix == ".parquet":
            return datasets.load_dataset("parquet", data_files=place)
        return datasets.load_dataset(place)
    except Exception as error:  # of files, of the network, of pyarrow
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"datasets cannot load hf:{place}: {reason}") from error


def _one(option: str, given: str | None, known: Sequence[str], place: str, columns: Sequence[str] | Any = ()) -> str | None:
    """What is given, or the only one that is known; None if there is none."""
    every = list(columns) or list(known)
    dashed = advice(f"{option}=", f"--{option.replace('_', '-')}")
    if given is not None and given not in every:
        raise DataError(f"hf:{place} has no {option.replace('_', ' ')} {given!r}; {choose_from(given, every)}")
    if given is None and len(known) > 1:
        raise DataError(f"hf:{place} has {', '.join(known)}, each of which could be meant; name one by {dashed}")
    return given if given is not None else next(iter(known), None)


def _of_type(features: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, feature in features.items() if type(feature).__name__ == kind]


def _named_labels(features: Mapping[str, Any]) -> list[str]:
    """Columns of integers that are classes by their name."""
    return [name for name in _LABELS if "int" in str(getattr(features.get(name), "dtype", ""))]


def _labels(dataset: Any, column: str | None) -> list[int | None]:
    """The class of each image; None without a column, and for -1, which `datasets` writes where it is not known."""
    if column is None:
        return [None] * len(dataset)
    values = dataset[column]
    return [None if value is None or value < 0 else int(value) for value in values]
