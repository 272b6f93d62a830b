"""Models of transformers whose queries predict boxes or masks: their outputs as detections or as classes of pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xaieval.errors import ModelError
from xaieval.inference.forward_passes import Forward, called
from xaieval.inference.options import Inference
from xaieval.inference.query_detections import query_detections
from xaieval.inference.query_masks import query_instances, query_segmentation
from xaieval.inference.tasks import Detection, Segmentation, Task
from xaieval.inference.yolo_detections import grid_detector

__all__ = ["QueryDecoder", "with_known_output"]

# Weights in the loss of the class "no object", which a configuration has if the model has that class.
NO_OBJECT = ("no_object_weight", "eos_coefficient")


def with_known_output(inference: Inference, task: Task, model: nn.Module) -> tuple[Inference, Task]:
    """The options and the task with outputs of a known form decoded: of queries in transformers, of grids in ultralytics.

    They are the same for any other model or task. A segmenter with a class of no object has no class for the background, so
    that the task that a name chose follows any class.
    """
    config = _configuration(model)
    if not isinstance(task, Detection | Segmentation) or task.output is not None:
        return inference, task
    if config is None:
        grid = grid_detector(model, inference.forward) if isinstance(task, Detection) else None
        return replace(inference, forward=grid or inference.forward), task
    if isinstance(task, Segmentation) and isinstance(inference.task, str) and any(hasattr(config, name) for name in NO_OBJECT):
        task = replace(task, background=None)
    decoder = QueryDecoder(config.num_labels, isinstance(task, Segmentation), inference.forward)
    return replace(inference, forward=decoder), task


def _configuration(model: nn.Module) -> Any:
    """The configuration, with a number of classes, of a model of transformers, which may be inside of others."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((config for config in configs if isinstance(getattr(config, "num_labels", None), int)), None)


@dataclass(frozen=True)
class QueryDecoder:
    """Runs a model and decodes its queries; outputs without queries are unchanged.

    Args:
        classes: Number of classes of the model.
        segments: Whether masks become classes of pixels; otherwise boxes, or the boxes of masks, become detections.
        forward: Runs the model. Default: `model(images)`.

    Raises:
        ModelError: When called: the queries' outputs do not fit the classes or the task.
    """

    classes: int
    segments: bool = False
    forward: Forward | None = None

    def __call__(self, model: nn.Module, images: Tensor) -> Any:
        """The detections on these images, or the logits of their pixels."""
        output = called(model, self.forward)(images)
        boxes = _tensor(output, "pred_boxes")
        logits = _tensor(output, "class_queries_logits", "logits")
        masks = _tensor(output, "masks_queries_logits", "pred_masks")
        size = (images.shape[-2], images.shape[-1])
        if logits is None or logits.ndim != 3:
            return output
        if boxes is not None and not self.segments:
            # Of a model that finds what texts name, each text is a class.
            classes = logits.shape[2] if _tensor(output, "text_embeds") is not None else self.classes
            return query_detections(boxes, logits, size, classes)
        if masks is None:
            return output
        self._check_no_object(logits)
        return query_segmentation(masks, logits) if self.segments else query_instances(masks, logits, size)

    def _check_no_object(self, logits: Tensor) -> None:
        if logits.shape[2] != self.classes + 1:
            raise ModelError(
                f"the model has {logits.shape[2]} logits for each query and {self.classes} classes; of a segmenter by queries, "
                "one logit more is expected, that of no object; give output=, a function that returns logits [N, K, h, w], or "
                "take task='detection'"
            )


def _tensor(output: Any, *names: str) -> Tensor | None:
    """The first of these fields of an output that is a tensor."""
    found = (getattr(output, name, None) for name in names)
    return next((one for one in found if isinstance(one, Tensor)), None)
