"""Mosaics of single images, with a known ground truth: the evidence for a class lies in the cells of that class.

They are the data of the grid pointing game, of Focus and of DiFull; the measure is `relevance_mass_accuracy`, the share of the
positive relevance that lies in the target's cells. No masks or boxes of objects are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from xaieval.data.batches import Batch, read_batch
from xaieval.data.images import Pictures
from xaieval.data.samples import collate, sample_of
from xaieval.data.truth_by_class import Truth
from xaieval.errors import DataError, choose_from

__all__ = ["Cell", "Mosaics", "mosaics"]

Layout = Literal["distinct", "focus"]
Judge = Callable[[Tensor], Tensor]

BLOCK = 32  # images that are judged at once


@dataclass(frozen=True)
class Cell:
    """An image of a mosaic: its number in the data set, its id and its class."""

    number: int
    id: str
    label: int


@dataclass(frozen=True)
class Mosaics(Dataset[dict[str, Any]]):
    """A data set of mosaics, one item for each mosaic and each of its explained classes.

    Attributes:
        dataset: The single images.
        grids: The cells of each mosaic, row by row, `side ** 2` of them.
        asked: For each item the number of its mosaic and the place of the cell with the explained class.
        side: Cells along a side.
        shrink: Mosaics have the size of a single image; otherwise its size times `side`.
        heads: Number of classes of a model that has a head for each cell: the class of a cell is then `place * heads + class`.
            Default: one head, and cells of one class are equal.
        grouped: The items of a mosaic, one for each explained class, are a group.
    """

    dataset: Any
    grids: Sequence[Sequence[Cell]]
    asked: Sequence[tuple[int, int]]
    side: int
    shrink: bool = False
    heads: int | None = None
    grouped: bool = True
    _last: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, place = self.asked[index]
        known = {"group": f"{number:05d}"} if self.grouped else {}
        return sample_of(self.ids[index], self._classes(number)[place], lambda: self._prepared(number)) | known

    @property
    def ids(self) -> list[str]:
        """The id of each item: the number of its mosaic, and the place of the cell with the explained class."""
        return [f"{number:05d}/{place}" for number, place in self.asked]

    def subset(self, numbers: Sequence[int]) -> Mosaics:
        """Select the items of these numbers, in this order."""
        return replace(self, asked=[self.asked[number] for number in numbers])

    def loader(self, batch_size: int, workers: int = 0, pin_memory: bool = False) -> DataLoader[dict[str, Any]]:
        """Return a loader for `xaieval.score`.

        Its batches are mappings with `image`, `label`, `id`, `truth` (which cells are of which class), `group` (the mosaic, if
        it is asked for several classes) and `failed`.

        Args:
            batch_size: Mosaics in a batch.
            workers: Number of processes that load images; 0 loads in this process.
            pin_memory: Put batches into pinned memory, for faster transfer to a GPU.
        """
        return DataLoader(self, batch_size=batch_size, collate_fn=_collate, num_workers=workers, pin_memory=pin_memory)

    def _classes(self, number: int) -> list[int]:
        """The class of each cell of a mosaic, in the numbers of the model."""
        labels = [cell.label for cell in self.grids[number]]
        return labels if self.heads is None else [place * self.heads + label for place, label in enumerate(labels)]

    def _prepared(self, number: int) -> dict[str, Any]:
        if number not in self._last:  # the items of a mosaic follow each other
            self._last.clear()
            self._last[number] = self._joined([_image(self.dataset, cell) for cell in self.grids[number]])
        image = self._last[number]
        return {"image": image, "truth": Truth(torch.tensor(self._classes(number)), self._cells(image.shape[-2:]))}

    def _joined(self, images: Sequence[Tensor]) -> Tensor:
        _check_alike(images)
        height, width = (size if self.shrink else size * self.side for size in images[0].shape[-2:])
        mosaic = images[0].new_empty(images[0].shape[0], height, width)
        for image, (rows, columns) in zip(images, _places(self.side, (height, width)), strict=True):
            cell = mosaic[:, rows, columns]
            cell.copy_(image if not self.shrink else _resized(image, cell.shape[1:]))
        return mosaic

    def _cells(self, size: Sequence[int]) -> Tensor:
        """The pixels of each cell, bool `[side ** 2, H, W]`."""
        masks = torch.zeros(self.side**2, *size, dtype=torch.bool)
        for mask, (rows, columns) in zip(masks, _places(self.side, size), strict=True):
            mask[rows, columns] = True
        return masks


def mosaics(
    dataset: Any,
    side: int = 2,
    layout: Layout = "distinct",
    *,
    size: int | None = None,
    judge: Judge | None = None,
    confidence: float = 0.99,
    shrink: bool = False,
    heads: int | None = None,
    seed: int = 0,
) -> Mosaics:
    """Make mosaics of single images, for the grid pointing game and similar metrics.

    No image is in two mosaics, so mosaics are independent. The items of one mosaic are a group. Groups that the single
    images come in, such as views of one place, are not kept: take one image of each.

    Args:
        dataset: Images with classes: `Pictures`, a loader with an indexed `dataset`, or any data set with a length whose items
            are pairs `(image, label)` or mappings with `image`, `label` and perhaps `id`. Images have one size.
        side: Cells along a side: 2 or 3 in the papers.
        layout: "distinct": images of `side ** 2` different classes, and each class is asked (the grid pointing game); or
            "focus": two images of the class that is asked and two of two others, in any order (`side` 2).
        size: Number of mosaics (default: as many as the images allow).
        judge: A function from images `[N, C, H, W]` to probabilities `[N, K]`, such as `lambda images:
            model(images).softmax(dim=1)`. Only images that it classifies right are taken, as in the papers. Default: all.
        confidence: The smallest probability of the right class, with `judge`; 0.99 in Rao et al., 0.5 in Böhle et al.
        shrink: Shrink the cells, so that a mosaic has the size of an image, for models that take no other.
        heads: Number of classes of `xaieval.models.disconnected.DisconnectedCells`, which has a head for each cell (DiFull).
        seed: Seed of the choice of images and of their places.

    Raises:
        DataError: A setting is out of range, images have no classes, or there are too few of them.

    Reference:
        Böhle et al., "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021 (arXiv
        2104.00032); Rao et al., "Towards Better Understanding Attribution Methods", CVPR 2022 (arXiv 2205.10435),
        GridPG and DiFull; Arias-Duart et al., "Focus! Rating XAI Methods and Finding Biases", FUZZ-IEEE 2022 (arXiv
        2109.15035).

    Example:
        >>> from xaieval.data import Preprocessing, scenes
        >>> made = mosaics(scenes(Preprocessing(32, 32), size=16), side=2, size=2)
        >>> batch = next(iter(made.loader(batch_size=4)))
        >>> batch["image"].shape, [truth.present() == sorted(batch["label"].tolist()) for truth in batch["truth"]]
        (torch.Size([4, 3, 64, 64]), [True, True, True, True])
        >>> batch["id"], batch["group"]
        (['00000/0', '00000/1', '00000/2', '00000/3'], ['00000', '00000', '00000', '00000'])
    """
    _check(side, layout, size)
    images = dataset.dataset if isinstance(dataset, DataLoader) else dataset
    if not hasattr(images, "__getitem__") or not hasattr(images, "__len__"):
        raise DataError(f"mosaics take a data set with a length and indices; a {type(images).__name__} does not have both")
    cells = _usable_cells(images, judge, confidence)
    rng = np.random.default_rng(seed)
    waiting: dict[int, list[Cell]] = {}
    for cell in (cells[number] for number in rng.permutation(len(cells))):
        waiting.setdefault(cell.label, []).append(cell)
    choose = _distinct if layout == "distinct" else _focus
    grids: list[list[Cell]] = []
    asked: list[tuple[int, int]] = []
    while (size is None or len(grids) < size) and (chosen := choose(waiting, side, rng, len(grids))) is not None:
        grid, places = chosen
        asked += [(len(grids), place) for place in places]
        grids.append(grid)
    if not grids or (size is not None and len(grids) < size):
        raise DataError(
            f"{len(cells)} usable images of {len({cell.label for cell in cells})} classes give {len(grids)} mosaics of "
            f"{side} x {side} cells, {size or 'at least one'} wanted; give more images, a smaller side or a lower confidence"
        )
    return Mosaics(images, grids, asked, side, shrink, heads, grouped=layout == "distinct")


def _distinct(
    waiting: Mapping[int, list[Cell]], side: int, rng: np.random.Generator, number: int
) -> tuple[list[Cell], list[int]] | None:
    """A mosaic of different classes, of which each is asked; None if there are no more."""
    classes = sorted(label for label, left in waiting.items() if left)
    if len(classes) < side**2:
        return None
    return [waiting[label].pop() for label in rng.choice(classes, side**2, replace=False)], list(range(side**2))


def _focus(
    waiting: Mapping[int, list[Cell]], side: int, rng: np.random.Generator, number: int
) -> tuple[list[Cell], list[int]] | None:
    """A mosaic of two images of the class that is asked, classes in turn, and two of others; None if there are no more."""
    able = sorted(label for label, left in waiting.items() if len(left) >= 2)
    if not able:
        return None
    target = able[number % len(able)]
    others = sorted(label for label, left in waiting.items() if left and label != target)
    if len(others) < 2:
        return None
    labels = [target, target, *rng.choice(others, 2, replace=False)]
    grid = [waiting[label].pop() for label in labels]
    order = rng.permutation(4)
    return [grid[place] for place in order], [order.tolist().index(0)]


def _usable_cells(images: Any, judge: Judge | None, confidence: float) -> list[Cell]:
    """The images that have a class, and that the judge is sure of."""
    if judge is None and isinstance(images, Pictures):  # known without reading
        known = zip(images.ids, images.labels, strict=True)
        cells = [Cell(number, name, label) for number, (name, label) in enumerate(known) if label is not None]
    else:
        cells = []
        for start in range(0, len(images), BLOCK):
            cells += _judged(
                [_single(images, n) for n in range(start, min(start + BLOCK, len(images)))], start, judge, confidence
            )
    if not cells and judge is None:
        raise DataError("mosaics take images with classes, and these have no labels")
    return cells


def _judged(batches: Sequence[Batch], start: int, judge: Judge | None, confidence: float) -> list[Cell]:
    """Those of the images from number `start` on that have a class, and that the judge is sure of."""
    labelled = [
        (Cell(start + place, batch.ids[0], label), batch.images)
        for place, batch in enumerate(batches)
        if len(batch) and (label := _label(batch)) is not None
    ]
    cells = [cell for cell, _ in labelled]
    if judge is None or not cells:
        return cells
    _check_alike([images[0] for _, images in labelled])
    labels = torch.tensor([cell.label for cell in cells])
    with torch.no_grad():
        probabilities = judge(torch.cat([images for _, images in labelled])).cpu()
    if probabilities.ndim != 2 or len(probabilities) != len(cells) or labels.max() >= probabilities.shape[1]:
        raise DataError(
            f"a judge returns probabilities [N, K] of all classes; got {list(probabilities.shape)} for {len(cells)} images of "
            f"classes up to {labels.max()}"
        )
    best = probabilities.max(dim=1)
    sure = (best.values >= confidence) & (best.indices == labels)
    return [cell for cell, kept in zip(cells, sure.tolist(), strict=True) if kept]


def _label(batch: Batch) -> int | None:
    labels = batch.labels
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels[0] < 0:
        return None
    return int(labels[0])


def _single(images: Any, number: int) -> Batch:
    """One item of a data set as a batch."""
    item = images[number]
    if isinstance(item, tuple | list):
        item = {"image": item[0], "label": item[1]} if len(item) == 2 else {"image": item[0]}
    if isinstance(item, Mapping) and ("failed" in item or getattr(item.get("image"), "ndim", 0) == 3):
        item = collate([{"id": str(number), "label": None, **item}])
    return read_batch(item, number)


def _image(images: Any, cell: Cell) -> Tensor:
    batch = _single(images, cell.number)
    if not len(batch):  # counts as an unreadable image
        raise ValueError(f"its cell '{cell.id}' cannot be read: {batch.failed[0][2]}")
    return batch.images[0]


def _places(side: int, size: Sequence[int]) -> list[tuple[slice, slice]]:
    """Rows and columns of each cell, row by row."""
    rows, columns = (
        [slice(round(place * length / side), round((place + 1) * length / side)) for place in range(side)] for length in size
    )
    return [(row, column) for row in rows for column in columns]


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(image[None], size=tuple(size), mode="bilinear", antialias=True)[0]


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    group = [sample["group"] for sample in samples if "group" in sample and "image" in sample]
    return collate(samples) | ({"group": group} if group else {})


def _check_alike(images: Sequence[Tensor]) -> None:
    shapes = list(dict.fromkeys(tuple(image.shape) for image in images))
    if len(shapes) > 1:
        came = " and ".join(str(list(shape)) for shape in shapes[:2])
        raise DataError(f"the images of mosaics have one size, got {came}; resize or crop them in the data set")


def _check(side: int, layout: str, size: int | None) -> None:
    if layout not in get_args(Layout):
        raise DataError(f"no layout {layout!r} of mosaics; {choose_from(layout, get_args(Layout))}")
    if side < 2 or (layout == "focus" and side != 2):
        raise DataError(f"mosaics have at least 2 cells along a side, and exactly 2 with layout 'focus'; got {side}")
    if size is not None and size < 1:
        raise DataError(f"size is a number of mosaics, at least 1; got {size}")
