"""The folder of a run: its files, whether it holds a run and which, and how a file gets there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from xaieval.errors import OutputError, XaievalError
from xaieval.results.validation import read_manifest

__all__ = [
    "MANIFEST",
    "PARTS",
    "RANKS",
    "ROWS",
    "SUMMARY",
    "check_folder",
    "is_complete",
    "locked",
    "place_of",
    "write_file",
    "write_json",
    "writing",
]

ROWS, SUMMARY, MANIFEST = "rows.parquet", "summary.csv", "manifest.json"
PARTS = "parts"  # folder in that of a run: what is measured so far, until the run is finished
RANKS = "ranks"  # likewise, of a run of several processes: a run of each
LOCK = ".lock"


def check_folder(path: str | Path, run: Mapping[str, Any]) -> None:
    """Refuse an output folder that cannot be written, or holds a run other than `run`, finished or not.

    Args:
        path: of the folder; it need not exist.
        run: the part of the manifest that says what a run is.

    Raises:
        OutputError: with the first difference named.
    """
    folder = Path(path)
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise OutputError(f"'{nearest}' is a file; choose another folder")
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"cannot write into '{nearest}'; choose another folder")
    for place in place_of(folder):
        for manifest in (place / MANIFEST, place / PARTS / MANIFEST):
            if manifest.exists():
                _check_same(manifest, place, json.loads(json.dumps(run)))


def place_of(folder: Path) -> list[Path]:
    """The folders that a process writes for: its own, and that of the whole run if it is the first of several."""
    first = folder.parent.name == RANKS and folder.name.startswith("0000-")  # it sees the first image of the run
    return [folder.parent.parent, folder] if first else [folder]


def is_complete(path: str | Path) -> bool:
    """Whether a folder holds a finished run."""
    try:
        return bool(read_manifest(Path(path) / MANIFEST)["complete"])
    except (OSError, OutputError, KeyError):
        return False


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keep other processes from writing a run into this folder; the operating system lets go of it if this process dies.

    Raises:
        OutputError: another process is at it, or the folder cannot be written.
    """
    parts = Path(path) / PARTS
    with writing(path):
        parts.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parts / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(f"another run writes into '{path}'; wait until it has ended, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()
        _tidy(parts)


@contextmanager
def writing(path: str | Path, kind: type[XaievalError] = OutputError) -> Iterator[None]:
    """Have what goes wrong while a folder is written said in one line, with the operating system's reason.

    Args:
        path: of the folder.
        kind: of the error that is raised; `RunError` where something was measured already.
    """
    try:
        yield
    except OSError as error:
        raise kind(
            f"cannot write into '{path}': {error.strerror or error}; what is there is kept, and the same command goes on from "
            "it once that is mended"
        ) from error


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Have a file written under another name, and renamed when it is whole and on the disk: it is the old one or the new one.

    Args:
        path: of the file.
        write: is given the file, open for bytes.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # on a full disk it would be in the way
            part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, likewise; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(f"{json.dumps(content, indent=2)}\n".encode()))


def _tidy(parts: Path) -> None:
    """Leave no empty folders behind."""
    with suppress(OSError):
        if all(path.name == LOCK for path in parts.iterdir()):
            (parts / LOCK).unlink(missing_ok=True)
            parts.rmdir()
            parts.parent.rmdir()


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk too, where the system can do that (Windows cannot open folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_same(manifest: Path, folder: Path, here: Mapping[str, Any]) -> None:
    try:
        there = read_manifest(manifest)["run"]
        keys = [*here, *(there.keys() - here.keys())]
    except (OSError, OutputError, KeyError) as error:
        raise OutputError(f"'{folder}' holds a {MANIFEST} that cannot be read; choose another folder") from error
    for key in keys:
        if here.get(key) != there.get(key):
            raise OutputError(
                f"'{folder}' holds another run: its {key} is {_short(there.get(key))}, this run's is {_short(here.get(key))}; "
                "choose another folder, or remove that one"
            )


def _short(value: Any, most: int = 120) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "..."
