"""The folder of a run: names of its files, which run it contains, and files that are replaced as a whole."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from xaieval.errors import OutputError, XaievalError
from xaieval.results.locks import Lock
from xaieval.results.validation import read_manifest, shortened

__all__ = [
    "KEPT_MAPS",
    "MANIFEST",
    "PARTS",
    "POOLED",
    "ROWS",
    "SUMMARY",
    "check_folder",
    "is_complete",
    "whole_file",
    "write_file",
    "write_json",
    "writing",
]

ROWS, SUMMARY, MANIFEST = "rows.parquet", "summary.csv", "manifest.json"
KEPT_MAPS = "maps.safetensors"  # of runs that keep maps for the report
POOLED = "pooled.csv"  # of runs that have numbers over all images at once
PARTS = "parts"  # subfolder with the batches measured so far, until the run is finished
_MENDS = {"groups": "; Scores.load(folder).with_groups(...) gives a finished run other groups without measuring it again"}


def check_folder(path: str | Path, run: Mapping[str, Any]) -> None:
    """Check that an output folder can be written and contains no other run, finished or not.

    Args:
        path: The folder; it may not exist yet.
        run: The settings that identify a run, as in the manifest.

    Raises:
        OutputError: The folder cannot be written, or contains another run; the message names the first difference.
    """
    folder = Path(path)
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise OutputError(f"'{nearest}' is a file; choose another folder")
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"cannot write into '{nearest}'; choose another folder")
    for manifest in (folder / MANIFEST, folder / PARTS / MANIFEST):
        if manifest.exists():
            _check_same(manifest, folder, json.loads(json.dumps(run)))


def is_complete(path: str | Path) -> bool:
    """Whether a folder contains a finished run."""
    try:
        return bool(read_manifest(Path(path) / MANIFEST)["complete"])
    except (OSError, OutputError, KeyError):
        return False


@contextmanager
def writing(path: str | Path, kind: type[XaievalError] = OutputError) -> Iterator[None]:
    """Turn an OSError while a folder is written into an error of one line with the reason.

    Args:
        path: The folder.
        kind: The type of the error; `RunError` if something was measured already.
    """
    try:
        yield
    except OSError as error:
        raise kind(
            f"cannot write into '{path}': {error.strerror or error}; files written so far are kept, and the same command "
            "continues from them once this is fixed"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, in binary mode under a temporary name, which is renamed once it is complete and on disk.

    If the block raises, the file is removed, and one that was there before stays.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")  # two processes may write the same file
    lock = Lock(part)  # by which others see that it is being written, and no leftover of a dead process
    try:
        if os.name == "posix":  # Windows lets nobody write to a locked file
            with suppress(OutputError):  # a file system without locks
                lock.take()
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # the partial file would only take space on a full disk
            part.unlink(missing_ok=True)
        raise
    finally:
        lock.free()
    _sync_folder(path.parent)


def write_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file as a whole or not at all; see `whole_file`.

    Args:
        path: The file.
        write: A function that writes to the file, which is open in binary mode.
    """
    with whole_file(path) as file:
        write(file)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in the same way; its folder is created if it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda file: file.write(f"{json.dumps(content, indent=2)}\n".encode()))


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk, if the system supports that (Windows cannot open folders)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_same(manifest: Path, folder: Path, run: Mapping[str, Any]) -> None:
    """Raise an OutputError if the manifest is that of another run than `run`."""
    try:
        other = read_manifest(manifest)["run"]
        keys = dict.fromkeys([*run, *other])  # in order, so that the same difference is named each time
    except (OSError, OutputError, KeyError) as error:
        raise OutputError(f"'{folder}' holds a {MANIFEST} that cannot be read; choose another folder") from error
    for key in keys:
        if run.get(key) != other.get(key):
            raise OutputError(
                f"'{folder}' holds another run: its {key} is {_short(other.get(key))}, this run's is {_short(run.get(key))}; "
                f"choose another folder, or remove that one{_MENDS.get(key, '')}"
            )


def _short(value: Any) -> str:
    """A setting as JSON, cut after 120 characters."""
    return shortened(json.dumps(value), 120)
