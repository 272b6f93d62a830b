"""Maps of any number of images as files, with a table of what they explain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from torch import Tensor, nn

from xaieval.config.counts import check_count
from xaieval.config.groups import Groups
from xaieval.config.keywords import with_keywords
from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch, Failure
from xaieval.errors import OutputError, RunError, UsageError, advice
from xaieval.evaluation.batch_rows import Measured, check_labelled, measured_rows
from xaieval.evaluation.fingerprint import new_manifest, run_identity
from xaieval.evaluation.first_pass import first_pass
from xaieval.evaluation.image_order import first_readable
from xaieval.evaluation.job import Job, borrowed, in_parts, started
from xaieval.evaluation.maps import finished_maps, raw_maps, run_batch
from xaieval.evaluation.matched import MatchedControls
from xaieval.evaluation.measure import masked_confidences
from xaieval.evaluation.progress import progress_bar
from xaieval.evaluation.request import Request, batches_of, check_request, check_target_of_all, count_images
from xaieval.evaluation.run_state import dead_workers_are_run_errors
from xaieval.explainers import Method
from xaieval.inference.options import Inference, InferenceOptions
from xaieval.inference.targets import Target
from xaieval.masking import filling, mask, occlude, upsample
from xaieval.metrics import resolve_metrics
from xaieval.models.blackbox import Function
from xaieval.models.class_names import class_names
from xaieval.probe.requested_layers import Layers
from xaieval.report.figures.map_colours import COLOURS
from xaieval.report.figures.slices import Slices
from xaieval.report.map_files import KINDS, MapFiles, OneMap
from xaieval.results.files import MANIFEST, PARTS, ROWS, check_folder, write_file, write_json, writing
from xaieval.results.rows import failed_rows

__all__ = ["TABLE", "save_maps", "written_maps"]

TABLE = "maps.csv"
METRICS = ("average_drop", "increase_in_confidence")  # of the masked images that are shown
UNUSABLE = ("no_target", "nan_map")  # statuses of rows without files: there is no map
Names = Sequence[str] | Mapping[int, str] | None
NamesOf = Names | Callable[[int | None], Names]


def save_maps(
    model: nn.Module | Function,
    images: Tensor | Iterable[Any],
    layers: Layers = (),
    methods: Method | Sequence[Method] = ("gradcam",),
    target: Target | None = None,
    protocol: str | Protocol = "default",
    *,
    output_dir: str | Path,
    kinds: Sequence[str] = ("overlay", "map", "masked"),
    figure: str | None = None,
    alpha: float = 0.5,
    preprocessing: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bands: Sequence[int] | None = None,
    slices: Slices | None = None,
    colours: str = COLOURS,
    classes: NamesOf = None,
    overwrite: bool = False,
    max_images: int | None = None,
    progress: bool = True,
    seed: int = 0,
    inference: Inference | None = None,
    **options: Unpack[InferenceOptions],
) -> pd.DataFrame:
    """Explain images, and write the maps into a folder as image files and arrays, with a table of what they explain.

    Each image has a folder of its own, `IMAGE/LAYER--METHOD--KIND`, such as `cat--1/layer4--gradcam--overlay.png`; letters that
    file systems do not take become `_`. Beside them are `maps.csv`, the table that is returned, and `manifest.json` with the
    model, the protocol, the versions, and what the files hold. A folder that holds something else is refused. The model is
    given back unchanged.

    Args:
        model: As for `xaieval.score`.
        images: One batch `[N, C, H, W]` or `[N, C, D, H, W]`, or a loader as for `xaieval.score`.
        layers: As for `xaieval.score`, as are methods, target and protocol.
        methods: See there.
        target: See there.
        protocol: How maps are normalised, and how images are masked.
        output_dir: The folder.
        kinds: What is written for each map: "overlay", the map in colours over the image (PNG); "map", its values in [0, 1] at
            the size of the image (NPY, float32); "masked", the image as the protocol masks it (PNG); "raw", the map before it
            is normalised, in no fixed range (NPY, float32); "image", the image alone as the model gets it, `IMAGE/image.png`.
        figure: "pdf", "svg" or "png": also a figure of each image with its maps, a column per layer and a row per method.
        alpha: Opacity of the map in an overlay, from 0 to 1.
        preprocessing: The preprocessing of the images, whose normalisation is undone for image files. Without it, and without
            `mean` and `std`, images of one or three channels have to be in [0, 1].
        mean: Mean of the normalisation per channel, instead of `preprocessing`.
        std: Standard deviation of the normalisation per channel.
        bands: The channels shown as red, green and blue; see `xaieval.show`.
        slices: What is shown of volumes; see `xaieval.show`. Arrays hold whole volumes.
        colours: Name of a matplotlib colour map.
        classes: The names of all classes 0, 1, ..., or a mapping from classes to names, for the table and the figures; or a
            function from the number of classes to these or None. Default: those that a model of transformers or ultralytics, or
            a zero-shot classifier, knows.
        overwrite: Write into a folder that holds other files, and replace those of the same name.
        max_images: Stop after this number of images.
        progress: Show how far it is.
        seed: Of random explainers.
        inference: How the model is run; see `Inference`. As for `xaieval.explain`, `fast` and `compile` have no effect.
        **options: Fields of `Inference` as keywords.

    Returns:
        A row per image, layer and method with the columns of `Scores.rows`: the predicted and the explained class, the
        confidence before and after masking, AD and IC of the image in percent, and the status; with `classes` also
        `label_name`, `predicted_name` and `target_name`; then the path of each file below the folder. Images that could not be
        read, or have no target, have a row without files.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
        OutputError: The folder cannot be written, or holds something else.
        RunError: No image could be read, or a single image does not fit in memory.

    Example:
        >>> import tempfile, torch, torchvision
        >>> model, images = torchvision.models.resnet18(), torch.rand(2, 3, 64, 64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = save_maps(model, images, ["layer3", "layer4"], output_dir=folder, progress=False)
        >>> len(table), table["overlay"].iloc[0]
        (4, '0/layer3--gradcam--overlay.png')
    """
    how = with_keywords(save_maps, inference or Inference(), options)
    files = MapFiles(
        kinds=kinds,
        figure=figure,
        alpha=alpha,
        preprocessing=preprocessing,
        mean=mean,
        std=std,
        bands=bands,
        slices=slices,
        colours=colours,
    )
    check_count("max_images", max_images, optional=True)
    request = check_request(model, layers, methods, resolve_metrics(METRICS), target, protocol, how, seed)
    check_target_of_all(request.protocol)
    loader = [images] if isinstance(images, Tensor) else images
    classes = _known_names(request.model) if classes is None else classes
    return written_maps(request, loader, Path(output_dir), files, classes, overwrite, max_images, progress)


def written_maps(
    request: Request,
    loader: Iterable[Any],
    folder: Path,
    files: MapFiles,
    classes: NamesOf,
    overwrite: bool,
    max_images: int | None,
    progress: bool,
) -> pd.DataFrame:
    """Write the maps of all images of a loader, batch by batch; the arguments are those of `save_maps`.

    Args:
        request: What is explained.
        loader: The images.
        folder: Where the files go.
        files: What is written for each map.
        classes: See `save_maps`, as for all that follow.
        overwrite: See there.
        max_images: See there.
        progress: See there.

    Raises:
        UsageError: See there, as for the others.
        OutputError: See there.
        RunError: See there.
    """
    tables: list[pd.DataFrame] = []
    failures: list[Failure] = []
    names: Names = None
    with ExitStack() as stack:
        stack.enter_context(dead_workers_are_run_errors(keeps_rows=False))
        device = stack.enter_context(borrowed(request))
        bar = stack.enter_context(progress_bar(progress, loader, max_images, "explaining"))
        first, batches = first_readable(batches_of(request, loader, Groups(None), max_images))
        files.pixels(first.images[:1])  # refused before anything is computed, if they are not in [0, 1]
        limit = request.inference.limit(getattr(loader, "batch_size", None) or len(first))
        looked = first_pass(request, first, device, limit)
        request = looked.request
        manifest = new_manifest(request)
        manifest["run"] = run_identity(request, manifest["model"], looked.layers, first, max_images, None)
        manifest["run"] |= {f"maps.{name}": value for name, value in files.settings.items()}
        manifest["maps"] = {"files": {kind: KINDS[kind] for kind in files.kinds}, "table": TABLE}
        _check_folder(folder, manifest["run"], overwrite)
        stack.enter_context(writing(folder, RunError))
        job = stack.enter_context(started(request, first, device, looked.layers, limit))
        job = replace(job, progress=bar.within)
        for batch in batches:
            failures += batch.failed
            parts = in_parts(job, batch, partial(_explained, job)) if len(batch) else []
            if not tables and parts:  # not before, so that what cannot be explained leaves no folder
                write_json(folder / MANIFEST, manifest)
            for part in parts:
                names = names or _names_of(classes, part.classes)
                tables.append(_written(job, part, folder, files, names))
            bar.images(count_images(request.protocol, batch))
        table = pd.concat([*tables, *([failed_rows(failures, job.names, METRICS)] if failures else [])], ignore_index=True)
        named = _with_names(table, names)
        check_labelled(request.protocol, named["label"], named["target"].notna())
        write_file(folder / TABLE, lambda file: named.to_csv(file, index=False, lineterminator="\n"))
        manifest |= {"complete": True, "unreadable": [{"id": name, "reason": reason} for name, _, reason in failures]}
        write_json(folder / MANIFEST, manifest)
    return named


@dataclass(frozen=True)
class _Explained:
    """Images with their raw maps, the rows of the table, and the number of a classifier's classes."""

    batch: Batch
    raw: Sequence[Tensor]
    rows: pd.DataFrame
    classes: int | None


def _explained(job: Job, batch: Batch) -> _Explained:
    """Explain images and ask for the confidence on the masked ones, as a run does."""
    passed = run_batch(job, batch)
    raw = raw_maps(job, passed)
    passed = passed.without_layers()
    confidences = masked_confidences(job, passed, raw, MatchedControls(job, passed, None))
    rows = measured_rows(Measured.of(batch, passed, confidences, {}, {}), job.names, job.metrics, job.protocol)
    logits = passed.context.logits
    return _Explained(replace(batch, images=passed.context.images), raw, rows, None if logits is None else logits.shape[1])


def _written(job: Job, part: _Explained, folder: Path, files: MapFiles, classes: Names) -> pd.DataFrame:
    """Write the files of some images; returns their rows with the paths."""
    paths: list[dict[str, str]] = []
    for number, image_id in enumerate(part.batch.ids):
        own = part.rows.iloc[number * len(job.names) : (number + 1) * len(job.names)]
        usable = [pair for pair, status in zip(job.names, own["status"], strict=True) if status not in UNUSABLE]
        image = part.batch.images[number : number + 1]
        maps = dict(zip(job.names, _maps_of(job, image, [raw[number : number + 1] for raw in part.raw]), strict=True))
        title = _title(image_id, own.iloc[0], classes)
        written = files.write(folder, image_id, image[0], {pair: maps[pair] for pair in usable}, title)
        paths += [written.get(pair, {}) for pair in job.names]
    return part.rows.assign(**{kind: pd.Series([path.get(kind) for path in paths], dtype=str) for kind in files.columns})


def _maps_of(job: Job, image: Tensor, raw: Sequence[Tensor]) -> Iterator[OneMap]:
    """The maps of one image, with the image masked by each."""
    fill = filling(image, job.protocol)
    for one in raw:
        finished = finished_maps(one, image, job.protocol).maps
        kept = mask(finished, job.protocol).to(image.dtype)
        masked = occlude(image, kept, fill(kept))
        yield OneMap(finished[0], upsample(one, image.shape[2:])[0], masked[0])


def _check_folder(folder: Path, run: Mapping[str, Any], overwrite: bool) -> None:
    """Refuse a folder that holds anything but the same maps, which an interrupted run leaves; a folder of scores in any case.

    Raises:
        OutputError: With the way out.
    """
    if (folder / ROWS).exists() or (folder / PARTS).exists():
        raise OutputError(f"'{folder}' holds the rows of a run; choose another folder")
    if overwrite:
        return
    check_folder(folder, run)
    if folder.is_dir() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise OutputError(
            f"'{folder}' holds other files; choose an empty folder, or write into this one all the same with "
            f"{advice('overwrite=True', '--overwrite')}"
        )


def _title(image_id: str, row: Any, classes: Names) -> str:
    """What is explained, in words.

    Example:
        >>> _title("a.jpg", {"target": 1, "confidence": 0.25}, ["cat", "dog"]), _title("b.jpg", {"target": pd.NA}, None)
        ('a.jpg, dog (0.250)', 'b.jpg')
        >>> _title("a.jpg", {"target": 1, "confidence": 0.25}, None)
        'a.jpg, class 1 (0.250)'
    """
    if pd.isna(row["target"]):
        return image_id
    name = _name_of(row["target"], classes)
    return f"{image_id}, {f'class {name}' if name.isdecimal() else name} ({row['confidence']:.3f})"


def _with_names(table: pd.DataFrame, classes: Names) -> pd.DataFrame:
    """The table with the names of the classes behind their numbers, and the files in the last columns."""
    if classes is None:
        return table
    for column in ("label", "predicted", "target"):
        names = [None if pd.isna(value) else _name_of(value, classes) for value in table[column]]
        table.insert(list(table.columns).index(column) + 1, f"{column}_name", names)
    return table


def _name_of(number: Any, classes: Names) -> str:
    """The name of a class; its number where it has none."""
    known = classes if isinstance(classes, Mapping) else dict(enumerate(classes or ()))
    return str(known.get(int(number), int(number)))


def _known_names(model: nn.Module) -> NamesOf:
    """The names that a model knows, if it has as many classes."""
    known = class_names(model)
    return lambda count: known if known and count == len(known) else None


def _names_of(classes: NamesOf, count: int | None) -> Names:
    """The names of the classes of a model that has so many.

    Raises:
        UsageError: There are more or fewer of them, so that some would be those of other classes.
    """
    names = classes(count) if callable(classes) else classes
    if isinstance(names, str) or (count is not None and isinstance(names, Sequence) and len(names) != count):
        came = repr(names) if isinstance(names, str) else f"{len(names or ())} names"
        raise UsageError(
            f"classes= is a list of names, one for each of the model's {count} classes, or a mapping from some classes to "
            f"names; got {came}"
        )
    return names
