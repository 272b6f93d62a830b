"""The folder of a run as the meeting place of the processes that measure it.

Any process with the same run takes part, whoever started it and whenever it comes. Batches are claimed one by one, by a lock on
a small file, which the system releases if the process dies; so a slow process holds nobody up, and a dead one loses only the
batch that it was at. The processes that are there at the same time are a session. What was measured before it is checked in it
once: the process that claims such a batch compares it with what the loader gives now, and leaves a mark.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from xaieval.data.batches import Batch
from xaieval.errors import DataError, OutputError, RunError, advice
from xaieval.results.checkpoints import Checkpoint, FinishedRun, in_groups, part_path, part_paths, unless_damaged
from xaieval.results.files import (
    KEPT_MAPS,
    MANIFEST,
    PARTS,
    POOLED,
    ROWS,
    SUMMARY,
    check_folder,
    is_complete,
    write_file,
    write_json,
    writing,
)
from xaieval.results.locks import Lock, is_held, turn_in
from xaieval.results.part_ends import CAME, END, OWNER, state_of
from xaieval.results.part_files import read_part, write_part
from xaieval.results.row_tables import frame_of, table_of
from xaieval.results.rows import GROUP
from xaieval.results.tensors import checkpoint_of
from xaieval.results.validation import read_manifest

__all__ = ["RunFolder", "other_order"]

SESSION = "session.json"
DOOR, MERGING = ".door", ".merging"
PRESENT, CLAIM, CHECKED = ".present", ".claim", ".checked"  # endings of names
_OF_SESSIONS = tuple(f"*{ending}" for ending in (CHECKED, CLAIM, END, CAME, OWNER))

log = logging.getLogger("xaieval")


@dataclass
class RunFolder:
    """The folder of a run, as one of the processes sees it that take part.

    Attributes:
        folder: The folder.
        finished: What a finished run has measured before.
        before: The numbers of the batches that were measured before this session.
        seen: Of the manifest of a finished run as it was when this process came; see `finished_meanwhile`.
        held: The claims of this process, by number.
    """

    folder: Path
    finished: FinishedRun
    before: set[int] = field(default_factory=set)
    seen: tuple[int, ...] = ()
    held: dict[int, Lock] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def joined(
        cls, path: str | Path, manifest: Mapping[str, Any], resume: bool, order: str, started: float | None
    ) -> Iterator[RunFolder]:
        """Take part in a run.

        Args:
            path: The folder, created if needed.
            manifest: The manifest of the run.
            resume: Whether to keep batches that were measured before; otherwise they are measured again.
            order: A hash of the order of the images, if it is known.
            started: When the command of this process was started, in seconds since the epoch: a run that was finished after
                that is taken as it is. None if that is unknown.

        Raises:
            DataError: The processes that are there have another order.
            OutputError: The folder cannot be written, holds another run, or others go on with what is not to be kept.
        """
        folder = Path(path)
        run = cls(folder, FinishedRun(folder), seen=state_of(folder / MANIFEST))
        with ExitStack() as stack:
            stack.callback(run._leave)
            with writing(folder), run._door():
                check_folder(folder, manifest["run"])  # once more, now that no other process can begin a run there
                present = stack.enter_context(run._entered())
                if started is not None and is_complete(folder) and (folder / MANIFEST).stat().st_mtime >= started:
                    run.seen = ()  # by processes that were faster
                elif (folder / PARTS / SESSION).exists() and present:
                    run._join(resume, order)
                else:
                    run._begin(manifest, resume, order)
            yield run

    # ---- coming and leaving

    @contextmanager
    def _door(self) -> Iterator[None]:
        """Where one process at a time comes or leaves."""
        with turn_in(self.folder / PARTS, DOOR):
            yield

    @contextmanager
    def _entered(self) -> Iterator[bool]:
        """Be present; gives whether others are."""
        others = self._others()
        mine = Lock(self.folder / PARTS / f"{uuid.uuid4().hex[:12]}{PRESENT}")
        mine.take()
        try:
            yield others
        finally:
            mine.free()

    def _others(self) -> bool:
        """Whether other processes are present; removes what dead ones have left."""
        held = [is_held(path) for path in (self.folder / PARTS).glob(f"*{PRESENT}")]
        return any(held)

    def _join(self, resume: bool, order: str) -> None:
        session = json.loads((self.folder / PARTS / SESSION).read_text())
        if not resume and session["resume"]:
            raise OutputError(
                f"other processes go on with the run in '{self.folder}', so that it cannot be measured again from the start; "
                f"wait until they have ended, or leave out {advice('resume=False', '--no-resume')}"
            )
        if session["order"] != order:
            raise other_order(self.folder)
        self.before = set(session["before"])
        if not session["resume"]:
            self.finished = FinishedRun.none()

    def _begin(self, manifest: Mapping[str, Any], resume: bool, order: str) -> None:
        parts = self.folder / PARTS
        if not (resume and (parts / MANIFEST).exists()):
            self._remove()
        self._tidy()
        if not resume:
            self.finished = FinishedRun.none()
        self.before = {*self.finished.checkpoints, *part_paths(self.folder)}
        if self.before:
            _say_versions(_manifest(self.folder), manifest, len(self.before))
        write_json(parts / MANIFEST, manifest)
        session = json.dumps({"resume": resume, "order": order, "before": sorted(self.before)})
        write_file(parts / SESSION, lambda file: file.write(session.encode()))

    def _leave(self) -> None:
        for number in list(self.held):
            self.free(number)
        with suppress(OSError, OutputError):  # the folder is gone, or has become read-only
            if not (self.folder / PARTS).exists():
                return
            with self._door():
                if not self._others():
                    self._tidy()
                    if not part_paths(self.folder):
                        self._remove()
            (self.folder / PARTS).rmdir()
            self.folder.rmdir()

    def _remove(self) -> None:
        """Remove the run under way; its manifest first, since no run goes on without it."""
        parts = self.folder / PARTS
        with suppress(OSError):  # files that are left do no harm
            for name in (SESSION, MANIFEST):
                (parts / name).unlink(missing_ok=True)
            for path in [
                *part_paths(self.folder).values(),
                *(path for kind in (CHECKED, END, CAME) for path in parts.glob(f"*{kind}")),
            ]:
                path.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove what earlier sessions and dead processes have left; no other process is running."""
        parts = self.folder / PARTS
        for path in [path for kind in (*_OF_SESSIONS, ".*.part") for path in parts.glob(kind)]:
            path.unlink(missing_ok=True)
        for name in (ROWS, SUMMARY, POOLED, KEPT_MAPS, MANIFEST):  # a process that has left may be writing one of them
            for path in self.folder.glob(f".{name}.*.part"):
                is_held(path)

    # ---- batches

    def has(self, number: int) -> bool:
        """Whether a batch was measured, or was checked in this session if it was measured before."""
        mark = self._mark(number) if number in self.before else part_path(self.folder, number)
        return mark.exists()

    def claim(self, number: int) -> bool:
        """Whether it is for this process to measure or to check a batch."""
        if number in self.held:
            return True
        if self.has(number):
            return False
        with writing(self.folder, RunError):
            lock = Lock(self.folder / PARTS / f"{number:08d}{CLAIM}")
            if not lock.take():
                return False
        if self.has(number) or self.finished_meanwhile():  # by the one that has just given it back
            lock.free()
            return False
        self.held[number] = lock
        return True

    def free(self, number: int) -> None:
        """Give a claim back."""
        if number in self.held:
            self.held.pop(number).free()

    def restore(self, number: int, batch: Batch) -> bool:
        """Whether a batch was measured before and is still the same; if so, its rows stay.

        Raises:
            OutputError: The run that broke off had other images there.
        """
        if number not in self.before:
            return False
        part = part_path(self.folder, number)
        if part.exists():
            checkpoint = unless_damaged(Checkpoint.read, part)
            if checkpoint is None:
                return False
            now = checkpoint_of(batch)
            if checkpoint.check == now.check:
                if not checkpoint.misses_alike(now):
                    self.write(number, now, frame_of(read_part(part)))
            elif not self._may_differ(number, checkpoint, batch):
                return False
        elif not self._restore_finished(number, batch):
            return False
        self._set_mark(number)
        self.free(number)
        return True

    def describe(self, batch: Batch) -> Checkpoint:
        """What a batch is, for those that go on with the run."""
        return checkpoint_of(batch)

    def _restore_finished(self, number: int, batch: Batch) -> bool:
        known, now = self.finished.checkpoints[number], checkpoint_of(batch)
        if known.check != now.check:
            return False  # such as a finished run in other batches, which is measured again
        misses_alike = known.misses_alike(now)
        if batch.group is not None or self.finished.has_groups or not misses_alike:
            rows = self.finished.rows(number)
            if rows is None:
                return False
            grouped = in_groups(rows, batch)
            if not misses_alike or [*grouped.get(GROUP, ())] != [*rows.get(GROUP, ())]:
                self.write(number, now, grouped)
        return True

    def _may_differ(self, number: int, known: Checkpoint, batch: Batch) -> bool:
        """False, so that the batch is measured again, if an image that could not be read now can, or the other way round.

        Raises:
            OutputError: The images are others.
        """
        if known.ids != batch.ids and known.names == Checkpoint("", batch.ids, batch.failed).names:
            return False
        raise OutputError(
            f"'{self.folder}' holds an interrupted run, and its batch {number} {known.difference(batch)}; give the same "
            f"images in the same order and batches, or start again with {advice('resume=False', '--no-resume')}"
        )

    def write(self, number: int, checkpoint: Checkpoint, rows: pd.DataFrame) -> None:
        """Write the rows of a batch to the disk, and give the claim back.

        Raises:
            RunError: That is not possible.
        """
        with writing(self.folder, RunError):
            write_part(part_path(self.folder, number), rows, checkpoint.to_dict())
        if number in self.before:
            self._set_mark(number)
        self.free(number)

    def drop(self, number: int) -> None:
        """Remove a part that is damaged."""
        for path in (part_path(self.folder, number), self._mark(number)):
            path.unlink(missing_ok=True)
        self.before.discard(number)

    def checkpoint(self, number: int) -> Checkpoint:
        """What a batch was made of.

        Raises:
            OutputError: Its file is damaged.
        """
        path = part_path(self.folder, number)
        if number in self.finished.checkpoints and not path.exists():
            return self.finished.checkpoint(number)
        return Checkpoint.read(path)

    def table(self, number: int) -> pa.Table | None:
        """The rows of a batch as a table; None if its file is damaged, which is logged."""
        path = part_path(self.folder, number)
        if number in self.finished.checkpoints and not path.exists():
            rows = self.finished.rows(number)
            return None if rows is None else table_of(rows)
        return unless_damaged(read_part, path)

    def rows(self, number: int) -> pd.DataFrame | None:
        """The rows of a batch; None if its file is damaged, which is logged."""
        table = self.table(number)
        return None if table is None else frame_of(table)

    def _mark(self, number: int) -> Path:
        return self.folder / PARTS / f"{number:08d}{CHECKED}"

    def _set_mark(self, number: int) -> None:
        with writing(self.folder, RunError):
            self._mark(number).touch()

    # ---- the end

    def finished_meanwhile(self) -> bool:
        """Whether another process has finished the run since this one came."""
        return state_of(self.folder / MANIFEST) != self.seen and is_complete(self.folder)

    def is_unchanged(self, numbers: Sequence[int]) -> bool:
        """Whether the folder holds a finished run of these batches, and none of them has been measured or changed since."""
        return bool(numbers) and list(self.finished.checkpoints) == list(numbers) and not part_paths(self.folder)

    @contextmanager
    def merging(self) -> Iterator[bool]:
        """Wait until no other process merges; gives whether it is for this one to do it."""
        with writing(self.folder, RunError), Lock(self.folder / PARTS / MERGING):
            yield not self.finished_meanwhile()

    def close(self) -> None:
        """Remove the parts of the run, which is finished now."""
        with suppress(OSError), self._door():
            self._remove()


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a folder; of the run under way, if there are two."""
    under_way = folder / PARTS / MANIFEST
    return read_manifest(under_way if under_way.exists() else folder / MANIFEST)


def _say_versions(before: Mapping[str, Any], now: Mapping[str, Any], batches: int) -> None:
    there, here = before.get("versions", {}), now["versions"]
    others = [f"{name} {there.get(name)} (now {here[name]})" for name in here if there.get(name) != here[name]]
    if others:
        log.warning("%d batches were measured before by other versions: %s", batches, ", ".join(others))


def other_order(folder: Path) -> DataError:
    """The error of a process that reads other images than the others, or the same in another order."""
    return DataError(
        f"the processes that share the run in '{folder}' have different orders of the images; give a loader that does not "
        "shuffle, or does so by a generator with a seed; if the loader gives each process another part of the data, say "
        "already_split"
    )
