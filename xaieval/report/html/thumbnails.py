"""Images and their maps as thumbnails in a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import interpolate

from xaieval.data.preprocessing import to_visible
from xaieval.errors import DataError, OutputError, advice
from xaieval.report.figures.slices import Slices, check_slices, cut, cuts_through, joined
from xaieval.report.html.pictures import in_colour, overlay
from xaieval.results.files import KEPT_MAPS, write_file, writing

__all__ = ["Maps"]

SIDE = 128  # pixels of the longer side
SIDE_OF_SLICE = 112  # of the longest side of a volume


@dataclass(frozen=True)
class Maps:
    """Images and their explanation maps, for a report.

    Attributes:
        ids: The N ids of the images, as in the rows.
        pixels: The images in [0, 1], `[N, 3, H, W]`, or `[N, 1, H, W]` for grey images. Of images with other numbers of
            channels, in any unit, the first three are shown, of two the first, stretched from black to white. Or volumes
            `[N, C, D, H, W]`.
        maps: For each method the result of `xaieval.explain` on these images: maps `[N, H, W]` in [0, 1] by layer, of volumes
            `[N, D, H, W]`.
        slices: What is shown of volumes, as in `xaieval.show`; the same slices for all maps of a volume.
        masked: The images masked by each of the maps, in the same order and shape as `pixels`, in [0, 1] or as bytes (default:
            no masked images are shown).

    Raises:
        DataError: Images or maps have the wrong shape.

    Example:
        >>> import torch
        >>> Maps(["a", "b"], torch.rand(2, 3, 8, 8), {"gradcam": {"layer4": torch.rand(2, 8, 8)}}).number
        {'a': 0, 'b': 1}
    """

    ids: Sequence[str]
    pixels: Tensor
    maps: Mapping[str, Mapping[str, Tensor]]
    slices: Slices | None = None
    masked: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, count = tuple(self.pixels.shape), len(self.ids)
        if len(shape) not in (4, 5) or shape[0] != count or not shape[1]:
            raise DataError(
                f"pixels of {count} ids are [{count}, 3, H, W] in [0, 1], or volumes [{count}, C, D, H, W]; got {list(shape)}"
            )
        check_slices(self.slices, shape[1])
        expected = (count, *shape[2:])
        for method, layers in self.maps.items():
            for layer, maps in layers.items():
                if tuple(maps.shape) != expected:
                    raise DataError(f"maps of {method} at {layer} are {list(expected)}; got {list(maps.shape)}")
        for method, layers in self.masked.items():
            for layer, images in layers.items():
                if images.shape[:1] + images.shape[2:] != expected or not images.shape[1]:
                    wanted = [count, shape[1], *shape[2:]]
                    raise DataError(f"images masked by {method} at {layer} are {wanted}; got {list(images.shape)}")

    def save(self, folder: str | Path) -> None:
        """Write `maps.safetensors` into the folder of a run, from which `report` then shows the maps; they are rounded to half.

        Args:
            folder: The folder; created if it does not exist.

        Raises:
            OutputError: The folder cannot be written.
        """
        parts = {"maps": self.maps, "masked": self.masked}
        pairs = {part: [[method, layer] for method in given for layer in given[method]] for part, given in parts.items()}
        tensors = {"pixels": self.pixels} | {
            f"{part}.{number}": parts[part][method][layer] if part == "masked" else parts[part][method][layer].half()
            for part, given in pairs.items()
            for number, (method, layer) in enumerate(given)
        }
        about = json.dumps({"ids": list(self.ids), "slices": self.slices, **pairs})
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"about": about})
        with writing(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_file(Path(folder) / KEPT_MAPS, lambda file: file.write(content))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The maps that a run keeps in its folder; `scores.to_html(path, Maps.load(folder))` shows them.

        Raises:
            OutputError: There are none, or their file is damaged.
        """
        path = Path(folder) / KEPT_MAPS
        if not path.exists():
            keeping = advice("score with keep_maps=24", "score with --keep-maps 24")
            raise OutputError(f"'{folder}' holds no maps: there is no {KEPT_MAPS}; {keeping} to keep some")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["about"])
                parts: dict[str, dict[str, dict[str, Tensor]]] = {"maps": {}, "masked": {}}
                for part, found in parts.items():
                    for number, (method, layer) in enumerate(about[part]):
                        found.setdefault(method, {})[layer] = file.get_tensor(f"{part}.{number}")
                return cls(about["ids"], file.get_tensor("pixels"), parts["maps"], about["slices"], parts["masked"])
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, DataError) as error:
            raise OutputError(f"'{path}' is damaged: {error}; scoring again into this folder replaces it") from error

    @property
    def number(self) -> dict[str, int]:
        """The position of each image by its id."""
        return {str(image): place for place, image in enumerate(self.ids)}

    @property
    def are_volumes(self) -> bool:
        """Whether the images are volumes, of which slices are shown."""
        return self.pixels.ndim == 5

    def picture(self, place: int, side: int = SIDE) -> Any:
        """The thumbnail of an image, `[h, w, 3]` in [0, 1], its longer side at most `side` pixels."""
        return self._visible(place, self.pixels[place], side)

    def map_over(self, place: int, layer: str, method: str) -> Any:
        """The thumbnail of a map over its image in grey, `[h, w, 3]` in [0, 1]."""
        return overlay(self.picture(place), self._map(place, layer, method, SIDE))

    def map_in_colour(self, place: int, layer: str, method: str, side: int = SIDE) -> Any:
        """The thumbnail of a map in colour, `[h, w, 3]` in [0, 1]."""
        return in_colour(np.nan_to_num(self._map(place, layer, method, side)))

    def masked_picture(self, place: int, layer: str, method: str, side: int = SIDE) -> Any:
        """The thumbnail of the image masked by a map, `[h, w, 3]` in [0, 1]; None if it was not given."""
        images = self.masked.get(method, {}).get(layer)
        if images is None:
            return None
        one = images[place]
        return self._visible(place, one if one.is_floating_point() else one / 255, side)

    def _visible(self, place: int, image: Tensor, side: int) -> Any:
        whole = to_visible(image[None].detach().float().cpu())[0]
        return self._flat(place, whole, 1.0, side).clamp(0, 1).permute(1, 2, 0).numpy()

    def _map(self, place: int, layer: str, method: str, side: int) -> Any:
        one = self.maps[method][layer][place].detach().float().cpu()
        return self._flat(place, one[None], torch.nan, side)[0].numpy()

    def _flat(self, place: int, values: Tensor, ground: float, side: int) -> Tensor:
        """An image or a map of it `[C, H, W]` as a thumbnail; of volumes `[C, D, H, W]` the slices side by side."""
        if not self.are_volumes:
            return _small(values, side)
        slices = check_slices(self.slices, self.pixels.shape[1])
        of_volume = [one[place].detach().float().cpu() for layers in self.maps.values() for one in layers.values()]
        cuts = cuts_through(torch.stack(of_volume or [torch.zeros(self.pixels.shape[2:])]), slices)
        share = SIDE_OF_SLICE / max(self.pixels.shape[2:])
        return joined([_small(one, round(share * max(one.shape[1:]))) for one in cut(values, cuts, slices)], ground)


def _small(picture: Tensor, most: int) -> Tensor:
    """An image `[C, h, w]` whose longer side has `most` pixels; smaller images are unchanged."""
    share = most / max(picture.shape[1:])
    if share >= 1:
        return picture
    size = [max(1, round(side * share)) for side in picture.shape[1:]]
    return interpolate(picture[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
