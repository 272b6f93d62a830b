"""Start a command in several processes on this machine, and report failures as one message."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from xaieval.errors import RunError, UsageError
from xaieval.evaluation.distributed.rank import LAUNCHED, LAUNCHER

__all__ = ["launch"]

THREADS = "OMP_NUM_THREADS"
WRONG_USE = 2  # exit status
OUT_OF_MEMORY = "; out of memory, perhaps"


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `python -P -m xaieval.cli` in several processes on this machine, as torchrun does, and wait for them.

    `-P` keeps modules in the working directory from replacing installed ones.

    Args:
        arguments: Of the command line.
        processes: The number of processes.

    Raises:
        KeyboardInterrupt: This process was interrupted; the others have ended.
        RunError: A process failed; with its rank and its message.
        UsageError: The processes report that the command cannot work with these arguments.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=LAUNCHED,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",  # otherwise the host name is looked up, which can fail
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(),
    )
    with _quiet(), _environment(processes), _own_signals():
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "xaieval.cli", *arguments)
        except ChildFailedError as error:
            raise _failure(error) from error
        except SignalException as error:
            raise KeyboardInterrupt(error.sigval.name) from error


def _failure(error: ChildFailedError) -> RunError | UsageError:
    """The failure that caused the others: a killed process, else wrong use, else the first one reported."""
    rank, failure = min(error.failures.items(), key=lambda item: (_urgency(item[1]), item[1].timestamp, item[0]))
    if failure.exitcode < 0:
        hint = OUT_OF_MEMORY if -failure.exitcode == signal.SIGKILL else ""
        return RunError(
            f"rank {rank} died by signal {-failure.exitcode} ({failure.signal_name()}){hint}; "
            "rows that other ranks finished are kept in 'ranks' in the output folder"
        )
    message = _message(failure)
    if failure.exitcode == WRONG_USE:
        return UsageError(message)
    return RunError(message if message.startswith("rank ") else f"rank {rank} failed: {message}")


def _urgency(failure: Any) -> int:
    if failure.exitcode < 0:
        return 0 if -failure.exitcode != signal.SIGTERM else 4  # the launcher itself sends SIGTERM to the others
    if failure.exitcode == WRONG_USE:
        return 1
    return 2 if failure.exitcode == 1 else 3


def _message(failure: Any) -> str:
    data = failure.error_file_data["message"]
    text = data["message"] if isinstance(data, dict) else data
    return f"it ended with status {failure.exitcode} and said nothing" if text == "<NONE>" else str(text)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the launcher's own warnings; the error reports the same."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restore the signal handlers that the launcher replaces."""
    taken = (signal.SIGTERM, signal.SIGINT, *(getattr(signal, name) for name in ("SIGHUP", "SIGQUIT") if hasattr(signal, name)))
    before = {number: signal.getsignal(number) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: the handler was not set from Python
                signal.signal(number, handler)


@contextmanager
def _environment(processes: int) -> Iterator[None]:
    """Name this process to those that it starts, and divide the processors among them unless the user has set their threads."""
    added = {LAUNCHER: str(os.getpid())}
    if THREADS not in os.environ:
        added[THREADS] = str(max(1, (os.cpu_count() or 1) // processes))
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
