"""Runs of several processes: rows equal to those of one, whoever comes, goes, dies or is slow, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import xaieval
from tests import ROOT
from xaieval.config.groups import Groups
from xaieval.data.samples import collate
from xaieval.errors import DataError, OutputError, RunError, UsageError
from xaieval.evaluation import distributed, fingerprint, loop, whole_run
from xaieval.evaluation.batch_sources import SharedLoader
from xaieval.evaluation.distributed import shared_run
from xaieval.evaluation.distributed.rank import Rank
from xaieval.evaluation.scores import Scores
from xaieval.results import manifest
from xaieval.results.checkpoints import FinishedRun
from xaieval.results.run_folder import RunFolder

pytestmark = pytest.mark.slow

LAYERS, METHODS, IC = ["0", "1"], ("gradcam", "random"), "increase_in_confidence"


def tiny(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = (
            nn.Conv2d(3, 6, 3),
            nn.Conv2d(6, 4, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 5),
        )
        return nn.Sequential(*layers)


TINY = tiny()


def image(index: int) -> Tensor:
    return torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(index))


class Images(Dataset[Any]):
    """Generated images with labels and ids, some of them unreadable."""

    def __init__(self, count: int, unreadable: Iterable[int] = ()) -> None:
        self.count, self.unreadable = count, set(unreadable)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        what = {"failed": f"broken {index}"} if index in self.unreadable else {"image": image(index)}
        return {"id": f"image-{index:02d}", "label": index % 5} | what

    def loader(self, batch_size: int = 3, **options: Any) -> DataLoader[Any]:
        return DataLoader(self, batch_size=batch_size, collate_fn=collate, **options)


class Stream(IterableDataset[Tensor]):
    """The same images without ids, labels and length."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    def __iter__(self) -> Iterator[Tensor]:
        return (image(index) for index in range(self.first, self.end))


def run(loader: Any, folder: Path | None = None, model: nn.Module = TINY, **options: Any) -> Scores:
    options = {"layers": LAYERS, "methods": METHODS, "progress": False} | options
    return xaieval.score(copy.deepcopy(model), loader, output_dir=folder, **options)


def together(*works: Callable[[], Any]) -> list[Any]:
    """What calls at the same time return or raise. Threads stand for processes: they have no locks in common either."""
    found: list[Any] = [None] * len(works)

    def one(number: int) -> None:
        try:
            found[number] = works[number]()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def shared(make: Callable[[], Any], folder: Path, processes: int = 3, **options: Any) -> list[Any]:
    """The results of several processes that share a run."""
    return together(*[lambda: run(make(), folder, **options)] * processes)


@pytest.fixture(autouse=True)
def _at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests, which have dates, are equal."""
    for module in (manifest, fingerprint):
        monkeypatch.setattr(module, "now", lambda: "2026-01-02T03:04:05Z")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each batch was measured, by the id of its first image."""
    counts: Counter[str] = Counter()
    measure = loop.measure

    def counted(job: Any, batch: Any, *rest: Any) -> Any:
        counts[batch.ids[0]] += 1
        return measure(job, batch, *rest)

    monkeypatch.setattr(loop, "measure", counted)
    return counts


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---- equal to one process

CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "loader": (lambda: Images(23, {0, 1, 2, 11, 22}).loader(), {}),
    "limited": (lambda: Images(23, {0, 4, 7}).loader(), {"max_images": 17}),
    "fewer batches than processes": (lambda: Images(4).loader(), {}),
    "groups": (lambda: Images(23, {0, 1, 2, 11}).loader(), {"groups": Groups(r"-\d(\d)", "groups")}),
    "list": (lambda: list(Images(23, {2}).loader(2)), {}),
    "iterator": (lambda: iter(list(Images(23, {2}).loader(2))), {}),
    "stream": (lambda: DataLoader(Stream(0, 23), batch_size=3), {"max_images": 20}),
    "swapped": (lambda: Images(23, {1}).loader(2), {"controls": ["swapped"]}),
    "each class": (lambda: Images(11).loader(2), {"target": "each"}),
    "deterministic": (lambda: Images(7).loader(2), {"deterministic": True}),
    "stop": (lambda: Images(60, {7}).loader(2), {"stop": xaieval.Stop(rule="best", by=IC, min_images=20, error=0.9)}),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_and_files_are_those_of_one_process_and_each_batch_is_measured_once(case, tmp_path, measured):
    make, options = CASES[case]
    alone = run(make(), tmp_path / "alone", **options)
    batches = len(measured)
    measured.clear()
    for scores in shared(make, tmp_path / "run", **options):
        pd.testing.assert_frame_equal(scores.rows, alone.rows, check_exact=True)
        assert scores.manifest == alone.manifest
    for name in ("rows.parquet", "summary.csv", "manifest.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert files(tmp_path / "run") == files(tmp_path / "alone")
    assert set(measured.values()) == {1}
    assert len(measured) == batches or case == "stop", "a run that stops may have measured some ahead"
    assert case != "stop" or alone.manifest["stop"]["images"] < 60
    in_memory = run(make(), **options)
    pd.testing.assert_frame_equal(in_memory.rows, alone.rows, check_exact=True)


def test_a_search_is_that_of_one_process(tmp_path):
    def search(folder: Path | None) -> xaieval.SearchResult:
        given = Images(60, {7}).loader(2)
        methods = ["gradcam", "random", "center"]
        return xaieval.search(copy.deepcopy(TINY), given, LAYERS, methods, IC, error=0.9, output_dir=folder, progress=False)

    alone = search(None)
    assert len(set(alone.table()["n_images"])) > 1, "pairs are dropped on the way"
    for found in together(*[lambda: search(tmp_path / "run")] * 3):
        pd.testing.assert_frame_equal(found.scores.rows, alone.scores.rows, check_exact=True)
        assert found.scores.manifest["stop"] == alone.scores.manifest["stop"]
    again = search(tmp_path / "run")
    pd.testing.assert_frame_equal(again.scores.rows, alone.scores.rows, check_exact=True)


def test_a_slow_process_holds_nobody_up(tmp_path, monkeypatch):
    by: dict[str, list[str]] = {}
    measure = loop.measure

    def slow(job: Any, batch: Any, *rest: Any) -> Any:
        name = threading.current_thread().name
        by.setdefault(name, []).append(batch.ids[0])
        time.sleep(0.6 if name == min(by) else 0.01)
        return measure(job, batch, *rest)

    monkeypatch.setattr(loop, "measure", slow)
    shared(lambda: Images(24).loader(1), tmp_path, 2)
    assert sorted(map(len, by.values()))[0] <= 4
    assert sum(map(len, by.values())) == 24


def test_one_that_comes_late_takes_part(tmp_path, measured):
    came = threading.Event()

    class Slow(Images):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 3:
                came.set()
                time.sleep(0.5)
            return super().__getitem__(index)

    def late() -> Scores:
        came.wait(20)
        return run(Images(10).loader(1), tmp_path)

    for scores in together(lambda: run(Slow(10).loader(1), tmp_path), late):
        pd.testing.assert_frame_equal(scores.rows, run(Images(10).loader(1)).rows)


# ---- breaking off and going on


class Broken(Exception):
    """What happens to a process here."""


def breaking(batches: list[Any], at: int) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        if number == at:
            raise Broken
        yield batch


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(breaks=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=3), last=st.integers(1, 4))
def test_any_number_of_processes_goes_on_with_what_others_have_left(breaks, last, tmp_path_factory, measured):
    folder = tmp_path_factory.mktemp("run") / "run"
    batches = list(Images(17, {3, 4, 5}).loader(2))
    expected = run(batches)
    measured.clear()
    for those in breaks:
        together(*[lambda at=at: run(breaking(batches, at), folder) for at in those])
    found = shared(lambda: batches, folder, last)
    for scores in found:
        pd.testing.assert_frame_equal(scores.rows, expected.rows, check_exact=True)
    assert set(measured.values()) == {1}
    assert files(folder) == {"rows.parquet", "summary.csv", "manifest.json"}


def test_a_finished_run_is_looked_through_by_all_and_measured_by_none(tmp_path, measured):
    alone = run(Images(17, {3}).loader(2), tmp_path)
    measured.clear()
    loaded = Images(17, {3})
    for scores in shared(lambda: loaded.loader(2), tmp_path):
        pd.testing.assert_frame_equal(scores.rows, alone.rows)
    assert not measured
    for scores in shared(lambda: Images(21, {3}).loader(2), tmp_path):
        pd.testing.assert_frame_equal(scores.rows, run(Images(21, {3}).loader(2)).rows)


