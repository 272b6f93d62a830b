"""Detections of networks that predict a box and class scores at each cell of their neck, such as those of Ultralytics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, nms

from xaieval.errors import ModelError, UsageError
from xaieval.inference.forward_passes import Forward, called

__all__ = ["GridDetector", "Suppression", "grid_detections", "grid_detector"]

CANDIDATES = 0.001  # the smallest score of a box that the followed object is looked for in; that of ultralytics' validation
LEAST = 1e-12  # stands for a score of 0, whose logit is infinite
FAR = 7680  # pixels between the boxes of two classes, so that they do not suppress each other


@dataclass(frozen=True)
class Suppression:
    """Which boxes are detections: the settings that ultralytics keeps in `args` of a network, with its defaults.

    Attributes:
        conf: The smallest score of a detection, in [0, 1].
        iou: The largest intersection over union of two detections of one class.
        max_det: The largest number of detections of an image.
        agnostic_nms: Whether boxes of different classes suppress each other too.

    Raises:
        UsageError: A number is out of range.
    """

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    agnostic_nms: bool = False

    def __post_init__(self) -> None:
        if not (0 <= self.conf <= 1 and 0 <= self.iou <= 1 and self.max_det >= 1):
            raise UsageError(f"conf and iou of detections lie in [0, 1], and max_det is at least 1; got {self}")

    def __call__(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """The numbers of the boxes `[D, 4]` that remain, best first."""
        apart = 0 if self.agnostic_nms else FAR
        return nms(boxes.float() + apart * labels[:, None], scores.float(), self.iou)[: self.max_det]


def grid_detector(model: nn.Module, forward: Forward | None = None) -> GridDetector | None:
    """How to run a network whose head has strides and classes, as that of ultralytics; None for any other model."""
    strides = next((module.stride for module in model.modules() if _is_head(module)), None)
    if not isinstance(strides, Tensor):
        return None
    holders = (getattr(module, "args", None) for module in model.modules())
    args = next((one for one in holders if isinstance(one, Mapping) or hasattr(one, "__dict__")), {})
    given = args if isinstance(args, Mapping) else vars(args)
    names = Suppression.__dataclass_fields__
    suppression = Suppression(**{name: given[name] for name in names if given.get(name) is not None})
    return GridDetector(suppression, int(strides.max()), forward)


def _is_head(module: nn.Module) -> bool:
    classes, strides = getattr(module, "nc", None), getattr(module, "stride", None)
    return isinstance(classes, int) and isinstance(strides, Tensor)


@dataclass(frozen=True)
class GridDetector:
    """Runs a model and converts its boxes at cells to detections; outputs without such boxes are unchanged.

    Args:
        suppression: Which boxes are detections.
        stride: The largest stride of the network, in pixels; sides of images are multiples of it.
        forward: Runs the model. Default: `model(images)`.
    """

    suppression: Suppression
    stride: int = 1
    forward: Forward | None = None

    def __call__(self, model: nn.Module, images: Tensor) -> Any:
        """The detections on these images.

        Raises:
            ModelError: A side of the images is no multiple of the stride, or the boxes are rotated.
        """
        sides = tuple(images.shape[2:])
        if any(side % max(self.stride, 1) for side in sides):
            raise ModelError(
                f"the images are {' x '.join(map(str, sides))} pixels, and the network halves them down to a stride of "
                f"{self.stride}; resize or pad them to multiples of {self.stride}"
            )
        output = called(model, self.forward)(images)
        found = _parts(output)
        return output if found is None else grid_detections(*found, self.suppression)


def grid_detections(boxes: Tensor, logits: Tensor, suppression: Suppression) -> list[dict[str, Tensor]]:
    """Convert decoded boxes and the logits of their classes to detections, in the form that torchvision gives.

    A detection is a box whose best class has a score above `conf`, and that no better box of its class suppresses. Of
    end-to-end heads, it is one of the boxes that the head selects. These are marked in "found". The list has all other pairs of
    a box and a class too, down to a score of 0.001, by which an object is found again on a masked image: its score is known
    where it falls below `conf`, or where another class is higher.

    Args:
        boxes: Centres, widths and heights in pixels, with the scores of all classes, `[N, 4 + K + ..., A]`; or the rows
            `(x1, y1, x2, y2, score, class, ...)` that an end-to-end head selects, `[N, D, 6 + ...]`.
        logits: Class scores before the sigmoid, `[N, K, A]`.
        suppression: Which boxes are detections.

    Returns:
        For each image "boxes" `[D, 4]`, "labels" `[D]`, "scores" `[D]`, "logits" `[D]`, "floor" `[]`, "found" `[D]`,
        "probabilities" `[A, K]`, "queries" `[D]` and "objectness" `[D]`, as `Detection` reads them. The head has no objectness;
        the score stands for it.

    Example:
        >>> boxes = torch.tensor([[[4.0, 5.0], [4.0, 4.0], [4.0, 4.0], [4.0, 4.0], [0.9, 0.8], [0.1, 0.1]]])  # two, K = 2
        >>> (one,) = grid_detections(boxes, boxes[:, 4:].logit(), Suppression(iou=0.5))
        >>> one["boxes"][one["found"]].tolist(), one["labels"][one["found"]].tolist(), len(one["labels"])
        ([[2.0, 2.0, 6.0, 6.0]], [0], 4)
    """
    floor = max(min(CANDIDATES, suppression.conf), LEAST)
    make = _of_cells if _is_of_cells(boxes, logits) else _of_rows
    return [
        {**make(one, of_image.transpose(0, 1), suppression, floor), "floor": logits.new_tensor(math.log(floor / (1 - floor)))}
        for one, of_image in zip(boxes, logits, strict=True)
    ]


def _parts(output: Any) -> tuple[Tensor, Tensor] | None:
    """The boxes and the logits in a network's output; None if it has another form.

    Raises:
        ModelError: The boxes are rotated.
    """
    if not isinstance(output, tuple | list) or len(output) != 2 or not isinstance(output[1], Mapping):
        return None
    boxes, raw = output
    boxes = boxes[0] if isinstance(boxes, tuple | list) else boxes  # with the prototypes of masks
    branches = [raw, raw.get("one2many"), raw.get("one2one")]
    known = [one for one in branches if isinstance(one, Mapping) and isinstance(one.get("scores"), Tensor)]
    if not isinstance(boxes, Tensor) or not known:
        return None
    if any("angle" in one for one in known):
        raise ModelError(
            "the model predicts rotated boxes, and a detection is followed by an upright one; give task=Detection(output=...), "
            "a function that returns upright boxes, labels and scores"
        )
    of_cells = _is_of_cells(boxes, known[0]["scores"])
    return boxes, known[0 if of_cells else -1]["scores"]


def _is_of_cells(boxes: Tensor, logits: Tensor) -> bool:
    """Whether the boxes of all cells are given, and not those that an end-to-end head selects."""
    return boxes.shape[2] == logits.shape[2] and boxes.shape[1] >= 4 + logits.shape[1]


def _of_cells(cells: Tensor, logits: Tensor, suppression: Suppression, floor: float) -> dict[str, Tensor]:
    """The detections of an image from the boxes of all cells `[4 + K + ..., A]` and the logits `[A, K]`."""
    boxes, scores = box_convert(cells[:4].transpose(0, 1), "cxcywh", "xyxy"), logits.sigmoid()
    best, of = scores.detach().max(dim=1)
    high = (best > suppression.conf).nonzero()[:, 0]
    kept = high[suppression(boxes[high].detach(), best[high], of[high])]
    found = torch.zeros_like(scores, dtype=torch.bool)
    found[kept, of[kept]] = True
    queries, labels = (scores.detach() > floor).nonzero(as_tuple=True)
    return _detections(boxes[queries], labels, queries, logits, scores, found[queries, labels])


def _of_rows(rows: Tensor, logits: Tensor, suppression: Suppression, floor: float) -> dict[str, Tensor]:
    """The detections of an image from the rows `[D, 6 + ...]` of an end-to-end head, best first, and the logits `[A, K]`."""
    rows, scores = rows[rows[:, 4].detach() > floor], logits.sigmoid()
    labels = rows[:, 5].long()
    queries = (scores[:, labels] - rows[:, 4]).detach().abs().argmin(dim=0)  # the head does not say which cells it selects
    found = rows[:, 4].detach() > suppression.conf
    return _detections(rows[:, :4], labels, queries, logits, scores, found & (found.cumsum(dim=0) <= suppression.max_det))


def _detections(
    boxes: Tensor, labels: Tensor, queries: Tensor, logits: Tensor, scores: Tensor, found: Tensor
) -> dict[str, Tensor]:
    """The tensors of an image's detections, from the boxes, classes and cells of each, and the predictions of all cells."""
    return {
        "boxes": boxes,
        "labels": labels,
        "scores": scores[queries, labels],
        "logits": logits[queries, labels],
        "found": found,
        "probabilities": scores,
        "queries": queries,
        "objectness": scores[queries, labels],
    }
