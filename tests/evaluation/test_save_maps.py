"""Maps as files: what they hold is what `explain` and `score` say, and nothing is overwritten in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

import xaieval
from xaieval.config.protocol import Protocol
from xaieval.data import Preprocessing
from xaieval.errors import DataError, OutputError, TargetError, UsageError
from xaieval.masking import filling, mask, occlude

PREPARE = Preprocessing(16, 16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
MEAN, STD = (torch.tensor(numbers).view(3, 1, 1) for numbers in (PREPARE.mean, PREPARE.std))
PIXELS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))
BATCH = {"image": (PIXELS - MEAN) / STD, "label": torch.tensor([0, 2, 1]), "id": ["a/x.jpg", "a/x.png", "b"]}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 3),
    ).eval()  # fmt: skip


def _save(model: nn.Module, folder: Path, loader: Any = (BATCH,), **choices: Any) -> pd.DataFrame:
    given = {"methods": ["gradcam"], "preprocessing": PREPARE, "progress": False, **choices}
    return xaieval.save_maps(model, loader, ["1", "3"], output_dir=folder, **given)


def _picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("saved") / "maps"
    halves = [{key: value[part] for key, value in BATCH.items()} for part in (slice(0, 2), slice(2, 3))]
    kinds = ["overlay", "map", "masked", "raw", "image"]
    table = _save(
        model, folder, halves, methods=["gradcam", "edges"], protocol=Protocol(masking="top", fill="blur"), kinds=kinds,
        alpha=0.3, classes=["cat", "dog", "cow"],
    )  # fmt: skip
    return folder, table


def test_arrays_and_pictures_are_those_of_explain_at_the_size_of_the_image(model, saved):
    folder, table = saved
    protocol = Protocol(masking="top", fill="blur")
    images = BATCH["image"]
    maps = xaieval.explain(model, images, ["1", "3"], ["gradcam", "edges"], protocol=protocol)
    assert len(table) == 3 * 3
    for row in table.to_dict("records"):
        number = BATCH["id"].index(row["image_id"])
        found = maps[row["layer"], row["method"]][number]
        stored = np.load(folder / row["map"])
        assert (stored.dtype, stored.shape) == (np.float32, (16, 16))
        np.testing.assert_allclose(stored, found.numpy(), atol=1e-6)
        raw = np.load(folder / row["raw"])
        np.testing.assert_allclose((raw - raw.min()) / max(np.ptp(raw), 1e-12), stored, atol=1e-5)
        over = xaieval.overlay(images[number], found, 0.3, preprocessing=PREPARE).astype(int)
        assert np.abs(_picture(folder / row["overlay"]) - over).max() <= 1
        kept = mask(found[None], protocol)
        masked = occlude(images[number : number + 1], kept, filling(images[number : number + 1], protocol)(kept))[0]
        assert np.abs(_picture(folder / row["image"]) - 255 * PIXELS[number].permute(1, 2, 0).numpy()).max() <= 0.6
        expected = 255 * (masked * STD + MEAN).clamp(0, 1).permute(1, 2, 0).numpy()
        assert np.abs(_picture(folder / row["masked"]) - expected).max() <= 0.6


def test_the_table_has_the_rows_of_a_run_with_the_names_of_classes_and_is_the_csv_file(model, saved):
    folder, table = saved
    protocol = Protocol(masking="top", fill="blur")
    rows = xaieval.score(model, [BATCH], ["1", "3"], ["gradcam", "edges"], protocol=protocol, fast=False, progress=False).rows
    pd.testing.assert_frame_equal(table[list(rows)], rows, atol=1e-4)
    names = dict(enumerate(("cat", "dog", "cow")))
    for column in ("label", "predicted", "target"):
        assert table[f"{column}_name"].tolist() == [names[number] for number in table[column]]
    stored = pd.read_csv(folder / "maps.csv")
    assert list(stored) == list(table)
    assert stored["masked"].tolist() == table["masked"].tolist()


def test_the_names_that_a_model_knows_are_in_the_table_if_they_are_those_of_its_classes(model, tmp_path):
    one = {key: value[:1] for key, value in BATCH.items()}
    for names, expected in (({0: "cat", 1: "dog", 2: "cow"}, "cat"), ({0: "cat", 1: "dog"}, None)):
        model.names = names
        [row] = _save(model, tmp_path / str(len(names)), [one], kinds=["map"]).iloc[:1].to_dict("records")
        assert row.get("label_name") == expected
    del model.names


def test_files_are_named_by_image_layer_and_method_and_listed_all(saved):
    folder, table = saved
    # Two images would have the same name without their endings.
    assert table["overlay"].iloc[0] == "a--x/1--gradcam--overlay.png"
    places = {Path(path).parts[0] for path in table["overlay"]}
    assert len(places) == 3
    assert {"a--x", "b"} < places
    listed = {path for kind in ("overlay", "map", "masked", "raw", "image") for path in table[kind]}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == listed | {"maps.csv", "manifest.json"}


def test_the_manifest_says_what_the_files_hold(saved):
    manifest = json.loads((saved[0] / "manifest.json").read_text())
    assert manifest["complete"]
    assert "in [0, 1]" in manifest["maps"]["files"]["map"]
    assert "in no fixed range" in manifest["maps"]["files"]["raw"]
    assert manifest["run"]["maps.alpha"] == 0.3
    assert manifest["run"]["protocol.fill"] == "blur"


def test_the_figure_has_text_that_names_layers_methods_image_and_class(model, tmp_path):
    one = {key: value[:1] for key, value in BATCH.items()}
    table = _save(model, tmp_path, [one], methods=["gradcam", "edges"], kinds=["map"], figure="svg", classes=["cat"] * 3)
    assert table["figure"].tolist() == ["a--x/figure.svg"] * 3
    svg = (tmp_path / "a--x/figure.svg").read_text()
    for text in ("gradcam", "edges", "input", "1", "3", f"a/x.jpg, cat ({table['confidence'].iloc[0]:.3f})"):
        assert f"<!-- {text} -->" in svg


def test_the_same_call_may_write_again_and_another_one_may_not(model, tmp_path):
    _save(model, tmp_path / "maps")
    _save(model, tmp_path / "maps")
    with pytest.raises(OutputError, match=r"holds another run: its maps.alpha is 0.5, this run's is 0.9"):
        _save(model, tmp_path / "maps", alpha=0.9)
    before = _picture(tmp_path / "maps/b/1--gradcam--overlay.png")
    _save(model, tmp_path / "maps", alpha=0.9, overwrite=True)
    assert (_picture(tmp_path / "maps/b/1--gradcam--overlay.png") != before).any()


def test_folders_of_other_things_are_refused(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds other files; choose an empty folder, or write into this one all the same"):
        _save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    run = tmp_path / "run"
    xaieval.score(model, [BATCH], ["1"], output_dir=run, progress=False)
    with pytest.raises(OutputError, match="holds the rows of a run; choose another folder"):
        _save(model, run, overwrite=True)


def test_images_that_cannot_be_read_or_have_no_target_have_rows_without_files(model, tmp_path):
    batch = BATCH | {"label": torch.tensor([1, -1, 1]), "failed": [("bad", 2, "it is damaged")]}
    table = _save(model, tmp_path / "maps", [batch], target="label")
    by_image = table.groupby("image_id")
    assert by_image["status"].first().to_dict() == {"a/x.jpg": "ok", "a/x.png": "no_target", "b": "ok", "bad": "unreadable"}
    assert by_image["overlay"].count().to_dict() == {"a/x.jpg": 2, "a/x.png": 0, "b": 2, "bad": 0}
    assert len(list((tmp_path / "maps").glob("*/*--map.npy"))) == 4
    assert json.loads((tmp_path / "maps/manifest.json").read_text())["unreadable"] == [{"id": "bad", "reason": "it is damaged"}]


def test_each_class_that_an_image_shows_has_maps_of_its_own(model, tmp_path):
    shown = BATCH | {"label": torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 1]])}
    table = _save(model, tmp_path / "maps", [shown], target="each", kinds=["map"])
    assert table["image_id"].unique().tolist() == ["a/x.jpg@0", "a/x.jpg@2", "a/x.png@1", "b@0", "b@1", "b@2"]
    assert table["map"].nunique() == 12


def test_bands_keep_their_black_and_white_when_they_are_masked(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = 1000 * torch.rand(1, 5, 16, 16)
    binary = Protocol(masking="top_binary", keep_percent=50, fill="mean")
    [row] = xaieval.save_maps(
        network, images, "1", output_dir=tmp_path / "maps", bands=(3, 2, 1), protocol=binary, alpha=0.0, progress=False
    ).to_dict("records")
    image, masked = (_picture(tmp_path / "maps" / row[kind]) for kind in ("overlay", "masked"))
    kept = (image == masked).all(axis=2)
    assert 0.5 <= kept.mean() < 0.6  # what is kept has the colours that it had


def test_volumes_are_drawn_as_slices_and_stored_whole(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    [row] = xaieval.save_maps(
        network, torch.rand(1, 1, 6, 8, 10), "1", output_dir=tmp_path / "maps", figure="png", progress=False
    ).to_dict("records")
    assert np.load(tmp_path / "maps" / row["map"]).shape == (6, 8, 10)
    assert _picture(tmp_path / "maps" / row["overlay"]).shape == (8, 10 + 1 + 10 + 1 + 8, 3)  # [8, 10], [6, 10] and [6, 8]
    assert (tmp_path / "maps" / row["figure"]).is_file()


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"kinds": ["overlays"]}, UsageError, "no kind of file 'overlays'; did you mean 'overlay'"),
        ({"kinds": "overlay"}, UsageError, "kinds is a list of kinds of files, such as ['overlay']"),
        ({"figure": "pdff"}, UsageError, "no format of figures 'pdff'; did you mean 'pdf'"),
        ({"alpha": 1.5}, UsageError, "alpha is in [0, 1], got 1.5"),
        ({"colours": "infrno"}, UsageError, "matplotlib has no colour map 'infrno'"),
        ({"classes": ["cat", "dog"]}, UsageError, "classes= is a list of names, one for each of the model's 3 classes"),
        ({"classes": "cat"}, UsageError, "classes= is a list of names"),
        ({"preprocessing": None}, DataError, "images are in [0, 1]; these are in ["),
        ({"max_images": 0}, UsageError, "max_images is at least 1, got 0"),
        ({"target": [0, 1, 2]}, TargetError, "target= has 3 classes, one per image"),
        ({"target": "label", "loader": [BATCH["image"]]}, TargetError, "target 'label' needs labels"),
        ({"devise": "cpu"}, UsageError, "save_maps() takes no 'devise'; did you mean 'device'"),
    ],
)
def test_what_cannot_work_is_one_clear_error_and_leaves_no_folder(model, tmp_path, choices, error, message):
    with pytest.raises(error) as caught:
        _save(model, tmp_path / "maps", **choices)
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.rglob("*.png"))


def test_the_model_comes_back_as_it_was(model, tmp_path):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _save(model, tmp_path / "maps")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()
