"""ARCC: ROAD combined with coherency and complexity, as ADCC combines Average Drop with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.metrics.adcc import adcc, coherency, complexity
from xaieval.metrics.metric import Metric
from xaieval.metrics.road import RemoveAndDebias

__all__ = ["arcc", "arcc_of"]

FRACTIONS = (0.2, 0.4, 0.6, 0.8)


def arcc(fractions: Sequence[float] = FRACTIONS, noise: float = 0.01, *, name: str = "arcc") -> Metric:
    """ARCC, the harmonic mean of coherency, 100 - complexity and ROAD, in percent, 0 to 100, higher is better.

    ROAD of both orders lies in -0.5 to 0.5 for softmax; it is doubled, cut off at 0 and taken in percent. If one part is 0, so
    is ARCC. NaN if a part has no value, such as the coherency of a constant map.

    Args:
        fractions: Shares of pixels that ROAD removes, as in `road`.
        noise: Noise of the imputation, as in `road`.
        name: Name of the column.

    Raises:
        MetricError: Fractions or noise are out of range.

    Reference:
        Domeniconi et al., "How to Evaluate and Refine your CAM", 2026 (arXiv 2605.14641); pytorch-grad-cam's `ARCC`, whose
        shares are the default.

    Example:
        >>> arcc(noise=0).settings
        {'fractions': [0.2, 0.4, 0.6, 0.8], 'noise': 0}
    """
    return Metric(
        name,
        _OfImage(RemoveAndDebias(tuple(fractions), noise, False, ("most", "least"))),
        higher_is_better=True,
        label="ARCC %",
        needs=("confidence", "maps", "masked_maps", "images", "ask", "draw"),
        settings={"fractions": list(fractions), "noise": noise},
        passes="the method once more, and two for each share removed",
        paper="Domeniconi et al. 2026, arXiv 2605.14641",
        divides=False,
        family="faithfulness",
    )


def arcc_of(
    road: Float[Tensor, " *n"], coherency: Float[Tensor, " *n"], complexity: Float[Tensor, " *n"]
) -> Float[Tensor, " *n"]:
    """ARCC from its parts, in percent, 0 to 100, higher is better.

    Args:
        road: `road` of each image or its mean, in the unit of the confidence.
        coherency: `coherency` of each image or its mean, in percent.
        complexity: `complexity` of each image or its mean, in percent.

    Raises:
        MetricError: The three differ in shape.

    Reference:
        Domeniconi et al., 2026 (arXiv 2605.14641), and pytorch-grad-cam's `ARCC`.

    Example:
        >>> arcc_of(torch.tensor([0.3, -0.1]), torch.tensor([60.0, 90.0]), torch.tensor([40.0, 10.0]))
        tensor([60.0000,  0.0000], dtype=torch.float64)
    """
    return adcc(100 - (200 * road.double()).clamp(0, 100), coherency, complexity)


@dataclass(frozen=True)
class _OfImage:
    road: RemoveAndDebias

    def __call__(self, confidence: Tensor, maps: Tensor, masked_maps: Tensor, images: Tensor, ask: Any, draw: Any) -> Tensor:
        values = self.road(confidence, maps, images, ask, draw)
        return arcc_of(torch.as_tensor(values), coherency(maps, masked_maps), complexity(maps))


METRICS = (arcc(),)
