"""From an explanation map to a mask."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.config.protocol import Protocol
from xaieval.masking.maps import spread

__all__ = ["mask"]


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
        "otsu": lambda: (maps > spread(_otsu_threshold(maps), maps)).to(maps.dtype),
    }[protocol.masking]()
    return 1 - kept if protocol.inverse else kept


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


def _largest(maps: Tensor, percent: float) -> Tensor:
    """Which pixels are among the largest `percent` % of their map; ties are broken row by row from the upper left."""
    flat = maps.flatten(1)
    count = round(flat.shape[1] * percent / 100)
    order = flat.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order[:, :count], True)
    return kept.view_as(maps)
