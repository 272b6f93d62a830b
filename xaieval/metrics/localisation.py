"""Localisation: how well a map lies on the object, where that is known from masks or boxes.

The functions take maps and masks of one shape, `[N, H, W]` or of volumes `[N, D, H, W]`, and give one number an image, in
percent. An image without an object has none: its value is NaN. They ask whether a map agrees with people's idea of the object,
not whether it is true to the model, which may well look elsewhere.
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
    "BEST_IOU",
    "ENERGY_POINTING_GAME",
    "IOU",
    "LOCALISATION_METRICS",
    "POINTING_GAME",
    "RELEVANCE_MASS_ACCURACY",
    "RELEVANCE_RANK_ACCURACY",
    "best_mask_iou",
    "energy_inside",
    "iou",
    "iou_curve",
    "mask_iou",
    "pointing_game",
    "pointing_hit",
    "relevance_mass",
    "relevance_rank",
]

TOLERANCE = 15.0  # pixels
THRESHOLD = 0.5


def pointing_hit(
    maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"], tolerance: float = TOLERANCE
) -> Float[Tensor, " n"]:
    """Whether each map points at the object: 100 where it does and 0 elsewhere, in percent, higher is better.

    A map points at its largest value, and hits if that lies on the object or less than `tolerance` pixels from it, between
    centres of pixels. Of several equal largest values all have to hit: ties do not count for the map, and a map of zeros hits
    only if all of the image is that near. NaN where there is no object or the map is not finite.

    Args:
        maps: `[N, H, W]`, of any range.
        masks: where the object is, bool `[N, H, W]`.
        tolerance: in pixels of the map; 0 for the object alone. 1 is the same, since the nearest pixels are 1 away.

    Raises:
        MetricError: maps and masks do not fit, or the tolerance is negative or not finite.

    Reference:
        Zhang et al., "Top-Down Neural Attention by Excitation Backprop", ECCV 2016 (arXiv 1608.00507), section 4.1; the
        margin of 15 pixels, which a distance has to be below, is that of TorchRay's `PointingGame`.

    Example:
        >>> maps = torch.tensor([[[0.1, 0.2, 0.9, 0.0]], [[0.9, 0.2, 0.9, 0.0]]])
        >>> masks = torch.tensor([[[True, False, False, False]]]).expand(2, 1, 4)
        >>> pointing_hit(maps, masks, tolerance=0), pointing_hit(maps, masks, tolerance=3)
        (tensor([0., 0.], dtype=torch.float64), tensor([100., 100.], dtype=torch.float64))
    """
    flat, inside = _checked(maps, masks)
    near = _near(masks, _tolerance(tolerance)).flatten(1)
    largest = flat == flat.amax(dim=1, keepdim=True)
    hit = ~(largest & ~near).any(dim=1)
    return _usable(100 * hit.double(), flat, inside)


def energy_inside(maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """The share of each map's energy that lies on the object, in percent, 0 to 100, higher is better.

    The energy of a map is the sum of its values. NaN where there is no object or no energy (a map of zeros), and where a
    value is negative or not finite. Where it is defined it equals `relevance_mass`.

    Args:
        maps: `[N, H, W]`, not negative.
        masks: where the object is, bool `[N, H, W]`.

    Raises:
        MetricError: maps and masks do not fit.

    Reference:
        Wang et al., "Score-CAM", CVPR Workshops 2020 (arXiv 1910.01279), section 4.3: the energy-based pointing game.

    Example:
        >>> energy_inside(torch.tensor([[[0.75, 0.25]], [[0.0, 0.0]]]), torch.tensor([[[True, False]], [[True, False]]]))
        tensor([75., nan], dtype=torch.float64)
    """
    flat, inside = _checked(maps, masks)
    return _usable(relevance_mass(maps, masks), flat, inside, low=0)


def relevance_mass(relevance: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Relevance mass accuracy of each image: the share of its positive relevance on the object, in percent, higher is better.

    Negative relevance counts as none, which is one of the paper's ways to make it positive ("sum,pos"). NaN where there is no
    object or no positive relevance (a map of zeros), and where a value is not finite. From 0 to 100.

    Args:
        relevance: `[N, H, W]`, of any range.
        masks: where the object is, bool `[N, H, W]`.

    Raises:
        MetricError: relevance and masks do not fit.

    Reference:
        Arras et al., "CLEVR-XAI", Information Fusion 81, 2022 (arXiv 2003.07258), equations 1 to 4, where it is a fraction.

    Example:
        >>> relevance_mass(torch.tensor([[[3.0, 1.0, -5.0]]]), torch.tensor([[[True, False, True]]]))
        tensor([75.], dtype=torch.float64)
    """
    flat, inside = _checked(relevance, masks)
    positive = flat.double().clamp(min=0)
    return _usable(100 * (positive * inside).sum(dim=1) / positive.sum(dim=1), flat, inside)


