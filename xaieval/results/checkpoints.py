"""The checkpoints of a run: its finished batches, from which a run goes on, whoever measured them.

A run under way has a file of rows for each finished batch in the folder `parts`, with a description of the batch. A finished
run has all rows in one file, and its manifest describes the batches; it goes on in the same way, with nothing left to measure.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from xaieval.errors import OutputError
from xaieval.results.files import MANIFEST, PARTS, ROWS, is_complete
from xaieval.results.manifest import describe_data
from xaieval.results.part_files import SUFFIX, read_description, read_part
from xaieval.results.row_file import RowFile
from xaieval.results.row_tables import frame_of
from xaieval.results.rows import GROUP, UNREADABLE, failed_rows, with_group_column
from xaieval.results.validation import check_made_of, check_rows, read_manifest

if TYPE_CHECKING:
    from xaieval.data.batches import Batch, Failure

__all__ = ["Checkpoint", "FinishedRun", "in_groups", "part_path", "part_paths", "read_unfinished", "unless_damaged"]

T = TypeVar("T")

log = logging.getLogger("xaieval")


@dataclass(frozen=True)
class Checkpoint:
    """A batch that was measured.

    Attributes:
        check: The checksum of its content; see `xaieval.results.tensors.check_of`.
        ids: The ids of its images; None if only the checksum is known, as in a finished run.
        failed: Images of this batch that could not be read.
    """

    check: str
    ids: Sequence[str] | None = None
    failed: Sequence[Failure] = ()

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """The checkpoint that a part was made of.

        Raises:
            FileNotFoundError: There is no such file.
            OutputError: The file is damaged.
        """
        made_of = check_made_of(read_description(path), path)
        return cls(made_of["check"], made_of["ids"], [(name, label, reason) for name, label, reason in made_of["failed"]])

    @property
    def names(self) -> list[str]:
        """The ids of its images, also of those that could not be read, sorted."""
        return sorted([*(self.ids or ()), *(name for name, _, _ in self.failed)])

    def misses_alike(self, other: Checkpoint) -> bool:
        """Whether the same images could not be read, for the same reasons."""
        mine, others = (sorted((name, reason) for name, _, reason in one.failed) for one in (self, other))
        return mine == others

    def difference(self, batch: Batch) -> str:
        """In what another batch differs, as the end of a sentence about this one."""
        ids = self.ids or ()
        if len(ids) != len(batch):
            return f"has {len(ids)} images, this run's has {len(batch)}"
        others = [pair for pair in zip(ids, batch.ids, strict=True) if pair[0] != pair[1]]
        if others:
            return "has the image '{}', this run's has '{}' there".format(*others[0])
        return f"is of the same ids as this run's ('{batch.ids[0]}', ...), but its images, labels or groups are others"

    def to_dict(self) -> dict[str, Any]:
        """Return the checkpoint as plain values, for the file."""
        return {"check": self.check, "ids": list(self.ids or ()), "failed": [list(failure) for failure in self.failed]}


def part_path(folder: Path, number: int) -> Path:
    """The file of a batch."""
    return folder / PARTS / f"{number:08d}{SUFFIX}"


def part_paths(folder: Path) -> dict[int, Path]:
    """By number, the existing files, in order."""
    found = {int(path.name.partition(".")[0]): path for path in (folder / PARTS).glob(f"[0-9]*{SUFFIX}")}
    return dict(sorted(found.items()))


class FinishedRun:
    """The batches of a finished run, cut out of its rows, which are in order.

    Args:
        folder: Of the run.

    Attributes:
        checkpoints: By number, the batches.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ROWS
        self.checkpoints: dict[int, Checkpoint] = {}
        self._places: dict[int, tuple[int, int]] = {}
        if is_complete(folder) and self._path.exists():
            self._describe(read_manifest(folder / MANIFEST))

    def _describe(self, manifest: Mapping[str, Any]) -> None:
        data = manifest.get("data", {})
        failed: dict[Any, list[Failure]] = {}
        for entry in manifest.get("unreadable", []):
            failed.setdefault(entry.get("batch"), []).append((entry.get("id"), None, entry.get("reason")))
        checks = data.get("batches", [])
        numbers = data.get("numbers") or range(len(checks))
        if len(numbers) != len(checks):
            return
        ends = list(accumulate(int(check.partition(":")[0]) for check in checks))
        for number, check, start, end in zip(numbers, checks, [0, *ends], ends, strict=False):
            self.checkpoints[number] = Checkpoint(check, None, failed.get(number, ()))
            self._places[number] = start, end

    @classmethod
    def none(cls) -> FinishedRun:
        """No finished run."""
        return cls(Path(os.devnull))

    @property
    def has_groups(self) -> bool:
        """Whether its rows have groups."""
        return self._file is not None and GROUP in self._file.columns

    def checkpoint(self, number: int) -> Checkpoint:
        """A batch, with the labels of its images that could not be read."""
        known = self.checkpoints[number]
        return replace(known, failed=[(name, self._labels.get(name), reason) for name, _, reason in known.failed])

    def rows(self, number: int) -> pd.DataFrame | None:
        """The rows of a batch; None if the file is damaged, which is logged."""
        start, end = self._places[number]
        file, starts = self._file, self._starts
        if file is None or starts is None or end >= len(starts):
            return None
        return unless_damaged(lambda _: file.slice(starts[start], starts[end]), self._path)

    @cached_property
    def _file(self) -> RowFile | None:
        return unless_damaged(RowFile, self._path)

    @cached_property
    def _starts(self) -> list[int] | None:
        """Where the rows of each image that could be read begin, and where those of the last one end."""
        file = self._file
        return None if file is None else unless_damaged(lambda _: _starts_of_images(file), self._path)

    @cached_property
    def _labels(self) -> dict[str, int]:
        """The labels of images that could not be read, where they are known."""
        if self._file is None or "label" not in self._file.columns:
            return {}
        found: dict[str, int] = {}
        for rows in self._file.frames(["image_id", "label", "status"]):
            rows = rows[rows["status"] == UNREADABLE].dropna(subset="label").drop_duplicates("image_id")
            found |= dict(zip(rows["image_id"], rows["label"].astype(int).tolist(), strict=True))
        return found


