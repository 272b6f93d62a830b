"""Pictures `[h, w, 3]` of a page: maps in colour and over their images, and pictures as text."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image

from xaieval.report.figures.map_colours import COLOURS, OPAQUE

__all__ = ["colour_stops", "data_url", "in_colour", "overlay"]

QUALITY = 80  # of JPEG; noise then takes 10 kB, a photo about 4 kB


def overlay(picture: Any, one: Any) -> Any:
    """A map `[h, w]` in colour over an image `[h, w, 3]` in grey, all in [0, 1]; where the map is NaN, the image alone."""
    colours = in_colour(one)
    grey = picture.mean(axis=2, keepdims=True)
    return np.where(np.isnan(one)[..., None], grey, (1 - OPAQUE) * grey + OPAQUE * colours)


def in_colour(one: Any) -> Any:
    """A map `[h, w]` in [0, 1] in colour, `[h, w, 3]`."""
    return mpl.colormaps[COLOURS](np.clip(one, 0, 1))[..., :3]


def data_url(picture: Any, quality: int = QUALITY) -> str:
    """An image `[h, w, 3]` in [0, 1] as the data URL of a JPEG."""
    file = BytesIO()
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def colour_stops(count: int = 9) -> list[tuple[str, str]]:
    """Positions in percent and colours of the legend's gradient.

    Example:
        >>> colour_stops(2)
        [('0', '#000004'), ('100', '#fcffa4')]
    """
    places = np.linspace(0, 1, count)
    return [(f"{100 * place:g}", mpl.colors.to_hex(mpl.colormaps[COLOURS](place))) for place in places]
