"""Maps as files: overlays, arrays, masked images, and a figure for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xaieval.data.decoding import ENDINGS
from xaieval.errors import UsageError, choose_from
from xaieval.report.figures.map_colours import COLOURS
from xaieval.report.figures.maps import grid_figure
from xaieval.report.figures.overlays import blended, to_pixels
from xaieval.report.figures.slices import Slices, check_slices, cut, cuts_through, joined
from xaieval.report.figures.style import save_figure
from xaieval.results.file_names import FileNames
from xaieval.results.rows import Pair

__all__ = ["KINDS", "MapFiles", "OneMap"]

KINDS = {
    "overlay": "the map in colours over the image (PNG)",
    "map": "the map in [0, 1], normalised as the protocol says, at the size of the image (NPY, float32)",
    "masked": "the image as the protocol masks it by the map (PNG)",
    "raw": "the map as the method gives it, at the size of the image, in no fixed range (NPY, float32)",
    "image": "the image as the model gets it, without a map (PNG, one for all maps)",
}
ENDING = {"overlay": "png", "map": "npy", "masked": "png", "raw": "npy"}  # of the files that each map has
FORMATS = ("pdf", "svg", "png")


class OneMap(NamedTuple):
    """A map of one image `[H, W]`, for volumes `[D, H, W]`.

    Attributes:
        map: In [0, 1].
        raw: As the method gives it.
        masked: The image as the protocol masks it, `[C, H, W]`.
    """

    map: Tensor
    raw: Tensor
    masked: Tensor


class _Drawn(NamedTuple):
    """An image in colours, as the model gets it, and what lays the slices of a volume side by side."""

    pixels: Tensor
    image: Tensor
    flat: Callable[[Tensor, float], Tensor]

    def map(self, one: OneMap) -> Tensor:
        return self.flat(one.map[None], torch.nan)[0]


@dataclass(frozen=True, kw_only=True)
class MapFiles:
    """Which files are written for each map, and how overlays are drawn.

    Attributes:
        kinds: Of `KINDS`.
        figure: Format of a figure of all maps of an image, "pdf", "svg" or "png"; None for none.
        alpha: Opacity of a map over its image, from 0 to 1.
        preprocessing: As of `xaieval.show`, as are all that follow.
        mean: See there.
        std: See there.
        bands: See there.
        slices: See there.
        colours: See there.
        names: The names of the files; those of images are kept apart from those of layers and methods.

    Raises:
        UsageError: A choice is unknown or out of range.
    """

    kinds: Sequence[str] = ("overlay", "map", "masked")
    figure: str | None = None
    alpha: float = 0.5
    preprocessing: Any = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    bands: Sequence[int] | None = None
    slices: Slices | None = None
    colours: str = COLOURS
    names: Mapping[str, FileNames] = field(default_factory=lambda: {"image": FileNames(), "map": FileNames()})

    def __post_init__(self) -> None:
        if isinstance(self.kinds, str):
            raise UsageError(f"kinds is a list of kinds of files, such as ['{self.kinds}'], got {self.kinds!r}")
        for what, given, known in (
            ("kind of file", self.kinds, KINDS),
            ("format of figures", [self.figure or FORMATS[0]], FORMATS),
        ):
            unknown = next((one for one in given if one not in known), None)
            if unknown is not None:
                raise UsageError(f"no {what} {unknown!r}; {choose_from(str(unknown), known)}")
        if self.colours not in matplotlib.colormaps:
            raise UsageError(f"matplotlib has no colour map {self.colours!r}; it has inferno, viridis, gray, jet and others")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha is in [0, 1], got {self.alpha}")

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the files, as a manifest records it."""
        return {
            "kinds": list(self.kinds),
            "figure": self.figure,
            "alpha": self.alpha,
            "colours": self.colours,
            "bands": None if self.bands is None else list(self.bands),
            "slices": self.slices,
        }

    def pixels(self, images: Tensor, like: Tensor | None = None) -> Tensor:
        """Images as the model gets them in colours, `[N, 3, H, W]` in [0, 1]; see `to_pixels`."""
        return to_pixels(images, self.preprocessing, self.mean, self.std, self.bands, like)

    def write(
        self, folder: Path, image_id: str, image: Tensor, maps: Mapping[Pair, OneMap], title: str = ""
    ) -> dict[Pair, dict[str, str]]:
        """Write the files of one image into a folder of its own.

        Args:
            folder: The folder of all images.
            image_id: Its id.
            image: As the model gets it, `[C, H, W]` or `[C, D, H, W]`.
            maps: By layer and method; none writes nothing.
            title: The text below the figure.

        Returns:
            For each map the paths of its files below the folder, by kind; the figure is that of all.

        Raises:
            DataError: The image is not in [0, 1], and how it was normalised is not known.
            OSError: A file cannot be written.
        """
        if not maps:
            return {}
        place = Path(self.names["image"].of(image_id, shown=_without_ending(image_id)))
        (folder / place).mkdir(parents=True, exist_ok=True)
        flat = self._flattened(image, [one.map for one in maps.values()])
        drawn = _Drawn(flat(self.pixels(image[None])[0], 1.0), image[None], flat)
        of_image = {kind: (place / name).as_posix() for kind, name in self._of_image.items()}
        found: dict[Pair, dict[str, str]] = {}
        for pair, one in maps.items():
            start = place / self.names["map"].of(*pair)
            written = {kind: f"{start.as_posix()}--{kind}.{ENDING[kind]}" for kind in self.kinds if kind in ENDING}
            for kind, path in written.items():
                _save(self._content(kind, one, drawn), folder / path)
            found[pair] = {kind: (written | of_image)[kind] for kind in self.columns}
        if "image" in of_image:
            _save(blended(drawn.pixels, None), folder / of_image["image"])
        if "figure" in of_image:
            shown = {pair: drawn.map(one) for pair, one in maps.items()}
            save_figure(grid_figure(drawn.pixels, shown, title, colours=self.colours), folder / of_image["figure"])
        return found

    @property
    def columns(self) -> list[str]:
        """The kinds of all files that are written, with the figure."""
        return [*self.kinds, *([] if self.figure is None else ["figure"])]

    @property
    def _of_image(self) -> dict[str, str]:
        """The names of the files that an image has only once."""
        names = {"image": "image.png", "figure": f"figure.{self.figure}"}
        return {kind: name for kind, name in names.items() if kind in self.columns}

    def _content(self, kind: str, one: OneMap, drawn: _Drawn) -> Any:
        """What a file of a map holds."""
        if kind == "overlay":
            return blended(drawn.pixels, drawn.map(one), self.alpha, self.colours)
        if kind == "masked":
            return blended(drawn.flat(self.pixels(one.masked[None], drawn.image)[0], 1.0), None)
        return one.map if kind == "map" else one.raw

    def _flattened(self, image: Tensor, maps: Sequence[Tensor]) -> Any:
        """A function that lays the slices of a volume `[C, D, H, W]` side by side, and leaves images as they are.

        They are the same slices for the volume and for all of its maps.
        """
        if image.ndim == 3:
            return lambda values, ground: values.cpu().float()
        slices = check_slices(self.slices, len(image))
        cuts = cuts_through(torch.stack([one.cpu().float() for one in maps]), slices)
        return lambda values, ground: joined(cut(values.cpu().float(), cuts, slices), ground)


def _save(content: Any, path: Path) -> None:
    """Write a map as an array, or pixels as an image."""
    if isinstance(content, Tensor):
        np.save(path, content.float().cpu().numpy())
    else:
        Image.fromarray(content).save(path)


def _without_ending(image_id: str) -> str:
    """The id without the ending of an image's file.

    Example:
        >>> _without_ending("cat/1.JPG"), _without_ending("scan.nii.gz"), _without_ending("v1.5")
        ('cat/1', 'scan', 'v1.5')
    """
    ending = next((known for known in (*ENDINGS, ".npy", ".nii.gz", ".nii") if image_id.lower().endswith(known)), "")
    return image_id.removesuffix(image_id[len(image_id) - len(ending) :]) or image_id
