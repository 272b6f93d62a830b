"""The first pass of a run: it shows where the layers are, and how the model's output has to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.data.batches import Batch
from xaieval.errors import ModelError, ProtocolError, XaievalError
from xaieval.evaluation.clip_axes import check_clip_axes
from xaieval.evaluation.job import find_layers
from xaieval.evaluation.request import Request
from xaieval.inference.batch_limit import BatchLimit, is_out_of_memory, out_of_memory_is_run_error
from xaieval.inference.model_failures import REFUSALS, failed_on, failures_are_model_errors
from xaieval.inference.one_output import has_one_output
from xaieval.inference.targets import find
from xaieval.inference.tasks import Classification, Segmentation
from xaieval.probe.hooks import ProbeLayer, to_device
from xaieval.results.findings import Finding

__all__ = ["FirstPass", "first_pass"]

WAY_OUT = (
    "protocol=Protocol(confidence='sigmoid') says the same without this warning, and protocol=Protocol(confidence='identity') "
    "takes the output as a number, as for a regression"
)
FOLDED = (
    "the model has to give one output per image for any number of images; if frames or views stand in axis 0, give clips "
    "[N, C, T, H, W] and forward=lambda model, clips: model(clips.transpose(1, 2).flatten(0, 1))"
)


@dataclass(frozen=True)
class FirstPass:
    """What is known before anything is measured.

    Attributes:
        request: The request, with the task and the protocol that fit the model's output.
        layers: The layers to probe.
        findings: What there is to say about the model and the data.
        trial: How the precision of the run was chosen; empty if the request names it.
    """

    request: Request
    layers: Sequence[ProbeLayer]
    findings: Sequence[Finding] = ()
    trial: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Seen:
    """The model's output on a number of images."""

    images: int
    output: Any


def first_pass(request: Request, batch: Batch, device: torch.device, limit: BatchLimit) -> FirstPass:
    """Run the first images: locate the layers, and decide how the model's output is read.

    A model of one output per image has the softmax 1 whatever the image shows. Its output z is read as the logits (-z, z) of
    the classes 0 and 1, whose sigmoids are their probabilities. With the confidence "identity", or a function, it is a number.

    Args:
        request: What is asked for.
        batch: The first images; two of them run, or all if the model takes no fewer.
        device: The device of the borrowed model.
        limit: On the images in a pass.

    Raises:
        AddressError: An address names no tensor, several, or one without a map.
        DataError: Frames come before channels.
        ModelError: The model fails on the images, needs a certain number of them, or gives another number of outputs.
        ProtocolError: The task says that the one output is a number, and the confidence is its softmax.
        RunError: A single image does not fit in memory.
    """
    task, kind = request.task, request.protocol.confidence
    check_clip_axes(request.model, request.call, to_device(batch.images[:1], device))
    if not isinstance(task, Classification | Segmentation):
        return FirstPass(request, _found_layers(request, batch, device, limit))
    if task.single == "value" and kind == "softmax":
        raise ProtocolError(
            "the softmax of one number is 1, so it is no confidence; give protocol=Protocol(confidence='identity') or 'sigmoid'"
        )
    watched, seen = _watched(request)
    layers = _found_layers(watched, batch, device, limit)
    if not seen:  # no method needs a layer
        _run(watched, batch, device)
    asked = task.single is not None
    logits, axes = find(seen[-1].output, task.output), batch.images.ndim if isinstance(task, Segmentation) else 2
    if isinstance(logits, Tensor) and logits.ndim >= axes and len(logits) != seen[-1].images:
        raise ModelError(f"the model gives {len(logits)} outputs for {seen[-1].images} images; {FOLDED}")
    if not asked and not has_one_output(logits, seen[-1].images, axes):
        return FirstPass(request, layers)
    task = replace(task, single=task.single or ("binary" if kind in ("softmax", "sigmoid") else "value"))
    findings = [] if asked or kind != "softmax" else [_one_output(task, list(logits.shape), seen[-1].images)]
    protocol = replace(request.protocol, confidence="sigmoid" if kind == "softmax" else kind)
    return FirstPass(replace(request, task=task, protocol=protocol), layers, findings)


def _watched(request: Request) -> tuple[Request, list[_Seen]]:
    """The request with a `forward` that notes the model's last output."""
    seen: list[_Seen] = []
    call = request.call

    def forward(model: nn.Module, images: Tensor) -> Any:
        output = call(images)
        seen[:] = [_Seen(len(images), output)]
        return output

    return replace(request, inference=replace(request.inference, forward=forward)), seen


def _found_layers(request: Request, batch: Batch, device: torch.device, limit: BatchLimit) -> Sequence[ProbeLayer]:
    """The layers, or an error that tells models of a certain number of images from those that fail on any number."""
    try:
        return find_layers(request, batch, device, limit)
    except XaievalError:
        raise
    except Exception as error:  # a model can raise anything
        images = to_device(batch.images, device)
        if is_out_of_memory(error) or _runs(request, images[:2]):
            raise
        if len(batch) > 2 and _runs(request, images):
            reason = f"{type(error).__name__}: {error}"
            raise ModelError(f"the model runs on {len(batch)} images and fails on fewer ({reason}); {FOLDED}") from error
        if isinstance(error, REFUSALS):
            raise failed_on(images, error) from error
        raise


def _runs(request: Request, images: Tensor) -> bool:
    with suppress(Exception), torch.no_grad():
        request.call(images)
        return True
    return False


def _run(request: Request, batch: Batch, device: torch.device) -> None:
    """Run two images, or all of the first batch, because a model can be made for one size of batch."""
    images = to_device(batch.images, device)
    if len(images) > 2 and _runs(request, images[:2]):
        return
    # Not in inference mode: tensors that a model keeps from its first pass could not take part in gradients later.
    with failures_are_model_errors(images), out_of_memory_is_run_error(), torch.no_grad():
        request.inference.limit(len(images)).parts(len(images), lambda part: request.call(images[part]))


def _one_output(task: Classification | Segmentation, shape: list[int], images: int) -> Finding:
    where = "pixel" if isinstance(task, Segmentation) else "image"
    text = (
        f"the model has one output per {where} ({shape} for {images} images), and the softmax of one number is 1; the run "
        f"takes the sigmoid as the confidence of class 1, and 1 minus the sigmoid as that of class 0; {WAY_OUT}"
    )
    return Finding("one_output", text, {"shape": shape, "images": images, "confidence": "sigmoid"})
