"""Maps for the report of a run: those in its folder, or computed again with the model and data that its manifest names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xaieval.cli.loading import (
    chosen_target,
    class_order,
    load_for,
    load_forward,
    load_methods,
    mosaic_settings,
    names_code,
    shown_slices,
)
from xaieval.config.options import ModelOptions, ProtocolOptions, ScoreOptions, model_settings, parts_of_data
from xaieval.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from xaieval.config.protocol import Protocol
    from xaieval.evaluation.scores import Scores
    from xaieval.models import LoadedModel
    from xaieval.report import Maps

__all__ = ["RemadeMaps", "check_imports", "kept_maps", "options_of", "remake_maps"]


@dataclass(frozen=True, kw_only=True)
class RemadeMaps:
    """Maps with the names of the labels and of the model's classes, if known; or the reason why there are none."""

    maps: Maps | None = None
    classes: Sequence[str] = ()
    model_classes: Sequence[str] = ()
    reason: str = ""


class _Images(NamedTuple):
    ids: list[str]
    images: Tensor
    labels: Tensor | None
    classes: Sequence[str]


def kept_maps(scores: Scores, folder: Path) -> RemadeMaps | None:
    """The maps that a run keeps in its folder, which need neither its model nor its data; None if it keeps none."""
    from xaieval.report.html.thumbnails import Maps
    from xaieval.results.files import KEPT_MAPS

    if not (folder / KEPT_MAPS).exists():
        return None
    names = scores.manifest.get("class_names") or {}
    return RemadeMaps(maps=Maps.load(folder), classes=names.get("labels", ()), model_classes=names.get("model", ()))


def remake_maps(scores: Scores, methods: Sequence[str], device: str | None, import_code: bool) -> RemadeMaps:
    """Explain the images that a report shows.

    Args:
        scores: The scores of a run of the command line.
        methods: The methods whose maps are shown.
        device: Where to compute. Default: the device of the run.
        import_code: Whether code that the manifest names may be imported.

    Raises:
        MetricError: The run has no such method.
    """
    from xaieval.report import images_to_show

    wanted = images_to_show(scores, methods)
    try:
        return _remake(scores, wanted, methods, device, import_code)
    except Exception as error:  # a page without maps is better than none, and a model or data set may raise anything
        return RemadeMaps(reason=" ".join(str(error).split()) or type(error).__name__)


def _remake(scores: Scores, wanted: Sequence[str], methods: Sequence[str], device: str | None, import_code: bool) -> RemadeMaps:
    from xaieval.evaluation.fingerprint import fingerprint
    from xaieval.models.class_names import class_names
    from xaieval.report import Maps
    from xaieval.report.html.image_choice import methods_to_explore

    recorded = scores.manifest.get("options")
    if not recorded:
        raise RunError("the run was made from Python, where score(keep_maps=24, output_dir=...) keeps them in the folder")
    options, model_options = options_of(recorded, ScoreOptions), options_of(recorded, ModelOptions)
    if not import_code:
        check_imports(model=options.model, data=options.data, forward=model_options.forward)
    loaded = load_for(options, model_options)
    if fingerprint(loaded.model) != (scores.manifest.get("model") or {}).get("fingerprint"):
        raise RunError(f"the model '{options.model}' is not the one that was scored: its fingerprint differs")
    mean, std = loaded.preprocessing.mean, loaded.preprocessing.std
    protocol = options_of(recorded, ProtocolOptions).resolve(mean, std, chosen_target(options))
    forward = load_forward(model_options.forward)
    mosaic = mosaic_settings(options, loaded, forward, protocol)
    images = _find_images(options, loaded, set(wanted), mosaic, each=protocol.target == "each")
    if protocol.target == "each":
        protocol = replace(protocol, target="label")  # the images come once for each class
    shown = methods_to_explore(scores, methods)
    settings = model_settings(options) | {"protocol": protocol, "device": device or options.device, "seed": options.seed}
    settings["forward"] = forward
    explainers = {name: _explainer(name, options) for name in shown}
    maps = _explained(scores, loaded, images, explainers, settings, options)
    pixels = loaded.preprocessing.to_pixels(images.images, options.bands)
    masked = _masked(loaded, images.images, maps, protocol)
    remade = Maps(images.ids, pixels, maps, shown_slices(loaded, images.images), masked)
    names = class_names(loaded.model, pretrained=model_options.pretrained and model_options.weights is None)
    return RemadeMaps(maps=remade, classes=images.classes, model_classes=names)


def _masked(
    loaded: LoadedModel, images: Tensor, maps: dict[str, dict[str, Tensor]], protocol: Protocol
) -> dict[str, dict[str, Tensor]]:
    """The images masked by each map, as bytes; none of bands and scans, which are stretched to be seen, each on its own."""
    from xaieval.masking import filling, mask, occlude

    if images.shape[1] != 3 or loaded.preprocessing.channels != 3:
        return {}
    fill = filling(images, protocol)

    def hidden(one: Tensor) -> Tensor:
        masks = mask(one, protocol).to(images.dtype)
        pixels = loaded.preprocessing.to_pixels(occlude(images, masks, fill(masks)))
        return (255 * pixels.clamp(0, 1)).round().byte()

    return {method: {layer: hidden(one) for layer, one in layers.items()} for method, layers in maps.items()}


