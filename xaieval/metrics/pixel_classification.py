"""A map as a classifier of pixels, object or not, at a threshold: F1, pixel accuracy and mean IoU.

The functions take maps and masks of the same shape, `[N, H, W]` or of volumes `[N, D, H, W]`, and return one number for each
image, in percent; NaN for an image without an object. Papers on vision transformers report them on ImageNet-Segmentation, with
each map's mean as its threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from xaieval.errors import MetricError
from xaieval.metrics.localisation import NEEDED, best_mask_iou, checked_maps, usable
from xaieval.metrics.metric import Metric

__all__ = [
    "best_mask_f1",
    "f1",
    "mask_accuracy",
    "mask_f1",
    "mask_mean_iou",
    "mean_iou",
    "pixel_accuracy",
    "pooled_mean_iou",
]

Maps = Float[Tensor, " n *space"]
Masks = Bool[Tensor, " n *space"]
PerImage = Float[Tensor, " n"]
Threshold = float | Literal["mean"]

CHEFER = "Chefer et al. 2021, arXiv 2012.09838"


def mask_f1(maps: Maps, masks: Masks, threshold: Threshold = 0.5) -> PerImage:
    """F1 of the pixels that a map marks, in percent, 0 to 100, higher is better.

    The harmonic mean of precision and recall, `2 both / (marked + object)`; also called Dice. On one image it orders maps like
    the intersection over union J, because it is `2 J / (1 + J)`; means over images differ. 0 for a map that marks nothing. NaN
    if there is no object or a value is not finite; and with a number, if a map has values outside [0, 1].

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`; with "mean" of any range.
        masks: The pixels of the object, bool `[N, H, W]`.
        threshold: A number in (0, 1], which marks the pixels of at least this value; or "mean", which marks those above the
            map's mean.

    Raises:
        MetricError: Maps and masks do not fit, or the threshold is out of range.

    Example:
        >>> mask_f1(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([50.], dtype=torch.float64)
    """
    counts, limits = _counts(maps, masks, threshold)
    return usable(200 * counts.both.double() / (counts.marked + counts.size), *limits)


def best_mask_f1(maps: Maps, masks: Masks) -> PerImage:
    """F1 at the best threshold of each image, in percent, 0 to 100, higher is better.

    All thresholds above 0 are tried, exactly; it is the F1 of `best_mask_iou`, with which it shares the threshold. The
    threshold is chosen with knowledge of the object, so the value is an upper bound. 0 for a map of zeros. NaN if there is no
    object, or if a map has values outside [0, 1].

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`.
        masks: The pixels of the object, bool `[N, H, W]`.

    Raises:
        MetricError: Maps and masks do not fit.

    Example:
        >>> best_mask_f1(torch.tensor([[[0.9, 0.5, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([80.], dtype=torch.float64)
    """
    shared = best_mask_iou(maps, masks)
    return 200 * shared / (100 + shared)


def mask_accuracy(maps: Maps, masks: Masks, threshold: Threshold = "mean") -> PerImage:
    """Share of the pixels that a map classifies correctly, object or not, in percent, 0 to 100, higher is better.

    A map that marks nothing scores the share of the background. NaN as for `mask_f1`.

    Args:
        maps: Explanation maps, `[N, H, W]`.
        masks: The pixels of the object, bool `[N, H, W]`.
        threshold: As in `mask_f1`.

    Raises:
        MetricError: Maps and masks do not fit, or the threshold is out of range.

    Reference:
        Chefer et al., CVPR 2021 (arXiv 2012.09838), pixel accuracy on ImageNet-Segmentation; threshold as in their code.

    Example:
        >>> mask_accuracy(torch.tensor([[[0.9, 0.4, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([66.6667], dtype=torch.float64)
    """
    counts, limits = _counts(maps, masks, threshold)
    return usable(100 * (counts.both + counts.neither).double() / counts.pixels, *limits)


def mask_mean_iou(maps: Maps, masks: Masks, threshold: Threshold = "mean") -> PerImage:
    """Mean of the IoU of the object and the IoU of the background, in percent, 0 to 100, higher is better.

    The background is left out of the mean if neither the mask nor the map has any. NaN as for `mask_f1`.

    Args:
        maps: Explanation maps, `[N, H, W]`.
        masks: The pixels of the object, bool `[N, H, W]`.
        threshold: As in `mask_f1`.

    Raises:
        MetricError: Maps and masks do not fit, or the threshold is out of range.

    Reference:
        Chefer et al., CVPR 2021 (arXiv 2012.09838), mIoU on ImageNet-Segmentation; of one image, where the paper pools
        the pixels of all images: see `pooled_mean_iou`.

    Example:
        >>> mask_mean_iou(torch.tensor([[[0.9, 0.4, 0.1]]]), torch.tensor([[[True, False, True]]]))
        tensor([50.], dtype=torch.float64)
    """
    counts, limits = _counts(maps, masks, threshold)
    return usable(_mean_iou_of(counts.shares()), *limits)


def pooled_mean_iou(shares: Float[np.ndarray, "*any 4"]) -> NDArray[np.float64]:
    """Mean of the IoU of object and background over the pixels of all images, in percent, 0 to 100, higher is better.

    Args:
        shares: The mean over images of what `mean_iou` keeps as its curve: the shares of pixels that are marked object,
            unmarked object, marked background and unmarked background.

    Reference:
        mIoU of the code of Chefer et al., CVPR 2021 (arXiv 2012.09838), which adds up intersections and unions over all images.

    Example:
        >>> pooled_mean_iou(np.array([0.2, 0.1, 0.1, 0.6])).round(2)
        np.float64(62.5)
    """
    values = _mean_iou_of(torch.as_tensor(np.asarray(shares, dtype=float)))
    return values.numpy()[()]


def _mean_iou_of(shares: Tensor) -> Tensor:
    hit, missed, false, rest = shares.unbind(dim=-1)
    wrong = missed + false
    return 100 * torch.stack([hit / (hit + wrong), rest / (rest + wrong)]).nanmean(dim=0)


@dataclass(frozen=True)
class _Counts:
    """Numbers of pixels, `[N]`: marked by the map, of the object, and both."""

    both: Tensor
    marked: Tensor
    size: Tensor
    pixels: int

    @property
    def neither(self) -> Tensor:
        return self.pixels - self.marked - self.size + self.both

    def shares(self) -> Tensor:
        """Marked object, unmarked object, marked background and unmarked background, `[N, 4]`; they add up to 1."""
        parts = [self.both, self.size - self.both, self.marked - self.both, self.neither]
        return torch.stack(parts, dim=1).double() / self.pixels


def _counts(maps: Tensor, masks: Tensor, threshold: Threshold) -> tuple[_Counts, tuple[Any, ...]]:
    """The counts, and what `usable` takes after the values."""
    flat, inside = checked_maps(maps, masks)
    if _checked(threshold) == "mean":
        # Rounding can put the mean of a constant map below its values.
        marked = flat > torch.maximum(flat.double().mean(dim=1, keepdim=True), flat.amin(dim=1, keepdim=True).double())
    else:
        marked = flat >= flat.new_tensor(threshold)  # of the map's type, so that a value set to the threshold reaches it
    counts = _Counts((marked & inside).sum(dim=1), marked.sum(dim=1), inside.sum(dim=1), flat.shape[1])
    return counts, (flat, inside) if threshold == "mean" else (flat, inside, 0, 1)


def _checked(threshold: Threshold) -> Threshold:
    if threshold != "mean" and (isinstance(threshold, str) or not 0 < threshold <= 1):
        raise MetricError(f"a threshold is a number in (0, 1] or 'mean'; got {threshold!r}")
    return threshold


def f1(threshold: Threshold = 0.5, name: str = "f1") -> Metric:
    """F1 at a threshold, in percent, higher is better: see `mask_f1`.

    Args:
        threshold: A number in (0, 1], or "mean", as in the code of Chefer et al.
        name: Name of the metric, for a run with several thresholds.

    Raises:
        MetricError: The threshold is out of range.

    Example:
        >>> f1(threshold="mean", name="f1_mean").settings
        {'threshold': 'mean'}
    """
    return _at(threshold, mask_f1, name, "F1 %", "")


def pixel_accuracy(threshold: Threshold = "mean", name: str = "pixel_accuracy") -> Metric:
    """Pixel accuracy at a threshold, in percent, higher is better: see `mask_accuracy`.

    Args:
        threshold: A number in (0, 1], or "mean", as in the code of Chefer et al.
        name: Name of the metric, for a run with several thresholds.

    Raises:
        MetricError: The threshold is out of range.

    Example:
        >>> pixel_accuracy(threshold=0.5, name="pixel_accuracy_0.5").settings
        {'threshold': 0.5}
    """
    return _at(threshold, mask_accuracy, name, "pixel accuracy %", CHEFER)


def mean_iou(threshold: Threshold = "mean", keep_curve: bool = False, *, name: str = "mean_iou") -> Metric:
    """Mean IoU of object and background at a threshold, in percent, higher is better: see `mask_mean_iou`.

    Args:
        threshold: A number in (0, 1], or "mean", as in the code of Chefer et al.
        keep_curve: Keep the four shares of pixels in the rows, as `<name>_curve`, from which `Scores.pooled` computes the
            number of the paper: over the pixels of all images.
        name: Name of the metric, for a run with several thresholds.

    Raises:
        MetricError: The threshold is out of range.

    Example:
        >>> mean_iou(keep_curve=True).settings
        {'threshold': 'mean', 'pooled': 'mean_iou'}
    """
    kept = {"pooled": "mean_iou"} if keep_curve else {}
    return _at(threshold, _kept_mean_iou if keep_curve else mask_mean_iou, name, "mIoU %", CHEFER, **kept)


def _kept_mean_iou(maps: Tensor, masks: Tensor, threshold: Threshold) -> tuple[Tensor, Tensor]:
    values, shares = mask_mean_iou(maps, masks, threshold), _counts(maps, masks, threshold)[0].shares()
    return values, shares.masked_fill(values.isnan()[:, None], torch.nan)


def _at(threshold: Threshold, function: Callable[..., Any], name: str, label: str, paper: str, **settings: str) -> Metric:
    return Metric(
        name,
        partial(function, threshold=_checked(threshold)),
        higher_is_better=True,
        label=label,
        needs=NEEDED,
        settings={"threshold": threshold, **settings},
        paper=paper,
        family="localisation",
    )


BEST_F1 = Metric("best_f1", best_mask_f1, True, label="best F1 %", needs=NEEDED, family="localisation")
METRICS = (f1(), BEST_F1, pixel_accuracy(), mean_iou())
