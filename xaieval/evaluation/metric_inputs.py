"""The inputs of metrics for the maps of one method at one layer on one batch, each computed when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.errors import MetricError
from xaieval.evaluation.job import Job
from xaieval.evaluation.maps import BatchPass, finished_maps, raw_maps, run_batch
from xaieval.masking import baseline, mask, occlude, upsample
from xaieval.metrics.box_accuracy import box_around

__all__ = ["MetricInputs"]


@dataclass(frozen=True)
class MetricInputs:
    """The inputs by the names of `xaieval.metrics.NEEDS`.

    Attributes:
        job: Its only pair is the method and the layer.
        batch: The original images, with the ground truth if the data has it.
        batch_pass: Of the original images, without activations and gradients.
        raw: The method's maps `[N, h, w]`.
        known: Inputs that are known already, by name: confidences, and a map in the place of the method's own.
    """

    job: Job
    batch: Batch
    batch_pass: BatchPass
    raw: Tensor
    known: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Any:
        return self.known[name] if name in self.known else getattr(self, name)

    @property
    def protocol(self) -> Protocol:
        """The protocol of the run."""
        return self.job.protocol

    @property
    def images(self) -> Tensor:
        """The original images, as the model sees them."""
        return self.batch_pass.context.images

    @cached_property
    def maps(self) -> Tensor:
        """The maps in [0, 1]."""
        return finished_maps(self.raw, self.images, self.job.protocol).maps

    @cached_property
    def attributions(self) -> Tensor:
        """The maps at the images' size, not normalised."""
        return upsample(self.raw, self.images.shape[2:])

    @cached_property
    def masked_maps(self) -> Tensor:
        """The maps of the masked images."""
        masks = mask(self.maps, self.job.protocol).to(self.images.dtype)
        return self.explain(occlude(self.images, masks, baseline(self.images, self.job.protocol)))

    @cached_property
    def masks(self) -> Tensor:
        """The ground truth: where the objects are.

        Raises:
            MetricError: The data does not say.
        """
        objects = self.batch.objects
        if objects is None:
            raise MetricError(
                "a metric compares maps with where the object is, but the data has neither masks nor boxes: give batches as "
                "mappings with 'masks' (bool [N, H, W]) or 'boxes'; 'scenes' has masks; for a label map, use masks == label"
            )
        return objects.to(self.images.device)

    @cached_property
    def boxes(self) -> list[Tensor]:
        """The boxes around the objects of each image; of a mask without boxes, the box around all of it.

        Raises:
            MetricError: The data says nothing of the objects.
        """
        if self.batch.boxes is not None:
            return self.batch.boxes
        return [box_around(mask) for mask in self.masks]

    @cached_property
    def ask(self) -> Any:
        """A function from any images to confidences."""
        return partial(self.batch_pass.context.ask, wanted="confidence")

    @property
    def draw(self) -> Any:
        """A function that draws random numbers."""
        return self.batch_pass.context.draw

    def explain(self, images: Tensor) -> Tensor:
        """The maps of altered images, in [0, 1]."""
        return finished_maps(self._maps_of(images), images, self.job.protocol).maps

    def attribute(self, images: Tensor) -> Tensor:
        """The maps of altered images at the images' size, not normalised."""
        return upsample(self._maps_of(images), images.shape[2:])

    def _maps_of(self, images: Tensor) -> Tensor:
        altered = replace(self.batch, images=images)
        with torch.enable_grad():  # a metric's function may have switched gradients off
            batch_pass = run_batch(self.job, altered, self.batch_pass.context.followed)
        [raw] = raw_maps(self.job, batch_pass)
        return raw
