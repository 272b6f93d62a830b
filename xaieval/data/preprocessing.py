"""From a picture to the tensor that a model expects, and back for display."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from xaieval.data.decoding import MOST_PIXELS
from xaieval.errors import DataError, choose_from

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocessing"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to [0, 1], normalise: the evaluation transform of image classifiers.

    Attributes:
        image_size: side of the square crop, in pixels.
        resize: shorter side before the crop, in pixels.
        mean: subtracted, per channel, in [0, 1].
        std: divided by, per channel.
        interpolation: "bilinear", "bicubic" or "nearest", antialiased.
        squash: resize both sides to `resize`, whatever the picture's proportions.
    """

    image_size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in (known := [mode.value for mode in InterpolationMode]):
            raise DataError(f"no interpolation {self.interpolation!r}; {choose_from(self.interpolation, known)}")
        if not 1 <= self.image_size <= self.resize:
            raise DataError(f"an image is resized to at least its crop: got {self.resize} px for a crop of {self.image_size}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DataError(f"mean and std are three numbers each, std positive; got {self.mean} and {self.std}")

    def with_size(self, image_size: int) -> Preprocessing:
        """The same with another crop, the share of the picture that the crop shows kept."""
        resize = round(image_size * self.resize / self.image_size)
        return replace(self, image_size=image_size, resize=resize)

    def __call__(self, picture: Image.Image) -> Float[Tensor, "3 s s"]:
        """The normalised tensor of an RGB picture.

        Raises:
            ValueError: it is so long and thin that it would have too many pixels when its shorter side is resized.
        """
        self._check_shape(picture)
        steps = v2.Compose(
            [
                *self._placing(InterpolationMode(self.interpolation)),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
            ]
        )
        tensor: Tensor = steps(picture)
        return tensor

    def mask(self, mask: Image.Image) -> Bool[Tensor, "s s"]:
        """Where the object is on the tensor: pixels of which it covers at least half.

        Args:
            mask: of the picture's size, white on black, mode "L".

        Raises:
            ValueError: as for a picture.
        """
        self._check_shape(mask)
        steps = v2.Compose([*self._placing(InterpolationMode.BILINEAR), v2.PILToTensor()])
        placed: Tensor = steps(mask)[0] >= 128
        return placed

    def boxes(self, boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "j 4"]:
        """Boxes on the tensor, cut off at its border; those that lie outside are left out.

        Args:
            boxes: `(x1, y1, x2, y2)` in pixels of the picture.
            size: width and height of the picture.
        """
        given = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(size[1], size[0]))
        placed = v2.Compose(self._placing(InterpolationMode.BILINEAR))(given).as_subclass(Tensor).clamp(0, self.image_size)
        return placed[(placed[:, :2] < placed[:, 2:]).all(dim=1)]

    def _check_shape(self, picture: Image.Image) -> None:
        """A picture of 1 x 60,000 pixels would become one of 256 x 15,360,000."""
        pixels = 0 if self.squash else max(picture.size) / min(picture.size) * self.resize**2
        if pixels > MOST_PIXELS:
            raise ValueError("it is {} x {} pixels, too long and thin to be resized; crop it".format(*picture.size))

    def _placing(self, interpolation: InterpolationMode) -> list[v2.Transform]:
        """The steps that say where each part of the picture goes."""
        size = [self.resize] * 2 if self.squash else self.resize
        return [v2.Resize(size, interpolation, antialias=True), v2.CenterCrop(self.image_size)]

    def to_pixels(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Normalised images as pixels in [0, 1]."""
        mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)
