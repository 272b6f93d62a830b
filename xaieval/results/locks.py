"""Locks that the operating system releases when a process dies, so that none has ever to be removed by hand."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from xaieval.errors import OutputError

__all__ = ["Lock", "is_held", "turn_in"]

LOOKS = 0.02  # seconds between two tries of a process that waits


class Lock:
    """A file that one process at a time can hold, or one thread of it. It is there only while it is held.

    Args:
        path: The file; its folder exists.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> one, other = Lock(path), Lock(path)
        >>> one.take(), other.take()
        (True, False)
        >>> one.free()
        >>> other.take()
        True
        >>> other.free()
        >>> path.exists()
        False
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self) -> bool:
        """Take the lock if nobody holds it; returns whether it is held now.

        Raises:
            OutputError: The file system has no locks.
            OSError: The file cannot be written.
        """
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _locked(file, self.path):
                os.close(file)
                return False
            if _is_at(file, self.path):
                self._file = file
                _held.add(file)
            else:  # whoever held it has removed it: the next one would find another file
                os.close(file)
        return True

    def free(self) -> None:
        """Give the lock back, and remove its file."""
        if self._file is not None:
            file, self._file = self._file, None
            _held.discard(file)
            with suppress(OSError):  # the folder may be gone; Windows removes no open file
                self.path.unlink(missing_ok=True)
            with suppress(OSError):
                _unlock(file)
            os.close(file)

    def __enter__(self) -> Self:
        """Wait for the lock, and take it."""
        while not self.take():
            time.sleep(LOOKS)
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


def is_held(path: Path) -> bool:
    """Whether a process holds a file; what a dead one has left is removed."""
    lock = Lock(path)
    if not lock.take():
        return True
    lock.free()
    return False


def turn_in(folder: Path, name: str) -> Lock:
    """Wait for a lock in a folder that processes make when they come and remove when they leave; it is held then.

    Args:
        folder: The folder, created if needed.
        name: Of the lock's file.

    Raises:
        OutputError: The file system has no locks.
        OSError: The folder or the file cannot be written.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / name)
        with suppress(FileNotFoundError):  # the last one that left has removed the folder
            return lock.__enter__()


_held: set[int] = set()


def _close_in_child() -> None:
    """A forked process, such as a worker of a loader, must not hold locks that its parent has: it may outlive it."""
    for file in _held:
        with suppress(OSError):
            os.close(file)
    _held.clear()


if sys.platform == "win32":  # pragma: no cover  # no machine to try it on
    import msvcrt

    def _locked(file: int, path: Path) -> bool:
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file: int) -> None:
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

    def _is_at(file: int, path: Path) -> bool:
        return path.exists()

else:
    import errno
    import fcntl

    os.register_at_fork(after_in_child=_close_in_child)

    def _locked(file: int, path: Path) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            os.close(file)
            raise OutputError(
                f"the file system of '{path.parent}' has no locks ({error.strerror}), by which processes share a run; choose a "
                "folder elsewhere, or have it mounted with locks (Lustre: -o flock)"
            ) from error
        return True

    def _unlock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)

    def _is_at(file: int, path: Path) -> bool:
        """Whether an open file is still the one of this name."""
        mine = os.fstat(file)
        try:
            there = path.stat()
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
