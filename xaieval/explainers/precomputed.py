"""Maps of other tools, read from files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tokenize import TokenError  # of a header that ends too early

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from xaieval.data.decoding import UNREADABLE, open_picture
from xaieval.errors import DataError
from xaieval.explainers.base import Context, check_compares

__all__ = ["PREFIX", "Precomputed", "precomputed"]

PREFIX = "precomputed:"  # of the method's name on the command line, before the folder
SUFFIXES = (".npy", ".png")
LONGEST = 250  # bytes of a part of a path without the suffix; most systems allow 255 with it
WHITE = {"1": 1, "L": 255, "I;16": 65535, "I;16B": 65535, "I": 65535}  # the value of white, by Pillow's mode of a grey image


@dataclass(frozen=True)
class Precomputed:
    """Maps from a folder with one file per image: `ID.npy`, a two-dimensional array, or `ID.png`, a grey image.

    The file of the image `airplane/airplane00.jpg` is the first that exists of `airplane/airplane00.jpg.npy`,
    `airplane/airplane00.npy`, and the same two names with `.png`. Arrays have any size and range; PNG files of 8 or 16 bits
    become numbers in [0, 1]. An image without a file gets a map of NaN, so its row counts as failed. If the maps of a batch
    differ in size, they are resized to the size of the images.

    Args:
        folder: The folder with the files.
        name: Name in tables and rows.

    Raises:
        DataError: There is no such folder.

    Example:
        >>> import tempfile, xaieval
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "0.npy", np.eye(4))
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
        >>> xaieval.explain(model, torch.rand(1, 3, 4, 4), method=Precomputed(folder))["input"].sum()
        tensor(4.)
    """

    folder: str | Path
    name: str = "precomputed"
    needs_layer: bool = False
    needs_gradient: bool = False
    needs_model: bool = False
    passes: str = "none"
    paper: str = ""

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir():
            raise DataError(f"no folder '{self.folder}' with maps")

    def __call__(self, context: Context) -> Tensor:
        """Raw maps `[N, h, w]`.

        Raises:
            DataError: No image of the batch has a file, an id leads out of the folder, or a file holds no map.
            ExplainerError: The protocol compares classes.
        """
        check_compares(
            context, self.name, "maps from files are as they were made; leave against= out, which changes no confidence"
        )
        maps = [self._read(image_id) for image_id in context.ids]
        sizes = {one.shape for one in maps if one is not None}
        if not sizes and (len(maps) > 1 or self._is_empty()):  # a single image may have no map without an error
            raise DataError(
                f"no map in '{self.folder}' for any of {len(maps)} images; the first file looked for was "
                f"'{_candidates(Path(self.folder), context.ids[0])[0]}'"
            )
        size = torch.Size(context.images.shape[2:]) if len(sizes) != 1 else next(iter(sizes))
        missing = torch.full(size, torch.nan)
        return torch.stack([missing if one is None else _resized(one, size) for one in maps]).to(context.images.device)

    def _read(self, image_id: str) -> Tensor | None:
        path = next((path for path in _candidates(Path(self.folder), image_id) if path.is_file()), None)
        if path is None:
            return None
        values = _array(path) if path.suffix == ".npy" else _picture(path)
        if values.ndim != 2 or not values.size or values.dtype.kind not in "fiub":
            raise DataError(f"'{path}' holds {values.dtype} {list(values.shape)}; a map is two-dimensional, real numbers")
        return torch.from_numpy(values.astype(np.float32))

    def _is_empty(self) -> bool:
        return not any(path.suffix in SUFFIXES for path in Path(self.folder).rglob("*"))


def precomputed(spec: str) -> Precomputed:
    """The method `precomputed:DIR` of the command line, named after the folder.

    Raises:
        DataError: There is no such folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp()) / "ours"
        >>> folder.mkdir()
        >>> precomputed(f"precomputed:{folder}").name
        'precomputed:ours'
    """
    folder = Path(spec.removeprefix(PREFIX))
    return Precomputed(folder, f"{PREFIX}{folder.resolve().name}")


def _candidates(folder: Path, image_id: str) -> list[Path]:
    """Files that may hold the map of an image, in the order of the search.

    Raises:
        DataError: The id leads out of the folder, or no file can have that name.
    """
    parts = PurePosixPath(image_id.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or Path(image_id).is_absolute() or Path(image_id).drive:
        raise DataError(f"image id {image_id!r} leads out of the folder of the maps; an id is a relative path without '..'")
    if any(len(os.fsencode(part)) > LONGEST for part in parts) or "\0" in image_id:
        raise DataError(f"image id {image_id[:40]!r}... can be no file's path; its map is looked for under that name")
    path = folder.joinpath(*parts)
    names = dict.fromkeys(path.with_name(stem + suffix) for suffix in SUFFIXES for stem in (path.name, path.stem))
    return list(names)


def _array(path: Path) -> np.ndarray:
    try:
        # A memory map, so that a file that declares more than it holds takes no memory. It refuses archives and pickles.
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, OverflowError, TokenError) as error:
        raise DataError(f"'{path}' cannot be read as an array: {error}") from error


def _picture(path: Path) -> np.ndarray:
    try:
        with open_picture(path) as picture:
            mode, values = picture.mode, np.asarray(picture)
    except UNREADABLE as error:
        raise DataError(f"'{path}' cannot be read as an image: {error}") from error
    if mode not in WHITE:
        raise DataError(f"'{path}' is an image of mode {mode}; a map is grey, of 8 or 16 bits")
    return values.astype(np.float32) / WHITE[mode]


def _resized(values: Tensor, size: torch.Size) -> Tensor:
    if values.shape == size:
        return values
    return functional.interpolate(values[None, None], tuple(size), mode="bilinear")[0, 0]
