"""The truth by class: where the objects of each class are in an image, so that a map of the cat is compared with the cat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchvision.ops import box_iou
from torchvision.tv_tensors import TVTensor

from xaieval.config.labels import IGNORED
from xaieval.data.truth import boxes_around, inside_boxes, read_boxes
from xaieval.errors import DataError

__all__ = [
    "ANY_CLASS",
    "Truth",
    "boxes_of",
    "masks_of",
    "plain_tensor",
    "tensors_of",
    "truth_of",
]

ANY_CLASS = -1  # the class of objects that count whatever class is followed
SAME_OBJECT = 0.5  # intersection over union of a detection and the object that it is

MASKS, BOXES = ("masks", "mask"), ("boxes", "bbox_xyxy")
CLASSES = ("labels", "class_labels", "classes", "label")  # of torchvision, transformers, `Truth` and torchgeo
EXPECTED = (
    "the truth of an image is a mapping with labels [k] and masks [k, H, W] or boxes [k, 4], as torchvision's targets are, or "
    "a label map [H, W]"
)


@dataclass(frozen=True)
class Truth:
    """Where the objects of one image are, each with its class; or the class of each pixel.

    Attributes:
        classes: The class of each of k objects, int `[k]`, in the numbers of the model; -1 for an object that counts for every
            explained class.
        masks: The pixels of each object, bool `[k, H, W]`; None where only boxes are known.
        boxes: `[k, 4]`, `(x1, y1, x2, y2)` in pixels of the image; None where only masks are known.
        crowd: Whether each of the k is a group of objects drawn coarsely, bool `[k]`. Default: none is.
        ignored: Pixels that are neither object nor background, bool `[H, W]`. Default: none.
        label_map: Instead of all these, the class of each pixel, int `[H, W]`. Negative numbers are ignored pixels; so is 255,
            if the map has no larger number.

    Example:
        >>> Truth(torch.tensor([3, 3, 7]), boxes=torch.tensor([[0.0, 0, 1, 1], [2, 0, 3, 1], [0, 0, 3, 1]])).present()
        [3, 7]
    """

    classes: Tensor
    masks: Tensor | None = None
    boxes: Tensor | None = None
    crowd: Tensor | None = None
    ignored: Tensor | None = None
    label_map: Tensor | None = None

    def present(self) -> list[int]:
        """The classes that have an object in the image, in order."""
        if self.label_map is not None:
            return self.label_map[~_unlabelled(self.label_map)].unique().tolist()
        return self.classes[~self._crowd & (self.classes != ANY_CLASS)].unique().tolist()

    def of_class(self, wanted: int | None, size: Sequence[int], box: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The pixels of a class, and the pixels that are neither object nor background: bool `[H, W]` each.

        Crowds of the class are neither; those of other classes are background.

        Args:
            wanted: The class; None for the objects of all classes, which in a label map are all numbers but 0.
            size: Height and width of the image.
            box: Only the object of the class that overlaps most with this box `[4]`, if its intersection over union is at
                least 0.5. A label map does not separate objects, so its whole class is taken.
        """
        if self.label_map is not None:
            void = _unlabelled(self.label_map)
            inside = (self.label_map != 0) & ~void if wanted is None else self.label_map == wanted
            return inside, void & ~inside
        inside = self._union(self._chosen(wanted, box), size)
        ignored = self._union(self._of(wanted) & self._crowd, size)
        return inside, (ignored if self.ignored is None else ignored | self.ignored) & ~inside

    def boxes_of_class(self, wanted: int | None, size: Sequence[int], box: Tensor | None = None) -> Tensor:
        """The boxes around the objects of a class, `[k, 4]`; around all of it in a label map, which does not separate objects.

        Args:
            wanted: As in `of_class`.
            size: As in `of_class`.
            box: As in `of_class`.
        """
        if self.label_map is not None:
            inside, _ = self.of_class(wanted, size)
            return boxes_around(inside[None]) if inside.any() else torch.zeros(0, 4)
        chosen = self._chosen(wanted, box)
        if self.boxes is not None:
            return self.boxes[chosen]
        return torch.zeros(0, 4) if self.masks is None else boxes_around(self.masks[chosen])

    def by_object(self) -> Truth:
        """The truth with a mask for each class, if it is a label map; otherwise unchanged."""
        if self.label_map is None:
            return self
        classes = torch.tensor(self.present(), dtype=torch.long)
        masks = self.label_map == classes.view(-1, *[1] * self.label_map.ndim)
        return Truth(classes, masks, ignored=_unlabelled(self.label_map))

    def _of(self, wanted: int | None) -> Tensor:
        """Which objects are of a class, bool `[k]`."""
        if wanted is None:
            return torch.ones_like(self.classes, dtype=torch.bool)
        return (self.classes == wanted) | (self.classes == ANY_CLASS)

    def _chosen(self, wanted: int | None, box: Tensor | None) -> Tensor:
        """Which objects are those of `of_class`, bool `[k]`."""
        chosen = self._of(wanted) & ~self._crowd
        return chosen if box is None else self._at(box, chosen)

    @property
    def _crowd(self) -> Tensor:
        return torch.zeros_like(self.classes, dtype=torch.bool) if self.crowd is None else self.crowd

    def _union(self, chosen: Tensor, size: Sequence[int]) -> Tensor:
        """The pixels of these objects."""
        if self.masks is not None:
            return self.masks[chosen].any(dim=0)
        if self.boxes is not None:
            return inside_boxes(self.boxes[chosen], size)
        return torch.zeros(*size, dtype=torch.bool)

    def _at(self, box: Tensor, chosen: Tensor) -> Tensor:
        """The one of these objects that overlaps most with a box; none if it overlaps too little."""
        boxes = boxes_around(self.masks) if self.boxes is None and self.masks is not None else self.boxes
        if boxes is None or not chosen.any():
            return torch.zeros_like(chosen)
        overlap = box_iou(boxes, box[None].to(boxes))[:, 0].masked_fill(~chosen, 0)
        best = overlap.argmax()
        return (torch.arange(len(chosen)) == best) & (overlap >= SAME_OBJECT)


