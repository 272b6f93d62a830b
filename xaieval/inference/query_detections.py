"""Detections of models that predict boxes from queries, such as DETR of transformers, in the form that torchvision gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torchvision.ops import box_convert

from xaieval.errors import ModelError
from xaieval.inference.forward_passes import Forward, called
from xaieval.inference.options import Inference
from xaieval.inference.targets import describe_value
from xaieval.inference.tasks import Detection, Task
from xaieval.inference.yolo_detections import grid_detector

__all__ = ["QueryDetector", "query_detections", "with_detections"]


def with_detections(inference: Inference, task: Task, model: nn.Module) -> Inference:
    """Return the options with the boxes of a detector decoded, whose form is known: transformers' and ultralytics'.

    The options are the same for any other model or task.
    """
    if not isinstance(task, Detection) or task.output is not None:
        return inference
    classes = _configured_classes(model)
    if classes is not None:
        return replace(inference, forward=QueryDetector(classes, inference.forward))
    return replace(inference, forward=grid_detector(model, inference.forward) or inference.forward)


def _configured_classes(model: nn.Module) -> int | None:
    """The number of classes in the configuration of a model of transformers, which may be inside of others."""
    counts = (getattr(getattr(module, "config", None), "num_labels", None) for module in model.modules())
    return next((count for count in counts if isinstance(count, int)), None)


@dataclass(frozen=True)
class QueryDetector:
    """Runs a model and converts its boxes of queries to detections; outputs without such boxes are unchanged.

    Args:
        classes: Number of classes of the model.
        forward: Runs the model. Default: `model(images)`.
    """

    classes: int
    forward: Forward | None = None

    def __call__(self, model: nn.Module, images: Tensor) -> Any:
        """The detections on these images."""
        output = called(model, self.forward)(images)
        boxes, logits = (getattr(output, name, None) for name in ("pred_boxes", "logits"))
        if not isinstance(boxes, Tensor) or not isinstance(logits, Tensor):
            return output
        return query_detections(boxes, logits, (images.shape[-2], images.shape[-1]), self.classes)


def query_detections(boxes: Tensor, logits: Tensor, size: tuple[int, int], classes: int) -> list[dict[str, Tensor]]:
    """Convert boxes and logits of queries to detections: for each image "boxes" in pixels, "labels" and "scores", best first.

    The probabilities of all classes of each query are "probabilities" `[Q, K]`, and "queries" has the query of each box.

    Each query is a detection of every class, as in torchvision's Faster R-CNN, so that the score of a class is known also where
    another one is higher. With one logit more than classes, the last one is that of no object, and scores are a softmax (DETR,
    YOLOS); with as many logits as classes, scores are sigmoids (Deformable DETR, RT-DETR).

    Args:
        boxes: Centres, widths and heights `[N, Q, 4]` in shares of the image.
        logits: Logits `[N, Q, K]` or `[N, Q, K + 1]`.
        size: Height and width of the images.
        classes: Number of classes, K.

    Raises:
        ModelError: The number of logits is another one.

    Example:
        >>> import torch
        >>> boxes, logits = torch.tensor([[[0.5, 0.5, 1.0, 0.5]]]), torch.tensor([[[0.0, 1.0, 0.0]]])
        >>> (found,) = query_detections(boxes, logits, (8, 16), classes=2)
        >>> found["boxes"].tolist(), found["labels"].tolist(), [round(s, 3) for s in found["scores"].tolist()]
        ([[0.0, 2.0, 16.0, 6.0], [0.0, 2.0, 16.0, 6.0]], [1, 0], [0.576, 0.212])
    """
    count = logits.shape[2]
    if count not in (classes, classes + 1):
        raise ModelError(
            f"the detector has {describe_value(logits)} as logits, and its configuration {classes} classes; {classes} logits "
            f"for each query are expected, or {classes + 1} with the one of no object; give task=Detection(output=...), a "
            "function that returns boxes, labels and scores"
        )
    corners = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([size[1], size[0]] * 2)
    scores = logits.sigmoid() if count == classes else logits.softmax(dim=2)[..., :-1]
    return [_sorted(one, of_each) for one, of_each in zip(corners, scores, strict=True)]


def _sorted(boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    """The detections of an image, best first, from boxes `[Q, 4]` and their scores of each class `[Q, K]`."""
    order = scores.detach().flatten().argsort(descending=True)
    queries = order // scores.shape[1]
    return {
        "boxes": boxes[queries],
        "labels": order % scores.shape[1],
        "scores": scores.flatten()[order],
        "probabilities": scores,
        "queries": queries,
    }
