"""The command `explain`: from files of images to files of maps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import xaieval
from xaieval.cli import main
from xaieval.data import Preprocessing, scenes
from xaieval.models import load_model

Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Run the command at layer fpn[p5] in a folder with pictures: its status, and what it printed on stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    drawn = scenes(Preprocessing(128, 128), size=3)
    (tmp_path / "photos/deep").mkdir(parents=True)
    for number, place in enumerate(("photos/a.png", "photos/deep/b.png", "photos/c.png")):
        drawn.read(number).save(tmp_path / place)

    def run(*arguments: str, layers: str = "fpn[p5]") -> tuple[int, str, str]:
        status = 0
        try:
            main(["explain", *arguments, "--layers", layers, "--no-progress"])
        except SystemExit as stop:
            status = int(stop.code or 0)
        return (status, *capsys.readouterr())

    return run


def _table(folder: str = "maps") -> pd.DataFrame:
    return pd.read_csv(Path(folder) / "maps.csv")


def test_one_picture_has_its_files_with_the_map_of_the_model_and_the_name_of_its_class(bench):
    status, out, err = bench("photos/a.png")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("written to maps: 1 overlay, 1 map, 1 masked image, maps.csv, manifest.json")
    [row] = _table().to_dict("records")
    assert (row["image_id"], row["layer"], row["predicted_name"]) == ("a.png", "fpn[p5]", "disc")
    assert f"{row['confidence']:.3f}" in out
    loaded = load_model("xaieval:fpn-scenes")
    image = loaded.preprocessing(Image.open("photos/a.png"))[None]
    expected = xaieval.explain(loaded.model, image, "fpn[p5]")["fpn[p5]"][0]
    np.testing.assert_allclose(np.load(Path("maps") / row["map"]), expected.numpy(), atol=1e-5)
    over = xaieval.overlay(image[0], expected, preprocessing=loaded.preprocessing)
    assert np.abs(np.asarray(Image.open(Path("maps") / row["overlay"])).astype(int) - over).max() <= 1


@pytest.mark.parametrize(
    ("places", "ids"),
    [
        (["photos/c.png", "photos/deep/*.png"], ["c.png", "deep/b.png"]),
        (["photos", "--max-images", "2"], ["a.png", "c.png"]),
    ],
)
def test_files_folders_and_patterns_name_images(bench, places, ids):
    status, _, _ = bench(*places, "--kinds", "map")
    assert status == 0
    assert _table()["image_id"].tolist() == ids


def test_options_choose_files_figures_and_methods(bench):
    status, out, _ = bench(
        "photos/a.png", "--methods", "gradcam,edges", "--figure", "pdf", "--kinds", "overlay,raw", "--out", "m", "--json"
    )
    assert status == 0
    document = json.loads(out)
    assert document["files"] == {"overlay": 2, "raw": 2, "figure": 1}
    assert [(row["layer"], row["method"]) for row in document["maps"]] == [("fpn[p5]", "gradcam"), ("input", "edges")]
    assert Path("m/a/figure.pdf").read_bytes().startswith(b"%PDF")
    assert not list(Path("m").rglob("*masked*"))


def test_the_options_of_models_protocols_and_targets_are_those_of_score(bench):
    status, _, err = bench(
        "photos/a.png",
        "--image-size",
        "96",
        "--target",
        "3",
        "--masking",
        "top_binary",
        "--keep-percent",
        "25",
        "--fill",
        "mean",
    )
    assert (status, err) == (0, "")
    [row] = _table().to_dict("records")
    assert row["target"] == 3
    assert row["mask_area"] == pytest.approx(0.25, abs=1e-3)
    assert np.load(Path("maps") / row["map"]).shape == (96, 96)


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_explained(bench):
    Path("photos/bad.jpg").write_text("no picture")
    status, out, err = bench("photos")
    assert status == 0
    assert err == "xaieval-bench: bad.jpg could not be read; 'maps/manifest.json' says why\n"
    assert "3 overlays" in out
    assert _table()["status"].tolist() == ["ok", "ok", "ok", "unreadable"]


def test_without_images_a_few_of_the_data_are_explained(bench):
    status, out, _ = bench("--max-images", "2", "--kinds", "map")
    assert status == 0
    assert "2 maps" in out
    assert _table()["image_id"].tolist() == ["test/00000", "test/00001"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nothing.png"], 2, "there is no image at 'nothing.png'; a file, a folder or a pattern"),
        (["photos/a.png", "--data", "folder:photos"], 2, "images are those of the files ('photos/a.png') or those of --data"),
        (["photos/a.png", "--target", "label"], 2, "target 'label' needs labels"),
        (["photos/a.png", "--kinds", "mask"], 2, "no kind of file 'mask'; did you mean 'masked'"),
        (["photos/a.png", "--out", "photos"], 2, "'photos' holds other files; choose an empty folder"),
        (["photos/a.png", "--bands", "7"], 2, "bands are three channels from 0 to 2, or one for grey; got 7"),
        (["photos/a.png", "--methods", "gradcm"], 2, "no method 'gradcm'; did you mean 'gradcam'"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(bench, arguments, status, message):
    found, out, err = bench(*arguments)
    assert (found, out) == (status, "")
    assert err.startswith(f"xaieval-bench: {message}")
    assert err.count("\n") == 1
    assert not Path("maps").exists()
    assert sorted(path.name for path in Path("photos").iterdir()) == ["a.png", "c.png", "deep"]


def test_a_template_of_prompts_needs_the_classes_that_files_do_not_name(bench):
    status, _, err = bench("photos/a.png", "--model", "openclip:ViT-B-32", "--prompts", "a photo of a {}", "--random-weights")
    assert status == 2
    assert err.startswith("xaieval-bench: 'files of images' does not name classes to fill in 'a photo of a {}'")


def test_bands_of_files_are_drawn_in_the_channels_that_are_asked_for(bench):
    torch.manual_seed(0)
    np.save("scene.npy", np.random.default_rng(0).random((5, 60, 60), dtype=np.float32) * 3000)
    arguments = [
        "--model",
        "timm:test_resnet",
        "--random-weights",
        "--model-args.in_chans",
        "5",
        "--model-args.num_classes",
        "3",
    ]
    status, _, err = bench(
        "scene.npy", *arguments, "--mean", "1500", "--std", "900", "--bands", "4,2,0", "--image-size", "60", layers="layer4"
    )
    assert (status, err) == (0, "")
    [row] = _table().to_dict("records")
    assert np.asarray(Image.open(Path("maps") / row["overlay"])).shape == (60, 60, 3)
