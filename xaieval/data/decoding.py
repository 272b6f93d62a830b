"""The one place where picture files are decoded, which may be anything: damaged, of other formats, or made to do harm."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["MOST_BYTES", "MOST_PIXELS", "UNREADABLE", "check_pixels", "read_picture", "readable_name", "to_rgb"]

# Decoding takes 8 or 9 bytes a pixel, 16 of WebP: with this limit less than 1 GiB.
MOST_PIXELS = 64_000_000
MOST_BYTES = 512 * 1024**2

# By what is in the file, whatever its name says. Pillow knows more, but one of them (EPS) starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PLAIN_TEXT = (b"P1", b"P2", b"P3")  # kinds of PPM that are read by Python, number by number: comments alone can take minutes
JPEG, SCAN = b"\xff\xd8", b"\xff\xda"  # how a JPEG begins, and each of its scans
MOST_SCANS = 100  # cameras make up to ten; each goes over all pixels, and may have 14 bytes

# What a picture raises that cannot be read; the last three come from decoders that stumble over damaged files.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError, struct.error, OverflowError)


def read_picture(source: Path | bytes, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture in a file, turned upright as its EXIF data says; of an animation the first frame.

    Args:
        source: a file, or what is in one.
        convert: what to make of the picture while its file is open, such as `to_rgb`.

    Raises:
        OSError: there is no such file, or it cannot be decoded.
        ValueError: it is no regular file, is too large, or `convert` refuses it.

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


def _open_file(path: Path) -> IO[bytes]:
    """The file, if it is one: opening a pipe or reading a device could take for ever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > MOST_BYTES:
        raise ValueError(f"it has {found.st_size} bytes, more than the {MOST_BYTES} that are read")
    return path.open("rb")


def _decode(file: IO[bytes]) -> Image.Image:
    _check_pace(file)
    try:
        # As an open file, not by its name: Pillow maps some files into memory, and one that is cut meanwhile ends the process.
        picture = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"it is none of {', '.join(FORMATS)}, or is damaged") from error
    check_pixels(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _check_pace(file: IO[bytes]) -> None:
    """Refuse what would take much more time than its size and its pixels say."""
    start = file.read(2)
    if start in PLAIN_TEXT:
        raise ValueError("it is a PPM in plain text, which takes too long to read; save it as binary")
    if start == JPEG and file.read().count(SCAN) > MOST_SCANS:
        raise ValueError(f"it is a JPEG of more than {MOST_SCANS} scans, which takes too long to read; save it anew")


def check_pixels(picture: Image.Image) -> None:
    """Refuse what would take too much memory, by the size that its header declares.

    Raises:
        ValueError: it has more than `MOST_PIXELS`.
    """
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than the {MOST_PIXELS} that are read; make it smaller")


def to_rgb(picture: Image.Image) -> Image.Image:
    """Any picture of Pillow in 8 bits a colour; transparency is dropped, 16 bits are scaled down.

    Raises:
        ValueError: nothing says which of its values is white.
    """
    if picture.mode == "F":
        raise ValueError("its values are fractions, of which none is known to be white; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        return _eight_bits(picture).convert("RGB")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")  # or Pillow warns about a palette's transparent colours
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits, which Pillow itself would cut off at 255."""
    values, white = np.asarray(picture), _white(picture)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > white:
        raise ValueError(f"its values go from {low} to {high}, where {white} would be white; save it with 8 or 16 bits")
    scaled = values.astype(np.uint32)
    scaled *= 255
    scaled //= white
    return Image.fromarray(scaled.astype(np.uint8))


def _white(picture: Image.Image) -> int:
    """The largest value that its format allows; of 32 bits none is, so that only what looks like 8 bits is taken."""
    if picture.mode.startswith("I;16"):
        bits = getattr(picture, "tag_v2", {}).get(258, (16,))  # BitsPerSample of TIFF: 12 bits come in 16, too
        return int(2 ** bits[0] - 1)
    return 65535 if picture.format == "PPM" else 255


def readable_name(name: str) -> str:
    r"""A file's name as text that can be written everywhere: bytes that are no UTF-8 as `\xff`.

    Example:
        >>> print(readable_name("caf\udce9.png"))
        caf\xe9.png
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")
