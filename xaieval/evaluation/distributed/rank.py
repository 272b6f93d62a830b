"""The rank of this process among several, and its report to the launcher; without torch."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xaieval.errors import UsageError

__all__ = [
    "ERRORS",
    "LAUNCHER",
    "STARTED",
    "Rank",
    "end_with_launcher",
    "is_rank",
    "is_spoken_for",
    "report_failure",
    "sigterm_interrupts",
    "started_at",
]

LAUNCHER = "XAIEVAL_LAUNCHER"  # the environment variable with the number of its process
STARTED = "XAIEVAL_STARTED"  # that with the time when it started, in seconds since the epoch
ERRORS = "TORCHELASTIC_ERROR_FILE"  # that with the file for the message of a failure, for torchrun and for the command
LOOKS = 0.2  # seconds between two looks at it


@dataclass(frozen=True)
class Rank:
    """One process among several.

    Attributes:
        rank: Its number, from 0.
        world: The number of processes.

    Example:
        >>> Rank(1, 4)
        Rank(rank=1, world=4)
        >>> Rank().alone
        True
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UsageError(f"a rank is at least 0 and below the number of processes; got rank {self.rank} of {self.world}")

    @classmethod
    def from_environment(cls) -> Rank:
        """The rank that torchrun, `srun` or `mpirun` tells by variables; a single process without them.

        Slurm sets its variables in every job. They count only in a step of several tasks, which `srun` has started.

        Raises:
            UsageError: The two are not whole numbers, or contradict each other.
        """
        names = _names()
        if names is None:
            return cls()
        given = {name: os.environ.get(name, default) for name, default in zip(names, ("0", "1"), strict=False)}
        try:
            return cls(*map(int, given.values()))
        except ValueError as error:
            first, second = given
            raise UsageError(
                f"torchrun, srun and mpirun set {first} and {second} to whole numbers, 0 <= {first} < {second}; got {given}"
            ) from error

    @staticmethod
    def local() -> int | None:
        """The number of this process on its machine; None where nothing has set it."""
        names = _names()
        number = None if names is None else os.environ.get(names[2])
        return None if number is None else int(number)

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.world == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and draws."""
        return self.rank == 0


# Who starts processes, by the variables with the number of a process, that of all of them, and the number on its machine.
_STARTERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # mpirun
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # srun
)


def _names() -> tuple[str, str, str] | None:
    """The variables of whoever started this process."""
    return next((names for names in _STARTERS if _counts(names)), None)


def _counts(names: tuple[str, str, str]) -> bool:
    rank, world, _ = names
    if rank == "RANK":
        return rank in os.environ
    return rank in os.environ and os.environ.get(world, "1") != "1"


def is_rank() -> bool:
    """Whether this process is one of several that torchrun, srun or mpirun started."""
    return _names() is not None


def is_spoken_for() -> bool:
    """Whether `xaieval-bench score --nproc` started this process; that command then prints its errors."""
    return LAUNCHER in os.environ


def started_at() -> float | None:
    """When the command that launched this process was started, in seconds since the epoch; None without one."""
    return float(os.environ[STARTED]) if STARTED in os.environ else None


def end_with_launcher() -> None:
    """End this process, and those that it started, as soon as the command that launched it is gone.

    A launcher that is killed cannot end its ranks itself. They would run on and hold the output folder, so that the same
    command, started again, would be refused.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        threading.Thread(target=_watch, args=(int(launcher),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOKS)
    if os.getpgrp() == os.getpid():  # workers of a DataLoader hold the folder, too
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM end the program as Ctrl-C does, so that rows are kept; clusters send it before they end a job."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt(signal.SIGTERM.name)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report_failure(message: str) -> None:
    """Write the reason of a failure to the file that torchrun or the starting command reads, if there is one."""
    path = os.environ.get(ERRORS)
    if path is not None:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
