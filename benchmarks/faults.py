"""Recovery of runs from kills, full disks and lost folders, and how much work each fault loses.

    python benchmarks/faults.py --kills 200 --out benchmarks/faults.csv

A kill ends a process by SIGKILL, at a random moment or at a random system call that touches the disk. The same command then
resumes the run until it finishes, and its rows are compared bit by bit with those of a run without faults. "Lost" batches were
started but must be measured again, including the one being processed; with several processes, for each one that was killed.
Needs Linux; a full disk needs the right to mount, which
administrators have (`unshare -rm` gives it to other users, where allowed).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from xaieval.errors import RunError
from xaieval.evaluation import loop
from xaieval.evaluation.scores import Scores
from xaieval.results.files import ROWS
from xaieval.results.part_files import SUFFIX

BATCHES, SIZE = 12, 4
IMAGES = BATCHES * SIZE
NOBODY = 65534  # the usual user id
TOUCHING = ("fsync", "replace", "mkdir", "unlink", "rmdir", "open")  # functions by which a run touches the disk


@dataclass
class Record:
    """The results for one kind of fault.

    Attributes:
        fault: Description of the fault.
        tried: Number of times it was caused.
        most_lost: Largest number of batches that were started and had to be measured again.
        ended: Number of runs that were resumed to their end.
        same_rows: Number of those whose rows equal those of a run without faults, bit by bit.
        said: Message of the last run, if the run could report the fault.
    """

    fault: str
    tried: int = 0
    most_lost: int = 0
    ended: int = 0
    same_rows: int = 0
    said: str = ""


# ---- the run


Trouble = Callable[[int], Any]  # called with the index of each image when it is read


def nothing(index: int) -> None:
    """Cause no fault."""


def at(number: int, do: Callable[[], Any]) -> Trouble:
    """Cause a fault when a certain image is read."""
    return lambda index: do() if index == number else None


def model() -> nn.Module:
    """A small network with a BatchNorm."""
    torch.manual_seed(0)
    inside = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2)
    return nn.Sequential(*inside, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


class Images(Dataset[Tensor]):
    """Noise from fixed seeds."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Tensor:
        self.trouble(index)
        return torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(index))


class Counted:
    """A loader that marks started batches in shared memory, which survives its process."""

    def __init__(self, loader: DataLoader[Tensor], begun: Any) -> None:
        self.loader, self.batch_size, self.begun = loader, SIZE, begun

    def __iter__(self) -> Iterator[Tensor]:
        for number, batch in enumerate(self.loader):
            self.begun[number] = 1
            yield batch


