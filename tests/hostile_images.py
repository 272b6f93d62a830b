"""Picture files from outside, by kind: whole ones of every sort, damaged ones, and ones made to do harm.

`benchmarks/fuzz_images.py` and `tests/data/test_decoding.py` draw from these.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["FAMILIES", "NAMES", "Case", "draw", "encode", "gradient", "plant"]

WIDTH, HEIGHT = 48, 32
BOMB = 60_000  # pixels a side

NAMES = (
    "with space.png",
    "new\nline.png",
    "tab\tand\rreturn.png",
    "Ünï日本語🦜.png",
    "\u202eright to left.png",
    'quote\'s "and" `more`.png',
    "$x^{.png",
    "<script>alert(1)<.png",
    "100%s{0}.png",
    "-rf.png",
    "\x1b[2J\x07bell.png",
    "back\\slash.png",
    "n" * 240 + ".png",
    "not utf8 \udcff\udc80.png",  # the bytes ff and 80
)


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        kind: what was done to it.
        name: with an ending of an image.
        content: of the file; None for what is no file, see `plant`.
        pixels: that it has to be read as, `[H, W, 3]`; "unreadable"; or None for either of the two.
        atol: by how much pixels may differ, of formats that lose something.
    """

    kind: str
    name: str
    content: bytes | None
    pixels: Any
    atol: int = 0


def gradient(rng: random.Random, mode: str = "RGB") -> Any:
    """A smooth picture `[H, W, C]`, which no format loses much of."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = [(rng.uniform(1, 3) * x + rng.uniform(1, 3) * y + rng.randrange(20)).astype(np.uint8) for _ in mode]
    return np.stack(channels, axis=2)


def encode(picture: Image.Image, ending: str, **options: Any) -> bytes:
    """The file of a picture."""
    file = BytesIO()
    picture.save(file, {"jpg": "JPEG", "tif": "TIFF", "apng": "PNG"}.get(ending, ending.upper()), **options)
    return file.getvalue()


LOSSLESS: dict[str, dict[str, Any]] = {"png": {}, "tif": {}, "bmp": {}, "ppm": {}, "webp": {"lossless": True}}
WHOLE: dict[str, dict[str, Any]] = {**LOSSLESS, "jpg": {}, "gif": {}}
ENDINGS = ("png", "tif", "bmp", "ppm", "webp", "jpg")  # that are looked for in a folder


def _any_file(rng: random.Random) -> tuple[str, bytes]:
    """A whole file of some format and its ending."""
    ending = rng.choice(list(WHOLE))
    options = dict(WHOLE[ending])
    if ending == "jpg":
        options = rng.choice([{}, {"progressive": True}, {"exif": _exif(rng.randrange(1, 9))}])
    if ending == "tif":
        options = rng.choice([{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "jpeg"}])
    return ending, encode(Image.fromarray(gradient(rng)), ending, **options)


def _listed(ending: str) -> str:
    """The ending, or another one if folders are not searched for it."""
    return ending if ending in ENDINGS else "png"


def _truncated(rng: random.Random) -> Case:
    ending, content = _any_file(rng)
    return Case("truncated", f"x.{_listed(ending)}", content[: rng.randrange(len(content))], None)


def _flipped(rng: random.Random) -> Case:
    ending, whole = _any_file(rng)
    content = bytearray(whole)
    for _ in range(rng.randint(1, 20)):
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    return Case("bytes flipped", f"x.{_listed(ending)}", bytes(content), None)


def _header_flipped(rng: random.Random) -> Case:
    ending, whole = _any_file(rng)
    content = bytearray(whole)
    for _ in range(rng.randint(1, 6)):
        content[rng.randrange(min(len(content), 96))] = rng.choice([0, 1, 127, 128, 254, 255, rng.randrange(256)])
    return Case("header flipped", f"x.{_listed(ending)}", bytes(content), None)


def _spliced(rng: random.Random) -> Case:
    """The beginning of one file with the end of another, or a piece twice."""
    ending, one = _any_file(rng)
    _, two = _any_file(rng)
    content = one[: rng.randrange(len(one))] + two[rng.randrange(len(two)) :]
    return Case("spliced", f"x.{_listed(ending)}", content, None)


def _wrong_ending(rng: random.Random) -> Case:
    pixels = gradient(rng)
    right = rng.choice(list(LOSSLESS))
    wrong = rng.choice([ending for ending in ENDINGS if ending != right])
    return Case("wrong ending", f"x.{wrong}", encode(Image.fromarray(pixels), right, **LOSSLESS[right]), pixels)


def _foreign(rng: random.Random) -> Case:
    """Files of other programs, one of which Pillow would have Ghostscript run."""
    content = rng.choice(
        [
            b"",
            b"\0" * 5000,
            rng.randbytes(rng.randrange(1, 4000)),
            b"this is no image",
            b"<!doctype html><html><body>404</body></html>",
            b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
            b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF",
            b"PK\x05\x06" + b"\0" * 18,
            encode(Image.fromarray(gradient(rng)), "ico"),
        ]
    )
    return Case("no image", f"x.{rng.choice(ENDINGS)}", content, "unreadable")


def _chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of PNG."""
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def _png_bomb(side: int) -> bytes:
    header = struct.pack(">LLBBBBB", side, side, 8, 2, 0, 0, 0)
    content = zlib.compress(bytes(10**6), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def _jpeg_bomb(side: int) -> bytes:
    content = encode(Image.new("RGB", (16, 16)), "jpg")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", side, side) + content[at + 4 :]


def _gif_bomb(side: int) -> bytes:
    content = encode(Image.new("P", (16, 16)), "gif")
    at = content.index(b"\x2c") + 5
    return content[:6] + struct.pack("<HH", side, side) + content[10:at] + struct.pack("<HH", side, side) + content[at + 4 :]


def _bmp_bomb(side: int) -> bytes:
    content = encode(Image.new("RGB", (16, 16)), "bmp")
    return content[:18] + struct.pack("<LL", side, side) + content[26:]


def _tiff_bomb(side: int) -> bytes:
    content = bytearray(encode(Image.new("RGB", (16, 16)), "tif", compression="tiff_lzw"))
    first = struct.unpack("<L", content[4:8])[0]
    for at in range(first + 2, first + 26, 12):  # width and height come first
        content[at + 2 : at + 12] = struct.pack("<HLL", 4, 1, side)
    return bytes(content)


def _webp_bomb(side: int) -> bytes:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "webp", save_all=True, append_images=frames[1:])
    return content[:24] + struct.pack("<L", side - 1)[:3] + struct.pack("<L", side - 1)[:3] + content[30:]


