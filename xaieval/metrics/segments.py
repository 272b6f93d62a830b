"""The order in which segments of images, or their pixels, are changed one after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xaieval.masking.segments import label_maps, slic_segments

__all__ = ["label_maps", "slic_segments"]


@dataclass(frozen=True)
class Order:
    """In which order the units of each image, its pixels or its segments, are changed.

    Attributes:
        ranks: For each pixel the rank of its unit, 0 for the most relevant one, `[N, H, W]`.
        units: Number of units of each image, `[N]`.
    """

    ranks: Tensor
    units: Tensor

    def reversed(self) -> Order:
        """The least relevant unit first."""
        return Order(self.over_space(self.units) - 1 - self.ranks, self.units)

    def over_space(self, numbers: Tensor) -> Tensor:
        """Numbers `[N]`, one for each image, as they broadcast over its pixels."""
        return numbers.view(-1, *[1] * (self.ranks.ndim - 1))

    def first(self, counts: Tensor) -> Tensor:
        """Which pixels belong to the first units, bool `[N, H, W]`; their number is `counts`, `[N]`."""
        return self.ranks < self.over_space(counts)


def order_of(maps: Float[Tensor, " n *space"], labels: Int[Tensor, " n *space"] | None) -> Order:
    """The order of segments by the mean of the map over each, or of single pixels; the most relevant comes first.

    Equal segments come in the order of their labels, equal pixels row by row from the upper left.

    Args:
        maps: Explanation maps, `[N, H, W]`.
        labels: The number of the segment of each pixel, from 0 without gaps; None for single pixels.

    Example:
        >>> order_of(torch.tensor([[[0.1, 0.7, 0.9, 0.2]]]), torch.tensor([[[0, 0, 1, 2]]])).ranks
        tensor([[[1, 1, 0, 2]]])
    """
    flat = maps.flatten(1)
    if labels is None:
        return Order(ranks_of(flat).view(maps.shape), torch.full((len(maps),), flat.shape[1], device=maps.device))
    numbers = labels.flatten(1)
    sums = torch.zeros(len(maps), int(numbers.max()) + 1, dtype=torch.float64, device=maps.device)
    sizes = sums.scatter_add(1, numbers, torch.ones_like(flat, dtype=torch.float64))
    means = (sums.scatter_add(1, numbers, flat.double()) / sizes).nan_to_num(nan=-torch.inf)
    means = means.masked_fill(sizes == 0, -torch.inf)  # images may have fewer segments than others: those come last
    return Order(ranks_of(means).gather(1, numbers).view(maps.shape), numbers.amax(dim=1) + 1)


def ranks_of(flat: Float[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """The rank of each value in its row, 0 for the largest; of equal values the first has the lower rank."""
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
