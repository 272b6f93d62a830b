"""Merge the runs of several processes into the run of one: its rows, in its order, with its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xaieval.data.batches import Failure
from xaieval.errors import DataError, OutputError, RunError
from xaieval.evaluation.distributed.rank import Rank
from xaieval.evaluation.distributed.shards import Shard
from xaieval.evaluation.scores import Scores
from xaieval.results.files import RANKS, check_folder, locked
from xaieval.results.manifest import count_groups, describe_data, spanned
from xaieval.results.rows import failed_rows

__all__ = ["Share", "merge", "rank_folder"]

FIRST_IMAGE = "first image"  # differs between processes; everything else in a run's identity has to be the same


@dataclass(frozen=True)
class Share:
    """What a process reports about its share; see `Shard`.

    Attributes:
        written: Whether its folder holds rows.
        batches: `[B, 3]`: the number of each batch, of its images that could be read, and of those that could not.
        failures: The latter, if there are no rows that name them.
    """

    written: bool
    batches: Any
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def of(cls, part: Shard, written: bool) -> Share:
        """The report on a share that was read to its end."""
        return cls(written, np.array(part.batches, dtype=np.int64).reshape(-1, 3), [] if written else part.failures)

    @property
    def images(self) -> int:
        """The number of images, with those that could not be read."""
        return int(self.batches[:, 1:].sum())

    @property
    def numbers(self) -> Any:
        """The batch number of each image: first those that could be read, then the others, as in the rows."""
        number, readable, failed = self.batches.T
        return np.concatenate([np.repeat(number, readable), np.repeat(number, failed)])

    @property
    def unreadable(self) -> Any:
        """Whether each image could not be read, in the same order."""
        return np.repeat([False, True], self.batches[:, 1:].sum(axis=0))


def rank_folder(output_dir: str | Path, rank: Rank) -> Path:
    """The folder into which a process writes its own rows.

    Example:
        >>> rank_folder("run", Rank(1, 4)).as_posix()
        'run/ranks/0001-of-0004'
    """
    return Path(output_dir) / RANKS / f"{rank.rank:04d}-of-{rank.world:04d}"


def merge(output_dir: str | Path, shares: Sequence[Share]) -> Scores:
    """Write the merged run of all processes, and remove what earlier runs left in `ranks/`.

    Args:
        output_dir: The folder of the run.
        shares: Of each process; at least one has rows.

    Raises:
        DataError: An image is in two shares.
        OutputError: The folder holds another run, or cannot be written.
        RunError: The folder of a process is missing, or holds a different run.
    """
    parts = {rank: _load(output_dir, Rank(rank, len(shares))) for rank, share in enumerate(shares) if share.written}
    runs = {rank: part.manifest["run"] for rank, part in parts.items()}
    _check_same_run(runs)
    first = min(parts, key=lambda rank: shares[rank].numbers[0])  # its first image is the first of all
    with locked(output_dir):
        check_folder(output_dir, runs[first])
        rows = _in_order(shares, {rank: part.rows for rank, part in parts.items()})
        scores = Scores(rows, parts[first].manifest | _merged_entries(rows, shares, parts))
        scores.save(output_dir)
    _remove_others(Path(output_dir) / RANKS, {rank_folder(output_dir, Rank(rank, len(shares))).name for rank in parts})
    return scores


def _load(output_dir: str | Path, rank: Rank) -> Scores:
    folder = rank_folder(output_dir, rank)
    try:
        return Scores.load(folder)
    except OutputError as error:
        raise RunError(
            f"rank {rank.rank} wrote its rows, but rank 0 does not find them: {error}; with several machines the output folder "
            "has to be on storage that all of them share"
        ) from error


def _check_same_run(runs: Mapping[int, Mapping[str, Any]]) -> None:
    """Refuse to merge different runs."""
    (one, expected), *others = runs.items()
    for rank, run in others:
        differing = [key for key in {**expected, **run} if key != FIRST_IMAGE and expected.get(key) != run.get(key)]
        if differing:
            key = differing[0]
            raise RunError(
                f"ranks {one} and {rank} measured different runs: their {key} is {expected.get(key)!r} and {run.get(key)!r}; "
                "all processes have to be started with the same options"
            )


def _in_order(shares: Sequence[Share], tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """All rows in the order of a single process: batch by batch, those of unreadable images last."""
    known = next(iter(tables.values()))
    pairs = list(known[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))
    frames = []
    for rank, share in enumerate(shares):
        rows = tables[rank] if rank in tables else failed_rows(share.failures, pairs, []).reindex(columns=known.columns)
        if len(rows) != share.images * len(pairs):
            raise RunError(f"rank {rank} has {len(rows)} rows of {share.images} images and {len(pairs)} maps of each")
        if len(rows):
            frames.append(rows)
    _check_new(frames)
    numbers = np.concatenate([share.numbers for share in shares])
    unreadable = np.concatenate([share.unreadable for share in shares])
    order = np.lexsort((numbers, unreadable))
    joined = pd.concat(frames, ignore_index=True)
    if (np.diff(order) == 1).all():  # as for neighbouring batches; a large table is not copied then
        return joined
    places = order[:, None] * len(pairs) + np.arange(len(pairs))
    return joined.iloc[places.reshape(-1)].reset_index(drop=True)


def _check_new(frames: Sequence[pd.DataFrame]) -> None:
    ids = pd.concat([frame["image_id"].drop_duplicates() for frame in frames])
    twice = ids[ids.duplicated()]
    if len(twice):
        raise DataError(
            f"two processes have an image with the id {twice.iloc[0]!r}; rows are told apart by id, so each needs its own, and "
            "loaders that give each process another part must not pad"
        )


def _merged_entries(rows: pd.DataFrame, shares: Sequence[Share], parts: Mapping[int, Scores]) -> dict[str, Any]:
    """The entries in which the manifest of the whole run differs from that of one process."""
    entries: list[dict[str, str]] = []
    numbers: list[int] = []
    checks: list[tuple[int, str]] = []
    for rank, share in enumerate(shares):
        own = [{"id": name, "reason": reason} for name, _, reason in share.failures]
        entries += parts[rank].manifest["unreadable"] if rank in parts else own
        numbers += share.numbers[share.unreadable].tolist()
        if rank in parts:
            checks += _numbered(share, parts[rank].manifest["data"]["batches"])
    return {
        **describe_data(rows, [], [check for _, check in sorted(checks, key=lambda item: item[0])]),
        **count_groups(next(iter(parts.values())).manifest, rows),
        "unreadable": [entries[index] for index in np.argsort(numbers, kind="stable")],
        **spanned([part.manifest for part in parts.values()]),
        "ranks": {"world": len(shares), "images": [share.images for share in shares]},
    }


def _numbered(share: Share, checks: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each checksum with the number of the loader's batch; a loader's batch may be several batches of the run."""
    left = iter(checks)
    for number, readable, _ in share.batches.tolist():
        while readable > 0:
            check = next(left)
            readable -= int(check.partition(":")[0])
            yield number, check


def _remove_others(folder: Path, ours: set[str]) -> None:
    """Remove the folders of earlier runs with other numbers of processes, now that the merged run is written."""
    for other in folder.glob("[0-9]*-of-[0-9]*"):
        if other.is_dir() and other.name not in ours:
            shutil.rmtree(other, ignore_errors=True)