def _ppm_bomb(side: int) -> bytes:
    return f"P6 {side} {side} 255 ".encode() + bytes(1000)


BOMBS: dict[str, Callable[[int], bytes]] = {
    "png": _png_bomb,
    "jpg": _jpeg_bomb,
    "gif": _gif_bomb,
    "bmp": _bmp_bomb,
    "tif": _tiff_bomb,
    "webp": _webp_bomb,
    "ppm": _ppm_bomb,
}


def _bomb(rng: random.Random) -> Case:
    ending = rng.choice(list(BOMBS))
    side = rng.choice([BOMB, BOMB, 8001, 12_000, 65_535 if ending != "tif" else 10**6])
    return Case(f"bomb {ending}", f"x.{_listed(ending)}", BOMBS[ending](side), "unreadable")


def _thin(rng: random.Random) -> Case:
    """Few pixels, which become very many when the shorter side is resized to what the model wants."""
    size = rng.choice([(1, BOMB), (BOMB, 1), (3, 50_000)])
    ending = rng.choice(["png", "tif", "bmp", "ppm", "jpg"])
    return Case("thin", f"x.{ending}", encode(Image.new("RGB", size), ending), "unreadable")


def _plain_text(rng: random.Random) -> Case:
    """A megabyte of comments would take minutes."""
    content = rng.choice([b"P1", b"P2", b"P3"]) + b"\n50 50\n" + b"#\n" * rng.choice([10**5, 5 * 10**5])
    return Case("plain text", "x.ppm", content, "unreadable")


