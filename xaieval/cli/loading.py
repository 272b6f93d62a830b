"""Models, functions that run them, and finished runs, as options of a command describe them; and which names import code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xaieval.cli.bands import check_bands, check_normalisation
from xaieval.cli.prompts import with_prompts
from xaieval.config.groups import Groups, Weights
from xaieval.config.options import (
    CheckOptions,
    ModelOptions,
    ProtocolOptions,
    RunOptions,
    model_settings,
    parse_literals,
    parts_of_data,
)
from xaieval.errors import ModelError, UsageError, choose_from

if TYPE_CHECKING:
    from torch import Tensor

    from xaieval.config.protocol import Protocol
    from xaieval.data import Data
    from xaieval.data.preprocessing import Side
    from xaieval.evaluation.scores import Scores
    from xaieval.explainers import Explainer
    from xaieval.inference.forward_passes import Forward
    from xaieval.metrics import Metric
    from xaieval.models import LoadedModel
    from xaieval.report.figures.slices import Slices

__all__ = [
    "Inputs",
    "check_names",
    "chosen_target",
    "class_order",
    "load",
    "load_for",
    "load_forward",
    "load_inputs",
    "load_judge",
    "load_methods",
    "load_metrics",
    "load_run",
    "load_trained",
    "mosaic_settings",
    "names_code",
    "shown_slices",
]


# Options that are keyword arguments of the same name.
SAME_NAME = (
    *("device", "precision", "compile", "memory", "fast", "deterministic"),
    *("batch_size", "resume", "progress", "seed", "strict"),
)


class Inputs(NamedTuple):
    """What a run is given.

    Attributes:
        loaded: The model, and how its images are prepared.
        forward: Runs a model that takes more than images; None for all others.
        protocol: How maps become numbers.
        data: The images.
        settings: Keyword arguments of `xaieval.score` and `xaieval.search` that are options of the same name.
    """

    loaded: LoadedModel
    forward: Forward | None
    protocol: Protocol
    data: Data
    settings: dict[str, Any]


def load_inputs(
    options: RunOptions,
    model_options: ModelOptions,
    protocol_options: ProtocolOptions,
    *,
    truth: bool,
    places: Sequence[str] = (),
) -> Inputs:
    """Load the model and the images that the options name.

    Args:
        options: Of the run.
        model_options: Of the model.
        protocol_options: Of the protocol.
        truth: Whether the objects of the images are needed.
        places: Files, folders and patterns of images, in the place of the data that the options name.

    Raises:
        UsageError: One of its kinds, for options that cannot work.
    """
    from xaieval.data import load_data

    loaded = load_trained(options, model_options)
    forward = load_forward(model_options.forward)
    known_data = bool(places) or not names_code("data", options.data)
    if known_data:
        check_normalisation(model_options, loaded.preprocessing)
    protocol = protocol_options.resolve(loaded.preprocessing.mean, loaded.preprocessing.std, chosen_target(options))
    data = (
        _images_at(places, loaded, options)
        if places
        else load_data(
            options.data,
            loaded.preprocessing,
            options.batch_size,
            options.max_images,
            download=options.download,
            workers=options.workers,
            pin_memory=(options.device or "").startswith("cuda"),
            truth=truth,
            masks=options.masks,
            boxes=options.boxes,
            annotations=options.annotations,
            classes=class_order(options.classes),
            **parts_of_data(options),
            **mosaic_settings(options, loaded, forward, protocol),
        )
    )
    if known_data:
        check_bands(model_options, loaded.preprocessing, data)
    settings = {name: getattr(options, name) for name in SAME_NAME} | model_settings(options) | {"forward": forward}
    return Inputs(loaded, forward, protocol, data, settings)


def _images_at(places: Sequence[str], loaded: LoadedModel, options: RunOptions) -> Data:
    """The images of files, folders and patterns."""
    from xaieval.data import Data, image_files

    pictures = image_files(places, loaded.preprocessing).spread(options.max_images)
    return Data(pictures.loader(options.batch_size, options.workers), None, None)


def load_trained(options: RunOptions | CheckOptions, model_options: ModelOptions) -> LoadedModel:
    """Load the model whose explanations are to be judged.

    Raises:
        ModelError: Its weights are random, and the options do not ask for that.
    """
    loaded = load_for(options, model_options, options.seed)
    if loaded.random and not model_options.random_weights:
        raise ModelError(
            f"{options.model} without --weights FILE or --pretrained has random weights, and scores of an untrained network "
            "mean nothing; give its weights, or --random-weights to score it anyway (drawn with --seed)"
        )
    return loaded


def load_for(options: RunOptions | CheckOptions, model_options: ModelOptions, seed: int = 0) -> LoadedModel:
    """Load the model of a run; prompts, if it has any, are those of the classes of its data."""
    return load(options.model, with_prompts(model_options, options, chosen_target(options), class_order(options.classes)), seed)


def load(spec: str, options: ModelOptions, seed: int = 0) -> LoadedModel:
    """Load a model, with the preprocessing that the options choose; random weights are drawn by the seed."""
    import torch

    from xaieval.models import load_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        arguments = parse_literals(options.model_args)
        loaded = load_model(
            spec, options.weights, options.pretrained, arguments, options.prompts, options.head, options.num_classes
        )
    if options.scan_args:
        return replace(loaded, preprocessing=_of_scans(options))
    preprocessing = loaded.preprocessing
    if len(options.mean or ()) == len(options.std or ()) > 1:
        preprocessing = preprocessing.with_channels(len(options.mean or ()))
    if options.image_size is not None:
        preprocessing = preprocessing.with_size(_size(options.image_size))
    normal = {"mean": options.mean, "std": options.std}
    changes: dict[str, Any] = {
        name: numbers * preprocessing.channels if len(numbers) == 1 else numbers
        for name, numbers in normal.items()
        if numbers is not None
    }
    changes |= {name: given for name in ("interpolation", "nodata") if (given := getattr(options, name)) is not None}
    return replace(loaded, preprocessing=replace(preprocessing, **changes))


def check_names(option: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse settings that an option of settings, such as --stop-args, does not have.

    Raises:
        UsageError: With the nearest name.
    """
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise UsageError(f"no --{option}.{unknown}; {choose_from(unknown, known)}")


