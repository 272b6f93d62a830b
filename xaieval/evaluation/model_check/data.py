"""What the data says: boxes that belong to larger images, and pictures that a folder's loader leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from xaieval.data.batches import Batch
from xaieval.results.findings import Finding

__all__ = ["find_in_data"]

BEYOND = 0.05  # of the image's side, more than rounding and objects at the border explain
MOST_BEYOND = 0.5  # share of images with boxes
PICTURES = (".heic", ".heif", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw")
PLACES = ("image beside the class folders", "link to a folder")  # where pictures are left out


def find_in_data(batch: Batch, loader: Any) -> list[Finding]:
    """Check the boxes of the first batch, and what the loader's data set has left out.

    Args:
        batch: The first batch that has a readable image.
        loader: Whose `dataset.left_out` counts files by kind, if it has one.
    """
    left_out = getattr(getattr(loader, "dataset", None), "left_out", None)
    return [*_boxes_beyond(batch), *(_left_out(left_out) if isinstance(left_out, Mapping) else [])]


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
        f"far as the image of {height} x {width} pixels reaches, as those of the pictures before they were resized do; scale "
        "boxes with their images, as transforms of torchvision do with tv_tensors.BoundingBoxes"
    )
    return [Finding("boxes_beyond_image", text, {"images": len(boxes), "beyond": beyond, "reach": float(reach.max())})]


def _left_out(counts: Mapping[str, int]) -> list[Finding]:
    """Pictures that are not in the data; other files, such as texts, are no reason to doubt numbers."""
    pictures = {kind: count for kind, count in counts.items() if kind.lower() in PICTURES or kind in PLACES}
    if not pictures:
        return []
    listed = ", ".join(f"{count} {kind}" for kind, count in pictures.items())
    text = (
        f"pictures of the folder are left out: {listed}; convert them, or move them into a class folder, to have them counted"
    )
    return [Finding("pictures_left_out", text, dict(pictures))]
