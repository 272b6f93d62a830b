"""What a model is asked: which class, detection or region is followed on each image, and what the model scores it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_iou

from xaieval.config.protocol import plain
from xaieval.errors import ModelError, TargetError, UsageError, choose_from
from xaieval.inference.targets import (
    Confidence,
    Output,
    Target,
    check_labels,
    choose_targets,
    confidences,
    find,
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
    """What is followed on each of N images, fixed on the original ones.

    Attributes:
        classes: `[N]`; -1 where there is nothing to follow.
        found: `[N]`, False where there is nothing to follow: a detector that found no such object.
        details: what else says which it is, each with N rows: boxes, regions.
    """

    classes: Int[Tensor, " n"]
    found: Bool[Tensor, " n"]
    details: tuple[Tensor, ...] = ()

    @classmethod
    def all(cls, classes: Tensor) -> Followed:
        """Classes alone, all of which there are."""
        return cls(classes, torch.ones_like(classes, dtype=torch.bool))

    def of(self, index: Tensor) -> Followed:
        """What is followed on images `index`, any of which may come several times."""
        return Followed(self.classes[index], self.found[index], tuple(detail[index] for detail in self.details))


@runtime_checkable
class Task(Protocol):
    """How a model's output is read, and what of it is followed.

    What `read` returns can be sliced along the images, and is what the other methods are given.
    """

    def read(self, output: Any) -> Any:
        """What matters of a model's output.

        Raises:
            ModelError: it is of another kind.
        """

    def predicted(self, read: Any) -> Tensor:
        """The class that is predicted for each image, `[N]`; -1 for none."""

    def follow(self, read: Any, target: Target, labels: Tensor | None) -> Followed:
        """What is followed, by the choice of target.

        Raises:
            TargetError: the target is none of this model or of this data.
        """

    def score(self, read: Any, followed: Followed) -> Tensor:
        """The score that gradients are taken of, `[N]`; 0 where there is nothing to follow."""

    def confidence(self, read: Any, followed: Followed, kind: Confidence) -> Tensor:
        """The confidence, `[N]`, in float64 where the device has it; 0 where what is followed is not to be found."""


@dataclass(frozen=True)
class Classification:
    """Logits `[N, K]`, of which one class is followed.

    Args:
        output: where the logits are in the model's output: a key, an index or a function; found by itself in most models.

    Example:
        >>> logits = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
        >>> task = Classification()
        >>> task.score(logits, task.follow(logits, "predicted", None))
        tensor([3., 2.])
    """

    output: Output = None

    def read(self, output: Any) -> Tensor:
        """The logits `[N, K]`."""
        return logits_of(output, self.output)

    def predicted(self, read: Float[Tensor, "n k"]) -> Tensor:
        """The class of the highest logit."""
        return read.argmax(dim=1)

    def follow(self, read: Float[Tensor, "n k"], target: Target, labels: Tensor | None) -> Followed:
        """A class of each image."""
        return Followed.all(choose_targets(target, read.detach(), labels))

    def score(self, read: Float[Tensor, "n k"], followed: Followed) -> Tensor:
        """The logit of the class."""
        return take(read, followed.classes)

    def confidence(self, read: Float[Tensor, "n k"], followed: Followed, kind: Confidence) -> Tensor:
        """The confidence of the class."""
        return take(confidences(read, kind), followed.classes)


Detections = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Detection:
    """Boxes with classes and scores, of which one detection is followed.

    The best detection of the target's class is followed ("predicted": the best of all). On any other image its confidence is
    the score of the best detection of the same class whose box overlaps with it, and 0 if there is none. Detectors give scores
    that are probabilities already, so that the protocol's choice of confidence does not matter, and gradients are taken of the
    score: by a factor for each image that is the gradient of its logit.

    Args:
        iou: how much two boxes have to overlap to be the same object: intersection over union, in (0, 1].
        box: follow the detection that overlaps most with this box `(x1, y1, x2, y2)`, in pixels of the model's input, instead.
        output: where the detections are in the model's output: one mapping an image with "boxes" `[D, 4]`, "labels" `[D]` and
            "scores" `[D]`, as torchvision's detectors give.

    Raises:
        UsageError: `iou` is out of range, or `box` is none.

    Reference:
        The matching is that of D-RISE (Petsiuk et al., CVPR 2021, arXiv 2006.03204, section 3.2), with the class's score in
        place of the similarity of all classes' scores, which these detectors do not give.

    Example:
        >>> found = {"boxes": torch.tensor([[0.0, 0, 8, 8], [4, 4, 8, 8]]), "labels": torch.tensor([1, 2])}
        >>> seen = [found | {"scores": torch.tensor([0.9, 0.4])}]
        >>> masked = [found | {"scores": torch.tensor([0.3, 0.6])}]
        >>> task = Detection()
        >>> task.confidence(masked, task.follow(seen, "predicted", None), "softmax")
        tensor([0.3000], dtype=torch.float64)
    """

    iou: float = 0.5
    box: tuple[float, float, float, float] | None = None
    output: Output = None

    def __post_init__(self) -> None:
        if not 0 < self.iou <= 1:
            raise UsageError(f"iou lies in (0, 1], got {self.iou}")
        if self.box is not None and (len(self.box) != 4 or self.box[0] >= self.box[2] or self.box[1] >= self.box[3]):
            raise UsageError(f"box is (x1, y1, x2, y2) with x1 < x2 and y1 < y2, got {self.box}")

    def read(self, output: Any) -> Detections:
        """One mapping an image."""
        found = output if self.output is None else find(output, self.output)
        if isinstance(found, tuple | list) and all(isinstance(one, dict) and {*KEYS} <= one.keys() for one in found):
            return [{key: one[key] for key in KEYS} for one in found]
        raise ModelError(
            f"the model's output holds no detections: got {_kind(found)}; one mapping an image with 'boxes', 'labels' and "
            "'scores' is expected; say where they are by output= (a key, an index, or a function of the output)"
        )

    def predicted(self, read: Detections) -> Tensor:
        """The class of the best detection."""
        return torch.stack([_best(one["labels"], one["scores"]) for one in read])

    def follow(self, read: Detections, target: Target, labels: Tensor | None) -> Followed:
        """The best detection of a class, or the one at a box."""
        wanted = _wanted_classes(target, read, labels, len(read))
        boxes, classes = [], []
        for number, one in enumerate(read):
            fits = torch.ones_like(one["labels"], dtype=torch.bool) if wanted is None else one["labels"] == wanted[number]
            rank = one["scores"].detach() if self.box is None else _overlap(one["boxes"], one["boxes"].new_tensor(self.box))
            fits = fits & (rank >= (0 if self.box is None else self.iou))
            at = rank.masked_fill(~fits, -1).argmax() if fits.any() else None
            classes.append(one["labels"].new_tensor(-1) if at is None else one["labels"][at])
            boxes.append(one["boxes"].new_zeros(4) if at is None else one["boxes"][at].detach())
        followed = torch.stack(classes)
        return Followed(followed, followed >= 0, (torch.stack(boxes),))

    def score(self, read: Detections, followed: Followed) -> Tensor:
        """The score of the detection, differentiable."""
        found = []
        for one, label, box in zip(read, followed.classes, followed.details[0], strict=True):
            same = (one["labels"] == label) & (_overlap(one["boxes"], box) >= self.iou)
            scores = one["scores"]
            found.append(scores[same].max() if same.any() else scores.sum() * 0)
        return torch.stack(found)

    def confidence(self, read: Detections, followed: Followed, kind: Confidence) -> Tensor:
        """The score of the detection."""
        if callable(kind):
            raise TargetError("a detection's confidence is its score; confidence= takes no function for detectors")
        scores = self.score(read, followed)
        return scores if scores.device.type == "mps" else scores.double()


KEYS = ("boxes", "labels", "scores")
Region = Literal["predicted", "all"]


@dataclass(frozen=True)
class Segmentation:
    """Logits `[N, K, h, w]` (of volumes `[N, K, d, h, w]`), of which one class is followed in a region.

    The score is the mean of the class's logits over the region, the confidence the mean of its probabilities there.

    Args:
        region: where: "predicted", the pixels that are predicted to be of the class on the original image, or "all" of them.
        background: the class that "predicted" never means, since it is everywhere; None for a model without one.
        output: where the logits are in the model's output: a key, an index or a function; found by itself in most models.

    Raises:
        UsageError: there is no such region.

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

    def __post_init__(self) -> None:
        if self.region not in get_args(Region):
            raise UsageError(f"no region {self.region!r}; {choose_from(self.region, get_args(Region))}")

    def read(self, output: Any) -> Tensor:
        """The logits `[N, K, h, w]`."""
        found = find(output, self.output)
        if isinstance(found, Tensor) and found.ndim in (4, 5) and found.is_floating_point():
            return found
        raise ModelError(
            f"the model's output holds no logits [N, K, h, w]: got {_kind(found)}; say where they are by output= (a key, an "
            "index, or a function of the output)"
        )

    def predicted(self, read: Float[Tensor, "n k *space"]) -> Tensor:
        """The class of most pixels, other than the background if there is any."""
        areas = torch.stack([labels.bincount(minlength=read.shape[1]) for labels in read.argmax(dim=1).flatten(1)])
        if self.background is not None:
            areas[:, self.background].clamp_(max=0)
        classes = areas.argmax(dim=1)
        return classes.masked_fill(areas.amax(dim=1) == 0, -1)

    def follow(self, read: Float[Tensor, "n k *space"], target: Target, labels: Tensor | None) -> Followed:
        """A class and its region."""
        wanted = _wanted_classes(target, read, labels, len(read))
        classes = self.predicted(read) if wanted is None else check_labels(wanted, read.shape[1], "the target is class")
        at = classes.view(-1, *[1] * (read.ndim - 2))
        regions = read.argmax(dim=1) == at
        if self.region == "all":
            regions = (at >= 0).expand_as(regions)
        return Followed(classes, regions.flatten(1).any(dim=1), (regions,))

    def score(self, read: Float[Tensor, "n k *space"], followed: Followed) -> Tensor:
        """The mean of the class's logits over the region."""
        return _mean_over(followed.details[0], read, followed.classes)

    def confidence(self, read: Float[Tensor, "n k *space"], followed: Followed, kind: Confidence) -> Tensor:
        """The mean of the class's confidences over the region."""
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
    """A task by name, which reads the output at `output`, or the object itself.

    Raises:
        UsageError: no task has that name, or an object comes with `output`, which it has a place for itself.
    """
    if isinstance(task, str):
        if task not in TASKS:
            raise UsageError(f"no task {task!r}; {choose_from(task, TASKS)}; or give one of xaieval.inference.tasks")
        return TASKS[task](output=output)
    if not isinstance(task, Task) or isinstance(task, type):
        raise UsageError(f"a task is a name ({', '.join(TASKS)}) or an object of xaieval.inference.tasks, got {task!r}")
    if output is not None:
        raise UsageError("give output= to the task object, not beside it")
    return task


