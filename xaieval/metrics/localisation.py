"""Localisation: how well a map lies on the object, for data with masks or boxes of the objects.

The functions take maps and masks of the same shape, `[N, H, W]` or of volumes `[N, D, H, W]`, and return one number for each
image, in percent; NaN for an image without an object. They measure whether a map agrees with what people call the object, not
whether it is faithful to the model, which may use other pixels. The pointing game is in `xaieval.metrics.pointing_game`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from xaieval.errors import MetricError
from xaieval.metrics.metric import Metric

__all__ = [
    "best_mask_iou",
    "energy_inside",
    "iou",
    "iou_curve",
    "mask_iou",
    "relevance_mass",
    "relevance_rank",
]

SCORE_CAM = "Wang et al. 2020, arXiv 1910.01279"
CLEVR_XAI = "Arras et al. 2022, arXiv 2003.07258"

NEEDED = ("maps", "masks")
THRESHOLD = 0.5


def energy_inside(maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Share of each map's energy that lies on the object, in percent, 0 to 100, higher is better.

    The energy of a map is the sum of its values. NaN if there is no object or no energy (a map of zeros), or if a value is
    negative or not finite. Where it is defined it equals `relevance_mass`.

    Args:
        maps: Explanation maps, `[N, H, W]`, not negative.
        masks: The pixels of the object, bool `[N, H, W]`.

    Raises:
        MetricError: Maps and masks do not fit.

    Reference:
        Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv 1910.01279), section 4.3: the energy-based pointing game.

    Example:
        >>> energy_inside(torch.tensor([[[0.75, 0.25]], [[0.0, 0.0]]]), torch.tensor([[[True, False]], [[True, False]]]))
        tensor([75., nan], dtype=torch.float64)
    """
    flat, inside = checked_maps(maps, masks)
    return usable(relevance_mass(maps, masks), flat, inside, low=0)


