"""Segments of images: square patches, superpixels, or your own, which metrics and methods change in place of pixels."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from xaieval.errors import UsageError

__all__ = ["Segments", "check_segments", "label_maps", "segmenter", "slic_segments"]

Segments = int | str | Callable[[Tensor], Tensor] | None

SLIC = re.compile(r"slic(-[1-9][0-9]*)?")


def check_segments(segments: object) -> None:
    """Raise an error if a value does not name a segmentation.

    Raises:
        UsageError: It is neither None, a side of at least 1 pixel, "slic" with or without a number, nor a function.
    """
    side = isinstance(segments, int) and not isinstance(segments, bool) and segments >= 1
    slic = isinstance(segments, str) and SLIC.fullmatch(segments)
    if not (segments is None or side or slic or callable(segments)):
        raise UsageError(
            "segments is the side of square patches in pixels, 'slic' or 'slic-25' (about 25), a function from images "
            f"[N, C, H, W] to label maps [N, H, W], or None for single pixels; got {segments!r}"
        )


def label_maps(images: Float[Tensor, "n c *space"], segments: Segments) -> Int[Tensor, " n *space"]:
    """The number of the segment of each pixel, from 0 without gaps in each image, `[N, H, W]`.

    Args:
        images: Images, `[N, C, H, W]`.
        segments: The side of square patches in pixels, row by row from the upper left, the last ones of a row or column
            smaller if they do not fit; "slic" for about 100 superpixels by `slic_segments`, "slic-25" for about 25; or a
            function from images to integers `[N, H, W]`.

    Raises:
        UsageError: A function returns something else; or scikit-image is not installed.

    Example:
        >>> label_maps(torch.zeros(1, 3, 3, 4), 2)
        tensor([[[0, 0, 1, 1],
                 [0, 0, 1, 1],
                 [2, 2, 3, 3]]])
    """
    if isinstance(segments, int):
        return _patches(images, segments)
    made: Any = slic_segments(images, _number(segments)) if isinstance(segments, str) else segments(images)  # type: ignore[misc]
    expected = [len(images), *images.shape[2:]]
    if not isinstance(made, Tensor) or list(made.shape) != expected or made.is_floating_point():
        came = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise UsageError(f"segments gave {came} for images {list(images.shape)}; integers {expected} are expected")
    dense = [torch.unique(one, return_inverse=True)[1] for one in made.to(images.device)]
    return torch.stack(dense)


def segmenter(images: Float[Tensor, "n c *space"]) -> Callable[[Segments], Tensor]:
    """A function from a segmentation to the label maps of these images, each of which it makes once."""
    return cache(partial(label_maps, images))


def slic_segments(
    images: Float[Tensor, "n c *space"], n_segments: int = 100, compactness: float = 10.0, sigma: float = 0.0
) -> Int[Tensor, " n *space"]:
    """Superpixels by simple linear iterative clustering (SLIC): regions of similar colour and about equal size, `[N, H, W]`.

    `segments="slic"` takes the defaults, `"slic-25"` about 25 segments; for another compactness give a function.

    Args:
        images: Images, `[N, C, H, W]`; scikit-image scales each to [0, 1], so that they may be normalised.
        n_segments: About how many there are.
        compactness: The weight of nearness against likeness of colour; larger makes them more square.

        sigma: Standard deviation, in pixels, of the Gaussian that smooths the images first.

    Raises:
        UsageError: scikit-image is not installed.

    Reference:
        Achanta et al., "SLIC superpixels compared to state-of-the-art superpixel methods", TPAMI 2012; scikit-image's `slic`
        with its defaults, as in Quantus.
    """
    try:
        from skimage.segmentation import slic
    except ImportError as error:
        raise UsageError("segments='slic' needs scikit-image: pip install 'xaieval[segments]'") from error
    finite = images.isfinite().flatten(1).all(dim=1)  # an image with NaN or inf has no colours to tell apart
    pictures = torch.where(finite.view(-1, *[1] * (images.ndim - 1)), images, 0).detach().double().movedim(1, -1).cpu().numpy()
    settings = {"n_segments": n_segments, "compactness": compactness, "sigma": sigma, "start_label": 0}
    made = [slic(one, **settings, channel_axis=-1) for one in pictures]
    return torch.from_numpy(np.stack(made)).to(images.device)


def _number(name: str) -> int:
    """How many segments "slic" or "slic-25" asks for."""
    return int(name.removeprefix("slic").removeprefix("-") or 100)


def _patches(images: Tensor, side: int) -> Tensor:
    numbers = torch.zeros(images.shape[2:], dtype=torch.long, device=images.device)
    for axis, length in enumerate(images.shape[2:]):
        steps = torch.arange(length, device=images.device) // side
        numbers = numbers * (steps[-1] + 1) + steps.view(-1, *[1] * (numbers.ndim - 1 - axis))
    return numbers.expand(len(images), *numbers.shape)
