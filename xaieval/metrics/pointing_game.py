"""The pointing game: whether the largest value of a map lies on the object, or near it."""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from xaieval.errors import MetricError
from xaieval.metrics.localisation import checked_maps, usable
from xaieval.metrics.metric import Metric

__all__ = ["pointing_game", "pointing_hit"]

PAPER = "Zhang et al. 2016, arXiv 1608.00507"
TOLERANCE = 15.0  # pixels


def pointing_hit(
    maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"], tolerance: float = TOLERANCE
) -> Float[Tensor, " n"]:
    """Pointing hit of each map, 100 if it points at the object and 0 otherwise, in percent, higher is better.

    A map points at its largest value. It is a hit if this pixel lies on the object or less than `tolerance` pixels away from
    it, measured between pixel centres. If several pixels share the largest value, all must hit; a map of zeros hits only if the
    whole image is that near. NaN if there is no object or the map is not finite.

    Args:
        maps: Explanation maps, `[N, H, W]`, of any range.
        masks: The pixels of the object, bool `[N, H, W]`.
        tolerance: Distance in pixels of the map; 0 for the object alone. 1 means the same, because the nearest pixels are 1
            away.

    Raises:
        MetricError: Maps and masks do not fit, or the tolerance is negative or not finite.

    Reference:
        Zhang et al., "Top-Down Neural Attention by Excitation Backprop", ECCV 2016 (arXiv 1608.00507), section 4.1; the
        margin of 15 pixels, with distances strictly below it, is that of TorchRay's `PointingGame`.

    Example:
        >>> maps = torch.tensor([[[0.1, 0.2, 0.9, 0.0]], [[0.9, 0.2, 0.9, 0.0]]])
        >>> masks = torch.tensor([[[True, False, False, False]]]).expand(2, 1, 4)
        >>> pointing_hit(maps, masks, tolerance=0), pointing_hit(maps, masks, tolerance=3)
        (tensor([0., 0.], dtype=torch.float64), tensor([100., 100.], dtype=torch.float64))
    """
    flat, inside = checked_maps(maps, masks)
    near = _near(masks, _tolerance(tolerance)).flatten(1)
    largest = flat == flat.amax(dim=1, keepdim=True)
    hit = ~(largest & ~near).any(dim=1)
    return usable(100 * hit.double(), flat, inside)


def pointing_game(tolerance: float = TOLERANCE, name: str = "pointing_game") -> Metric:
    """The pointing game, in percent of the images, higher is better: see `pointing_hit`.

    Args:
        tolerance: Distance in pixels of the images; 15 is usual for images of several hundred pixels a side.
        name: Name of the metric, for a run with several tolerances.

    Raises:
        MetricError: The tolerance is negative or not finite.

    Example:
        >>> pointing_game(tolerance=0, name="pointing_game_0").settings
        {'tolerance': 0}
    """
    return Metric(
        name,
        partial(pointing_hit, tolerance=_tolerance(tolerance)),
        higher_is_better=True,
        interval="wilson",
        label="pointing %",
        needs=("maps", "masks"),
        settings={"tolerance": tolerance},
        paper=PAPER,
        family="localisation",
    )


def _tolerance(tolerance: float) -> float:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise MetricError(f"a tolerance is a distance in pixels, at least 0; got {tolerance}")
    return tolerance


def _near(masks: Tensor, tolerance: float) -> Tensor:
    """The pixels less than `tolerance` from the object, and the object itself."""
    squared = torch.zeros(masks.shape, device=masks.device).masked_fill(~masks, torch.inf)
    for axis in range(1, masks.ndim):
        squared = _nearest_along(squared, axis, max(math.ceil(tolerance) - 1, 0))
    return masks | (squared < tolerance**2)


def _nearest_along(squared: Tensor, axis: int, reach: int) -> Tensor:
    """The minimum over a window along one axis of the squared distances plus the squared offset.

    Applied to each axis in turn this gives the squared Euclidean distance, wherever that is within reach.
    """
    lines = squared.movedim(axis, -1)
    length = lines.shape[-1]
    reach = min(reach, length - 1)
    padded = functional.pad(lines, (reach, reach), value=torch.inf)
    nearest = lines
    for step in range(-reach, reach + 1):
        nearest = torch.minimum(nearest, padded.narrow(-1, reach + step, length) + step**2)
    return nearest.movedim(-1, axis)


METRICS = (pointing_game(),)
