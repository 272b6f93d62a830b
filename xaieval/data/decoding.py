"""Decode image files safely: they can be damaged, of other formats, or malicious. No other module decodes images."""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = [
    "ENDINGS",
    "MOST_BYTES",
    "MOST_PIXELS",
    "UNREADABLE",
    "check_pixels",
    "open_picture",
    "picture_size",
    "read_bands",
    "read_picture",
    "readable_name",
    "reason_of",
    "to_rgb",
]

# Decoding takes 8 or 9 bytes per pixel, 16 for WebP: with this limit less than 1 GiB.
MOST_PIXELS = 64_000_000
MOST_BYTES = 512 * 1024**2

# The format is that of the file's content, not of its name. Pillow knows more, but one of them (EPS) starts another program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".gif", ".jp2", ".j2k", ".jpx", ".avif"),
)
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
PLAIN_TEXT = (b"P1", b"P2", b"P3")  # text PPM, which Python reads number by number: comments alone can take minutes
JPEG, SCAN = b"\xff\xd8", b"\xff\xda"  # the first bytes of a JPEG, and of each of its scans
MOST_SCANS = 100  # cameras write up to ten; each scan covers all pixels, and can be as short as 14 bytes

# Errors of images that cannot be read; the last three come from decoders of damaged files.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError, struct.error, OverflowError)


