"""Load data by name: generated scenes, image folders, UC Merced, mosaics of them, or a function that returns a loader."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from xaieval.config.counts import check_count
from xaieval.data.annotations import Annotations
from xaieval.data.class_folders import ClassOrder
from xaieval.data.cues import CUES, Cue
from xaieval.data.hub import hub_pictures
from xaieval.data.images import Pictures, image_folder, scenes
from xaieval.data.mosaics import Judge, Layout, Mosaics, mosaics
from xaieval.data.preprocessing import Preprocessing
from xaieval.data.scans import ScanPreprocessing, scan_folder
from xaieval.data.scenes import Split
from xaieval.data.uc_merced import ucmerced
from xaieval.errors import DataError, UsageError, advice, choose_from

__all__ = [
    "DATA_SOURCES",
    "Data",
    "import_factory",
    "is_mosaics",
    "load_data",
    "load_mosaics",
    "load_pictures",
    "names_code",
]

# Data from these sources is read without importing user code: run files and manifests may name them.
DATA_SOURCES = {
    "scenes": "scenes",
    "folder": "folder:DIR",
    "nifti": "nifti:DIR",
    "ucmerced": "ucmerced:DIR",
    "hf": "hf:NAME",
    "mosaics": "mosaics:DATA",
    "focus": "focus:DATA",
}
LAYOUTS: dict[str, Layout] = {"mosaics": "distinct", "focus": "focus"}  # of mosaics, by the name of their source
MOSAIC_ARGS: dict[str, Any] = {"side": int, "confidence": (int, float), "shrink": bool}
FOLDERS: dict[str, Any] = {"folder": image_folder, "nifti": scan_folder}  # one sub-folder for each class
SCENES_BY_NAME: dict[str, Cue | None] = {"scenes": None} | {f"scenes:{cue}": cue for cue in CUES}
SCENES = 200  # default number of images


@dataclass(frozen=True)
class Data:
    """A loaded data set.

    Attributes:
        loader: Batches for `xaieval.score`.
        preview: Batches of a few images for figures; None if the loader can be read only once.
        classes: Names of the classes, if known.
        left_out: What else a folder contains: the number of files of each kind.
    """

    loader: Iterable[Any]
    preview: Iterable[Any] | None
    classes: list[str] | None
    left_out: Mapping[str, int] = field(default_factory=dict)


def names_code(spec: str) -> bool:
    """Whether a name is a `package.module:factory`, which is imported and called, instead of a known source.

    Example:
        >>> names_code("folder:photos"), names_code("mine:make"), names_code("scenes:colour"), names_code("scenes:make")
        (False, True, False, True)
    """
    source, _, rest = spec.partition(":")
    return bool(rest) and ":" not in DATA_SOURCES.get(source, "") and spec not in SCENES_BY_NAME


def is_mosaics(spec: str) -> bool:
    """Whether data by this name is mosaics of other data.

    Example:
        >>> is_mosaics("mosaics:folder:photos"), is_mosaics("focus:scenes"), is_mosaics("folder:mosaics")
        (True, True, False)
    """
    return spec.partition(":")[0] in LAYOUTS


def load_data(
    spec: str,
    preprocessing: Preprocessing | ScanPreprocessing,
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
    annotations: str | Annotations | None = None,
    classes: ClassOrder | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    mosaic_args: Mapping[str, Any] | None = None,
    judge: Judge | None = None,
    seed: int = 0,
) -> Data:
    """Load data by name.

    Args:
        spec: "scenes", "scenes:CUE" (see `xaieval.data.cues`), "folder:DIR", "nifti:DIR", "ucmerced:DIR", "hf:NAME" (see
            `xaieval.data.hub.hub_pictures`), "mosaics:DATA" or "focus:DATA", whose DATA is one of the others; or
            "package.module:factory", a function without arguments that returns a loader. Only the last form imports user code.
        preprocessing: Turns an image into the model's input, of "nifti:DIR" a scan. A factory applies its own.
        batch_size: Images in a batch.
        max_images: The largest number of images, spread evenly over the classes. Default: all; 200 for "scenes".
        preview: Number of images in the preview.
        download: Download UC Merced if the folder does not have it, or a data set of the Hub.
        workers: Number of processes that load images.
        pin_memory: Put batches into pinned memory, for faster transfer to a GPU.
        truth: The masks or boxes of the objects are needed. A factory returns them in its batches.
        masks: For "folder:DIR", a folder with the mask of each image; see `image_folder`.
        boxes: For "folder:DIR", a file with boxes around the objects; see `image_folder`.
        annotations: For "folder:DIR", the objects with their classes, such as "coco:FILE"; see `image_folder`.
        classes: For "folder:DIR", which class a folder is; see `image_folder`.
        split: The split of "hf:NAME" (default: the only one) and of "scenes" (default: "test").
        image_column: For "hf:NAME", see `hub_pictures`.
        label_column: For "hf:NAME", see `hub_pictures`.
        mosaic_args: For mosaics, see `load_mosaics`.
        judge: For mosaics, see `load_mosaics`.
        seed: For mosaics, see `load_mosaics`.

    Raises:
        DataError: The name is unknown, there are no images, or masks or boxes are needed but missing.
    """
    check_count("batch_size", batch_size, kind=DataError)
    check_count("workers", workers, 0, kind=DataError)
    check_count("max_images", max_images, optional=True, kind=DataError)
    places: dict[str, Any] = {"masks": masks, "boxes": boxes, "annotations": annotations}
    parts = _parts(spec, split, image_column, label_column)
    if mosaic_args and not is_mosaics(spec):
        raise DataError(f"mosaic_args go with 'mosaics:DATA' and 'focus:DATA', but the data is {spec!r}")
    if is_mosaics(spec):
        _check_truth(spec, truth, any(given is not None for given in places.values()))
        made = load_mosaics(
            spec, preprocessing, max_images, judge, seed, parts, download=download, classes=classes, **mosaic_args or {}
        )
        few = made.subset(range(min(preview, len(made))))
        known = made.dataset
        return Data(made.loader(batch_size, workers, pin_memory), few.loader(preview), list(known.classes), known.left_out)
    pictures = load_pictures(
        spec, preprocessing, max_images, download=download, truth=truth, classes=classes, **parts, **places
    )
    if pictures is not None:
        loader = pictures.loader(batch_size, workers, pin_memory)
        return Data(loader, pictures.spread(preview).loader(preview), list(pictures.classes) or None, pictures.left_out)
    loader = _factory(spec)()
    if not hasattr(loader, "__iter__"):
        raise DataError(f"{spec} returned a {type(loader).__name__}; a function that returns a loader is expected")
    return Data(loader, None if iter(loader) is loader else loader, None)


def load_mosaics(
    spec: str,
    preprocessing: Preprocessing | ScanPreprocessing,
    max_images: int | None = None,
    judge: Judge | None = None,
    seed: int = 0,
    parts: Mapping[str, Any] | None = None,
    *,
    download: bool = False,
    classes: ClassOrder | None = None,
    **choices: Any,
) -> Mosaics:
    """Load mosaics of the images of another data set, by name.

    Args:
        spec: "mosaics:DATA" for the grid pointing game or "focus:DATA" for Focus, where DATA is data of images by name.
        preprocessing: Turns an image into the model's input.
        max_images: The largest number of single images that they are made of, spread evenly over the classes. Default: all;
            200 for "scenes".
        judge: As in `mosaics`: the model's probabilities.
        seed: As in `mosaics`.
        parts: `split`, `image_column` and `label_column` of `load_data`, those that are given.
        download: As in `load_data`.
        classes: As in `load_data`.
        **choices: `side`, `confidence` and `shrink`, as in `mosaics`.

    Raises:
        DataError: There is no such data, a choice is unknown or out of range, or there are too few images.
    """
    source, _, rest = spec.partition(":")
    if isinstance(preprocessing, ScanPreprocessing):
        raise DataError(f"mosaics are made of images, not of scans; the data is {spec!r}")
    for name, value in choices.items():
        if name not in MOSAIC_ARGS:
            raise DataError(f"mosaics have no {name!r}; {choose_from(name, MOSAIC_ARGS)}")
        if not isinstance(value, MOSAIC_ARGS[name]):
            raise DataError(f"{name} of mosaics is a number, and shrink True or False; got {value!r}")
    pictures = load_pictures(rest, preprocessing, max_images, download=download, classes=classes, **parts or {})
    if pictures is None:
        raise DataError(
            f"mosaics by name are made of images by name, such as '{source}:folder:DIR', and {rest!r} is a function; return "
            "mosaics(...).loader(...) from it, and give its name alone"
        )
    return mosaics(pictures, layout=LAYOUTS[source], judge=judge, seed=seed, **choices)


def load_pictures(
    spec: str,
    preprocessing: Preprocessing | ScanPreprocessing,
    max_images: int | None = None,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    download: bool = False,
    truth: bool = False,
    masks: str | Path | None = None,
    boxes: str | Path | None = None,
    annotations: str | Annotations | None = None,
    classes: ClassOrder | None = None,
) -> Pictures | None:
    """Load a data set of images by name; None for a factory, which returns a loader.

    Args:
        spec: As in `load_data`.
        preprocessing: Turns an image into the model's input.
        max_images: The largest number of images, spread evenly over the classes. Default: all; 200 for "scenes".
        split: As in `load_data`.
        image_column: As in `load_data`.
        label_column: As in `load_data`.
        seed: The seed of "scenes".
        download: As in `load_data`.
        truth: The masks or boxes of the objects are needed.
        masks: As in `load_data`.
        boxes: As in `load_data`.
        annotations: As in `load_data`.
        classes: As in `load_data`.

    Raises:
        DataError: The name is unknown, there are no images, or masks or boxes are needed but missing.
    """
    source, _, rest = spec.partition(":")
    check_count("max_images", max_images, optional=True, kind=DataError)
    _check_truth(spec, truth, any(given is not None for given in (masks, boxes, annotations)))
    if classes is not None and source not in FOLDERS:
        raise DataError(f"classes goes with 'folder:DIR' and 'nifti:DIR', but the data is {spec!r}")
    if names_code(spec):
        return None
    prepare = _fitting(spec, preprocessing, boxes is not None or annotations is not None)
    if spec in SCENES_BY_NAME:
        size, cue = max_images or SCENES, SCENES_BY_NAME[spec]
        return scenes(prepare, size, cast(Split, split or "test"), seed, masks=truth, cue=cue).spread(max_images)
    if source == "hf" and rest:
        columns = {"image_column": image_column, "label_column": label_column}
        return hub_pictures(rest, prepare, split=split, download=download, **columns).spread(max_images)
    if source == "ucmerced":
        return ucmerced(rest or Path.cwd() / "UCMerced_LandUse", prepare, download).spread(max_images)
    if source in FOLDERS and rest:
        places = {"masks": masks, "boxes": boxes, "annotations": annotations}
        given = {name: place for name, place in places.items() if place is not None}
        return FOLDERS[source](rest, prepare, classes=classes, **given).spread(max_images)
    if is_mosaics(spec):
        raise DataError(f"{spec!r} is mosaics, which are made for scores alone; give the images themselves, {rest!r}")
    forms = ", ".join(f"'{form}'" for form in DATA_SOURCES.values())
    meant = f"did you mean 'folder:{spec}'? " if Path(spec).is_dir() else ""
    raise DataError(f"no data {spec!r}; {meant}data is {forms} or 'package.module:factory'")


def _parts(spec: str, split: str | None, image_column: str | None, label_column: str | None) -> dict[str, Any]:
    """Which part of the data is read, without what is not given.

    Raises:
        DataError: The data has no splits or no columns.
    """
    given = {"split": split, "image_column": image_column, "label_column": label_column}
    parts = {name: value for name, value in given.items() if value is not None}
    inner = spec
    while is_mosaics(inner):
        inner = inner.partition(":")[2]
    able = ("split",) if inner in SCENES_BY_NAME else tuple(given) if inner.startswith("hf:") else ()
    odd = next((name for name in parts if name not in able), None)
    if odd is not None:
        raise DataError(f"{odd} goes with 'hf:NAME', and split with 'scenes' too, but the data is {spec!r}")
    return parts


def _fitting(spec: str, preprocessing: Preprocessing | ScanPreprocessing, boxes: bool) -> Any:
    """The preprocessing, if it is not that of scans for images; boxes of scans are refused too."""
    source = spec.partition(":")[0]
    if boxes and source == "nifti":
        raise DataError(f"boxes and annotations are for images, and the data is {spec!r}; give masks")
    if isinstance(preprocessing, ScanPreprocessing) and source != "nifti":
        raise DataError(f"{advice('a ScanPreprocessing', '--scan-args')} is for 'nifti:DIR', but the data is {spec!r}")
    return preprocessing


def _factory(spec: str) -> Any:
    try:
        return import_factory(spec, DataError, "data")
    except DataError as error:
        if not spec.startswith("scenes:"):
            raise
        raise DataError(f"{error}; scenes with a cue are {', '.join(f'scenes:{cue}' for cue in CUES)}") from error


def _check_truth(spec: str, needed: bool, given: bool) -> None:
    """Refuse masks and boxes that cannot be used, and data without them if they are needed."""
    source = spec.partition(":")[0]
    if given and source not in FOLDERS:
        raise DataError(
            f"masks, boxes and annotations go with 'folder:DIR', and masks with 'nifti:DIR', but the data is {spec!r}; scenes "
            "have their own masks, and a factory returns masks, boxes or 'truth' in its batches"
        )
    if needed and not given and source in (*FOLDERS, "ucmerced"):
        places = advice("annotations=, masks= or boxes=", "--annotations KIND:PLACE, --masks DIR or --boxes FILE")
        raise DataError(
            f"a metric compares maps with the position of the object, but {spec!r} has neither masks nor boxes: use "
            f"'folder:DIR' with {places}, or the data 'scenes', which has masks"
        )


def import_factory(spec: str, error: type[UsageError], what: str) -> Any:
    """Import the function that `package.module:factory` names. This is the only place that imports what a user names.

    Installed modules come before those in the working directory, so a file there never replaces a library.

    Args:
        spec: The name of the function, "package.module:function", or "path/to/file.py:function".
        error: The class of the error if it does not exist.
        what: What the function makes, for the error message: "data" or "model".

    Raises:
        UsageError: The module or the function does not exist. The class of the error is `error`.
    """
    name, _, function = spec.rpartition(":")
    is_file = name.endswith(".py")
    if not is_file and not all(part.isidentifier() for part in name.split(".")):
        raise error(
            f"no {what} {spec!r}: {name!r} is not a module name; 'package.module:factory' or 'file.py:factory' is expected"
        )
    if is_file and not Path(name).is_file():
        raise error(f"no {what} {spec!r}: there is no file '{name}' in the working directory")
    _search_also(Path(name).resolve().parent if is_file else Path.cwd())
    try:
        module = _module_of_file(Path(name).resolve()) if is_file else importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise error(f"no {what} {spec!r}: there is no module {missing.name!r}") from missing
    if not hasattr(module, function):
        origin = getattr(module, "__file__", None) or "built into Python"
        raise error(f"no {what} {spec!r}: module {name!r} has no {function!r} ({origin})")
    return getattr(module, function)


def _search_also(folder: Path) -> None:
    """Find modules in a folder too, after all others."""
    if not {str(folder), *([""] if folder == Path.cwd() else [])} & {*sys.path}:
        sys.path.append(str(folder))


def _module_of_file(path: Path) -> ModuleType:
    """The module of a file, run once for a model and data of the same file; it never takes the place of another module."""
    loaded = next((one for one in [*sys.modules.values()] if getattr(one, "__file__", None) == str(path)), None)
    if loaded is not None:
        return loaded
    name = re.sub(r"\W", "_", path.stem)
    other = importlib.util.find_spec(name)
    name = name if other is None or other.origin == str(path) else f"{name}_from_file"
    plan = importlib.util.spec_from_file_location(name, path)
    if plan is None or plan.loader is None:
        raise ModuleNotFoundError(f"'{path.name}' is no Python file", name=path.stem)
    sys.modules[name] = module = importlib.util.module_from_spec(plan)
    try:
        plan.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
