"""What metrics may need to know of the maps of one method at one layer on one batch, found out when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.errors import MetricError
from xaieval.evaluation.maps import Job, Look, finished_maps, look, raw_maps
from xaieval.inference.forward_passes import Runner
from xaieval.masking import baseline, mask, occlude, upsample

__all__ = ["MetricInputs"]


@dataclass(frozen=True)
class MetricInputs:
    """By the names of `xaieval.metrics.NEEDS`, what there is to know.

    Attributes:
        runner: how passes are made.
        batch: the original images, and where the objects are.
        job: whose only pair is the method and the layer.
        seen: of the original images, without activations and gradients.
        raw: the method's maps `[N, h, w]`.
        confidences: those that were measured already, by name.
    """

    runner: Runner
    batch: Batch
    job: Job
    seen: Look
    raw: Tensor
    confidences: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Any:
        return self.confidences[name] if name in self.confidences else getattr(self, name)

    @property
    def protocol(self) -> Any:
        """The run's."""
        return self.job.protocol

    @property
    def images(self) -> Tensor:
        """The original ones, as the model sees them."""
        return self.seen.context.images

    @cached_property
    def maps(self) -> Tensor:
        """In [0, 1]."""
        return finished_maps(self.raw, self.images, self.job.protocol).maps

    @cached_property
    def attributions(self) -> Tensor:
        """At the image's size, not normalised."""
        return upsample(self.raw, self.images.shape[2:])

    @cached_property
    def masked_maps(self) -> Tensor:
        """The maps of the masked images."""
        masks = mask(self.maps, self.job.protocol).to(self.images.dtype)
        return self.explain(occlude(self.images, masks, baseline(self.images, self.job.protocol)))

    @cached_property
    def masks(self) -> Tensor:
        """Where the objects are.

        Raises:
            MetricError: the data does not say.
        """
        objects = self.batch.objects
        if objects is None:
            raise MetricError(
                "a metric compares maps with where the object is, but the data has neither masks nor boxes: give batches as "
                "mappings with 'masks' (bool [N, H, W]) or 'boxes'; 'scenes' has masks"
            )
        return objects.to(self.images.device)

    @cached_property
    def ask(self) -> Any:
        """Confidences on any images."""
        return partial(self.seen.context.ask, wanted="confidence")

    @property
    def draw(self) -> Any:
        """Random numbers."""
        return self.seen.context.draw

    def explain(self, images: Tensor) -> Tensor:
        """The maps of altered images, in [0, 1]."""
        return finished_maps(self._again(images), images, self.job.protocol).maps

    def attribute(self, images: Tensor) -> Tensor:
        """The maps of altered images, not normalised."""
        return upsample(self._again(images), images.shape[2:])

    def _again(self, images: Tensor) -> Tensor:
        altered = replace(self.batch, images=images)
        with torch.enable_grad():  # whatever a metric's function may have switched off
            seen = look(self.runner, altered, self.job, self.images.device, self.seen.context.followed)
        [raw] = raw_maps(self.runner, seen, self.job)
        return raw
