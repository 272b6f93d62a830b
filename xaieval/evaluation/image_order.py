"""The order of a loader's images: shuffled, repeated, or looked at from the first readable one."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from xaieval.data.batches import Batch, has_ids, read_batch
from xaieval.errors import DataError, RunError
from xaieval.inference.reproducibility import ONE_AT_A_TIME, same_random_numbers

__all__ = [
    "Shuffled",
    "draw_order",
    "first_images",
    "first_readable",
    "has_indices",
    "ids_by_chance",
    "loader_of",
]


def first_readable(batches: Iterator[Batch]) -> tuple[Batch, Iterator[Batch]]:
    """The first batch with an image that could be read, and an iterator over all batches.

    Raises:
        RunError: No image could be read.
    """
    read: list[Batch] = []
    for batch in batches:
        read.append(batch)
        if len(batch):
            return batch, chain(read, batches)
    failures = [failure for batch in read for failure in batch.failed]
    name, _, reason = failures[0]
    raise RunError(f"none of the {len(failures)} images could be read; the first, {name!r}: {reason}")


def first_images(batches: Iterable[Batch], count: int) -> list[Batch]:
    """The first `count` images of batches, without batches that have none."""
    first: list[Batch] = []
    for batch in batches:
        left = count - sum(map(len, first))
        if left and len(batch):
            first.append(batch.part(0, left, []))
    return first


def ids_by_chance(loader: Iterable[Any], first: Batch) -> bool:
    """Whether images are named by their position in an order that the loader draws anew for each run, so that no id lasts.

    A loader with a generator of its own is left to its owner, who may have seeded it.

    Args:
        loader: The loader of a run.
        first: Its first batch.

    Example:
        >>> loader = DataLoader(torch.zeros(4, 3, 8, 8), batch_size=2, shuffle=True)
        >>> ids_by_chance(loader, read_batch(next(iter(loader)), 0))
        True
    """
    samplers = [getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)]
    random_kinds = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    drawn = any(isinstance(sampler, random_kinds) and sampler.generator is None for sampler in samplers)
    return drawn and first.ids == [str(place) for place in range(len(first))]


class Shuffled:
    """The images of a loader in random order, in batches of the loader's size. Each image keeps its id.

    Args:
        loader: A torch `DataLoader` over a data set with indices.
        seed: Of the order.
        max_images: Shuffle only this number of images, the first of the loader.

    Attributes:
        loader: The loader.
        order: The places of the images in the order of the loader.
        batches: The indices of each batch.

    Raises:
        DataError: The loader can only be read from the start.

    Example:
        >>> loader = DataLoader(torch.zeros(5, 3, 8, 8), batch_size=2)
        >>> [batch["ids"] for batch in Shuffled(loader, seed=0)]
        [['2', '4'], ['3', '0'], ['1']]
    """

    def __init__(self, loader: Iterable[Any], seed: int, max_images: int | None = None) -> None:
        if not isinstance(loader, DataLoader) or not has_indices(loader):
            raise DataError(
                f"stop= and search need images in random order, which a {type(loader).__name__} cannot give; give a DataLoader "
                "over a data set with a length and indices"
            )
        plan = draw_order(loader, seed, max_images)
        indices = [index for batch in plan for index in batch][:max_images]
        size = max((len(batch) for batch in plan), default=1)
        self.loader = loader
        self.order = np.random.default_rng(seed).permutation(len(indices)).tolist()
        self._places = [self.order[start : start + size] for start in range(0, len(indices), size)]
        self.batches = [[indices[place] for place in places] for places in self._places]

    def __len__(self) -> int:
        """The number of images, with those that cannot be read."""
        return len(self.order)

    def read(self, number: int, item: Any) -> Batch:
        """The batch of this number, with the ids that its images have in the order of the loader.

        Args:
            number: Of the batch, in random order.
            item: The batch as the loader gives it for the indices `batches[number]`.

        Raises:
            DataError: It is not known which images it has.
        """
        places, batch, named = self._places[number], read_batch(item, 0), has_ids(item)
        if len(batch) + len(batch.failed) != len(places) or (batch.failed and not named):
            raise DataError(
                f"a batch has {len(batch)} images where the loader's sampler asked for {len(places)}, and stop= has to know "
                "which and how many there are; give 'id', and 'failed' for images that cannot be read"
            )
        return batch if named else replace(batch, ids=[str(place) for place in places])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, item in enumerate(loader_of(self.loader, self.batches) if self.batches else ()):
            yield self.read(number, item).to_mapping()


def has_indices(loader: DataLoader[Any]) -> bool:
    """Whether batches can be loaded by their indices, exactly as the loader itself would load them."""
    as_usual = type(loader).__iter__ is DataLoader.__iter__
    return as_usual and loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)


def draw_order(loader: DataLoader[Any], seed: int, max_images: int | None) -> list[list[Any]]:
    """The indices of each batch, the same in every process; uses the random numbers that the loader would use next."""
    plan: list[list[Any]] = []
    count = 0
    with _repeatable(loader, seed):
        # The loader draws the seed of its workers first, and from the same generator.
        torch.empty((), dtype=torch.int64).random_(generator=loader.generator)
        for indices in loader.batch_sampler or ():
            plan.append(list(indices))
            count += len(plan[-1])
            if max_images is not None and count >= max_images:
                break
    return plan


@contextmanager
def _repeatable(loader: DataLoader[Any], seed: int) -> Iterator[None]:
    """Random numbers from the seed, or from a sampler's generator; restores the states of all generators at the end."""
    places = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    found = [getattr(place, "generator", None) for place in places]
    generators = [generator for generator in found if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    with ONE_AT_A_TIME, same_random_numbers():
        try:
            torch.default_generator.manual_seed(seed)
            random.seed(seed)  # custom samplers may use these
            np.random.seed(seed % 2**32)  # noqa: NPY002  # as above
            yield
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def loader_of(loader: DataLoader[Any], batches: Iterable[list[Any]], workers: int | None = None) -> DataLoader[Any]:
    """A loader with the same settings for these batches only.

    Args:
        loader: The loader.
        batches: The indices of each batch, which are asked for as workers get free.
        workers: The number of workers; default: as many as the loader has.
    """
    options = {
        name: getattr(loader, name)
        for name in (
            "num_workers",
            "collate_fn",
            "pin_memory",
            "timeout",
            "worker_init_fn",
            "multiprocessing_context",
            "prefetch_factor",
        )
    }
    options |= {} if workers is None else {"num_workers": workers}
    return DataLoader(loader.dataset, batch_sampler=batches, **options)
