"""Sufficiency and consistency: do images with the same explanation get the same prediction.

Both compare the map of an image with those of other images, so they are questions about a set of images, not columns of a run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.subsets import check_least, grid_cells

__all__ = ["consistency", "strongest_cell", "sufficiency"]

Maps = Float[Tensor, " n *space"]
Judge = Callable[[Tensor, Tensor], Tensor]


def sufficiency(
    maps: Maps, predicted: Int[Tensor, " n"], threshold: float = 0.6, distance: str = "seuclidean"
) -> Float[Tensor, " n"]:
    """Sufficiency: other images with a similar map that have the same prediction, 0 to 100 %, higher is better.

    NaN for an image whose map is similar to that of no other image, and for a map with NaN.

    Args:
        maps: Maps of all images of the set, `[N, H, W]`, such as those of `xaieval.explain`.
        predicted: The class predicted for each image, `[N]`.
        threshold: Largest distance of similar maps, as a share of the largest distance in the set.
        distance: "seuclidean", each pixel divided by its standard deviation over the set, as in Quantus; "euclidean"; or
            "correlation", 1 minus Pearson's.

    Raises:
        MetricError: There is not one prediction for each map, or the distance is unknown.

    Reference:
        Dasgupta et al., "Framework for Evaluating Faithfulness of Local Explanations", ICML 2022 (arXiv 2202.00734),
        sufficiency; Quantus' `Sufficiency`.

    Example:
        >>> maps = torch.tensor([[[1.0, 0.0]], [[0.9, 0.1]], [[0.9, 0.0]], [[0.0, 1.0]]])
        >>> sufficiency(maps, torch.tensor([3, 3, 5, 5]), threshold=0.2, distance="euclidean")
        tensor([50., 50.,  0., nan], dtype=torch.float64)
    """
    _check(maps, predicted)
    if distance not in DISTANCES:
        raise MetricError(f"no distance {distance!r}; {choose_from(distance, DISTANCES)}")
    apart = DISTANCES[distance](maps.double().flatten(1))
    return _same_prediction(apart <= threshold * apart.nan_to_num(0).amax(), predicted)


def consistency(
    maps: Maps, predicted: Int[Tensor, " n"], discretise: Callable[[Tensor], Tensor] | None = None
) -> Float[Tensor, " n"]:
    """Consistency: other images with the same discretised map that have the same prediction, 0 to 100 %, higher is better.

    NaN for an image whose discretised map no other image has.

    Args:
        maps: Maps of all images of the set, `[N, H, W]`.
        predicted: The class predicted for each image, `[N]`.
        discretise: Function from maps to a whole number for each, `[N]`. Default: `strongest_cell`.

    Raises:
        MetricError: There is not one prediction and one whole number for each map.

    Reference:
        Dasgupta et al., ICML 2022 (arXiv 2202.00734), consistency; Quantus' `Consistency`.

    Example:
        >>> maps = torch.tensor([[[1.0, 0.0]], [[0.9, 0.1]], [[0.9, 0.0]], [[0.0, 1.0]]])
        >>> consistency(maps, torch.tensor([3, 3, 5, 5]))
        tensor([50., 50.,  0., nan], dtype=torch.float64)
    """
    _check(maps, predicted)
    labels = (discretise or strongest_cell)(maps)
    if labels.shape != predicted.shape:
        raise MetricError(f"discretise gives a whole number for each of {len(maps)} maps, got {list(labels.shape)}")
    return _same_prediction(labels[:, None] == labels, predicted)


def strongest_cell(maps: Maps, grid_size: int = 3) -> Int[Tensor, " n"]:
    """The cell of a grid with the largest sum of absolute values, of equal ones the first.

    Args:
        maps: Maps, `[N, H, W]`.
        grid_size: Cells along each side.

    Raises:
        MetricError: There is no cell.

    Example:
        >>> strongest_cell(torch.eye(6)[None].flip(1) * torch.arange(6), grid_size=3)
        tensor([2])
    """
    check_least(grid_size=(grid_size, 1))
    numbers = grid_cells(maps.shape[1:], grid_size, maps.device).flatten()
    inside = numbers[:, None] == torch.arange(int(numbers.max()) + 1, device=maps.device)
    return (maps.double().abs().flatten(1) @ inside.double()).argmax(dim=1)


def _same_prediction(alike: Bool[Tensor, "n n"], predicted: Tensor) -> Float[Tensor, " n"]:
    """Of the other images that are alike, the share with the same prediction, in percent; 0 / 0 is NaN."""
    others = alike & ~torch.eye(len(alike), dtype=torch.bool, device=alike.device)
    same = others & (predicted[:, None] == predicted)
    return 100 * same.sum(dim=1).double() / others.sum(dim=1)


def _standardised(flat: Tensor) -> Tensor:
    spread = flat.std(dim=0)
    return _euclidean((flat / spread)[:, spread > 0])  # a pixel that never varies makes no difference


def _euclidean(flat: Tensor) -> Tensor:
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")


def _correlation(flat: Tensor) -> Tensor:
    centred = flat - flat.mean(dim=1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True)  # of a constant map NaN: alike to none
    return 1 - unit @ unit.T


DISTANCES = {"seuclidean": _standardised, "euclidean": _euclidean, "correlation": _correlation}


def _check(maps: Tensor, predicted: Tensor) -> None:
    if predicted.ndim != 1 or len(maps) != len(predicted) or len(maps) < 2:
        raise MetricError(
            "maps [N, H, W] of a set of two or more images and their predictions [N] are compared, got "
            f"{list(maps.shape)} and {list(predicted.shape)}"
        )
