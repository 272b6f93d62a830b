"""Images of several classes, once for each class, for `target="each"`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from xaieval.data.batches import Batch
from xaieval.data.truth_by_class import truth_of
from xaieval.errors import TargetError

__all__ = ["EACH", "each_class", "image_of", "with_own_groups"]

EACH = "each"  # the target
SIGN, NONE = "@", "none"  # "cat.jpg@17" is the image cat.jpg where class 17 is asked, "sky.jpg@none" one without a class


def each_class(batches: Iterator[Batch], background: int | None = None) -> Iterator[Batch]:
    """Yield every image once for each class that it shows, with this class as its label and the id `IMAGE@CLASS`.

    The classes are those of labels of zeros and ones; else those of the objects or of the label map; else the only label. An
    image without any is kept, without a label and as `IMAGE@none`, so that its rows are counted.

    Args:
        batches: From `read_batches`.
        background: A class that is left out.

    Raises:
        TargetError: Neither labels nor objects give the classes of the images.

    Example:
        >>> from xaieval.data.batches import read_batches
        >>> loader = [{"image": torch.zeros(2, 3, 8, 8), "id": ["a", "b"], "label": [[0, 1, 1], [0, 0, 0]]}]
        >>> batch = next(each_class(read_batches(loader)))
        >>> batch.ids, batch.labels.tolist()
        (['a@1', 'a@2', 'b@none'], [1, 2, -1])
    """
    for batch in batches:
        failed = [(f"{name}{SIGN}{NONE}", label, reason) for name, label, reason in batch.failed]
        if not len(batch):
            yield replace(batch, failed=failed)
            continue
        asked = [
            (place, number)
            for place, classes in enumerate(_present(batch))
            for number in [one for one in classes if one != background] or [-1]
        ]
        yield _repeated(batch, asked, failed)


def with_own_groups(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the batches with each image as its own group, where they have no groups: its classes are not independent."""
    for batch in batches:
        yield batch if batch.group is not None else replace(batch, group=list(batch.ids))


def image_of(name: str) -> str:
    """The id of the image in an id of `each_class`.

    Example:
        >>> image_of("walk@home.jpg@17")
        'walk@home.jpg'
    """
    return name.rpartition(SIGN)[0]


def _repeated(batch: Batch, asked: Sequence[tuple[int, int]], failed: list[tuple[str, int | None, str]]) -> Batch:
    """The images of these places, with these classes asked."""
    places = torch.tensor([place for place, _ in asked])
    names = [f"{batch.ids[place]}{SIGN}{NONE if number < 0 else number}" for place, number in asked]
    return Batch(
        images=batch.images[places.to(batch.images.device)],
        labels=torch.tensor([number for _, number in asked]),
        ids=names,
        failed=failed,
        masks=None if batch.masks is None else batch.masks[places.to(batch.masks.device)],
        boxes=None if batch.boxes is None else [batch.boxes[place] for place, _ in asked],
        group=None if batch.group is None else [batch.group[place] for place, _ in asked],
        truth=None if batch.truth is None else [batch.truth[place] for place, _ in asked],
    )


def _present(batch: Batch) -> list[list[int]]:
    """The classes that each image shows."""
    labels = batch.labels
    if isinstance(labels, Tensor) and labels.ndim == 2:
        return [row.nonzero()[:, 0].tolist() for row in labels]
    if batch.truth is not None:
        return [truth_of(one, batch.images.shape[2:]).present() for one in batch.truth]
    if isinstance(labels, Tensor):
        return [[number] if number >= 0 else [] for number in labels.tolist()]
    raise TargetError(
        "target 'each' asks for each class that an image shows, but the data does not say which: give labels [N, K] of zeros "
        "and ones, or objects with their classes ('truth' in the batches, annotations of a folder)"
    )
