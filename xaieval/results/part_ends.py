"""Word that processes leave in the folder of a run: that they have come with data that only they have, and have read it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xaieval.errors import RunError
from xaieval.results.files import MANIFEST, PARTS, is_complete, write_json, writing
from xaieval.results.locks import Lock, is_held

__all__ = ["CAME", "END", "OWNER", "finished_state", "gone", "owned", "read_ends", "say_end", "state_of"]

CAME, OWNER, END = ".came", ".owner", ".end.json"  # endings of names


@contextmanager
def owned(folder: Path, rank: int, world: int) -> Iterator[None]:
    """Leave word that a process has come whose part of the data no other process has, and hold a lock while it lives."""
    with writing(folder, RunError):
        lock = Lock(_path(folder, rank, world, OWNER))
        lock.take()
        _path(folder, rank, world, CAME).touch()
    try:
        yield
    finally:
        lock.free()


def gone(folder: Path, world: int) -> list[int]:
    """The ranks that have come and are gone without having read all of their part of the data."""
    ended = [rank for rank in range(world) if _path(folder, rank, world, END).exists()]
    came = [rank for rank in range(world) if rank not in ended and _path(folder, rank, world, CAME).exists()]
    return [rank for rank in came if not is_held(_path(folder, rank, world, OWNER))]


def say_end(folder: Path, rank: int, world: int, entry: Mapping[str, Any]) -> None:
    """Leave word that a process has read all of its part of the data, which no other process has."""
    write_json(_path(folder, rank, world, END), entry)


def read_ends(folder: Path, world: int) -> list[dict[str, Any]] | None:
    """What the processes have said at the end of their parts of the data; None before all have."""
    paths = [_path(folder, rank, world, END) for rank in range(world)]
    try:
        return [json.loads(path.read_text()) for path in paths]
    except FileNotFoundError:
        return None


def _path(folder: Path, rank: int, world: int, ending: str) -> Path:
    return folder / PARTS / f"{rank:04d}-of-{world:04d}{ending}"


def finished_state(folder: Path) -> tuple[int, ...] | None:
    """What is another one for each run that is finished in a folder; None without a finished run."""
    return state_of(folder / MANIFEST) if is_complete(folder) else None


def state_of(manifest: Path) -> tuple[int, ...]:
    """What changes when a file is replaced; empty without the file."""
    try:
        state = manifest.stat()
    except OSError:
        return ()
    return state.st_ino, state.st_mtime_ns, state.st_size
