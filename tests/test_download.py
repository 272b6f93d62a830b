"""The download of UC Merced, from a local archive in place of the real one."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from xaieval.data import Preprocessing, images, load_data, ucmerced
from xaieval.errors import DataError

PREPARE = Preprocessing(8, 8)
CLASSES = ["airplane", *(f"class{number:02d}" for number in range(20))]


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An archive laid out like the real one, published under its own checksum."""
    picture = tmp_path / "picture.tif"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(picture)
    path = tmp_path / "source" / "archive.zip"  # served on this machine
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        for name in CLASSES:
            file.write(picture, f"UCMerced_LandUse/Images/{name}/{name}00.tif")
    monkeypatch.setattr(images, "UCMERCED_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=path.parent)) as server:
        monkeypatch.setattr(images, "UCMERCED_URL", f"http://127.0.0.1:{server.server_port}/archive.zip")
        Thread(target=server.serve_forever, daemon=True).start()
        yield path
        server.shutdown()


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
    monkeypatch.setattr(images, "UCMERCED_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"is not the published archive \(SHA-256 [0-9a-f]{16}\.\.\.\); it was removed"):
        ucmerced(tmp_path / "data", PREPARE, download=True)
    assert not list((tmp_path / "data").iterdir())


def test_a_download_that_fails_says_what_to_do(archive, tmp_path):
    archive.unlink()
    with pytest.raises(DataError, match=r"cannot download UC Merced from http://127.*; give a folder that has it"):
        ucmerced(tmp_path / "data", PREPARE, download=True)


def test_without_the_switch_nothing_is_fetched(archive, tmp_path):
    with pytest.raises(
        DataError, match=r"no folder '.*data'; give the one that holds UC Merced, or have it downloaded by --download"
    ):
        load_data(f"ucmerced:{tmp_path / 'data'}", PREPARE, 4)
    assert load_data(f"ucmerced:{tmp_path / 'data'}", PREPARE, 4, download=True).classes == CLASSES


def test_the_published_archive_is_the_one_of_torchgeo_and_tensorflow_datasets():
    assert images.UCMERCED_URL == "https://huggingface.co/datasets/torchgeo/ucmerced/resolve/main/UCMerced_LandUse.zip"
    assert images.UCMERCED_SHA256 == "06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb"
