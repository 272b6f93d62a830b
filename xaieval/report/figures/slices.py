"""Slices of volumes and frames of videos, side by side as one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import DataError, choose_from

__all__ = ["FRAMES", "Cut", "Slices", "check_slices", "cut", "cuts_through", "joined", "strips"]

Slices = Literal["frames", "planes", "anatomy"]
Cut = tuple[int, int]  # an axis of `[D, H, W]`, and a place along it

FRAMES = 6  # most frames of a video in a figure
GAP = 0.03  # between slices, as a share of their height


def check_slices(slices: str | None, channels: int) -> Slices:
    """The slices that are shown. Default: frames of colour videos, else planes.

    Raises:
        DataError: There are no such slices.

    Example:
        >>> check_slices(None, 3), check_slices(None, 1), check_slices("anatomy", 1)
        ('frames', 'planes', 'anatomy')
    """
    if slices is None:
        return "frames" if channels == 3 else "planes"
    known = get_args(Slices)
    if slices not in known:
        raise DataError(f"no slices {slices!r}; {choose_from(slices, known)}")
    chosen: Slices = next(one for one in known if one == slices)
    return chosen


def cuts_through(maps: Float[Tensor, "m d h w"], slices: Slices) -> list[Cut]:
    """Where a volume is cut: at evenly spaced frames, or in three planes through the voxel whose mean over the maps is largest.

    Args:
        maps: The maps of a volume.
        slices: "frames", along the first axis; "planes", one across each axis in their order; or "anatomy", the planes of a
            scan whose axes lead to the right, to the front and up: axial, coronal and sagittal.

    Example:
        >>> maps = torch.zeros(1, 12, 4, 4)
        >>> maps[0, 3, 2, 1] = 1
        >>> cuts_through(maps, "frames"), cuts_through(maps, "anatomy")
        ([(0, 1), (0, 3), (0, 5), (0, 7), (0, 9), (0, 11)], [(2, 1), (1, 2), (0, 3)])
    """
    size = maps.shape[1:]
    if slices == "frames":
        count = min(FRAMES, size[0])
        return [(0, (2 * number + 1) * size[0] // (2 * count)) for number in range(count)]
    mean = maps.nan_to_num(0, 0, 0).mean(dim=0)
    whole = int(mean.argmax()) if mean.min() < mean.max() else None
    peak = [side // 2 for side in size] if whole is None else [int(at) for at in torch.unravel_index(torch.tensor(whole), size)]
    return [(axis, peak[axis]) for axis in ((0, 1, 2) if slices == "planes" else (2, 1, 0))]


def cut(volume: Float[Tensor, "c d h w"], cuts: Sequence[Cut], slices: Slices) -> list[Tensor]:
    """The slices `[C, h, w]` of a volume. Those of "anatomy" are turned upright: up is up, and the right is on the right."""
    turned = slices == "anatomy"
    found = [volume.select(axis + 1, at) for axis, at in cuts]
    return [torch.rot90(one, dims=(1, 2)) if turned else one for one in found]


def joined(slices: Sequence[Tensor], ground: float) -> Float[Tensor, "c h w"]:
    """Slices `[C, h, w]` side by side, in the middle of the height of the highest, with the ground between them."""
    height = max(one.shape[1] for one in slices)
    gap = max(1, round(GAP * height))
    width = sum(one.shape[2] + gap for one in slices) - gap
    strip = slices[0].new_full((slices[0].shape[0], height, width), ground)
    left = 0
    for one in slices:
        top = (height - one.shape[1]) // 2
        strip[:, top : top + one.shape[1], left : left + one.shape[2]] = one
        left += one.shape[2] + gap
    return strip


def strips(
    volumes: Float[Tensor, "n c d h w"], maps: Mapping[str, Float[Tensor, "n d h w"]], slices: Slices
) -> tuple[Float[Tensor, "n c y x"], dict[str, Float[Tensor, "n y x"]]]:
    """Volumes and their maps as images of their slices, the same ones of a volume and of all its maps.

    Between the slices images are white, and maps NaN.
    """
    pictures: list[Tensor] = []
    flat: dict[str, list[Tensor]] = {name: [] for name in maps}
    for number, volume in enumerate(volumes):
        cuts = cuts_through(torch.stack([one[number] for one in maps.values()]), slices)
        pictures.append(joined(cut(volume, cuts, slices), 1.0))
        for name, one in maps.items():
            flat[name].append(joined(cut(one[number][None], cuts, slices), torch.nan)[0])
    return torch.stack(pictures), {name: torch.stack(found) for name, found in flat.items()}
