"""Fill missing pixels from the known ones of the same image: OpenCV's inpainting, the nearest pixel, and more.

Each function takes images `[N, C, H, W]` and which of their pixels are missing, bool `[N, H, W]`, and returns the images with
these pixels filled in. Known pixels stay as they are, and the values of missing ones are not looked at (but for the corners in
`delaunay`). At least one pixel of each image is known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import scipy  # whose `ndimage` is loaded when it is used
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from xaieval.errors import ProtocolError

__all__ = ["border", "delaunay", "navier_stokes", "nearest", "telea"]

Images = Float[Tensor, "n c *space"]
Missing = Bool[Tensor, " n *space"]
Array = NDArray[np.float64]
Holes = NDArray[np.bool_]

# OpenCV takes floating point, but drops what is behind the point of some differences. In a range as wide as this one that is
# below 1e-5 of it; in [0, 1] its version of Telea's algorithm leaves the range by as much as its width.
RANGE = 2.0**18
RADIUS = 3  # of the neighbourhood that OpenCV's algorithms look at, in pixels, as in its documentation


def telea(images: Images, missing: Missing) -> Images:
    """Telea's inpainting by the fast marching method: means of the known neighbourhood, from the border inwards.

    Each channel is scaled by the range of its known pixels, so that normalised input serves as well as raw pixels, and computed
    in float32. OpenCV rounds what it makes of 8-bit images at each pixel, which adds up to a few percent of the range.

    Raises:
        ProtocolError: They are not images, but volumes.

    Reference:
        Telea, "An image inpainting technique based on the fast marching method", Journal of Graphics Tools 2004; OpenCV's
        `inpaint` with `INPAINT_TELEA` and a radius of 3 pixels.
    """
    return _each(images, missing, partial(_by_opencv, "INPAINT_TELEA"), flat=True)


def navier_stokes(images: Images, missing: Missing) -> Images:
    """Inpainting by fluid dynamics: lines of equal brightness are continued into the gap. Scaled as in `telea`.

    Raises:
        ProtocolError: They are not images, but volumes.

    Reference:
        Bertalmio, Bertozzi and Sapiro, "Navier-Stokes, fluid dynamics, and image and video inpainting", CVPR 2001; OpenCV's
        `inpaint` with `INPAINT_NS` and a radius of 3 pixels.
    """
    return _each(images, missing, partial(_by_opencv, "INPAINT_NS"), flat=True)


def nearest(images: Images, missing: Missing) -> Images:
    """Each missing pixel takes the values of the nearest known one, by Euclidean distance."""
    return _each(images, missing, _nearest)


def border(images: Images, missing: Missing) -> Images:
    """Each hole takes one colour, the mean of the known pixels that touch it.

    A hole is a set of missing pixels that touch each other, also at corners.
    """
    return _each(images, missing, _border)


def delaunay(images: Images, missing: Missing) -> Images:
    """Missing pixels by linear interpolation between the known ones, on their Delaunay triangulation.

    The four corners of the image count as known, so that all pixels lie between known ones.

    Raises:
        ProtocolError: They are not images, but volumes.

    Reference:
        Kapishnikov et al., "XRAI", ICCV 2019 (arXiv 1906.02825), as in the authors' `create_blurred_image`.
    """
    return _each(images, missing, _delaunay, flat=True)


def _each(images: Tensor, missing: Tensor, inpaint: Callable[[Array, Holes], Array], flat: bool = False) -> Tensor:
    """The images, each inpainted on the CPU; `flat` refuses volumes."""
    if flat and images.ndim != 4:
        raise ProtocolError(
            f"this fill takes images [N, C, H, W], got {list(images.shape)}; 'nearest' and 'linear' also take volumes"
        )
    pairs = zip(images.detach().double().cpu().numpy(), missing.cpu().numpy(), strict=True)
    made = torch.from_numpy(np.stack([inpaint(image, holes) if holes.any() else image for image, holes in pairs]))
    return torch.where(missing[:, None], made.to(images), images)


def _by_opencv(name: str, image: Array, holes: Holes) -> Array:
    return np.stack([_channel_by_opencv(name, channel, holes) for channel in image])


def _channel_by_opencv(name: str, channel: Array, holes: Holes) -> Array:
    import cv2  # takes long to import

    known = channel[~holes]
    low, high = known.min(), known.max()
    if not low < high < np.inf or low == -np.inf:  # of one value, or with NaN or inf, which spread to all that is filled in
        return np.full_like(channel, low if low == high else np.nan)
    scaled = np.where(holes, 0, (channel - low) / (high - low) * RANGE).astype(np.float32)
    made = cv2.inpaint(scaled, holes.astype(np.uint8), RADIUS, getattr(cv2, name))
    return made.astype(np.float64) / RANGE * (high - low) + low


def _nearest(image: Array, holes: Holes) -> Array:
    places = scipy.ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
    return image[(slice(None), *places)]


def _border(image: Array, holes: Holes) -> Array:
    found, count = scipy.ndimage.label(holes, np.ones((3,) * holes.ndim))
    numbers = found.astype(np.int64)
    touching = np.unique(np.concatenate([_touching(numbers, step) for step in product((-1, 0, 1), repeat=holes.ndim)]), axis=0)
    number, place = touching.T
    known = np.bincount(number, minlength=count + 1)
    sums = [np.bincount(number, channel.ravel()[place], count + 1) for channel in image]
    return (np.stack(sums) / np.maximum(known, 1))[:, numbers]


def _touching(numbers: NDArray[np.int64], step: tuple[int, ...]) -> NDArray[np.int64]:
    """Pairs of the number of a hole and the place of a known pixel one step away from it."""
    here = tuple(slice(max(-one, 0), side - max(one, 0)) for one, side in zip(step, numbers.shape, strict=True))
    there = tuple(slice(max(one, 0), side - max(-one, 0)) for one, side in zip(step, numbers.shape, strict=True))
    places = np.arange(numbers.size).reshape(numbers.shape)[there]
    touch = (numbers[here] > 0) & (numbers[there] == 0)
    return np.stack([numbers[here][touch], places[touch]], axis=1)


def _delaunay(image: Array, holes: Holes) -> Array:
    from scipy.interpolate import LinearNDInterpolator  # takes long to import

    holes = holes.copy()
    holes[np.ix_([0, -1], [0, -1])] = False
    made = image.copy()
    if 1 in holes.shape:  # a line, which has no triangles
        places, known = np.flatnonzero(holes), np.flatnonzero(~holes)
        made[:, holes] = [np.interp(places, known, channel[~holes]) for channel in image]
    elif holes.any():
        values = image[:, ~holes].T
        made[:, holes] = LinearNDInterpolator(np.argwhere(~holes), values)(np.argwhere(holes)).T
    return made
