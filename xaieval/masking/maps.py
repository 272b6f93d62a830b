"""From a raw map to an explanation map in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from xaieval.config.protocol import Protocol

__all__ = ["FLAT", "LINEAR", "Finished", "finish", "normalise", "spread", "upsample"]

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
    maps = maps.masked_fill(spread(invalid, maps), 0)
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


def spread(values: Tensor, over: Tensor) -> Tensor:
    """The values, one for each entry of the first axis of `over`, reshaped to broadcast over `over`."""
    return values.view(-1, *[1] * (over.ndim - 1))


def _percentile(flat: Tensor, percent: float) -> Tensor:
    """The percentile by linear interpolation; torch.quantile refuses more than 16 million values."""
    ordered = flat.sort(dim=1).values
    place = percent / 100 * (flat.shape[1] - 1)
    lower = int(place)
    upper = min(lower + 1, flat.shape[1] - 1)
    return ordered[:, lower].lerp(ordered[:, upper], place - lower)
