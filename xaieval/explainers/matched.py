"""Matched controls: for each map, other maps of the same size. A metric that prefers the map to them sees more than its size.

A matched control has the values of the map at other pixels, so its mask keeps equally much of the image with any masking.
`dimmed` is a mask and not a map: the mean of the map's mask everywhere.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xaieval.masking import gaussian_blur

__all__ = ["blurred", "choose_donors", "dimmed", "distances", "shifted", "varies", "with_values_of"]

NEAREST = 0.25  # share of a side: a shifted map moves at least that far along one axis
LEVELS = 4096  # of the places that give an order
LOW_PASS = 1 / 16  # standard deviation of the low-pass of an image, as a share of its shortest side


def varies(maps: Float[Tensor, " n *space"]) -> Bool[Tensor, " n"]:
    """Whether each map has a matched control, `[N]`: a constant map is the same at any place."""
    flat = maps.flatten(1)
    return flat.amax(dim=1) > flat.amin(dim=1)


def with_values_of(maps: Float[Tensor, " n *space"], places: Float[Tensor, " n *space"]) -> Float[Tensor, " n *space"]:
    """The values of each map in the order of `places`: its largest value where `places` is largest, and so on.

    Values of `places` are rounded to 1/4096 of their range, so that rounding errors of the model do not matter. Equal ones are
    ordered row by row from the upper left, by a stable sort.

    Args:
        maps: Maps that give the values, `[N, H, W]`; of volumes `[N, D, H, W]`.
        places: Maps that give the places, of the same shape and any range.

    Example:
        >>> with_values_of(torch.tensor([[[0.9, 0.1, 0.4]]]), torch.tensor([[[1.0, 2.0, 3.0]]]))
        tensor([[[0.1000, 0.4000, 0.9000]]])
    """
    values = maps.flatten(1).sort(dim=1, descending=True).values
    flat = places.flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    steps = ((flat - low) / (high - low).clamp(min=torch.finfo(flat.dtype).tiny) * LEVELS).round()
    order = steps.argsort(dim=1, descending=True, stable=True)
    return torch.empty_like(values).scatter_(1, order, values).view(maps.shape)


def distances(numbers: Float[Tensor, "n axes"], sides: tuple[int, ...]) -> Int[Tensor, "n axes"]:
    """By how many pixels each map is rolled, `[N, A]`: at least a quarter of the side along one axis, at most half of it.

    Offsets as shares of the sides are uniform over the square from -1/2 to 1/2 without the square from -1/4 to 1/4; axes of
    length 1 are left out.

    Args:
        numbers: Uniform random numbers in [0, 1), one for each image and axis.
        sides: Lengths of the A axes.

    Example:
        >>> distances(torch.tensor([[0.5, 0.75], [0.1, 0.5]]), (100, 200))
        tensor([[  0,  67],
                [-43,   0]])
    """
    moved = torch.tensor([side > 1 for side in sides], device=numbers.device)
    axes = max(int(moved.sum()), 1)
    offsets = torch.where(moved, numbers.double() - 0.5, 0.0)
    farthest = offsets.abs().amax(dim=1, keepdim=True).clamp(min=1e-9)
    # The farthest coordinate to the power of the number of axes is uniform in a cube, so this stretches the cube evenly onto
    # the part of it that is far enough.
    hole = (2 * NEAREST) ** axes
    stretched = (hole + (1 - hole) * (2 * farthest) ** axes) ** (1 / axes) / 2
    shares = offsets * stretched / farthest
    lengths = torch.tensor(sides, device=numbers.device)
    return ((shares.abs() * lengths - 1e-6).ceil() * shares.sign()).long()


def shifted(maps: Float[Tensor, " n *space"], offsets: Int[Tensor, "n axes"]) -> Float[Tensor, " n *space"]:
    """Each map rolled by its own offset; pixels that leave the image on one side enter on the other.

    Args:
        maps: Maps, `[N, H, W]`; of volumes `[N, D, H, W]`.
        offsets: Pixels for each map and axis, `[N, A]`.

    Example:
        >>> shifted(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[0, 1]]))
        tensor([[[3., 1., 2.]]])
    """
    axes = maps.ndim - 1
    places = [torch.arange(len(maps), device=maps.device).view(-1, *[1] * axes)]
    for axis, side in enumerate(maps.shape[1:]):
        line = (torch.arange(side, device=maps.device) - offsets[:, axis, None].to(maps.device)) % side
        places.append(line.view(len(maps), *[side if other == axis else 1 for other in range(axes)]))
    return maps[tuple(places)]


def choose_donors(
    numbers: Float[Tensor, "n donors"], allowed: Bool[Tensor, "n donors"]
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """For each image a donor at random among those that are allowed, `[N]`, and whether there is one, `[N]`.

    Args:
        numbers: Uniform random numbers in [0, 1), one for each image and donor.
        allowed: Which donors an image may have: those with another id and a map.

    Example:
        >>> choose_donors(torch.tensor([[0.3, 0.1, 0.2]]), torch.tensor([[True, False, True]]))
        (tensor([2]), tensor([True]))
    """
    return numbers.masked_fill(~allowed, torch.inf).argmin(dim=1), allowed.any(dim=1)


def dimmed(masks: Float[Tensor, " n *space"]) -> Float[Tensor, " n *space"]:
    """The mean of each mask at every pixel, which dims the whole image."""
    return masks.mean(dim=tuple(range(1, masks.ndim)), keepdim=True).expand_as(masks)


def blurred(images: Float[Tensor, "n c *space"]) -> Float[Tensor, " n *space"]:
    """The low-pass of each image's brightness, the mean over its channels: model-free places for `with_values_of`."""
    return gaussian_blur(images.mean(dim=1, keepdim=True), LOW_PASS)[:, 0]
