"""Runs of several processes: rows equal to those of one, and what is kept and said where a process fails."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.utils.data import DataLoader, Dataset, IterableDataset

import xaieval
from tests import ROOT
from xaieval.cli import main
from xaieval.config.groups import Groups
from xaieval.data.samples import collate
from xaieval.errors import DataError, RunError, UsageError
from xaieval.evaluation.distributed import launch as launcher
from xaieval.evaluation.distributed import merge as merging
from xaieval.evaluation.distributed import shared_run
from xaieval.evaluation.distributed.rank import LAUNCHED, Rank, describe, report_failure
from xaieval.evaluation.scores import Scores
from xaieval.results.files import is_complete

pytestmark = pytest.mark.slow

TINY = {"progress": False}
LAYERS = ["0", "1"]
METHODS = ("gradcam", "random")


def tiny(seed: int = 0) -> nn.Module:
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


class Troubled:
    """Batches, before one of which something happens in one of the processes."""

    def __init__(self, trouble: Callable[[], None], rank: int = 1, number: int = 3) -> None:
        self.trouble, self.rank, self.number = trouble, rank, number

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(6):
            if number == self.number and os.environ.get("RANK") == str(self.rank):
                self.trouble()
            yield torch.stack([image(2 * number), image(2 * number + 1)])


def _score(loader: Any, folder: Path, **options: Any) -> Scores:
    options = TINY | {"methods": METHODS, "layers": LAYERS} | options
    return shared_run.score(options.pop("model", None) or tiny(), loader, output_dir=folder, **options)


# ---- what the processes do, by name: each gets a folder


def _raise() -> None:
    raise ZeroDivisionError("nothing\nto divide by")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    Path(os.environ["MARKER"]).touch()
    time.sleep(60)


def _epoch(world: int) -> Iterator[Tensor]:
    """What a stream that splits itself gives this process."""
    rank = int(os.environ["RANK"])
    return iter(DataLoader(Stream(4 * rank, 4 * rank + 3 + rank), batch_size=2))


def _own_group(folder: Path) -> None:
    dist.init_process_group("gloo")
    _score(Images(5).loader(), folder / "first")
    _score(Images(5).loader(), folder / "second")
    dist.barrier()
    dist.destroy_process_group()


def _twice(folder: Path) -> None:
    for name in ("first", "second"):
        _score(Images(5).loader(), folder / name)
        if dist.is_initialized():
            raise AssertionError("the process group is still there")


def _twice_with_a_slow_first(folder: Path) -> None:
    """The first process leaves a meeting long after the others, which are early at the next one."""
    if os.environ["RANK"] == "0":
        destroy = dist.destroy_process_group
        dist.destroy_process_group = lambda group: [destroy(group), time.sleep(1)]
    _twice(folder)


def _shuffled(folder: Path) -> None:
    _score(Images(7).loader(shuffle=True), folder / "without", seed=5)
    _score(Images(7).loader(shuffle=True, generator=torch.Generator().manual_seed(3)), folder / "with")


def _again_with_another_seed(folder: Path) -> None:
    _score(Images(5).loader(), folder, seed=0)
    _score(Images(5).loader(), folder, seed=1)


def _returned(folder: Path) -> None:
    scores = _score(Images(9).loader(), folder)
    (folder / f"returned-{os.environ['RANK']}").write_text(str(scores.rows["image_id"].nunique()))


CASES: dict[str, Callable[[Path], Any]] = {
    "loader": lambda folder: _score(Images(13, {0, 4, 11}).loader(), folder),
    "limited": lambda folder: _score(Images(13, {0, 4, 7}).loader(), folder, max_images=8),
    "short": lambda folder: _score(Images(4).loader(), folder),
    "unreadable share": lambda folder: _score(Images(9, {0, 1, 2, 4}).loader(), folder),
    "groups": lambda folder: _score(Images(13, {0, 4, 11}).loader(), folder, groups=Groups(r"-(\d)", "groups")),
    "list": lambda folder: _score(list(Images(13, {2}).loader(2)), folder),
    "stream": lambda folder: _score(DataLoader(Stream(0, 11), batch_size=3), folder, max_images=9),
    "split": lambda folder: _score(_epoch(2), folder, already_split=True),
    "unreadable": lambda folder: _score(Images(5, range(5)).loader(), folder),
    "nothing": lambda folder: _score([], folder),
    "raise": lambda folder: _score(Troubled(_raise), folder),
    "kill": lambda folder: _score(Troubled(_kill), folder),
    "hang": lambda folder: _score(Troubled(_hang, 0, 4), folder),
    "orders": lambda folder: _score(Images(9).loader(sampler=[int(os.environ["RANK"]), 5, 6]), folder),
    "streams": lambda folder: _score([torch.stack([image(i)] * (1 + int(os.environ["RANK"]))) for i in range(3)], folder),
    "models": lambda folder: _score(Images(9).loader(), folder, model=tiny(int(os.environ["RANK"]))),
    "options": lambda folder: _score(Images(9).loader(), folder, target=int(os.environ["RANK"])),
    "twice the same": lambda folder: _score(Images(3).loader(), folder, already_split=True),
    "layer": lambda folder: _score(Images(9).loader(), folder, layers=["nope"]),
    "stop": lambda folder: _score(Images(9).loader(), folder, stop="ranking"),
    "own group": _own_group,
    "twice": _twice,
    "twice, slow first": _twice_with_a_slow_first,
    "shuffled": _shuffled,
    "other seed": _again_with_another_seed,
    "returned": _returned,
}


class Ended(NamedTuple):
    """How a process ended: its exit code, and the error that it raised."""

    code: int | None
    error: str


# The server imports this module once and is then forked: a process starts in a tenth of a second, and not in many.
IMPORTED_IN = os.getpid()
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload([__name__, "pyarrow.parquet"])


def _one(case: str, rank: int, world: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="localhost", MASTER_PORT=str(port))
    os.environ["MARKER"] = str(folder.with_suffix(".marker"))
    torch.set_num_threads(1)
    shared_run.GRACE = 0.1
    try:
        assert os.getpid() != IMPORTED_IN, "the server failed to import this module, about which it says nothing"
        CASES[case](folder)
    except BaseException as error:
        folder.with_suffix(f".{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def _start(case: str, world: int, folder: Path) -> list[Any]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [FORKING.Process(target=_one, args=(case, rank, world, port, folder)) for rank in range(world)]
    with contextlib.chdir(ROOT):  # from where the server finds this module
        for process in processes:
            process.start()
    return processes


def _wait(processes: list[Any], folder: Path) -> list[Ended]:
    ended = []
    for rank, process in enumerate(processes):
        process.join(120)
        if process.is_alive():  # it would keep pytest from ending
            process.kill()
            process.join()
        said = folder.with_suffix(f".{rank}")
        ended.append(Ended(process.exitcode, said.read_text() if said.exists() else ""))
    return ended


def _run(case: str, world: int, folder: Path) -> list[Ended]:
    return _wait(_start(case, world, folder), folder)


def _alone(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scores:
    """The same case in this process."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    CASES[case](folder)
    return Scores.load(folder)


