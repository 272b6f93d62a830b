"""A map as a ranking of pixels, object or not: AUC and average precision, which need no threshold.

The functions take maps and masks of the same shape, `[N, H, W]` or of volumes `[N, D, H, W]`, and return one number for each
image, in percent; NaN for an image without an object. Equal values are one step of a curve, so a constant map scores the same
as chance.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from xaieval.errors import MetricError
from xaieval.metrics.localisation import NEEDED, checked_maps, usable
from xaieval.metrics.metric import Metric

__all__ = [
    "average_precision",
    "pixel_average_precision",
    "pooled_average_precision",
    "roc_auc",
    "two_class_average_precision",
]

Maps = Float[Tensor, " n *space"]
Masks = Bool[Tensor, " n *space"]
PerImage = Float[Tensor, " n"]

FAWCETT = "Fawcett 2006, Pattern Recognition Letters 27"
CHEFER = "Chefer et al. 2021, arXiv 2012.09838"
CHOE = "Choe et al. 2020, arXiv 2001.07437"


def roc_auc(maps: Maps, masks: Masks) -> PerImage:
    """Area under the ROC curve of each map's pixels, in percent, 0 to 100, 50 by chance, higher is better.

    It is the probability that a pixel of the object has a larger value than another pixel, where equal values count half; it is
    computed exactly from ranks. A constant map has 50. NaN if there is no object or nothing else, or a value is not finite.

    Args:
        maps: Explanation maps, `[N, H, W]`, of any range; only their order matters.
        masks: The pixels of the object, bool `[N, H, W]`.

    Raises:
        MetricError: Maps and masks do not fit.

    Reference:
        Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27, 2006; Quantus' `AUC`.

    Example:
        >>> roc_auc(torch.tensor([[[0.9, 0.5, 0.1]], [[0.2, 0.2, 0.2]]]), torch.tensor([[[True, False, True]]] * 2))
        tensor([50., 50.], dtype=torch.float64)
    """
    flat, inside = checked_maps(maps, masks)
    found, first, last = _ranked(flat, inside)
    size = found.sum(dim=1)
    pairs = 2 * size * (flat.shape[1] - size)
    lost = ((first + last + 2) * found).sum(dim=1) - size * (size + 1)  # twice, so that half pairs are whole numbers
    return usable(100 * (pairs - lost).double() / pairs, flat, inside)


def average_precision(maps: Maps, masks: Masks) -> PerImage:
    """Average precision of each map's pixels, in percent, 0 to 100, higher is better; by chance the object's share.

    The mean over the object's pixels of the precision of all pixels that have at least their value. A constant map has the
    share of the image that the object covers. NaN if there is no object or a value is not finite.

    Args:
        maps: Explanation maps, `[N, H, W]`, of any range; only their order matters.
        masks: The pixels of the object, bool `[N, H, W]`.

    Raises:
        MetricError: Maps and masks do not fit.

    Reference:
        scikit-learn's `average_precision_score`, without interpolation; of the pixels of one image. Choe et al., CVPR 2020
        (arXiv 2001.07437) pool the pixels of all images, see `pooled_average_precision`.

    Example:
        >>> average_precision(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([83.3333], dtype=torch.float64)
    """
    flat, inside = checked_maps(maps, masks)
    found, _, last = _ranked(flat, inside)
    precision = found.cumsum(dim=1).gather(1, last).double() / (last + 1)
    return usable(100 * (precision * found).sum(dim=1) / found.sum(dim=1), flat, inside)


def two_class_average_precision(maps: Maps, masks: Masks) -> PerImage:
    """Average precision of object and background together, in percent, 0 to 100, 50 by chance, higher is better.

    What papers on vision transformers report as mAP: the map scores the object, 1 minus the map scores the background, and
    both are pooled into one list of 2 P pixels. NaN if there is no object, or if a map has values outside [0, 1].

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`; the scale matters, because a map is compared with 1 minus itself.
        masks: The pixels of the object, bool `[N, H, W]`.

    Raises:
        MetricError: Maps and masks do not fit.

    Reference:
        `get_ap_scores` in the code of Chefer et al., "Transformer Interpretability Beyond Attention Visualization", CVPR 2021
        (arXiv 2012.09838), whose paper calls it mAP.

    Example:
        >>> two_class_average_precision(torch.tensor([[[0.9, 0.5]], [[0.5, 0.5]]]), torch.tensor([[[True, False]]] * 2))
        tensor([83.3333, 50.0000], dtype=torch.float64)
    """
    flat, inside = checked_maps(maps, masks)
    both = average_precision(torch.cat([flat, 1 - flat], dim=1), torch.cat([inside, ~inside], dim=1))
    return usable(both, flat, inside, low=0, high=1)


def pixel_average_precision(thresholds: int = 1000, *, name: str = "pixel_average_precision") -> Metric:
    """Average precision at equally spaced thresholds (PxAP), in percent, 0 to 100, higher is better.

    The paper pools the pixels of all images, with thresholds that are common to all of them: `Scores.pooled` computes this
    number, with its interval, from the counts that the rows keep as `<name>_curve`. The value of one image is the same formula
    on its own pixels. NaN if there is no object, or if a map has values outside [0, 1].

    Args:
        thresholds: Number of steps from 0 to 1; 1000 as in the authors' code. A row keeps twice as many numbers.
        name: Name of the metric.

    Raises:
        MetricError: There is no step.

    Reference:
        Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020 (arXiv 2001.07437), PxAP;
        `MaskEvaluator` in the authors' code.

    Example:
        >>> pixel_average_precision(thresholds=100).settings
        {'thresholds': 100, 'pooled': 'pixel_average_precision'}
    """
    if thresholds < 1:
        raise MetricError(f"thresholds is a number of steps, at least 1; got {thresholds}")
    return Metric(
        name,
        partial(_pixel_average_precision, steps=thresholds),
        higher_is_better=True,
        label="pixel AP %",
        needs=NEEDED,
        settings={"thresholds": thresholds, "pooled": "pixel_average_precision"},
        paper=CHOE,
        family="localisation",
    )


def pooled_average_precision(shares: Float[np.ndarray, "*any s2"]) -> NDArray[np.float64]:
    """Average precision of the pixels of all images (PxAP), in percent, 0 to 100, higher is better.

    NaN if there is no object.

    Args:
        shares: The mean over images of what `pixel_average_precision` keeps as its curve: at each threshold, from 0 on, the
            share of pixels that are of the object and reach it; then the share of all pixels that reach it.

    Reference:
        Choe et al., CVPR 2020 (arXiv 2001.07437), PxAP.

    Example:
        >>> pooled_average_precision(np.array([0.5, 0.25, 1.0, 0.25])).round(2)
        np.float64(75.0)
    """
    return _area(torch.as_tensor(np.asarray(shares, dtype=float))).numpy()[()]


def _pixel_average_precision(maps: Tensor, masks: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    flat, inside = checked_maps(maps, masks)
    bounds = (torch.arange(steps + 1, device=flat.device) / steps).to(flat.dtype)
    reached = torch.bucketize(flat, bounds, right=True)  # the number of thresholds that each pixel reaches
    shares = torch.cat([_reaching(reached, which, steps) for which in (inside, torch.ones_like(inside))], dim=1)
    shares = usable(shares, flat, inside, low=0, high=1)
    return _area(shares), shares


def _reaching(reached: Tensor, which: Tensor, steps: int) -> Tensor:
    """The share of all pixels that are of a kind and reach each threshold, `[N, S + 1]`."""
    counts = torch.zeros(len(reached), steps + 2, dtype=torch.float64, device=reached.device)
    counts = counts.scatter_add_(1, reached, which.double())
    return counts.flip(1).cumsum(dim=1).flip(1)[:, 1:] / reached.shape[1]


def _area(shares: Tensor) -> Tensor:
    """The area under the steps of precision over recall, in percent, from shares `[..., 2 (S + 1)]`."""
    hits, marked = (part.flip(-1) for part in shares.chunk(2, dim=-1))  # from the highest threshold
    precision = (hits / marked).masked_fill(marked == 0, 0)  # where nothing is marked, recall does not rise
    rises = hits.diff(dim=-1, prepend=torch.zeros_like(hits[..., :1]))
    return 100 * (precision * rises).sum(dim=-1) / hits[..., -1]


def _ranked(flat: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By place in descending order: whether the pixel is the object's; the first and the last place of its value, `[N, P]`."""
    ordered, order = flat.sort(dim=1, descending=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    falls = ordered[:, 1:] < ordered[:, :-1]
    first = places.masked_fill(~functional.pad(falls, (1, 0), value=True), 0).cummax(dim=1).values
    end = places.masked_fill(~functional.pad(falls, (0, 1), value=True), flat.shape[1] - 1)
    return inside.gather(1, order), first, end.flip(1).cummin(dim=1).values.flip(1)


ROC_AUC = Metric("roc_auc", roc_auc, True, label="AUC %", needs=NEEDED, paper=FAWCETT, family="localisation")
AVERAGE_PRECISION = Metric(
    "average_precision", average_precision, True, label="AP %", needs=NEEDED, paper=CHOE, family="localisation"
)
TWO_CLASS_AP = Metric(
    "two_class_average_precision",
    two_class_average_precision,
    True,
    label="two-class AP %",
    needs=NEEDED,
    paper=CHEFER,
    family="localisation",
)

METRICS = (ROC_AUC, AVERAGE_PRECISION, pixel_average_precision(), TWO_CLASS_AP)
