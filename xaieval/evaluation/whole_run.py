"""The end of a run: the rows of its batches, whoever measured them, become one table with its manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from xaieval.config.protocol import Protocol
from xaieval.data.batches import Failure
from xaieval.errors import DataError, OutputError, RunError
from xaieval.evaluation.batch_rows import check_labelled
from xaieval.evaluation.batch_sources import FAR
from xaieval.evaluation.distributed.rank import Rank
from xaieval.evaluation.run_state import LOOKS, RunState
from xaieval.evaluation.scores import Scores
from xaieval.results.checkpoints import Checkpoint
from xaieval.results.files import PARTS, ROWS, writing
from xaieval.results.manifest import completed, count_groups, describe_data
from xaieval.results.part_ends import finished_state, gone, read_ends, say_end
from xaieval.results.row_file import RowFile, merge_parts
from xaieval.results.row_pieces import MOST_ROWS
from xaieval.results.row_tables import frame_of
from xaieval.results.rows import GROUP
from xaieval.results.run_folder import RunFolder, other_order

__all__ = ["wait_without_images", "whole_run"]

PATIENCE = 10.0  # seconds in which a process that has ended may come back
TRIES = 10  # to read files that may be replaced meanwhile


def whole_run(
    state: RunState, manifest: Mapping[str, Any], protocol: Protocol | None = None, own_part: Rank | None = None
) -> Scores:
    """Measure until the run is whole. Whoever comes first makes one table of it, and all get it.

    Args:
        state: The part of this process in the run, which begins.
        manifest: The manifest, without what is known only at the end.
        protocol: With the target, if images without labels are to be refused where it is the label.
        own_part: The process, if it has images that no other process has.

    Raises:
        DataError: Processes have read different images, or an image twice.
        RunError: The files cannot be written; a process is gone whose images no other has; or as `RunState.work` raises it.
        TargetError: As `check_labelled` raises it.
    """
    store = state.store
    while True:
        state.work()
        found = _Found("groups" in manifest, protocol)
        if not isinstance(store, RunFolder):
            rows = pd.concat(list(_pieces(state, state.numbers, found)), ignore_index=True)
            return Scores(rows, found.manifest(manifest, state))
        ends = [] if own_part is None else _ends(store, state, own_part, manifest)
        with store.merging() as first:
            if not first:
                return _loaded(store.folder)
            # Processes without images wait for the files of a run in parts to be replaced: see `wait_without_images`.
            if not ends and (scores := _unchanged(store, state, manifest)) is not None:
                return scores
            try:
                return _merged(store, state, found, manifest, ends)
            except _DamagedError:
                continue  # and measure that batch again


class _DamagedError(Exception):
    """The file of a batch is damaged."""


@dataclass
class _Found:
    """What is known of a run when all rows were seen.

    Attributes:
        grouped: Whether the run has groups.
        ids: The ids of its images.
        groups: The groups that there are.
        checks: The checksum of each batch.
        failures: Images that could not be read.
        places: The number of the batch of each of them.
        protocol: See `whole_run`.
        targets: If the target is the label, the different labels of images, each with whether such an image has a target.
    """

    grouped: bool
    protocol: Protocol | None
    ids: dict[str, None] = field(default_factory=dict)
    groups: set[Any] = field(default_factory=set)
    checks: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    places: list[int | None] = field(default_factory=list)
    targets: set[tuple[int, bool]] = field(default_factory=set)

    @property
    def by_label(self) -> bool:
        """Whether it matters which images have labels."""
        return self.protocol is not None and self.protocol.target == "label"

    def check_labelled(self) -> None:
        """Refuse target "label" where no image has a label."""
        if self.protocol is not None:
            check_labelled(self.protocol, [label for label, _ in self.targets], [has for _, has in self.targets])

    def add(self, made_of: Checkpoint, rows: pd.DataFrame | pa.Table, number: int) -> None:
        """Add a batch, with the rows of its images that could be read."""
        names = [GROUP] * self.grouped + ["label", "target"] * self.by_label + ["image_id"] * (made_of.ids is None)
        some = frame_of(rows.select(names)) if isinstance(rows, pa.Table) else rows[names]
        for name in some["image_id"].unique() if made_of.ids is None else made_of.ids:
            self._add_id(name)
        self.checks.append(made_of.check)
        self.add_failures(made_of.failed, number)
        if self.grouped:
            self.groups.update(some[GROUP].unique())
        if self.by_label:
            labels = some["label"].astype("Int64").fillna(-1).astype("int64")
            self.targets.update(zip(labels.tolist(), some["target"].notna().tolist(), strict=True))

    def add_failures(self, failures: Sequence[Failure], number: int | None) -> None:
        """Add images that could not be read."""
        for failure in failures:
            self._add_id(failure[0])
            self.failures.append(failure)
            self.places.append(number)

    def _add_id(self, name: str) -> None:
        if name in self.ids:
            raise DataError(
                f"two images have the id {name!r}; rows are identified by id, so each image needs its own, and loaders that "
                "give each process another part must not pad"
            )
        self.ids[name] = None

    def manifest(
        self, begun: Mapping[str, Any], state: RunState, first_image: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The manifest of the whole run."""
        failed = dict.fromkeys(name for name, _, _ in self.failures)
        images = pd.DataFrame({"image_id": [*(name for name in self.ids if name not in failed), *failed]})
        data = describe_data(images, self.failures, self.checks if isinstance(state.store, RunFolder) else [])
        stop = {} if state.stopping is None else {"stop": state.stopping.to_dict()}
        groups = count_groups(begun, pd.DataFrame({GROUP: list(self.groups)}))
        first = {} if first_image is None else {"first_image": first_image}
        return {**begun, **first, "speed": state.job.runner.to_dict(), **stop, **completed(begun), **data, **groups}