def _written(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "ranks").iterdir()) if (folder / "ranks").exists() else []


def _assert_same(folder: Path, alone: Scores) -> Scores:
    merged = Scores.load(folder)
    pd.testing.assert_frame_equal(merged.rows, alone.rows, check_exact=True)
    ours = {name: value for name, value in merged.manifest.items() if name not in ("ranks", "dates")}
    assert ours == {name: value for name, value in alone.manifest.items() if name != "dates"}
    assert merged.manifest["dates"]["started"] <= merged.manifest["dates"]["ended"]
    return merged


# ---- equal to one process


@pytest.mark.parametrize(
    ("case", "world", "images"),
    [
        ("loader", 2, [6, 7]),
        ("loader", 3, [3, 6, 4]),
        ("limited", 3, [3, 3, 2]),
        ("short", 3, [0, 3, 1]),
        ("unreadable share", 3, [3, 3, 3]),
        ("groups", 2, [6, 7]),
        ("list", 3, [5, 4, 4]),
        ("stream", 2, [6, 3]),
    ],
)
def test_rows_and_manifest_are_those_of_one_process(case, world, images, tmp_path, monkeypatch):
    assert _run(case, world, tmp_path / "run") == [Ended(0, "")] * world
    merged = _assert_same(tmp_path / "run", _alone(case, tmp_path / "alone", monkeypatch))
    assert merged.manifest["ranks"] == {"world": world, "images": images}
    assert merged.manifest["complete"]
    assert (tmp_path / "run/rows.parquet").read_bytes() == (tmp_path / "alone/rows.parquet").read_bytes()
    assert (tmp_path / "run/summary.csv").read_bytes() == (tmp_path / "alone/summary.csv").read_bytes()


