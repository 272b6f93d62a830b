"""Explanation maps of a batch, without scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import pandas as pd
import torch
from torch import Tensor, nn

from xaieval.config.keywords import with_keywords
from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch, read_batches
from xaieval.data.each_class import EACH
from xaieval.errors import TargetError
from xaieval.evaluation.batch_rows import check_labelled, class_column
from xaieval.evaluation.first_pass import first_pass
from xaieval.evaluation.job import Job, borrowed, in_parts, started
from xaieval.evaluation.maps import finished_maps, raw_maps, run_batch
from xaieval.evaluation.request import check_request, with_class_of_each_image
from xaieval.explainers import Method
from xaieval.inference.options import Inference, InferenceOptions
from xaieval.inference.targets import Target
from xaieval.models.blackbox import Function
from xaieval.probe.requested_layers import Layers

__all__ = ["explain"]

FULL_PASS = 16  # images in a pass of `explain`, where a method makes many images of few


def explain(
    model: nn.Module | Function,
    images: Tensor,
    layers: Layers = (),
    method: Method | Sequence[Method] = "gradcam",
    target: Target | None = None,
    *,
    labels: Any = None,
    ids: Sequence[str] | None = None,
    protocol: str | Protocol = "default",
    seed: int = 0,
    inference: Inference | None = None,
    **options: Unpack[InferenceOptions],
) -> dict[Any, Tensor]:
    """Explanation maps of a batch, from several layers and methods in one forward and one backward pass.

    The model is given back unchanged.

    Args:
        model: An image classifier, or a function; see `score`.
        images: `[N, C, H, W]` or volumes `[N, C, D, H, W]`, normalised as the model expects.
        layers: Addresses, patterns or modules of the model, or "auto"; may be left out for a method that needs no layer.
        method: A name, `Explainer` or function `(model, images, targets) -> maps`; or a list of them, which gives the maps of
            all.
        target: "predicted", "label" (with `labels`), a class index, one class per image `[N]`, or a function. Default: the
            protocol's target.
        labels: True classes `[N]`, or zeros and ones `[N, K]`. A label that is negative, NaN or 255 is none.
        ids: Image ids, for methods that read files or draw random numbers by them. Default: "0", "1", ...
        protocol: How maps are normalised, and what the gradient is taken of.
        seed: Of random explainers.
        inference: How the model is run; see `Inference`. The model's modules run unchanged here, so that `fast` and `compile`
            have no effect.
        **options: Fields of `Inference` as keywords.

    Returns:
        By address (or "input" for a method without layer) maps `[N, H, W]`, for volumes `[N, D, H, W]`, in [0, 1], of the
        images' size, on the device where they were made; for a list of methods by address and method, as in the index of
        `Scores.summary`. A map that is NaN or constant is returned as zeros, and so is that of an image without a target, such
        as a label.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
        RunError: A single image does not fit in memory.

    Example:
        >>> import torch, torchvision
        >>> model, images = torchvision.models.resnet18(), torch.rand(2, 3, 64, 64)
        >>> explain(model, images, ["layer4"])["layer4"].shape
        torch.Size([2, 64, 64])
        >>> list(explain(model, images, ["layer3", "layer4"], ["gradcam", "edges"]))
        [('layer3', 'gradcam'), ('layer4', 'gradcam'), ('input', 'edges')]
    """
    how = with_keywords(explain, inference or Inference(), options)
    request = check_request(model, layers, method, (), target, protocol, how, seed)
    if request.protocol.target == EACH:
        raise TargetError("explain returns one map per image, so target='each' is not possible; call it once per class")
    batch = next(read_batches([{"image": images, "label": labels, **({} if ids is None else {"id": ids})}]))
    request, batch = with_class_of_each_image(request, batch)
    with borrowed(request) as device:
        limit = how.limit(max(len(batch), FULL_PASS))
        looked = first_pass(request, batch, device, limit)
        with started(looked.request, batch, device, looked.layers, limit) as job:
            passes, parts = zip(*in_parts(job, batch, lambda part: _explain(job, part)), strict=True)
    check_labelled(request.protocol, pd.Series(class_column(batch.labels, len(batch))), torch.cat(passes).tolist())
    several = isinstance(method, Sequence) and not isinstance(method, str)
    names = job.names if several else [layer for layer, _ in job.names]
    return {name: torch.cat(maps) for name, maps in zip(names, zip(*parts, strict=True), strict=True)}


def _explain(job: Job, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Whether each image has a target, and the finished maps of each pair."""
    passed = run_batch(job, batch)
    finished = [finished_maps(raw, batch.images, job.protocol).maps for raw in raw_maps(job, passed)]
    explained = passed.has_target.view(-1, *[1] * (batch.images.ndim - 2))
    return passed.has_target, [maps * explained.to(maps.device) for maps in finished]