def state_of_files(folder: Path) -> dict[str, Any]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize("case", ["loader", "groups", "stream", "stop", "deterministic"])
def test_a_finished_run_that_is_repeated_stays_as_it_is(case, tmp_path, monkeypatch, measured):
    make, options = CASES[case]
    run(make(), tmp_path, **options)
    before = state_of_files(tmp_path)
    assert set(before) == {"rows.parquet", "summary.csv", "manifest.json"}
    for module in (manifest, fingerprint):
        monkeypatch.setattr(module, "now", lambda: "2027-01-02T03:04:05Z")
    measured.clear()
    stored = Scores.load(tmp_path)
    for scores in [run(make(), tmp_path, **options), *(shared(make, tmp_path, 2, **options) if case == "loader" else ())]:
        pd.testing.assert_frame_equal(scores.rows, stored.rows, check_exact=True)
        assert scores.manifest == stored.manifest
    assert not measured
    assert state_of_files(tmp_path) == before


def test_a_finished_run_is_written_again_if_asked_for_or_if_images_came(tmp_path, measured):
    run(Images(6).loader(), tmp_path)
    for count, options in ((6, {"resume": False}), (9, {})):
        before = state_of_files(tmp_path)
        measured.clear()
        run(Images(count).loader(), tmp_path, **options)
        assert len(measured) == (2 if count == 6 else 1)
        assert all(now[:2] != before[name][:2] for name, now in state_of_files(tmp_path).items())


def test_images_that_have_changed_are_refused_by_whoever_comes_to_them(tmp_path):
    batches = list(Images(16).loader(2))
    with pytest.raises(Broken):
        run(breaking(batches, 6), tmp_path)
    batches[4] = batches[4] | {"images" if "images" in batches[4] else "image": torch.zeros(2, 3, 12, 12)}
    for error in shared(lambda: batches, tmp_path):
        assert "batch 4 is of the same ids as this run's" in str(error)
    assert not (tmp_path / "rows.parquet").exists()


def test_a_damaged_part_is_measured_again_even_if_it_is_damaged_meanwhile(tmp_path, monkeypatch, measured):
    finish = loop.whole_run

    def harm(*args: Any) -> Scores:
        state = args[0]
        work = state.work

        def harming() -> None:
            work()
            if not list(tmp_path.glob("harmed")):
                (tmp_path / "harmed").touch()
                next(tmp_path.glob("parts/00000002.*")).write_bytes(b"torn")

        monkeypatch.setattr(state, "work", harming)
        return finish(*args)

    choices: list[dict[str, Any]] = [{}, {"stop": xaieval.Stop(rule="best", min_images=10, error=0.5)}]
    whole = [run(Images(23).loader(2), **options) for options in choices]
    monkeypatch.setattr(loop, "whole_run", harm)
    for options, expected in zip(choices, whole, strict=True):
        folder = tmp_path
        measured.clear()
        pd.testing.assert_frame_equal(run(Images(23).loader(2), folder, **options).rows, expected.rows)
        assert sorted(measured.values())[-1] == 2
        for path in [*folder.glob("*")]:
            path.unlink()


def test_a_loader_that_can_be_read_once_says_what_another_process_has_left(tmp_path):
    batches = list(Images(12).loader(2))
    begun, over = threading.Event(), threading.Event()

    def stuck(job: Any, batch: Any, *rest: Any) -> Any:
        if threading.current_thread().name == "dies":
            begun.set()
            over.wait(20)
            raise Broken
        return measure(job, batch, *rest)

    measure, loop.measure = loop.measure, stuck
    try:

        def first() -> Scores:
            threading.current_thread().name = "dies"
            return run(iter(batches), tmp_path)

        def second() -> Scores:
            begun.wait(20)
            threading.Timer(0.5, over.set).start()
            return run(iter(batches), tmp_path)

        errors = together(first, second)
    finally:
        loop.measure = measure
    assert isinstance(errors[0], Broken)
    assert str(errors[1]) == (
        "the process that was at batch 0 has ended, and the loader of this one can be read only once; the same command goes on"
    )
    pd.testing.assert_frame_equal(run(batches, tmp_path).rows, run(batches).rows)


# ---- what is refused


def test_another_order_is_refused_at_the_start_where_it_is_known(tmp_path):
    came = threading.Event()

    class Slow(Images):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 5:
                came.set()
                time.sleep(0.5)
            return super().__getitem__(index)

    def other() -> Scores:
        came.wait()
        return run(Images(9).loader(1, sampler=[0, 5, 6]), tmp_path)

    scores, error = together(lambda: run(Slow(9).loader(1), tmp_path), other)
    assert len(scores.rows) == 9 * 3
    assert isinstance(error, DataError)
    assert str(error).startswith(f"the processes that share the run in '{tmp_path}' have different orders of the images; give")


