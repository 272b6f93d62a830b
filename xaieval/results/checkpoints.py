"""The checkpoints of a run: its finished batches on the disk, from which an interrupted run resumes.

A checkpoint is a Parquet file of the rows of one batch in the folder `parts`, with a description of the batch in the file's
metadata. Files are written completely or not at all, so that a run that is killed loses only the batch under way. A finished
run has all rows in one file, and its manifest describes the batches; it resumes in the same way, with nothing left to measure.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from xaieval.data.batches import Batch, Failure
from xaieval.data.labels import OtherLabels
from xaieval.data.truth_by_class import tensors_of
from xaieval.errors import OutputError, RunError, advice
from xaieval.results.files import (
    MANIFEST,
    PARTS,
    RANKS,
    ROWS,
    check_folder,
    is_complete,
    locked,
    place_of,
    write_file,
    write_json,
    writing,
)
from xaieval.results.manifest import describe_data, tensor_bytes
from xaieval.results.rows import failed_rows
from xaieval.results.validation import check_made_of, check_rows, read_manifest, read_rows

__all__ = ["Checkpoint", "Checkpoints", "check_of", "read_unfinished"]

KEY = b"xaieval"  # of the description of a batch, in the metadata of its file
MADE_OF = ("check", "ids", "failed", "missed")

T = TypeVar("T")

log = logging.getLogger("xaieval")


@dataclass(frozen=True)
class Checkpoint:
    """A batch that was measured before.

    Attributes:
        check: The checksum of its content; see `check_of`.
        ids: The ids of its images; empty if only the checksum is known, as in a finished run.
        failed: Images of this batch that could not be read.
        missed: Images of earlier batches, of which no image could be read.
        rows: Its rows, if they are read already.
        path: Its file, if they are not.
    """

    check: str
    ids: Sequence[str] = ()
    failed: Sequence[Failure] = ()
    missed: Sequence[Failure] = ()
    rows: pd.DataFrame | None = None
    path: Path | None = None

    def read(self) -> pd.DataFrame | None:
        """The rows; None if the file is damaged, which is logged."""
        return self.rows if self.path is None else _unless_damaged(read_rows, self.path)


@dataclass
class Checkpoints:
    """The checkpoints of a run under way.

    Attributes:
        folder: The folder of the run.
        known: By number, the batches that were measured before.
    """

    folder: Path
    known: Mapping[int, Checkpoint] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def of(cls, path: str | Path, manifest: Mapping[str, Any], resume: bool) -> Iterator[Checkpoints]:
        """Open the folder of a run, and lock it against other processes.

        Args:
            path: The folder, created if needed.
            manifest: The manifest of the run that begins.
            resume: Whether to keep finished batches; otherwise they are measured again, and replaced at the end.

        Raises:
            OutputError: The folder cannot be written, holds another run, or is used by another process.
        """
        folder = Path(path)
        check_folder(folder, manifest["run"])
        with ExitStack() as held:
            for place in place_of(folder):
                held.enter_context(locked(place))
            check_folder(folder, manifest["run"])  # once more, now that no other process can begin a run there
            checkpoints = cls(folder, _known(folder) if resume else {})
            if checkpoints.known:
                _say_versions(_manifest(folder), manifest, len(checkpoints.known))
            if not resume:
                checkpoints.remove()
            try:
                yield checkpoints
            finally:
                if not checkpoints.paths():
                    checkpoints.remove()

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, before the first batch.

        Raises:
            OutputError: The folder cannot be written.
        """
        with writing(self.folder):
            write_json(self.folder / PARTS / MANIFEST, manifest)

    def find(self, number: int, batch: Batch) -> pd.DataFrame | None:
        """The rows of a batch that was measured before; None if it has to be measured.

        Raises:
            OutputError: The interrupted run had different images at this place.
        """
        checkpoint = self.known.get(number)
        if checkpoint is None:
            return None
        if checkpoint.check == check_of(batch):
            return checkpoint.read()
        if not checkpoint.ids:
            return None  # a finished run in other batches, which is measured again
        if checkpoint.ids != batch.ids and _names(checkpoint.ids, checkpoint.failed) == _names(batch.ids, batch.failed):
            return None  # an image that could not be read now can, or the other way round
        raise OutputError(
            f"'{self.folder}' holds a run that broke off, whose batch {number} {_difference(checkpoint, batch)}; give the same "
            f"images in the same order and batches, or measure all of them again by {advice('resume=False', '--no-resume')}"
        )

    def write(self, number: int, checkpoint: Checkpoint, rows: pd.DataFrame) -> None:
        """Write the rows of a batch to the disk.

        Raises:
            RunError: That is not possible.
        """
        made_of = json.dumps({name: getattr(checkpoint, name) for name in MADE_OF}).encode()
        table = pa.Table.from_pandas(rows, preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: made_of})
        with writing(self.folder, RunError):
            write_file(self.folder / PARTS / f"{number:08d}.parquet", lambda file: pq.write_table(table, file))

    def paths(self) -> list[Path]:
        """The existing files, in order."""
        return sorted((self.folder / PARTS).glob("[0-9]*.parquet"))

    def remove(self) -> None:
        """Remove all checkpoints; their manifest first, since no run resumes without it."""
        with suppress(OSError):  # files that are left do no harm
            (self.folder / PARTS / MANIFEST).unlink(missing_ok=True)
            for path in [*self.paths(), *(self.folder / PARTS).glob(".*.part")]:
                path.unlink()


