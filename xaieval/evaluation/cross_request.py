"""What a call of `cross_score` asks for: one request for each model, checked before the first image is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from xaieval.analysis.comparability import first_difference
from xaieval.config.controls import MAPS, ControlNames, Controls, resolve_controls
from xaieval.config.protocol import Protocol
from xaieval.errors import AddressError, ExplainerError, MetricError, ModelError, ProtocolError, UsageError, choose_from
from xaieval.evaluation.job import Job
from xaieval.evaluation.request import Request, check_request, check_target_of_all
from xaieval.explainers import Explainer, Method, resolve_methods
from xaieval.explainers.controls import Control
from xaieval.inference.options import Inference
from xaieval.inference.targets import Target
from xaieval.inference.tasks import Classification, describe
from xaieval.metrics import Metric, resolve_metrics
from xaieval.models.blackbox import Function
from xaieval.probe.requested_layers import Layers
from xaieval.results.rows import NO_LAYER, Pair

__all__ = ["check_alike", "check_classes", "check_requests", "paired_names"]

Models = Mapping[str, nn.Module | Function]

AGAIN = ("masked_maps", "explain", "attribute")  # inputs of metrics that run a method on altered images


def check_requests(
    models: Models,
    layers: Layers | Mapping[str, Layers],
    methods: Method | Sequence[Method],
    metrics: str | Metric | Sequence[str | Metric],
    target: Target | None,
    protocol: str | Protocol,
    inference: Inference,
    seed: int,
    controls: Controls,
) -> dict[str, Request]:
    """The request for each model, by name; control maps, which ignore the model, are made with the first one.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
    """
    explainers, maps = _explainers(methods, controls)
    _check_names(models, maps)
    chosen = resolve_metrics(metrics)
    _check_metrics(chosen)
    by_model = _layers_of(layers, list(models))
    requests: dict[str, Request] = {}
    for name, model in models.items():
        known = () if requests else maps
        requests[name] = check_request(
            model, by_model[name], explainers, chosen, target, protocol, inference, seed, controls=known
        )
    check_target_of_all(next(iter(requests.values())).protocol)
    return requests


def _explainers(methods: Method | Sequence[Method], controls: Controls) -> tuple[list[Explainer], Sequence[str]]:
    """The methods that explain a model, and the names of the control maps, some of which may be given as methods."""
    names = resolve_controls(controls)
    if names.matched:
        raise ExplainerError(
            f"cross_score has no matched controls ({', '.join(names.matched)}): a map is compared with those of the other "
            f"models; name control maps: {', '.join(MAPS)}"
        )
    explainers = resolve_methods(methods)
    own = [explainer for explainer in explainers if not isinstance(explainer, Control)]
    if not own:
        raise ExplainerError(
            "cross_score compares the maps of models, and these methods do not use a model: "
            f"{', '.join(explainer.name for explainer in explainers)}; give one that does, such as gradcam"
        )
    given = {explainer.name for explainer in explainers} - {explainer.name for explainer in own}
    return own, ControlNames(tuple(name for name in MAPS if name in {*names.maps, *given})).maps


def _check_names(models: Any, controls: Sequence[str]) -> None:
    """Refuse fewer than two models, and names that are none or mean something else."""
    if not isinstance(models, Mapping) or len(models) < 2:
        came = f"{len(models)} model" if isinstance(models, Mapping) else type(models).__name__
        raise UsageError(f'cross_score takes two or more models by name, such as {{"plain": plain, "fal": fal}}; got {came}')
    for name in models:
        if not isinstance(name, str) or not name.isprintable() or not name.strip():
            raise UsageError(f"the name of a model is text that can be printed, got {name!r}")
        if name in controls:
            raise UsageError(f"{name!r} is the name of a control map and of a model; give the model another name")


def _check_metrics(metrics: Sequence[Metric]) -> None:
    """Refuse metrics that need the maps of altered images."""
    for metric in metrics:
        again = [need for need in metric.needs if need in AGAIN]
        if again:
            raise MetricError(
                f"metric {metric.name!r} runs the method on altered images ({again[0]}), and no method of one model explains "
                "another; take metrics of confidences and curves, such as average_drop or insertion"
            )


def _layers_of(layers: Layers | Mapping[str, Layers], names: Sequence[str]) -> dict[str, Layers]:
    """The layers of each model."""
    if not isinstance(layers, Mapping):
        return dict.fromkeys(names, layers)
    for name in layers:
        if name not in names:
            raise AddressError(f"layers= has layers of {name!r}, which is none of the models; {choose_from(name, names)}")
    for name in names:
        if name not in layers:
            raise AddressError(f"layers= has no layers of the model {name!r}; give those of every model, or one list for all")
    return dict(layers)


def check_alike(requests: Mapping[str, Request]) -> None:
    """Refuse models whose outputs are not read and masked alike, by requests that fit each model's output.

    Raises:
        UsageError: A task is not classification.
        ProtocolError: The models' outputs or preprocessing ask for different protocols.
    """
    (first, one), *others = requests.items()
    if not isinstance(one.task, Classification):
        raise UsageError(
            f"cross_score compares classifiers, got {describe(one.task)}: there is no box or region of one model that is that "
            "of another"
        )
    for name, other in others:
        settings = [{**request.protocol.to_dict(), "single": getattr(request.task, "single", None)} for request in (one, other)]
        if settings[0] != settings[1]:
            raise ProtocolError(
                f"the models are measured differently: {first_difference(settings[0], settings[1], (first, name))}; give a "
                "protocol= that says it for all, and models of the same kind of output"
            )


def check_classes(classes: Mapping[str, int]) -> None:
    """Refuse models with different numbers of classes.

    Raises:
        ModelError: With the numbers.
    """
    if len(set(classes.values())) > 1:
        counts = ", ".join(f"{name} has {count}" for name, count in classes.items())
        raise ModelError(f"cross_score needs models of the same classes: {counts} classes")


def paired_names(jobs: Mapping[str, Job]) -> list[Pair]:
    """Layer and method of each map that every model makes; layers of different names are paired by their order.

    Raises:
        AddressError: The models have different numbers of layers.

    Example:
        A model with the layers `layer3, layer4` and one with `blocks.4, blocks.6` have the layers `layer3 / blocks.4` and
        `layer4 / blocks.6`.
    """
    layers = {name: [layer.address for layer in job.layers] for name, job in jobs.items()}
    if len({len(addresses) for addresses in layers.values()}) > 1:
        listed = "; ".join(f"{', '.join(addresses) or 'none'} of {name}" for name, addresses in layers.items())
        raise AddressError(f"layers are paired by their order, so each model needs as many as the others; got {listed}")
    own = [[pair for pair in job.pairs if not isinstance(pair[0], Control)] for job in jobs.values()]
    return [
        (" / ".join(dict.fromkeys(layer or NO_LAYER for _, layer in same)), same[0][0].name) for same in zip(*own, strict=True)
    ]
