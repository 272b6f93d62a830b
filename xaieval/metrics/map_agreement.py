"""Agreement of two methods: whether they name the same parts of an image, in the same order, with the same sign."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from xaieval.errors import MetricError
from xaieval.metrics.metric import Metric

__all__ = [
    "feature_agreement",
    "rank_agreement",
    "sign_agreement",
    "signed_rank_agreement",
    "top_k_agreement",
]

KRISHNA = "Krishna et al. 2022, arXiv 2202.01602"

Maps = Float[Tensor, " n *space"]


def top_k_agreement(
    first: Maps, second: Maps, share: float = 0.25, *, ranks: bool = False, signs: bool = False
) -> Float[Tensor, " n"]:
    """Agreement of the top k cells of two maps, 0 to 1, higher is more agreement.

    The share of the k cells of largest absolute value that both maps have in common: feature agreement. Cells count only if
    they also have the same rank in both (`ranks`: rank agreement), the same sign (`signs`: sign agreement), or both (signed
    rank agreement).

    Equal values have no order. The value is then the mean over all their orders, computed exactly, so that it does not depend
    on where in the image they are. NaN if all absolute values of a map are equal, or if it has NaN or inf.

    Args:
        first: Maps, `[N, H, W]`.
        second: Maps of the same shape.
        share: k as a share of the cells, in (0, 1], at least one cell.
        ranks: Count cells of equal rank only.
        signs: Count cells of equal sign only.

    Raises:
        MetricError: The share is out of range, or the two are not maps of the same shape.

    Reference:
        Krishna et al., "The Disagreement Problem in Explainable Machine Learning", 2022 (arXiv 2202.01602), section 3.2.

    Example:
        >>> one, other = torch.tensor([[[4.0, -3.0, 2.0, 1.0]]]), torch.tensor([[[4.0, 3.0, 1.0, 2.0]]])
        >>> [float(top_k_agreement(one, other, share, signs=True)) for share in (0.25, 0.5, 1.0)]
        [1.0, 0.5, 0.75]
    """
    _check_share(share)
    if first.ndim < 2 or first.shape != second.shape:
        raise MetricError(
            f"maps [N, H, W] are compared with maps of their shape, got {list(first.shape)} and {list(second.shape)}"
        )
    one, other = first.flatten(1), second.flatten(1)
    k = max(1, round(share * one.shape[1]))
    (low, high), (other_low, other_high) = _places(one), _places(other)
    if ranks:  # the chance that both have the same place among the first k
        common = (torch.minimum(high, other_high).clamp(max=k) - torch.maximum(low, other_low) + 1).clamp(min=0)
        agreed = common / ((high - low + 1) * (other_high - other_low + 1))
    else:
        agreed = _chance(low, high, k) * _chance(other_low, other_high, k)
    if signs:
        agreed = agreed * (one.sign() == other.sign())
    return (agreed.sum(dim=1) / k).masked_fill(_unordered(one) | _unordered(other), torch.nan)


def feature_agreement(reference: Any = "gradcam", share: float = 0.25, cells: int | None = 7) -> Metric:
    """Feature agreement with another method: common cells among the top k, 0 to 1; describes, no direction.

    The maps of both methods, before normalisation and at the same layer, are averaged over a grid of cells; then the share of
    the k cells of largest absolute value that both have. Maps that agree by chance have `share` on average. High agreement
    does not mean that either is right.

    Args:
        reference: The other method, by name or as an `Explainer`. If it is a method of the run, its maps are used; otherwise it
            runs once for all maps of a batch. A method without a layer has no value if the reference needs one.
        share: k as a share of the cells, in (0, 1].
        cells: Cells along each side, as the superpixels of the paper; None for pixels.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Krishna et al., "The Disagreement Problem in Explainable Machine Learning", 2022 (arXiv 2202.01602), section 3.2; a
        quarter of the features as in OpenXAI.

    Example:
        >>> feature_agreement("layercam", cells=14).settings["reference"]
        'layercam'
    """
    return _metric("feature_agreement", "feature agreement", reference, share, cells)


def rank_agreement(reference: Any = "gradcam", share: float = 0.25, cells: int | None = 7) -> Metric:
    """Rank agreement with another method: top k cells that have the same rank in both, 0 to 1; describes, no direction.

    As `feature_agreement`, and never above it. With single pixels it is near 0 for any two methods, because hardly one of
    thousands has the same rank in both: use few cells.

    Args:
        reference: As for `feature_agreement`.
        share: As for `feature_agreement`.
        cells: As for `feature_agreement`.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Krishna et al., 2022 (arXiv 2202.01602), section 3.2.

    Example:
        >>> rank_agreement().higher_is_better is None
        True
    """
    return _metric("rank_agreement", "rank agreement", reference, share, cells, ranks=True)


def sign_agreement(reference: Any = "gradcam", share: float = 0.25, cells: int | None = 7) -> Metric:
    """Sign agreement with another method: top k cells that have the same sign in both, 0 to 1; describes, no direction.

    As `feature_agreement`, and never above it. Two methods without negative values, such as those of the CAM family, have
    feature agreement.

    Args:
        reference: As for `feature_agreement`.
        share: As for `feature_agreement`.
        cells: As for `feature_agreement`.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Krishna et al., 2022 (arXiv 2202.01602), section 3.2.

    Example:
        >>> sign_agreement().name
        'sign_agreement'
    """
    return _metric("sign_agreement", "sign agreement", reference, share, cells, signs=True)


def signed_rank_agreement(reference: Any = "gradcam", share: float = 0.25, cells: int | None = 7) -> Metric:
    """Signed rank agreement with another method: top k cells with the same rank and sign, 0 to 1; describes, no direction.

    As `feature_agreement`, and never above `rank_agreement` or `sign_agreement`: the strictest of the four.

    Args:
        reference: As for `feature_agreement`.
        share: As for `feature_agreement`.
        cells: As for `feature_agreement`.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Krishna et al., 2022 (arXiv 2202.01602), section 3.2.

    Example:
        >>> signed_rank_agreement(share=0.1).settings["share"]
        0.1
    """
    return _metric("signed_rank_agreement", "signed rank agreement", reference, share, cells, ranks=True, signs=True)


def _metric(
    name: str, label: str, reference: Any, share: float, cells: int | None, ranks: bool = False, signs: bool = False
) -> Metric:
    _check_share(share)
    if cells is not None and cells < 2:
        raise MetricError(f"cells is at least 2, or None for pixels, got {cells}")
    return Metric(
        name,
        partial(_agreement, reference=reference, share=share, cells=cells, ranks=ranks, signs=signs),
        higher_is_better=None,
        label=label,
        needs=("attributions", "explain_by"),
        settings={"reference": getattr(reference, "name", reference), "share": share, "cells": cells},
        passes="0, or the reference method once",
        paper=KRISHNA,
        family="agreement",
    )


def _agreement(
    attributions: Tensor,
    explain_by: Callable[[Any], Tensor],
    *,
    reference: Any,
    share: float,
    cells: int | None,
    ranks: bool,
    signs: bool,
) -> Tensor:
    pair = (_in_cells(attributions, cells), _in_cells(explain_by(reference), cells))
    return top_k_agreement(*pair, share, ranks=ranks, signs=signs)


def _in_cells(maps: Tensor, cells: int | None) -> Tensor:
    """The mean over each cell of a grid, as fine as the map at most."""
    if cells is None:
        return maps
    sides = [min(cells, side) for side in maps.shape[1:]]
    pool: Any = functional.adaptive_avg_pool3d if len(sides) == 3 else functional.adaptive_avg_pool2d
    return pool(maps.double(), sides)


def _places(flat: Tensor) -> tuple[Tensor, Tensor]:
    """The first and last place that each cell can have by its absolute value, from 1; different only for equal values."""
    values = -flat.double().abs()
    ordered = values.sort(dim=1).values
    return torch.searchsorted(ordered, values, right=False) + 1, torch.searchsorted(ordered, values, right=True)


def _chance(low: Tensor, high: Tensor, k: int) -> Tensor:
    """The chance that a cell is among the first k, if it is at any place from `low` to `high`."""
    return (high.clamp(max=k) - low + 1).clamp(min=0) / (high - low + 1)


def _unordered(flat: Tensor) -> Tensor:
    size = flat.abs()
    return (size.amin(dim=1) == size.amax(dim=1)) | ~flat.isfinite().all(dim=1)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise MetricError(f"share of the cells lies in (0, 1], got {share}")


METRICS = (feature_agreement(), rank_agreement(), sign_agreement(), signed_rank_agreement())
