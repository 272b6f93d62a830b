"""From a raw map to an explanation map in [0, 1], from the map to a mask, and from an image and its mask to an occluded image.

Each step is a function of whole batches; a `Protocol` holds the choices. Images are `[N, C, H, W]`, volumes `[N, C, D, H, W]`:
the axes after the channels are space.
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

__all__ = ["LINEAR", "Finished", "baseline", "finish", "gaussian_blur", "mask", "normalise", "occlude", "upsample"]

# Bilinear upsampling of a constant map leaves differences of a few units in the last place. A map whose range is at most this
# share of its largest absolute value is constant.
FLAT = 1e-6

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation mode by the number of axes


class Finished(NamedTuple):
    """Explanation maps `[N, H, W]` in [0, 1], and which of them were constant or had NaN or inf (bool `[N]` each)."""

    maps: Tensor
    constant: Tensor
    invalid: Tensor


def finish(maps: Float[Tensor, " n *space"], size: Sequence[int], protocol: Protocol) -> Finished:
    """Upsample raw maps to the size of the images and normalise them to [0, 1].

    A constant map, and a map with NaN or inf, becomes zeros and is flagged.

    Args:
        maps: Maps as the explainer returns them, `[N, h, w]`, at any resolution.
        size: Height and width of the images; of volumes depth, height and width.
        protocol: Its `normalisation`, `normalise_at`, `absolute`, `percentiles` and `map_epsilon` are used.
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
    """Interpolate to `size`, bilinearly (volumes trilinearly) with half-pixel centres (`align_corners=False`)."""
    size = tuple(size)
    if maps.shape[1:] == size:
        return maps
    return functional.interpolate(maps[:, None], size, mode=LINEAR[len(size)], align_corners=False)[:, 0]


def normalise(maps: Float[Tensor, " n *space"], protocol: Protocol) -> tuple[Float[Tensor, " n *space"], Bool[Tensor, " n"]]:
    """Normalise each map to [0, 1]; return the maps, and which of them were constant (those become zeros).

    Example:
        >>> normalise(torch.tensor([[[2.0, 4.0]], [[3.0, 3.0]]]), Protocol())
        (tensor([[[0., 1.]],
        <BLANKLINE>
                [[0., 0.]]]), tensor([False,  True]))
    """
    if protocol.normalisation == "none":
        return maps, torch.zeros(len(maps), dtype=torch.bool, device=maps.device)
    flat = maps.flatten(1) / 2  # exact, and the span of any float32 map still fits a float32
    low, high = flat.amin(dim=1), flat.amax(dim=1)
    largest = torch.maximum(low.abs(), high.abs())
    if protocol.normalisation == "percentile":
        low, high = (_percentile(flat, percent) for percent in protocol.percentiles)
    elif protocol.normalisation == "max":
        low = torch.zeros_like(high)
    span = high - low
    constant = span <= FLAT * largest
    span = span + protocol.map_epsilon / 2 if protocol.map_epsilon else span
    span = span.masked_fill(constant, torch.inf)  # constant maps become zeros
    return (flat - low[:, None]).div_(span[:, None]).view_as(maps), constant


def mask(maps: Float[Tensor, " n *space"], protocol: Protocol) -> Float[Tensor, " n *space"]:
    """The share of each pixel that is kept, in [0, 1].

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`.
        protocol: Its `masking`, `keep_percent`, `threshold` and `inverse` are used.

    Example:
        >>> mask(torch.tensor([[[0.1, 0.9, 0.4, 0.6]]]), Protocol(masking="top_binary", keep_percent=50))
        tensor([[[0., 1., 0., 1.]]])
    """
    kept = {
        "soft": lambda: maps,
        "top": lambda: maps * _largest(maps, protocol.keep_percent),
        "top_binary": lambda: _largest(maps, protocol.keep_percent).to(maps.dtype),
        "threshold": lambda: (maps >= protocol.threshold).to(maps.dtype),
        "otsu": lambda: (maps > _spread(_otsu_threshold(maps), maps)).to(maps.dtype),
    }[protocol.masking]()
    return 1 - kept if protocol.inverse else kept


def baseline(images: Float[Tensor, "n c *space"], protocol: Protocol) -> Float[Tensor, "#n c *#space"]:
    """The values that replace masked pixels, in the model's input space, broadcastable to the images.

    Args:
        images: Images, normalised as the model expects, `[N, C, H, W]`.
        protocol: Its `fill` and `space` are used, and for black its `mean` and `std`.

    Raises:
        ProtocolError: The fill is black, and the protocol has no `mean` and `std` or they do not fit the channels.
    """
    channels, space = images.shape[1], range(2, images.ndim)
    if protocol.fills_black:
        if protocol.mean is None or protocol.std is None:
            raise ProtocolError(
                f"fill={protocol.fill!r} in space={protocol.space!r} means black pixels, which needs the mean and std that the "
                "images were normalised with: give Protocol(mean=(...), std=(...))"
            )
        if not len(protocol.mean) == len(protocol.std) == channels:
            raise ProtocolError(f"mean and std need one number for each of the images' {channels} channels")
        mean, std = images.new_tensor(protocol.mean), images.new_tensor(protocol.std)
        return _spread(-mean / std, images[0])[None]
    if protocol.fill == "mean":
        return images.mean(dim=tuple(space), keepdim=True)
    if protocol.fill == "blur":
        return gaussian_blur(images, share=0.1)
    return images.new_zeros(1, channels, *(1 for _ in space))


def occlude(
    images: Float[Tensor, "n c *space"], masks: Float[Tensor, " n *space"], replacement: Float[Tensor, "#n c *#space"]
) -> Float[Tensor, "n c *space"]:
    """The masked images, `images * mask + replacement * (1 - mask)`.

    Pixels whose mask is exactly 1 keep their values bit by bit.
    """
    masks = masks[:, None]
    return (images * masks).addcmul_(replacement, 1 - masks)


def gaussian_blur(images: Float[Tensor, "n c *space"], share: float) -> Float[Tensor, "n c *space"]:
    """The images blurred by a Gaussian along each axis; axes of length 1 are skipped.

    Args:
        images: Images, `[N, C, H, W]`.
        share: Standard deviation, as a share of the shortest side.
    """
    axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
    sigma = max(share * min((images.shape[axis] for axis in axes), default=1), 0.1)
    radius = max(1, round(2.5 * sigma))
    steps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    for axis in axes:
        lines = images.movedim(axis, -1)
        padded = functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="reflect")
        blurred = functional.conv1d(padded, (kernel / kernel.sum())[None, None])
        images = blurred.view(lines.shape).movedim(-1, axis)
    return images


def _otsu_threshold(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Otsu's threshold of each map, in [0, 1], which best separates its values into two classes.

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
    """The values, one for each entry of the first axis of `over`, reshaped to broadcast over `over`."""
    return values.view(-1, *[1] * (over.ndim - 1))


def _largest(maps: Tensor, percent: float) -> Tensor:
    """Which pixels are among the largest `percent` % of their map; ties are broken row by row from the upper left."""
    flat = maps.flatten(1)
    count = round(flat.shape[1] * percent / 100)
    order = flat.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :count], True)
    return kept.view_as(maps)


def _percentile(flat: Tensor, percent: float) -> Tensor:
    """The percentile by linear interpolation; torch.quantile refuses more than 16 million values."""
    ordered = flat.sort(dim=1).values
    place = percent / 100 * (flat.shape[1] - 1)
    lower = int(place)
    upper = min(lower + 1, flat.shape[1] - 1)
    return ordered[:, lower].lerp(ordered[:, upper], place - lower)
