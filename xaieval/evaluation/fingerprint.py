"""What identifies a run: its model, its choices and its first image. Runs with the same identity may be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from xaieval.config.protocol import plain
from xaieval.data.batches import Batch
from xaieval.evaluation.distributed.rank import Rank
from xaieval.evaluation.early_stopping import Stop
from xaieval.evaluation.race import Race
from xaieval.evaluation.request import Request
from xaieval.explainers import describe_method
from xaieval.inference.borrowing import check_ready, stored_parts
from xaieval.inference.tasks import describe
from xaieval.models.blackbox import BlackBox
from xaieval.models.features import FewShot, LinearHead
from xaieval.models.prompted_masks import PromptedMask
from xaieval.models.zeroshot import ZeroShot
from xaieval.probe.hooks import ProbeLayer
from xaieval.results.manifest import SCHEMA, digest, now, versions
from xaieval.results.matched import excess_entry
from xaieval.results.tensors import tensor_bytes

__all__ = ["fingerprint", "new_manifest", "run_identity"]


def new_manifest(request: Request) -> dict[str, Any]:
    """The manifest of a run that begins."""
    metrics = [metric.to_dict() for metric in request.metrics]
    able = [metric.to_dict() for metric in request.metrics if request.matched and metric.has_matched_controls]
    maps, matched = list(request.controls.maps), list(request.matched)
    return {
        "schema": SCHEMA,
        "complete": False,
        "versions": versions(),
        "dates": {"started": now()},
        "seed": request.seed,
        "model": describe_model(request.model),
        "metrics": [*metrics, *(excess_entry(metric, matched[0]) for metric in able)],
        **({"controls": maps} if maps else {}),
        **({"matched_controls": matched} if matched else {}),
    }


def run_identity(
    request: Request,
    model: Mapping[str, Any],
    layers: Sequence[ProbeLayer],
    first: Batch,
    max_images: int | None,
    stop: Stop | Race | None,
    groups: str | None = None,
    donors: Sequence[Batch] = (),
    own_part: Rank | None = None,
) -> dict[str, Any]:
    """What makes two runs the same run, in the order in which a difference is reported.

    Args:
        request: What is measured.
        model: The manifest's entry on the model.
        layers: The layers, patterns expanded.
        first: The first batch that has a readable image.
        max_images: The number of images after which the run stops.
        stop: The rule by which it stops earlier.
        groups: What gives the images their groups; None without groups.
        donors: The images whose maps give the places of matched controls, if it has such controls.
        own_part: The process, if it has images that no other process has.
    """
    described = {explainer.name: describe_method(explainer) for explainer in request.explainers}
    method_settings = {name: values for name, values in described.items() if values}
    metric_settings = {metric.name: dict(metric.settings) for metric in request.metrics if metric.settings}
    how = request.inference
    return {
        **model.get("settings", {}),
        "model": model["fingerprint"] or model["function"],
        "layers": [layer.address for layer in layers],
        "methods": list(described),
        **({"method settings": method_settings} if method_settings else {}),
        "metrics": [metric.name for metric in request.metrics],
        **({"metric settings": metric_settings} if metric_settings else {}),
        **{f"protocol.{name}": value for name, value in request.protocol.to_dict().items()},
        "seed": request.seed,
        "task": describe(request.task),
        **({} if how.forward is None else {"forward": plain(how.forward)}),
        **({} if how.layout is None else {"layout": plain(how.layout)}),
        "max_images": max_images,
        "precision": how.precision,
        "stop": None if stop is None else stop.to_dict(),
        **({"deterministic": True} if how.deterministic else {}),
        **({} if groups is None else {"groups": groups}),
        **({"matched controls": list(request.matched)} if request.matched else {}),
        **(_images_of(first, donors) if own_part is None else {"already split": own_part.world}),
    }


def _images_of(first: Batch, donors: Sequence[Batch]) -> dict[str, str]:
    described = {"donors": _digest_images(donors)} if donors else {}
    return described | {"first image": digest([first.ids[0].encode(), tensor_bytes(first.images[0])])}


def _digest_images(batches: Sequence[Batch]) -> str:
    """A hash of the ids and the values of images."""
    return digest(part for batch in batches for part in (repr(batch.ids).encode(), tensor_bytes(batch.images)))


def fingerprint(model: nn.Module) -> str:
    """A hash of the names and values of all parameters and buffers; of an ONNX file, of its content.

    Raises:
        ModelError: Some of them have no shape yet.
    """
    if isinstance(model, BlackBox) and model.fingerprint is not None:
        return model.fingerprint
    check_ready(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    return digest(_content(state.items()))


def describe_model(model: nn.Module) -> dict[str, Any]:
    """The manifest's entry on the model; a function has only its name."""
    entry: dict[str, Any] = {"class": f"{type(model).__module__}.{type(model).__qualname__}"}
    if isinstance(model, BlackBox):
        return {**entry, "function": model.function_name, "parameters": None, "fingerprint": model.fingerprint}
    known = fingerprint(model)  # first, since it checks that the parameters can be read
    if isinstance(model, ZeroShot | FewShot | LinearHead | PromptedMask):
        entry["settings"] = model.settings
    return {**entry, "parameters": sum(parameter.numel() for parameter in model.parameters()), "fingerprint": known}


def _content(named: Iterable[tuple[str, Tensor]]) -> Iterable[bytes]:
    for name, tensor in named:
        shape = () if tensor.is_nested else tuple(tensor.shape)
        yield f"{name} {tensor.dtype} {shape}".encode()
        yield from map(tensor_bytes, stored_parts(tensor))
