"""Pictures from unknown sources: each is read correctly or becomes a row with a reason, without crashes, hangs or full memory.

The long form is `python benchmarks/fuzz_images.py`.
"""

from __future__ import annotations

import os
import random
import re
import struct
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

import xaieval
from tests.hostile_images import BOMBS, FAMILIES, NAMES, Case, draw, encode, gradient, plant
from xaieval.cli import main
from xaieval.data import Pictures, Preprocessing, decoding, huggingface, image_folder, pairs
from xaieval.data.decoding import read_picture, readable_name, to_rgb
from xaieval.data.samples import sample_of
from xaieval.errors import DataError, RunError

SMALL = Preprocessing(image_size=32, resize=72, mean=(0.5,) * 3, std=(0.5,) * 3)

# Pillow speaks of what it finds odd in a damaged file before it gives up on it, or goes on.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def _folder(root: Path, cases: list[Case]) -> dict[str, Case]:
    """Each file in its own folder; the cases by their expected ids."""
    return {readable_name(f"class/{n}/{case.name}"): case for n, case in enumerate(cases) if plant(case, root / f"class/{n}")}


def _check_pixels(pictures: Pictures, index: int, case: Case) -> None:
    sample = pictures[index]
    if isinstance(case.pixels, str):
        assert "image" not in sample, case.kind
        assert re.match(r"\w+: .+", sample["failed"])
    elif case.pixels is not None:
        assert "image" in sample, (case.kind, sample)
        read = np.asarray(pictures.read(index)).astype(int)
        assert read.shape == case.pixels.shape
        assert np.abs(read - case.pixels).max() <= case.atol, case.kind
    elif "image" in sample:
        assert sample["image"].shape == (3, 32, 32)
        assert sample["image"].isfinite().all()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__.strip("_"))
def test_each_family_is_read_right_or_says_why_not(tmp_path, family):
    rng = random.Random(3)
    cases = _folder(tmp_path, [family(rng) for _ in range(12)])
    pictures = image_folder(tmp_path, SMALL)
    assert set(pictures.ids) == set(cases)
    for index, name in enumerate(pictures.ids):
        _check_pixels(pictures, index, cases[name])


def test_a_run_has_a_row_for_every_file_that_looks_like_an_image(tmp_path):
    cases = _folder(tmp_path / "data", draw(300, seed=1))
    loader = image_folder(tmp_path / "data", SMALL).loader(32)
    scores = xaieval.score(_model(), loader, "1", progress=False, output_dir=tmp_path / "run")
    status = xaieval.Scores.load(tmp_path / "run").rows.set_index("image_id")["status"]
    assert sorted(status.index) == sorted(cases)
    for name, case in cases.items():
        expected = {"unreadable"} if isinstance(case.pixels, str) else {"ok", "constant_map"}
        assert status[name] in (expected if case.pixels is not None else expected | {"unreadable"}), case.kind
    reasons = {entry["id"]: entry["reason"] for entry in scores.manifest["unreadable"]}
    assert set(reasons) == set(status.index[status == "unreadable"])
    assert 0.3 < len(reasons) / len(cases) < 0.8, "some of both"


# ---- what is refused, and how that is said


def _reason(root: Path, name: str, content: bytes | None, kind: str = "") -> str:
    plant(Case(kind, name, content, "unreadable"), root / "class")
    return str(image_folder(root, SMALL)[0]["failed"])


@pytest.mark.parametrize("ending", BOMBS)
@pytest.mark.parametrize("side", [60_000, 8001])
def test_bombs_are_refused_by_the_size_that_they_declare(tmp_path, ending, side):
    reason = _reason(tmp_path, "x.png", BOMBS[ending](side))
    allowed = [rf"ValueError: it has {side} x {side} pixels, more than the limit of 64000000; make it smaller"]
    allowed += [r"DecompressionBombError: .*"] * (side == 60_000)  # Pillow's own limit is higher, but looked at before ours
    assert any(re.fullmatch(pattern, reason) for pattern in allowed), reason


def test_a_picture_at_the_limit_is_read_and_one_above_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_PIXELS", 48 * 32)
    plant(Case("", "whole.png", encode(Image.new("RGB", (48, 32)), "png"), None), tmp_path / "class")
    assert "image" in image_folder(tmp_path, SMALL)[0]
    monkeypatch.setattr(decoding, "MOST_PIXELS", 48 * 32 - 1)
    assert image_folder(tmp_path, SMALL)[0]["failed"].startswith(
        "ValueError: it has 48 x 32 pixels, more than the limit of 1535; "
    )


