"""Exact shares of any loader for several processes: every image once, without padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from xaieval.data.batches import Batch, Failure, has_ids, read_batch, split_batch
from xaieval.errors import DataError
from xaieval.evaluation.distributed.rank import Rank
from xaieval.evaluation.image_order import draw_order, first_images, has_indices, loader_of

__all__ = ["Shard", "shard"]

Numbered = tuple[int, Batch]  # a batch with its number in the order of a single process
FAR = 32  # bits for the number of a batch within the part of a process


@dataclass
class Shard:
    """The batches of one process, as mappings for `xaieval.score`; can be read as often as the loader.

    Attributes:
        read: Gives the batches.
        dataset: Has the length of the share, if that is known before reading; for progress bars.
        batch_size: The loader's batch size, or the size of its first batch.
        order: Hash of the order of the whole data, by which processes check that they agree. For a loader that has to be read
            to know the order, set after reading.
        batches: For each batch of the last reading, its number in the order of a single process, the number of images that
            could be read, and the number that could not.
        failures: Images of the last reading that could not be read.
        finished: Whether the last reading reached the end.
        donors: The first images of the whole data, if a run needs their maps in every process; set by the caller.
        under_way: The last reading.
        begun: A reading that `first` has begun and that the next one goes on with.
    """

    read: Callable[[Shard], Iterator[Numbered]]
    dataset: Sized | None = None
    batch_size: int | None = None
    order: str = ""
    batches: list[tuple[int, int, int]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    finished: bool = False
    donors: Sequence[Batch] | None = None
    under_way: Iterator[dict[str, Any]] = field(default_factory=lambda: iter(()))
    begun: Iterator[Numbered] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.under_way = self._reading()
        return self.under_way

    def finish(self) -> None:
        """Read on to the end after a reading that stopped early, for instance at `max_images`."""
        for _ in self.under_way:
            pass

    def _reading(self) -> Iterator[dict[str, Any]]:
        self.batches, self.failures, self.finished = [], [], False
        numbered, self.begun = self.begun or self.read(self), None
        for number, batch in numbered:
            self.batches.append((number, len(batch), len(batch.failed)))
            self.failures += batch.failed
            yield batch.to_mapping()
        self.finished = True

    def first(self, count: int) -> list[Numbered]:
        """The first batches of the share, until `count` images could be read; the next reading gives them again."""
        reading, first = self.read(self), []
        for number, batch in reading:
            first.append((number, batch))
            if sum(len(batch) for _, batch in first) >= count:
                break
        self.begun = chain(first, reading)
        return [(number, images) for number, batch in first for images in first_images([batch], count)]

    @property
    def readable(self) -> int:
        """The number of images of the last reading that could be read."""
        return sum(count for _, count, _ in self.batches)


def shard(
    loader: Iterable[Any],
    rank: int,
    world: int,
    *,
    max_images: int | None = None,
    seed: int = 0,
    already_split: bool = False,
) -> Shard:
    """The share of one process in a loader, in whole batches of that loader.

    All shares together equal what a single process reads: each image once, in the same batches and under the same id, so that
    results can be equal bit by bit. With a torch `DataLoader` over a data set with indices, each process loads only its own
    share, a run of consecutive batches. Any other loader is read by every process, which keeps every `world`-th batch.

    Args:
        loader: As for `xaieval.score`.
        rank: The number of this process, from 0.
        world: The number of processes; some may get no batch.
        max_images: Stop after this number of images, counted over all processes.
        seed: Of the order of a `DataLoader` that shuffles without a generator, as `torch.manual_seed` would set it.
        already_split: The loader gives a different part of the data in each process, all of which is kept. Images without ids
            are then named by rank and position, such as "r1-0", and `max_images` is divided among the processes.

    Raises:
        DataError: The loader has a sampler that pads; or, while reading, a batch has an unknown form or an unexpected size.
        UsageError: The rank is not below `world`.

    Example:
        >>> import torch
        >>> loader = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8)]
        >>> [[batch["ids"] for batch in shard(loader, rank, 2)] for rank in range(2)]
        [[['0', '1'], ['4']], [['2', '3']]]
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(torch.zeros(5, 3, 8, 8), batch_size=2)
        >>> [[batch["ids"] for batch in shard(loader, rank, 2)] for rank in range(2)]
        [[['0', '1']], [['2', '3'], ['4']]]
    """
    Rank(rank, world)  # refuses numbers that do not fit
    _refuse_padding(loader)
    if already_split:
        return _own_part(loader, rank, world, max_images)
    if isinstance(loader, DataLoader) and has_indices(loader):
        return _consecutive(loader, rank, world, max_images, seed)
    return _every_nth(loader, rank, world, max_images)


def _refuse_padding(loader: Any) -> None:
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    if any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise DataError(
            "the loader has a DistributedSampler, which pads with images that it repeats; give the loader without it, "
            "the images are divided here"
        )


def _consecutive(loader: DataLoader[Any], rank: int, world: int, max_images: int | None, seed: int) -> Shard:
    """A run of consecutive batches; the others are not loaded."""
    plan = draw_order(loader, seed, max_images)
    starts = [0, *accumulate(len(indices) for indices in plan)]
    low, high = len(plan) * rank // world, len(plan) * (rank + 1) // world

    def read(_: Shard) -> Iterator[Numbered]:
        items = loader_of(loader, plan[low:high]) if low < high else ()
        for number, item in zip(range(low, high), items, strict=True):
            batch = read_batch(item, starts[number])
            _check_size(item, batch, len(plan[number]), max_images)
            yield number, _cut(batch, starts[number], max_images)

    share = min(starts[high], max_images or starts[high]) - starts[low]
    size = loader.batch_size or next((len(indices) for indices in plan), None)
    return Shard(read, range(share), size, hashlib.sha256(repr(plan).encode()).hexdigest())


def _every_nth(loader: Iterable[Any], rank: int, world: int, max_images: int | None) -> Shard:
    """Every `world`-th batch of a loader that has to be read from the start."""

    def read(share: Shard) -> Iterator[Numbered]:
        start, seen = 0, hashlib.sha256()
        for number, item in enumerate(loader):
            batch = read_batch(item, start)
            share.batch_size = share.batch_size or len(batch)
            labels = batch.labels.tolist() if isinstance(batch.labels, Tensor) else None
            seen.update(repr((batch.ids, labels, batch.failed)).encode())
            if number % world == rank:
                yield number, _cut(batch, start, max_images)
            start += len(batch) + len(batch.failed)
            if max_images is not None and start >= max_images:
                break
        share.order = seen.hexdigest()

    dataset = None if max_images is None else range(_divide(max_images, rank, world))
    return Shard(read, dataset, getattr(loader, "batch_size", None))


def _own_part(loader: Iterable[Any], rank: int, world: int, max_images: int | None) -> Shard:
    """Everything that the loader of this process gives."""
    share = None if max_images is None else _divide(max_images, rank, world)

    def read(_: Shard) -> Iterator[Numbered]:
        start = 0
        for number, item in enumerate(loader if share != 0 else ()):
            batch = read_batch(item, start, prefix=f"r{rank}-")
            yield (rank << FAR) + number, _cut(batch, start, share)
            start += len(batch) + len(batch.failed)
            if share is not None and start >= share:
                break

    return Shard(read, None if share is None else range(share), getattr(loader, "batch_size", None))


def _divide(count: int, rank: int, world: int) -> int:
    return count // world + (rank < count % world)


def _cut(batch: Batch, start: int, max_images: int | None) -> Batch:
    """The batch as a single process takes it: cut where `max_images` is reached."""
    return next(split_batch(batch, None, None if max_images is None else max_images - start))


def _check_size(item: Any, batch: Batch, expected: int, max_images: int | None) -> None:
    """Refuse a batch of unexpected size if later images are named by position or counted."""
    came = len(batch) + len(batch.failed)
    if came != expected and not (has_ids(item) and max_images is None):
        raise DataError(
            f"a batch has {came} images where the loader's sampler asked for {expected}, so that the positions of later images "
            "are unknown to other processes; give 'failed' for images that cannot be read, or 'id' and no max_images"
        )