def read_picture(source: Path | bytes, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Read an image, rotated as its EXIF data says. For an animation, read the first frame.

    Args:
        source: A path, or the content of a file.
        convert: Converts the image while its file is open, such as `to_rgb`.

    Raises:
        OSError: The file does not exist or cannot be decoded.
        ValueError: The file is not a regular file, is too large, or `convert` refuses the image.

    Example:
        >>> read_picture(b"P6 2 1 255 abcdef", to_rgb).size
        (2, 1)
    """
    try:
        with BytesIO(source) if isinstance(source, bytes) else _open_file(source) as file:
            return convert(_decode(file))
    except UNREADABLE:
        raise
    except Exception as error:  # no list of what decoders raise is complete
        raise OSError(f"{type(error).__name__}: {error}") from error


def open_picture(file: IO[bytes] | Path, formats: tuple[str, ...] | None = None) -> Image.Image:
    """`PIL.Image.open` as Pillow has it.

    When ultralytics is imported, it replaces this function by one that installs a package for images that Pillow does not
    know, or fails without it.
    """
    own = getattr(sys.modules.get("ultralytics.utils.patches"), "_image_open", Image.open)
    picture: Image.Image = own(file, formats=formats)
    return picture


def reason_of(error: Exception) -> Exception | None:
    """Why an image cannot be read, from the error of a data set; None if it is another error.

    An import that fails while an unreadable image is looked at is that of ultralytics; see `open_picture`.
    """
    first = error.__context__ if isinstance(error, ImportError) else error
    return first if isinstance(first, UNREADABLE) else None


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image, upright as its EXIF data says, from the head of the file; None if it cannot be read."""
    try:
        with _open_file(path) as file:
            picture = open_picture(file, FORMATS)
            turned = picture.getexif().get(ExifTags.Base.Orientation) in TURNED
            return picture.size[::-1] if turned else picture.size
    except Exception:  # the reason is in the row of the image, which cannot be read either
        return None


def read_bands(path: Path, channels: int) -> Tensor:
    """Read an image of several bands, float32 `[C, H, W]`: bytes are scaled to [0, 1], all other numbers are unchanged.

    Args:
        path: A `.npy` file with an array `[C, H, W]` or `[H, W, C]`, `[H, W]` for one band, or an image with that many bands.
            TIFF files with more than four need the package `tifffile`.
        channels: Number of bands.

    Raises:
        OSError: The file cannot be decoded.
        ValueError: It is too large, or does not have that many bands.
    """
    try:
        with _open_file(path) as file:
            bands = _array_of(file, path.suffix.lower())
    except UNREADABLE:
        raise
    except Exception as error:  # no list of what decoders raise is complete
        raise OSError(f"{type(error).__name__}: {error}") from error
    bands = bands[None] if bands.ndim == 2 and channels == 1 else bands
    if bands.ndim != 3 or channels not in (bands.shape[0], bands.shape[2]):
        raise ValueError(f"its values have the shape {list(bands.shape)}, and the model takes {channels} bands: [C, H, W]")
    if bands.shape[0] == bands.shape[2]:
        raise ValueError(f"its shape {list(bands.shape)} can be [C, H, W] or [H, W, C]; crop it to another size")
    ordered = bands if bands.shape[0] == channels else np.moveaxis(bands, 2, 0)
    return torch.from_numpy(ordered.astype(np.float32) / (255 if bands.dtype == np.uint8 else 1))


def _array_of(file: IO[bytes], ending: str) -> np.ndarray:
    if ending == ".npy":
        return np.lib.format.read_array(file, allow_pickle=False)
    if ending in (".tif", ".tiff"):
        return _tiff_bands(file)
    return np.asarray(_decode(file))


def _tiff_bands(file: IO[bytes]) -> np.ndarray:
    """The bands of a TIFF file, by tifffile if it is installed, because Pillow reads at most four."""
    try:
        import tifffile
    except ModuleNotFoundError:
        try:
            return np.asarray(_decode(file))
        except UNREADABLE as error:
            raise ValueError(f"TIFF files of many bands need tifffile (pip install tifffile); without it: {error}") from error
    with tifffile.TiffFile(file) as tiff:
        series = tiff.series[0]
        if series.nbytes > MOST_BYTES:
            raise ValueError(f"it has {series.nbytes} bytes, more than the limit of {MOST_BYTES}")
        return series.asarray()


def _open_file(path: Path) -> IO[bytes]:
    """Open a regular file. Opening a pipe or reading a device could block forever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"it has {status.st_size} bytes, more than the limit of {MOST_BYTES}")
    return path.open("rb")


def _decode(file: IO[bytes]) -> Image.Image:
    _check_pace(file)
    try:
        # Pass an open file, not a path: Pillow maps some files into memory, and if one is truncated then, the process crashes.
        picture = open_picture(file, FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"it is none of {', '.join(FORMATS)}, or it is damaged") from error
    check_pixels(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _check_pace(file: IO[bytes]) -> None:
    """Refuse files that would take much more time than their size and number of pixels suggest."""
    start = file.read(2)
    if start in PLAIN_TEXT:
        raise ValueError("it is a plain-text PPM, which takes too long to read; save it as binary")
    if start == JPEG and file.read().count(SCAN) > MOST_SCANS:
        raise ValueError(f"it is a JPEG with more than {MOST_SCANS} scans, which takes too long to read; save it again")


def check_pixels(picture: Image.Image) -> None:
    """Refuse images that would take too much memory, by the size in their header.

    Raises:
        ValueError: The image has more than `MOST_PIXELS` pixels.
    """
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than the limit of {MOST_PIXELS}; make it smaller")


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any Pillow image to RGB with 8 bits per colour. Transparency is dropped, 16 bits are scaled to 8.

    Raises:
        ValueError: The value of white is unknown.
    """
    if picture.mode == "F":
        raise ValueError("its values are floating-point numbers with no known white; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        return _eight_bits(picture).convert("RGB")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # otherwise Pillow warns about transparent palette colours
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale a grey image with more than 8 bits, whose values Pillow itself would clip at 255."""
    values, white = np.asarray(picture), _white(picture)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise ValueError(f"its values range from {low} to {high}, but white is {white}; save it with 8 or 16 bits")
    scaled = values.astype(np.uint32)
    scaled *= 255
    scaled //= white
    return Image.fromarray(scaled.astype(np.uint8))


def _white(picture: Image.Image) -> int:
    """The largest value of the format. For 32 bits it is unknown, so only values that fit in 8 bits are accepted."""
    if picture.mode.startswith("I;16"):
        bits = getattr(picture, "tag_v2", {}).get(258, (16,))  # BitsPerSample of TIFF: 12 bits are also stored in 16
        return int(2 ** bits[0] - 1)
    return 65535 if picture.format == "PPM" else 255


def readable_name(name: str) -> str:
    r"""Return a file name as valid UTF-8 text, with other bytes written as `\xff`.

    Example:
        >>> print(readable_name("caf\udce9.png"))
        caf\xe9.png
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")
