"""The batches of a run by their numbers in the whole order, so that several processes can each measure some of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler

from xaieval.data.batches import Batch, Failure, has_ids, read_batch, read_batches, split_batch
from xaieval.errors import DataError
from xaieval.evaluation.distributed.rank import Rank
from xaieval.evaluation.image_order import Shuffled, draw_order, first_readable, has_indices, loader_of

__all__ = ["Planned", "SharedLoader", "Source", "Streamed", "source_of"]

Numbered = tuple[int, Batch]  # a batch with its number in the whole order
Prepare = Callable[[Iterator[Batch]], Iterator[Batch]]
FAR = 32  # bits for the number of a batch within the part of a process


@dataclass(frozen=True)
class SharedLoader:
    """A loader in one of several processes.

    Attributes:
        loader: As for `xaieval.score`.
        rank: The process.
        already_split: The loader gives a different part of the data in each process.
    """

    loader: Iterable[Any]
    rank: Rank = field(default_factory=Rank)
    already_split: bool = False

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    @property
    def own_part(self) -> Rank | None:
        """The process, if its loader gives a part of the data that no other process has."""
        return self.rank if self.already_split and not self.rank.alone else None


class Source(ABC):
    """The batches of a loader by number.

    Args:
        prepare: What is done to the batches; it gives one for each.
        images: The number of images, if that is known before they are read.

    Attributes:
        numbers: The numbers of all batches; None until they are known.
        again: Whether the batches can be read again from the start.
        order: A hash of the order of the images, by which processes see whether they have the same; empty if it is unknown.
        ended: Whether the part of the data that only this process has was read to its end.
    """

    again = True
    order = ""
    ended = False

    def __init__(self, prepare: Prepare, images: int | None = None) -> None:
        self.prepare = prepare
        self.images = images
        self.dataset = None if images is None else range(images)  # its length, for progress bars
        self.numbers: Sequence[int] | None = None
        self._ahead: list[Numbered] = []
        self._looking: Iterator[Numbered] | None = None

    def first(self) -> Batch:
        """The first batch with an image that can be read.

        Raises:
            RunError: No image can be read.
        """
        return first_readable(self._look())[0]

    def first_images(self, count: int) -> list[Batch]:
        """The first batches, until `count` images can be read."""
        found: list[Batch] = []
        for batch in self._look():
            found.append(batch)
            if sum(map(len, found)) >= count:
                break
        return found

    def failures(self) -> list[Failure]:
        """The images that could not be read, of the batches that were looked at."""
        return [failure for _, batch in self._ahead for failure in batch.failed]

    def sweep(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Batch, bool]]:
        """Read on to the end, or again from the start; batches that were looked at before come first.

        Args:
            wanted: Called with the number of each batch, in order. Batches that are not wanted are loaded only if they have to.

        Yields:
            The number, the batch, and whether it was wanted.
        """
        ahead, self._ahead = self._ahead, []
        looking, self._looking = self._looking, None
        for number, batch in ahead:
            yield number, batch, wanted(number)
        yield from self._rest({number for number, _ in ahead}, looking, wanted)

    def _look(self) -> Iterator[Batch]:
        """The batches from the first one on; what was read is kept for the next sweep."""
        yield from (batch for _, batch in list(self._ahead))
        if self._looking is None:
            self._looking = self._prepared(self._begin())
        for number, batch in self._looking:
            self._ahead.append((number, batch))
            yield batch

    def _prepared(self, numbered: Iterator[Numbered]) -> Iterator[Numbered]:
        beside: deque[int] = deque()

        def batches() -> Iterator[Batch]:
            for number, batch in numbered:
                beside.append(number)
                yield batch

        for batch in self.prepare(batches()):
            yield beside.popleft(), batch

    @abstractmethod
    def _begin(self) -> Iterator[Numbered]:
        """All batches, from the first one on."""

    @abstractmethod
    def _rest(
        self, seen: set[int], looking: Iterator[Numbered] | None, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, Batch, bool]]:
        """The batches that were not looked at, of which `looking` gives the next ones."""


class Planned(Source):
    """The batches of a `DataLoader` over a data set with indices. Only those are loaded that are wanted.

    Args:
        prepare: See `Source`.
        loader: The loader.
        plan: The indices of each batch.
        read: The batch of a number, as the loader gives it.
        images: The number of images.
    """

    def __init__(
        self,
        prepare: Prepare,
        loader: DataLoader[Any],
        plan: Sequence[list[Any]],
        read: Callable[[int, Any], Batch],
        images: int,
    ) -> None:
        super().__init__(prepare, images)
        self.numbers = range(len(plan))
        self.order = hashlib.sha256(repr(plan).encode()).hexdigest()[:16]
        self._loader, self._plan, self._read = loader, plan, read
        self._numbers_of_ids: dict[str, int] = {}

    def _begin(self) -> Iterator[Numbered]:
        # In a worker, if the loader has some: a data set may open files that must not be open when workers are forked.
        return self._load(lambda number: True, workers=min(self._loader.num_workers, 1))

    def _rest(
        self, seen: set[int], looking: Iterator[Numbered] | None, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, Batch, bool]]:
        del looking  # it loads all
        for number, batch in self._prepared(self._load(lambda number: number not in seen and wanted(number))):
            yield number, batch, True

    def _load(self, wanted: Callable[[int], bool], workers: int | None = None) -> Iterator[Numbered]:
        numbers: deque[int] = deque()

        def asked() -> Iterator[list[Any]]:  # as the loader's workers get free
            for number, indices in enumerate(self._plan):
                if wanted(number):
                    numbers.append(number)
                    yield indices

        for item in loader_of(self._loader, asked(), workers):
            number = numbers.popleft()
            batch = self._read(number, item)
            self._check_new(number, batch)
            yield number, batch
        if not self._plan:
            yield from enumerate(read_batches(()))  # says that there is nothing

    def _check_new(self, number: int, batch: Batch) -> None:
        names = [*batch.ids, *(failure[0] for failure in batch.failed)]
        for name in names:
            if self._numbers_of_ids.setdefault(name, number) != number or (
                len(set(names)) < len(names) and names.count(name) > 1
            ):
                raise DataError(f"two images have the id {name!r}; rows are identified by id, so each image needs its own")


class Streamed(Source):
    """The batches of a loader that has to be read from the start. Each process reads all of them.

    Args:
        prepare: See `Source`.
        loader: Any loader.
        max_images: Stop after this number of images.
        own: The process, if its loader gives a part of the data that no other process has.
    """

    def __init__(self, prepare: Prepare, loader: Iterable[Any], max_images: int | None = None, own: Rank | None = None) -> None:
        dataset: Any = getattr(loader, "dataset", None)
        known = len(dataset) if hasattr(dataset, "__len__") else max_images
        super().__init__(prepare, min(known, max_images or known) if known else None)
        self.again = not isinstance(loader, Iterator)
        self._loader, self._own = loader, own
        self._most = max_images if own is None or max_images is None else _divide(max_images, own)

    def _begin(self) -> Iterator[Numbered]:
        prefix, first = ("", 0) if self._own is None else (f"r{self._own.rank}-", self._own.rank << FAR)
        loader = () if self._most == 0 else self._loader
        loader = loader if self._own is None else self._to_the_end(loader)
        number = first
        for number, batch in enumerate(read_batches(loader, None, self._most, prefix), first):
            yield number, batch
        self.numbers = range(first, number + 1)

    def _to_the_end(self, loader: Iterable[Any]) -> Iterator[Any]:
        yield from loader
        self.ended = True

    def _rest(
        self, seen: set[int], looking: Iterator[Numbered] | None, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, Batch, bool]]:
        for number, batch in self._prepared(self._begin()) if looking is None else looking:
            yield number, batch, wanted(number)


def source_of(
    shared: SharedLoader, prepare: Prepare, seed: int, max_images: int | None, *, planned: bool, shuffled: bool
) -> Source:
    """The batches of a loader by number.

    Args:
        shared: The loader.
        prepare: What is done to the batches.
        seed: Of the order.
        max_images: Stop after this number of images.
        planned: Load batches by their indices where that is possible. A `DataLoader` that shuffles without a generator is then
            shuffled by the seed, as after `torch.manual_seed(seed)`.
        shuffled: Take the images in random order.

    Raises:
        DataError: The loader has a sampler that pads, or cannot be shuffled.
    """
    loader = shared.loader
    if not shared.rank.alone:
        _refuse_padding(loader)
    if shuffled:
        drawn = Shuffled(loader, seed, max_images)
        return Planned(prepare, drawn.loader, drawn.batches, drawn.read, len(drawn))
    if planned and shared.own_part is None and isinstance(loader, DataLoader) and has_indices(loader):
        plan = draw_order(loader, seed, max_images)
        starts = [0, *accumulate(len(indices) for indices in plan)]

        def read(number: int, item: Any) -> Batch:
            batch = read_batch(item, starts[number])
            if not shared.rank.alone:
                _check_size(item, batch, len(plan[number]), max_images)
            return next(split_batch(batch, None, None if max_images is None else max_images - starts[number]))

        return Planned(prepare, loader, plan, read, min(starts[-1], max_images or starts[-1]))
    return Streamed(prepare, loader, max_images, shared.own_part)


def _divide(count: int, rank: Rank) -> int:
    return count // rank.world + (rank.rank < count % rank.world)


def _refuse_padding(loader: Any) -> None:
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    if any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        raise DataError(
            "the loader has a DistributedSampler, which pads with images that it repeats; give the loader without it, "
            "the images are divided here"
        )


def _check_size(item: Any, batch: Batch, expected: int, max_images: int | None) -> None:
    """Refuse a batch of unexpected size if later images are named by position or counted."""
    came = len(batch) + len(batch.failed)
    if came != expected and not (has_ids(item) and max_images is None):
        raise DataError(
            f"a batch has {came} images, but the loader's sampler asked for {expected}, so the positions of later images are "
            "unknown to other processes; give 'failed' for images that cannot be read, or 'id' and no max_images"
        )