def predicted_score(task: Task, output: Any) -> Tensor:
    """The score of what is predicted on each image, `[N]`, differentiable; of all that is read, where nothing is predicted."""
    read = task.read(output)
    followed = task.follow(read, "predicted", None)
    if followed.found.any():
        return task.score(read, followed)
    everything = [leaf.sum() for leaf in tree_leaves(read) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack(everything).sum()[None]


def describe(task: Task) -> dict[str, Any]:
    """A task as plain values for a manifest."""
    own: dict[str, Any] = {f.name: plain(getattr(task, f.name)) for f in fields(task)} if is_dataclass(task) else {}
    return {"name": type(task).__name__.lower(), **own}


def _wanted_classes(target: Target, read: Any, labels: Tensor | None, count: int) -> Tensor | None:
    """The classes `[N]` that a target names; None for what is predicted."""
    if isinstance(target, int) and target < 0:
        raise TargetError(f"target {target!r} is not 'predicted', 'label', a class index or a function")
    device = read.device if isinstance(read, Tensor) else read[0]["labels"].device
    return named_classes(target, read, labels, count, device)


def _best(labels: Tensor, scores: Tensor) -> Tensor:
    return labels[scores.argmax()] if len(labels) else labels.new_tensor(-1)


def _overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of boxes `[D, 4]` with one box; 1 of equal boxes, also where they have no area."""
    box = box.to(boxes.dtype)
    return box_iou(boxes.detach(), box[None])[:, 0].masked_fill((boxes == box).all(dim=1), 1)


def _mean_over(regions: Tensor, values: Tensor, classes: Tensor) -> Tensor:
    """Means of a class's values `[N, K, ...]` over regions `[N, ...]`; 0 for empty ones."""
    own = values[torch.arange(len(values), device=values.device), classes.clamp(min=0)]
    cells = tuple(range(1, own.ndim))
    return (own * regions).sum(dim=cells) / regions.sum(dim=cells).clamp(min=1)


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
