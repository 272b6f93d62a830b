"""The command `score` on oblong images, images of several bands, and folders with other files; and its pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from xaieval.cli import main


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in an empty working directory: its status, and what it printed on stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())

    def run(*arguments: str) -> tuple[int, str, str]:
        status = 0
        try:
            main([*arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return (status, *capsys.readouterr())

    return run


def _model(channels: int) -> list[str]:
    """The options of a model of that many channels, with weights from a file."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", in_chans=channels, num_classes=2).state_dict(), "weights.safetensors")
    arguments = {"in_chans": channels, "num_classes": 2}
    named = [word for name, value in arguments.items() for word in (f"--model-args.{name}", str(value))]
    return ["--model", "timm:test_resnet", "--weights", "weights.safetensors", *named]


def _score(bench: Callable[..., tuple[int, str, str]], *arguments: str) -> tuple[int, str, str]:
    return bench("score", *arguments, "--layers", "layer4", "--no-progress", "--out", "run")


def _bands(count: int) -> np.ndarray:
    """Bands that rise from left to right, each in another unit."""
    return np.stack([np.tile(np.linspace(0, 10.0**band, 60), (40, 1)) for band in range(count)])


@pytest.mark.parametrize("channels", [2, 13])
def test_bands_of_a_folder_are_scored_and_drawn(bench, channels):
    for number in range(3):
        path = Path("photos", f"class{number % 2}", f"{number}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.roll(_bands(channels), 5 * number, axis=2))
    options = [*_model(channels), "--data", "folder:photos", "--image-size", "32,48"]
    status, out, err = _score(bench, *options, "--mean", "10", "--std", "20")
    assert (status, err) == (0, "")
    assert "maps.png" in out
    assert Path("run/maps.png").is_file()
    assert len(pd.read_parquet("run/rows.parquet")) == 3
    status, out, err = bench("report", "run")
    assert (status, "no maps" in out) == (0, False)


def test_bands_of_unknown_normalisation_are_refused_word_for_word(bench):
    status, _, err = _score(bench, *_model(13), "--data", "folder:photos")
    assert (status, err) == (
        2,
        "xaieval-bench: the model takes images of 13 channels, whose normalisation is not known; give --mean and --std with 13 "
        "numbers each, or with one number for all channels (--mean 0 --std 1 for none)\n",
    )


def test_arrays_of_one_band_need_their_normalisation_too(bench):
    Path("photos").mkdir()
    np.save("photos/1.npy", _bands(1)[0])
    status, _, err = _score(bench, *_model(1), "--data", "folder:photos", "--image-size", "32")
    assert (status, "takes images of 1 channels from arrays, whose normalisation is not known" in err) == (2, True)
    assert _score(bench, *_model(1), "--data", "folder:photos", "--image-size", "32", "--mean", "0", "--std", "1")[0] == 0


def test_a_picture_that_cannot_be_drawn_does_not_end_a_run(bench):
    Path("manybands.py").write_text("import torch\ndef make():\n    return [torch.rand(2, 13, 32, 48) * 9]\n")
    status, out, err = _score(bench, *_model(13), "--data", "manybands:make", "--bands", "3,2,40")
    assert status == 0
    assert err == "xaieval-bench: no maps.png: bands are three channels from 0 to 12, or one for grey; got 3, 2, 40\n"
    assert "written to run: rows.parquet, summary.csv, manifest.json\n" in out
    status, out, err = _score(bench, *_model(13), "--data", "manybands:make", "--bands", "3,2,1")
    assert (status, err) == (0, "")
    assert Path("run/maps.png").is_file()


@pytest.mark.parametrize("channels", [1, 3])
def test_oblong_pictures_are_scored_and_drawn_and_other_files_counted(bench, channels):
    Path("photos").mkdir()
    for number in range(2):
        Image.fromarray((_bands(1)[0] * 255).astype(np.uint8)).save(f"photos/{number}.PGM", "PPM")
    Path("photos/notes.txt").write_text("no image")
    status, out, err = _score(bench, *_model(channels), "--data", "folder:photos", "--image-size", "32,48")
    assert (status, err) == (0, "xaieval-bench: folder:photos: left out: 1 .txt\n")
    assert json.loads(Path("run/manifest.json").read_text())["data"]["left_out"] == {".txt": 1}
    assert Path("run/maps.png").is_file()
    status, out, err = bench("layers", "timm:test_resnet", "--image-size", "32,48")
    assert "timm:test_resnet at 32 x 48 pixels" in out


def test_a_size_is_one_side_or_two(bench, tmp_path):
    Path("run.toml").write_text('data = "scenes"\nmax-images = 2\nimage-size = [32, 48]\n')
    options = [*_model(3), "--data", "scenes", "--max-images", "2"]
    for name, words, expected in (
        ("one", [*options, "--image-size", "32"], 32),
        ("two", [*options, "--image-size", "32,48"], [32, 48]),
        ("file", ["run.toml", *_model(3)], [32, 48]),
    ):
        assert bench("score", *words, "--layers", "layer4", "--no-progress", "--out", name)[0] == 0
        assert json.loads(Path(name, "manifest.json").read_text())["options"]["image_size"] == expected
    status, _, err = _score(bench, *options, "--image-size", "1,2,3")
    assert status == 2
    assert "--image-size takes one side, or height and width, such as 96,128; got (1, 2, 3)\n" in err


def test_an_experiment_needs_classes(bench):
    Path("photos").mkdir()
    Image.new("RGB", (40, 40)).save("photos/1.png")
    status, _, err = bench("fal", "--data", "folder:photos", "--backbone", "test_resnet", "--out", "run")
    assert (status, err) == (2, "xaieval-bench: the experiment trains classifiers, and 'folder:photos' has no class folders\n")


def test_tiles_of_another_size_are_resized_only_if_it_is_asked_for(bench):
    Path("own.py").write_text(
        "import timm\ndef make():\n    return timm.create_model('test_resnet', in_chans=13, num_classes=2)\n"
    )
    _model(13)  # which writes the weights
    Path("photos").mkdir()
    values = np.random.default_rng(0).random((13, 40, 40), dtype=np.float32)
    values[:, :, :8] = -9999
    np.save("photos/1.npy", values)
    options = [
        "--model",
        "own.py:make",
        "--weights",
        "weights.safetensors",
        "--data",
        "folder:photos",
        "--mean",
        "0",
        "--std",
        "1",
    ]
    for refused in (_score(bench, *options), bench("check", *options)):
        assert (refused[0], refused[2]) == (
            2,
            "xaieval-bench: the tiles have 40 x 40 pixels ('1.npy'), and the model's images 224 x 224 by default; give "
            "--image-size 40 to score the tiles as they are, or the size that the model was trained on, to which they are "
            "resized\n",
        )
    status, out, _ = _score(bench, *options, "--image-size", "40")
    assert (status, "--nodata [pixels_without_data]" in out) == (0, True)
    filled = [*options, "--image-size", "40", "--nodata", "-9999"]
    assert _score(bench, *filled)[0] == 2  # another run than the one in the folder
    status, out, _ = bench("check", *filled)
    assert (status, "pixels_without_data" in out) == (0, False)