def _of_scans(options: ModelOptions) -> Any:
    """How scans are prepared.

    Raises:
        UsageError: The options are those of images, or there is no such setting, or a setting is out of range.
    """
    from xaieval.data import ScanPreprocessing

    of_pictures = [
        name for name in ("image_size", "mean", "std", "interpolation", "nodata") if getattr(options, name) is not None
    ]
    check_names("scan-args", options.scan_args, [one.name for one in fields(ScanPreprocessing)])
    if of_pictures or "intensity" not in options.scan_args:
        raise UsageError(
            "scans are prepared as --scan-args.intensity says, with .size and .spacing if they are given; "
            + (f"--{of_pictures[0].replace('_', '-')} is for images" if of_pictures else "it is missing")
        )
    return ScanPreprocessing(**parse_literals(options.scan_args))


def load_judge(options: RunOptions, model_options: ModelOptions, weights: str) -> Any:
    """The network of a model's kind with other weights, which judges masked images."""
    return load_for(options, replace(model_options, weights=weights, pretrained=False)).model


def load_forward(spec: str | None) -> Callable[..., Any] | None:
    """The function that runs the model; None for a model that takes only images.

    Raises:
        UsageError: There is no such function.
    """
    if spec is None:
        return None
    from xaieval.data import import_factory

    if not all(spec.partition(":")):
        raise UsageError(f"--forward takes package.module:function, a function of the model and the images; got {spec!r}")
    function = import_factory(spec, UsageError, "forward")
    if not callable(function) or isinstance(function, type):
        raise UsageError(f"--forward {spec} is a {type(function).__name__}; a function of the model and the images is expected")
    return function