def _pieces(state: RunState, numbers: Sequence[int], found: _Found, unread: Sequence[Failure] = ()) -> Iterator[Any]:
    """The rows of a run, batch by batch, those of images that could not be read last; `unread` are such images of no batch."""
    for place, number in enumerate(numbers):
        rows = _rows_of(state, place, number)
        made_of = state.store.checkpoint(number)
        if isinstance(state.store, RunFolder):
            _check_passed(state.store, state, number, made_of)
        found.add(made_of, rows, number)
        if len(rows):
            yield rows
    found.add_failures(unread, None)
    if found.failures:
        yield state.unreadable(found.failures)
    found.check_labelled()


def _rows_of(state: RunState, place: int, number: int) -> pd.DataFrame | pa.Table:
    """The rows of a batch, from a file as a table."""
    if state.stopping is not None or not isinstance(state.store, RunFolder):
        rows = state.rows_of(number, None if state.stopping is None else state.kept[place])
    else:
        rows = state.store.table(number)
    if rows is None:
        state.measure_again(number)
        raise _DamagedError
    return rows


def _unchanged(store: RunFolder, state: RunState, manifest: Mapping[str, Any]) -> Scores | None:
    """A finished run whose batches and groups are as they were, and whose files then stay as they are; None for any other."""
    if not store.is_unchanged(state.numbers):
        return None
    for number in state.numbers:
        _check_passed(store, state, number, store.finished.checkpoints[number])
    with suppress(OutputError):  # a file that is damaged is made anew
        scores = Scores.load(store.folder)
        return scores if _grouping(scores.manifest) == _grouping(manifest) else None
    return None


def _grouping(manifest: Mapping[str, Any]) -> list[Any]:
    """What gives the images of a run their groups, and what its means count."""
    return [manifest.get("groups", {}).get(key) for key in ("by", "weights")]