def _starts_of_images(file: RowFile) -> list[int]:
    starts, last, before = [], None, 0
    for rows in file.frames(["image_id", "status"]):
        readable = rows.loc[(rows["status"] != UNREADABLE).to_numpy(), "image_id"]
        if len(readable):
            codes = readable.cat.codes.to_numpy()
            new = np.append(readable.iloc[0] != last, codes[1:] != codes[:-1])
            starts += (before + np.flatnonzero(new)).tolist()
            last = readable.iloc[-1]
        before += len(readable)
    return [*starts, before]


def in_groups(rows: pd.DataFrame, batch: Batch) -> pd.DataFrame:
    """Rows with the groups of their batch, since groups can also be given to a finished run, or taken from it."""
    if batch.group is None:
        return with_group_column(rows, None) if GROUP in rows else rows
    return with_group_column(rows, rows["image_id"].map(dict(zip(batch.ids, batch.group, strict=True))))


def read_unfinished(path: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows and manifest of an unfinished run; the rows of unreadable images come last.

    Damaged checkpoints are left out, which is logged.

    Raises:
        FileNotFoundError: Nothing was measured.
        OutputError: The rows are not those of a run.
    """
    folder = Path(path)
    under_way = folder / PARTS / MANIFEST
    parts = part_paths(folder) if under_way.exists() else {}
    found = [part for number, file in parts.items() if (part := unless_damaged(_part, file)) is not None]
    frames = [rows for _, rows in found if len(rows)]
    if not frames:
        raise FileNotFoundError(2, "nothing was measured", str(folder / ROWS))
    failures = [failure for checkpoint, _ in found for failure in checkpoint.failed]
    manifest = read_manifest(under_way)
    rows = check_rows(pd.concat(frames, ignore_index=True), manifest, path)
    pairs = list(rows[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))
    unreadable = failed_rows(failures, pairs, []).reindex(columns=rows.columns)
    rows = pd.concat([rows, unreadable], ignore_index=True) if failures else rows
    return rows, manifest | {"complete": False} | describe_data(rows, failures, [one.check for one, _ in found])


def _part(path: Path) -> tuple[Checkpoint, pd.DataFrame]:
    return Checkpoint.read(path), frame_of(read_part(path))


def unless_damaged(read: Callable[[Path], T], path: Path) -> T | None:
    """The content of a file; None if the file is damaged, which is logged."""
    try:
        return read(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OutputError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rpartition("is damaged: ")[2]
        log.warning("'%s' is damaged, so that what it held has to be measured again: %s", path, reason)
        return None
