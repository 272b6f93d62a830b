"""Shares of the map on the object, as they are or divided by what chance gives: the object's share of the image.

In a special case both metrics equal one of `xaieval.metrics.localisation`; other tools use these names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from xaieval.errors import MetricError
from xaieval.metrics.localisation import NEEDED, best_inside, checked_maps, relevance_mass, usable
from xaieval.metrics.metric import Metric

__all__ = ["attribution_inside", "attribution_localisation", "top_k_inside", "top_k_intersection"]

Maps = Float[Tensor, " n *space"]
Masks = Bool[Tensor, " n *space"]

THEINER = "Theiner et al. 2022, arXiv 2104.14995"
KOHLBRENNER = "Kohlbrenner et al. 2020, arXiv 1910.09840"


def top_k_inside(maps: Maps, masks: Masks, k: int = 1000, concept_influence: bool = False) -> Float[Tensor, " n"]:
    """Share of the k largest pixels that lies on the object, in percent, 0 to 100, higher is better.

    With `concept_influence` it is divided by the object's share of the image: chance is 100, and the maximum is 100 divided by
    that share. If equal pixels compete for the last of the k places, the mean over all choices. NaN if there is no object or a
    value is not finite.

    Args:
        maps: Explanation maps, `[N, H, W]`, of any range; only their order matters.
        masks: The pixels of the object, bool `[N, H, W]`.
        k: Number of pixels, at least 1. An object of fewer than k pixels cannot reach 100.
        concept_influence: Divide by the object's share of the image.

    Raises:
        MetricError: Maps and masks do not fit, or the maps have fewer than k pixels.

    Reference:
        Theiner et al., "Interpretable Semantic Photo Geolocation", WACV 2022 (arXiv 2104.14995), concept influence; Quantus'
        `TopKIntersection`.

    Example:
        >>> maps, masks = torch.tensor([[[0.9, 0.5, 0.1, 0.0]]]), torch.tensor([[[True, False, True, False]]])
        >>> top_k_inside(maps, masks, k=1), top_k_inside(maps, masks, k=1, concept_influence=True)
        (tensor([100.], dtype=torch.float64), tensor([200.], dtype=torch.float64))
    """
    flat, inside = checked_maps(maps, masks)
    if _checked_k(k) > flat.shape[1]:
        raise MetricError(f"k is a number of pixels, and maps have {flat.shape[1]}; got {k}: top_k_intersection(k=...) sets it")
    share = 100 * best_inside(flat, inside, torch.full((len(flat),), k, device=flat.device)) / k
    return usable(_relative(share, inside) if concept_influence else share, flat, inside)


def top_k_intersection(k: int = 1000, concept_influence: bool = False, *, name: str = "top_k_intersection") -> Metric:
    """Top-k intersection, in percent, higher is better: see `top_k_inside`.

    Args:
        k: Number of pixels; 1000 as in Quantus. `relevance_rank_accuracy` takes as many pixels as the object has.
        concept_influence: Divide by the object's share of the image.
        name: Name of the metric, for a run with several numbers.

    Raises:
        MetricError: k is not a positive number.

    Example:
        >>> top_k_intersection(k=50, name="top_50").settings
        {'k': 50, 'concept_influence': False}
    """
    settings: dict[str, Any] = {"k": _checked_k(k), "concept_influence": concept_influence}
    return _metric(name, partial(top_k_inside, **settings), "top-k %", settings, THEINER)


def attribution_inside(relevance: Maps, masks: Masks, weighted: bool = False, max_size: float = 1.0) -> Float[Tensor, " n"]:
    """Share of the positive relevance on the object, in percent, 0 to 100, higher is better.

    It equals `relevance_mass`. With `weighted` it is divided by the object's share of the image: a constant map has 100, and
    the maximum is 100 divided by that share. NaN as for `relevance_mass`, and for an object larger than `max_size`.

    Args:
        relevance: Relevance of the pixels, `[N, H, W]`, of any range.
        masks: The pixels of the object, bool `[N, H, W]`.
        weighted: Divide by the object's share of the image.
        max_size: Largest share of the image that an object may cover, in (0, 1]. The paper reports subsets of small objects.

    Raises:
        MetricError: Relevance and masks do not fit, or the size is out of range.

    Reference:
        Kohlbrenner et al., "Towards best practice in explaining neural network decisions with LRP", IJCNN 2020 (arXiv
        1910.09840), the inside-total relevance ratio and its weighted form.

    Example:
        >>> relevance, masks = torch.tensor([[[3.0, 1.0, -5.0, 0.0]]]), torch.tensor([[[True, False, True, False]]])
        >>> attribution_inside(relevance, masks), attribution_inside(relevance, masks, weighted=True)
        (tensor([75.], dtype=torch.float64), tensor([150.], dtype=torch.float64))
    """
    _, inside = checked_maps(relevance, masks)
    share = relevance_mass(relevance, masks)
    large = inside.double().mean(dim=1) > _checked_size(max_size)
    return (_relative(share, inside) if weighted else share).masked_fill(large, torch.nan)


def attribution_localisation(
    weighted: bool = False, max_size: float = 1.0, *, name: str = "attribution_localisation"
) -> Metric:
    """Attribution localisation, in percent, higher is better: see `attribution_inside`.

    Args:
        weighted: Divide by the object's share of the image.
        max_size: Largest share of the image that an object may cover, in (0, 1]; other images have no value.
        name: Name of the metric, for a run with several settings.

    Raises:
        MetricError: The size is out of range.

    Example:
        >>> attribution_localisation(weighted=True).settings
        {'weighted': True, 'max_size': 1.0}
    """
    settings: dict[str, Any] = {"weighted": weighted, "max_size": _checked_size(max_size)}
    return _metric(name, partial(attribution_inside, **settings), "attribution inside %", settings, KOHLBRENNER)


def _relative(share: Tensor, inside: Tensor) -> Tensor:
    return share * inside.shape[1] / inside.sum(dim=1)


def _checked_k(k: int) -> int:
    if k < 1:
        raise MetricError(f"k is a number of pixels, at least 1; got {k}")
    return k


def _checked_size(max_size: float) -> float:
    if not 0 < max_size <= 1:
        raise MetricError(f"max_size is a share of the image, in (0, 1]; got {max_size}")
    return max_size


def _metric(name: str, function: Callable[..., Tensor], label: str, settings: Mapping[str, Any], paper: str) -> Metric:
    return Metric(
        name,
        function,
        higher_is_better=True,
        label=label,
        needs=NEEDED,
        settings=settings,
        paper=paper,
        family="localisation",
    )


METRICS = (top_k_intersection(), attribution_localisation())