def chosen_target(options: RunOptions | CheckOptions) -> str | None:
    """The target that the options name; None for that of the protocol. Mosaics are asked for the class of a cell."""
    from xaieval.data import is_mosaics

    return "label" if options.target is None and is_mosaics(options.data) else options.target


def class_order(words: Sequence[str] | None) -> Any:
    """The value of `image_folder(classes=...)` from the words of --classes."""
    return words[0] if words and len(words) == 1 and words[0] in ("name", "number") else words


def mosaic_settings(options: RunOptions, loaded: LoadedModel, forward: Forward | None, protocol: Protocol) -> dict[str, Any]:
    """How mosaics are made, as keyword arguments of `load_data`; only seed and arguments for other data.

    Of the single images, those are taken that the model classifies right and is sure of, as in the papers.

    Raises:
        UsageError: The model is no classifier.
    """
    from xaieval.data import is_mosaics

    settings = {"mosaic_args": parse_literals(options.mosaic_args), "seed": options.seed}
    if not is_mosaics(options.data):
        return settings
    if options.task != "classification":
        raise UsageError(f"mosaics are for classifiers, which follow a class of the whole image; the task is {options.task}")
    return settings | {"judge": _judge(loaded, forward, options, protocol)}


def _judge(loaded: LoadedModel, forward: Forward | None, options: RunOptions, protocol: Protocol) -> Callable[[Tensor], Tensor]:
    """A function from images to the model's confidences of all classes."""
    from xaieval.inference.borrowing import borrow
    from xaieval.inference.forward_passes import called
    from xaieval.inference.targets import confidences
    from xaieval.inference.tasks import Classification

    task = Classification(options.output)

    def judge(images: Tensor) -> Tensor:
        with borrow(loaded.model, options.device) as device:
            logits = task.read(called(loaded.model, forward)(images.to(device)))
            return confidences(logits.detach(), protocol.confidence).cpu()

    return judge


def load_methods(options: RunOptions) -> list[Explainer]:
    """The explainers that the options name, with their settings.

    Raises:
        ExplainerError: There is no such method or no such setting.
    """
    from xaieval.explainers import with_settings

    return with_settings(options.methods, {name: parse_literals(given) for name, given in options.method_args.items()})


def load_metrics(options: RunOptions, metrics: Sequence[str]) -> list[Metric]:
    """The metrics of these names, with the settings that the options give.

    Raises:
        MetricError: There is no such metric or no such setting, or it cannot take the value.
    """
    from xaieval.metrics.settings import with_settings

    return with_settings(metrics, {name: parse_literals(given) for name, given in options.metric_args.items()})


def shown_slices(loaded: LoadedModel, images: Tensor) -> Slices | None:
    """What figures show of volumes; None for images."""
    from xaieval.report.figures.slices import check_slices

    return check_slices(getattr(loaded.preprocessing, "slices", None), images.shape[1]) if images.ndim == 5 else None


def load_run(folder: Path, groups: str | None, weights: Weights | None) -> Scores:
    """A run from its folder, with other groups of its images if the command line names some.

    Raises:
        OutputError: The folder holds no run.
        DataError: An image has no group.
    """
    from xaieval.evaluation.scores import Scores

    scores = Scores.load(folder)
    if groups is None and weights is None:
        return scores
    return scores.with_groups(Groups(groups, weights or scores.group_weights))


def _size(sides: int | tuple[int, ...]) -> Side:
    """One side, or height and width, from the command line or from a manifest."""
    return sides if isinstance(sides, int) else (sides[0], sides[-1])


def names_code(option: str, value: str) -> bool:
    """Whether an option names a `package.module:factory`, whose code would be imported and run.

    `model`, `data` and `forward` are the only options that can, and `forward` always does. For the other two the rooms that
    load them decide, so that no list here can differ from what they load.
    """
    if option == "model":
        from xaieval.models.loading import names_code as model_names_code

        return model_names_code(value)
    if option == "data":
        from xaieval.data import names_code as data_names_code

        return data_names_code(value)
    return option == "forward"
