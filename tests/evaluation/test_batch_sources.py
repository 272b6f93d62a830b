"""Sources of batches: what is wanted is what one process reads there, whatever the loader, its batches and who wants which."""

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

from xaieval.data.batches import Batch, read_batches
from xaieval.data.samples import collate
from xaieval.errors import DataError, RunError
from xaieval.evaluation.batch_sources import Planned, SharedLoader, Source, Streamed, source_of
from xaieval.evaluation.distributed.rank import Rank


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


def _seen(batch: Batch) -> Seen:
    labels = None if batch.labels is None else batch.labels.tolist()
    return Seen(batch.ids, batch.images[:, 0, 0, 0].tolist() if len(batch) else [], labels, batch.failed)


def _alone(loader: Iterable[Any], max_images: int | None = None) -> list[Seen]:
    """What one process sees, batch by batch."""
    return [_seen(batch) for batch in read_batches(loader, max_images=max_images)]


def source(loader: Any, max_images: int | None = None, seed: int = 0, rank: Rank | None = None, split: bool = False) -> Source:
    return source_of(SharedLoader(loader, rank or Rank(), split), iter, seed, max_images, planned=True, shuffled=False)


def _wanted(of: Source, numbers: Callable[[int], bool] = lambda number: True) -> dict[int, Seen]:
    return {number: _seen(batch) for number, batch, wanted in of.sweep(numbers) if wanted}


CASES = {
    "count": st.integers(1, 30),
    "batch_size": st.integers(1, 8),
    "owners": st.lists(st.integers(0, 2), min_size=30, max_size=30),
    "ahead": st.integers(0, 3),
    "max_images": st.none() | st.integers(1, 35),
    "unreadable": st.sets(st.integers(0, 29), max_size=12),
}


@given(**CASES, kind=st.sampled_from(["indices", "without ids", "list", "iterator", "stream"]))
@settings(deadline=None, max_examples=100)
def test_what_several_want_of_their_sources_is_together_what_one_process_reads(
    count, batch_size, owners, ahead, max_images, unreadable, kind
):
    def make() -> Any:
        if kind == "stream":
            return DataLoader(Stream(count), batch_size=batch_size)
        loader = Grey(count, unreadable, kind != "without ids").loader(batch_size)
        return {"list": list, "iterator": lambda loader: iter(list(loader))}.get(kind, lambda loader: loader)(loader)

    together: dict[int, Seen] = {}
    for rank in range(3):
        of = source(make(), max_images)
        assert isinstance(of, Planned) == (kind in ("indices", "without ids"))
        for _ in zip(range(ahead), of._look(), strict=False):  # as for the first pass
            pass
        mine = _wanted(of, lambda number, rank=rank: owners[number] == rank)
        assert list(of.numbers) == list(range(len(of.numbers)))
        assert set(mine) == {number for number in of.numbers if owners[number] == rank}
        together |= mine
        if of.again:
            assert _wanted(of) == dict(enumerate(_alone(make(), max_images))), "it can be read once more"
    assert [together[number] for number in sorted(together)] == _alone(make(), max_images)


