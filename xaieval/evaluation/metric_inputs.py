"""The inputs of metrics for the maps of one method at one layer on one batch, each computed when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Batch
from xaieval.data.truth_by_class import boxes_of, masks_of
from xaieval.errors import MetricError
from xaieval.evaluation.inspection import Inspected, inspected, logits_of_classifier
from xaieval.evaluation.job import Job, make_pairs
from xaieval.evaluation.lending import LentImage, judge_one_by_one
from xaieval.evaluation.maps import BatchPass, finished_maps
from xaieval.explainers import Context, Method, joins_layers, resolve_methods
from xaieval.inference.tasks import Detection, Followed
from xaieval.masking import filling, mask, occlude, upsample
from xaieval.metrics.box_accuracy import box_around
from xaieval.metrics.segments import Segments
from xaieval.results.rows import NO_LAYER, Pair

__all__ = ["CountedPixels", "MetricInputs"]

OF_PIXELS = ("maps", "attributions")  # what is compared with masks


@dataclass(frozen=True)
class Shared:
    """What is the same for all maps of a batch.

    Attributes:
        segment: From a segmentation to the segments of the images, `[N, H, W]`.
        others: The raw maps of all methods of the run, by layer and method.
        judge: Of the original images, with the model that is asked about altered images; None for the model that is explained.
        known: What was found for one map and holds for all, by name.
    """

    segment: Callable[[Segments], Tensor] | None = None
    others: Mapping[Pair, Tensor] = field(default_factory=dict)
    judge: Context | None = None
    known: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricInputs:
    """The inputs by the names of `xaieval.metrics.NEEDS`.

    Attributes:
        job: Its only pair is the method and the layer.
        batch: The original images, with the ground truth if the data has it.
        batch_pass: Of the original images, without activations and gradients.
        raw: The method's maps `[N, h, w]`.
        known: Inputs that are known already, by name: confidences, and a map in the place of the method's own.
        shared: What is the same for all maps of the batch; given to the inputs of each of them.
    """

    job: Job
    batch: Batch
    batch_pass: BatchPass
    raw: Tensor
    known: Mapping[str, Tensor]
    shared: Shared = field(default_factory=Shared)

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
        return self.explain(occlude(self.images, masks, filling(self.images, self.job.protocol)(masks)))

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
        if "truth" not in self.shared.known:
            self.shared.known["truth"] = self._find_truth()
        found: tuple[Tensor, Tensor | None] = self.shared.known["truth"]
        return found

    def _find_truth(self) -> tuple[Tensor, Tensor | None]:
        batch, device = self.batch, self.images.device
        if batch.truth is not None:
            masks, ignored = masks_of(batch.truth, *self._followed)
            return masks.to(device), None if ignored is None else ignored.to(device)
        objects = batch.objects
        if objects is None:
            raise MetricError(
                "a metric compares maps with where the object is, but the data has neither masks nor boxes: give batches as "
                "mappings with 'masks' (bool [N, H, W]; of numbers, masks != 0), 'boxes', or 'truth' (objects with their "
                "classes, or label maps); 'scenes' has masks"
            )
        return objects.to(device), None

    @property
    def boxes(self) -> list[Tensor]:
        """The boxes around the objects of the followed class; of a mask without classes and boxes, the box around all of it.

        Raises:
            MetricError: The data says nothing of the objects.
        """
        if "boxes" not in self.shared.known:
            known, masks = self.batch, self.masks
            if known.truth is not None:
                self.shared.known["boxes"] = boxes_of(known.truth, *self._followed)
            else:
                self.shared.known["boxes"] = known.boxes or [box_around(mask) for mask in masks]
        found: list[Tensor] = self.shared.known["boxes"]
        return found

    @property
    def _followed(self) -> tuple[Tensor | None, Sequence[int], Tensor | None]:
        """The classes, the size of the images, and the boxes by which the truth is asked for."""
        followed = self.batch_pass.context.followed
        boxes = followed.details[0] if isinstance(self.job.task, Detection) and followed is not None else None
        classes = None if getattr(self.job.task, "single", None) == "value" else self.batch_pass.targets
        return classes, self.images.shape[2:], boxes

    @cached_property
    def ask(self) -> Any:
        """A function from any images to confidences."""
        return partial(self._judge.ask, wanted="confidence")

    @cached_property
    def ask_hits(self) -> Any:
        """A function from any images to whether the target is the predicted class."""
        return partial(self._judge.ask, wanted="hit")

    @property
    def _judge(self) -> Context:
        return self.shared.judge or self.batch_pass.context

    @property
    def segment(self) -> Any:
        """A function that makes segments of the images."""
        return self.shared.segment

    @property
    def draw(self) -> Any:
        """A function that draws random numbers."""
        return self.batch_pass.context.draw

    @property
    def targets(self) -> Tensor:
        """The explained classes."""
        return self.batch_pass.context.targets

    @property
    def logits(self) -> Tensor:
        """The logits of the original images."""
        return logits_of_classifier(self.batch_pass.context)

    def explain(self, images: Tensor) -> Tensor:
        """The maps of altered images, in [0, 1]."""
        return finished_maps(self.inspect(images).raw, images, self.job.protocol).maps

    def attribute(self, images: Tensor) -> Tensor:
        """The maps of altered images at the images' size, not normalised."""
        return self.inspect(images).attributions

    def inspect(self, images: Tensor) -> Inspected:
        """What the method and the model say about altered images."""
        return inspected(self.job, replace(self.batch, images=images), self.batch_pass.context.followed)

    def explain_class(self, classes: Tensor) -> Tensor:
        """The maps of the original images for other classes."""
        logits_of_classifier(self.batch_pass.context)  # other tasks have no other class to follow on each image
        return inspected(self.job, self.batch, Followed.all(classes)).maps

    def lend(self, judge: Callable[[LentImage, int], float]) -> Tensor:
        """What another library says of each image, with the model lent to it."""
        return judge_one_by_one(self.job, self.batch, self.batch_pass.context, self.attributions, judge)

    def explain_by(self, method: Method) -> Tensor:
        """The maps of the original images by another method: those of the run, or made for it.

        There is no map, but NaN, if the other method needs a layer and this one has none, or only one of them joins layers.
        """
        [explainer] = resolve_methods([method])
        [(own, layer)] = self.job.pairs
        if explainer.needs_layer and (layer is None or joins_layers(explainer) != joins_layers(own)):
            return torch.full_like(self.attributions, torch.nan)
        pair = (layer if explainer.needs_layer and layer else NO_LAYER, explainer.name)
        if pair in self.shared.others:
            return upsample(self.shared.others[pair], self.images.shape[2:])
        job = replace(self.job, pairs=make_pairs([explainer], self.job.layers))
        return inspected(job, self.batch, self.batch_pass.context.followed).attributions

    def randomise(self, order: str, modules: Sequence[str] | None, look: Callable[[Callable[..., Any]], Any]) -> list[Any]:
        """What `look` gives under the random parameters of each step."""

        def inspect(job: Job, images: Tensor) -> Inspected:
            return inspected(job, replace(self.batch, images=images), self.batch_pass.context.followed)

        parameters = self.job.random_parameters
        found = []
        for swaps in parameters.steps(self.job.runner, self.images, self.job.seed, order, modules):
            with parameters.in_place(self.job.runner, swaps) as runner:
                found.append(look(partial(inspect, replace(self.job, runner=runner))))
        return found

    def attribute_shifted(self, shift: float) -> Tensor:
        """The maps of the images plus a number, at their size, not normalised, of the model that takes the number away first.

        Raises:
            MetricError: The model's output changed, so that the number was not taken away.
        """
        shifted, model = self.images + shift, self.job.runner.model
        undo = model.register_forward_pre_hook(partial(_shifted_back, shift), with_kwargs=True)
        try:
            context, expected = self.batch_pass.context, self.batch_pass.confidence
            again = context.ask([(shifted, context.everywhere)], "confidence")
            if not torch.allclose(again.double(), expected.double(), rtol=1e-2, atol=1e-4, equal_nan=True):
                raise MetricError(
                    "a shift of the images that the model undoes changed its output, so there is no shifted model to compare "
                    "with: images have to reach the model as its first argument, unchanged, and passes must not be compiled"
                )
            return self.attribute(shifted)
        finally:
            undo.remove()


def _shifted_back(shift: float, model: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a model is called with, without a shift of the images."""
    if args:
        return (args[0] - shift, *args[1:]), given
    return args, {name: value - shift if name == "pixel_values" else value for name, value in given.items()}


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