def relevance_rank(relevance: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """Relevance rank accuracy of each image: how many of the K most relevant pixels lie on its object of K pixels, in percent.

    From 0 to 100, higher is better. Where pixels of equal relevance compete for the last of the K places, it is the mean over
    all ways to choose among them: a constant map has the share of the image that the object covers. NaN where there is no
    object or a value is not finite.

    Args:
        relevance: `[N, H, W]`, of any range; only its order counts.
        masks: where the object is, bool `[N, H, W]`.

    Raises:
        MetricError: relevance and masks do not fit.

    Reference:
        Arras et al., "CLEVR-XAI", Information Fusion 81, 2022 (arXiv 2003.07258), equations 1 to 4, where it is a fraction.

    Example:
        >>> relevance_rank(torch.tensor([[[0.9, 0.5, 0.1]], [[0.9, 0.1, 0.1]]]), torch.tensor([[[True, False, True]]] * 2))
        tensor([50., 75.], dtype=torch.float64)
    """
    flat, inside = _checked(relevance, masks)
    size = inside.sum(dim=1)
    ordered = flat.sort(dim=1, descending=True).values
    last = ordered.gather(1, (size - 1).clamp(min=0)[:, None])
    above, level = flat > last, flat == last
    places = size - above.sum(dim=1)
    chosen = places * (level & inside).sum(dim=1).double() / level.sum(dim=1)
    return _usable(100 * ((above & inside).sum(dim=1) + chosen) / size, flat, inside)


def mask_iou(
    maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"], threshold: float = THRESHOLD
) -> Float[Tensor, " n"]:
    """Intersection over union of the object and of where each map is at least `threshold`, in percent, higher is better.

    From 0 to 100; 0 for a map of zeros, which marks nothing. NaN where there is no object, and where a map leaves [0, 1].

    Args:
        maps: `[N, H, W]` in [0, 1].
        masks: where the object is, bool `[N, H, W]`.
        threshold: in (0, 1].

    Raises:
        MetricError: maps and masks do not fit, or the threshold is out of range.

    Example:
        >>> mask_iou(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([33.3333], dtype=torch.float64)
    """
    return iou_curve(maps, masks, [threshold])[:, 0]


def iou_curve(
    maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"], thresholds: Sequence[float]
) -> Float[Tensor, "n s"]:
    """`mask_iou` at several thresholds at once, in percent, `[N, S]`.

    The threshold that is best for a whole data set is where its mean over the images is largest.

    Args:
        maps: `[N, H, W]` in [0, 1].
        masks: where the object is, bool `[N, H, W]`.
        thresholds: in (0, 1], ascending.

    Raises:
        MetricError: maps and masks do not fit, or the thresholds are out of range or not ascending.

    Example:
        >>> iou_curve(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]), [0.1, 0.5, 0.9])
        tensor([[66.6667, 33.3333, 50.0000]], dtype=torch.float64)
    """
    flat, inside = _checked(maps, masks)
    bounds = flat.new_tensor(_thresholds(thresholds))  # of the map's type, so that a value that was set to one reaches it
    reached = torch.bucketize(flat, bounds, right=True)  # how many thresholds, of each pixel

    def count(which: Tensor) -> Tensor:
        histogram = flat.new_zeros(len(flat), len(bounds) + 1, dtype=torch.float64).scatter_add_(1, reached, which.double())
        return histogram.flip(1).cumsum(dim=1).flip(1)[:, 1:]

    both = count(inside)
    either = count(torch.ones_like(inside)) + inside.sum(dim=1, keepdim=True) - both
    return _usable(100 * both / either, flat, inside, low=0, high=1)


def best_mask_iou(maps: Float[Tensor, " n *space"], masks: Bool[Tensor, " n *space"]) -> Float[Tensor, " n"]:
    """`mask_iou` at the threshold that is best for each image by itself, in percent, 0 to 100, higher is better.

    All thresholds above 0 are tried, exactly. It says how well a map could mark the object if somebody who knows the object
    chose the threshold, so it is above what any common threshold gives. 0 for a map of zeros. NaN where there is no object,
    and where a map leaves [0, 1].

    Args:
        maps: `[N, H, W]` in [0, 1].
        masks: where the object is, bool `[N, H, W]`.

    Raises:
        MetricError: maps and masks do not fit.

    Example:
        >>> best_mask_iou(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([66.6667], dtype=torch.float64)
    """
    flat, inside = _checked(maps, masks)
    ordered, order = flat.sort(dim=1, descending=True)
    both = inside.gather(1, order).cumsum(dim=1)
    marked = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    shares = both.double() / (marked + inside.sum(dim=1, keepdim=True) - both)
    # A threshold takes all pixels of one value or none: what counts is the last of each value, if that is above 0.
    last = functional.pad(ordered[:, 1:] < ordered[:, :-1], (0, 1), value=True) & (ordered > 0)
    return _usable(100 * shares.masked_fill(~last, 0).amax(dim=1), flat, inside, low=0, high=1)


def _checked(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Maps and masks with their pixels in a row, `[N, P]`."""
    if maps.shape != masks.shape or maps.ndim < 2 or 0 in maps.shape[1:]:
        raise MetricError(
            f"maps and masks are of one shape, [N, H, W]; got {list(maps.shape)} and {list(masks.shape)}: "
            "resize the masks to the maps, or the maps to the images"
        )
    if masks.dtype != torch.bool or not maps.is_floating_point():
        came = " and ".join(str(given.dtype).removeprefix("torch.") for given in (maps, masks))
        raise MetricError(f"maps are floating-point and masks bool, got {came}; of a label map make masks by masks == label")
    return maps.flatten(1).contiguous(), masks.flatten(1)


def _usable(values: Tensor, flat: Tensor, inside: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """The values `[N]` or `[N, S]`; NaN without an object, and where a map is not finite or leaves its range."""
    lowest, highest = flat.aminmax(dim=1)
    usable = inside.any(dim=1) & (lowest >= low) & (highest <= high) & lowest.isfinite() & highest.isfinite()
    return values.masked_fill(~usable.view(-1, *[1] * (values.ndim - 1)), torch.nan)


def _tolerance(tolerance: float) -> float:
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise MetricError(f"a tolerance is a distance in pixels, at least 0; got {tolerance}")
    return tolerance


def _thresholds(thresholds: Sequence[float]) -> list[float]:
    given = list(thresholds)
    if not given or given != sorted(set(given)) or not all(0 < threshold <= 1 for threshold in given):
        raise MetricError(f"thresholds lie in (0, 1], in ascending order; got {given}")
    return given


def _near(masks: Tensor, tolerance: float) -> Tensor:
    """The pixels less than `tolerance` from the object, and the object itself."""
    squared = torch.zeros(masks.shape, device=masks.device).masked_fill(~masks, torch.inf)
    for axis in range(1, masks.ndim):
        squared = _nearest_along(squared, axis, max(math.ceil(tolerance) - 1, 0))
    return masks | (squared < tolerance**2)


def _nearest_along(squared: Tensor, axis: int, reach: int) -> Tensor:
    """The smallest of the squared distances within reach along one axis, each with the square of the way there.

    Axis after axis this is the squared Euclidean distance, wherever that is within reach.
    """
    lines = squared.movedim(axis, -1)
    length = lines.shape[-1]
    reach = min(reach, length - 1)
    padded = functional.pad(lines, (reach, reach), value=torch.inf)
    nearest = lines
    for step in range(-reach, reach + 1):
        nearest = torch.minimum(nearest, padded.narrow(-1, reach + step, length) + step**2)
    return nearest.movedim(-1, axis)


EXCITATION_BACKPROP = "Zhang et al. 2016, arXiv 1608.00507"
SCORE_CAM = "Wang et al. 2020, arXiv 1910.01279"
CLEVR_XAI = "Arras et al. 2022, arXiv 2003.07258"
NEEDED = ("maps", "masks")


def pointing_game(tolerance: float = TOLERANCE, name: str = "pointing_game") -> Metric:
    """The pointing game, in percent of the images, higher is better: see `pointing_hit`.

    Args:
        tolerance: in pixels, by the size of the images: 15 is the usual one where their sides are several hundred.
        name: of the metric, for a run with several tolerances.

    Raises:
        MetricError: the tolerance is negative or not finite.

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
        needs=NEEDED,
        settings={"tolerance": tolerance},
        paper=EXCITATION_BACKPROP,
    )


def iou(threshold: float = THRESHOLD, name: str = "iou") -> Metric:
    """Intersection over union at a threshold, in percent, higher is better: see `mask_iou`.

    Args:
        threshold: of the map, in (0, 1].
        name: of the metric, for a run with several thresholds.

    Raises:
        MetricError: the threshold is out of range.

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
    )


POINTING_GAME = pointing_game()
ENERGY_POINTING_GAME = Metric(
    "energy_pointing_game", energy_inside, higher_is_better=True, label="energy %", needs=NEEDED, paper=SCORE_CAM
)
RELEVANCE_MASS_ACCURACY = Metric(
    "relevance_mass_accuracy", relevance_mass, higher_is_better=True, label="mass %", needs=NEEDED, paper=CLEVR_XAI
)
RELEVANCE_RANK_ACCURACY = Metric(
    "relevance_rank_accuracy", relevance_rank, higher_is_better=True, label="rank %", needs=NEEDED, paper=CLEVR_XAI
)
IOU = iou()
BEST_IOU = Metric("best_iou", best_mask_iou, higher_is_better=True, label="best IoU %", needs=NEEDED)

LOCALISATION_METRICS = (
    POINTING_GAME,
    ENERGY_POINTING_GAME,
    RELEVANCE_MASS_ACCURACY,
    RELEVANCE_RANK_ACCURACY,
    IOU,
    BEST_IOU,
)
