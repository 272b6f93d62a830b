"""The inputs of metrics for the maps of one method at one layer on one batch, each computed when it is first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.config.protocol import Protocol
from xaieval.data.truth import boxes_around
from xaieval.data.truth_by_class import boxes_of, masks_of
from xaieval.errors import MetricError
from xaieval.evaluation.inspection import Inspected, logits_of_classifier
from xaieval.evaluation.job import Job
from xaieval.evaluation.lending import LentImage, judge_one_by_one
from xaieval.evaluation.maps import finished_maps
from xaieval.evaluation.shared import Shared
from xaieval.explainers import Context, Method, joins_layers, resolve_methods
from xaieval.inference.tasks import Detection, Followed
from xaieval.masking import filling, mask, occlude, upsample
from xaieval.masking.segments import segmenter
from xaieval.results.rows import NO_LAYER

__all__ = ["CountedPixels", "MetricInputs"]

OF_PIXELS = ("maps", "attributions")  # what is compared with masks


@dataclass(frozen=True)
class MetricInputs:
    """The inputs by the names of `xaieval.metrics.NEEDS`.

    Attributes:
        shared: What is the same for all maps of the batch.
        number: Of the pair of layer and method.
        known: Inputs that are known already, by name: confidences, and a map in the place of the method's own.
    """

    shared: Shared
    number: int
    known: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Any:
        return self.known[name] if name in self.known else getattr(self, name)

    @property
    def protocol(self) -> Protocol:
        """The protocol of the run."""
        return self.shared.job.protocol

    @property
    def raw(self) -> Tensor:
        """The method's maps `[N, h, w]`."""
        return self.shared.maps[self.number]

    @property
    def images(self) -> Tensor:
        """The original images, as the model sees them."""
        return self._context.images

    @cached_property
    def maps(self) -> Tensor:
        """The maps in [0, 1]."""
        return finished_maps(self.raw, self.images, self.protocol).maps

    @cached_property
    def attributions(self) -> Tensor:
        """The maps at the images' size, not normalised."""
        return upsample(self.raw, self.images.shape[2:])

    @cached_property
    def masked_maps(self) -> Tensor:
        """The maps of the masked images."""
        masks = mask(self.maps, self.protocol).to(self.images.dtype)
        masked = occlude(self.images, masks, filling(self.images, self.protocol)(masks))
        alone = replace(self.shared, seen=None)  # since they depend on the map
        return alone.inspect(self.number, masked).finished

    @property
    def masks(self) -> Tensor:
        """The ground truth: where the objects of the followed class are, or those of any class where the data has no classes.

        Raises:
            MetricError: The data does not say.
        """
        return self.shared.once("truth", self._find_truth)[0]

    @property
    def ignored(self) -> Tensor | None:
        """The pixels that the truth counts neither as object nor as background; None if there are none."""
        return self.shared.once("truth", self._find_truth)[1]

    def _find_truth(self) -> tuple[Tensor, Tensor | None]:
        """The masks, and the ignored pixels."""
        batch, device = self.shared.batch, self.images.device
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
        return self.shared.once("boxes", self._find_boxes)

    def _find_boxes(self) -> list[Tensor]:
        known, masks = self.shared.batch, self.masks
        if known.truth is not None:
            return boxes_of(known.truth, *self._followed)
        return known.boxes or [box[box[:, 2] > 0] for box in boxes_around(masks)[:, None]]

    @property
    def _followed(self) -> tuple[Tensor | None, Sequence[int], Tensor | None]:
        """The classes, the size of the images, and the boxes by which the truth is asked for."""
        followed, task = self._context.followed, self.shared.job.task
        boxes = followed.details[0] if isinstance(task, Detection) and followed is not None else None
        classes = None if getattr(task, "single", None) == "value" else self.shared.batch_pass.targets
        return classes, self.images.shape[2:], boxes

    @property
    def ask(self) -> Any:
        """A function from any images to confidences."""
        return partial(self.shared.ask, wanted="confidence")

    @property
    def ask_hits(self) -> Any:
        """A function from any images to whether the target is the predicted class."""
        return partial(self.shared.ask, wanted="hit")

    @property
    def _context(self) -> Context:
        return self.shared.batch_pass.context

    @property
    def segment(self) -> Any:
        """A function that makes segments of the images, each segmentation once."""
        return self.shared.once("segmenter", partial(segmenter, self.images))

    @property
    def draw(self) -> Any:
        """A function that draws random numbers."""
        return self._context.draw

    @property
    def targets(self) -> Tensor:
        """The explained classes."""
        return self._context.targets

    @property
    def logits(self) -> Tensor:
        """The logits of the original images."""
        return logits_of_classifier(self._context.logits, self._context.task)

    def explain(self, images: Tensor) -> Tensor:
        """The maps of altered images, in [0, 1]."""
        return self.inspect(images).finished

    def attribute(self, images: Tensor) -> Tensor:
        """The maps of altered images at the images' size, not normalised."""
        return self.inspect(images).attributions

    def inspect(self, images: Tensor) -> Inspected:
        """What the method and the model say about altered images."""
        return self.shared.inspect(self.number, images)

    inspect_maps = inspect_layer = inspect  # what is shared knows what metrics need of them

    def explain_class(self, classes: Tensor) -> Tensor:
        """The maps of the original images for other classes."""
        logits_of_classifier(self._context.logits, self._context.task)  # other tasks have no other class of each image
        shared, followed = self.shared, Followed.all(classes)
        what = ("classes", classes)
        return shared.look(self.number, what, lambda job: shared.inspected(job, shared.batch, followed)).maps

    def lend(self, judge: Callable[[LentImage, int], float]) -> Tensor:
        """What another library says of each image, with the model lent to it."""
        job = self.shared.job.of_pair(self.number)
        return judge_one_by_one(job, self.shared.batch, self._context, self.attributions, judge)

    def explain_by(self, method: Method) -> Tensor:
        """The maps of the original images by another method: those of the run, or made for it.

        There is no map, but NaN, if the other method needs a layer and this one has none, or only one of them joins layers.
        """
        [explainer] = resolve_methods([method])
        own, layer = self.shared.job.pairs[self.number]
        if explainer.needs_layer and (layer is None or joins_layers(explainer) != joins_layers(own)):
            return torch.full_like(self.attributions, torch.nan)
        pair = (layer if explainer.needs_layer and layer else NO_LAYER, explainer.name)
        maps = self.shared.maps_of_run
        if pair not in maps:
            which = method if isinstance(method, str) else id(method)
            maps = self.shared.once(("reference", which), partial(self.shared.maps_by, explainer))
        return upsample(maps[pair], self.images.shape[2:])

    def randomise(self, order: str, modules: Sequence[str] | None, look: Callable[[Callable[..., Any]], Any]) -> list[Any]:
        """What `look` gives under the random parameters of each step."""
        shared, parameters = self.shared, self.shared.job.random_parameters
        steps = parameters.steps(shared.job.runner, self.images, shared.job.seed, order, modules)

        def inspect(number: int, images: Tensor) -> Inspected:
            def under(job: Job) -> list[Inspected]:
                with parameters.in_place(job.runner, steps[number]) as runner:
                    altered = replace(shared.batch, images=images)
                    return shared.inspected(replace(job, runner=runner), altered, self._context.followed)

            return shared.look(self.number, ("random", order, modules, number, images), under)

        return [look(partial(inspect, number)) for number in range(len(steps))]

    def attribute_shifted(self, shift: float) -> Tensor:
        """The maps of the images plus a number, at their size, not normalised, of the model that takes the number away first.

        Raises:
            MetricError: The model's output changed, so that the number was not taken away.
        """
        return self.shared.look(self.number, ("shift", shift), partial(self._shifted, shift)).attributions

    def _shifted(self, shift: float, job: Job) -> list[Inspected]:
        shifted, context = self.images + shift, self._context
        undo = job.runner.model.register_forward_pre_hook(partial(_shifted_back, shift), with_kwargs=True)
        try:
            again = context.ask([(shifted, context.everywhere)], "confidence")
            expected = self.shared.batch_pass.confidence
            if not torch.allclose(again.double(), expected.double(), rtol=1e-2, atol=1e-4, equal_nan=True):
                raise MetricError(
                    "a shift of the images that the model undoes changed its output, so there is no shifted model to compare "
                    "with: images have to reach the model as its first argument, unchanged, and passes must not be compiled"
                )
            return self.shared.inspected(job, replace(self.shared.batch, images=shifted), context.followed)
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
