"""Numbers that describe a map. They say nothing of the model, so none of them is better high or low.

They show what a method's maps are like: concentrated or spread out, and where. Read beside a metric they tell whether methods
differ in more than the size of their maps.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError
from xaieval.metrics.metric import Metric
from xaieval.metrics.torchmetrics_classes import MeanOverImages

__all__ = [
    "DESCRIPTION_METRICS",
    "AreaAboveHalf",
    "CenterX",
    "CenterY",
    "Entropy",
    "Sparseness",
    "area_above_half",
    "center_of_mass",
    "entropy",
    "sparseness",
]


def sparseness(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Sparseness of each map, the Gini index of its absolute values, 0 (all pixels equal) to 1 - 1 / pixels (a single one).

    NaN for a map of zeros.

    Args:
        maps: `[N, H, W]`, of volumes `[N, D, H, W]`.

    Raises:
        MetricError: they are no maps.

    Reference:
        Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training", ICML 2020 (arXiv 1810.06583),
        who take the index from Hurley and Rickard, "Comparing Measures of Sparsity", 2009.

    Example:
        >>> sparseness(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]))
        tensor([0.0000, 0.7500,    nan], dtype=torch.float64)
    """
    shares = _shares(maps).sort(dim=1).values
    count = shares.shape[1]
    ranks = torch.arange(1, count + 1, dtype=shares.dtype, device=shares.device)
    return ((2 * ranks - count - 1) * shares).sum(dim=1) / count


def entropy(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Entropy of each map, in nats, 0 (a single pixel) to the logarithm of the number of pixels (all equal).

    The absolute values, divided by their sum, are taken for a distribution over pixels. It grows with the image's size:
    compare maps of one size. NaN for a map of zeros.

    Args:
        maps: `[N, H, W]`, of volumes `[N, D, H, W]`.

    Raises:
        MetricError: they are no maps.

    Reference:
        Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020 (arXiv 2005.00631), who call it
        the complexity of an explanation.

    Example:
        >>> entropy(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]]))
        tensor([1.3863, 0.0000], dtype=torch.float64)
    """
    return torch.special.entr(_shares(maps)).sum(dim=1)


def area_above_half(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Area of each map's pixels above one half, in percent, 0 to 100.

    For maps that were normalised by their maximum, half is half of the maximum. 0 for a map of zeros, NaN for one with NaN.

    Args:
        maps: explanation maps in [0, 1], `[N, H, W]`, of volumes `[N, D, H, W]`.

    Raises:
        MetricError: they are no maps.

    Example:
        >>> area_above_half(torch.tensor([[[0.0, 0.5], [0.6, 1.0]]]))
        tensor([50.], dtype=torch.float64)
    """
    flat = _flat(maps)
    return (100 * (flat > 0.5).double().mean(dim=1)).masked_fill(flat.isnan().any(dim=1), torch.nan)


def center_of_mass(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n axes"]:
    """Centre of mass of each map's absolute values, along each axis in [0, 1] from the first pixel's edge to the last one's.

    One half is the middle of the image, whatever its size. NaN for a map of zeros.

    Args:
        maps: `[N, H, W]`, of volumes `[N, D, H, W]`.

    Returns:
        Along the axes in the order of the map's: y and x, of volumes z, y and x.

    Raises:
        MetricError: they are no maps.

    Example:
        >>> center_of_mass(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
        tensor([[0.7500, 0.7500],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    shares = _shares(maps).view(maps.shape)
    axes = range(1, maps.ndim)
    return torch.stack([_center(shares.sum(dim=[other for other in axes if other != axis])) for axis in axes], dim=1)


def _center(shares: Tensor) -> Tensor:
    """Of shares along one axis, `[N, pixels]`, which add up to 1."""
    count = shares.shape[1]
    places = (torch.arange(count, dtype=shares.dtype, device=shares.device) + 0.5) / count
    return (shares * places).sum(dim=1)


def _center_x(maps: Tensor) -> Tensor:
    return center_of_mass(maps)[:, -1]


def _center_y(maps: Tensor) -> Tensor:
    return center_of_mass(maps)[:, -2]


def _flat(maps: Tensor) -> Tensor:
    if maps.ndim < 3:
        raise MetricError(f"maps are [N, H, W] (volumes [N, D, H, W]), got {list(maps.shape)}")
    return maps.double().flatten(1)


def _shares(maps: Tensor) -> Tensor:
    """Absolute values of each map divided by their sum, `[N, pixels]`; NaN for a map of zeros."""
    flat = _flat(maps).abs()
    return flat / flat.sum(dim=1, keepdim=True)


CHALASANI = "Chalasani et al. 2020, arXiv 1810.06583"
BHATT = "Bhatt et al. 2020, arXiv 2005.00631"

SPARSENESS = Metric("sparseness", sparseness, None, label="sparseness", needs=("maps",), paper=CHALASANI)
ENTROPY = Metric("entropy", entropy, None, label="entropy (nats)", needs=("maps",), paper=BHATT)
AREA_ABOVE_HALF = Metric("area_above_half", area_above_half, None, label="area above half %", needs=("maps",))
CENTER_X = Metric("center_x", _center_x, None, label="centre x", needs=("maps",))
CENTER_Y = Metric("center_y", _center_y, None, label="centre y", needs=("maps",))

DESCRIPTION_METRICS = (SPARSENESS, ENTROPY, AREA_ABOVE_HALF, CENTER_X, CENTER_Y)


class AreaAboveHalf(MeanOverImages):
    """Area above one half, in percent: the mean of `area_above_half` over images. `update` takes the maps.

    Example:
        >>> metric = AreaAboveHalf()
        >>> metric.update(torch.tensor([[[0.0, 0.5], [0.6, 1.0]]]))
        >>> metric.compute()
        tensor(50., dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(AREA_ABOVE_HALF, **kwargs)


class CenterX(MeanOverImages):
    """Horizontal centre of mass, 0 (left) to 1 (right): the mean over images. `update` takes the maps.

    Example:
        >>> metric = CenterX()
        >>> metric.update(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(CENTER_X, **kwargs)


class CenterY(MeanOverImages):
    """Vertical centre of mass, 0 (top) to 1 (bottom): the mean over images. `update` takes the maps.

    Example:
        >>> metric = CenterY()
        >>> metric.update(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]))
        >>> metric.compute()
        tensor(0.2500, dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(CENTER_Y, **kwargs)


class Entropy(MeanOverImages):
    """Entropy, in nats: the mean of `entropy` over images. `update` takes the maps.

    Maps of zeros are left out and counted in `entropy_failed`.

    Reference:
        Bhatt et al., IJCAI 2020 (arXiv 2005.00631).

    Example:
        >>> metric = Entropy()
        >>> metric.update(torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]))
        >>> metric.compute()
        tensor(1.3863, dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(ENTROPY, **kwargs)


class Sparseness(MeanOverImages):
    """Sparseness, 0 to 1: the mean of `sparseness` over images. `update` takes the maps.

    Maps of zeros are left out and counted in `sparseness_failed`.

    Reference:
        Chalasani et al., ICML 2020 (arXiv 1810.06583).

    Example:
        >>> metric = Sparseness()
        >>> metric.update(torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(SPARSENESS, **kwargs)