def test_every_process_writes_a_run_of_its_own_and_one_without_readable_images_writes_none(tmp_path):
    for case, expected in (("short", ["0001-of-0003", "0002-of-0003"]), ("unreadable share", ["0001-of-0003", "0002-of-0003"])):
        folder = tmp_path / case.split()[0]
        assert _run(case, 3, folder) == [Ended(0, "")] * 3
        assert _written(folder) == expected
        parts = [Scores.load(folder / "ranks" / name) for name in expected]
        ids = [name for part in parts for name in part.rows["image_id"].unique()]
        merged = Scores.load(folder)
        assert set(ids) <= set(merged.rows["image_id"])
        assert len(set(ids)) == len(ids)
        assert all(part.manifest["complete"] for part in parts)


def test_the_first_process_returns_all_rows_and_the_others_their_own(tmp_path):
    assert _run("returned", 2, tmp_path / "run") == [Ended(0, "")] * 2
    assert [(tmp_path / f"run/returned-{rank}").read_text() for rank in range(2)] == ["9", "6"]


def test_a_loader_that_shuffles_is_scored_in_one_order(tmp_path, monkeypatch):
    assert _run("shuffled", 2, tmp_path / "run") == [Ended(0, "")] * 2
    _score(Images(7).loader(shuffle=True), tmp_path / "alone", model=_seeded(5), seed=5)
    without = Scores.load(tmp_path / "run/without").rows
    assert sorted(without["image_id"].unique()) == [f"image-{index:02d}" for index in range(7)]
    pd.testing.assert_frame_equal(without, Scores.load(tmp_path / "alone").rows, check_exact=True)
    _score(Images(7).loader(shuffle=True, generator=torch.Generator().manual_seed(3)), tmp_path / "other")
    _assert_same(tmp_path / "run/with", Scores.load(tmp_path / "other"))


def _seeded(seed: int) -> nn.Module:
    """The model, with the state of random numbers that a loader in one process starts from."""
    model = tiny()
    torch.manual_seed(seed)
    return model


def test_a_stream_that_splits_itself_is_kept_whole(tmp_path):
    assert _run("split", 2, tmp_path / "run") == [Ended(0, "")] * 2
    merged = Scores.load(tmp_path / "run")
    assert list(merged.rows["image_id"].unique()) == [*(f"r0-{i}" for i in range(3)), *(f"r1-{i}" for i in range(4))]
    assert merged.manifest["ranks"] == {"world": 2, "images": [3, 4]}
    images = torch.stack([image(index) for index in (0, 1, 2, 4, 5, 6, 7)])
    alone = xaieval.score(tiny(), images.split([2, 1, 2, 2]), LAYERS, ("gradcam",), **TINY)
    ours = merged.rows[merged.rows["method"] == "gradcam"].reset_index(drop=True)
    pd.testing.assert_series_equal(ours["masked_confidence"], alone.rows["masked_confidence"], rtol=1e-5)


@pytest.mark.parametrize("case", ["own group", "twice", "twice, slow first"])
def test_processes_can_meet_again_and_a_group_of_the_caller_stays(case, tmp_path):
    assert _run(case, 2, tmp_path / "run") == [Ended(0, "")] * 2
    rows = [Scores.load(tmp_path / "run" / name).rows for name in ("first", "second")]
    assert rows[0].equals(rows[1])


@pytest.mark.parametrize("case", ["unreadable", "nothing"])
def test_without_readable_images_the_error_is_that_of_one_process(case, tmp_path, monkeypatch):
    ended = _run(case, 2, tmp_path / "run")
    with pytest.raises((RunError, DataError)) as alone:
        _alone(case, tmp_path / "alone", monkeypatch)
    assert ended == [Ended(1, f"{type(alone.value).__name__}: {alone.value}")] * 2
    assert not (tmp_path / "run").exists()


# ---- folders


