"""Similarity of two maps: Pearson's and Spearman's correlation, and structural similarity (SSIM).

The functions compare maps `[N, H, W]` with maps of the same shape, image by image; of volumes `[N, D, H, W]`. The correlation
with a map that is constant, or has NaN or inf, is undefined: NaN. No epsilon hides that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError, choose_from

__all__ = ["SIMILARITIES", "pearson", "spearman", "ssim"]

Maps = Float[Tensor, " n *space"]
Similarity = Callable[[Tensor, Tensor], Tensor]

WINDOW, DEVIATION = 11, 1.5  # of SSIM: side of the window and standard deviation of its weights, in pixels
LIGHT, CONTRAST = 0.01**2, 0.03**2  # of SSIM: constants for values in [0, 1], which prevent 0 / 0


def pearson(first: Maps, second: Maps) -> Float[Tensor, " n"]:
    """Pearson's correlation of two maps over their pixels, -1 to 1, higher is more similar.

    It does not depend on the scale and the offset of either map. NaN if a map is constant, or has NaN or inf.

    Args:
        first: Maps, `[N, H, W]` or `[N, D, H, W]`.
        second: Maps of the same shape.

    Raises:
        MetricError: The two are not maps of the same shape.

    Reference:
        Pearson, "Notes on regression and inheritance in the case of two parents", Proc. Royal Society 58, 1895.

    Example:
        >>> ramp = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> pearson(ramp, 5 - 2 * ramp).round(decimals=6), pearson(ramp, torch.ones(1, 1, 3))
        (tensor([-1.], dtype=torch.float64), tensor([nan], dtype=torch.float64))
    """
    return _correlation(*_checked(first, second))


def spearman(first: Maps, second: Maps) -> Float[Tensor, " n"]:
    """Spearman's rank correlation of two maps over their pixels, -1 to 1, higher is more similar.

    Equal values get the mean of their ranks. It does not change if a map is rescaled by an increasing function. NaN if a map is
    constant, or has NaN or inf.

    Args:
        first: Maps, `[N, H, W]` or `[N, D, H, W]`.
        second: Maps of the same shape.

    Raises:
        MetricError: The two are not maps of the same shape.

    Reference:
        Spearman, "The proof and measurement of association between two things", American Journal of Psychology 15, 1904.

    Example:
        >>> ramp = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> spearman(ramp, ramp.exp()).round(decimals=6)
        tensor([1.], dtype=torch.float64)
    """
    _check_shapes(first, second)
    one, other = first.flatten(1), second.flatten(1)
    invalid = _invalid(one) | _invalid(other)  # they have no order
    return _correlation(_ranks(one), _ranks(other)).masked_fill(invalid, torch.nan)


def ssim(first: Maps, second: Maps) -> Float[Tensor, " n"]:
    """Structural similarity of two maps in [0, 1], -1 to 1, higher is more similar; 1 only for equal maps.

    The mean over all windows of 11 x 11 pixels inside the map, with Gaussian weights of standard deviation 1.5. The constants
    are those of the paper for values in [0, 1], so constant maps have a value too. NaN if a map has NaN or inf.

    Args:
        first: Maps in [0, 1], `[N, H, W]` or `[N, D, H, W]`, each side at least 11 pixels.
        second: Maps of the same shape.

    Raises:
        MetricError: The two are not maps of the same shape, or are smaller than a window.

    Reference:
        Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE Trans. Image Processing
        13, 2004, eq. 13.

    Example:
        >>> half = torch.zeros(1, 16, 16)
        >>> half[:, :8] = 1
        >>> round(float(ssim(half, half)), 2), round(float(ssim(half, 1 - half)), 2)
        (1.0, -0.44)
    """
    _check_shapes(first, second)
    if min(first.shape[1:]) < WINDOW:
        raise MetricError(
            f"ssim compares maps by windows of {WINDOW} pixels a side, got {list(first.shape)}; upsample smaller maps, or use "
            "pearson or spearman"
        )
    one, other = first.double(), second.double()
    mean, other_mean = _windowed(one), _windowed(other)
    variance = _windowed(one * one) - mean**2
    other_variance = _windowed(other * other) - other_mean**2
    covariance = _windowed(one * other) - mean * other_mean
    light = (2 * mean * other_mean + LIGHT) / (mean**2 + other_mean**2 + LIGHT)
    shape = (2 * covariance + CONTRAST) / (variance + other_variance + CONTRAST)
    return (light * shape).flatten(1).mean(dim=1)


SIMILARITIES: dict[str, Similarity] = {"pearson": pearson, "spearman": spearman, "ssim": ssim}


def resolve_similarity(name: str) -> Similarity:
    """Return the similarity of this name.

    Raises:
        MetricError: The name is unknown.
    """
    if name not in SIMILARITIES:
        raise MetricError(f"no similarity {name!r}; {choose_from(name, SIMILARITIES)}")
    return SIMILARITIES[name]


def fits(name: str, maps: Tensor) -> bool:
    """Whether maps are large enough for a similarity: SSIM has a window."""
    return name != "ssim" or min(maps.shape[1:]) >= WINDOW


def _check_shapes(first: Tensor, second: Tensor) -> None:
    if first.ndim < 2 or first.shape != second.shape:
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise MetricError(f"maps [N, H, W] are compared with maps of their shape, got {shapes}")


def _checked(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both as `[N, P]` in float64."""
    _check_shapes(first, second)
    return first.double().flatten(1), second.double().flatten(1)


def _invalid(flat: Tensor) -> Tensor:
    return ~flat.isfinite().all(dim=1)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    if one.shape[1] == 0:  # the overlap of a map of one pixel with its shifted copy
        return one.new_full((len(one),), torch.nan)
    one, constant = _deviations(one)
    other, other_constant = _deviations(other)
    correlation = (one * other).sum(dim=1) / (one.square().sum(dim=1) * other.square().sum(dim=1)).sqrt()
    return correlation.clamp(-1, 1).masked_fill(constant | other_constant, torch.nan)


def _deviations(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Rows minus their mean, scaled to at most 1, and which rows are constant; rows with NaN or inf become NaN."""
    constant = flat.amin(dim=1) == flat.amax(dim=1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    largest = centred.abs().amax(dim=1, keepdim=True).masked_fill(constant[:, None], math.inf)
    return centred / largest, constant  # without the division the squares of tiny values would underflow


def _windowed(maps: Tensor) -> Tensor:
    """The weighted mean of each window inside the maps, along one axis after the other, since a Gaussian is separable."""
    weights = torch.exp(-0.5 * ((torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2) / DEVIATION) ** 2)
    for axis in range(1, maps.ndim):
        left = maps.shape[axis] - WINDOW + 1
        parts = [weight * maps.narrow(axis, place, left) for place, weight in enumerate((weights / weights.sum()).tolist())]
        maps = reduce(torch.add, parts)
    return maps


def _ranks(flat: Tensor) -> Tensor:
    """The rank of each value in its row, from 1; equal values get the mean of their ranks."""
    ordered, places = flat.sort(dim=1)
    numbers = torch.arange(flat.shape[1], device=flat.device).expand_as(flat)
    rises = ordered[:, 1:] != ordered[:, :-1]
    edge = rises.new_ones(len(flat), 1)
    first = (
        numbers.masked_fill(~torch.cat([edge, rises], dim=1), 0).cummax(dim=1).values
    )  # rank of the first and last of equal values
    last = numbers.masked_fill(~torch.cat([rises, edge], dim=1), flat.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    return torch.zeros_like(flat, dtype=torch.float64).scatter_(1, places, (first + last).double() / 2 + 1)
