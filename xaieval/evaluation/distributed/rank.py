"""The rank of this process among several, and its report to the launcher; without torch."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from xaieval.errors import UsageError, XaievalError

__all__ = ["LAUNCHED", "LAUNCHER", "Rank", "describe", "end_with_launcher", "is_rank", "is_spoken_for", "report_failure"]

# The name of a job that `xaieval-bench score --nproc` starts; the command prints the errors of its ranks.
LAUNCHED = "xaieval-bench-nproc"
LAUNCHER = "XAIEVAL_LAUNCHER"  # the environment variable with the number of its process
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
        """The rank that torchrun sets by RANK and WORLD_SIZE; a single process without torchrun.

        Raises:
            UsageError: The two are not whole numbers, or contradict each other.
        """
        given = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
        if not is_rank():
            return cls()
        try:
            return cls(int(given["RANK"]), int(given["WORLD_SIZE"]))
        except ValueError as error:
            raise UsageError(
                f"torchrun sets RANK and WORLD_SIZE to whole numbers, 0 <= RANK < WORLD_SIZE; got {given}"
            ) from error

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.world == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that merges the rows, prints and draws."""
        return self.rank == 0


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ


def is_spoken_for() -> bool:
    """Whether `xaieval-bench score --nproc` started this process; that command then prints its errors."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == LAUNCHED


def end_with_launcher() -> None:
    """End this process, and those that it started, as soon as the command that launched it is gone.

    A launcher that is killed cannot end its ranks itself. They would run on and hold the output folder, so that the same
    command, started again, would be refused.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        Thread(target=_watch, args=(int(launcher),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(LOOKS)
    if os.getpgrp() == os.getpid():  # workers of a DataLoader hold the folder, too
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def describe(error: BaseException) -> str:
    """An error in one line, with its class unless the message was written for users.

    Example:
        >>> describe(ZeroDivisionError("division by zero"))
        'ZeroDivisionError: division by zero'
        >>> describe(UsageError("seed is at least 0"))
        'seed is at least 0'
    """
    text = " ".join(str(error).split())
    return text if isinstance(error, XaievalError) else f"{type(error).__name__}: {text}"


def report_failure(message: str) -> None:
    """Write the reason of a failure to the file that torchrun or the starting command reads, if there is one."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is not None:
        extra = {"py_callstack": message, "timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")