@dataclass
class Place:
    """The folder of a run, and which of its batches were started."""

    folder: Path
    begun: Any  # by batch

    def run(self, trouble: Trouble = nothing, workers: int = 0) -> None:
        """Score into the folder."""
        loader = DataLoader(Images(trouble), SIZE, num_workers=workers)
        measure(loop.score, Counted(loader, self.begun), self.folder)

    def share(self) -> None:
        """Score together with other processes; counts how often each batch is measured."""
        own = loop.measure

        def counted(job: Any, batch: Any, *rest: Any) -> Any:
            with self.begun.get_lock():
                self.begun[int(batch.ids[0]) // SIZE] += 1
            return own(job, batch, *rest)

        loop.measure = counted
        measure(loop.score, DataLoader(Images(nothing), SIZE), self.folder)

    def on_disk(self) -> int:
        """Number of batches on the disk."""
        return BATCHES if (self.folder / ROWS).exists() else len(list(self.folder.glob(f"parts/*{SUFFIX}")))

    def lost(self) -> int:
        """Number of batches that were started but are not on the disk."""
        return max(sum(self.begun) - self.on_disk(), 0)

    def settle(self, record: Record, expected: pa.Table) -> None:
        """Record whether a finished run has the right rows, and clear the folder for the next one."""
        record.ended += 1
        left = (self.folder / "parts").exists()
        record.same_rows += pq.read_table(self.folder / ROWS).equals(expected) and not left
        shutil.rmtree(self.folder)
        self.begun[:] = [0] * BATCHES


def measure(score: Callable[..., Scores], loader: Any, folder: Path) -> Scores:
    """The run that all faults interrupt."""
    methods, metrics = ("gradcam", "random"), ("average_drop", "insertion")
    return score(model(), loader, ["0", "3"], methods, metrics, output_dir=folder, progress=False)


@contextmanager
def place_in(folder: Path | None = None) -> Iterator[Place]:
    """A run in a new folder, or in an existing one."""
    with tempfile.TemporaryDirectory() as new:
        yield Place((folder or Path(new)) / "run", multiprocessing.Array("i", BATCHES))


# ---- kills, which the process cannot report


def forked(work: Callable[[], Any]) -> int:
    """Start a child process that does the work with stderr silenced."""
    child = os.fork()
    if child:
        return child
    status = 1
    with suppress(BaseException):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        status = 0
    os._exit(status)


def ended_well(child: int) -> bool:
    """Wait for a process, and say whether it succeeded."""
    return os.waitpid(child, 0)[1] == 0


def kill_by_time(rng: random.Random, longest: float, work: Callable[[], Any]) -> bool:
    """Kill a process that does the work at a random moment; True if it had finished before."""
    child = forked(work)
    time.sleep(rng.uniform(0, longest))
    os.kill(child, signal.SIGKILL)  # a process that has ended remains until it is waited for
    return ended_well(child)


def kill_by_call(rng: random.Random, _: float, work: Callable[[], Any]) -> bool:
    """Let a process that does the work kill itself before or after a random call that touches the disk."""
    return ended_well(forked(suicidal(rng, work)))


def suicidal(rng: random.Random, work: Callable[[], Any]) -> Callable[[], None]:
    """Work that ends its process before or after a random call that touches the disk."""
    left, before = [rng.randrange(1, 150)], rng.random() < 0.5

    def fatal(own: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = own(*args, **options)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return called

    def called() -> None:
        for name in TOUCHING:
            setattr(os, name, fatal(getattr(os, name)))
        work()

    return called


def kills(fault: str, kill: Callable[[random.Random, float, Callable[[], Any]], bool]) -> Fault:
    """Kill runs, and resume each until it finishes."""

    def tried(count: int, rng: random.Random, expected: pa.Table) -> Record:
        record = Record(fault)
        with place_in() as place:
            start = time.monotonic()
            ended_well(forked(place.run))
            longest = time.monotonic() - start
            place.settle(record, expected)
            while record.tried < count:
                done = kill(rng, longest, place.run)
                record.tried += not done
                record.most_lost = max(record.most_lost, place.lost())
                if done:
                    place.settle(record, expected)
            place.run()
            place.settle(record, expected)
        return record

    return tried


def killed_processes(count: int, rng: random.Random, expected: pa.Table) -> Record:
    """Up to 4 processes share a run, and some of them are killed; others, of any number, go on with what they left."""
    record = Record("SIGKILL of some of up to 4 processes, at a random moment or call")
    with place_in() as place:
        start, killed = time.monotonic(), 0
        ended_well(forked(place.share))
        longest = time.monotonic() - start
        place.settle(record, expected)
        while record.tried < count or killed:
            doomed = [rng.random() < 0.6 and record.tried < count for _ in range(rng.randrange(1, 5))]
            by_call = [rng.random() < 0.5 for _ in doomed]
            works = [suicidal(rng, place.share) if d and c else place.share for d, c in zip(doomed, by_call, strict=True)]
            children = [forked(work) for work in works]
            for child, d, c in zip(children, doomed, by_call, strict=True):
                if d and not c:
                    time.sleep(rng.uniform(0, longest / len(doomed)))
                    os.kill(child, signal.SIGKILL)
            died = [not ended_well(child) for child in children]
            killed += sum(died)
            record.tried += sum(died)
            if not all(died):
                again = sum(place.begun) - BATCHES
                record.most_lost = max(record.most_lost, -(-again // max(killed, 1)))  # for each kill
                killed = 0
                same = pq.read_table(place.folder / ROWS).equals(expected)
                place.run()  # the last one that lives tidies up, so that nothing is left of those that died after the end
                if not same or (place.folder / "parts").exists():
                    print("differs" if not same else sorted(path.name for path in place.folder.rglob("*")), flush=True)
                place.settle(record, expected)
    return record


# ---- faults that the run can report


def breaks(record: Record, place: Place, kind: type[BaseException], trouble: Trouble, workers: int = 0) -> None:
    """Run until the fault raises an error, and record its message."""
    record.tried += 1
    try:
        place.run(trouble, workers)
    except kind as error:
        record.said = str(error).replace(str(place.folder), "run")
        record.most_lost = max(record.most_lost, place.lost())


def goes_on(record: Record, place: Place, expected: pa.Table) -> None:
    """Resume the run without the fault."""
    place.run()
    place.settle(record, expected)


def somewhere(rng: random.Random) -> int:
    """A random image after the first batch."""
    return rng.randrange(SIZE, IMAGES)


@contextmanager
def mounted(size: str) -> Iterator[Path]:
    """A small file system in memory."""
    with tempfile.TemporaryDirectory() as path:
        call("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path)
        try:
            yield Path(path)
        finally:
            call("umount", "-l", path)


def may_mount() -> bool:
    """Whether this process may mount a file system."""
    try:
        with mounted("64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def call(*command: str) -> None:
    """Run a system program."""
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603  # no outside input


def full_disk(count: int, rng: random.Random, expected: pa.Table) -> Record:
    """The disk is full after some batches, then has space again."""
    record = Record("disk full")
    for _ in range(count):
        with mounted(f"{rng.randrange(24, 72, 4)}k") as disk, place_in(disk) as place:
            breaks(record, place, RunError, nothing)
            call("mount", "-o", "remount,size=10m", str(disk))
            goes_on(record, place, expected)
    return record


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Drop administrator rights, which would ignore permissions."""
    own = os.geteuid()
    folder.chmod(0o777)
    if own == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(own)


def read_only_folder(count: int, rng: random.Random, expected: pa.Table) -> Record:
    """The folder becomes read-only during the run."""
    record = Record("folder becomes read-only")
    for _ in range(count):
        with place_in() as place, unprivileged(place.folder.parent):
            parts = place.folder / "parts"
            breaks(record, place, RunError, at(somewhere(rng), partial(parts.chmod, 0o555)))
            parts.chmod(0o755)
            goes_on(record, place, expected)
    return record


def broken_by(fault: str, harm: Callable[[Place], Callable[[], Any]], workers: int = 0) -> Fault:
    """Runs that a fault at a random image ends with an error."""

    def tried(count: int, rng: random.Random, expected: pa.Table) -> Record:
        record = Record(fault)
        for _ in range(count):
            with place_in() as place:
                breaks(record, place, RunError, at(somewhere(rng), harm(place)), workers)
                goes_on(record, place, expected)
        return record

    return tried


def suicide() -> None:
    """Kill the own process."""
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted(count: int, rng: random.Random, expected: pa.Table) -> Record:
    """The user presses Ctrl-C."""
    record = Record("SIGINT")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    for _ in range(count):
        with place_in() as place:
            trouble = at(somewhere(rng), partial(signal.raise_signal, signal.SIGINT))
            breaks(record, place, KeyboardInterrupt, trouble)
            goes_on(record, place, expected)
    signal.signal(signal.SIGINT, before)
    return record


def torn_part(count: int, rng: random.Random, expected: pa.Table) -> Record:
    """The last checkpoint is truncated, as by a disk that confirmed data before writing it."""
    record = Record("last part torn")
    for _ in range(count):
        with place_in() as place, heard() as messages:
            record.tried += 1
            ended_well(forked(partial(place.run, at(somewhere(rng), suicide))))
            last = max(place.folder.glob(f"parts/*{SUFFIX}"))
            os.truncate(last, rng.randrange(last.stat().st_size))
            torn = last.name
            place.run()
            record.most_lost = max(record.most_lost, len(messages))
            record.said = messages[0].replace(str(place.folder), "run").replace(torn, f"N{SUFFIX}")
            place.settle(record, expected)
    return record


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect the messages that the package logs."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]  # no class for one line
    log = logging.getLogger("xaieval")
    log.addHandler(handler)
    log.propagate = False
    try:
        yield messages
    finally:
        log.removeHandler(handler)
        log.propagate = True


Fault = Callable[[int, random.Random, pa.Table], Record]

FAULTS: dict[str, Fault] = {
    "time": kills("SIGKILL at a random moment", kill_by_time),
    "call": kills("SIGKILL at a random call that touches the disk", kill_by_call),
    "processes": killed_processes,
    "torn": torn_part,
    "interrupt": interrupted,
    "worker": broken_by("SIGKILL of a loader's worker", lambda place: suicide, workers=1),
    "removed": broken_by("folder removed", lambda place: partial(shutil.rmtree, place.folder)),
    "full": full_disk,
    "read-only": read_only_folder,
}


def unbroken() -> pa.Table:
    """The rows of a run without faults, as on the disk."""
    with place_in() as place:
        place.run()
        return pq.read_table(place.folder / ROWS)


def main() -> None:
    """Cause all faults, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="number of kills of each kind; a tenth for other faults")
    parser.add_argument("--only", nargs="*", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)  # a forked process has only one
    expected = unbroken()
    records = []
    for name in given.only:
        if name == "full" and not may_mount():
            print(f"{name}: skipped, because this process may not mount a file system")
            continue
        count = given.kills if name in ("time", "call", "processes") else max(given.kills // 10, 1)
        records.append(FAULTS[name](count, random.Random(given.seed), expected))  # noqa: S311  # not for secrets
        print(records[-1], flush=True)
    if given.out is not None:
        pd.DataFrame([asdict(record) for record in records]).to_csv(given.out, index=False)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("xaieval", "torch", "pyarrow"))
    print(f"{BATCHES} batches of {SIZE}, seed {given.seed}, {versions}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
