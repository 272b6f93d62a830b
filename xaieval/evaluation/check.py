"""Look for reasons not to trust the numbers of a run, without measuring them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any, Unpack

import torch
from torch import nn

from xaieval.config.counts import check_count
from xaieval.config.groups import Groups
from xaieval.config.keywords import with_keywords
from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch, split_batch
from xaieval.evaluation.batch_rows import Measured, joined
from xaieval.evaluation.batch_sources import SharedLoader, source_of
from xaieval.evaluation.fingerprint import new_manifest, run_identity
from xaieval.evaluation.first_pass import first_pass
from xaieval.evaluation.job import Job, borrowed, in_parts, started
from xaieval.evaluation.maps import finished_maps, raw_maps, run_batch
from xaieval.evaluation.measure import MaskedConfidences
from xaieval.evaluation.model_check import check_model
from xaieval.evaluation.request import check_request, prepared
from xaieval.evaluation.run_state import InMemory, RunState
from xaieval.evaluation.scores import Scores
from xaieval.evaluation.whole_run import whole_run
from xaieval.explainers import Method
from xaieval.inference.options import Inference, InferenceOptions
from xaieval.inference.targets import Target
from xaieval.models.blackbox import Function
from xaieval.probe.requested_layers import Layers

__all__ = ["check"]

WITHOUT_LAYERS = "random"  # a map that needs neither layer nor pass


def check(
    model: nn.Module | Function,
    loader: Iterable[Any],
    layers: Layers = (),
    method: Method = "gradcam",
    target: Target | None = None,
    protocol: str | Protocol = "default",
    *,
    max_images: int = 64,
    seed: int = 0,
    inference: Inference | None = None,
    **options: Unpack[InferenceOptions],
) -> Scores:
    """Look for reasons not to trust the numbers of a run, on its first images and without scoring.

    `score` makes the same check of its first batch, and adds what all rows show. docs/checks.md lists the reasons.

    Args:
        model: As for `xaieval.score`.
        loader: As for `xaieval.score`.
        layers: Layers whose maps are looked at too. Default: none.
        method: The method of those maps.
        target: As for `xaieval.score`.
        protocol: As for `xaieval.score`.
        max_images: The number of images to look at.
        seed: Of methods that draw random numbers.
        inference: How the model is run; see `Inference`.
        **options: Fields of `Inference` as keywords.

    Returns:
        A run without metrics: `findings()` and `warnings()` are the reasons, `predictions` the accuracy and mean confidence.

    Raises:
        UsageError: One of its kinds, for arguments that cannot work.
        RunError: No image could be read, or a single image does not fit in memory.

    Example:
        >>> import torchvision
        >>> checked = check(torchvision.models.resnet18(num_classes=10), [torch.rand(4, 3, 64, 64)])
        >>> checked.findings()[0].name
        'random_weights'
    """
    how = with_keywords(check, inference or Inference(), options)
    check_count("max_images", max_images, optional=True)
    methods = method if layers != () else WITHOUT_LAYERS
    request = check_request(model, layers, methods, (), target, protocol, how, seed)
    manifest = new_manifest(request)
    with ExitStack() as stack:
        device = stack.enter_context(borrowed(request))
        loaded = SharedLoader(loader)
        source = source_of(loaded, partial(prepared, request, groups=Groups()), seed, max_images, planned=False, shuffled=False)
        first = next(split_batch(source.first(), how.images_per_pass, None))
        limit = how.limit(getattr(loader, "batch_size", None) or len(first))
        looked = first_pass(request, first, device, limit)
        manifest |= check_model(looked, first, device, limit, loader).to_dict()
        manifest["run"] = run_identity(looked.request, manifest["model"], looked.layers, first, max_images, None)
        job = stack.enter_context(started(looked.request, first, device, looked.layers, limit))
        state = RunState(job, source, InMemory(), lambda job, batch: joined(in_parts(job, batch, partial(_look_at, job))))
        return whole_run(state, manifest)


def _look_at(job: Job, batch: Batch) -> Measured:
    """The maps of a batch and its confidences, which stand for those of the masked images that nobody asked for."""
    passed = run_batch(job, batch)
    finished = [finished_maps(raw, batch.images, job.protocol) for raw in raw_maps(job, passed)]
    confidences = MaskedConfidences(
        confidence=passed.confidence,
        masked=passed.confidence.repeat(len(finished), 1),
        inverse=None,
        areas=torch.stack([one.maps.flatten(1).mean(dim=1) for one in finished]),
        constant=torch.stack([one.constant for one in finished]),
        invalid=torch.stack([one.invalid for one in finished]),
    )
    return Measured.of(batch, passed, confidences, {}, {})
