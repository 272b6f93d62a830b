"""An archive from the network: fetched in as many tries as it takes, checked, and unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import stat
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PureWindowsPath
from urllib.error import HTTPError

from xaieval.errors import DataError

__all__ = ["fetch", "unpack"]

TRIES, PAUSE = 5, 1.0  # seconds before the second try, doubled before each further one
TIMEOUT = 60.0  # seconds without a byte, after which a connection counts as broken
CHUNK = 2**18
LATER = (408, 416, 429)  # answers that another try may change; 416: what is there is no beginning of what the server has


def fetch(url: str, target: Path, sha256: str, most: int) -> Path:
    """Download a file, unless it is there already; a broken download goes on where it broke off, also in a later call.

    What is there so far is kept as `NAME.part`, and `NAME.part.of` says which version of the file it belongs to. If the server
    has another version by then, the download begins anew.

    Args:
        url: of the file.
        target: where it goes.
        sha256: of the file, in hexadecimal digits.
        most: bytes that it has at most.

    Returns:
        The target.

    Raises:
        DataError: it cannot be downloaded, or it is another file, which is removed then.
    """
    part = target.with_name(f"{target.name}.part")
    if target.exists() and _sha256(target) == sha256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists() or _sha256(part) != sha256:  # it is whole if the process was killed just then
            _download(url, part, most)
        found = _sha256(part)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"cannot download {target.name} from {url}: {error}; the same command goes on from what came so far, or give a "
            "folder that has it"
        ) from error
    _version(part).unlink(missing_ok=True)
    if found != sha256:
        part.unlink()
        raise DataError(f"what came from {url} is not the published archive (SHA-256 {found[:16]}...); it was removed")
    return part.replace(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path, most: int) -> None:
    """Try until the file is whole, as long as there is hope."""
    for number in range(TRIES):
        try:
            _go_on(url, part, most)
            break
        except (OSError, HTTPException) as error:
            final = isinstance(error, HTTPError) and error.code < 500 and error.code not in LATER
            if final or number == TRIES - 1:
                raise
            time.sleep(PAUSE * 2**number)


def _go_on(url: str, part: Path, most: int) -> None:
    """One try, which adds to what is there or begins anew.

    Raises:
        OSError: the connection failed or broke.
        DataError: too much comes.
    """
    version = _version(part).read_text() if part.exists() and _version(part).exists() else ""
    start = part.stat().st_size if version else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # the address is the package's own
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310  # likewise
            if answer.status == 206 and not _continues(answer, start, version):
                part.unlink()
                raise ConnectionError("the server sent a part of something else")
            _write(answer, part, start if answer.status == 206 else 0, most)
    except HTTPError as error:
        if error.code == 416:
            part.unlink()
        raise


def _continues(answer: HTTPResponse, start: int, version: str) -> bool:
    """Whether the answer is the rest of the same version."""
    return _version_of(answer) == version and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _write(answer: HTTPResponse, part: Path, start: int, most: int) -> None:
    length = answer.headers.get("Content-Length")
    total = None if length is None else start + int(length)
    with part.open("ab" if start else "wb") as file, _progress(total) as advance:
        if not start:
            _version(part).write_text(_version_of(answer))
        advance(start)
        size = start
        while chunk := answer.read1(CHUNK):  # what is there, so that nothing is lost if no more comes
            size += len(chunk)
            if size > most:
                raise DataError(f"what comes from {answer.url} is larger than the published archive; give a folder that has it")
            file.write(chunk)
            advance(len(chunk))
    if total is not None and size < total:
        raise ConnectionError(f"the connection broke after {size} of {total} bytes")


def _version(part: Path) -> Path:
    """The file that says of which version a part is."""
    return part.with_name(f"{part.name}.of")


def _version_of(answer: HTTPResponse) -> str:
    """What tells the server's versions of a file apart; empty if nothing does, so that nothing is gone on with."""
    tag: str = answer.headers.get("ETag", "")
    return answer.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar of bytes on stderr, where that is a terminal; gives the function that moves it on."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("downloading", total=total)
        yield lambda count: bar.advance(task, count)


def unpack(archive: Path, folder: Path, most: int) -> None:
    """Unpack a zip file that has one folder; that folder appears when it is whole.

    Args:
        archive: the file.
        folder: where its folder goes, under the name that it has in the archive.
        most: bytes that it has at most when it is unpacked.

    Raises:
        DataError: the archive is damaged or too large, would write elsewhere, or holds something other than files and folders;
            or the folder cannot be written.
    """
    staging = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed
        with zipfile.ZipFile(archive) as content:
            _check_members(content.infolist(), archive, most)
            content.extractall(staging)
        (staging / folder.name).rename(folder)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise DataError(f"cannot unpack '{archive}' to '{folder}': {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_members(members: list[zipfile.ZipInfo], archive: Path, most: int) -> None:
    """Look at all of them before the first is written."""
    for member in members:
        name = PureWindowsPath(member.filename)  # which knows both kinds of slashes, and drives
        if name.anchor or ".." in name.parts:
            raise DataError(f"'{archive}' would write outside of its folder: {member.filename!r}; it is not unpacked")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"'{archive}' holds a link or a device: {member.filename!r}; it is not unpacked")
    size = sum(member.file_size for member in members)
    if size > most:
        raise DataError(f"'{archive}' has {size} bytes unpacked, more than the {most} that are expected; it is not unpacked")