def check_of(batch: Batch) -> str:
    """The checksum of a batch: the number of its images, and a CRC-32 of images, ids, labels, ground truth and groups."""
    truth = [batch.masks, *(batch.boxes or []), *(tensor for one in batch.truth or [] for tensor in tensors_of(one))]
    labels = batch.labels.given if isinstance(batch.labels, OtherLabels) else batch.labels
    tensors = [tensor for tensor in (batch.images, labels, *truth) if isinstance(tensor, Tensor)]
    check = zlib.crc32(json.dumps(batch.ids if batch.group is None else [batch.ids, batch.group]).encode())
    for tensor in tensors:
        check = zlib.crc32(tensor_bytes(tensor), check)
    return f"{len(batch)}:{check:08x}"


def read_unfinished(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and manifest of an unfinished run of one process or several; the rows of unreadable images come last.

    Damaged checkpoints are left out, which is logged.

    Raises:
        FileNotFoundError: Nothing was measured.
        OutputError: The rows are not those of a run.
    """
    folder = Path(path)
    ranks = sorted((folder / RANKS).glob("[0-9]*-of-[0-9]*"))
    places = [place for place in (folder, *ranks) if (place / PARTS / MANIFEST).exists() or is_complete(place)]
    runs = [_known(place) for place in places]
    parts = [part for known in runs for part in known.values()]
    frames = [rows for part in parts if (rows := part.read()) is not None]
    if not frames:
        raise FileNotFoundError(2, "nothing was measured", str(folder / ROWS))
    failures = [failure for part in parts for failure in (*part.missed, *part.failed)]
    manifest = _manifest(places[0])
    rows = check_rows(pd.concat(frames, ignore_index=True), manifest, path)
    pairs = list(rows[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))
    unreadable = failed_rows(failures, pairs, []).reindex(columns=rows.columns)
    rows = pd.concat([rows, unreadable], ignore_index=True) if failures else rows
    return rows, manifest | {"complete": False} | describe_data(rows, failures, [part.check for part in parts])


def _known(folder: Path) -> dict[int, Checkpoint]:
    """The batches that were measured before, by a finished run or by one under way."""
    finished = _finished(folder) if is_complete(folder) else {}
    return finished | (_parts(folder) if (folder / PARTS / MANIFEST).exists() else {})


def _parts(folder: Path) -> dict[int, Checkpoint]:
    found = {}
    for path in Checkpoints(folder).paths():
        part = _unless_damaged(_part, path)
        if part is not None:
            found[int(path.stem)] = part
    return found


def _part(path: Path) -> Checkpoint:
    made_of = check_made_of(json.loads(pq.read_schema(path).metadata[KEY]), path)
    return Checkpoint(**{name: made_of[name] for name in MADE_OF}, path=path)


def _finished(folder: Path) -> dict[int, Checkpoint]:
    """The batches of a finished run, cut out of its rows, which are in order."""
    checks = read_manifest(folder / MANIFEST).get("data", {}).get("batches", [])
    rows = _unless_damaged(read_rows, folder / ROWS) if checks else None
    if rows is None:
        return {}
    pairs = len(rows[["layer", "method"]].drop_duplicates())
    found, start = {}, 0
    for number, check in enumerate(checks):
        end = start + int(check.partition(":")[0]) * pairs
        found[number] = Checkpoint(check, rows=rows.iloc[start:end].reset_index(drop=True))
        start = end
    return found


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest in a folder; of the run under way, if there are two."""
    under_way = folder / PARTS / MANIFEST
    return read_manifest(under_way if under_way.exists() else folder / MANIFEST)


def _say_versions(before: Mapping[str, Any], now: Mapping[str, Any], batches: int) -> None:
    there, here = before.get("versions", {}), now["versions"]
    others = [f"{name} {there.get(name)} (now {here[name]})" for name in here if there.get(name) != here[name]]
    if others:
        log.warning("%d batches were measured before by other versions: %s", batches, ", ".join(others))


def _unless_damaged(read: Callable[[Path], T], path: Path) -> T | None:
    """The content of a file; None if the file is damaged, which is logged."""
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        log.warning("'%s' is damaged, so that what it held has to be measured again: %s", path, reason)
        return None


def _names(ids: Sequence[str], failed: Sequence[Failure]) -> list[str]:
    return sorted([*ids, *(name for name, _, _ in failed)])


def _difference(part: Checkpoint, batch: Batch) -> str:
    if len(part.ids) != len(batch):
        return f"has {len(part.ids)} images, this run's has {len(batch)}"
    others = [pair for pair in zip(part.ids, batch.ids, strict=True) if pair[0] != pair[1]]
    if others:
        return "has the image '{}', this run's has '{}' there".format(*others[0])
    return f"is of the same ids as this run's ('{batch.ids[0]}', ...), but its images, labels or groups are others"
