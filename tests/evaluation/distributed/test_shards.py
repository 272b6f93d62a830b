"""Shares of loaders: together they are exactly what one process reads, whatever the loader, its batches and the ranks."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, SubsetRandomSampler

from xaieval.data.batches import read_batches
from xaieval.data.samples import collate
from xaieval.errors import DataError, UsageError
from xaieval.evaluation.distributed.shards import Shard, shard


class Grey(Dataset[Any]):
    """Images of one grey each, their index: mappings with ids, some of them unreadable, or else bare images."""

    def __init__(self, count: int, unreadable: Iterable[int] = (), named: bool = True) -> None:
        self.count, self.unreadable, self.named = count, set(unreadable), named
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        image = torch.full((1, 2, 2), float(index))
        if not self.named:
            return image, index % 3
        sample = {"id": f"grey-{index}", "label": index % 3}
        return sample | ({"failed": "broken"} if index in self.unreadable else {"image": image})

    def loader(self, batch_size: int = 2, **options: Any) -> DataLoader[Any]:
        options |= {"collate_fn": collate} if self.named else {}
        return DataLoader(self, **({"batch_size": batch_size} if "batch_sampler" not in options else {}), **options)


class Stream(IterableDataset[Any]):
    """Images without a length."""

    def __init__(self, count: int | None) -> None:
        self.count, self.given = count, 0

    def __iter__(self) -> Iterator[Tensor]:
        index = 0
        while index != self.count:
            self.given += 1
            yield torch.full((1, 2, 2), float(index))
            index += 1


class Seen(NamedTuple):
    ids: list[str]
    greys: list[float]
    labels: list[int] | None
    failed: list[Any]


def _seen(loader: Iterable[Any], max_images: int | None = None) -> list[Seen]:
    """What a process sees, batch by batch."""
    return [
        Seen(
            batch.ids,
            batch.images[:, 0, 0, 0].tolist() if len(batch) else [],
            None if batch.labels is None else batch.labels.tolist(),
            batch.failed,
        )
        for batch in read_batches(loader, max_images=max_images)
    ]


def _shares(make: Callable[[], Any], world: int, **options: Any) -> list[Shard]:
    return [shard(make(), rank, world, **options) for rank in range(world)]


def _together(shares: list[Shard]) -> list[Seen]:
    """The batches of all shares, put in the order of a single process."""
    numbered = []
    for share in shares:
        items = list(share)
        numbers = [number for number, _, _ in share.batches]
        assert numbers == sorted(numbers)
        assert share.finished
        counts = [(len(item["ids"]), len(item["failed"])) for item in items]
        assert [batch[1:] for batch in share.batches] == counts
        assert share.readable == sum(readable for readable, _ in counts)
        numbered += list(zip(numbers, _seen(items) if items else [], strict=True))
    assert sorted(number for number, _ in numbered) == list(range(len(numbered)))
    return [batch for _, batch in sorted(numbered, key=lambda pair: pair[0])]


CASES = {
    "count": st.integers(1, 30),
    "batch_size": st.integers(1, 8),
    "world": st.integers(1, 6),
    "max_images": st.none() | st.integers(1, 35),
    "unreadable": st.sets(st.integers(0, 29), max_size=12),
}


@given(**CASES, named=st.booleans(), drop_last=st.booleans())
@settings(deadline=None, max_examples=60)
def test_shares_of_a_loader_with_indices_are_what_one_process_reads(
    count, batch_size, world, max_images, unreadable, named, drop_last
):
    drop_last = drop_last and count >= batch_size

    def make() -> DataLoader[Any]:
        return Grey(count, unreadable, named).loader(batch_size, drop_last=drop_last)

    shares = _shares(make, world, max_images=max_images)
    assert _together(shares) == _seen(make(), max_images)
    sizes = [len(share.batches) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert len({share.order for share in shares}) == 1
    assert {share.batch_size for share in shares} == {batch_size}
    assert [len(share.dataset) for share in shares] == [sum(a + b for _, a, b in share.batches) for share in shares]
    numbers = [number for share in shares for number, _, _ in share.batches]
    assert numbers == sorted(numbers), "neighbouring batches, so that rows of one rank follow those of the one before"


@given(**CASES, kind=st.sampled_from(["list", "iterator", "stream"]))
@settings(deadline=None, max_examples=60)
def test_shares_of_any_other_loader_are_what_one_process_reads(count, batch_size, world, max_images, unreadable, kind):
    def make() -> Any:
        if kind == "stream":
            return DataLoader(Stream(count), batch_size=batch_size)
        batches = list(Grey(count, unreadable).loader(batch_size))
        return batches if kind == "list" else iter(batches)

    shares = _shares(make, world, max_images=max_images)
    assert _together(shares) == _seen(make(), max_images)
    assert len({share.order for share in shares}) == 1
    for rank, share in enumerate(shares):
        assert all(number % world == rank for number, _, _ in share.batches)


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=5), batch_size=st.integers(1, 4), most=st.none() | st.integers(1, 9)
)
@settings(deadline=None, max_examples=40)
def test_parts_that_are_split_already_are_kept_whole_and_their_ids_stay_apart(sizes, batch_size, most):
    world = len(sizes)
    ids = []
    for rank, size in enumerate(sizes):
        share = shard(DataLoader(Stream(size), batch_size=batch_size), rank, world, max_images=most, already_split=True)
        own = [name for item in share for name in item["ids"]]
        allowed = size if most is None else min(size, most // world + (rank < most % world))
        assert own == [f"r{rank}-{index}" for index in range(allowed)]
        ids += own
    assert len(set(ids)) == len(ids)


def test_parts_that_are_split_already_keep_ids_of_their_own():
    (batch,) = shard(Grey(2).loader(2), 1, 2, already_split=True)
    assert batch["ids"] == ["grey-0", "grey-1"]


def test_each_process_loads_its_share_alone():
    for rank, expected in enumerate([[0, 1], [2, 3], [4]]):
        data = Grey(5)
        list(shard(data.loader(2), rank, 3))
        assert data.read == expected


def test_a_stream_without_end_is_read_as_far_as_needed():
    data = Stream(None)
    share = shard(DataLoader(data, batch_size=2), 1, 2, max_images=5)
    assert [batch["ids"] for batch in share] == [["2", "3"]]
    assert data.given == 6


def test_a_sampler_without_end_is_asked_as_far_as_needed():
    def forever() -> Iterator[list[int]]:
        while True:
            yield [0, 1]

    class Forever:
        def __iter__(self) -> Iterator[list[int]]:
            return forever()

    data = Grey(2, named=False)
    assert [batch["ids"] for batch in shard(data.loader(batch_sampler=Forever()), 1, 2, max_images=4)] == [["2", "3"]]


def test_a_share_can_be_read_again_and_finished_after_it_was_left():
    share = shard(Grey(6).loader(2), 0, 2)
    assert _seen(share) == _seen(share)
    stream = shard(DataLoader(Stream(6), batch_size=2), 0, 2, max_images=6)
    next(iter(stream))
    assert not stream.finished
    stream.finish()
    assert stream.finished
    assert [number for number, _, _ in stream.batches] == [0, 2]


# ---- order


def test_a_loader_that_shuffles_without_a_generator_is_shuffled_alike_in_all_processes_by_the_seed():
    torch.manual_seed(7)
    alone = _seen(Grey(9).loader(2, shuffle=True))
    shares = []
    for rank in range(3):
        torch.manual_seed(100 + rank)  # processes differ in what they did before
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002  # it is the one to watch
        shares.append(shard(Grey(9).loader(2, shuffle=True), rank, 3, seed=7))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002  # it is the one to watch
    assert _together(shares) == alone, "the order that torch.manual_seed(7) gives one process"
    assert len({share.order for share in shares}) == 1
    assert _together(_shares(lambda: Grey(9).loader(2, shuffle=True), 3, seed=8)) != alone


@pytest.mark.parametrize("own", ["loader", "sampler", "batch_sampler"])
def test_a_generator_decides_the_order_as_in_one_process_and_is_left_as_it_was(own):
    def make() -> tuple[torch.Generator, DataLoader[Any]]:
        generator = torch.Generator().manual_seed(3)
        sampler = SubsetRandomSampler(range(9), generator=generator)
        options = {
            "loader": {"shuffle": True, "generator": generator},
            "sampler": {"sampler": sampler},
            "batch_sampler": {"batch_sampler": BatchSampler(sampler, 2, drop_last=False)},
        }
        return generator, Grey(9).loader(2, **options[own])

    shares = []
    for rank in range(2):
        generator, loader = make()
        before = generator.get_state()
        shares.append(shard(loader, rank, 2, seed=rank))
        assert torch.equal(generator.get_state(), before)
    assert _together(shares) == _seen(make()[1])


def test_different_orders_can_be_told():
    orders = {shard(Grey(9).loader(2, shuffle=True), 0, 2, seed=seed).order for seed in range(5)}
    assert len(orders) == 5
    streams = [shard(list(Grey(4).loader(2, sampler=order)), 0, 2) for order in ([0, 1, 2, 3], [0, 1, 3, 2])]
    for stream in streams:
        list(stream)
    assert len({stream.order for stream in streams}) == 2


def test_the_loader_works_on_with_its_own_settings():
    notes: list[int] = []

    def join(samples: list[Any]) -> Any:
        notes.append(len(samples))
        return collate(samples)

    list(shard(DataLoader(Grey(5), batch_size=2, collate_fn=join), 0, 2))
    assert notes == [2]

    class Other(DataLoader[Any]):
        def __iter__(self) -> Any:
            return iter([torch.zeros(1, 1, 2, 2)] * 3)

    share = shard(Other(Grey(5)), 1, 2)
    assert [batch["ids"] for batch in share] == [["1"]], "a loader with a way of its own is read as any other"


def test_a_loader_that_makes_no_batches_itself_is_read_as_any_other():
    class Batches(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Tensor:
            return torch.zeros(index + 1, 1, 2, 2)

    shares = _shares(lambda: DataLoader(Batches(), batch_size=None), 2)
    assert [batch.ids for batch in _together(shares)] == [["0"], ["1", "2"], ["3", "4", "5"]]


# ---- wrong use


def test_a_sampler_that_pads_is_refused():
    sampler = DistributedSampler(Grey(5), num_replicas=2, rank=0)
    for options in ({"sampler": sampler}, {"batch_sampler": BatchSampler(sampler, 2, drop_last=False)}):
        with pytest.raises(
            DataError, match=r"^the loader has a DistributedSampler, which pads with images that it repeats; give"
        ):
            shard(Grey(5).loader(2, **options), 0, 2)


def test_images_that_vanish_between_sampler_and_batch_are_refused_where_positions_matter():
    def drop_first(samples: list[Any]) -> dict[str, Any]:
        return collate(samples[1:])

    loader = DataLoader(Grey(4), batch_size=2, collate_fn=drop_first)
    assert [batch["ids"] for batch in shard(loader, 1, 2)] == [["grey-3"]], "named images need no position"
    message = r"^a batch has 1 images where the loader's sampler asked for 2, .*; give 'failed' .*, or 'id' and no max_images$"
    with pytest.raises(DataError, match=message):
        list(shard(loader, 1, 2, max_images=3))
    nameless = DataLoader(Grey(4, named=False), batch_size=2, collate_fn=lambda samples: torch.stack([samples[0][0]]))
    with pytest.raises(DataError, match=message):
        list(shard(nameless, 1, 2))


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_is_below_the_number_of_processes(rank, world):
    with pytest.raises(UsageError, match=rf"^a rank is at least 0 and below .*; got rank {rank} of {world}$"):
        shard([], rank, world)


def test_a_batch_that_is_none_is_the_same_error_as_in_one_process():
    for loader in ([1], [torch.zeros(2, 1, 2, 2), "images"]):
        with pytest.raises(DataError) as alone:
            _seen(loader)
        with pytest.raises(DataError) as shared:
            list(shard(loader, 0, 2))
        assert str(shared.value) == str(alone.value)
