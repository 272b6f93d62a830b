"""The features of a trained feature pyramid's levels, averaged over the cells of a grid, as a data set in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from xaieval.data.batches import Batch, read_batches
from xaieval.errors import AddressError, DataError, ModelError, choose_from
from xaieval.evaluation.scores import Scores
from xaieval.models.fal import levels_of
from xaieval.models.fpn import LEVELS, FPNClassifier
from xaieval.results.rows import VALUED

__all__ = ["Grid", "LevelFeatures", "level_features", "with_column"]

Grid = int | str


@dataclass(frozen=True)
class LevelFeatures:
    """Features of images at the levels of a pyramid.

    Attributes:
        levels: The features of each level, `[N, C, h, w]`, finest level first.
        labels: The classes of the images, `[N]`.
        ids: The names of the images.
    """

    levels: dict[str, Tensor]
    labels: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)


@torch.no_grad()
def level_features(fpn: FPNClassifier, loader: Iterable[Any], grid: Grid) -> LevelFeatures:
    """The levels of a trained FPN, in eval mode; finer levels are averaged over the cells of the grid.

    The average of all cells is the average of the level, so the head gives the same logits.

    Args:
        fpn: The FPN. It is given back as it was.
        loader: The images with their classes, in any form that `xaieval.score` takes.
        grid: The number of cells along each side, or the name of the level whose positions are the cells.

    Raises:
        ModelError: The model is no `FPNClassifier`, or the grid fits a level's size nowhere.
        DataError: An image has no class, or cannot be read.

    Example:
        >>> fpn = FPNClassifier("test_resnet", num_classes=10, channels=8)
        >>> found = level_features(fpn, [(torch.rand(2, 3, 64, 64), torch.tensor([3, 7]))], grid="p5")
        >>> {level: tuple(features.shape) for level, features in found.levels.items()}
        {'p2': (2, 8, 2, 2), 'p3': (2, 8, 2, 2), 'p4': (2, 8, 2, 2), 'p5': (2, 8, 2, 2)}
    """
    if not isinstance(fpn, FPNClassifier):
        raise ModelError(f"the levels of an FPNClassifier are expected, got {type(fpn).__name__}")
    if isinstance(grid, str) and grid not in LEVELS:
        raise ModelError(f"no pyramid level {grid!r} for the grid; {choose_from(grid, LEVELS)}")
    device, training = next(fpn.parameters()).device, fpn.training
    parts: list[LevelFeatures] = []
    fpn.eval()
    try:
        for batch in read_batches(loader):
            labels = _classes(batch)
            levels = fpn.pyramid(batch.images.to(device))
            parts.append(LevelFeatures(_averaged(levels, grid), labels, batch.ids))
    finally:
        fpn.train(training)
    levels = {level: torch.cat([part.levels[level] for part in parts]) for level in LEVELS}
    return LevelFeatures(levels, torch.cat([part.labels for part in parts]), [name for part in parts for name in part.ids])


def _classes(batch: Batch) -> Int[Tensor, " n"]:
    if batch.failed:
        name, _, reason = batch.failed[0]
        raise DataError(f"'{name}' cannot be read: {reason}; repair or remove the file")
    if not isinstance(batch.labels, Tensor) or batch.labels.ndim != 1:
        raise DataError("a loss needs one class per image, and the loader gives none; give batches with labels [N]")
    missing = (batch.labels < 0).nonzero().flatten().tolist()
    if missing:
        raise DataError(f"a loss needs the class of every image, and '{batch.ids[missing[0]]}' has none")
    return batch.labels.cpu().long()


def _averaged(levels: Mapping[str, Tensor], grid: Grid) -> dict[str, Tensor]:
    cells = levels[grid].shape[2:] if isinstance(grid, str) else (grid, grid)
    return {level: _over_cells(level, features, tuple(cells)).float().cpu() for level, features in levels.items()}


def _over_cells(level: str, features: Float[Tensor, "n c h w"], cells: tuple[int, ...]) -> Float[Tensor, "n c g g"]:
    """The averages over cells of equal size; a level that is coarser than the grid is returned as it is."""
    size = tuple(features.shape[2:])
    if size[0] <= cells[0] and size[1] <= cells[1]:
        return features
    if min(cells) < 1 or size[0] % cells[0] or size[1] % cells[1]:
        raise ModelError(
            f"level {level} has {size[0]} x {size[1]} positions, which {cells[0]} x {cells[1]} cells do not divide; give "
            "images whose sides are multiples of 32, or another grid"
        )
    return functional.avg_pool2d(features, (size[0] // cells[0], size[1] // cells[1]))


def with_column(scores: Scores, ids: list[str], values: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Scores:
    """The scores with one more metric: values `[N]` of images at each pyramid level.

    Rows that do not count have no value, and neither have rows of layers that are no pyramid level.

    Args:
        scores: Scores of a pyramid's levels.
        ids: The names of the N images.
        values: The values by level.
        entry: The entry of the metric in the manifest.

    Raises:
        AddressError: No row is of a pyramid level.
        DataError: An image of the scores is not among these images.
    """
    rows = scores.rows
    levels = {layer: level for layer in rows["layer"].unique() if (level := _level_of(layer))}
    if not levels:
        raise AddressError("no layer of the scores is a pyramid level; score 'fpn[*]' or 'levels[*]'")
    counts = rows["layer"].isin(list(levels)) & rows["status"].isin(VALUED)
    unknown = rows.loc[counts & ~rows["image_id"].isin(ids), "image_id"]
    if len(unknown):
        raise DataError(f"image '{unknown.iloc[0]}' of the scores is not in the loader; give the loader that was scored")
    column = pd.Series(np.nan, index=rows.index)
    for layer, level in levels.items():
        there = counts & (rows["layer"] == layer)
        column[there] = rows.loc[there, "image_id"].map(dict(zip(ids, values[level].tolist(), strict=True)))
    metrics = [metric for metric in scores.metrics if metric["name"] != entry["name"]]
    return Scores(rows.assign(**{entry["name"]: column}), scores.manifest | {"metrics": [*metrics, dict(entry)]})


def _level_of(layer: str) -> str | None:
    try:
        return levels_of([layer])[0]
    except AddressError:
        return None
