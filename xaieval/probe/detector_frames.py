"""Detectors that resize and pad images themselves: the part of their maps that shows the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["Frame", "frame_of"]


@dataclass(frozen=True)
class Frame:
    """The position of an image in the upper left corner of a padded one.

    Attributes:
        outer: Height and width of the padded image, in pixels.
        inner: Height and width of the part that shows the image, in pixels.
    """

    outer: tuple[int, int]
    inner: tuple[int, int]

    def cut(self, maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n y x"]:
        """Crop maps of the padded image to the image: `[N, *inner]`, or the maps unchanged if nothing is padded.

        Example:
            A map of two rows for 64 x 64 pixels; the upper 48 rows of pixels show the image:

            >>> import torch
            >>> Frame((64, 64), (48, 64)).cut(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))[0, [0, -1], 0]
            tensor([1.0000, 0.0156])
        """
        if self.inner == self.outer:
            return maps
        whole = functional.interpolate(maps[:, None], self.outer, mode="bilinear", align_corners=False)
        return whole[:, 0, : self.inner[0], : self.inner[1]]


def frame_of(output: Any) -> Frame | None:
    """Read the frame from a module's output if it is torchvision's `ImageList`, which has the padded images and their sizes."""
    for part in output if isinstance(output, tuple | list) else [output]:
        images, sizes = getattr(part, "tensors", None), getattr(part, "image_sizes", None)
        if isinstance(images, Tensor) and images.ndim == 4 and isinstance(sizes, list) and len(set(map(tuple, sizes))) == 1:
            return Frame((images.shape[2], images.shape[3]), (int(sizes[0][0]), int(sizes[0][1])))
    return None
