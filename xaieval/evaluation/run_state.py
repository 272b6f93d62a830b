"""A run under way: its batches are claimed, measured or found measured, and in the end made one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from xaieval.data.batches import Batch
from xaieval.errors import RunError, XaievalError
from xaieval.evaluation.batch_rows import Measured, measured_rows
from xaieval.evaluation.batch_sources import Source
from xaieval.evaluation.early_stopping import Stopping
from xaieval.evaluation.job import Job
from xaieval.evaluation.race import Racing
from xaieval.results.checkpoints import Checkpoint
from xaieval.results.rows import Pair, failed_rows, with_group_column
from xaieval.results.tensors import check_of

__all__ = ["InMemory", "RunState", "Store", "dead_workers_are_run_errors"]

GRACE = 1.0  # seconds to wait for the signal of a worker that died
LOOKS = 0.1  # seconds between two looks at what other processes are at


class Store(Protocol):
    """Where the rows of batches are kept, by number; see `RunFolder`."""

    def has(self, number: int) -> bool: ...  # noqa: D102

    def claim(self, number: int) -> bool: ...  # noqa: D102

    def restore(self, number: int, batch: Batch) -> bool: ...  # noqa: D102

    def describe(self, batch: Batch) -> Checkpoint: ...  # noqa: D102

    def write(self, number: int, checkpoint: Checkpoint, rows: pd.DataFrame) -> None: ...  # noqa: D102

    def drop(self, number: int) -> None: ...  # noqa: D102

    def checkpoint(self, number: int) -> Checkpoint: ...  # noqa: D102

    def rows(self, number: int) -> pd.DataFrame | None: ...  # noqa: D102

    def finished_meanwhile(self) -> bool: ...  # noqa: D102


class InMemory:
    """The rows of a run without a folder, which one process measures."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Checkpoint, pd.DataFrame]] = {}

    def has(self, number: int) -> bool:
        """Whether a batch was measured."""
        return number in self._found

    def claim(self, number: int) -> bool:
        """There are no other processes."""
        return True

    def restore(self, number: int, batch: Batch) -> bool:
        """Nothing was measured before."""
        return False

    def describe(self, batch: Batch) -> Checkpoint:
        """Nothing will be compared with its checksum."""
        return Checkpoint("", batch.ids, batch.failed)

    def write(self, number: int, checkpoint: Checkpoint, rows: pd.DataFrame) -> None:
        """Keep the rows of a batch."""
        self._found[number] = checkpoint, rows

    def drop(self, number: int) -> None:
        """Memory does not get damaged."""

    def checkpoint(self, number: int) -> Checkpoint:
        """What a batch was made of."""
        return self._found[number][0]

    def rows(self, number: int) -> pd.DataFrame | None:
        """The rows of a batch."""
        return self._found[number][1]

    def finished_meanwhile(self) -> bool:
        """There are no other processes."""
        return False


