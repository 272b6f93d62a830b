"""What the data says: boxes of larger images, pixels without data, and images that a folder's loader leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.data.truth_by_class import ANY_CLASS, truth_of
from xaieval.errors import advice
from xaieval.results.findings import Finding

__all__ = ["OTHER_CLASSES", "find_in_data", "find_other_classes"]

OTHER_CLASSES = "truth_of_other_classes"
LEAST = 2  # images with objects and a target
BEYOND = 0.05  # of the image's side, more than rounding and objects at the border explain
MOST_BEYOND = 0.5  # share of images with boxes
FAR_BELOW = -4.0  # of normalised images; black is about -2
MANY = 0.005  # share of an image's pixels
PICTURES = (".heic", ".heif", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw")
PLACES = ("image beside the class folders", "link to a folder")  # where images are left out


def find_in_data(batch: Batch, loader: Any) -> list[Finding]:
    """Check the boxes and pixels of the first batch, and what the loader's data set has left out.

    Args:
        batch: The first batch that has a readable image.
        loader: Whose `dataset.left_out` counts files by kind, if it has one.
    """
    left_out = getattr(getattr(loader, "dataset", None), "left_out", None)
    return [
        *_boxes_beyond(batch),
        *_without_data(batch.images),
        *(_left_out(left_out) if isinstance(left_out, Mapping) else []),
    ]


def find_other_classes(batch: Batch, followed: Sequence[int]) -> list[Finding]:
    """Whether no class that is followed on the first images is one of the truth, as where the numbers mean different things.

    Args:
        batch: The first images, with their truth.
        followed: The classes of those that have a target.
    """
    known = [truth_of(one, batch.images.shape[2:]) for one in batch.truth or ()]
    with_objects = [one.present() for one in known if one.present()]
    classes = sorted({number for present in with_objects for number in present})
    unclassed = any((one.classes == ANY_CLASS).any() for one in known)
    if min(len(with_objects), len(followed)) < LEAST or unclassed or {*classes} & {*followed}:
        return []
    text = (
        f"the truth of the first {len(with_objects)} images with objects has the classes {_few(classes)}, and none of them is "
        f"followed: the model's are {_few(sorted({*followed}))}; metrics that compare maps with objects have no value there; "
        "give the classes of the truth the model's numbers"
    )
    return [Finding(OTHER_CLASSES, text, {"truth": classes[:20], "followed": sorted({*followed})[:20]})]


def _few(numbers: Sequence[int]) -> str:
    """The first numbers of a list in words."""
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def _boxes_beyond(batch: Batch) -> list[Finding]:
    """Whether boxes are those of larger images: they end beyond theirs, but do not begin before it, as those of crops do."""
    boxes = [one for one in batch.boxes or [] if len(one)]
    height, width = batch.images.shape[-2:]
    if not boxes or float(torch.cat(boxes).min()) < 0:
        return []
    reach = torch.stack([(one[:, 2:].amax(dim=0) / one.new_tensor([width, height])).max() for one in boxes])
    beyond = int((reach > 1 + BEYOND).sum())
    if beyond <= MOST_BEYOND * len(boxes):
        return []
    text = (
        f"boxes end beyond {beyond} of the first {len(boxes)} images that have some, up to {float(reach.max()):.2g} times as "
        f"far as the image of {height} x {width} pixels reaches, as those of the images before they were resized do; scale "
        "boxes with their images, as transforms of torchvision do with tv_tensors.BoundingBoxes"
    )
    return [Finding("boxes_beyond_image", text, {"images": len(boxes), "beyond": beyond, "reach": float(reach.max())})]


def _without_data(images: Tensor) -> list[Finding]:
    """Whether pixels have one and the same value far below all others in every channel, such as -9999 after normalisation."""
    flat = images.detach().flatten(2).float()
    lowest = flat.amin(dim=2, keepdim=True)
    missing = (flat == lowest).all(dim=1, keepdim=True)
    others = flat.masked_fill(missing, torch.inf).amin(dim=2), flat.masked_fill(missing, -torch.inf).amax(dim=2)
    far = (lowest[:, :, 0] < FAR_BELOW) & (others[0] - lowest[:, :, 0] > others[1] - others[0])
    share = missing.float().mean(dim=(1, 2))
    found = far.all(dim=1) & (share > MANY) & (share < 1)
    if not found.any():
        return []
    count, most, value = int(found.sum()), float(share[found].max()), float(lowest[found][0, 0])
    text = (
        f"{count} of the first {len(images)} images have pixels, up to {100 * most:.2g} %, with one value far below all others "
        f"in every channel ({value:.4g} in the first), as pixels without data have; give them the mean of their channel before "
        f"the model sees them (0 after normalisation), for arrays in files by {advice('Preprocessing(nodata=...)', '--nodata')}"
    )
    return [Finding("pixels_without_data", text, {"images": len(images), "with_such_pixels": count, "value": value})]


def _left_out(counts: Mapping[str, int]) -> list[Finding]:
    """Images that are not in the data; other files, such as texts, are no reason to doubt numbers."""
    pictures = {kind: count for kind, count in counts.items() if kind.lower() in PICTURES or kind in PLACES}
    if not pictures:
        return []
    listed = ", ".join(f"{count} {kind}" for kind, count in pictures.items())
    text = f"images of the folder are left out: {listed}; convert them, or move them into a class folder, to have them counted"
    return [Finding("images_left_out", text, dict(pictures))]
