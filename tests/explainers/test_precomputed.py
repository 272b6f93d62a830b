"""Maps from files: the names that are searched, what is read, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import xaieval
from xaieval.cli import main
from xaieval.errors import DataError, ExplainerError
from xaieval.explainers import Context, Precomputed, resolve_methods


def _model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval()


def _context(ids: list[str]) -> Context:
    images = torch.rand(len(ids), 3, 8, 8)
    return Context(_model(), images, torch.zeros(len(ids), dtype=torch.long), None, ids)


def _array(seed: int, shape: tuple[int, ...] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ["airplane/airplane00.jpg.npy", "airplane/airplane00.npy"])
def test_an_array_is_found_by_the_id_with_and_without_its_suffix(tmp_path, name):
    (tmp_path / "airplane").mkdir()
    np.save(tmp_path / name, _array(0).astype(np.float64))
    (found,) = Precomputed(tmp_path)(_context(["airplane/airplane00.jpg"]))
    np.testing.assert_array_equal(found.numpy(), _array(0))


def test_the_whole_id_comes_before_the_one_without_suffix_and_arrays_before_pictures(tmp_path):
    np.save(tmp_path / "a.jpg.npy", np.full((2, 2), 1.0))
    np.save(tmp_path / "a.npy", np.full((2, 2), 2.0))
    Image.fromarray(np.full((2, 2), 255, dtype=np.uint8)).save(tmp_path / "b.png")
    np.save(tmp_path / "b.npy", np.full((2, 2), 3.0))
    found = Precomputed(tmp_path)(_context(["a.jpg", "b.jpg"]))
    assert found[:, 0, 0].tolist() == [1, 3]


def test_an_id_with_dots_keeps_all_but_its_suffix(tmp_path):
    np.save(tmp_path / "scene.v2.npy", np.ones((2, 2)))
    assert Precomputed(tmp_path)(_context(["scene.v2.jpg"])).tolist() == [[[1, 1], [1, 1]]]


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_grey_pictures_become_numbers_from_zero_to_one(tmp_path, dtype, white):
    values = np.array([[0, white // 3], [white // 5, white]], dtype=dtype)
    Image.fromarray(values).save(tmp_path / "a.png")
    (found,) = Precomputed(tmp_path)(_context(["a"]))
    np.testing.assert_allclose(found.numpy(), values / white, rtol=1e-6)


def test_black_and_white_pictures_are_grey_too(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert Precomputed(tmp_path)(_context(["a"])).tolist() == [[[1, 0]]]


def test_maps_of_one_size_keep_it_and_others_are_brought_to_the_images_size(tmp_path):
    np.save(tmp_path / "a.npy", _array(0, (3, 5)))
    np.save(tmp_path / "b.npy", _array(1, (3, 5)))
    np.save(tmp_path / "c.npy", _array(2, (4, 4)))
    np.save(tmp_path / "d.npy", _array(3))
    assert Precomputed(tmp_path)(_context(["a", "b"])).shape == (2, 3, 5)
    found = Precomputed(tmp_path)(_context(["a", "c", "d"]))
    assert found.shape == (3, 8, 8)
    expected = torch.nn.functional.interpolate(torch.from_numpy(_array(2, (4, 4)))[None, None], (8, 8), mode="bilinear")
    torch.testing.assert_close(found[1], expected[0, 0])
    np.testing.assert_array_equal(found[2].numpy(), _array(3))


def test_an_image_without_a_map_is_a_row_that_failed(tmp_path):
    np.save(tmp_path / "0.npy", _array(0))
    np.save(tmp_path / "2.npy", _array(2))
    scores = xaieval.score(_model(), [torch.rand(3, 3, 8, 8)], methods=[Precomputed(tmp_path)], progress=False)
    assert scores.rows["status"].tolist() == ["ok", "nan_map", "ok"]
    assert scores.summary()["n_failed"].tolist() == [1]


def test_a_single_image_without_a_map_may_be_one_among_many(tmp_path):
    np.save(tmp_path / "0.npy", _array(0))
    batches = [torch.rand(1, 3, 8, 8) for _ in range(2)]
    scores = xaieval.score(_model(), batches, methods=[Precomputed(tmp_path)], progress=False)
    assert scores.rows["status"].tolist() == ["ok", "nan_map"]


def test_no_map_at_all_is_an_error_that_names_the_first_file(tmp_path):
    with pytest.raises(DataError) as caught:
        Precomputed(tmp_path)(_context(["a/b.jpg"]))
    expected = tmp_path / "a" / "b.jpg.npy"
    assert str(caught.value) == (f"no map in '{tmp_path}' for any of 1 images; the first file looked for was '{expected}'")
    np.save(tmp_path / "other.npy", _array(0))
    with pytest.raises(DataError, match="for any of 2 images"):
        Precomputed(tmp_path)(_context(["a", "b"]))


@pytest.mark.parametrize("image_id", ["../secret", "a/../../secret", "/secret", "..", "a\\..\\..\\secret", ""])
def test_ids_do_not_lead_out_of_the_folder(tmp_path, image_id):
    folder = tmp_path / "maps"
    folder.mkdir()
    np.save(tmp_path / "secret.npy", _array(0))
    np.save(folder / "a.npy", _array(0))
    with pytest.raises(DataError, match="leads out of the folder of the maps"):
        Precomputed(folder)(_context(["a", image_id]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((2, 2, 3)), r"holds float64 \[2, 2, 3\]; a map is two-dimensional, real numbers"),
        (np.ones((0, 2)), r"holds float64 \[0, 2\]"),
        (np.ones((2, 2), dtype=complex), r"holds complex128 \[2, 2\]"),
        (np.array([[None]]), "cannot be read as an array"),  # would run code
    ],
)
def test_arrays_that_are_no_maps_are_refused(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        Precomputed(tmp_path)(_context(["a"]))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    (tmp_path / "c.npy").write_bytes(b"nothing")
    for name, message in (
        ("a", "mode RGB; a map is grey"),
        ("b", "cannot be read as an image"),
        ("c", "cannot be read as an array"),
    ):
        with pytest.raises(DataError, match=message):
            Precomputed(tmp_path)(_context([name]))
    with pytest.raises(DataError, match="no folder"):
        Precomputed(tmp_path / "nowhere")


def test_the_method_has_the_folders_name_by_its_spec(tmp_path):
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    found = resolve_methods([f"precomputed:{tmp_path}/ours", f"precomputed:{tmp_path}/theirs/"])
    assert [method.name for method in found] == ["precomputed:ours", "precomputed:theirs"]
    with pytest.raises(DataError, match="no folder"):
        resolve_methods("precomputed:nowhere")
    with pytest.raises(ExplainerError, match="each name once"):
        resolve_methods([f"precomputed:{tmp_path}/ours"] * 2)


@pytest.mark.slow
def test_maps_that_the_tool_made_itself_score_alike_from_files(tmp_path, capsys):
    """On the command line, through the ids of the built-in data."""
    folder, out = tmp_path / "maps", tmp_path / "run"
    folder.mkdir()
    common = ["--max-images", "4", "--no-progress", "--layers", "fpn[p5]"]
    main(["score", "--methods", "gradcam", "--out", str(tmp_path / "first"), *common])
    import pandas as pd

    rows = pd.read_parquet(tmp_path / "first" / "rows.parquet")
    for image_id, maps in _maps(rows["image_id"].tolist()).items():
        (folder / f"{image_id}.npy").parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{image_id}.npy", maps.numpy())
    main(["score", "--methods", f"precomputed:{folder}", "--out", str(out), *common])
    again = pd.read_parquet(out / "rows.parquet")
    assert again["method"].unique().tolist() == ["precomputed:maps"]
    np.testing.assert_allclose(again["masked_confidence"], rows["masked_confidence"], atol=1e-3)
    capsys.readouterr()


def _maps(ids: list[str]) -> dict[str, Tensor]:
    """Grad-CAM of the built-in model on the images of the command."""
    from xaieval.data import load_data
    from xaieval.models import load_model

    loaded = load_model("xaieval:fpn-scenes")
    (batch,) = load_data("scenes", loaded.preprocessing, batch_size=4, max_images=4).loader
    maps = xaieval.explain(loaded.model, batch["image"], "fpn[p5]")["fpn[p5]"]
    assert list(batch["id"]) == ids
    return dict(zip(ids, maps, strict=True))