def relevance_mass(relevance: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Relevance mass accuracy: share of each image's positive relevance on the object, in percent, 0 to 100, higher is better.

    Negative relevance counts as 0, one of the options of the paper ("sum,pos"). NaN if there is no object or no positive
    relevance (a map of zeros), or if a value is not finite.

    Args:
        relevance: Relevance of the pixels, `[N, H, W]`, of any range.
        masks: The pixels of the object, bool `[N, H, W]`.

    Raises:
        MetricError: Relevance and masks do not fit.

    Reference:
        Arras et al., "CLEVR-XAI", Information Fusion 81, 2022 (arXiv 2003.07258), equations 1 to 4, where it is a fraction.

    Example:
        >>> relevance_mass(torch.tensor([[[3.0, 1.0, -5.0]]]), torch.tensor([[[True, False, True]]]))
        tensor([75.], dtype=torch.float64)
    """
    flat, inside = checked_maps(relevance, masks)
    positive = flat.double().clamp(min=0)
    return usable(100 * (positive * inside).sum(dim=1) / positive.sum(dim=1), flat, inside)


def relevance_rank(relevance: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Relevance rank accuracy: share of the K most relevant pixels on the object of K pixels, in percent, higher is better.

    From 0 to 100. If pixels of equal relevance compete for the last of the K places, it is the mean over all ways to choose
    among them: a constant map scores the share of the image that the object covers. NaN if there is no object or a value is not
    finite.

    Args:
        relevance: Relevance of the pixels, `[N, H, W]`, of any range; only its order matters.
        masks: The pixels of the object, bool `[N, H, W]`.

    Raises:
        MetricError: Relevance and masks do not fit.

    Reference:
        Arras et al., "CLEVR-XAI", Information Fusion 81, 2022 (arXiv 2003.07258), equations 1 to 4, where it is a fraction.

    Example:
        >>> relevance_rank(torch.tensor([[[0.9, 0.5, 0.1]], [[0.9, 0.1, 0.1]]]), torch.tensor([[[True, False, True]]] * 2))
        tensor([50., 75.], dtype=torch.float64)
    """
    flat, inside = checked_maps(relevance, masks)
    size = inside.sum(dim=1)
    return usable(100 * best_inside(flat, inside, size) / size, flat, inside)


def mask_iou(
    maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"], threshold: float = THRESHOLD
) -> Float[Tensor, " n"]:
    """Intersection over union of the object and the pixels of at least `threshold`, in percent, 0 to 100, higher is better.

    0 for a map of zeros, which marks nothing. NaN if there is no object, or if a map has values outside [0, 1].

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`.
        masks: The pixels of the object, bool `[N, H, W]`.
        threshold: A number in (0, 1].

    Raises:
        MetricError: Maps and masks do not fit, or the threshold is out of range.

    Example:
        >>> mask_iou(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([33.3333], dtype=torch.float64)
    """
    return iou_curve(maps, masks, [threshold])[:, 0]


def iou_curve(
    maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"], thresholds: Sequence[float]
) -> Float[Tensor, "n s"]:
    """`mask_iou` at several thresholds at once, in percent, `[N, S]`.

    The best common threshold for a data set is the one with the largest mean over the images.

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`.
        masks: The pixels of the object, bool `[N, H, W]`.
        thresholds: Numbers in (0, 1], ascending.

    Raises:
        MetricError: Maps and masks do not fit, or the thresholds are out of range or not ascending.

    Example:
        >>> iou_curve(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]), [0.1, 0.5, 0.9])
        tensor([[66.6667, 33.3333, 50.0000]], dtype=torch.float64)
    """
    flat, inside = checked_maps(maps, masks)
    bounds = flat.new_tensor(_thresholds(thresholds))  # of the map's type, so that a value set to a threshold reaches it
    reached = torch.bucketize(flat, bounds, right=True)  # the number of thresholds that each pixel reaches

    def count(which: Tensor) -> Tensor:
        histogram = flat.new_zeros(len(flat), len(bounds) + 1, dtype=torch.float64).scatter_add_(1, reached, which.double())
        return histogram.flip(1).cumsum(dim=1).flip(1)[:, 1:]

    both = count(inside)
    either = count(torch.ones_like(inside)) + inside.sum(dim=1, keepdim=True) - both
    return usable(100 * both / either, flat, inside, low=0, high=1)


def best_mask_iou(maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """`mask_iou` at the best threshold of each image, in percent, 0 to 100, higher is better.

    All thresholds above 0 are tried, exactly. The threshold is chosen with knowledge of the object, so the value is an upper
    bound for any common threshold. 0 for a map of zeros. NaN if there is no object, or if a map has values outside [0, 1].

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`.
        masks: The pixels of the object, bool `[N, H, W]`.

    Raises:
        MetricError: Maps and masks do not fit.

    Example:
        >>> best_mask_iou(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([66.6667], dtype=torch.float64)
    """
    flat, inside = checked_maps(maps, masks)
    ordered, order = flat.sort(dim=1, descending=True)
    both = inside.gather(1, order).cumsum(dim=1)
    marked = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    shares = both.double() / (marked + inside.sum(dim=1, keepdim=True) - both)
    # A threshold takes all pixels of one value or none: only the last pixel of each value counts, if the value is above 0.
    last = functional.pad(ordered[:, 1:] < ordered[:, :-1], (0, 1), value=True) & (ordered > 0)
    return usable(100 * shares.masked_fill(~last, 0).amax(dim=1), flat, inside, low=0, high=1)


def best_inside(flat: Tensor, inside: Tensor, size: Tensor) -> Tensor:
    """How many of the `size` largest pixels, `[N]`, lie on the object; if equal pixels compete, the mean over all choices."""
    ordered = flat.sort(dim=1, descending=True).values
    last = ordered.gather(1, (size - 1).clamp(min=0)[:, None])
    above, level = flat > last, flat == last
    places = size - above.sum(dim=1)
    chosen = places * (level & inside).sum(dim=1).double() / level.sum(dim=1)
    return (above & inside).sum(dim=1) + chosen


def checked_maps(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps and masks with their pixels along one axis, `[N, P]`.

    Raises:
        MetricError: They differ in shape, the maps are not floating-point, or the masks are not bool.
    """
    if maps.shape != masks.shape or maps.ndim < 2 or 0 in maps.shape[1:]:
        raise MetricError(
            f"maps and masks are of one shape, [N, H, W]; got {list(maps.shape)} and {list(masks.shape)}: "
            "resize the masks to the maps, or the maps to the images"
        )
    if masks.dtype != torch.bool or not maps.is_floating_point():
        came = " and ".join(str(given.dtype).removeprefix("torch.") for given in (maps, masks))
        raise MetricError(
            f"maps are floating-point and masks bool, got {came}; make masks from a label map with labels == label"
        )
    return maps.flatten(1).contiguous(), masks.flatten(1)


def usable(values: Tensor, flat: Tensor, inside: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """Return the values `[N]` or `[N, S]`; NaN for an image without an object, or a map that is not finite or out of range."""
    lowest, highest = flat.aminmax(dim=1)
    valid = inside.any(dim=1) & (lowest >= low) & (highest <= high) & lowest.isfinite() & highest.isfinite()
    return values.masked_fill(~valid.view(-1, *[1] * (values.ndim - 1)), torch.nan)


def _thresholds(thresholds: Sequence[float]) -> list[float]:
    given = list(thresholds)
    if not given or given != sorted(set(given)) or not all(0 < threshold <= 1 for threshold in given):
        raise MetricError(f"thresholds lie in (0, 1], in ascending order; got {given}")
    return given


def iou(threshold: float = THRESHOLD, name: str = "iou") -> Metric:
    """Intersection over union at a threshold, in percent, higher is better: see `mask_iou`.

    Args:
        threshold: A number in (0, 1].
        name: Name of the metric, for a run with several thresholds.

    Raises:
        MetricError: The threshold is out of range.

    Example:
        >>> iou(threshold=0.2, name="iou_0.2").settings
        {'threshold': 0.2}
    """
    _thresholds([threshold])
    return Metric(
        name,
        partial(mask_iou, threshold=threshold),
        higher_is_better=True,
        label="IoU %",
        needs=NEEDED,
        settings={"threshold": threshold},
        family="localisation",
    )


ENERGY_POINTING_GAME = Metric(
    "energy_pointing_game", energy_inside, True, label="energy %", needs=NEEDED, paper=SCORE_CAM, family="localisation"
)
RELEVANCE_MASS_ACCURACY = Metric(
    "relevance_mass_accuracy", relevance_mass, True, label="mass %", needs=NEEDED, paper=CLEVR_XAI, family="localisation"
)
RELEVANCE_RANK_ACCURACY = Metric(
    "relevance_rank_accuracy", relevance_rank, True, label="rank %", needs=NEEDED, paper=CLEVR_XAI, family="localisation"
)
BEST_IOU = Metric("best_iou", best_mask_iou, True, label="best IoU %", needs=NEEDED, family="localisation")

METRICS = (ENERGY_POINTING_GAME, RELEVANCE_MASS_ACCURACY, RELEVANCE_RANK_ACCURACY, iou(), BEST_IOU)