def test_thin_pictures_depend_on_what_they_would_become():
    thin = Image.new("RGB", (3000, 1))
    with pytest.raises(ValueError, match=r"^it is 3000 x 1 pixels, too long and thin to be resized; crop it$"):
        Preprocessing(224, 256)(thin)
    with pytest.raises(ValueError, match=r"too long and thin"):
        Preprocessing(224, 256).mask(thin.convert("L"))
    assert Preprocessing(16, 16)(thin).shape == (3, 16, 16)
    assert Preprocessing(224, 256, squash=True)(thin).shape == (3, 224, 224)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = plant(Case("", "x.png", encode(Image.new("RGB", (9, 9)), "png"), None), tmp_path / "class")
    os.truncate(path, 2**40)  # takes no room on the disk
    assert image_folder(tmp_path, SMALL)[0]["failed"] == (
        "ValueError: it has 1099511627776 bytes, more than the limit of 536870912"
    )


@pytest.mark.parametrize(
    ("name", "content", "kind", "reason"),
    [
        ("x.png", None, "fifo", r"ValueError: it is not a regular file"),
        ("x.png", None, "socket", r"ValueError: it is not a regular file"),
        ("x.png", None, "device", r"ValueError: it is not a regular file"),
        ("x.png", None, "loop", r"OSError: .*Too many levels of symbolic links.*"),
        ("x.png", None, "broken link", r"FileNotFoundError: .*"),
        (
            "x.png",
            b"",
            "",
            r"UnidentifiedImageError: it is none of AVIF, BMP, GIF, JPEG, JPEG2000, PNG, PPM, TIFF, WEBP, or it is damaged",
        ),
        ("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "", r"UnidentifiedImageError: it is none of .*"),
        ("x.ppm", b"P3 1 1 255 1 2 3", "", r"ValueError: it is a plain-text PPM, which takes too long to read; save it .*"),
    ],
)
def test_reasons_are_clear(tmp_path, name, content, kind, reason):
    found = _reason(tmp_path, name, content, kind)
    assert re.fullmatch(reason, found), found


def _scans(more: int) -> Case:
    """A JPEG with its last scan repeated."""
    content = encode(Image.new("L", (2000, 2000), 90), "jpg", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return Case("", "x.jpg", content[:-2] + last * more + content[-2:], None)


def test_a_jpeg_may_have_many_scans_but_not_too_many(tmp_path):
    plant(_scans(94), tmp_path / "class")  # and the six that it has
    assert "image" in image_folder(tmp_path, SMALL)[0]
    plant(_scans(95), tmp_path / "class")
    assert image_folder(tmp_path, SMALL)[0]["failed"] == (
        "ValueError: it is a JPEG with more than 100 scans, which takes too long to read; save it again"
    )


def test_numbers_without_a_white_are_refused_word_for_word(tmp_path):
    fractions = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    large = Image.fromarray(np.arange(12, dtype=np.int32).reshape(3, 4) * 1000)
    for name, picture in (("a.tif", fractions), ("b.tif", large)):
        plant(Case("", name, encode(picture, "tif"), None), tmp_path / "class")
    pictures = image_folder(tmp_path, SMALL)
    assert [pictures[index]["failed"] for index in range(2)] == [
        "ValueError: its values are floating-point numbers with no known white; save it with 8 or 16 bits",
        "ValueError: its values range from 0 to 11000, but white is 255; save it with 8 or 16 bits",
    ]


def test_twelve_bits_are_scaled_by_their_own_white(tmp_path):
    # A TIFF of 2 x 1 pixels, 4095 and 2048, which take three bytes together.
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHLHH", tag, 3, 1, value, 0) for tag, value in tags)
    content = b"II*\0" + struct.pack("<L", 12) + b"\xff\xf8\x00\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    plant(Case("", "x.tif", content, None), tmp_path / "class")
    read = np.asarray(image_folder(tmp_path, SMALL).read(0))
    assert read[0, :, 0].tolist() == [255, 127]


def test_what_no_list_of_errors_has_is_a_reason_too(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding.ImageOps, "exif_transpose", _raise_zero_division)
    assert _reason(tmp_path, "x.png", encode(Image.new("RGB", (9, 9)), "png")) == "OSError: ZeroDivisionError: as decoders do"


def _raise_zero_division(*_: object, **__: object) -> None:
    raise ZeroDivisionError("as decoders do")


def _peak() -> int:
    """The peak memory of this process since the last reset, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is set back as Linux does it")
def test_bombs_take_neither_memory_nor_time(tmp_path):
    for number, (ending, bomb) in enumerate(BOMBS.items()):
        plant(Case("", f"{ending}{number}.png", bomb(60_000), None), tmp_path / "class")
    plant(Case("", "thin.png", encode(Image.new("RGB", (1, 60_000)), "png"), None), tmp_path / "class")
    plant(Case("", "slow.ppm", b"P2\n50 50\n" + b"#\n" * 10**6, None), tmp_path / "class")
    plant(_scans(10**5), tmp_path / "class")
    pictures = image_folder(tmp_path, Preprocessing(224, 256))
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _peak(), time.process_time()
    assert not [name for index, name in enumerate(pictures.ids) if "image" in pictures[index]]
    assert _peak() - before < 100
    assert time.process_time() - start < 5


# ---- folders


def test_folders_that_go_round_in_circles_are_walked_once(tmp_path):
    plant(Case("", "one.png", encode(Image.new("RGB", (9, 9)), "png"), None), tmp_path / "class/in")
    (tmp_path / "class/in/up").symlink_to("..")
    (tmp_path / "class/in/x.png").symlink_to(tmp_path)
    (tmp_path / "class/folder.png").mkdir()
    assert image_folder(tmp_path, SMALL).ids == ["class/in/one.png"]


def test_a_class_may_be_a_link_to_a_folder_and_an_image_one_to_a_file(tmp_path):
    elsewhere = plant(Case("", "one.png", encode(Image.new("RGB", (9, 9)), "png"), None), tmp_path / "elsewhere/in")
    (tmp_path / "data/class").mkdir(parents=True)
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/class/two.png").symlink_to(elsewhere)
    pictures = image_folder(tmp_path / "data", SMALL)
    assert pictures.ids == ["class/two.png", "linked/in/one.png"]
    assert all("image" in pictures[index] for index in range(2))


def test_a_folder_that_cannot_be_read_is_refused_rather_than_left_out(tmp_path, monkeypatch):
    for name in ("class", "class/locked"):
        plant(Case("", "one.png", encode(Image.new("RGB", (9, 9)), "png"), None), tmp_path / name)
    scan = os.scandir

    def scandir(path: Any) -> Any:  # root may read everything, so that permissions would not do
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"^cannot read the folder '.*locked': Permission denied; its images would be missing$"):
        image_folder(tmp_path, SMALL)


# ---- names


@pytest.mark.slow
def test_odd_names_survive_to_the_rows_and_nothing_is_printed_raw(tmp_path, capsys):
    root, picture = tmp_path / "data", encode(Image.fromarray(gradient(random.Random(0))), "png")
    folders = ["$x^{$", "a\nb", "<b>", "cafe\udce9"]
    for number, name in enumerate(NAMES):
        plant(Case("", name, picture, None), root / folders[number % len(folders)])
    wanted = sorted(readable_name(f"{folders[number % len(folders)]}/{name}") for number, name in enumerate(NAMES))
    (root / folders[1] / "bro\nken\x1b[2J.png").write_bytes(b"")
    broken = "a\nb/bro\nken\x1b[2J.png"
    main(["score", "--data", f"folder:{root}", "--out", str(tmp_path / "run"), "--layers", "fpn[p5]", "--no-progress"])
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out
    rows = pd.read_parquet(tmp_path / "run/rows.parquet").set_index("image_id")
    assert sorted(rows.index) == sorted([*wanted, broken])
    assert rows.loc[broken, "status"] == "unreadable"
    summary = pd.read_csv(tmp_path / "run/summary.csv")
    assert summary[["n_images", "n_failed"]].to_numpy().tolist() == [[len(NAMES), 1]]
    assert (tmp_path / "run/maps.png").exists()


def test_errors_name_files_without_control_characters(tmp_path):
    plant(Case("", "a\n\x1b[2Jb.png", b"", None), tmp_path / "class")
    with pytest.raises(RunError) as error:
        xaieval.score(_model(), image_folder(tmp_path, SMALL).loader(1), "0", progress=False)
    assert "the first, 'class/a\\n\\x1b[2Jb.png': UnidentifiedImageError: " in str(error.value)


def test_two_names_that_read_the_same_are_not_mixed_up(tmp_path):
    for name in ("\udcff.png", "\\xff.png"):
        plant(Case("", name, encode(Image.new("RGB", (9, 9)), "png"), None), tmp_path / "class")
    with pytest.raises(DataError, match=r"^two images have the id"):
        xaieval.score(_model(), image_folder(tmp_path, SMALL).loader(2), "0", progress=False)


# ---- masks, and data sets of others


def test_hostile_masks_are_read_or_make_their_picture_unreadable(tmp_path):
    cases = [case for case in draw(100, seed=2) if case.content is not None and case.kind != "name"]
    for number, case in enumerate(cases):
        plant(Case("", f"{number}.png", encode(Image.new("RGB", (48, 32)), "png"), None), tmp_path / "images/class")
        plant(Case("", f"{number}.png", case.content, None), tmp_path / "masks/class")
    pictures = image_folder(tmp_path / "images", SMALL, masks=tmp_path / "masks")
    for index, name in enumerate(pictures.ids):
        case, sample = cases[int(Path(name).stem)], pictures[index]
        if "failed" in sample:
            sizes = case.pixels is None or isinstance(case.pixels, str) or case.pixels.shape[:2] != (32, 48)
            assert sizes or case.kind == "32 bit", (case.kind, sample)
        else:
            assert not isinstance(case.pixels, str) or case.kind == "32 bit"
            assert sample["mask"].shape == (32, 32)


def test_a_mask_that_is_a_pipe_is_missing(tmp_path):
    plant(Case("", "1.png", encode(Image.new("RGB", (9, 9)), "png"), None), tmp_path / "images/class")
    plant(Case("fifo", "1.png", None, None), tmp_path / "masks/class")
    with pytest.raises(DataError, match=r"^no mask for 1 of 1 images"):
        image_folder(tmp_path / "images", SMALL, masks=tmp_path / "masks")


def _lazily(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


def _as_torchvision(content: bytes) -> Image.Image:
    with Image.open(BytesIO(content)) as picture:
        return picture.convert("RGB")


class Opened:
    """A data set that opens its pictures itself."""

    def __init__(self, contents: list[bytes], load: Callable[[bytes], Image.Image]) -> None:
        self.contents, self.load = contents, load

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if index >= len(self):
            raise IndexError
        return self.load(self.contents[index]), 0


@pytest.mark.parametrize("load", [_lazily, _as_torchvision])
def test_data_sets_that_open_pictures_themselves_give_rows_too(load):
    left_out = ["plain text", "many scans"]  # which take long where others open them
    left_out += [f"bomb {ending}" for ending in BOMBS if load is _as_torchvision]
    cases = [case for case in draw(150, seed=4) if case.content is not None and case.kind not in left_out]
    loader = pairs(Opened([case.content for case in cases], load), SMALL, batch_size=16)
    batches = list(loader)
    failed = {int(name): reason for batch in batches for name, _, reason in batch["failed"]}
    assert sum(len(batch["id"]) for batch in batches) + len(failed) == len(cases)
    assert all("image" in batch for batch in batches if batch["id"])
    for number, case in enumerate(cases):
        if case.kind.startswith("bomb"):
            assert number in failed


def test_undecoded_columns_are_read_as_files_are(tmp_path):
    cases = [case for case in draw(100, seed=5) if case.kind != "name"]
    paths = [plant(case, tmp_path / f"class/{number}") for number, case in enumerate(cases)]
    pictures = image_folder(tmp_path, SMALL)
    by_id = {name: pictures[index] for index, name in enumerate(pictures.ids)}
    for kept in ([case.content for case in cases], [None] * len(cases)):
        columns = zip(paths, kept, strict=True)
        rows = [{"image": {"bytes": content, "path": str(path)}, "label": 0} for path, content in columns]
        found = list(huggingface(iter(rows), SMALL, batch_size=1))
        for batch, path in zip(found, paths, strict=True):
            sample = by_id[path.relative_to(tmp_path).as_posix()]
            assert bool(batch["failed"]) == ("failed" in sample)
            if "image" in sample:
                assert torch.equal(batch["image"][0], sample["image"])


def test_a_picture_that_is_handed_over_is_turned_upright_and_left_alone():
    content = encode(Image.fromarray(gradient(random.Random(0))), "png", exif=Image.Exif())
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open(BytesIO(encode(Image.open(BytesIO(content)), "png", exif=exif)))
    (batch,) = pairs([(picture, 0)], Preprocessing(32, 32), batch_size=1)
    upright = Image.open(BytesIO(content)).rotate(-90, expand=True).convert("RGB")
    assert torch.equal(batch["image"][0], Preprocessing(32, 32)(upright))
    assert picture.size == (48, 32)


def test_ultralytics_that_is_imported_changes_nothing(tmp_path, monkeypatch):
    """Its function in the place of `Image.open` asks for another package where Pillow does not know a picture."""
    (tmp_path / "x.png").write_bytes(b"nothing")
    pillow = Image.open

    def opened(file: Any, *args: Any, **kwargs: Any) -> Image.Image:
        try:
            return pillow(file, *args, **kwargs)
        except UnidentifiedImageError:
            raise ModuleNotFoundError("No module named 'pi_heif'")  # noqa: B904  # as an import inside of the handler does

    monkeypatch.setattr(Image, "open", opened)
    sample = sample_of("x", None, lambda: {"image": Image.open(tmp_path / "x.png")})  # as data sets of others do
    assert sample["failed"].startswith("UnidentifiedImageError: cannot identify image file")
    with pytest.raises(ModuleNotFoundError, match="nothing to do with pictures"):
        sample_of("x", None, lambda: __import__("nothing to do with pictures"))
    monkeypatch.setitem(sys.modules, "ultralytics.utils.patches", SimpleNamespace(_image_open=pillow))
    with pytest.raises(UnidentifiedImageError, match="it is none of AVIF"):
        read_picture(tmp_path / "x.png", to_rgb)
