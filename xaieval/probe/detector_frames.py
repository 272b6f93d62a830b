"""Detectors that resize and pad images inside: which part of their maps shows the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["Frame", "frame_of"]


@dataclass(frozen=True)
class Frame:
    """An image inside a larger one, in the upper left corner.

    Attributes:
        outer: height and width of what the model works on, in pixels.
        inner: height and width of the part that shows the image, likewise.
    """

    outer: tuple[int, int]
    inner: tuple[int, int]

    def cut(self, maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n y x"]:
        """The part of maps of everything that shows the image; `[N, *inner]`, or the maps themselves if nothing is padded.

        Example:
            A map of two rows for 64 x 64 pixels, of which the upper 48 show the image:

            >>> import torch
            >>> Frame((64, 64), (48, 64)).cut(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))[0, [0, -1], 0]
            tensor([1.0000, 0.0156])
        """
        if self.inner == self.outer:
            return maps
        whole = functional.interpolate(maps[:, None], self.outer, mode="bilinear", align_corners=False)
        return whole[:, 0, : self.inner[0], : self.inner[1]]


def frame_of(output: Any) -> Frame | None:
    """The frame that a module's output tells of: torchvision's `ImageList` has the padded images beside their sizes."""
    for part in output if isinstance(output, tuple | list) else [output]:
        images, sizes = getattr(part, "tensors", None), getattr(part, "image_sizes", None)
        if isinstance(images, Tensor) and images.ndim == 4 and isinstance(sizes, list) and len(set(map(tuple, sizes))) == 1:
            return Frame((images.shape[2], images.shape[3]), (int(sizes[0][0]), int(sizes[0][1])))
    return None
