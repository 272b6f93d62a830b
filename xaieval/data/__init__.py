"""Data: image folders with stable ids, UC Merced, generated scenes, data sets of others, and the loading of data by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xaieval.data.images import Pictures, image_folder, scenes, ucmerced
from xaieval.data.preprocessing import Preprocessing
from xaieval.data.scenes import Split
from xaieval.data.sources import arrays, huggingface, pairs
from xaieval.data.splits import Fold, block_folds, random_folds
from xaieval.errors import DataError, UsageError

__all__ = [
    "Data",
    "Fold",
    "Pictures",
    "Preprocessing",
    "arrays",
    "block_folds",
    "huggingface",
    "image_folder",
    "import_factory",
    "load_data",
    "load_pictures",
    "names_code",
    "pairs",
    "random_folds",
    "scenes",
    "ucmerced",
]

# Data of these sources is read without importing code of the user's: run files and manifests may name them.
DATA_SOURCES = {"scenes": "scenes", "folder": "folder:DIR", "ucmerced": "ucmerced:DIR"}
SCENES = 200  # images of the data set unless told


@dataclass(frozen=True)
class Data:
    """A data set by name.

    Attributes:
        loader: batches for `xaieval.score`.
        preview: batches of a few images for pictures; None where the loader can be read only once.
        classes: names of the classes, if known.
    """

    loader: Iterable[Any]
    preview: Iterable[Any] | None
    classes: list[str] | None


def names_code(spec: str) -> bool:
    """Whether the name of data is a `package.module:factory`, which is imported and called, and not one of a known source.

    Example:
        >>> names_code("folder:photos"), names_code("mine:make"), names_code("scenes"), names_code("scenes:make")
        (False, True, False, True)
    """
    source, _, rest = spec.partition(":")
    return bool(rest) and ":" not in DATA_SOURCES.get(source, "")


def load_data(
    spec: str,
    preprocessing: Preprocessing,
    batch_size: int,
    max_images: int | None = None,
    preview: int = 5,
    download: bool = False,
    workers: int = 0,
    pin_memory: bool = False,
    *,
    truth: bool = False,
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
) -> Data:
    """Images by name.

    Args:
        spec: "scenes", "folder:DIR", "ucmerced:DIR", or "package.module:factory", a function without arguments that returns a
            loader. Only the last form imports user code.
        preprocessing: from a picture to the model's input; a factory does its own.
        batch_size: images a batch.
        max_images: at most so many, spread evenly over the classes; "scenes" has 200 unless told.
        preview: number of images of the preview.
        download: fetch UC Merced, if it is not there.
        workers: processes that read pictures ahead.
        pin_memory: as a GPU takes it fastest.
        truth: where the objects are is needed; a factory gives it in its batches.
        masks: of "folder:DIR", a folder with the mask of each image: see `image_folder`.
        boxes: of "folder:DIR", a file with boxes around the objects: see `image_folder`.

    Raises:
        DataError: nothing has that name, there are no images, or the objects are not known.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is at least 1, got {batch_size}")
    if workers < 0:
        raise DataError(f"workers are at least 0, got {workers}")
    pictures = load_pictures(spec, preprocessing, max_images, download=download, truth=truth, masks=masks, boxes=boxes)
    if pictures is not None:
        loader = pictures.loader(batch_size, workers, pin_memory)
        return Data(loader, pictures.spread(preview).loader(preview), list(pictures.classes))
    made = import_factory(spec, DataError, "data")()
    if not hasattr(made, "__iter__"):
        raise DataError(f"{spec} gave a {type(made).__name__}; a function that returns a loader is expected")
    return Data(made, None if iter(made) is made else made, None)


def load_pictures(
    spec: str,
    preprocessing: Preprocessing,
    max_images: int | None = None,
    *,
    split: Split = "test",
    seed: int = 0,
    download: bool = False,
    truth: bool = False,
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
) -> Pictures | None:
    """A data set of pictures by name; None for a factory, which gives a loader.

    Args:
        spec: as in `load_data`.
        preprocessing: from a picture to the model's input.
        max_images: at most so many, spread evenly over the classes; "scenes" has 200 unless told.
        split: of "scenes".
        seed: of "scenes".
        download: fetch UC Merced, if it is not there.
        truth: where the objects are is needed.
        masks: as in `load_data`.
        boxes: as in `load_data`.

    Raises:
        DataError: nothing has that name, there are no images, or the objects are not known.
    """
    kind, _, rest = spec.partition(":")
    _check_truth(spec, truth, masks is not None or boxes is not None)
    if spec == "scenes":
        return scenes(preprocessing, size=max_images or SCENES, split=split, seed=seed, masks=truth).spread(max_images)
    if kind == "folder" and rest:
        return image_folder(rest, preprocessing, masks=masks, boxes=boxes).spread(max_images)
    if kind == "ucmerced":
        return ucmerced(rest or Path.cwd() / "UCMerced_LandUse", preprocessing, download).spread(max_images)
    if names_code(spec):
        return None
    forms = ", ".join(f"'{form}'" for form in DATA_SOURCES.values())
    raise DataError(f"no data {spec!r}; data is {forms} or 'package.module:factory'")


def _check_truth(spec: str, wanted: bool, given: bool) -> None:
    """Refuse masks and boxes where they cannot be used, and data without them where they are needed.

    Raises:
        DataError: one of the two.
    """
    kind = spec.partition(":")[0]
    if given and kind != "folder":
        raise DataError(
            f"masks and boxes go with 'folder:DIR', but the data is {spec!r}; scenes have masks of their own, and a factory "
            "gives them in its batches"
        )
    if wanted and not given and kind in ("folder", "ucmerced"):
        raise DataError(
            f"a metric compares maps with where the object is, but of {spec!r} neither masks nor boxes are given: "
            "use 'folder:DIR' with --masks DIR or --boxes FILE, or the data 'scenes', which has masks"
        )


def import_factory(spec: str, error: type[UsageError], what: str) -> Any:
    """The function that `package.module:factory` names. Nothing else in the package imports what a user names.

    Modules in the working directory are found too, but after installed ones, so that no file that happens to lie there stands
    in for a library.

    Raises:
        UsageError: of the class given, if the module or the function does not exist.
    """
    module, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise error(f"no {what} {spec!r}: {module!r} is no name of a module; 'package.module:factory' is expected")
    here = str(Path.cwd())
    if not {here, ""} & {*sys.path}:
        sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise error(f"no {what} {spec!r}: there is no module {missing.name!r}") from missing
    if not hasattr(found, name):
        place = getattr(found, "__file__", None) or "built into Python"
        raise error(f"no {what} {spec!r}: module {module!r} has no {name!r} ({place})")
    return getattr(found, name)