def _check_passed(store: RunFolder, state: RunState, number: int, made_of: Checkpoint) -> None:
    """Refuse a batch that another process has measured from other images than this one has read."""
    if state.passed.get(number, made_of.check) != made_of.check:
        raise other_order(store.folder)


def _merged(
    store: RunFolder, state: RunState, found: _Found, manifest: Mapping[str, Any], ends: Sequence[Mapping[str, Any]]
) -> Scores:
    """Write the finished run, which then needs its parts no longer."""
    numbers = _numbers(ends) if ends else state.numbers
    first = next((end["first_image"] for end in ends if "first_image" in end), None)
    unread = [(name, label, reason) for end in ends for name, label, reason in end.get("failed", [])]
    with writing(store.folder, RunError):
        merge_parts(_pieces(state, numbers, found, unread), store.folder / ROWS)
    whole = found.manifest(manifest, state, first)
    whole["unreadable"] = [
        entry | ({} if place is None else {"batch": place})
        for entry, place in zip(whole["unreadable"], found.places, strict=True)
    ]
    if ends:
        whole["data"]["numbers"] = list(numbers)
    rows = RowFile(store.folder / ROWS)
    scores = Scores.of_file(rows, whole) if len(rows) > MOST_ROWS else Scores(rows.read(), whole)
    try:
        scores.save(store.folder)
    except OutputError as error:  # which means wrong use elsewhere, but here the call was right
        raise RunError(str(error)) from error
    store.close()
    return scores


# ---- parts of the data that only one process has


@dataclass
class _Others:
    """Processes that are waited for, because no other process has their images."""

    folder: Path
    world: int
    gone_since: float | None = None

    def check(self) -> None:
        """End the wait if one of them is gone, and has not come back for some seconds.

        Raises:
            RunError: It is.
        """
        missing = gone(self.folder, self.world)
        now = time.monotonic()
        self.gone_since = (self.gone_since or now) if missing else None
        if self.gone_since is not None and now - self.gone_since >= PATIENCE:
            ranks = ", ".join(map(str, missing))
            raise RunError(
                f"rank {ranks} of {self.world} processes has ended before all of the images were measured that only it has; "
                f"what was measured is kept, and the same command in {self.world} processes goes on"
            )


def _ends(store: RunFolder, state: RunState, rank: Rank, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What all processes have said at the ends of their parts."""
    with writing(store.folder, RunError):
        say_end(store.folder, rank.rank, rank.world, {"batches": len(state.numbers), "first_image": manifest["first_image"]})
    others = _Others(store.folder, rank.world)
    while (ends := read_ends(store.folder, rank.world)) is None and not store.finished_meanwhile():
        others.check()
        time.sleep(LOOKS)
    return ends or []


def _numbers(ends: Sequence[Mapping[str, Any]]) -> list[int]:
    return [(rank << FAR) + number for rank, end in enumerate(ends) for number in range(end["batches"])]


def wait_without_images(folder: Path, rank: Rank, failures: Sequence[Failure], error: Exception) -> Scores:
    """The scores of a run in which no image of this process's part could be read.

    Raises:
        RunError: The error, if that is so in every process; or another process is gone.
    """
    before, others = finished_state(folder), _Others(folder, rank.world)
    entry = {"batches": 0, "failed": failures}
    while finished_state(folder) in (before, None):
        with writing(folder, RunError):
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
            say_end(folder, rank.rank, rank.world, entry)  # again: a session that begins removes what earlier ones have left
        ends = read_ends(folder, rank.world)
        if ends is not None and not any(end["batches"] for end in ends):
            raise error
        others.check()
        time.sleep(LOOKS)
    return _loaded(folder)


def _loaded(folder: Path) -> Scores:
    """The run that another process has finished, and perhaps writes once more, with what the command line knows of it."""
    for _ in range(TRIES):
        with suppress(OutputError):
            return Scores.load(folder)
        time.sleep(LOOKS)
    return Scores.load(folder)
