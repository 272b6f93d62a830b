"""Box accuracy: how well the boxes around the regions that a map marks fit the boxes of the objects.

A map marks the pixels of at least a threshold; its boxes are those around the connected pieces of what it marks. Papers on
weakly supervised localisation report `max_box_accuracy`, at the threshold that is best for the whole data set. It is not a mean
over images, so the rows keep the IoU of each image at all thresholds, and `Scores.pooled` computes the maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy  # whose `ndimage` is loaded when it is used
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from xaieval.errors import MetricError, choose_from
from xaieval.metrics.localisation import checked_maps, usable
from xaieval.metrics.metric import Metric

__all__ = ["box_accuracy", "box_iou_curve", "max_box_accuracy"]

Components = Literal["any", "largest"]
Array = NDArray[Any]
Floats = NDArray[np.float64]

CHOE = "Choe et al. 2020, arXiv 2007.04178"
NEIGHBOURS = np.array(
    [np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]
)  # of a pixel: the eight around it, at its threshold
PIXELS = 5_000_000  # of all thresholds that are labelled at once, which bounds the memory


def box_iou_curve(
    maps: Float[Tensor, "n h w"],
    masks: Bool[Tensor, "n h w"],
    boxes: Sequence[Float[Tensor, "k 4"]],
    thresholds: Sequence[float],
    components: Components = "any",
) -> Float[Tensor, "n s"]:
    """IoU of a map's box and the nearest box of an object at each threshold, in percent, 0 to 100, higher is better.

    A map marks the pixels of at least the threshold. Pixels that touch, also at a corner, are one piece. 0 where nothing is
    marked. NaN if there is no object, or if a map has values outside [0, 1].

    Args:
        maps: Explanation maps in [0, 1], `[N, H, W]`.
        masks: The pixels of the objects, bool `[N, H, W]`.
        boxes: For each image the boxes around its objects, `[k, 4]`, `(x1, y1, x2, y2)` in its pixels.
        thresholds: Numbers in (0, 1], ascending, S of them.
        components: "any", the best of the boxes around the pieces; "largest", the box around the piece with most pixels (the
            first one from the top, if several have as many).

    Raises:
        MetricError: Maps, masks and boxes do not fit, or a setting is out of range.

    Reference:
        Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020 (arXiv 2001.07437), the box
        of the largest piece in MaxBoxAcc; "any" from its extension (arXiv 2007.04178), MaxBoxAccV2.

    Example:
        >>> maps = torch.tensor([[[0.9, 0.9, 0.0, 0.4], [0.2, 0.2, 0.0, 0.4]]])
        >>> boxes = [torch.tensor([[3.0, 0.0, 4.0, 2.0]])]
        >>> box_iou_curve(maps, maps > 0.3, boxes, [0.1, 0.4]), box_iou_curve(maps, maps > 0.3, boxes, [0.1, 0.4], "largest")
        (tensor([[100., 100.]], dtype=torch.float64), tensor([[0., 0.]], dtype=torch.float64))
    """
    flat, inside = checked_maps(maps, masks)
    _check(thresholds, components)
    if maps.ndim != 3 or len(boxes) != len(maps):
        raise MetricError(
            f"box accuracy takes maps [N, H, W] and N times boxes [k, 4]; got {list(maps.shape)} and boxes of {len(boxes)}"
        )
    bounds = maps.new_tensor(list(thresholds)).cpu().numpy()  # of the map's type, so that a value set to a threshold reaches it
    curves = [
        _best_ious(map_, known.double().cpu().numpy(), bounds, components)
        for map_, known in zip(maps.detach().cpu().numpy(), boxes, strict=True)
    ]
    values = torch.from_numpy(np.array(curves).reshape(len(maps), len(bounds))).to(maps.device)
    return usable(values, flat, inside, low=0, high=1)


def max_box_accuracy(
    curves: Floats, iou: Sequence[float] = (0.3, 0.5, 0.7), mean: Callable[[Floats], Floats] | None = None
) -> Floats:
    """Box accuracy at the best threshold of the data set (MaxBoxAccV2), in percent of the images, higher is better.

    For each of the levels in `iou` the percentage of images whose IoU reaches it is taken at the threshold that is best for
    this level; the value is the mean over the levels. The threshold is chosen with knowledge of the objects, so the number is
    an upper bound for any threshold that is chosen otherwise.

    Args:
        curves: What `box_accuracy` keeps as its curve, without images that have none: `[N, S]` in percent.
        iou: Levels of the IoU, in (0, 1]; a single one of 0.5, with curves of the largest piece, is MaxBoxAcc (V1).
        mean: The mean over images of a table `[N, L]`, `[L]` or several, `[R, L]`, such as those of bootstrap samples
            (default: the plain mean).

    Reference:
        Choe et al., CVPR 2020 (arXiv 2001.07437), MaxBoxAcc, and its extension (arXiv 2007.04178), MaxBoxAccV2.

    Example:
        >>> curves = np.array([[80.0, 40.0, 0.0], [20.0, 60.0, 0.0]])  # two images, three thresholds
        >>> max_box_accuracy(curves).round(2), max_box_accuracy(curves, iou=[0.5])  # 100 % reach 0.3 at the second threshold
        (np.float64(66.67), np.float64(50.0))
    """
    levels = 100 * np.asarray(iou, dtype=float)
    reached = np.asarray(curves)[:, None, :] >= levels[:, None] - 1e-9  # 100 * 0.7 is less than 70 by a rounding error
    table = reached.reshape(len(reached), -1).astype(float)
    shares = table.mean(axis=0) if mean is None else np.asarray(mean(table))
    return 100 * shares.reshape(*shares.shape[:-1], len(levels), -1).max(axis=-1).mean(axis=-1)


def box_accuracy(
    threshold: float = 0.2,
    iou: Sequence[float] = (0.3, 0.5, 0.7),
    components: Components = "any",
    thresholds: int = 100,
    *,
    name: str = "box_accuracy",
) -> Metric:
    """Box accuracy, in percent, 0 to 100, higher is better: how many levels of IoU a box of the map reaches.

    The value of an image is the percentage of the levels that its IoU reaches at `threshold`. The rows keep the IoU at
    `thresholds` steps as `<name>_curve`, from which `Scores.pooled` computes `max_box_accuracy` with its interval.

    Args:
        threshold: Of the value of one image, in (0, 1]; 0.2 as in Zhou et al., CVPR 2016.
        iou: Levels of the IoU, in (0, 1]: those of MaxBoxAccV2; (0.5,) for MaxBoxAcc.
        components: "any" as in MaxBoxAccV2, or "largest" as in MaxBoxAcc.
        thresholds: Number of equal steps up to 1, over which the maximum is taken. The authors use 1000, with maps of 256
            values.
        name: Name of the metric, for a run with several settings.

    Raises:
        MetricError: A setting is out of range.

    Reference:
        Choe et al., CVPR 2020 (arXiv 2001.07437) and its extension (arXiv 2007.04178).

    Example:
        >>> box_accuracy(iou=(0.5,), components="largest", name="box_accuracy_v1").interval
        'wilson'
    """
    _check([threshold], components)
    levels = list(iou)
    if not levels or not all(0 < level <= 1 for level in levels) or thresholds < 1:
        raise MetricError(
            f"levels of IoU lie in (0, 1] and thresholds is a number of steps, at least 1; got {levels} and {thresholds}"
        )
    return Metric(
        name,
        partial(_box_accuracy, threshold=threshold, levels=levels, components=components, steps=thresholds),
        higher_is_better=True,
        interval="wilson" if len(levels) == 1 else "mean",
        label="box accuracy %",
        needs=("maps", "masks", "boxes"),
        settings={
            "threshold": threshold,
            "iou": levels,
            "components": components,
            "thresholds": thresholds,
            "pooled": "max_box_accuracy",
        },
        paper=CHOE,
        family="localisation",
    )


def _box_accuracy(
    maps: Tensor,
    masks: Tensor,
    boxes: Sequence[Tensor],
    *,
    threshold: float,
    levels: Sequence[float],
    components: Components,
    steps: int,
) -> tuple[Tensor, Tensor]:
    at_threshold = box_iou_curve(maps, masks, boxes, [threshold], components)
    reached = torch.stack([at_threshold[:, 0] >= 100 * level - 1e-9 for level in levels]).double()
    values = (100 * reached.mean(dim=0)).masked_fill(at_threshold[:, 0].isnan(), torch.nan)
    return values, box_iou_curve(maps, masks, boxes, [step / steps for step in range(1, steps + 1)], components)


def _best_ious(map_: Array, boxes: Floats, bounds: Array, components: Components) -> Floats:
    """The IoU at each threshold, `[S]`, of one map `[H, W]`."""
    best = np.zeros(len(bounds))
    block = max(1, PIXELS // map_.size)
    for start in range(0, len(bounds) if len(boxes) else 0, block):
        part = slice(start, start + block)
        labels, count = scipy.ndimage.label(map_ >= bounds[part, None, None], NEIGHBOURS)
        places, found = _pieces(labels, count)
        if components == "largest":
            kept = _largest(places, np.bincount(labels.ravel())[1:])
            places, found = places[kept], found[kept]
        np.maximum.at(best[part], places, _ious(found, boxes).max(axis=1))
    return 100 * best


def _pieces(labels: Array, count: int) -> tuple[Array, Floats]:
    """The place of the threshold of each piece, `[P]`, and the box around it, `[P, 4]`."""
    corners = [(s.start, x.start, y.start, x.stop, y.stop) for s, y, x in scipy.ndimage.find_objects(labels, count)]
    table = np.array(corners, dtype=float).reshape(count, 5)
    return table[:, 0].astype(np.intp), table[:, 1:]


def _largest(places: Array, areas: Array) -> Array:
    """Which piece is the largest at its threshold, one for each threshold that has any; of equal ones the first."""
    order = np.lexsort((-areas, places))
    return np.asarray(order[np.unique(places[order], return_index=True)[1]])


def _ious(one: Floats, other: Floats) -> Floats:
    """The IoU of boxes `[P, 4]` and `[k, 4]`, `[P, k]`, in [0, 1]."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    both = np.prod((high - low).clip(min=0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    return np.asarray(both / (areas[0][:, None] + areas[1] - both))


def _check(thresholds: Sequence[float], components: str) -> None:
    given = list(thresholds)
    if not given or given != sorted(set(given)) or not all(0 < threshold <= 1 for threshold in given):
        raise MetricError(f"thresholds lie in (0, 1], in ascending order; got {given}")
    if components not in (known := ("any", "largest")):
        raise MetricError(f"no components {components!r}; {choose_from(components, known)}")


METRICS = (box_accuracy(),)