def test_what_earlier_runs_left_does_not_get_into_the_rows(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    _run("short", 3, folder)
    assert _written(folder) == ["0001-of-0003", "0002-of-0003"]
    _run("short", 2, folder)
    assert _written(folder) == ["0000-of-0002", "0001-of-0002"]
    _assert_same(folder, _alone("short", tmp_path / "alone", monkeypatch))


def test_a_folder_that_holds_another_run_is_left_alone(tmp_path):
    folder = tmp_path / "run"
    first, _ = _run("other seed", 2, folder)
    assert re.match(r"^OutputError: '.*run' holds another run: its seed is 0, this run's is 1; choose another", first.error)
    assert Scores.load(folder).manifest["seed"] == 0


def test_a_run_of_one_process_is_not_replaced_by_another_run_of_several(tmp_path):
    _score(Images(9).loader(), tmp_path / "run", seed=3)
    first, _ = _run("loader", 2, tmp_path / "run")
    assert "holds another run: its seed is 3, this run's is 0" in first.error
    assert Scores.load(tmp_path / "run").manifest["data"]["images"] == 9


def test_a_folder_that_the_first_process_does_not_see_is_named(tmp_path):
    share = merging.Share(True, torch.tensor([[0, 2, 0]]).numpy())
    with pytest.raises(
        RunError, match=r"^rank 0 wrote its rows, but rank 0 does not find them: .* storage that all of them share$"
    ):
        merging.merge(tmp_path, [share])


# ---- failures


def test_a_process_that_raises_ends_the_run_and_rows_are_kept(tmp_path):
    folder = tmp_path / "run"
    first, second = _run("raise", 2, folder)
    assert second == Ended(1, "ZeroDivisionError: nothing\nto divide by")
    assert first == Ended(1, "RunError: rank 1 failed: ZeroDivisionError: nothing to divide by")
    assert not (folder / "rows.parquet").exists()
    parts = [Scores.load(folder / "ranks" / f"000{rank}-of-0002") for rank in range(2)]
    assert list(parts[0].rows["image_id"].unique()) == ["0", "1", "4", "5", "8", "9"]
    assert parts[0].manifest["complete"]
    assert list(parts[1].rows["image_id"].unique()) == ["2", "3"]
    assert not parts[1].manifest["complete"]


def test_a_process_that_is_killed_ends_the_run_and_rows_of_the_others_are_kept(tmp_path):
    folder = tmp_path / "run"
    first, second = _run("kill", 2, folder)
    assert second == Ended(-signal.SIGKILL, "")
    assert first == Ended(1, "RunError: another rank ended early; its own message says why")
    assert is_complete(folder / "ranks/0000-of-0002")
    killed = Scores.load(folder / "ranks/0001-of-0002")
    assert not killed.manifest["complete"]
    assert list(killed.rows["image_id"].unique()) == ["2", "3"]
    assert not (folder / "rows.parquet").exists()


def test_a_process_that_is_told_to_end_keeps_its_rows(tmp_path):
    folder = tmp_path / "run"
    processes = _start("hang", 2, folder)
    marker = folder.with_suffix(".marker")
    for _ in range(600):
        if marker.exists():
            break
        time.sleep(0.1)
    processes[0].terminate()
    first, second = _wait(processes, folder)
    assert first == Ended(1, "KeyboardInterrupt: SIGTERM")
    assert second.code == 1
    assert list(Scores.load(folder / "ranks/0000-of-0002").rows["image_id"].unique()) == ["0", "1", "4", "5"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("orders", "DataError: ranks 0 and 1 have different orders of the images; give a loader that does not shuffle, or"),
        ("streams", "DataError: ranks 0 and 1 have different orders of the images; give a loader that does not shuffle, or"),
        ("models", "ModelError: ranks 0 and 1 have different models; load the same weights in each, or build the model after"),
        ("layer", "AddressError: no layer 'nope'; "),
        ("stop", "UsageError: stop= works in one process only, which sees all images so far; "),
    ],
)
def test_wrong_use_is_the_same_error_in_every_process(case, message, tmp_path):
    ended = _run(case, 2, tmp_path / "run")
    assert [process.code for process in ended] == [1, 1]
    assert all(process.error.startswith(message) for process in ended), ended
    assert not (tmp_path / "run/rows.parquet").exists()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "options",
            "ranks 0 and 1 measured different runs: their protocol.target is 0 and 1; all processes have to be started",
        ),
        ("twice the same", "two processes have an image with the id 'image-00'; rows are told apart by id, so each needs"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(case, message, tmp_path):
    ended = _run(case, 2, tmp_path / "run")
    assert message in ended[0].error
    assert ended[1].error.startswith("RunError: ")
    assert not (tmp_path / "run/rows.parquet").exists()


# ---- ranks


def test_a_rank_is_what_torchrun_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.from_environment() == Rank(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Rank.from_environment() == Rank(2, 4)
    for value in ("two", "4"):
        monkeypatch.setenv("RANK", value)
        with pytest.raises(UsageError, match=rf"^torchrun sets RANK and WORLD_SIZE to whole numbers, .*; got .*'{value}'"):
            Rank.from_environment()


@pytest.mark.parametrize(
    "given",
    [lambda device: {"device": device}, lambda device: {"inference": xaieval.Inference(device=device)}],
    ids=["keyword", "object"],
)
def test_cuda_is_the_gpu_of_the_process(given, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert shared_run._device(given("cuda")) == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    for count, expected in ((8, "cuda:3"), (2, "cuda:1"), (0, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert shared_run._device(given("cuda")) == shared_run._device(given(torch.device("cuda"))) == expected
    assert shared_run._device(given("cuda:5")) == "cuda:5"
    assert shared_run._device(given("cpu")) == "cpu"
    assert shared_run._device(given(None)) is shared_run._device({}) is None
    assert shared_run._device({"device": "cpu", "inference": xaieval.Inference(device="cuda")}) == "cpu"  # keywords win


def test_processes_without_a_meeting_place_are_told_to_use_torchrun(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RunError, match=r"^rank 0 cannot reach the others: .*MASTER_ADDR.*; start them by torchrun$"):
        _score(Images(3).loader(), tmp_path)


# ---- the launcher


def _failure(tmp_path: Path, rank: int, code: int, message: str | None, when: int, monkeypatch: Any) -> ProcessFailure:
    path = tmp_path / f"{rank}.json"
    if message is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
        report_failure(message)
    failure = ProcessFailure(rank, 0, code, str(path))
    failure.timestamp = when
    return failure


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ({1: (1, "no luck", 5), 0: (-15, None, 3)}, RunError, "rank 1 failed: no luck"),
        ({0: (1, "rank 1 failed: no luck", 5), 1: (-15, None, 6)}, RunError, "rank 1 failed: no luck"),
        ({0: (1, "later", 6), 1: (1, "sooner", 5)}, RunError, "rank 1 failed: sooner"),
        ({0: (2, "no layer 'x'", 6), 1: (1, "another rank ended early", 5)}, UsageError, "no layer 'x'"),
        (
            {0: (1, "another rank ended early", 5), 1: (-9, None, 6)},
            RunError,
            "rank 1 died by signal 9 (SIGKILL); out of memory",
        ),
        ({0: (130, None, 5), 1: (-11, None, 6)}, RunError, "rank 1 died by signal 11 (SIGSEGV); rows that other ranks"),
        ({2: (3, None, 5)}, RunError, "rank 2 failed: it ended with status 3 and said nothing"),
    ],
)
def test_of_several_failures_the_first_cause_is_told(failures, kind, message, tmp_path, monkeypatch):
    made = {rank: _failure(tmp_path, rank, *what, monkeypatch) for rank, what in failures.items()}
    found = launcher._failure(ChildFailedError("xaieval", made))
    assert type(found) is kind
    assert str(found).startswith(message)


def test_an_error_is_described_in_one_line():
    assert describe(RunError("two\nlines")) == "two lines"
    assert describe(KeyError("a")) == "KeyError: 'a'"


def test_wrong_use_in_the_processes_is_one_error_of_the_command(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(UsageError, match=r"^Unknown option: .*--nope"):
        launcher.launch(["score", "--nope", "1"], 2)
    assert "OMP_NUM_THREADS" not in os.environ


def test_threads_are_divided_unless_told(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for processes, threads in ((3, "5"), (20, "1")):
        with launcher._environment(processes):
            assert os.environ["OMP_NUM_THREADS"] == threads
            assert os.environ["XAIEVAL_LAUNCHER"] == str(os.getpid())
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with launcher._environment(3):
        assert os.environ["OMP_NUM_THREADS"] == "7"


# ---- the command


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command line in an empty working directory, with what its processes print."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed, errors = capfd.readouterr()
        # Old releases of torch say there whom they are connected to, several processes at a time.
        return status, printed, re.sub(r"(?m)^(.*\[Gloo\].*|.*peer ranks.*|\d*)\n", "", errors)

    return run


def test_the_command_in_two_processes_writes_and_prints_what_it_does_in_one(bench, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # other numbers of threads sum in another order, unless all is deterministic
    quick = ("--layers", "fpn[p5]", "--max-images", "5", "--batch-size", "2", "--methods", "gradcam,random", "--deterministic")
    status, printed, errors = bench("score", "--nproc", "2", *quick, "--out", "two")
    assert (status, errors) == (0, "")
    assert bench("score", *quick, "--out", "one") == (0, printed.replace("two", "one"), "")
    one, two = (Path(name) for name in ("one", "two"))
    alone, merged = (Scores.load(folder) for folder in (one, two))
    pd.testing.assert_frame_equal(merged.rows, alone.rows, check_exact=True)
    pd.testing.assert_frame_equal(merged.summary(), alone.summary(), check_exact=True)
    pictures = [plt.imread(folder / "maps.png") for folder in (one, two)]
    np.testing.assert_allclose(pictures[0], pictures[1], atol=2 / 255)
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (one, two)]
    assert manifests[1].pop("ranks") == {"world": 2, "images": [2, 3]}
    for manifest, nproc in zip(manifests, (1, 2), strict=True):
        assert manifest.pop("options").pop("nproc") == nproc
    assert manifests[0] == manifests[1]
    assert manifests[0]["run"]["deterministic"] is True
    assert not (two / "ranks/0001-of-0002/maps.png").exists()


def test_a_killed_process_of_the_command_is_named_and_the_others_keep_their_rows(bench, monkeypatch):
    Path("killing.py").write_text(f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
from tests.evaluation.distributed.test_shared_run import Troubled, image, tiny, _kill

def model():
    return tiny()

def wait():
    open("waiting", "w").close()
    time.sleep(60)

def kill():
    while not os.path.exists("waiting"):
        time.sleep(0.1)
    _kill()

def data():
    return Troubled(kill) if os.environ["RANK"] == "1" else Troubled(wait, 0, 4)
""")
    status, printed, errors = bench(
        "score", "--nproc", "2", "--model", "killing:model", "--data", "killing:data", "--layers", "0", "--out", "run"
    )
    assert (status, printed) == (1, "")
    assert errors == (
        "xaieval-bench: rank 1 died by signal 9 (SIGKILL); out of memory, perhaps; rows that other ranks finished are kept in "
        "'ranks' in the output folder\n"
    )
    assert not is_complete(Path("run/ranks/0001-of-0002"))
    assert list(Scores.load("run/ranks/0000-of-0002").rows["image_id"].unique()) == ["0", "1", "4", "5"]


def test_the_processes_of_a_killed_command_end_with_it(tmp_path):
    (tmp_path / "hanging.py").write_text(f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
from tests.evaluation.distributed.test_shared_run import Troubled, image, tiny

def model():
    return tiny()

def hang():
    open(f"hangs-{{os.getpid()}}", "w").close()
    time.sleep(300)

def data():
    return Troubled(hang, int(os.environ["RANK"]))
""")
    words = ["score", "--nproc", "2", "--model", "hanging:model", "--data", "hanging:data", "--layers", "0", "--out", "run"]
    command = [sys.executable, "-m", "xaieval.cli", *words]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    launcher = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    assert _soon(lambda: len(list(tmp_path.glob("hangs-*"))) == 2)
    launcher.kill()
    launcher.wait()
    ranks = [int(path.name.partition("-")[2]) for path in tmp_path.glob("hangs-*")]
    assert _soon(lambda: not any(map(_runs, ranks)), seconds=5)


def _soon(happens: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not (happened := happens()) and time.monotonic() < end:
        time.sleep(0.1)
    return happened


def _runs(process: int) -> bool:
    """Whether a process that is not a child of this one runs."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # one that nobody has waited for is over, too


def test_a_process_of_torchrun_puts_its_rank_before_its_message_and_leaves_word(bench, monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    status, _, errors = bench("score", "--nproc", "0")
    message = "nproc is at least 1, got 0"
    assert (status, errors) == (2, f"xaieval-bench: rank 1: {message}\n")
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == message
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", LAUNCHED)
    assert bench("score", "--nproc", "0") == (2, "", "")