def _many_scans(rng: random.Random) -> Case:
    """A megabyte of scans would take an hour."""
    content = encode(Image.new("L", (2000, 2000), 90), "jpg", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return Case("many scans", "x.jpg", content[:-2] + last * rng.choice([200, 10**5]) + content[-2:], "unreadable")


def _sixteen_bits(rng: random.Random) -> Case:
    grey = gradient(rng, "L")[..., 0].astype(np.uint16) * rng.randrange(100, 257) + rng.randrange(200)
    pixels = np.repeat((grey // 257).astype(np.uint8)[..., None], 3, axis=2)
    form = rng.choice(["png", "tif", "big tif", "ppm"])
    if form == "ppm":
        return Case("16 bit", "x.ppm", f"P5 {WIDTH} {HEIGHT} 65535 ".encode() + grey.astype(">u2").tobytes(), pixels)
    if form == "big tif":
        return Case("16 bit", "x.tif", encode(Image.fromarray(grey.astype(">u2")), "tif"), pixels)
    return Case("16 bit", f"x.{form}", encode(Image.fromarray(grey), form), pixels)


def _no_white(rng: random.Random) -> Case:
    """Numbers that do not say which of them is white."""
    values = gradient(rng, "L")[..., 0]
    values = rng.choice([values.astype(np.float32) / 255, values.astype(np.int32) * 1000, values.astype(np.int32) - 90])
    return Case("32 bit", "x.tif", encode(Image.fromarray(values), "tif"), "unreadable")


def _cmyk(rng: random.Random) -> Case:
    inks = gradient(rng, "CMYK")
    picture = Image.frombytes("CMYK", (WIDTH, HEIGHT), inks.tobytes())
    shares = (255 - inks.astype(float)) / 255
    pixels = np.rint(255 * shares[..., :3] * shares[..., 3:]).astype(np.uint8)
    ending = rng.choice(["tif", "jpg"])
    return Case("CMYK", f"x.{ending}", encode(picture, ending, **({"quality": 100} if ending == "jpg" else {})), pixels, 8)


def _palette(rng: random.Random) -> Case:
    picture = Image.fromarray(gradient(rng)).quantize(rng.choice([2, 16, 200]))
    pixels = np.asarray(picture.convert("RGB"))
    options = rng.choice([{}, {"transparency": 1}, {"transparency": bytes(range(2))}])
    ending = rng.choice(["png", "gif"])
    if ending == "gif" and options:
        options = {"transparency": 1}
    return Case("palette", f"x.{_listed(ending)}", encode(picture, ending, **options), pixels)


def _alpha(rng: random.Random) -> Case:
    mode = rng.choice(["RGBA", "LA"])
    values = gradient(rng, mode)
    values[0, 0, -1] = 0
    pixels = np.repeat(values[..., :1], 3, axis=2) if mode == "LA" else values[..., :3]
    picture = Image.frombytes(mode, (WIDTH, HEIGHT), values.tobytes())
    ending = rng.choice(["png", "tif"] + ["webp"] * (mode == "RGBA"))
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    return Case("alpha", f"x.{ending}", encode(picture, ending, **options), pixels)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


UPRIGHT: dict[int, Callable[[Any], Any]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored[::-1].transpose(1, 0, 2),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored[:, ::-1].transpose(1, 0, 2),
}


def _rotated(rng: random.Random) -> Case:
    stored, orientation = gradient(rng), rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 77])
    pixels = UPRIGHT.get(orientation, lambda stored: stored)(stored)
    ending = rng.choice(["png", "webp", "tif", "jpg"])
    options = dict(WHOLE[ending]) | ({"quality": 95} if ending == "jpg" else {})
    content = encode(Image.fromarray(stored), ending, exif=_exif(orientation), **options)
    return Case(f"EXIF {ending}", f"x.{ending}", content, pixels, 8 if ending == "jpg" else 0)


def _exif_garbage(rng: random.Random) -> Case:
    exif = bytearray(b"Exif\0\0" + _exif(6).tobytes().removeprefix(b"Exif\0\0"))
    for _ in range(rng.randint(1, 10)):
        exif[rng.randrange(6, len(exif))] = rng.randrange(256)
    content = encode(Image.fromarray(gradient(rng)), "jpg", exif=bytes(exif) + rng.randbytes(rng.randrange(200)))
    return Case("EXIF garbage", "x.jpg", content, None)


def _animated(rng: random.Random) -> Case:
    ending = rng.choice(["gif", "webp", "apng", "tif"])
    frames = [Image.fromarray(gradient(rng)) for _ in range(3)]
    if ending == "gif":
        frames = [frame.quantize(100) for frame in frames]
    options = {"lossless": True} if ending == "webp" else {}
    content = encode(frames[0], ending, save_all=True, append_images=frames[1:], **options)
    name = f"x.{_listed('png' if ending == 'apng' else ending)}"
    return Case(f"animated {ending}", name, content, np.asarray(frames[0].convert("RGB")))


def _named(rng: random.Random) -> Case:
    pixels = gradient(rng)
    return Case("name", rng.choice(NAMES), encode(Image.fromarray(pixels), "png"), pixels)


SPECIAL = ("fifo", "socket", "loop", "loop of two", "broken link", "device", "link to a device", "no permission")


def _special(rng: random.Random) -> Case:
    return Case(kind := rng.choice(SPECIAL), f"{kind}.png", None, "unreadable")


# By how many of a hundred files are of a family.
FAMILIES: dict[Callable[[random.Random], Case], int] = {
    _truncated: 16,
    _flipped: 16,
    _header_flipped: 12,
    _spliced: 6,
    _wrong_ending: 4,
    _foreign: 5,
    _bomb: 8,
    _thin: 2,
    _plain_text: 1,
    _many_scans: 1,
    _sixteen_bits: 4,
    _no_white: 2,
    _cmyk: 3,
    _palette: 3,
    _alpha: 3,
    _rotated: 5,
    _exif_garbage: 3,
    _animated: 3,
    _named: 2,
    _special: 2,
}


def draw(count: int, seed: int) -> list[Case]:
    """So many files, each family in its share and at least once."""
    rng = random.Random(seed)
    families = [family for family, share in FAMILIES.items() for _ in range(max(1, round(share * count / 100)))]
    return [family(rng) for family in families]


def plant(case: Case, folder: Path) -> Path:
    """Put the file into a folder that has nothing else of its name."""
    path = folder / case.name
    folder.mkdir(parents=True, exist_ok=True)
    if case.content is not None:
        path.write_bytes(case.content)
    elif case.kind == "fifo":
        os.mkfifo(path)
    elif case.kind == "socket":
        _bind(path)
    elif case.kind == "no permission":
        path.write_bytes(b"")  # so that whoever may read everything finds no image either
        path.chmod(0)
    else:
        _link(case.kind, path)
    return path


def _bind(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket may have only a hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(here)


def _link(kind: str, path: Path) -> None:
    targets = {"loop": path.name, "loop of two": "other.tmp", "broken link": "nowhere.png", "device": "/dev/null"}
    if kind == "loop of two":
        (path.parent / "other.tmp").symlink_to(path.name)
    path.symlink_to(targets.get(kind, "/dev/zero"))
