"""Numbers that describe a map: whether it is concentrated or spread out, and where it lies.

They do not depend on the model, so neither high nor low values are better. Next to a metric, they show whether methods differ
in more than the size of their maps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError
from xaieval.metrics.metric import Metric

__all__ = [
    "area_above_half",
    "center_of_mass",
    "entropy",
    "sparseness",
]

CHALASANI = "Chalasani et al. 2020, arXiv 1810.06583"
BHATT = "Bhatt et al. 2020, arXiv 2005.00631"


def sparseness(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Sparseness of each map: the Gini index of its absolute values, from 0 (all pixels equal) to 1 - 1 / pixels (one pixel).

    NaN for a map of zeros.

    Args:
        maps: Explanation maps, `[N, H, W]`, of volumes `[N, D, H, W]`.

    Raises:
        MetricError: They are not maps.

    Reference:
        Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training", ICML 2020 (arXiv 1810.06583),
        based on Hurley and Rickard, "Comparing Measures of Sparsity", 2009.

    Example:
        >>> sparseness(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]))
        tensor([0.0000, 0.7500,    nan], dtype=torch.float64)
    """
    shares = _shares(maps).sort(dim=1).values
    count = shares.shape[1]
    ranks = torch.arange(1, count + 1, dtype=shares.dtype, device=shares.device)
    return ((2 * ranks - count - 1) * shares).sum(dim=1) / count


def entropy(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Entropy of each map, in nats, from 0 (a single pixel) to the logarithm of the number of pixels (all equal).

    The absolute values, divided by their sum, are the probabilities of the pixels. Entropy grows with the size of the image, so
    compare only maps of the same size. NaN for a map of zeros.

    Args:
        maps: Explanation maps, `[N, H, W]`, of volumes `[N, D, H, W]`.

    Raises:
        MetricError: They are not maps.

    Reference:
        Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020 (arXiv 2005.00631), who call it
        the complexity of an explanation.

    Example:
        >>> entropy(torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]]))
        tensor([1.3863, 0.0000], dtype=torch.float64)
    """
    return torch.special.entr(_shares(maps)).sum(dim=1)


def area_above_half(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Share of each map's pixels with a value above 0.5, in percent, 0 to 100.

    For maps normalised by their maximum, 0.5 is half of the maximum. 0 for a map of zeros, NaN for a map with NaN.

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`, of volumes `[N, D, H, W]`.

    Raises:
        MetricError: They are not maps.

    Example:
        >>> area_above_half(torch.tensor([[[0.0, 0.5], [0.6, 1.0]]]))
        tensor([50.], dtype=torch.float64)
    """
    flat = _flat(maps)
    return (100 * (flat > 0.5).double().mean(dim=1)).masked_fill(flat.isnan().any(dim=1), torch.nan)


def center_of_mass(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n axes"]:
    """Centre of mass of each map's absolute values, along each axis from 0 (the image's first edge) to 1 (its last edge).

    0.5 is the middle of the image at any size. NaN for a map of zeros.

    Args:
        maps: Explanation maps, `[N, H, W]`, of volumes `[N, D, H, W]`.

    Returns:
        One column for each axis of the map, in that order: y, x; of volumes z, y, x.

    Raises:
        MetricError: They are not maps.

    Example:
        >>> center_of_mass(torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))
        tensor([[0.7500, 0.7500],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    shares = _shares(maps).view(maps.shape)
    axes = range(1, maps.ndim)
    return torch.stack([_center(shares.sum(dim=[other for other in axes if other != axis])) for axis in axes], dim=1)


def _center(shares: Tensor) -> Tensor:
    """Centre of the shares along one axis, `[N, pixels]`, which add up to 1."""
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


SPARSENESS = Metric("sparseness", sparseness, None, label="sparseness", needs=("maps",), paper=CHALASANI, family="complexity")
ENTROPY = Metric("entropy", entropy, None, label="entropy (nats)", needs=("maps",), paper=BHATT, family="complexity")
AREA_ABOVE_HALF = Metric(
    "area_above_half", area_above_half, None, label="area above half %", needs=("maps",), family="complexity"
)
CENTER_X = Metric("center_x", _center_x, None, label="centre x", needs=("maps",), family="complexity")
CENTER_Y = Metric("center_y", _center_y, None, label="centre y", needs=("maps",), family="complexity")

METRICS = (SPARSENESS, ENTROPY, AREA_ABOVE_HALF, CENTER_X, CENTER_Y)