def test_another_order_of_a_stream_is_noticed_before_the_run_is_written(tmp_path):
    batches = list(Images(24).loader(2))
    orders = [batches, [batches[0], *batches[:0:-1]]]
    errors = together(*[lambda order=order: run(order, tmp_path) for order in orders])
    assert any(isinstance(error, DataError | OutputError) for error in errors), errors
    assert not (tmp_path / "rows.parquet").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 1}, "its seed is 0, this run's is 1"), ({"model": tiny(1)}, "its model is "), ({"target": 1}, "its protocol.")],
)
def test_a_folder_in_which_another_run_is_under_way_is_refused(options, message, tmp_path):
    def meddling() -> Iterator[Any]:
        yield from Images(4).loader(2)
        with pytest.raises(OutputError, match=f"holds another run: {message}"):
            run(Images(4).loader(2), tmp_path, **options)

    run(meddling(), tmp_path)
    assert Scores.load(tmp_path).rows["image_id"].nunique() == 4


def test_what_others_go_on_with_is_not_measured_again(tmp_path):
    def meddling(**options: Any) -> Iterator[Any]:
        yield from Images(4).loader(2)
        with pytest.raises(OutputError, match=r"other processes go on with the run in .*, so that it cannot be measured again"):
            run(list(Images(4).loader(2)), tmp_path, resume=False)
        yield from Images(4, range(4)).loader(4, sampler=[])

    run(meddling(), tmp_path)


def test_all_is_measured_again_by_several(tmp_path, measured):
    run(Images(20).loader(2), tmp_path)
    measured.clear()
    meet = threading.Barrier(3)

    class Meeting(Images):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 0:
                meet.wait(20)
            return super().__getitem__(index)

    shared(lambda: Meeting(20).loader(2), tmp_path, resume=False)
    assert len(measured) == 10
    assert sum(measured.values()) <= 13, "at most one that came to the first batch late"


# ---- parts of the data that only one process has


def split(folder: Path, sizes: Iterable[int], **options: Any) -> list[Any]:
    sizes = list(sizes)

    def one(rank: int) -> Callable[[], Scores]:
        stream = DataLoader(Stream(10 * rank, 10 * rank + sizes[rank]), batch_size=2)
        return lambda: run(SharedLoader(stream, Rank(rank, len(sizes)), already_split=True), folder, **options)

    return together(*[one(rank) for rank in range(len(sizes))])


def test_streams_that_split_themselves_are_kept_whole(tmp_path, measured):
    expected = run(
        [torch.stack([image(i) for i in numbers]) for numbers in ((0, 1), (2,), (20, 21), (22, 23))], methods="gradcam"
    )
    measured.clear()
    for scores in split(tmp_path, (3, 0, 4)):
        assert list(scores.rows["image_id"].unique()) == [*(f"r0-{i}" for i in range(3)), *(f"r2-{i}" for i in range(4))]
        ours = scores.rows[scores.rows["method"] == "gradcam"].reset_index(drop=True)
        pd.testing.assert_series_equal(ours["masked_confidence"], expected.rows["masked_confidence"], rtol=1e-5)
        assert scores.manifest["first_image"]["id"] == "r0-0"
    measured.clear()
    again = split(tmp_path, (3, 0, 4))
    pd.testing.assert_frame_equal(again[0].rows, scores.rows)
    assert not measured
    for error in split(tmp_path, (3, 4)):
        assert "holds another run: its already split is 3, this run's is 2" in str(error)


def own(rank: int, batches: Iterable[Any], folder: Path) -> Callable[[], Scores]:
    return lambda: run(SharedLoader(batches, Rank(rank, 2), already_split=True), folder)


def parts_of_two() -> list[list[Tensor]]:
    return [
        [torch.stack([image(first + 2 * number), image(first + 2 * number + 1)]) for number in range(3)] for first in (0, 10)
    ]


