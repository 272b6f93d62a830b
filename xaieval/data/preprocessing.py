"""Turn an image into the tensor that a model expects, and back for display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from xaieval.data.decoding import MOST_PIXELS
from xaieval.data.truth_by_class import Truth
from xaieval.errors import DataError, choose_from

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "Preprocessing", "Side", "Whole", "to_visible"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ROUNDING = 0.01  # how far rounding and interpolation move grey values out of [0, 1]
STRETCH = (0.02, 0.98)  # shares of the values of a band that become black and white in figures

Side = int | tuple[int, int]  # pixels of a square's side, or height and width


@dataclass(frozen=True)
class Whole:
    """The size of images that are not cropped, as detectors take them.

    Attributes:
        longest: The longest that the longer side may become; the shorter one is then shorter than it should be.
        multiple: Sides become multiples of this number, the next larger ones.
        round_down: The next smaller multiples instead.

    Example:
        >>> Whole(longest=80).size(200, 60, 48)
        [24, 80]
    """

    longest: int | None = None
    multiple: int = 1
    round_down: bool = False

    def size(self, width: int, height: int, shortest: int) -> list[int]:
        """Height and width; fractions of a pixel are cut off, as by the image processors of transformers."""
        shorter, longer = sorted((width, height))
        short: float = shortest
        if self.longest is not None and longer / shorter * short > self.longest:
            short = self.longest * shorter / longer
        rounded = math.floor if self.round_down else math.ceil
        sides = [round(short), int(short * longer / shorter)]
        sides = [max(1, rounded(side / self.multiple)) * self.multiple for side in sides]
        return sides if height < width else sides[::-1]

    def scaled(self, share: float) -> Whole:
        """For images of another size."""
        return replace(self, longest=None if self.longest is None else round(self.longest * share))


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to [0, 1], normalise: the evaluation transform of image classifiers.

    Attributes:
        image_size: Side of the square crop, in pixels; or its height and width.
        resize: Shorter side before the crop, in pixels. With a height and a width, the image is resized until it covers both.
        mean: Mean of each channel, in [0, 1]. One number is for models of grey images, and other numbers than 1 or 3 for
            models of images with that many bands.
        std: Standard deviation of each channel.
        interpolation: "bilinear", "bicubic" or "nearest", antialiased.
        squash: Resize both sides to `resize`, ignoring the aspect ratio.
        border: Resize the longer side to `resize` and fill the rest with the mean colour, so that no part of the image is
            lost (timm's `crop_mode="border"`).
        corner: With `border`, put the image into the upper left corner, and cut off fractions of a pixel.
        whole: Resize the shorter side to `resize` and do not crop, so that images differ in size; a loader then makes batches
            of one image. `image_size` is that of a square image.
        fill: Brightness of the border in [0, 1], in all channels. Default: the mean colour.
        nodata: In arrays of bands, the value of pixels without data, such as -9999. They become the mean of their band, as do
            NaN and infinite values, before the image is resized.

    Raises:
        DataError: The choices contradict each other.
    """

    image_size: Side = 224
    resize: Side = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    squash: bool = False
    border: bool = False
    corner: bool = False
    whole: Whole | None = None
    fill: float | None = None
    nodata: float | None = None

    def __post_init__(self) -> None:
        if self.interpolation not in (known := [mode.value for mode in InterpolationMode]):
            raise DataError(f"no interpolation {self.interpolation!r}; {choose_from(self.interpolation, known)}")
        if not all(1 <= crop <= side for crop, side in zip(_sides(self.image_size), _sides(self.resize), strict=True)):
            raise DataError(f"an image is resized to at least its crop: got {self.resize} px for a crop of {self.image_size}")
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise DataError(
                f"mean and std are one number per channel each, as many of one as of the other, std positive; got {self.mean} "
                f"and {self.std}"
            )
        if self.squash + self.border + (self.whole is not None) > 1:
            raise DataError(
                "squash ignores the aspect ratio, border fills the rest, and whole leaves the size open; choose one of them"
            )
        if self.whole and not isinstance(self.resize, int):
            raise DataError(f"with whole, resize is the shorter side in pixels, got {self.resize}")

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.mean)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image.

        Example:
            >>> Preprocessing((96, 128), (96, 128)).input_shape
            (3, 96, 128)
        """
        return (self.channels, *_sides(self.image_size))

    def with_size(self, image_size: Side) -> Preprocessing:
        """Change the size of the crop, and keep the share of the image that it shows.

        For whole images, the number is the new shorter side; a height and a width apply to all images, whatever their
        shape.

        Example:
            >>> Preprocessing(224, 256).with_size((112, 224)).resize
            (128, 256)
        """
        if self.whole:
            return self._whole_with_size(self.whole, image_size)
        shares = [side / crop for side, crop in zip(_sides(self.resize), _sides(self.image_size), strict=True)]
        height, width = (round(side * share) for side, share in zip(_sides(image_size), shares, strict=True))
        return replace(self, image_size=image_size, resize=height if isinstance(image_size, int) else (height, width))

    def _whole_with_size(self, whole: Whole, image_size: Side) -> Preprocessing:
        if not isinstance(image_size, int):
            squashed = replace(self, whole=None, squash=True)
            return replace(squashed, image_size=image_size, resize=image_size)
        return replace(self, image_size=image_size, resize=image_size, whole=whole.scaled(image_size / _sides(self.resize)[0]))

    def with_channels(self, channels: int) -> Preprocessing:
        """Change the number of channels, if it differs: grey gets the average mean and std, other bands none (0 and 1).

        Images of other bands are not cropped: a border around the object is the custom of photos.

        Example:
            >>> Preprocessing().with_channels(13).channels
            13
        """
        if channels == self.channels:
            return self
        if channels == 1:
            mean, std = (sum(numbers) / len(numbers) for numbers in (self.mean, self.std))
            return replace(self, mean=(mean,), std=(std,))
        size = self.resize if self.whole else self.image_size
        return replace(self, resize=size, mean=(0.0,) * channels, std=(1.0,) * channels)

    def __call__(self, picture: Image.Image | Float[Tensor, "c height width"]) -> Float[Tensor, "c h w"]:
        """Convert an RGB image to a normalised tensor.

        Args:
            picture: An image; for models of several bands, a tensor of them, in the units of `mean`.

        Raises:
            ValueError: The image is so long and thin that it would have too many pixels after resizing, or has another number
                of bands.
        """
        if isinstance(picture, Tensor) and len(picture) != self.channels:
            raise ValueError(f"it has {len(picture)} bands, and the model takes {self.channels}")
        if isinstance(picture, Tensor):
            picture = self._with_data_everywhere(picture)
        elif self.channels == 1:
            picture = picture.convert("L")
        size = size_of(picture)
        self._check_shape(size)
        colour = self.mean if self.fill is None else [self.fill] * self.channels
        fill = list(colour) if isinstance(picture, Tensor) else [min(max(round(255 * part), 0), 255) for part in colour]
        steps = v2.Compose(
            [
                *self._placing(size, InterpolationMode(self.interpolation), fill if len(fill) > 1 else fill[0]),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(self.mean), list(self.std)),
            ]
        )
        tensor: Tensor = steps(picture)
        return tensor

    def _with_data_everywhere(self, bands: Tensor) -> Tensor:
        """Bands whose values without data are the mean of their band; resizing would mix them with their neighbours."""
        if self.nodata is None:
            return bands
        missing = (bands == self.nodata) | ~bands.isfinite()
        return torch.where(missing, bands.new_tensor(self.mean)[:, None, None], bands)

    def mask(self, mask: Image.Image) -> Bool[Tensor, "h w"]:
        """Apply the same resizing and cropping to a mask: True where the object covers at least half of the pixel.

        Args:
            mask: A mask of the image's size, white on black, mode "L".

        Raises:
            ValueError: As for an image.
        """
        self._check_shape(mask.size)
        steps = v2.Compose([*self._placing(mask.size, InterpolationMode.BILINEAR), v2.PILToTensor()])
        placed: Tensor = steps(mask)[0] >= 128
        return placed

    def boxes(self, boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "j 4"]:
        """Apply the same resizing and cropping to boxes. Boxes are clipped to the crop; those outside it are dropped.

        Args:
            boxes: `(x1, y1, x2, y2)` in pixels of the image.
            size: Width and height of the image.
        """
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(size[1], size[0]))
        placed = v2.Compose(self._placing(size, InterpolationMode.BILINEAR))(boxes).as_subclass(Tensor)
        height, width = self.whole.size(*size, _sides(self.resize)[0]) if self.whole else _sides(self.image_size)
        placed = placed.clamp(min=0).minimum(placed.new_tensor([width, height, width, height]))
        return placed[(placed[:, :2] < placed[:, 2:]).all(dim=1)]

    def truth(self, truth: Truth, size: tuple[int, int]) -> Truth:
        """Apply the same resizing and cropping to the objects of an image; those outside the crop are dropped.

        Args:
            truth: In pixels of the image.
            size: Width and height of the image.
        """
        whole = truth.by_object()
        masks = None if whole.masks is None else [self.mask(_white(one)) for one in whole.masks]
        boxes = None if whole.boxes is None else [self.boxes(one[None], size) for one in whole.boxes]
        seen = [bool(one.any()) for one in masks] if masks is not None else [len(one) > 0 for one in boxes or []]
        kept = [number for number, is_seen in enumerate(seen) if is_seen and (boxes is None or len(boxes[number]))]
        return Truth(
            whole.classes[kept],
            torch.stack([masks[number] for number in kept]) if masks is not None and kept else None,
            torch.cat([boxes[number] for number in kept]) if boxes is not None and kept else None,
            None if whole.crowd is None else whole.crowd[kept],
            None if whole.ignored is None else self.mask(_white(whole.ignored)),
        )

    def _check_shape(self, size: tuple[int, int]) -> None:
        """Refuse very long, thin images: one of 1 x 60,000 pixels would become 256 x 15,360,000."""
        bounded = self.squash or self.border or (self.whole is not None and self.whole.longest is not None)
        pixels = 0 if bounded else max(size) / min(size) * max(_sides(self.resize)) ** 2
        if pixels > MOST_PIXELS:
            raise ValueError("it is {} x {} pixels, too long and thin to be resized; crop it".format(*size))

    def _placing(self, size: tuple[int, int], interpolation: InterpolationMode, fill: Any = 0) -> list[v2.Transform]:
        """The geometric steps for an image of this width and height: resize, fill the border, crop."""
        resized = self._resized(*size)
        steps: list[v2.Transform] = [v2.Resize(resized, interpolation, antialias=True)]
        if self.whole:
            return steps
        if isinstance(resized, list) and self.border:
            missing = [max(0, crop - side) for crop, side in zip(_sides(self.image_size), resized, strict=True)]
            above, left = (0 if self.corner else pixels // 2 for pixels in missing)
            steps.append(v2.Pad([left, above, missing[1] - left, missing[0] - above], fill=fill))
        return [*steps, v2.CenterCrop(self.image_size)]

    def _resized(self, width: int, height: int) -> int | list[int]:
        """Height and width after resizing; or the shorter side, for torchvision to find the longer one."""
        goal = _sides(self.resize)
        if self.squash:
            return list(goal)
        if self.whole or self.corner:
            return (self.whole or Whole(longest=goal[0])).size(width, height, goal[0])
        if not self.border and goal[0] == goal[1]:
            return goal[0]
        ratios = [side / wanted for side, wanted in zip((height, width), goal, strict=True)]
        ratio = max(ratios) if self.border else min(ratios)
        return [max(1, round(side / ratio)) for side in (height, width)]

    def to_pixels(self, images: Float[Tensor, "n c *space"], bands: Sequence[int] | None = None) -> Float[Tensor, "n 3 *space"]:
        """Convert normalised images to pixels in [0, 1] for figures; grey images become grey RGB.

        Args:
            images: Images or volumes as the model takes them.
            bands: Of images with several bands, those that are shown; see `to_visible`.

        Raises:
            DataError: The images have no such bands.
        """
        axes = [1] * (images.ndim - 2)
        mean, std = (images.new_tensor(numbers).view(-1, *axes) for numbers in (self.mean, self.std))
        if images.shape[1] == 1:  # grey images of a factory, whose normalisation is not known
            mean, std = mean.mean(dim=0), std.mean(dim=0)
        if images.shape[1] in (1, self.channels):
            images = images * std + mean
        return to_visible(images, bands)


def to_visible(
    images: Float[Tensor, "n c *space"],
    bands: Sequence[int] | None = None,
    like: Float[Tensor, "n c *space"] | None = None,
) -> Float[Tensor, "n 3 *space"]:
    """Choose three channels of images for figures, in [0, 1].

    RGB and grey images are clipped to [0, 1]. Bands of other images have no common unit, nor have images of one channel with
    values outside [0, 1], such as scans: so each is stretched, its lowest 2 % of values become black, its highest 2 % white.

    Args:
        images: Images or volumes before normalisation.
        bands: The channels shown as red, green and blue, from 0; or one channel, shown in grey. Default: the first three; of
            one or two channels, the first.
        like: Images whose black and white these images get, such as the originals of masked ones. Default: their own.

    Raises:
        DataError: The images have no such channels.

    Example:
        >>> to_visible(torch.rand(2, 13, 8, 8), bands=(3, 2, 1)).shape
        torch.Size([2, 3, 8, 8])
    """
    channels = images.shape[1]
    chosen = list(bands) if bands is not None else [0, 1, 2] if channels >= 3 else [0]
    if len(chosen) not in (1, 3) or not all(0 <= band < channels for band in chosen):
        raise DataError(
            f"bands are three channels from 0 to {channels - 1}, or one for grey; got {', '.join(map(str, chosen))}"
        )
    like, shown = images if like is None else like, images[:, chosen]
    is_grey = channels == 1 and -ROUNDING <= like.min() <= like.max() <= 1 + ROUNDING
    if channels != 3 and not is_grey:
        values, axes = like[:, chosen].flatten(2), [1] * (images.ndim - 2)
        low, high = (
            values.kthvalue(1 + round(share * (values.shape[2] - 1)), dim=2).values.view(*values.shape[:2], *axes)
            for share in STRETCH
        )
        shown = (shown - low) / (high - low).clamp(min=torch.finfo(shown.dtype).tiny)
    return shown.clamp(0, 1).expand(-1, 3, *images.shape[2:])


def size_of(picture: Image.Image | Tensor) -> tuple[int, int]:
    """Width and height of an image, or of a tensor of bands."""
    return picture.size if isinstance(picture, Image.Image) else (picture.shape[2], picture.shape[1])


def _white(mask: Tensor) -> Image.Image:
    """A mask `[H, W]` as an image, white on black."""
    return Image.fromarray(mask.numpy().astype(np.uint8) * 255)


def _sides(size: Side) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size
