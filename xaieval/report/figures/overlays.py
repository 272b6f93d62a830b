"""Explanation maps over their images as arrays of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from xaieval.data.preprocessing import Preprocessing, to_visible
from xaieval.errors import DataError, UsageError
from xaieval.report.figures.map_colours import COLOURS

__all__ = ["blended", "check_maps", "overlay", "to_pixels"]

SLACK = 1e-4  # how far rounding may move pixels and maps out of [0, 1]


def overlay(
    image: Tensor,
    map: Tensor,
    alpha: float = 0.5,
    *,
    preprocessing: Preprocessing | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bands: Sequence[int] | None = None,
    colours: str = COLOURS,
) -> NDArray[np.uint8]:
    """A map in colours over its image, as an array of pixels, such as for `PIL.Image.fromarray` or a logger.

    Args:
        image: `[C, H, W]`, as `show` takes it.
        map: `[H, W]` in [0, 1], as `xaieval.explain` returns it.
        alpha: Opacity of the map, from 0 (the image alone) to 1 (the map alone).
        preprocessing: See `show`, as for all that follow.
        mean: See there.
        std: See there.
        bands: See there.
        colours: Name of a matplotlib colour map.

    Returns:
        `[H, W, 3]`, 0 to 255.

    Raises:
        DataError: Image and map differ in size, or values are not in [0, 1].
        UsageError: `alpha` is not in [0, 1].

    Example:
        >>> import torch
        >>> overlay(torch.rand(3, 32, 48), torch.rand(32, 48)).shape
        (32, 48, 3)
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is in [0, 1], got {alpha}")
    if image.ndim != 3 or map.ndim != 2:
        raise DataError(f"an image [C, H, W] and its map [H, W] are expected; got {list(image.shape)} and {list(map.shape)}")
    pixels = to_pixels(image[None], preprocessing, mean, std, bands)[0]
    return blended(pixels, check_maps("the image", map[None], image[None])[0], alpha, colours)


def blended(
    pixels: Float[Tensor, "3 h w"], map: Float[Tensor, "h w"] | None, alpha: float = 0.0, colours: str = COLOURS
) -> NDArray[np.uint8]:
    """An image with a map over it as an array of pixels; the image alone without a map, and where the map is NaN.

    Args:
        pixels: The image in [0, 1], `[3, H, W]`.
        map: `[H, W]` in [0, 1].
        alpha: Opacity of the map.
        colours: Name of a matplotlib colour map.

    Returns:
        `[H, W, 3]`, 0 to 255.

    Example:
        >>> blended(torch.ones(3, 1, 2), torch.tensor([[0.0, torch.nan]]), alpha=1.0).tolist()
        [[[0, 0, 4], [255, 255, 255]]]
    """
    picture: Any = pixels.permute(1, 2, 0).numpy()
    if map is not None:
        over = np.where(map.isnan().numpy(), 0, alpha)[..., None]
        picture = (1 - over) * picture + over * matplotlib.colormaps[colours](map.nan_to_num().numpy())[..., :3]
    shown: NDArray[np.uint8] = np.rint(255 * picture).astype(np.uint8)
    return shown


def to_pixels(
    images: Tensor,
    preprocessing: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bands: Sequence[int] | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """Images, model inputs or volumes as pixels with three channels in [0, 1] on the CPU; the arguments are those of `show`.

    Args:
        images: `[N, C, H, W]` or `[N, C, D, H, W]`.
        preprocessing: See `show`, as for all that follow.
        mean: See there.
        std: See there.
        bands: See there.
        like: The originals of masked images, which give them their black and white. Default: the images themselves.

    Raises:
        DataError: The images have another number of axes, or are not in [0, 1].
    """
    if images.ndim not in (4, 5):
        raise DataError(f"images are [N, 3, H, W], [N, C, H, W], or volumes [N, C, D, H, W]; got {list(images.shape)}")
    known = _before_normalisation(images, preprocessing, mean, std)
    if images.shape[1] == 3 or (images.shape[1] == 1 and images.ndim == 4):
        _check_range("images", known, "pass preprocessing=, or mean= and std=, to undo the normalisation")
    return to_visible(known, bands, None if like is None else _before_normalisation(like, preprocessing, mean, std))


def _before_normalisation(images: Tensor, preprocessing: Any, mean: Any, std: Any) -> Tensor:
    """Images in the unit of their pixels."""
    flat = images.detach().cpu().float()
    if preprocessing is not None:
        mean, std = preprocessing.mean, preprocessing.std
    if (mean is None) != (std is None):
        raise DataError("mean= and std= undo a normalisation together; pass both, or preprocessing=")
    if mean is not None:
        shift, scale = (
            torch.as_tensor(numbers, dtype=flat.dtype).reshape(-1, *[1] * (flat.ndim - 2)) for numbers in (mean, std)
        )
        flat = flat * scale + shift
        flat = flat.clamp(0, 1) if images.shape[1] in (1, 3) else flat
    return flat


def check_maps(name: str, maps: Tensor, images: Tensor) -> Tensor:
    """The maps on the CPU, if they are of the size of the images.

    Args:
        name: What they are maps of, for messages.
        maps: `[N, H, W]` in [0, 1].
        images: `[N, C, H, W]`.

    Raises:
        DataError: They are of another size, or not in [0, 1].
    """
    expected = [len(images), *images.shape[2:]]
    if list(maps.shape) != expected:
        raise DataError(f"maps of {name!r} are {expected}, one per image and of its size; got {list(maps.shape)}")
    known = maps.detach().cpu().float()
    _check_range(f"maps of {name!r}", known, "xaieval.explain returns such maps")
    return known


def _check_range(what: str, values: Tensor, mend: str) -> None:
    """Raise a DataError, which says how to mend it, unless all finite values are in [0, 1]."""
    known = values[values.isfinite()]
    if len(known) and not -SLACK <= known.min() <= known.max() <= 1 + SLACK:
        raise DataError(f"{what} are in [0, 1]; these are in [{known.min():.3g}, {known.max():.3g}]; {mend}")
