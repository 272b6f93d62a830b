"""Turn a picture into the tensor that a model expects, and back for display."""

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
        image_size: Side of the square crop, in pixels.
        resize: Shorter side before the crop, in pixels.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        interpolation: "bilinear", "bicubic" or "nearest", antialiased.
        squash: Resize both sides to `resize`, ignoring the aspect ratio.
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
        """Change the size of the crop, and keep the share of the picture that it shows."""
        resize = round(image_size * self.resize / self.image_size)
        return replace(self, image_size=image_size, resize=resize)

    def __call__(self, picture: Image.Image) -> Float[Tensor, "3 s s"]:
        """Convert an RGB picture to a normalised tensor.

        Raises:
            ValueError: The picture is so long and thin that it would have too many pixels after resizing.
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
        """Apply the same resizing and cropping to a mask: True where the object covers at least half of the pixel.

        Args:
            mask: A mask of the picture's size, white on black, mode "L".

        Raises:
            ValueError: As for a picture.
        """
        self._check_shape(mask)
        steps = v2.Compose([*self._placing(InterpolationMode.BILINEAR), v2.PILToTensor()])
        placed: Tensor = steps(mask)[0] >= 128
        return placed

    def boxes(self, boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "j 4"]:
        """Apply the same resizing and cropping to boxes. Boxes are clipped to the crop; those outside it are dropped.

        Args:
            boxes: `(x1, y1, x2, y2)` in pixels of the picture.
            size: Width and height of the picture.
        """
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(size[1], size[0]))
        placed = v2.Compose(self._placing(InterpolationMode.BILINEAR))(boxes).as_subclass(Tensor).clamp(0, self.image_size)
        return placed[(placed[:, :2] < placed[:, 2:]).all(dim=1)]

    def _check_shape(self, picture: Image.Image) -> None:
        """Refuse very long, thin pictures: one of 1 x 60,000 pixels would become 256 x 15,360,000."""
        pixels = 0 if self.squash else max(picture.size) / min(picture.size) * self.resize**2
        if pixels > MOST_PIXELS:
            raise ValueError("it is {} x {} pixels, too long and thin to be resized; crop it".format(*picture.size))

    def _placing(self, interpolation: InterpolationMode) -> list[v2.Transform]:
        """The geometric steps: resize and crop."""
        size = [self.resize] * 2 if self.squash else self.resize
        return [v2.Resize(size, interpolation, antialias=True), v2.CenterCrop(self.image_size)]

    def to_pixels(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Convert normalised images to pixels in [0, 1]."""
        mean, std = (images.new_tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (images * std + mean).clamp(0, 1)
