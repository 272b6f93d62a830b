"""ADCC: Average Drop combined with coherency and complexity, which penalise maps that keep the drop low for no good reason.

Coherency measures whether the masked image has the same map again, complexity how much of the image the map keeps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from xaieval.errors import MetricError
from xaieval.metrics.drop_and_increase import drop
from xaieval.metrics.metric import Metric
from xaieval.metrics.similarity import pearson

__all__ = ["adcc", "coherency", "complexity"]

POPPI = "Poppi et al. 2021, arXiv 2104.10252"
AGAIN = "the method once more"


def coherency(
    maps: Float[Tensor, " n *space"], masked_maps: Float[Tensor, " n *space"], constant: float = torch.nan
) -> Float[Tensor, " n"]:
    """Coherency of each map, `100 * (1 + r) / 2`, in percent, 0 to 100, higher is better.

    r is Pearson's correlation between the pixels of the map and those of the map of the masked image; 50 means no correlation.
    The correlation with a constant map is undefined: NaN, and the image is left out of the mean and counted.

    Args:
        maps: Explanation maps, `[N, H, W]`, of volumes `[N, D, H, W]`.
        masked_maps: Maps of the masked images, for the same targets.
        constant: The value if either map is constant; the authors' code has 0.

    Raises:
        MetricError: The two are not maps of the same shape.

    Reference:
        Poppi et al., "Revisiting the Evaluation of Class Activation Mapping for Explainability", CVPR Workshops 2021
        (arXiv 2104.10252); the scaling from -1..1 to 0..1 follows the authors' code (aimagelab/ADCC, metrics/coherency.py).

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> coherency(maps, torch.stack([maps[0], 1 - maps[1], maps[0]]))
        tensor([100.,   0.,  nan], dtype=torch.float64)
    """
    if maps.ndim < 3 or maps.shape != masked_maps.shape:
        raise MetricError(
            f"maps and masked_maps are [N, H, W] (volumes [N, D, H, W]) of one shape, got {list(maps.shape)} and "
            f"{list(masked_maps.shape)}"
        )
    flat = _is_constant(maps) | _is_constant(masked_maps)
    return (50 * (1 + pearson(maps, masked_maps))).masked_fill(flat, constant)


def complexity(maps: Float[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Complexity of each map, 100 times the mean of its absolute values, in percent, 0 to 100, lower is better.

    For maps in [0, 1] it is the share of the image that a soft mask keeps: `mask_area` of the rows, in percent.

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`, of volumes `[N, D, H, W]`.

    Raises:
        MetricError: They are not maps.

    Reference:
        Poppi et al., CVPR Workshops 2021 (arXiv 2104.10252): the L1 norm of the map; the division by the number of pixels
        follows the authors' code (aimagelab/ADCC, metrics/complexity.py).

    Example:
        >>> complexity(torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 1.0]]]))
        tensor([50., 25.], dtype=torch.float64)
    """
    if maps.ndim < 3:
        raise MetricError(f"maps are [N, H, W] (volumes [N, D, H, W]), got {list(maps.shape)}")
    return 100 * maps.double().abs().flatten(1).mean(dim=1)


def adcc(drop: Float[Tensor, " *n"], coherency: Float[Tensor, " *n"], complexity: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
    """ADCC, the harmonic mean of coherency, 100 - complexity and 100 - drop, in percent, 0 to 100, higher is better.

    If one part is 0, so is ADCC. NaN if a part is NaN or outside 0 to 100, such as the drop of a negative confidence.

    Vectors give the ADCC of each image, and the result of a run is their mean. The function also takes the three means: that is
    the other way to aggregate, and gives another number (docs/metrics.md).

    Args:
        drop: `drop` of each image or its mean, in percent.
        coherency: `coherency` of each image or its mean, in percent.
        complexity: `complexity` of each image or its mean, in percent.

    Raises:
        MetricError: The three differ in shape.

    Reference:
        Poppi et al., CVPR Workshops 2021 (arXiv 2104.10252), and the authors' code (aimagelab/ADCC, metrics/adcc.py).

    Example:
        >>> adcc(torch.tensor([40.0, 100.0]), torch.tensor([60.0, 90.0]), torch.tensor([40.0, 10.0]))
        tensor([60.,  0.], dtype=torch.float64)
    """
    if not drop.shape == coherency.shape == complexity.shape:
        raise MetricError(
            "drop, coherency and complexity are vectors [N] of one length, or three numbers; got "
            f"{list(drop.shape)}, {list(coherency.shape)} and {list(complexity.shape)}"
        )
    parts = torch.stack([coherency.double(), 100 - complexity.double(), 100 - drop.double()])
    possible = ((parts >= 0) & (parts <= 100)).all(dim=0)
    mean: Tensor = 3 / (1 / parts).sum(dim=0)  # 1 / 0 is infinite, which makes the mean 0
    return mean.masked_fill(~possible, torch.nan)


def _of_image(confidence: Tensor, masked_confidence: Tensor, maps: Tensor, masked_maps: Tensor) -> Tensor:
    return adcc(drop(confidence, masked_confidence), coherency(maps, masked_maps), complexity(maps))


def _is_constant(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return flat.amin(dim=1) == flat.amax(dim=1)


COHERENCY = Metric(
    "coherency",
    coherency,
    True,
    label="coherency %",
    needs=("maps", "masked_maps"),
    passes=AGAIN,
    paper=POPPI,
    family="faithfulness",
)
COMPLEXITY = Metric("complexity", complexity, False, label="complexity %", needs=("maps",), paper=POPPI, family="complexity")
OF_IMAGE = Metric(
    "adcc",
    _of_image,
    True,
    label="ADCC %",
    needs=("confidence", "masked_confidence", "maps", "masked_maps"),
    passes=AGAIN,
    paper=POPPI,
    family="faithfulness",
)

METRICS = (COHERENCY, COMPLEXITY, OF_IMAGE)
