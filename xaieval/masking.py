"""From a raw map to an explanation map in [0, 1], from that to a mask, and from an image and a mask to an occluded image.

Each step is a function of whole batches; `Protocol` names the choices. Images are `[N, C, H, W]` or volumes
`[N, C, D, H, W]`: space is whatever follows the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from xaieval.config.protocol import Protocol
from xaieval.errors import ProtocolError

__all__ = ["LINEAR", "Finished", "baseline", "finish", "mask", "normalise", "occlude", "otsu_threshold", "upsample"]

# Bilinear upsampling of a constant map leaves differences of a few units in the last place; a map that varies less than
# this share of its largest value is constant.
FLAT = 1e-6

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation over so many axes


class Finished(NamedTuple):
    """Explanation maps `[N, H, W]` in [0, 1], and which of them had nothing to normalise or held NaN or inf (`[N]`)."""

    maps: Tensor
    constant: Tensor
    invalid: Tensor


def finish(maps: Float[Tensor, " n *space"], size: Sequence[int], protocol: Protocol) -> Finished:
    """Bring raw maps to the image's size and to [0, 1], as the protocol says.

    A map with NaN or inf, or with nothing to normalise, comes out as zeros and is flagged.

    Args:
        maps: as an explainer gives them, at any resolution.
        size: height and width of the images; of volumes depth, height and width.
        protocol: `normalisation`, `normalise_at`, `absolute`, `percentiles`, `map_epsilon`.
    """
    invalid = ~maps.isfinite().flatten(1).all(dim=1)
    maps = maps.masked_fill(_spread(invalid, maps), 0)
    maps = maps.abs() if protocol.absolute else maps
    if protocol.normalise_at == "layer":
        maps, constant = normalise(maps, protocol)
        maps = upsample(maps, size)
    else:
        maps, constant = normalise(upsample(maps, size), protocol)
    return Finished(maps.clamp(0, 1), constant & ~invalid, invalid)


def upsample(maps: Float[Tensor, " n *small"], size: Sequence[int]) -> Float[Tensor, " n *large"]:
    """Bilinear (of volumes trilinear) interpolation with half-pixel centres (`align_corners=False`) to `size`."""
    size = tuple(size)
    if maps.shape[1:] == size:
        return maps
    return functional.interpolate(maps[:, None], size, mode=LINEAR[len(size)], align_corners=False)[:, 0]


def normalise(maps: Float[Tensor, " n *space"], protocol: Protocol) -> tuple[Float[Tensor, " n *space"], Bool[Tensor, " n"]]:
    """Each map by itself to [0, 1], and which maps had nothing to normalise (those become zeros).

    Example:
        >>> normalise(torch.tensor([[[2.0, 4.0]], [[3.0, 3.0]]]), Protocol())
        (tensor([[[0., 1.]],
        <BLANKLINE>
                [[0., 0.]]]), tensor([False,  True]))
    """
    if protocol.normalisation == "none":
        return maps, torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
    flat = maps.flatten(1) / 2  # which is exact, and keeps the span of any float32 map a float32
    low, high = flat.amin(dim=1), flat.amax(dim=1)
    largest = torch.maximum(low.abs(), high.abs())
    if protocol.normalisation == "percentile":
        low, high = (_percentile(flat, percent) for percent in protocol.percentiles)
    elif protocol.normalisation == "max":
        low = torch.zeros_like(high)
    span = high - low
    constant = span <= FLAT * largest
    span = span + protocol.map_epsilon / 2 if protocol.map_epsilon else span
    span = span.masked_fill(constant, torch.inf)  # so that nothing to normalise becomes zeros
    return (flat - low[:, None]).div_(span[:, None]).view_as(maps), constant


def mask(maps: Float[Tensor, " n *space"], protocol: Protocol) -> Float[Tensor, " n *space"]:
    """What stays of each pixel, in [0, 1].

    Args:
        maps: explanation maps in [0, 1].
        protocol: `masking`, `keep_percent`, `threshold`, `inverse`.

    Example:
        >>> mask(torch.tensor([[[0.1, 0.9, 0.4, 0.6]]]), Protocol(masking="top_binary", keep_percent=50))
        tensor([[[0., 1., 0., 1.]]])
    """
    kept = {
        "soft": lambda: maps,
        "top": lambda: maps * _largest(maps, protocol.keep_percent),
        "top_binary": lambda: _largest(maps, protocol.keep_percent).to(maps.dtype),
        "threshold": lambda: (maps >= protocol.threshold).to(maps.dtype),
        "otsu": lambda: (maps > _spread(otsu_threshold(maps), maps)).to(maps.dtype),
    }[protocol.masking]()
    return 1 - kept if protocol.inverse else kept


def baseline(images: Float[Tensor, "n c *space"], protocol: Protocol) -> Float[Tensor, "#n c *#space"]:
    """What replaces the masked part of each image, in the model's input space, broadcastable to the images.

    Args:
        images: normalised as the model expects.
        protocol: `fill`, `space`, and for black the input's `mean` and `std`.

    Raises:
        ProtocolError: black is asked for and the protocol lacks the input's mean and std.
    """
    channels, space = images.shape[1], range(2, images.ndim)
    if protocol.fills_black:
        if protocol.mean is None or protocol.std is None:
            raise ProtocolError(
                f"fill={protocol.fill!r} in space={protocol.space!r} means black pixels, which takes the numbers that the "
                "images were normalised with: give Protocol(mean=(...), std=(...))"
            )
        if not len(protocol.mean) == len(protocol.std) == channels:
            raise ProtocolError(f"mean and std need one number for each of the images' {channels} channels")
        mean, std = images.new_tensor(protocol.mean), images.new_tensor(protocol.std)
        return _spread(-mean / std, images[0])[None]
    if protocol.fill == "mean":
        return images.mean(dim=tuple(space), keepdim=True)
    if protocol.fill == "blur":
        return _blurred(images)
    return images.new_zeros(1, channels, *(1 for _ in space))


def occlude(
    images: Float[Tensor, "n c *space"], masks: Float[Tensor, " n *space"], replacement: Float[Tensor, "#n c *#space"]
) -> Float[Tensor, "n c *space"]:
    """The masked images: `images * mask + replacement * (1 - mask)`.

    Where the mask is exactly 1 the image's own values come out, to the last bit.
    """
    masks = masks[:, None]
    return (images * masks).addcmul_(replacement, 1 - masks)


def otsu_threshold(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """The threshold in [0, 1] that separates each map's values best into two classes.

    It maximises the variance between the classes over 256 levels (Otsu, "A threshold selection method from gray-level
    histograms", IEEE Trans. SMC 1979, eq. 18).
    """
    levels = (maps.flatten(1) * 255).round().long()
    ones = torch.ones_like(levels, dtype=torch.float64)
    counts = ones.new_zeros(len(maps), 256).scatter_add_(1, levels, ones)
    share = counts / levels.shape[1]
    below = share.cumsum(dim=1)
    moment = (share * torch.arange(256, device=maps.device)).cumsum(dim=1)
    spread = (moment[:, -1:] * below - moment) ** 2 / (below * (1 - below))
    best = spread.nan_to_num(nan=0.0, posinf=0.0).argmax(dim=1)
    return ((best + 0.5) / 255).to(maps.dtype)


def _spread(values: Tensor, over: Tensor) -> Tensor:
    """One value for each entry of a tensor's first axis, broadcastable to the tensor."""
    return values.view(-1, *[1] * (over.ndim - 1))


def _blurred(images: Tensor) -> Tensor:
    """A Gaussian along each axis in turn, sigma a tenth of the shortest side; axes of one cell have nothing to blur."""
    axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
    sigma = max(0.1 * min((images.shape[axis] for axis in axes), default=1), 0.1)
    radius = max(1, round(2.5 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    for axis in axes:
        lines = images.movedim(axis, -1)
        padded = functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="reflect")
        blurred = functional.conv1d(padded, (kernel / kernel.sum())[None, None])
        images = blurred.view(lines.shape).movedim(-1, axis)
    return images


def _largest(maps: Tensor, percent: float) -> Tensor:
    """Which pixels are among the largest `percent` % of their map; of equal ones the upper left come first."""
    flat = maps.flatten(1)
    count = round(flat.shape[1] * percent / 100)
    order = flat.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :count], True)
    return kept.view_as(maps)


def _percentile(flat: Tensor, percent: float) -> Tensor:
    """Linear interpolation between the order statistics; torch.quantile refuses more than 16 million values."""
    ordered = flat.sort(dim=1).values
    place = percent / 100 * (flat.shape[1] - 1)
    lower = int(place)
    upper = min(lower + 1, flat.shape[1] - 1)
    return ordered[:, lower].lerp(ordered[:, upper], place - lower)