def gone_after(batches: list[Any], count: int, folder: Path) -> Iterator[Any]:
    yield from batches[:count]
    end = time.monotonic() + 20
    while len(list(folder.glob("parts/*.came"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    raise Broken


@pytest.mark.parametrize("own_images", [True, False], ids=["with images", "without images"])
def test_who_waits_for_images_of_a_process_that_is_gone_says_so_and_the_run_goes_on(
    own_images, tmp_path, measured, monkeypatch
):
    monkeypatch.setattr(whole_run, "PATIENCE", 1.0)
    mine, others = parts_of_two()
    error, broken = together(own(0, mine, tmp_path), own(1, gone_after(others, 2, tmp_path), tmp_path))
    assert isinstance(broken, Broken)
    assert isinstance(error, RunError)
    assert str(error).startswith("rank 1 of 2 processes has ended before all of the images were measured that only it has; ")
    assert str(error).endswith("the same command in 2 processes goes on")
    measured.clear()
    for scores in together(own(0, mine, tmp_path), own(1, others, tmp_path)):
        ids = [*(f"r0-{index}" for index in range(2 * len(mine))), *(f"r1-{index}" for index in range(6))]
        assert list(scores.rows["image_id"].unique()) == ids
    assert "r0-0" not in measured
    assert files(tmp_path) == {"rows.parquet", "summary.csv", "manifest.json"}


def test_a_process_that_comes_back_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_run, "PATIENCE", 20.0)
    mine, others = parts_of_two()

    def twice() -> Scores:
        with pytest.raises(Broken):
            own(1, gone_after(others, 2, tmp_path), tmp_path)()
        return own(1, others, tmp_path)()

    for scores in together(own(0, mine, tmp_path), twice):
        assert scores.rows["image_id"].nunique() == 12


def test_parts_that_are_swapped_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_run, "PATIENCE", 0.5)
    one, other = parts_of_two()
    together(own(0, gone_after(one, 2, tmp_path), tmp_path), own(1, gone_after(other, 2, tmp_path), tmp_path))
    found = together(own(0, other, tmp_path), own(1, one, tmp_path))
    assert all(isinstance(error, OutputError) and "its images, labels or groups are others" in str(error) for error in found)
    for scores in together(own(0, one, tmp_path), own(1, other, tmp_path)):
        assert scores.rows["image_id"].nunique() == 12


def test_an_image_in_two_parts_is_refused(tmp_path):
    works = [
        lambda rank=rank: run(SharedLoader(Images(3).loader(), Rank(rank, 2), already_split=True), tmp_path)
        for rank in range(2)
    ]
    for error in together(*works):
        assert isinstance(error, DataError)
        assert str(error).startswith("two images have the id 'image-00'; ")
    assert not (tmp_path / "rows.parquet").exists()


def test_without_images_in_any_part_the_error_is_that_of_one_process(tmp_path):
    for error in split(tmp_path, (0, 0)):
        assert str(error).startswith("the loader is empty")


# ---- claims


def test_of_many_that_claim_the_same_batches_one_gets_each(tmp_path):
    got: list[int] = []
    meet = threading.Barrier(8)

    def claiming(seed: int) -> None:
        numbers = list(range(60))
        random.Random(seed).shuffle(numbers)
        with RunFolder.joined(tmp_path, {"run": {}, "versions": {}}, True, "", None) as folder:
            meet.wait(20)
            for number in numbers:
                if folder.claim(number):
                    got.append(number)
                    folder._mark(number).with_suffix(".part.arrow").touch()
                    folder.free(number)

    assert together(*[lambda seed=seed: claiming(seed) for seed in range(8)]) == [None] * 8
    assert sorted(got) == list(range(60))


# ---- processes that die

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload([__name__, "pyarrow"])
IMPORTED_IN = os.getpid()


def _process(folder: Path, seed: int | None, workers: int) -> None:
    """Score, and die by SIGKILL at a random call that touches the disk."""
    assert os.getpid() != IMPORTED_IN, "the server failed to import this module, about which it says nothing"
    torch.set_num_threads(1)
    if seed is not None:
        rng = random.Random(seed)
        left = [rng.randrange(1, 120)]
        for name in ("open", "fsync", "replace", "unlink"):
            setattr(os, name, _deadly(getattr(os, name), left, rng.random() < 0.5))
    loading = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}  # not by the server once more
    run(Images(23, {4}).loader(2, **loading), folder)