@dataclass
class RunState:
    """The part of one process in a run.

    Attributes:
        job: What is measured; a race leaves pairs out as it goes on.
        source: The batches.
        store: Where rows are kept.
        measure: Measures a batch.
        done: Called with each batch that had not to be measured.
        stopping: What decides when the run stops; None if it goes to the end.
        pairs: The layers and methods of the run, all of which miss an image that could not be read.
        kept: If the run can stop: for each batch that was looked at, in order, the pairs of which it has rows.
        passed: The checksums of batches that other processes measure, as far as this one has read them too.
        waiting: Batches that other processes are at.
        pending: The last batch, if its rows are not made yet.
    """

    job: Job
    source: Source
    store: Store
    measure: Callable[[Job, Batch], Measured]
    done: Callable[[Batch], None] = lambda batch: None
    stopping: Stopping | Racing | None = None
    pairs: Sequence[Pair] = ()
    kept: list[Sequence[Pair]] = field(default_factory=list)
    passed: dict[int, str] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)
    pending: tuple[int, Checkpoint, Measured, Job] | None = None

    def __post_init__(self) -> None:
        self._all, self.pairs = self.job, self.job.names
        if self.stopping is not None:
            self.job = self.job.of(self.stopping.running)

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of the batches of the run."""
        known = self.source.numbers or ()
        return known if self.stopping is None else known[: len(self.kept)]

    def work(self) -> None:
        """Measure what is free, until every batch of the run has its rows, whoever measured it.

        Raises:
            RunError: Another process died, and the loader cannot be read again.
        """
        if not self.waiting:
            self._sweep(lambda number: True)
        while not self._is_finished():
            self.waiting = [number for number in self.waiting if not self.store.has(number)]
            free = next((number for number in self.waiting if self.store.claim(number)), None)
            if free is not None:
                self._read_again(free)
            elif self.waiting:
                time.sleep(LOOKS)

    def _read_again(self, free: int) -> None:
        if not self.source.again:
            raise RunError(
                f"the process that was at batch {free} has ended, and the loader of this one can be read only once; the same "
                "command goes on"
            )
        wanted, self.waiting = set(self.waiting), []
        self._sweep(wanted.__contains__)

    def _is_finished(self) -> bool:
        self._decide()
        if self.store.finished_meanwhile():
            return True
        if self.stopping is not None and self.stopping.finished:  # what comes after that is not needed
            self.waiting = [number for number in self.waiting if number in self.numbers]
        return not self.waiting

    def _sweep(self, among: Callable[[int], bool]) -> None:
        """Go through the batches once, and do what is free."""
        for number, batch, wanted in self.source.sweep(lambda number: among(number) and self._wants(number)):
            if wanted:
                self._take(number, batch)
            elif among(number):
                self.passed[number] = check_of(batch)
            self._decide()
            if self.stopping is not None and self.stopping.finished:
                break
        self.flush()

    def _wants(self, number: int) -> bool:
        over = self.stopping is not None and self.stopping.finished and number not in self.numbers
        if over or self.store.has(number):
            return False
        if not self.store.claim(number):
            self.waiting.append(number)
            return False
        return True

    def _take(self, number: int, batch: Batch) -> None:
        if self.store.restore(number, batch):
            self.done(batch)
            return
        self.flush()
        checkpoint = self.store.describe(batch)
        if not len(batch):
            rows = failed_rows([], self.pairs, self.job.columns)
            self.store.write(number, checkpoint, rows if batch.group is None else with_group_column(rows, []))
            return
        job = self._all.of(self.kept[number]) if number < len(self.kept) else self.job  # the former if its part was damaged
        measured = self.measure(job, batch)
        self.pending = number, checkpoint, measured, job
        if measured.confidence.device.type == "cpu" or self.stopping is not None:
            self.flush()  # on a GPU, the rows are made while the next batch is under way

    def flush(self) -> None:
        """Make the rows of the pending batch, and keep them."""
        if self.pending is None:
            return
        (number, checkpoint, measured, job), self.pending = self.pending, None
        self.store.write(number, checkpoint, measured_rows(measured, job.names, job.metrics, job.protocol))

    def _decide(self) -> None:
        """Look at the batches in order, as far as they have rows, so that all processes stop at the same one."""
        stopping, numbers = self.stopping, self.source.numbers or ()
        while stopping is not None and not stopping.finished and len(self.kept) < len(numbers):
            number = numbers[len(self.kept)]
            running = list(stopping.running)
            rows = self.rows_of(number, running) if self.store.has(number) else None
            if rows is None:
                return
            failed = self.unreadable(self.store.checkpoint(number).failed)
            stopping.add(pd.concat([frame for frame in (rows, failed) if len(frame)]))
            self.kept.append(running)
            self.job = self.job.of(stopping.running)

    def rows_of(self, number: int, pairs: Sequence[Pair] | None = None) -> pd.DataFrame | None:
        """The rows of a batch; None if its file is damaged, so that it has to be measured again.

        Args:
            number: Of the batch.
            pairs: The pairs of layer and method; other rows are left out, which a process has measured that was ahead.
        """
        rows = self.store.rows(number)
        if rows is None:
            self.measure_again(number)
        elif pairs is not None:
            rows = rows[pd.MultiIndex.from_frame(rows[["layer", "method"]]).isin(pairs)]
        return rows

    def measure_again(self, number: int) -> None:
        """Have a batch measured again, whose file is damaged."""
        self.store.drop(number)
        self.waiting.append(number)

    def unreadable(self, failures: Sequence[Any]) -> pd.DataFrame:
        """The rows of images that could not be read."""
        return failed_rows(failures, self.pairs, self.job.columns)

    @contextmanager
    def under_way(self) -> Iterator[RunState]:
        """If the run breaks off inside this context, its last batch is kept too."""
        try:
            yield self
        except BaseException:
            with suppress(XaievalError):  # the first error is the one to report
                self.flush()
            raise


@contextmanager
def dead_workers_are_run_errors(keeps_rows: bool) -> Iterator[None]:
    """Report a DataLoader worker that died as a `RunError`.

    Args:
        keeps_rows: Whether the run has a folder, in which finished batches are kept.
    """
    try:
        yield
    except BaseException as error:
        reason = _dead_worker(error) or _dead_worker(_late_signal(error))
        if reason is None:
            raise
        kept = "; rows of finished batches are kept, and the same command continues from there" if keeps_rows else ""
        raise RunError(f"a process that reads images died ({reason}), perhaps because memory ran out{kept}") from error


def _late_signal(error: BaseException) -> BaseException | None:
    """Torch's error about a dead worker, if its signal comes only after the broken connection to the worker is noticed."""
    if isinstance(error, ConnectionError | EOFError):
        try:
            time.sleep(GRACE)
        except RuntimeError as late:
            return late
    return None


def _dead_worker(error: BaseException | None) -> str | None:
    """Torch's message about a worker that died. It comes by a signal, so that other errors may wrap it."""
    while error is not None:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):  # torch has no class for it
            return str(error).splitlines()[0].rstrip(". ")
        error = error.__cause__ or error.__context__
    return None
