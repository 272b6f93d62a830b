"""SaCo, the salience-guided faithfulness coefficient: pixels that a map puts higher have to matter more to the model."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.config.protocol import Protocol, plain
from xaieval.errors import MetricError
from xaieval.masking import FLAT
from xaieval.metrics.metric import Metric
from xaieval.metrics.perturbation import Baseline, check_baseline, filling_by, perturbed_pixels, pixel_ranks
from xaieval.metrics.subsets import ROUNDING, check_least, ranked_groups, sums_and_falls

__all__ = ["faithfulness_coefficient", "saco"]


def saco(groups: int = 10, baseline: Baseline = "mean", *, name: str = "saco") -> Metric:
    """SaCo: do higher groups of pixels matter more, weighted by how much higher they are, -1 to 1, higher is better.

    The pixels are sorted by the map and cut into groups of one size; each group alone is replaced. Of each pair of groups, the
    difference of their sums counts for the map if the higher group lowers the confidence at least as much, and against it if
    not; `faithfulness_coefficient` computes it. A map of the same differences in a wrong order has -1. NaN for a constant map.

    Args:
        groups: Number of groups K, each of which takes a forward pass.
        baseline: As in `insertion`; "mean" is the mean colour of the image, as in the paper.
        name: Name of the column.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Wu et al., "On the Faithfulness of Vision Transformer Explanations", CVPR 2024 (arXiv 2404.01415), algorithm 1; the
        authors' code (adreamwu/SaCo).

    Example:
        >>> saco(groups=5).settings["groups"]
        5
    """
    check_least(groups=(groups, 2))
    check_baseline(baseline)
    return Metric(
        name,
        partial(_saco, groups=groups, baseline=baseline),
        higher_is_better=True,
        label="SaCo",
        needs=("confidence", "maps", "images", "ask", "protocol", "draw"),
        settings={"groups": groups, "baseline": plain(baseline)},
        passes=str(groups),
        paper="Wu et al. 2024, arXiv 2404.01415",
        divides=False,
        family="faithfulness",
        bounds=(-1.0, 1.0),
    )


def faithfulness_coefficient(
    sums: Float[Tensor, "n k"], falls: Float[Tensor, "n k"], tolerance: Float[Tensor, " n"] | float = 0.0
) -> Float[Tensor, " n"]:
    """The coefficient of each image from its K groups, -1 to 1, higher is better; NaN if all sums are equal.

    Args:
        sums: Sum of the map in each group, `[N, K]`, groups from the highest to the lowest.
        falls: Fall of the confidence when the group is replaced, `[N, K]`.
        tolerance: Differences of falls up to this are taken for equal, which counts for the map.

    Raises:
        MetricError: The two differ in shape.

    Reference:
        Wu et al., CVPR 2024 (arXiv 2404.01415), algorithm 1.

    Example:
        >>> faithfulness_coefficient(torch.tensor([[5.0, 3.0, 0.0]]), torch.tensor([[0.2, 0.4, 0.1]]))
        tensor([0.6000], dtype=torch.float64)
    """
    if sums.ndim != 2 or sums.shape != falls.shape:
        raise MetricError(f"sums and falls are [N, K] of one shape, got {list(sums.shape)} and {list(falls.shape)}")
    if sums.shape[1] < 2:  # nothing to compare
        return torch.full_like(sums.sum(dim=1).double(), torch.nan)
    higher, lower = torch.triu_indices(sums.shape[1], sums.shape[1], offset=1, device=sums.device)
    weights = sums.double()[:, higher] - sums.double()[:, lower]
    margin = torch.as_tensor(tolerance, dtype=torch.float64, device=sums.device).view(-1, 1)
    holds = falls.double()[:, higher] >= falls.double()[:, lower] - margin
    total = weights.abs().sum(dim=1)
    found = torch.where(holds, weights, -weights).sum(dim=1) / total
    flat = weights.abs().amax(dim=1) <= FLAT * sums.double().abs().amax(dim=1)
    return found.masked_fill(flat | falls.isnan().any(dim=1), torch.nan)


def _saco(
    confidence: Tensor,
    maps: Tensor,
    images: Tensor,
    ask: Any,
    protocol: Protocol,
    draw: Any,
    *,
    groups: int,
    baseline: Baseline,
) -> Tensor:
    fill = filling_by(baseline, images, protocol, draw)
    counts = perturbed_pixels(maps[0].numel(), groups)
    changes = ((group, fill) for group in ranked_groups(pixel_ranks(maps), counts))
    sums, falls = sums_and_falls(confidence, maps, images, ask, changes)
    low, high = maps.flatten(1).aminmax(dim=1)
    constant = high - low <= FLAT * high.abs()  # groups of one pixel more would rank it
    return faithfulness_coefficient(sums, falls, ROUNDING * confidence.double().abs()).masked_fill(constant, torch.nan)


METRICS = (saco(),)
