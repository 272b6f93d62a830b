"""The download of UC Merced from a local archive, and errors of servers and archives."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import socket
import stat
import struct
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from xaieval.data import Preprocessing, download, load_data, uc_merced, ucmerced
from xaieval.data.download import fetch, unpack
from xaieval.errors import DataError

PREPARE = Preprocessing(8, 8)
CLASSES = ["airplane", *(f"class{number:02d}" for number in range(20))]


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without logging."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _serving(handler: Any) -> Iterator[str]:
    """The address of a local server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # connections that break are what is tested
        Thread(target=partial(server.serve_forever, poll_interval=0.01), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An archive with the layout of the real one, and its own checksum."""
    picture = tmp_path / "picture.tif"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(picture)
    path = tmp_path / "source" / "archive.zip"  # served on this machine
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        for name in CLASSES:
            file.write(picture, f"UCMerced_LandUse/Images/{name}/{name}00.tif")
    monkeypatch.setattr(uc_merced, "UCMERCED_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with _serving(partial(Quiet, directory=path.parent)) as address:
        monkeypatch.setattr(uc_merced, "UCMERCED_URL", f"{address}/archive.zip")
        yield path


def test_the_archive_is_fetched_checked_unpacked_and_read(archive, tmp_path):
    root = tmp_path / "data"
    pictures = ucmerced(root, PREPARE, download=True)
    assert len(pictures) == 21
    assert pictures.ids[0] == "airplane/airplane00.tif"
    assert pictures[0]["image"].shape == (3, 8, 8)
    assert not list(root.glob("*.zip")), "the archive is not kept"


def test_what_is_there_is_not_fetched_again(archive, tmp_path):
    ucmerced(tmp_path / "data", PREPARE, download=True)
    archive.unlink()
    assert len(ucmerced(tmp_path / "data", PREPARE, download=True)) == 21
    assert len(ucmerced(tmp_path / "data", PREPARE)) == 21
    assert len(ucmerced(tmp_path / "data/UCMerced_LandUse", PREPARE, download=True)) == 21


def test_another_archive_is_refused_and_removed(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(uc_merced, "UCMERCED_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"is not the published archive \(SHA-256 [0-9a-f]{16}\.\.\.\); it was removed"):
        ucmerced(tmp_path / "data", PREPARE, download=True)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".UCMerced_LandUse.lock"]


def test_a_download_that_fails_says_what_to_do(archive, tmp_path):
    archive.unlink()
    with pytest.raises(
        DataError, match=r"cannot download UCMerced_LandUse\.zip from http://127.* 404: .*, or give a folder that has it"
    ):
        ucmerced(tmp_path / "data", PREPARE, download=True)


def test_without_the_switch_nothing_is_fetched(archive, tmp_path):
    with pytest.raises(
        DataError, match=r"no folder '.*data'; give the folder that contains UC Merced, or download it with download=True"
    ):
        load_data(f"ucmerced:{tmp_path / 'data'}", PREPARE, 4)
    assert load_data(f"ucmerced:{tmp_path / 'data'}", PREPARE, 4, download=True).classes == CLASSES


def test_the_published_archive_is_the_one_of_torchgeo_and_tensorflow_datasets():
    assert uc_merced.UCMERCED_URL == "https://huggingface.co/datasets/torchgeo/ucmerced/resolve/main/UCMerced_LandUse.zip"
    assert uc_merced.UCMERCED_SHA256 == "06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb"


def test_of_several_processes_one_downloads_and_the_others_wait(archive, tmp_path, monkeypatch):
    fetched = []

    def slow_fetch(*given: Any) -> Path:
        fetched.append(given)
        time.sleep(0.2)
        return fetch(*given)

    monkeypatch.setattr(uc_merced, "fetch", slow_fetch)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: ucmerced(tmp_path / "data", PREPARE, download=True), range(3)))
    assert [len(pictures) for pictures in found] == [21] * 3
    assert len(fetched) == 1


def test_a_folder_that_cannot_be_made_is_refused(archive, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"^cannot download into '.*file': .*; choose another folder$"):
        ucmerced(tmp_path / "file", PREPARE, download=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unpacking_that_was_killed_is_no_data_set_and_is_done_again(archive, tmp_path):
    root = tmp_path / "data"
    left = root / ".UCMerced_LandUse.part/UCMerced_LandUse/Images/airplane/cut.tif"  # as a killed process leaves it
    left.parent.mkdir(parents=True)
    left.write_bytes(b"II*")
    with pytest.raises(DataError, match=r"^no images in "):
        ucmerced(root, PREPARE)
    assert len(ucmerced(root, PREPARE, download=True)) == 21
    assert not left.exists()


def test_an_unpacking_that_is_interrupted_leaves_no_data_set(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "_extract_member", _interrupted_after(3, zipfile.ZipFile._extract_member))
    with pytest.raises(KeyboardInterrupt):
        ucmerced(tmp_path / "data", PREPARE, download=True)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".UCMerced_LandUse.lock", "UCMerced_LandUse.zip"]
    monkeypatch.undo()
    shutil.rmtree(archive.parent)  # what was fetched is not fetched again
    monkeypatch.setattr(uc_merced, "UCMERCED_SHA256", _sha256((tmp_path / "data/UCMerced_LandUse.zip").read_bytes()))
    assert len(ucmerced(tmp_path / "data", PREPARE, download=True)) == 21


def _interrupted_after(count: int, work: Any) -> Any:
    done = []

    def working(*given: Any) -> Any:
        done.append(given)
        if len(done) > count:
            raise KeyboardInterrupt
        return work(*given)

    return working


# ---- servers


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


CONTENT = random.Random(0).randbytes(700_000)
OTHER = random.Random(1).randbytes(650_000)


@dataclass
class Server:
    """What a server has, what it does wrong at each request, and what it was asked.

    A fault is a status; "cut", "reset" or "stall" half way; "ignore" of the range; "shift", a part that begins elsewhere;
    "glue", the rest of what it has now, whatever version was asked for; or "", none.
    """

    content: bytes = CONTENT
    tag: str | None = '"one"'
    faults: list[Any] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    sent: int = 0
    url: str = ""


class Faulty(BaseHTTPRequestHandler):
    """A server that fails on demand."""

    def __init__(self, server: Server, *given: Any) -> None:
        self.told = server
        super().__init__(*given)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        told, wanted = self.told, self.headers["Range"]
        told.ranges.append(wanted)
        fault = told.faults.pop(0) if told.faults else ""
        if isinstance(fault, int):
            self.send_error(fault)
            return
        same = fault == "glue" or self.headers["If-Range"] == told.tag
        start = int(re.findall(r"\d+", wanted)[0]) if wanted and same and fault != "ignore" else 0
        if start >= len(told.content):
            self.send_error(416)
            return
        first = start + 10 if start and fault == "shift" else start
        body = told.content[first:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {first}-{len(told.content) - 1}/{len(told.content)}")
        if told.tag is not None:
            self.send_header("ETag", told.tag)
        self.end_headers()
        if fault in ("cut", "reset", "stall"):
            body = body[: len(body) // 2]
        told.sent += len(body)  # first, since the test goes on once it has the last byte
        self.wfile.write(body)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault == "stall":
            time.sleep(0.6)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    found = Server()
    with _serving(partial(Faulty, found)) as address:
        found.url = f"{address}/file.bin"
        yield found


def _fetched(server: Server, folder: Path, content: bytes = CONTENT) -> bytes:
    return fetch(server.url, folder / "file.bin", _sha256(content), most=10**6).read_bytes()


def test_a_connection_that_is_cut_again_and_again_goes_on_where_it_broke(server, tmp_path):
    server.faults = ["cut", "cut", "cut", "cut"]
    assert _fetched(server, tmp_path) == CONTENT
    size = len(CONTENT)
    starts = [size // 2, size // 2 + size // 4, 612_500, 656_250]
    assert server.ranges == [None, *(f"bytes={start}-" for start in starts)]
    assert server.sent == size, "nothing came twice"
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("fault", ["reset", 500, 503, 429, "ignore", "shift"])
def test_other_faults_are_overcome_too(server, tmp_path, fault):
    server.faults = ["cut", fault]
    assert _fetched(server, tmp_path) == CONTENT


def test_a_server_that_says_nothing_any_more_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.faults = ["stall"]
    assert _fetched(server, tmp_path) == CONTENT
    assert server.ranges == [None, "bytes=350000-"]


def test_after_the_last_try_the_same_command_goes_on_from_what_came(server, tmp_path):
    server.faults = ["cut"] + [500] * 4
    with pytest.raises(
        DataError, match=r"cannot download file\.bin from .*500.*; run the same command again to resume, or give"
    ):
        _fetched(server, tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:350_000]
    assert not (tmp_path / "file.bin").exists()
    assert _fetched(server, tmp_path) == CONTENT
    assert server.ranges[-1] == "bytes=350000-"
    assert server.sent == len(CONTENT)


def test_what_does_not_exist_is_asked_for_once(server, tmp_path):
    server.faults = [404]
    with pytest.raises(DataError, match=r"HTTP Error 404"):
        _fetched(server, tmp_path)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("fault", ["", "glue"], ids=["says so", "glues"])
def test_a_part_of_another_version_is_not_gone_on_with(server, tmp_path, fault):
    server.faults = ["cut"] + [500] * 4
    with pytest.raises(DataError):
        _fetched(server, tmp_path)
    server.content, server.tag, server.faults = OTHER, '"two"', [fault]
    assert _fetched(server, tmp_path, OTHER) == OTHER
    assert server.sent - 350_000 == len(OTHER) + (len(OTHER) - 350_000 if fault else 0)


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_without_a_name_for_the_version_the_download_begins_anew(server, tmp_path, tag):
    server.tag, server.faults = tag, ["cut"]
    assert _fetched(server, tmp_path) == CONTENT
    assert server.ranges == [None, None]


def test_a_part_that_is_longer_than_what_the_server_has_is_dropped(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    (tmp_path / "file.bin.part.of").write_text('"one"')
    assert _fetched(server, tmp_path) == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT) + 4}-", None]


def test_other_content_is_removed_and_not_gone_on_with(server, tmp_path):
    server.content = OTHER
    with pytest.raises(DataError, match=r"is not the published archive \(SHA-256 .*\); it was removed"):
        _fetched(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_whose_bytes_were_changed_is_removed(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    (tmp_path / "file.bin.part.of").write_text('"one"')
    with pytest.raises(DataError, match=r"it was removed"):
        _fetched(server, tmp_path)
    assert _fetched(server, tmp_path) == CONTENT


def test_more_than_is_expected_is_not_taken(server, tmp_path):
    server.content = bytes(1_000_001)
    with pytest.raises(DataError, match=r"is larger than the published archive"):
        _fetched(server, tmp_path)
    assert (tmp_path / "file.bin.part").stat().st_size <= 10**6


def test_a_file_that_is_there_is_taken_only_if_it_is_the_right_one(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT[:5000])
    assert _fetched(server, tmp_path) == CONTENT
    assert _fetched(server, tmp_path) == CONTENT
    assert len(server.ranges) == 1


def test_a_part_that_is_whole_is_not_asked_for_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert _fetched(server, tmp_path) == CONTENT
    assert server.ranges == []


def test_whatever_goes_wrong_the_file_is_the_right_one_or_not_there(server, tmp_path):
    draw = random.Random(0)
    faults = ["cut", "reset", "ignore", "shift", "glue", "", 404, 416, 500]
    outcomes = []
    for number in range(30):
        folder = tmp_path / str(number)
        for version in draw.choices([(CONTENT, '"one"'), (OTHER, '"two"')], k=3):
            server.content, server.tag = version
            server.faults = draw.choices(faults, k=draw.randrange(7))
            try:
                outcomes.append(_fetched(server, folder) == CONTENT)
            except DataError:
                outcomes.append(None)
                assert not (folder / "file.bin").exists()
    assert set(outcomes) == {True, None}
    assert outcomes.count(True) > 30


# ---- archives


def _zip(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data/one.txt", b"1")
        for name, content in members:
            file.writestr(name, content)
    return path


def _special(kind: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("data/special")
    member.create_system, member.external_attr = 3, (kind | 0o777) << 16
    return member


def test_an_archive_is_unpacked_whole(tmp_path):
    unpack(_zip(tmp_path / "a.zip", ("data/in/two.txt", b"22")), tmp_path / "data", most=3)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")) == ["data/in/two.txt", "data/one.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "data"]


@pytest.mark.parametrize(
    "name",
    [
        "../out.txt",
        "data/../../out.txt",
        "/tmp/out.txt",
        "C:\\out.txt",
        "C:out.txt",
        "data\\..\\..\\out.txt",
        "\\\\host\\share\\x",
    ],
)
def test_members_that_leave_the_folder_are_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(DataError, match=r"a\.zip' would write outside its folder: "):
        unpack(_zip(tmp_path / "a.zip", (name, b"x")), tmp_path / "data", most=100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_are_refused_before_anything_is_written(tmp_path, kind):
    with pytest.raises(DataError, match=r"a\.zip' contains a link or a device: 'data/special'; it was not unpacked"):
        unpack(_zip(tmp_path / "a.zip", (_special(kind), b"/etc/passwd")), tmp_path / "data", most=100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_an_archive_that_grows_too_large_is_refused_word_for_word(tmp_path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data/zeros", bytes(10**7))
    with pytest.raises(DataError) as error:
        unpack(archive, tmp_path / "data", most=10**6)
    assert str(error.value) == (f"'{archive}' has 10000000 bytes unpacked, more than the limit of 1000000; it was not unpacked")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_member_that_lies_about_its_size_is_refused(tmp_path):
    content = bytes(10**6)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data/zeros", content)
    lying = archive.read_bytes().replace(struct.pack("<L", len(content)), struct.pack("<L", 10))
    archive.write_bytes(lying)
    with pytest.raises(DataError, match=r"^cannot unpack"):
        unpack(archive, tmp_path / "data", most=100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"^cannot unpack '.*a\.zip' to '.*data': "):
        unpack(tmp_path / "a.zip", tmp_path / "data", most=100)


def test_an_archive_without_the_folder_or_into_one_that_is_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^cannot unpack"):
        unpack(_zip(tmp_path / "a.zip"), tmp_path / "other", most=100)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"^cannot unpack"):
        unpack(tmp_path / "a.zip", tmp_path / "data", most=100)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]