def masks_of(
    truth: Sequence[Any], classes: Tensor | None, size: Sequence[int], boxes: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The pixels of the explained class on each image, and the ignored ones: bool `[N, H, W]` each.

    Args:
        truth: Of N images, in a form that `truth_of` reads.
        classes: The class followed on each image, `[N]`; None for models without classes, to which all objects are one.
        size: Height and width of the images.
        boxes: The detection followed on each image, `[N, 4]`; None for models that do not detect.

    Returns:
        Masks, all False where the image has no such object; and the ignored pixels, None if there are none.

    Raises:
        DataError: The truth has another form, or another size than its image.
    """
    asked = _asked(truth, classes, size, boxes)
    found = [known.of_class(wanted, size, box) for known, wanted, box in asked]
    masks, ignored = (torch.stack(list(parts)) for parts in zip(*found, strict=True))
    return masks, ignored if ignored.any() else None


def boxes_of(truth: Sequence[Any], classes: Tensor | None, size: Sequence[int], boxes: Tensor | None = None) -> list[Tensor]:
    """The boxes around the objects of the explained class on each image, N times `[k, 4]`.

    Args:
        truth: As in `masks_of`.
        classes: As in `masks_of`.
        size: Height and width of the images.
        boxes: The detection followed on each image, `[N, 4]`.

    Raises:
        DataError: The truth has another form, or another size than its image.
    """
    return [known.boxes_of_class(wanted, size, box) for known, wanted, box in _asked(truth, classes, size, boxes)]


def _asked(
    truth: Sequence[Any], classes: Tensor | None, size: Sequence[int], boxes: Tensor | None
) -> Iterator[tuple[Truth, int | None, Tensor | None]]:
    """For each image its truth, the class and the box that are followed."""
    followed = [None] * len(truth) if classes is None else classes.tolist()
    for number, (given, wanted) in enumerate(zip(truth, followed, strict=True)):
        yield truth_of(given, size), wanted, None if boxes is None else boxes[number].cpu()


def truth_of(given: Any, size: Sequence[int]) -> Truth:
    """The truth of an image, as given in a batch.

    Args:
        given: A `Truth`; a mapping with "labels" `[k]`, and "masks" `[k, H, W]` or "boxes" `[k, 4]` or both, and perhaps
            "iscrowd" `[k]`, as torchvision's targets are; or a label map `[H, W]`.
        size: Height and width of the image.

    Raises:
        DataError: It has another form, or another size.

    Example:
        >>> truth_of({"boxes": torch.tensor([[0, 0, 2, 1]]), "labels": torch.tensor([5])}, (1, 3)).of_class(5, (1, 3))[0]
        tensor([[ True,  True, False]])
    """
    if isinstance(given, Truth):
        truth = Truth(**_on_cpu(vars(given)))
    elif isinstance(given, Mapping):
        truth = _of_mapping(given, size)
    else:
        truth = _of_map(given)
    for what, value in (("masks", truth.masks), ("a label map", truth.label_map), ("ignored pixels", truth.ignored)):
        if value is not None and tuple(value.shape[-len(size) :]) != tuple(size):
            raise DataError(
                f"the truth has {what} of {list(value.shape[-len(size) :])} pixels for an image of {list(size)}; resize and "
                "crop both alike, as torchvision's transforms do with tv_tensors"
            )
    return truth


def tensors_of(given: Any) -> list[Tensor]:
    """The tensors in the truth of an image, in any form."""
    return [leaf for leaf in tree_leaves(vars(given) if isinstance(given, Truth) else given) if isinstance(leaf, Tensor)]


# ---- one image


def _on_cpu(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else value.cpu() for name, value in tensors.items()}


def _of_mapping(given: Mapping[Any, Any], size: Sequence[int]) -> Truth:
    classes, masks, boxes = (_first(given, keys) for keys in (CLASSES, MASKS, BOXES))
    if masks is None and boxes is None:  # torchvision has targets without boxes where an image has no objects
        return Truth(torch.zeros(0, dtype=torch.long))
    if classes is None:
        raise DataError(f"{EXPECTED}; got a mapping with {', '.join(map(str, given))}")
    known = plain_tensor(classes).long().reshape(-1).cpu()
    pixels = None if masks is None else (plain_tensor(masks) != 0).reshape(-1, *plain_tensor(masks).shape[-len(size) :]).cpu()
    around = None if boxes is None else (read_boxes([boxes], 1, size[-2:]) or [])[0].cpu()
    crowd = None if given.get("iscrowd") is None else plain_tensor(given["iscrowd"]).bool().reshape(-1).cpu()
    for what, value in (("masks", pixels), ("boxes", around), ("iscrowd", crowd)):
        if value is not None and len(value) != len(known):
            raise DataError(f"{EXPECTED}; got {len(known)} labels and {what} of {len(value)} objects")
    return Truth(known, pixels, around, crowd)


def _of_map(given: Any) -> Truth:
    label_map = plain_tensor(given)
    if label_map.ndim < 2 or (label_map.is_floating_point() and not bool((label_map == label_map.round()).all())):
        raise DataError(f"{EXPECTED}; got {str(label_map.dtype).removeprefix('torch.')} {list(label_map.shape)}")
    if label_map.ndim == 3 and len(label_map) == 1:
        label_map = label_map[0]
    return Truth(torch.zeros(0, dtype=torch.long), label_map=label_map.long().cpu())


def _unlabelled(label_map: Tensor) -> Tensor:
    """The pixels of a label map that have no class."""
    void = label_map < 0
    return void if (label_map > IGNORED).any() else void | (label_map == IGNORED)


def plain_tensor(given: Any) -> Tensor:
    """An array of any kind as a tensor.

    Raises:
        DataError: It is not an array.
    """
    try:
        found = given if isinstance(given, Tensor) else torch.as_tensor(np.array(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{EXPECTED}; got a {type(given).__name__} that is not an array: {error}") from error
    return found.as_subclass(Tensor) if isinstance(found, TVTensor) else found


def _first(given: Mapping[Any, Any], keys: Sequence[str]) -> Any:
    return next((given[key] for key in keys if given.get(key) is not None), None)
