"""Detections of one image as a mapping of tensors, and how they compare with the detection that is followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from xaieval.errors import ModelError
from xaieval.inference.targets import describe_value

__all__ = [
    "Detections",
    "best_class",
    "best_match",
    "overlap",
    "pick",
    "probabilities_of",
    "read_detections",
    "reported",
    "similarity",
]

Detections = Sequence[dict[str, Tensor]]

KEYS = ("boxes", "labels", "scores")
OPTIONAL = ("probabilities", "queries", "objectness", "logits", "floor", "found")


def read_detections(output: Any) -> Detections:
    """The known tensors of each image's detections: "boxes", "labels", "scores", and what the model gives of the optional ones.

    Raises:
        ModelError: The output is not one mapping per image with these tensors, only some images have probabilities, there are
            not as many of them as boxes, or there are logits without the floor.
    """
    if not isinstance(output, tuple | list) or not all(isinstance(one, dict) and {*KEYS} <= one.keys() for one in output):
        raise ModelError(
            f"the model's output has no detections: got {describe_value(output)}; one mapping per image with 'boxes', "
            "'labels' and 'scores' is expected; say where they are with output= (a key, an index, or a function of the output)"
        )
    if len({"probabilities" in one for one in output}) > 1:
        raise ModelError("some images have 'probabilities' and some have none; all are expected, [0, K] where nothing is found")
    for one in output:
        if "probabilities" in one and "queries" not in one and len(one["probabilities"]) != len(one["boxes"]):
            raise ModelError(
                f"an image has {len(one['boxes'])} boxes and 'probabilities' {list(one['probabilities'].shape)}; one row for "
                "each box is expected, or 'queries' with the number of the row of each box"
            )
        if "logits" in one and "floor" not in one:
            raise ModelError("an image has 'logits' without 'floor', the logit that stands for an object that is not found")
    return [{key: one[key] for key in (*KEYS, *OPTIONAL) if key in one} for one in output]


def reported(one: dict[str, Tensor]) -> Tensor:
    """Which detections the model reports, `[D]`; the others only serve to find one of them again."""
    return one["found"] if "found" in one else torch.ones_like(one["labels"], dtype=torch.bool)


def best_class(one: dict[str, Tensor]) -> Tensor:
    """The class of the highest score; -1 if nothing is detected."""
    labels, scores = (one[key][reported(one)] for key in ("labels", "scores"))
    return labels[scores.argmax()] if len(labels) else labels.new_tensor(-1)


def overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """Intersection over union of boxes `[D, 4]` with one box; 1 for equal boxes, even without area."""
    box = box.to(boxes.dtype)
    return box_iou(boxes.detach(), box[None])[:, 0].masked_fill((boxes == box).all(dim=1), 1)


def pick(
    one: dict[str, Tensor], label: Tensor | None, box: Sequence[float] | None, least: float, threshold: float
) -> Tensor | None:
    """The number of the detection to follow: the best one, of one class or of all; None if none has a score of the threshold.

    With a box, it is the one that overlaps most with it, and at least so much.
    """
    fits = reported(one) & (one["scores"] >= threshold)
    fits = fits if label is None else fits & (one["labels"] == label)
    rank = one["scores"].detach() if box is None else overlap(one["boxes"], one["boxes"].new_tensor(box))
    fits = fits & (rank >= (0 if box is None else least))
    return rank.masked_fill(~fits, -1).argmax() if fits.any() else None


def best_match(one: dict[str, Tensor], label: Tensor, box: Tensor, least: float, key: str = "scores") -> Tensor:
    """The highest score or logit of the detections of one class that overlap with a box at least so much, differentiable.

    If there are none, it is 0 for scores, and the floor for logits.
    """
    same = (one["labels"] == label) & (overlap(one["boxes"], box) >= least)
    lost = one[key].sum() * 0 + (one["floor"] if key == "logits" else 0)
    return one[key][same].max() if same.any() else lost


def probabilities_of(one: dict[str, Tensor], number: Tensor) -> Tensor:
    """The probabilities of all classes `[K]` of the detection with this number."""
    return one["probabilities"][one["queries"][number] if "queries" in one else number]


def similarity(one: dict[str, Tensor], label: Tensor, box: Tensor, probabilities: Tensor | None = None) -> Tensor:
    """How well an image's detections match one detection: the similarity of the best match, in [0, 1]; 0 if there are none.

    The similarity of two detections is the product of their intersection over union, the cosine similarity of their class
    probabilities, and the objectness, if there is one. Where only the score of the best class is known, it is the product of
    the intersection over union and the score, for the same class, and 0 for another class.

    Args:
        one: The detections of the image.
        label: The class of the detection that they are compared with.
        box: Its box, `[4]`.
        probabilities: Its probabilities of all classes, `[K]`, if the model gives them.

    Reference:
        Petsiuk et al., "Black-box Explanation of Object Detectors via Saliency Maps", CVPR 2021 (arXiv 2006.03204), section
        3.2.

    Example:
        >>> import torch
        >>> found = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.8])}
        >>> similarity(found, torch.tensor(1), torch.tensor([0.0, 0, 4, 8]))
        tensor(0.4000)
    """
    if not len(one["labels"]):
        return one["scores"].new_zeros(())
    if probabilities is None:
        alike = one["scores"] * (one["labels"] == label)
    else:
        alike = functional.cosine_similarity(one["probabilities"], probabilities[None], dim=1)
        alike = (alike[one["queries"]] if "queries" in one else alike) * one.get("objectness", 1)
    return (overlap(one["boxes"], box) * alike).max()
