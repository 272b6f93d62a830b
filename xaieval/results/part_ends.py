"""Word that processes leave in the folder of a run: that they have read the data that only they have, and that it is over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xaieval.results.files import MANIFEST, PARTS, is_complete, write_json

__all__ = ["END", "finished_state", "read_ends", "say_end", "state_of"]

END = ".end.json"  # ending of names


def say_end(folder: Path, rank: int, world: int, entry: Mapping[str, Any]) -> None:
    """Leave word that a process has read all of its part of the data, which no other process has."""
    write_json(folder / PARTS / _end(rank, world), entry)


def read_ends(folder: Path, world: int) -> list[dict[str, Any]] | None:
    """What the processes have said at the end of their parts of the data; None before all have."""
    paths = [folder / PARTS / _end(rank, world) for rank in range(world)]
    try:
        return [json.loads(path.read_text()) for path in paths]
    except FileNotFoundError:
        return None


def _end(rank: int, world: int) -> str:
    return f"{rank:04d}-of-{world:04d}{END}"


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
