"""The rows of a run under way: in memory, and batch by batch on the disk if the run has a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from xaieval.data.batches import Batch, Failure
from xaieval.errors import RunError, XaievalError
from xaieval.evaluation.batch_rows import Measured, measured_rows
from xaieval.evaluation.job import Job
from xaieval.results.checkpoints import Checkpoint, Checkpoints, check_of
from xaieval.results.manifest import describe_data
from xaieval.results.rows import GROUP, Pair, failed_rows, with_group_column

__all__ = ["RunState", "dead_workers_are_run_errors"]

GRACE = 1.0  # seconds to wait for the signal of a worker that died


@dataclass
class RunState:
    """The rows of a run under way.

    Attributes:
        job: What is measured; a race leaves pairs out as it goes on.
        pairs: The layers and methods of the run, all of which miss an image that could not be read.
        checkpoints: The batches on the disk; None for a run without a folder.
        frames: The rows of each batch.
        checks: The checksum of each batch, for a run with a folder.
        failures: Images that could not be read.
        unsaved: Those of them that no checkpoint names yet.
        pending: The last batch, if its rows are not made yet.
        reported: How many frames and failures `new_rows` has given.
    """

    job: Job
    pairs: Sequence[Pair]
    checkpoints: Checkpoints | None = None
    frames: list[pd.DataFrame] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unsaved: list[Failure] = field(default_factory=list)
    pending: tuple[Measured, Checkpoint] | None = None
    reported: tuple[int, int] = (0, 0)

    @classmethod
    @contextmanager
    def under_way(cls, job: Job, checkpoints: Checkpoints | None, manifest: Mapping[str, Any]) -> Iterator[RunState]:
        """The state of a run that begins with this manifest. If the run breaks off, its last batch is kept too."""
        if checkpoints is not None:
            checkpoints.begin(manifest)
        state = cls(job, job.names, checkpoints)
        try:
            yield state
        except BaseException:
            with suppress(XaievalError):  # the first error is the one to report
                state.flush()
            raise

    def skip(self, failures: Sequence[Failure]) -> None:
        """Note images that could not be read."""
        self.failures += failures
        self.unsaved += failures

    def restore(self, batch: Batch) -> bool:
        """Whether the batch was measured before; if so, its rows are taken from the disk."""
        if self.checkpoints is None:
            return False
        number = len(self.frames) + (self.pending is not None)
        rows = self.checkpoints.find(number, batch)
        if rows is not None:
            self.flush()
            self.unsaved = []
            self._append(_in_groups(rows, batch), self.checkpoints.known[number].check)
        return rows is not None

    def add(self, batch: Batch, measured: Measured) -> None:
        """Keep what was measured on a batch. On a GPU, its rows are made while the next batch is under way."""
        self.flush()
        earlier = self.unsaved[: len(self.unsaved) - len(batch.failed)]
        check = "" if self.checkpoints is None else check_of(batch)
        self.pending = measured, Checkpoint(check, batch.ids, batch.failed, earlier)
        self.unsaved = []
        if measured.confidence.device.type == "cpu":
            self.flush()

    def flush(self) -> None:
        """Make the rows of the pending batch, and write them to the disk."""
        if self.pending is None:
            return
        (measured, checkpoint), self.pending = self.pending, None
        rows = measured_rows(measured, self.job.names, self.job.metrics, self.job.protocol)
        if self.checkpoints is not None:
            self.checkpoints.write(len(self.frames), checkpoint, rows)
        self._append(rows, checkpoint.check)

    def new_rows(self) -> pd.DataFrame:
        """The rows since the last call, with those of unreadable images."""
        self.flush()
        frames, failures = self.reported
        new = [*self.frames[frames:], self._unreadable(self.failures[failures:])]
        self.reported = len(self.frames), len(self.failures)
        return pd.concat([frame for frame in new if len(frame)])

    def finish(self) -> tuple[pd.DataFrame, dict[str, Any]]:
        """All rows, those of unreadable images last, and the manifest's entries on the images."""
        self.flush()
        unreadable = [self._unreadable(self.failures)] if self.failures else []
        rows = pd.concat([*self.frames, *unreadable], ignore_index=True)
        return rows, describe_data(rows, self.failures, [] if self.checkpoints is None else self.checks)

    def _unreadable(self, failures: Sequence[Failure]) -> pd.DataFrame:
        return failed_rows(failures, self.pairs, self.job.columns)

    def _append(self, rows: pd.DataFrame, check: str) -> None:
        self.frames.append(rows)
        self.checks.append(check)


def _in_groups(rows: pd.DataFrame, batch: Batch) -> pd.DataFrame:
    """Restored rows with the groups of their batch, since groups can also be given to a finished run, or taken from it."""
    if batch.group is None:
        return with_group_column(rows, None) if GROUP in rows else rows
    return with_group_column(rows, rows["image_id"].map(dict(zip(batch.ids, batch.group, strict=True))))


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
        kept = "; rows of finished batches are kept, and the same command goes on" if keeps_rows else ""
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
