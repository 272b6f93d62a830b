"""Images of bands, and arrays in files: what the options have to say of them before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xaieval.config.options import ModelOptions
from xaieval.errors import UsageError

if TYPE_CHECKING:
    from xaieval.data import Data, Preprocessing

__all__ = ["check_bands", "check_normalisation"]


def check_normalisation(options: ModelOptions, preprocessing: Preprocessing, ids: Sequence[str] = ()) -> None:
    """Refuse to read bands from files without being told their mean and standard deviation.

    Raises:
        UsageError: The images have other channels than grey or RGB, or are arrays, whose unit is not known, and the options do
            not say how they are normalised.
    """
    arrays = any(name.lower().endswith(".npy") for name in ids)
    if (preprocessing.channels not in (1, 3) or arrays) and (options.mean is None or options.std is None):
        raise UsageError(
            f"the model takes images of {preprocessing.channels} channels{' from arrays' if arrays else ''}, whose "
            "normalisation is not known; give --mean and "
            f"--std with {preprocessing.channels} numbers each, or with one number for all channels (--mean 0 --std 1 for none)"
        )


def check_bands(options: ModelOptions, preprocessing: Preprocessing, data: Data) -> None:
    """Refuse arrays of files whose unit is not known, and bands that would be resized without being asked for.

    Raises:
        UsageError: The options do not say how arrays are normalised; or their size is not that of the model's images, and the
            options do not name a size.
    """
    images: Any = getattr(data.loader, "dataset", None)
    check_normalisation(options, preprocessing, getattr(images, "ids", ()))
    if options.image_size is not None or getattr(preprocessing, "channels", 3) in (1, 3) or not hasattr(images, "read"):
        return
    from xaieval.data.decoding import UNREADABLE

    try:
        height, width = images.read(0).shape[1:]
    except UNREADABLE:  # which its row says
        return
    sides = preprocessing.input_shape[1:]
    if (height, width) != sides:
        as_they_are = f"{height}" if height == width else f"{height},{width}"
        raise UsageError(
            f"the tiles have {height} x {width} pixels ('{images.ids[0]}'), and the model's images {sides[0]} x {sides[1]} by "
            f"default; give --image-size {as_they_are} to score the tiles as they are, or the size that the model was trained "
            "on, to which they are resized"
        )
