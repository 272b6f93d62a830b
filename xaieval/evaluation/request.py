"""What a call asks for, checked before the first image is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.config.controls import ControlNames, Controls, resolve_controls
from xaieval.config.counts import check_count
from xaieval.config.groups import Groups
from xaieval.config.protocol import Protocol, resolve_protocol
from xaieval.data.batches import Batch, grouped, read_batches
from xaieval.data.each_class import EACH, each_class, image_of, with_own_groups
from xaieval.errors import ALL_LAYERS, ExplainerError, MetricError, TargetError, advice
from xaieval.explainers import Explainer, Method, check_black_box, joins_layers, resolve_methods
from xaieval.explainers.controls import CONTROLS
from xaieval.inference.forward_passes import called
from xaieval.inference.options import Inference
from xaieval.inference.queries import with_known_output
from xaieval.inference.targets import Target, check_target, given_classes, is_class_of_each_image
from xaieval.inference.tasks import Classification, Task, resolve_task
from xaieval.metrics import Metric
from xaieval.models.blackbox import BlackBox, Function, as_module
from xaieval.probe.requested_layers import Layers, to_addresses
from xaieval.results.matched import control_columns

__all__ = [
    "Request",
    "batches_of",
    "check_request",
    "check_target_of_all",
    "count_images",
    "prepared",
    "with_class_of_each_image",
]


@dataclass(frozen=True)
class Request:
    """What a call asks for.

    Attributes:
        model: The model to explain.
        addresses: Layer addresses and patterns; none if no explainer needs a layer.
        explainers: Those that need layers come first, as in the rows.
        protocol: How maps become numbers, with the caller's target.
        task: How the model's output is read.
        inference: How the model is run.
        seed: Of explainers and metrics that draw random numbers.
        metrics: The metrics of the maps.
        controls: The names of the controls.
    """

    model: nn.Module
    addresses: Sequence[str]
    explainers: Sequence[Explainer]
    protocol: Protocol
    task: Task
    inference: Inference
    seed: int = 0
    metrics: Sequence[Metric] = ()
    controls: ControlNames = field(default_factory=ControlNames)

    @property
    def matched(self) -> Sequence[str]:
        """The names of the matched controls of each map."""
        return self.controls.matched

    @property
    def call(self) -> Callable[[Tensor], Any]:
        """The model as a function of images; the borrowed model gets a copy of them in every pass."""
        return called(self.model, self.inference.forward)


def check_request(
    model: nn.Module | Function,
    layers: Layers,
    methods: Method | Sequence[Method],
    metrics: Sequence[Metric],
    target: Target | None,
    protocol: str | Protocol,
    inference: Inference,
    seed: int,
    controls: Controls = False,
) -> Request:
    """The request of a call, with names resolved; the arguments are those of `xaieval.score`, and metrics resolved already.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
    """
    check_count("seed", seed, 0)
    model = as_module(model)
    names = resolve_controls(controls)
    _check_matched(names.matched, metrics)
    explainers, addresses = _explainers(methods, names.maps), to_addresses(layers, model)
    if isinstance(model, BlackBox):
        check_black_box(explainers, addresses, model.without_layers)
    task = resolve_task(inference.task, inference.output)
    resolved = _protocol(protocol, target, model)
    if resolved.against is not None and not isinstance(task, Classification):
        raise TargetError("against= compares the classes of a classifier, and the task is another one; leave it out")
    inference, task = with_known_output(inference, task, model)
    return Request(
        model=model,
        addresses=_needed(addresses, explainers),
        explainers=explainers,
        protocol=resolved,
        task=task,
        inference=inference,
        seed=seed,
        metrics=metrics,
        controls=names,
    )


def batches_of(request: Request, loader: Iterable[Any], groups: Groups, max_images: int | None = None) -> Iterator[Batch]:
    """The batches of a run with their groups; for the target "each", every image once for each class that it shows.

    Args:
        request: What is asked for.
        loader: As for `xaieval.score`.
        groups: Which images belong together. For "each", an image is a group where neither they nor the batches say otherwise.
        max_images: Stop after this number of images, not of their classes.

    Raises:
        DataError: As `read_batches` and `grouped` raise it.
        TargetError: The target is "each", and the data does not say which classes an image shows.
    """
    return prepared(request, read_batches(loader, request.inference.images_per_pass, max_images), groups)


def prepared(request: Request, batches: Iterator[Batch], groups: Groups) -> Iterator[Batch]:
    """Batches with their groups; for the target "each", every image once for each class that it shows. See `batches_of`."""
    if request.protocol.target != EACH:
        return grouped(batches, groups)
    return each_class(grouped(with_own_groups(batches), groups), getattr(request.task, "background", None))


def count_images(protocol: Protocol, batch: Batch) -> int:
    """The number of images of a batch, with those that could not be read; one of several classes counts once."""
    ids = {image_of(name) for name in batch.ids} if protocol.target == EACH else batch.ids
    return len(ids) + len(batch.failed)


def check_target_of_all(protocol: Protocol) -> None:
    """Refuse one class per image, where the images are those of a loader.

    Raises:
        TargetError: With the ways to choose a class for each image.
    """
    if is_class_of_each_image(protocol.target):
        raise TargetError(
            f"target= has {len(protocol.target)} classes, one per image, which cannot be matched to the images of a loader; "
            "give them as the labels of its batches with target='label', or a function (logits, labels) -> classes; 'explain' "
            "takes one class per image"
        )


def with_class_of_each_image(request: Request, batch: Batch) -> tuple[Request, Batch]:
    """Put one class per image in the place of the labels, so that each part of the batch keeps its own; otherwise unchanged.

    Raises:
        TargetError: There are not as many classes as images.
    """
    target = request.protocol.target
    if not is_class_of_each_image(target):
        return request, batch
    if len(target) != len(batch):
        raise TargetError(
            f"target= has {len(target)} classes for {len(batch)} images; give one class for all images, or one per image"
        )
    request = replace(request, protocol=replace(request.protocol, target=given_classes))
    return request, replace(batch, labels=torch.tensor(target))


def _explainers(methods: Method | Sequence[Method], controls: Sequence[str]) -> list[Explainer]:
    """The explainers, those that need layers first, and the control maps that are not among them already."""
    explainers = resolve_methods(methods)
    wanted = [control for control in CONTROLS if control.name in controls]
    missing = [control for control in wanted if not any(control is explainer for explainer in explainers)]
    if missing:
        explainers = resolve_methods([*explainers, *missing])
    return sorted(explainers, key=lambda explainer: (not explainer.needs_layer, joins_layers(explainer)))


def _check_matched(matched: Sequence[str], metrics: Sequence[Metric]) -> None:
    """Refuse matched controls without a metric that can judge them, and metrics whose names are those of other columns."""
    able = [metric.name for metric in metrics if metric.has_matched_controls]
    names = [metric.name for metric in metrics]
    if matched and not able:
        raise MetricError(
            f"matched controls ({', '.join(matched)}) are judged by metrics of confidences and curves, such as average_drop, "
            f"and none of {names} is one; add one, or leave the controls out"
        )
    taken = [name for name in names if name in control_columns(able, matched)]
    if taken:
        raise MetricError(f"metric {taken[0]!r} has the name of a column of matched controls; give it another name")


def _needed(addresses: list[str], explainers: Sequence[Explainer]) -> list[str]:
    """The layers to probe: none if no explainer needs one."""
    needing = [explainer.name for explainer in explainers if explainer.needs_layer]
    if needing and not addresses:
        option = advice("layers=", "--layers")
        raise ExplainerError(f"method {needing[0]!r} needs {option}, and none were given; {advice(*ALL_LAYERS)}")
    return addresses if needing else []


def _protocol(protocol: str | Protocol, target: Target | None, model: nn.Module) -> Protocol:
    """The protocol with the caller's target; a black fill gets the mean and std that images are normalised with."""
    resolved = resolve_protocol(protocol)
    if target is not None:
        resolved = replace(resolved, target=target)
    check_target(resolved.target)
    config = getattr(model, "pretrained_cfg", None)  # timm's models hold their normalisation
    if resolved.fills_black and resolved.mean is None and isinstance(config, Mapping):
        resolved = replace(resolved, mean=tuple(config["mean"]), std=tuple(config["std"]))
    return resolved
