"""The inputs of metrics for the maps of one method at one layer on one batch, each computed when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.data.truth_by_class import masks_of
from xaieval.errors import MetricError
from xaieval.evaluation.job import Job
from xaieval.evaluation.maps import BatchPass, finished_maps, raw_maps, run_batch
from xaieval.inference.tasks import Detection
from xaieval.masking import baseline, mask, occlude, upsample

__all__ = ["CountedPixels", "MetricInputs"]

OF_PIXELS = ("maps", "attributions")  # what is compared with masks


@dataclass(frozen=True)
class MetricInputs:
    """The inputs by the names of `xaieval.metrics.NEEDS`.

    Attributes:
        job: Its only pair is the method and the layer.
        batch: The original images, with the ground truth if the data has it.
        batch_pass: Of the original images, without activations and gradients.
        raw: The method's maps `[N, h, w]`.
        known: Inputs that are known already, by name: confidences, and a map in the place of the method's own.
        shared: What is the same for all maps of the batch, once it is known; given to the inputs of each of them.
    """

    job: Job
    batch: Batch
    batch_pass: BatchPass
    raw: Tensor
    known: Mapping[str, Tensor]
    shared: dict[str, Any] = field(default_factory=dict)

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

    @property
    def masks(self) -> Tensor:
        """The ground truth: where the objects of the followed class are, or those of any class where the data has no classes.

        Raises:
            MetricError: The data does not say.
        """
        return self._truth()[0]

    @property
    def ignored(self) -> Tensor | None:
        """The pixels that the truth counts neither as object nor as background; None if there are none."""
        return self._truth()[1]

    def _truth(self) -> tuple[Tensor, Tensor | None]:
        """The masks, and the ignored pixels."""
        if "truth" not in self.shared:
            self.shared["truth"] = self._find_truth()
        found: tuple[Tensor, Tensor | None] = self.shared["truth"]
        return found

    def _find_truth(self) -> tuple[Tensor, Tensor | None]:
        batch, device = self.batch, self.images.device
        if batch.truth is not None:
            followed = self.batch_pass.context.followed
            boxes = followed.details[0] if isinstance(self.job.task, Detection) and followed is not None else None
            classes = None if getattr(self.job.task, "single", None) == "value" else self.batch_pass.targets
            masks, ignored = masks_of(batch.truth, classes, self.images.shape[2:], boxes)
            return masks.to(device), None if ignored is None else ignored.to(device)
        objects = batch.objects
        if objects is None:
            raise MetricError(
                "a metric compares maps with where the object is, but the data has neither masks nor boxes: give batches as "
                "mappings with 'masks' (bool [N, H, W]), 'boxes', or 'truth' (objects with their classes); 'scenes' has masks"
            )
        return objects.to(device), None

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


@dataclass(frozen=True)
class CountedPixels:
    """The inputs of a metric that compares maps with masks: maps are 0 on pixels that the truth ignores.

    There, a map can neither hit an object nor miss one: these pixels have no energy, reach no threshold and hold no maximum.
    """

    inputs: MetricInputs

    def __getitem__(self, name: str) -> Any:
        value = self.inputs[name]
        ignored = self.inputs.ignored if name in OF_PIXELS else None
        return value if ignored is None else value.masked_fill(ignored, 0)
