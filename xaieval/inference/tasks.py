"""The tasks of a model: how its output is read, and which class, detection or region is followed on each image."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves

from xaieval.config.protocol import plain
from xaieval.data.labels import Labels
from xaieval.errors import ModelError, TargetError, UsageError, choose_from
from xaieval.inference.detections import Detections, best_class, best_match, pick, probabilities_of, read_detections, similarity
from xaieval.inference.one_output import Single, as_classes, check_single, two_sided
from xaieval.inference.targets import (
    Confidence,
    Output,
    Target,
    choose_targets,
    compared_score,
    confidences,
    describe_value,
    find,
    known_classes,
    logits_of,
    named_classes,
    take,
)

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Followed",
    "Segmentation",
    "Task",
    "describe",
    "predicted_score",
    "resolve_task",
]


@dataclass(frozen=True)
class Followed:
    """The class, detection or region that is followed on each of N images, chosen on the original images.

    Attributes:
        classes: The classes `[N]`; -1 where there is nothing to follow.
        has_target: Whether there is something to follow, `[N]`; False if a detector found no such object, or an image has no
            label and the target is "label".
        details: Further tensors with N rows, such as boxes or regions.
    """

    classes: Int[Tensor, " n"]
    has_target: Bool[Tensor, " n"]
    details: tuple[Tensor, ...] = ()

    @classmethod
    def all(cls, classes: Tensor) -> Followed:
        """Follow these classes, one on each image."""
        return cls(classes, torch.ones_like(classes, dtype=torch.bool))

    def of(self, index: Tensor) -> Followed:
        """Select the images `index`; an image may occur several times."""
        return Followed(self.classes[index], self.has_target[index], tuple(detail[index] for detail in self.details))


@runtime_checkable
class Task(Protocol):
    """How to read a model's output, and what to follow in it.

    The result of `read` can be sliced along the images, and is the first argument of the other methods. A task that follows
    objects also has `similarity(read, followed)`, as that of `Detection`.
    """

    def read(self, output: Any) -> Any:
        """Extract the relevant part of a model's output.

        Raises:
            ModelError: The output is of another kind.
        """

    def predicted(self, read: Any) -> Tensor:
        """The predicted class of each image, `[N]`; -1 for none."""

    def follow(self, read: Any, target: Target, labels: Labels) -> Followed:
        """Choose what to follow on each image.

        Raises:
            TargetError: The model or the data does not have this target.
        """

    def score(self, read: Any, followed: Followed) -> Tensor:
        """The score whose gradients are computed, `[N]`; 0 where there is nothing to follow."""

    def confidence(self, read: Any, followed: Followed, kind: Confidence) -> Tensor:
        """The confidence, `[N]`, in float64 where the device supports it; 0 where the followed object is not found."""


@dataclass(frozen=True)
class Classification:
    """Logits `[N, K]`; one class is followed on each image.

    Args:
        output: Where the logits are in the model's output: a key, an index or a function. Default: found automatically.
        single: How one output z per image, `[N, 1]` or `[N]`, is read: "binary", as the logits (-z, z) of the classes 0 and 1,
            so that class 1 has the probability sigmoid(z); or "value", as a number whose class is 0. Default of a run: "binary"
            if the protocol's confidence is "softmax" or "sigmoid", else "value".

    Raises:
        UsageError: `single` is unknown.

    Example:
        >>> logits = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
        >>> task = Classification()
        >>> task.score(logits, task.follow(logits, "predicted", None))
        tensor([3., 2.])
    """

    output: Output = None
    single: Single | None = None

    def __post_init__(self) -> None:
        check_single(self.single)

    def read(self, output: Any) -> Tensor:
        """The logits `[N, K]`."""
        return as_classes(logits_of(output, self.output, single=self.single is not None), self.single)

    def predicted(self, read: Float[Tensor, "n k"]) -> Tensor:
        """The class of the highest logit."""
        return read.argmax(dim=1)

    def follow(self, read: Float[Tensor, "n k"], target: Target, labels: Labels) -> Followed:
        """Choose a class for each image."""
        classes = choose_targets(target, read.detach(), labels)
        return Followed(classes, classes >= 0)

    def score(self, read: Float[Tensor, "n k"], followed: Followed) -> Tensor:
        """The logit of the class, minus those of the classes that it is compared with."""
        if self.single == "binary" and read.shape[1] == 1:  # as other libraries give it, which call the model themselves
            read = two_sided(read)
        return take(read, followed.classes) - compared_score(read, *followed.details)

    def confidence(self, read: Float[Tensor, "n k"], followed: Followed, kind: Confidence) -> Tensor:
        """The confidence of the class."""
        return take(confidences(read, kind), followed.classes)


@dataclass(frozen=True)
class Detection:
    """Boxes with classes and scores; one detection is followed on each image.

    The best detection of the target class is followed ("predicted": the best of all). On the masked image, its confidence is
    the score of the best detection of the same class whose box overlaps, and 0 if there is none. The scores of detectors are
    already probabilities, so the protocol's choice of confidence does not apply. Gradients are those of the score's logit where
    the model gives it, otherwise those of the score, which are the same up to one factor per image.

    Args:
        iou: The smallest intersection over union of two boxes of the same object, in (0, 1].
        box: Follow the detection that overlaps most with this box `(x1, y1, x2, y2)`, in pixels of the model's input, instead.
        threshold: The smallest score of a detection that is followed. An image without one has nothing to explain.
        output: Where the detections are in the model's output: one mapping per image with "boxes" `[D, 4]`, "labels" `[D]` and
            "scores" `[D]`, as torchvision's detectors return. Optional, for `d-rise`: "probabilities" of all classes `[D, K]`
            (or `[Q, K]` with "queries" `[D]`, the row of each box), and "objectness" `[D]`; for gradients: "logits" `[D]`,
            scores before the sigmoid, with "floor", the logit of an object that is not found; and "found" `[D]`, False for
            candidates that are no detections of the model.

    Raises:
        UsageError: `iou` or `threshold` is out of range, or `box` is not a box.

    Reference:
        The matching is after D-RISE (Petsiuk et al., CVPR 2021, arXiv 2006.03204, section 3.2), with a smallest overlap and an
        equal class in place of factors; `similarity` has the factors, which the method `d-rise` uses.

    Example:
        >>> boxes = {"boxes": torch.tensor([[0.0, 0, 8, 8], [4, 4, 8, 8]]), "labels": torch.tensor([1, 2])}
        >>> original = [boxes | {"scores": torch.tensor([0.9, 0.4])}]
        >>> masked = [boxes | {"scores": torch.tensor([0.3, 0.6])}]
        >>> task = Detection()
        >>> task.confidence(masked, task.follow(original, "predicted", None), "softmax")
        tensor([0.3000], dtype=torch.float64)
    """

    iou: float = 0.5
    box: tuple[float, float, float, float] | None = None
    output: Output = None
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1 or not 0 <= self.threshold < 1:
            raise UsageError(f"iou lies in (0, 1] and threshold in [0, 1), got {self.iou} and {self.threshold}")
        if self.box is not None and (len(self.box) != 4 or self.box[0] >= self.box[2] or self.box[1] >= self.box[3]):
            raise UsageError(f"box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2, got {self.box}")

    def read(self, output: Any) -> Detections:
        """One mapping per image."""
        return read_detections(output if self.output is None else find(output, self.output))

    def predicted(self, read: Detections) -> Tensor:
        """The class of the best detection."""
        return torch.stack([best_class(one) for one in read])

    def follow(self, read: Detections, target: Target, labels: Labels) -> Followed:
        """Choose the best detection of a class, or the one at a box."""
        wanted = _wanted_classes(target, read, labels, len(read))
        boxes, classes, probabilities = [], [], []
        for number, one in enumerate(read):
            at = pick(one, None if wanted is None else wanted[number], self.box, self.iou, self.threshold)
            classes.append(one["labels"].new_tensor(-1) if at is None else one["labels"][at])
            boxes.append(one["boxes"].new_zeros(4) if at is None else one["boxes"][at].detach())
            if "probabilities" in one:
                known = one["probabilities"].detach()
                probabilities.append(known.new_zeros(known.shape[1]) if at is None else probabilities_of(one, at).detach())
        followed = torch.stack(classes)
        details = [torch.stack(boxes), *([torch.stack(probabilities)] if probabilities else [])]
        return Followed(followed, followed >= 0, tuple(details))

    def score(self, read: Detections, followed: Followed) -> Tensor:
        """The logit of the detection if the model gives it, otherwise the score; differentiable."""
        return self._best(read, followed, "logits" if read and "logits" in read[0] else "scores")

    def _best(self, read: Detections, followed: Followed, key: str) -> Tensor:
        known = zip(read, followed.classes, followed.details[0], strict=True)
        return torch.stack([best_match(one, label, box, self.iou, key) for one, label, box in known])

    def similarity(self, read: Detections, followed: Followed) -> Tensor:
        """The similarity of the image's best match with the detection, `[N]`, in [0, 1], by box and class together.

        In place of an equal class and a smallest overlap, it is a product: see `xaieval.inference.detections.similarity`.
        """
        known = zip(followed.classes, *followed.details, strict=True)
        return torch.stack([similarity(one, *wanted) for one, wanted in zip(read, known, strict=True)])

    def confidence(self, read: Detections, followed: Followed, kind: Confidence) -> Tensor:
        """The score of the detection."""
        if callable(kind):
            raise TargetError("the confidence of a detection is its score; confidence= cannot be a function for detectors")
        scores = self._best(read, followed, "scores")
        return scores if scores.device.type == "mps" else scores.double()


Region = Literal["predicted", "all"]


@dataclass(frozen=True)
class Segmentation:
    """Logits `[N, K, h, w]` (volumes: `[N, K, d, h, w]`); one class is followed in a region of each image.

    The score is the mean logit of the class over the region, and the confidence is the mean confidence of the class there.

    Args:
        region: "predicted" for the pixels that are predicted as the class on the original image, or "all" for all pixels.
        background: The class that target "predicted" never chooses, because it is everywhere; None for a model without one.
        output: Where the logits are in the model's output: a key, an index or a function. Default: found automatically.
        single: How one output per pixel, `[N, 1, h, w]`, `[N, h, w]`, or `[h, w]` of one image, is read, as for
            `Classification`: "binary": class 1 is predicted where the output is positive; or "value": class 0 is everywhere.

    Raises:
        UsageError: The region or `single` is unknown.

    Reference:
        Vinogradova et al., "Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation Mapping" (arXiv
        2002.11434), eq. 2, for the region.

    Example:
        >>> logits = torch.tensor([[[[2.0, 0.0]], [[3.0, 1.0]]]])  # one image of 1 x 2 pixels, two classes
        >>> task = Segmentation()
        >>> task.score(logits, task.follow(logits, "predicted", None))
        tensor([2.])
    """

    region: Region = "predicted"
    background: int | None = 0
    output: Output = None
    single: Single | None = None

    def __post_init__(self) -> None:
        check_single(self.single)
        if self.region not in get_args(Region):
            raise UsageError(f"no region {self.region!r}; {choose_from(self.region, get_args(Region))}")

    def read(self, output: Any) -> Tensor:
        """The logits `[N, K, h, w]`."""
        logits = find(output, self.output)
        if self.single is not None and isinstance(logits, Tensor):
            logits = logits[None] if logits.ndim == 2 else logits  # squeeze() of one image
            logits = logits[:, None] if logits.ndim in (3, 4) and logits.shape[1] != 1 else logits
        if isinstance(logits, Tensor) and logits.ndim in (4, 5) and logits.is_floating_point():
            return as_classes(logits, self.single)
        came = describe_value(logits if isinstance(logits, Tensor) else output)
        raise ModelError(
            f"the model's output has no logits [N, K, h, w]: got {came}; "
            "say where they are with output= (a key, an index, or a function of the output)"
        )

    def predicted(self, read: Float[Tensor, "n k *space"]) -> Tensor:
        """The class with the most pixels, other than the background; -1 if all pixels are background."""
        areas = torch.stack([labels.bincount(minlength=read.shape[1]) for labels in read.argmax(dim=1).flatten(1)])
        if self.background is not None and self.single != "value":
            areas[:, self.background].clamp_(max=0)
        classes = areas.argmax(dim=1)
        return classes.masked_fill(areas.amax(dim=1) == 0, -1)

    def follow(self, read: Float[Tensor, "n k *space"], target: Target, labels: Labels) -> Followed:
        """Choose a class and its region for each image."""
        wanted = _wanted_classes(target, read, labels, len(read))
        classes = self.predicted(read) if wanted is None else known_classes(target, wanted, read.shape[1])
        at = classes.view(-1, *[1] * (read.ndim - 2))
        regions = read.argmax(dim=1) == at
        if self.region == "all":
            regions = (at >= 0).expand_as(regions)
        return Followed(classes, regions.flatten(1).any(dim=1), (regions,))

    def score(self, read: Float[Tensor, "n k *space"], followed: Followed) -> Tensor:
        """The mean logit of the class over the region."""
        return _mean_over(followed.details[0], read, followed.classes)

    def confidence(self, read: Float[Tensor, "n k *space"], followed: Followed, kind: Confidence) -> Tensor:
        """The mean confidence of the class over the region."""
        classes = read.shape[1]
        pixels = confidences(read.movedim(1, -1).reshape(-1, classes), kind)
        return _mean_over(
            followed.details[0], pixels.view(len(read), *read.shape[2:], classes).movedim(-1, 1), followed.classes
        )


TASKS: dict[str, type[Classification | Detection | Segmentation]] = {
    "classification": Classification,
    "detection": Detection,
    "segmentation": Segmentation,
}


def resolve_task(task: str | Task, output: Output = None) -> Task:
    """Return the task of a name, which reads the model's output at `output`; a task object is returned unchanged.

    Raises:
        UsageError: The name is unknown, or `output` is given together with a task object, which has its own `output`.
    """
    if isinstance(task, str):
        if task not in TASKS:
            raise UsageError(f"no task {task!r}; {choose_from(task, TASKS)}; or give one of xaieval.inference.tasks")
        return TASKS[task](output=output)
    if not isinstance(task, Task) or isinstance(task, type):
        raise UsageError(f"a task is a name ({', '.join(TASKS)}) or an object of xaieval.inference.tasks, got {task!r}")
    if output is not None:
        raise UsageError("with a task object, give output= to the object itself")
    return task


def predicted_score(task: Task, output: Any) -> Tensor:
    """The score of each image's prediction, `[N]`, differentiable; the sum of all outputs, `[1]`, if nothing is predicted."""
    read = _forgiving(task, output).read(output)
    followed = task.follow(read, "predicted", None)
    if followed.has_target.any():
        return task.score(read, followed)
    everything = [leaf.sum() for leaf in tree_leaves(read) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack(everything).sum()[None]


def describe(task: Task) -> dict[str, Any]:
    """Describe a task with plain values for a manifest."""
    options: dict[str, Any] = {f.name: plain(getattr(task, f.name)) for f in fields(task)} if is_dataclass(task) else {}
    return {"name": type(task).__name__.lower(), **options}


def _forgiving(task: Task, output: Any) -> Task:
    """The task, as one of a single output if the output lacks the axis of the classes."""
    if isinstance(task, Classification | Segmentation) and task.single is None:
        logits = find(output, task.output)
        if isinstance(logits, Tensor) and logits.ndim < (4 if isinstance(task, Segmentation) else 2):
            return replace(task, single="value")
    return task


def _wanted_classes(target: Target, read: Any, labels: Labels, count: int) -> Tensor | None:
    """The classes `[N]` that a target names; None for "predicted"."""
    if isinstance(target, int) and target < 0:
        raise TargetError(f"no class {target}; classes are numbered from 0")
    device = read.device if isinstance(read, Tensor) else read[0]["labels"].device
    return named_classes(target, read, labels, count, device)


def _mean_over(regions: Tensor, values: Tensor, classes: Tensor) -> Tensor:
    """Means of a class's values `[N, K, ...]` over regions `[N, ...]`; 0 for empty regions."""
    own = values[torch.arange(len(values), device=values.device), classes.clamp(min=0)]
    cells = tuple(range(1, own.ndim))
    return (own * regions).sum(dim=cells) / regions.sum(dim=cells).clamp(min=1)