def options_of(settings: dict[str, Any], kind: Any) -> Any:
    """Options of a dataclass from a manifest, whose JSON lists were tuples."""
    known = {field.name for field in fields(kind)}
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items() if name in known}
    )


def check_imports(**specs: str | None) -> None:
    """Refuse to run code because a manifest names it: the run may come from another person.

    Raises:
        RunError: The model, the data or what runs the model is code to import.
    """
    for option, spec in specs.items():
        if spec is not None and names_code(option, spec):
            raise RunError(f"they need code from '{spec}', which is imported only with --import-code")


def _find_images(
    options: ScoreOptions, loaded: LoadedModel, wanted: set[str], mosaic: dict[str, Any], each: bool = False
) -> _Images:
    """Those of the wanted images that the data still has.

    Raises:
        RunError: The data has none of them.
    """
    import torch

    from xaieval.data.batches import read_batches
    from xaieval.data.each_class import each_class, image_of

    loader, classes = _open(options, loaded, {image_of(name) for name in wanted} if each else wanted, mosaic)
    samples: list[Any] = []
    most = None if options.stop else options.max_images  # an infinite loader ends where the run did
    batches = read_batches(loader, options.batch_size, most)
    for batch in each_class(batches) if each else batches:
        places = [place for place, image_id in enumerate(batch.ids) if image_id in wanted]
        known: Any = batch.labels if isinstance(batch.labels, torch.Tensor) else [None] * len(batch)
        samples += [(batch.ids[place], batch.images[place], known[place]) for place in places]
        if len(samples) == len(wanted):
            break
    if not samples:
        raise RunError(f"none of the images is in '{options.data}' any more")
    ids, images, labels = zip(*samples, strict=True)
    if len({image.shape for image in images}) > 1:  # a page shows maps of one size
        ids, images, labels = zip(*(one for one in samples if one[1].shape == images[0].shape), strict=True)
    labelled = all(label is not None for label in labels)
    return _Images(list(ids), torch.stack(images), torch.stack(labels) if labelled else None, classes)


def _open(
    options: ScoreOptions, loaded: LoadedModel, wanted: set[str], mosaic: dict[str, Any]
) -> tuple[Iterable[Any], Sequence[str]]:
    """Batches that contain the wanted images, and the names of the classes."""
    from xaieval.data import is_mosaics, load_data, load_mosaics, load_pictures

    preprocessing, most, order = loaded.preprocessing, options.max_images, class_order(options.classes)
    pictures: Any
    parts = parts_of_data(options)
    if is_mosaics(options.data):
        pictures = load_mosaics(
            options.data, preprocessing, most, mosaic["judge"], mosaic["seed"], parts, classes=order, **mosaic["mosaic_args"]
        )
        classes = pictures.dataset.classes
    else:
        pictures = load_pictures(options.data, preprocessing, most, annotations=options.annotations, classes=order, **parts)
        if pictures is None:
            return load_data(options.data, preprocessing, options.batch_size).loader, ()
        classes = pictures.classes
    numbers = [number for number, image_id in enumerate(pictures.ids) if image_id in wanted]
    if not numbers:
        raise RunError(f"none of the images is in '{options.data}' any more")
    return pictures.subset(numbers).loader(options.batch_size), classes


def _explainer(name: str, options: ScoreOptions) -> Any:
    """The explainer with this name in the rows."""
    of_the_run = {explainer.name: explainer for explainer in load_methods(options)}
    return of_the_run.get(name, name)


def _explained(
    scores: Scores,
    loaded: LoadedModel,
    sample: _Images,
    explainers: dict[str, Any],
    settings: dict[str, Any],
    options: ScoreOptions,
) -> dict[str, dict[str, Tensor]]:
    """The maps of each method by layer."""
    import torch

    from xaieval.evaluation.explain import explain
    from xaieval.explainers import joins_layers, resolve_methods

    size = options.batch_size
    maps: dict[str, dict[str, Tensor]] = {}
    for name, explainer in explainers.items():
        [resolved] = resolve_methods(explainer)
        # The layer in the rows of a method that joins layers is no address.
        layers = options.layers if joins_layers(resolved) else [layer for layer, method in scores.pairs if method == name]
        parts = [
            explain(
                loaded.model,
                sample.images[start : start + size],
                layers,
                explainer,
                labels=None if sample.labels is None else sample.labels[start : start + size],
                ids=sample.ids[start : start + size],
                **settings,
            )
            for start in range(0, len(sample.ids), size)
        ]
        maps[name] = {layer: torch.cat([part[layer].cpu() for part in parts]) for layer in parts[0]}
    return maps
