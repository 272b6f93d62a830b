"""Maps of a run once more: model and data as its manifest says, and the images that a report shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from xaieval.cli.loading import load, names_code
from xaieval.config.options import ModelOptions, ProtocolOptions, ScoreOptions
from xaieval.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

    from xaieval.evaluation.scores import Scores
    from xaieval.models import LoadedModel
    from xaieval.report import Maps

__all__ = ["Remade", "remake_maps"]


@dataclass(frozen=True, kw_only=True)
class Remade:
    """Maps and what the labels are called, or why there are none."""

    maps: Maps | None = None
    classes: Sequence[str] = ()
    why: str = ""


class _Images(NamedTuple):
    ids: list[str]
    images: Tensor
    labels: Tensor | None
    classes: Sequence[str]


def remake_maps(scores: Scores, methods: Sequence[str], device: str | None, import_code: bool) -> Remade:
    """Explain the images that a report shows once more.

    Args:
        scores: of a run of the command line.
        methods: whose maps are shown.
        device: where to work; as in the run unless told.
        import_code: whether a manifest may name code to import.

    Raises:
        MetricError: the run has no such method.
    """
    from xaieval.report import images_to_show

    wanted = images_to_show(scores, methods)
    try:
        return _remake(scores, wanted, methods, device, import_code)
    except Exception as error:  # a page without maps is better than none, whatever the code of a model or a data set raises
        return Remade(why=" ".join(str(error).split()) or type(error).__name__)


def _remake(scores: Scores, wanted: Sequence[str], methods: Sequence[str], device: str | None, import_code: bool) -> Remade:
    from xaieval.report.html.image_choice import methods_to_show
    from xaieval.results.manifest import fingerprint

    settings = scores.manifest.get("options")
    if not settings:
        raise RunError("the run was made from Python, where Scores.to_html takes them by maps=")
    options = _given(settings, ScoreOptions)
    if not import_code:
        _check_imports(options)
    loaded = load(options.model, _given(settings, ModelOptions))
    if fingerprint(loaded.model) != (scores.manifest.get("model") or {}).get("fingerprint"):
        raise RunError(f"the model '{options.model}' is not the one that was scored, since its fingerprint is another")
    images = _find_images(options, loaded, set(wanted))
    protocol = _given(settings, ProtocolOptions).resolve(loaded.preprocessing.mean, loaded.preprocessing.std, options.target)
    shown = methods_to_show(scores, methods)
    where = options.where | {"protocol": protocol, "device": device or options.device, "seed": options.seed}
    return _explained(scores, loaded, images, {name: _explainer(name, options) for name in shown}, where, options.batch_size)


def _given(settings: dict[str, Any], kind: Any) -> Any:
    """The options of a dataclass as a manifest has them; what is a list in JSON was a tuple."""
    known = {field.name for field in fields(kind)}
    return kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items() if name in known}
    )


def _check_imports(options: ScoreOptions) -> None:
    """Refuse to run code on the word of a manifest, which may be somebody else's.

    Raises:
        RunError: model or data are code to import.
    """
    for option, spec in (("model", options.model), ("data", options.data)):
        if names_code(option, spec):
            raise RunError(f"they take code from '{spec}', which is imported with --import-code alone")


def _find_images(options: ScoreOptions, loaded: LoadedModel, wanted: set[str]) -> _Images:
    """The wanted images, as far as the data has them.

    Raises:
        RunError: it has none of them, or they are volumes.
    """
    import torch

    from xaieval.data.batches import read_batches

    loader, classes = _open(options, loaded, wanted)
    samples: list[Any] = []
    most = None if options.stop else options.max_images  # a loader without end has to end where the run did
    for batch in read_batches(loader, options.batch_size, most):
        places = [place for place, image_id in enumerate(batch.ids) if image_id in wanted]
        known: Any = [None] * len(batch) if batch.labels is None else batch.labels
        samples += [(batch.ids[place], batch.images[place], known[place]) for place in places]
        if len(samples) == len(wanted):
            break
    if not samples:
        raise RunError(f"none of the images is in '{options.data}' any more")
    ids, images, labels = zip(*samples, strict=True)
    if images[0].ndim != 3:
        raise RunError("the images are volumes, which a page cannot show")
    labelled = all(label is not None for label in labels)
    return _Images(list(ids), torch.stack(images), torch.stack(labels) if labelled else None, classes)


def _open(options: ScoreOptions, loaded: LoadedModel, wanted: set[str]) -> tuple[Iterable[Any], Sequence[str]]:
    """Batches with the wanted images, and names of the classes."""
    from xaieval.data import load_data, load_pictures

    pictures = load_pictures(options.data, loaded.preprocessing, options.max_images)
    if pictures is None:
        return load_data(options.data, loaded.preprocessing, options.batch_size).loader, ()
    numbers = [number for number, image_id in enumerate(pictures.ids) if image_id in wanted]
    if not numbers:
        raise RunError(f"none of the images is in '{options.data}' any more")
    return pictures.subset(numbers).loader(options.batch_size), pictures.classes


def _explainer(name: str, options: ScoreOptions) -> Any:
    """The method that has this name in the rows."""
    from xaieval.explainers import resolve_methods

    asked = {explainer.name: explainer for explainer in resolve_methods(options.methods)}
    return asked.get(name, name)


def _explained(
    scores: Scores, loaded: LoadedModel, found: _Images, explainers: dict[str, Any], where: dict[str, Any], size: int
) -> Remade:
    import torch

    from xaieval.evaluation.loop import explain
    from xaieval.report import Maps

    rows = scores.rows
    maps: dict[str, dict[str, Tensor]] = {}
    for name, explainer in explainers.items():
        layers = list(rows.loc[rows["method"] == name, "layer"].unique())
        parts = [
            explain(
                loaded.model,
                found.images[start : start + size],
                layers,
                explainer,
                labels=None if found.labels is None else found.labels[start : start + size],
                ids=found.ids[start : start + size],
                **where,
            )
            for start in range(0, len(found.ids), size)
        ]
        maps[name] = {layer: torch.cat([part[layer].cpu() for part in parts]) for layer in parts[0]}
    return Remade(maps=Maps(found.ids, loaded.preprocessing.to_pixels(found.images), maps), classes=found.classes)
