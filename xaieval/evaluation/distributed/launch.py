"""Start a command in several processes on this machine, watch them, and report failures as one message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xaieval.errors import RunError, UsageError
from xaieval.evaluation.distributed.rank import ERRORS, LAUNCHER, STARTED, Rank

__all__ = ["launch"]

THREADS = "OMP_NUM_THREADS"
WRONG_USE = 2  # exit status
TOLD_TO_END = (130, 143)  # exit statuses after SIGINT and SIGTERM, by which rows are kept
LOOKS = 0.05  # seconds between two looks at the processes
PATIENCE = 30.0  # seconds until a process that was told to end is killed


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        rank: Its number.
        status: Its exit status; the negative number of a signal that killed it.
        message: What it said about its failure, if anything.
    """

    rank: int
    status: int
    message: str = ""

    @property
    def died(self) -> bool:
        """Whether it was ended from outside, so that the others can go on without it."""
        return self.status < 0 or self.status in TOLD_TO_END

    @property
    def text(self) -> str:
        """What happened to it."""
        number = -self.status if self.status < 0 else self.status - 128
        if self.died:
            hint = "; out of memory, perhaps" if number == signal.SIGKILL else ""
            return f"rank {self.rank} died by signal {number} ({signal.Signals(number).name}){hint}"
        return f"rank {self.rank} failed: {self.message or f'it ended with status {self.status} and said nothing'}"


def launch(arguments: Sequence[str], processes: int, apart: bool = False) -> list[str]:
    """Run `python -P -m xaieval.cli` in several processes on this machine, and wait for them.

    A process that is killed does not end the others, which do what is left. One that fails with an error does. `-P` keeps
    modules in the working directory from replacing installed ones.

    Args:
        arguments: Of the command line.
        processes: The number of processes.
        apart: Each process has images that no other has, so that all have to live.

    Returns:
        A line about each process that died, of a run that is whole all the same.

    Raises:
        KeyboardInterrupt: This process was interrupted; the others have ended.
        RunError: A process failed, or all have died; with the rank and the message.
        UsageError: A process reports that the command cannot work with these arguments.
    """
    with tempfile.TemporaryDirectory(prefix="xaieval-") as folder:
        places = [Path(folder) / str(number) for number in range(processes)]
        started = time.time()
        running = {number: _start(arguments, number, processes, started, places[number]) for number in range(processes)}
        try:
            ended = _watch(running, places, apart)
            died = [one for one in ended if one.died]
            if len(ended) == processes and ended[0].died and any(one.status == 0 for one in ended):  # the first one prints
                running[0] = _start(arguments, 0, processes, started, places[0])
                ended = [*_watch({0: running[0]}, places, apart), *ended[1:]]
        finally:
            _end(list(running.values()))
    if not ended[0].rank == ended[0].status == 0 or any(one.status and not one.died for one in ended):
        raise _failure([one for one in ended if one.status])
    return [f"{one.text}; the others did its share" for one in died]


def _start(arguments: Sequence[str], number: int, processes: int, started: float, place: Path) -> subprocess.Popen[bytes]:
    """One of the processes, which may be on one of several machines."""
    outer = Rank.from_environment()
    told = {
        "RANK": outer.rank * processes + number,
        "WORLD_SIZE": outer.world * processes,
        "LOCAL_RANK": number,
        "LOCAL_WORLD_SIZE": processes,
        LAUNCHER: os.getpid(),
        STARTED: started,
        ERRORS: place,
    }
    if THREADS not in os.environ:
        told[THREADS] = max(1, (os.cpu_count() or 1) // processes)
    environment = os.environ | {name: str(value) for name, value in told.items()}
    command = [sys.executable, "-P", "-m", "xaieval.cli", *arguments]
    # In a session of its own: Ctrl-C is for this process, which tells the others.
    return subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603  # the same command


def _watch(running: dict[int, subprocess.Popen[bytes]], places: Sequence[Path], apart: bool) -> list[Ended]:
    """How each process ended, by rank; all are ended as soon as one has failed."""
    ended: dict[int, Ended] = {}
    while len(ended) < len(running):
        for number, process in running.items():
            if number not in ended and process.poll() is not None:
                ended[number] = Ended(number, process.returncode, _message(places[number]))
        if any(one.status and (apart or not one.died) for one in ended.values()):
            break
        time.sleep(LOOKS)
    return [one for _, one in sorted(ended.items())]


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell processes to end, which keep their rows, and wait for them."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    end = time.monotonic() + PATIENCE
    try:
        for process in alive:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0))
    finally:
        for process in alive:
            if process.poll() is None:
                process.kill()
                process.wait()


def _failure(failed: Sequence[Ended]) -> RunError | UsageError:
    """The failure that explains the others: wrong use, else an error, else the first process that died."""
    worst = min(failed, key=lambda one: (one.died, one.status != WRONG_USE, one.rank))
    if worst.died:
        return RunError(f"{worst.text}; rows of finished batches are kept, and the same command continues from there")
    if worst.status == WRONG_USE and worst.message:
        return UsageError(worst.message)
    return RunError(worst.text)


def _message(place: Path) -> str:
    """What a process has said about its failure."""
    try:
        return str(json.loads(place.read_text(encoding="utf-8"))["message"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
