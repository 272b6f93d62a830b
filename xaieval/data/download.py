"""Download an archive with retries, verify its checksum, and unpack it completely or not at all."""

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

TRIES, PAUSE = 5, 1.0  # seconds before the second try, doubled before each further try
TIMEOUT = 60.0  # seconds without data until a connection counts as broken
CHUNK = 2**18
LATER = (408, 416, 429)  # status codes worth another try; 416 means that the partial file does not match the server's file


def fetch(url: str, target: Path, sha256: str, most: int) -> Path:
    """Download a file unless it exists. A broken download is resumed, also by a later call.

    The partial file is `NAME.part`, and `NAME.part.of` stores the version of the file that it belongs to. If the server has
    another version, the download starts again.

    Args:
        url: The address of the file.
        target: The path to write to.
        sha256: The SHA-256 checksum of the file, in hexadecimal digits.
        most: The largest size in bytes.

    Returns:
        The target.

    Raises:
        DataError: The download failed, or the checksum is wrong; a wrong file is removed.
    """
    part = target.with_name(f"{target.name}.part")
    if target.exists() and _sha256(target) == sha256:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists() or _sha256(part) != sha256:  # it can be complete if the process was killed before the rename
            _download(url, part, most)
        checksum = _sha256(part)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"cannot download {target.name} from {url}: {error}; run the same command again to resume, or give a folder that "
            "has it"
        ) from error
    _version(part).unlink(missing_ok=True)
    if checksum != sha256:
        part.unlink()
        raise DataError(f"the file from {url} is not the published archive (SHA-256 {checksum[:16]}...); it was removed")
    return part.replace(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, part: Path, most: int) -> None:
    """Try again until the file is complete, or an error is final."""
    for number in range(TRIES):
        try:
            _resume(url, part, most)
            break
        except (OSError, HTTPException) as error:
            final = isinstance(error, HTTPError) and error.code < 500 and error.code not in LATER
            if final or number == TRIES - 1:
                raise
            time.sleep(PAUSE * 2**number)


def _resume(url: str, part: Path, most: int) -> None:
    """Make one try, which appends to the partial file or starts again.

    Raises:
        OSError: The connection failed or broke.
        DataError: The file is too large.
    """
    version = _version(part).read_text() if part.exists() and _version(part).exists() else ""
    start = part.stat().st_size if version else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # the address is the package's own
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310  # the address is the package's own
            if answer.status == 206 and not _continues(answer, start, version):
                part.unlink()
                raise ConnectionError("the server sent a part of another file")
            _write(answer, part, start if answer.status == 206 else 0, most)
    except HTTPError as error:
        if error.code == 416:
            part.unlink()
        raise


def _continues(answer: HTTPResponse, start: int, version: str) -> bool:
    """Whether the response is the rest of the same version."""
    return _version_of(answer) == version and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _write(answer: HTTPResponse, part: Path, start: int, most: int) -> None:
    length = answer.headers.get("Content-Length")
    total = None if length is None else start + int(length)
    with part.open("ab" if start else "wb") as file, _progress(total) as advance:
        if not start:
            _version(part).write_text(_version_of(answer))
        advance(start)
        size = start
        while chunk := answer.read1(CHUNK):  # available data, so that nothing is lost if the connection breaks
            size += len(chunk)
            if size > most:
                raise DataError(f"the file from {answer.url} is larger than the published archive; give a folder that has it")
            file.write(chunk)
            advance(len(chunk))
    if total is not None and size < total:
        raise ConnectionError(f"the connection broke after {size} of {total} bytes")


def _version(part: Path) -> Path:
    """The file that stores the version of a partial file."""
    return part.with_name(f"{part.name}.of")


def _version_of(answer: HTTPResponse) -> str:
    """An identifier of the server's version of a file; empty if the server gives none, so that nothing is resumed."""
    tag: str = answer.headers.get("ETag", "")
    return answer.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of bytes if stderr is a terminal; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("downloading", total=total)
        yield lambda count: bar.advance(task, count)


def unpack(archive: Path, folder: Path, most: int) -> None:
    """Unpack a zip file that contains one folder. The folder appears only when it is complete.

    Args:
        archive: The zip file.
        folder: The path of the unpacked folder, with the folder's name in the archive.
        most: The largest unpacked size in bytes.

    Raises:
        DataError: The archive is damaged or too large, would write outside the folder, or contains something other than files
            and folders; or the folder cannot be written.
    """
    staging = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        with zipfile.ZipFile(archive) as content:
            _check_members(content.infolist(), archive, most)
            content.extractall(staging)
        (staging / folder.name).rename(folder)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise DataError(f"cannot unpack '{archive}' to '{folder}': {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_members(members: list[zipfile.ZipInfo], archive: Path, most: int) -> None:
    """Check all members before the first one is written."""
    for member in members:
        name = PureWindowsPath(member.filename)  # which handles both kinds of slashes, and drives
        if name.anchor or ".." in name.parts:
            raise DataError(f"'{archive}' would write outside its folder: {member.filename!r}; it was not unpacked")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"'{archive}' contains a link or a device: {member.filename!r}; it was not unpacked")
    size = sum(member.file_size for member in members)
    if size > most:
        raise DataError(f"'{archive}' has {size} bytes unpacked, more than the limit of {most}; it was not unpacked")
