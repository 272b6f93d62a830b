"""From a picture to the tensor that a model expects, and back for display."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

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
        """The normalised tensor of an RGB picture."""
        steps = v2.Compose(
            [
                v2.Resize(
                    [self.resize] * 2 if self.squash else self.resize, InterpolationMode(self.interpolation), antialias=True
                ),
                v2.CenterCrop(self.image_size),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
            ]
        )
        tensor: Tensor = steps(picture)
        return tensor

    def to_pixels(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Normalised images as pixels in [0, 1]."""
        mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)