def _deadly(own: Callable[..., Any], left: list[int], before: bool) -> Callable[..., Any]:
    def called(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = own(*args, **options)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return called


def processes(folder: Path, seeds: Iterable[int | None], workers: int = 0) -> list[int | None]:
    """How processes end that share a run, of which those with a seed die."""
    started = [FORKING.Process(target=_process, args=(folder, seed, workers)) for seed in seeds]
    with contextlib.chdir(ROOT):  # from where the server finds this module
        for process in started:
            process.start()
    for process in started:
        process.join(120)
        if process.is_alive():  # it would keep pytest from ending
            process.kill()
            process.join()
    return [process.exitcode for process in started]


@pytest.mark.parametrize("workers", [0, 1])
def test_those_that_live_do_what_dead_ones_have_left(workers, tmp_path):
    seeds = random.Random(workers).sample(range(10**6), 4 if workers else 8)
    ended = processes(tmp_path / "run", [None, *seeds], workers)
    assert ended[0] == 0, seeds
    assert -signal.SIGKILL in ended, seeds
    pd.testing.assert_frame_equal(Scores.load(tmp_path / "run").rows, run(Images(23, {4}).loader(2)).rows, check_exact=True)
    run(Images(23, {4}).loader(2), tmp_path / "run")  # the last one tidies up
    assert files(tmp_path / "run") == {"rows.parquet", "summary.csv", "manifest.json"}, seeds


def test_when_all_die_the_next_ones_go_on(tmp_path, measured):
    seeds = random.Random(3).sample(range(10**6), 6)
    for two in zip(seeds[::2], seeds[1::2], strict=True):
        processes(tmp_path / "run", two)
    assert processes(tmp_path / "run", [None]) == [0], seeds
    pd.testing.assert_frame_equal(Scores.load(tmp_path / "run").rows, run(Images(23, {4}).loader(2)).rows, check_exact=True)


def test_a_process_that_is_told_to_end_keeps_its_rows(tmp_path, monkeypatch):
    def told(batches: list[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    batches = list(Images(12).loader(2))
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        distributed.score(TINY, told(batches), LAYERS, output_dir=tmp_path, progress=False)
    assert list(Scores.load(tmp_path).rows["image_id"].unique()) == [f"image-{index:02d}" for index in range(6)]


# ---- ranks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_RANK")


@pytest.mark.parametrize(
    ("given", "expected", "local"),
    [
        ({}, Rank(0, 1), None),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank(2, 4), 1),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, Rank(5, 8), 1),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Rank(0, 1), None),  # sbatch without srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Rank(0, 1), None),
        ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "RANK": "1", "WORLD_SIZE": "2"}, Rank(1, 2), None),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, Rank(1, 3), 0),
    ],
)
def test_a_rank_is_what_torchrun_srun_or_mpirun_say(given, expected, local, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Rank.from_environment() == expected
    assert Rank.local() == local


@pytest.mark.parametrize("value", ["two", "4"])
def test_a_rank_that_is_none_is_refused(value, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", value)
    with pytest.raises(UsageError, match=rf"set RANK and WORLD_SIZE to whole numbers, .*; got .*'{value}'"):
        Rank.from_environment()


@pytest.mark.parametrize(
    "given",
    [lambda device: {"device": device}, lambda device: {"inference": xaieval.Inference(device=device)}],
    ids=["keyword", "object"],
)
def test_cuda_is_the_gpu_of_the_process(given, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert shared_run._device(given("cuda")) == "cuda"
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    for count, expected in ((8, "cuda:3"), (2, "cuda:1"), (0, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert shared_run._device(given("cuda")) == shared_run._device(given(torch.device("cuda"))) == expected
    assert shared_run._device(given("cuda:5")) == "cuda:5"
    assert shared_run._device(given("cpu")) == "cpu"
    assert shared_run._device(given(None)) is shared_run._device({}) is None
    assert shared_run._device({"device": "cpu", "inference": xaieval.Inference(device="cuda")}) == "cpu"  # keywords win


def test_a_run_that_was_finished_since_the_command_started_is_taken_as_it_is(tmp_path, monkeypatch, measured):
    started = time.time()
    run(Images(6).loader(2), tmp_path)
    measured.clear()
    monkeypatch.setenv("XAIEVAL_STARTED", str(started))
    loaded: list[int] = []

    class Watched(Images):
        def __getitem__(self, index: int) -> dict[str, Any]:
            loaded.append(index)
            return super().__getitem__(index)

    for resume in (True, False):
        assert len(run(Watched(6).loader(2), tmp_path, resume=resume).rows) == 18
    assert set(loaded) == {0, 1}, "the first batch, for the identity of the run"
    assert not measured
    monkeypatch.setenv("XAIEVAL_STARTED", str(time.time() + 1))
    run(Watched(6).loader(2), tmp_path)
    assert set(loaded) == set(range(6))


def test_no_finished_run_is_a_run_without_batches():
    assert not FinishedRun.none().checkpoints
    assert not issubclass(RunError, UsageError)