@given(
    sizes=st.lists(st.integers(0, 7), min_size=2, max_size=5), batch_size=st.integers(1, 4), most=st.none() | st.integers(1, 9)
)
@settings(deadline=None, max_examples=40)
def test_parts_that_are_split_already_are_kept_whole_and_their_ids_stay_apart(sizes, batch_size, most):
    world = len(sizes)
    ids, numbers = [], []
    for rank, size in enumerate(sizes):
        of = source(DataLoader(Stream(size), batch_size=batch_size), most, rank=Rank(rank, world), split=True)
        allowed = size if most is None else min(size, most // world + (rank < most % world))
        if not allowed:
            with pytest.raises(DataError, match=r"^the loader is empty"):
                _wanted(of)
            assert of.ended
            continue
        own = _wanted(of)
        assert [name for seen in own.values() for name in seen.ids] == [f"r{rank}-{index}" for index in range(allowed)]
        assert list(of.numbers) == list(own)
        numbers += own
        ids += [name for seen in own.values() for name in seen.ids]
    assert len(set(ids)) == len(ids)
    assert numbers == sorted(set(numbers)), "in the order of the processes"


def test_parts_that_are_split_already_keep_ids_of_their_own():
    [seen] = _wanted(source(Grey(2).loader(2), rank=Rank(1, 2), split=True)).values()
    assert seen.ids == ["grey-0", "grey-1"]


def test_only_what_is_wanted_is_loaded_and_it_is_asked_for_when_it_is_loaded():
    data, asked = Grey(10), []
    for number, _, _ in source(data.loader(2)).sweep(lambda number: asked.append(number) or number % 2 == 1):
        assert asked[-1] == number, "not ahead"
    assert data.read == [2, 3, 6, 7]
    assert asked == [0, 1, 2, 3, 4]


def test_what_was_looked_at_is_loaded_once():
    data = Grey(7, unreadable={0, 1})
    of = source(data.loader(2))
    assert of.first().ids == ["grey-2", "grey-3"]
    assert [batch.ids for batch in of.first_images(3)] == [[], ["grey-2", "grey-3"], ["grey-4", "grey-5"]]
    assert list(_wanted(of)) == [0, 1, 2, 3]
    assert data.read == list(range(7))


def test_workers_load_what_is_wanted():
    of = source(Grey(9).loader(2, num_workers=2))
    assert of.first().ids == ["grey-0", "grey-1"]
    assert [seen.ids for seen in _wanted(of, lambda number: number != 2).values()] == [
        ["grey-0", "grey-1"],
        ["grey-2", "grey-3"],
        ["grey-6", "grey-7"],
        ["grey-8"],
    ]


def test_a_stream_without_end_is_read_as_far_as_needed():
    data = Stream(None)
    of = source(DataLoader(data, batch_size=2), 5)
    assert [seen.ids for seen in _wanted(of, lambda number: number == 1).values()] == [["2", "3"]]
    assert data.given == 6


def test_a_sampler_without_end_is_asked_as_far_as_needed():
    class Forever:
        def __iter__(self) -> Iterator[list[int]]:
            while True:
                yield [0, 1]

    of = source(Grey(2, named=False).loader(batch_sampler=Forever()), 4)
    assert [seen.ids for seen in _wanted(of, lambda number: number == 1).values()] == [["2", "3"]]


def test_without_images_the_error_is_that_of_one_process():
    for loader in ([], Grey(0).loader(sampler=[])):
        with pytest.raises(DataError, match=r"^the loader is empty"):
            source(loader).first()
    with pytest.raises(RunError, match=r"^none of the 3 images could be read; the first, 'grey-0': broken$"):
        source(Grey(3, range(3)).loader(2)).first()


# ---- order


def test_a_loader_that_shuffles_without_a_generator_is_shuffled_alike_in_all_processes_by_the_seed():
    torch.manual_seed(7)
    alone = _alone(Grey(9).loader(2, shuffle=True))
    orders = set()
    for rank in range(3):
        torch.manual_seed(100 + rank)  # processes differ in what they did before
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002  # it is the one to watch
        of = source(Grey(9).loader(2, shuffle=True), seed=7)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # noqa: NPY002  # it is the one to watch
        assert list(_wanted(of).values()) == alone, "the order that torch.manual_seed(7) gives one process"
        orders.add(of.order)
    assert len(orders) == 1
    assert list(_wanted(source(Grey(9).loader(2, shuffle=True), seed=8)).values()) != alone


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

    for seed in range(2):
        generator, loader = make()
        before = generator.get_state()
        assert list(_wanted(source(loader, seed=seed)).values()) == _alone(make()[1])
        assert torch.equal(generator.get_state(), before)


def test_different_orders_can_be_told():
    orders = {source(Grey(9).loader(2, shuffle=True), seed=seed).order for seed in range(5)}
    assert len(orders) == 5


def test_the_loader_works_on_with_its_own_settings():
    notes: list[int] = []

    def join(samples: list[Any]) -> Any:
        notes.append(len(samples))
        return collate(samples)

    _wanted(source(DataLoader(Grey(5), batch_size=2, collate_fn=join)), lambda number: number == 2)
    assert notes == [1]

    class Other(DataLoader[Any]):
        def __iter__(self) -> Any:
            return iter([torch.zeros(1, 1, 2, 2)] * 3)

    of = source(Other(Grey(5)))
    assert isinstance(of, Streamed), "a loader with a way of its own is read as any other"
    assert [seen.ids for seen in _wanted(of).values()] == [["0"], ["1"], ["2"]]


def test_a_loader_that_makes_no_batches_itself_is_read_as_any_other():
    class Batches(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Tensor:
            return torch.zeros(index + 1, 1, 2, 2)

    found = _wanted(source(DataLoader(Batches(), batch_size=None)))
    assert [seen.ids for seen in found.values()] == [["0"], ["1", "2"], ["3", "4", "5"]]


# ---- wrong use


def test_a_sampler_that_pads_is_refused_in_several_processes():
    sampler = DistributedSampler(Grey(5), num_replicas=2, rank=0)
    for options in ({"sampler": sampler}, {"batch_sampler": BatchSampler(sampler, 2, drop_last=False)}):
        with pytest.raises(
            DataError, match=r"^the loader has a DistributedSampler, which pads with images that it repeats; give"
        ):
            source(Grey(5).loader(2, **options), rank=Rank(0, 2))
        assert len(_wanted(source(Grey(5).loader(2, **options)))) == 2


def test_images_that_vanish_between_sampler_and_batch_are_refused_where_positions_matter():
    def drop_first(samples: list[Any]) -> dict[str, Any]:
        return collate(samples[1:])

    loader, two = DataLoader(Grey(4), batch_size=2, collate_fn=drop_first), Rank(1, 2)
    assert [seen.ids for seen in _wanted(source(loader, rank=two)).values()] == [["grey-1"], ["grey-3"]], "by their names"
    message = r"^a batch has 1 images, but the loader's sampler asked for 2, .*; give 'failed' .*, or 'id' and no max_images$"
    with pytest.raises(DataError, match=message):
        _wanted(source(loader, 3, rank=two))
    nameless = DataLoader(Grey(4, named=False), batch_size=2, collate_fn=lambda samples: torch.stack([samples[0][0]]))
    with pytest.raises(DataError, match=message):
        _wanted(source(nameless, rank=two))
    assert [seen.ids for seen in _wanted(source(nameless)).values()] == [["0"], ["2"]], "by their positions in the data"


def test_an_id_that_comes_twice_is_refused():
    class Twins(Grey):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index) | {"id": f"grey-{index % 3}"}

    for size in (2, 5):
        with pytest.raises(DataError, match=r"^two images have the id 'grey-0'; rows are identified by id"):
            _wanted(source(Twins(5).loader(size)))


def test_a_batch_that_is_none_is_the_same_error_as_in_one_process():
    for loader in ([1], [torch.zeros(2, 1, 2, 2), "images"]):
        with pytest.raises(DataError) as alone:
            _alone(loader)
        with pytest.raises(DataError) as shared:
            _wanted(source(loader))
        assert str(shared.value) == str(alone.value)
