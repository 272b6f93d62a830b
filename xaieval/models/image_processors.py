"""Preprocessing that equals an image processor of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from xaieval.data import Preprocessing, Whole
from xaieval.data.preprocessing import Side
from xaieval.errors import ModelError

__all__ = ["preprocessing_of", "square"]

SQUASHED = 384  # from this size on, image processors with a crop_pct resize both sides and do not crop
PATCH = 16  # whose multiples YOLOS takes, which no attribute of its processor says
PROBES = ((64, 64), (96, 64), (40, 104))  # width and height of images that show whether both prepare them alike
SHAPING = ("size", "do_resize", "do_center_crop", "do_pad", "pad_size", "do_split_image", "size_divisor")
ALIKE = 0.02  # mean difference of two ways of interpolation, as a share of the range of values


def preprocessing_of(processor: Any) -> Preprocessing:
    """Preprocessing that equals a transformers image processor.

    Processors of detectors keep the shape of an image and pad the images of a batch to one size, with a mask of the pixels
    that are no padding. Here each image is a batch of its own instead, without padding: see `Preprocessing.whole`.

    Args:
        processor: An image processor with attributes such as `size`, `resample` and `image_mean`. If it can be called, it is
            tried on three images.

    Raises:
        ModelError: The processor prepares images in a way that is not known here.

    Example:
        >>> from types import SimpleNamespace
        >>> clip = {"size": {"shortest_edge": 240}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
        >>> found = preprocessing_of(SimpleNamespace(**clip, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3))
        >>> found.image_size, found.resize, found.interpolation
        (224, 240, 'bicubic')
    """
    values = _values(processor)
    known = [Preprocessing(**geometry, **values) for geometry in _geometries(processor)]
    if not callable(processor) or len(values["mean"]) != 3:  # images of several bands cannot be made up
        return known[0]
    for preprocessing in known:
        if all(_equal(preprocessing, processor, size) for size in PROBES):
            return preprocessing
    settings = ", ".join(f"{name}={_plain(value)}" for name in SHAPING if (value := getattr(processor, name, None)) is not None)
    raise ModelError(
        f"the {type(processor).__name__} prepares images in a way that is not known here ({settings}); change "
        "preprocessor_config.json, for instance to a size with height and width, without do_pad and do_split_image"
    )


def square(height: float, width: float) -> Side:
    """One side if both are equal, else height and width."""
    return int(height) if height == width else (int(height), int(width))


def _plain(value: Any) -> Any:
    """A setting for an error: of sizes, the numbers that are given."""
    try:
        return {name: number for name, number in dict(value).items() if number is not None}
    except (TypeError, ValueError):
        return value


def _values(processor: Any) -> dict[str, Any]:
    """Mean, standard deviation and interpolation."""
    # Preprocessing always scales to [0, 1]; a different scale of the processor is folded into mean and std.
    scale = 255 * _given(processor, "rescale_factor", 1 / 255) if _given(processor, "do_rescale", True) else 255
    normalised = _given(processor, "do_normalize", True)
    mean, std = (_given(processor, f"image_{which}", [default] * 3) for which, default in (("mean", 0.0), ("std", 1.0)))
    return {
        "mean": tuple(float(m) / scale for m in mean) if normalised else (0.0,) * 3,
        "std": tuple(float(s) / scale for s in std) if normalised else (1 / scale,) * 3,
        "interpolation": Resampling(int(_given(processor, "resample", Resampling.BILINEAR))).name.lower(),
    }


def _geometries(processor: Any) -> list[dict[str, Any]]:
    """How it may resize, pad and crop, the likeliest first."""
    size = dict(_given(processor, "size", {}))
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if _given(processor, "do_center_crop", False):
        crop = _sides(dict(_given(processor, "crop_size", size)))
        return [{"image_size": crop, "resize": _at_least(shortest or _sides(size), crop), "squash": shortest is None}]
    if shortest is None:
        sides = _sides(size)
        return [{"image_size": sides, "resize": sides, "squash": True}]
    if hasattr(processor, "crop_pct"):
        squash = shortest >= SQUASHED
        resize = shortest if squash else int(shortest / processor.crop_pct)
        return [{"image_size": shortest, "resize": resize, "squash": squash}]
    larger = Whole(longest, multiple=_given(processor, "size_divisor", 1) or 1)
    smaller = Whole(longest, PATCH, round_down=True)
    whole = {"image_size": shortest, "resize": shortest}
    padded = {"image_size": longest or shortest, "resize": longest or shortest, "border": True, "corner": True, "fill": 0.0}
    return [whole | {"whole": larger}, whole | {"whole": smaller}, padded]


def _given(processor: Any, name: str, default: Any) -> Any:
    value = getattr(processor, name, None)
    return default if value is None else value


def _equal(preprocessing: Preprocessing, processor: Any, size: tuple[int, int]) -> bool:
    """Whether both prepare an image of this width and height in the same way, up to the interpolation."""
    width, height = size
    levels = [np.linspace(0, 255, side) for side in (height, width)]
    colours = np.broadcast_arrays(levels[0][:, None], levels[1][None], 255 - levels[0][:, None])
    picture = Image.fromarray(np.stack(colours, axis=2).astype(np.uint8))
    theirs: Tensor = processor(picture, return_tensors="pt")["pixel_values"]
    ours = preprocessing(picture)[None]
    return ours.shape == theirs.shape and bool((ours - theirs).abs().mean() <= ALIKE * (theirs.max() - theirs.min()))


def _sides(size: Mapping[str, Any]) -> Side:
    if size.get("height") is None or size.get("width") is None:
        raise ModelError(f"the image processor makes images of {size or 'no fixed size'}; a height and a width are expected")
    return square(size["height"], size["width"])


def _at_least(resize: Side, crop: Side) -> Side:
    """The size before the crop, which is not smaller than the crop."""
    if isinstance(resize, int) and isinstance(crop, int):
        return max(resize, crop)
    resized, cropped = ((side, side) if isinstance(side, int) else side for side in (resize, crop))
    return square(max(resized[0], cropped[0]), max(resized[1], cropped[1]))
