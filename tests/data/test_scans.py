"""Scans in NIfTI files: which way axes lead, intensities, sizes, spacings and masks, and files that say too little."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from nibabel import orientations
from torch import Tensor

from xaieval.cli import main
from xaieval.data import Preprocessing, ScanPreprocessing, load_data, scan_folder
from xaieval.data.batches import read_batches
from xaieval.data.scans import read_scan
from xaieval.errors import DataError

SIZE = (4, 5, 6)  # to the right, to the front, up
AS_IN_FILE = ScanPreprocessing("file")


def scan(number: int = 0) -> np.ndarray:
    return np.random.default_rng(number).normal(40, 300, SIZE).astype(np.float32)


def save(path: Path, values: np.ndarray, codes: str = "RAS", spacing: float = 1.0) -> Path:
    """Store values, given with axes to the right, front and up, with other axes; the file's affine matrix says which."""
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    stored = orientations.apply_orientation(values, turn)
    affine = np.diag([spacing] * 3 + [1.0]) @ orientations.inv_ornt_aff(turn, values.shape[:3])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(stored, affine).to_filename(path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR", "IPL", "ASL"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_axes_of_a_scan_lead_to_the_right_to_the_front_and_up(tmp_path, codes, ending):
    path = save(tmp_path / f"a{ending}", scan(), codes)
    assert (nibabel.load(path).shape == SIZE) == (codes in ("RAS", "LPS"))
    np.testing.assert_array_equal(read_scan(path)[0], scan())


def test_a_fourth_axis_holds_the_channels_and_stored_integers_are_scaled_as_the_file_says(tmp_path):
    values = np.stack([scan(0), scan(1)], axis=3)
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.int16)
    image.to_filename(tmp_path / "a.nii.gz")
    found = read_scan(tmp_path / "a.nii.gz")
    assert found.shape == (2, *SIZE)
    np.testing.assert_allclose(found, np.moveaxis(values, 3, 0), atol=0.05)


def test_intensities_are_scaled_as_is_said():
    given = torch.from_numpy(scan())[None].clone()
    given[0, :2] = 0
    values = given.numpy()
    np.testing.assert_array_equal(ScanPreprocessing("file")(given), values)
    np.testing.assert_allclose(ScanPreprocessing((-100, 300))(given), (np.clip(values, -100, 300) + 100) / 400, atol=1e-6)
    np.testing.assert_allclose(ScanPreprocessing("zscore")(given), (values - values.mean()) / values.std(), atol=1e-5)
    body = values[values != 0]
    expected = np.where(values != 0, (values - body.mean()) / body.std(), 0)
    np.testing.assert_allclose(ScanPreprocessing("zscore-nonzero")(given), expected, atol=1e-5)
    two = torch.cat([given, 7 * given + 3])  # each channel by itself
    found = ScanPreprocessing("zscore")(two)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    for way in ("zscore", "zscore-nonzero"):
        assert not ScanPreprocessing(way)(torch.zeros(1, *SIZE)).any(), "of one value"


def test_what_is_larger_is_cropped_to_its_middle_and_what_is_smaller_is_padded_with_its_lowest_value():
    given = torch.arange(120.0).view(1, *SIZE) + 5
    found = ScanPreprocessing("file", size=(2, 5, 9))(given)
    assert torch.equal(found[:, :, :, 1:7], given[:, 1:3])
    assert (found[..., 0] == given.min()).all(), "of the whole scan"
    assert (found[..., 7:] == given.min()).all()
    mask = ScanPreprocessing("file", size=(2, 5, 9)).mask(torch.ones(1, *SIZE))
    assert mask.dtype == torch.bool
    assert mask.nonzero().aminmax(dim=0).min.tolist() == [0, 0, 1]
    assert mask.sum() == 2 * 5 * 6
    assert ScanPreprocessing("file", size=3)(given).shape == (1, 3, 3, 3)


def test_resampling_keeps_where_things_are(tmp_path):
    x, y, z = np.meshgrid(*map(np.arange, (9, 7, 5)), indexing="ij")
    values = (2 * x + 3 * y + 5 * z).astype(np.float32)  # in steps of 2 mm
    found = read_scan(save(tmp_path / "a.nii", values, "LPS", spacing=2.0), (1.0, 2.0, 4.0))[0]
    assert found.shape == (17, 7, 3)
    x, y, z = np.meshgrid(np.arange(17) / 2, np.arange(7), np.arange(3) * 2, indexing="ij")
    np.testing.assert_allclose(found, 2 * x + 3 * y + 5 * z, atol=1e-3)


def folder(root: Path, **spacings: float) -> Path:
    for number, (name, spacing) in enumerate(spacings.items()):
        save(root / ("ill" if number % 2 else "well") / f"{name}.nii.gz", scan(number), spacing=spacing)
    return root


def test_a_folder_of_scans_has_ids_classes_labels_and_masks(tmp_path):
    root = folder(tmp_path / "scans", a=1.0, b=1.0, c=1.0)
    (root / "well" / "notes.txt").write_text("")
    for name in ("well/a", "ill/b", "well/c"):
        mask = np.zeros(SIZE, dtype=np.uint8)
        mask[3, 1, 2] = 2
        save(tmp_path / "masks" / f"{name}.nii.gz", mask, "RAS" if name == "ill/b" else "LPS")
    prepare = ScanPreprocessing((-1000, 1000), size=(4, 4, 6))
    found = scan_folder(root, prepare, masks=tmp_path / "masks")
    assert found.ids == ["ill/b.nii.gz", "well/a.nii.gz", "well/c.nii.gz"]
    assert (found.labels, list(found.classes), found.left_out) == ([0, 1, 1], ["ill", "well"], {".txt": 1})
    [batch] = read_batches(found.loader(3))
    assert batch.images.shape == (3, 1, 4, 4, 6)
    np.testing.assert_allclose(batch.images[0, 0], np.clip(scan(1)[:, :4] / 2000 + 0.5, 0, 1), atol=1e-6)
    assert batch.masks.nonzero().tolist() == [[number, 3, 1, 2] for number in range(3)]
    alone = scan_folder(root / "well", prepare)
    assert (alone.ids, alone.labels) == (["a.nii.gz", "c.nii.gz"], [None, None])


def test_voxels_of_several_sizes_are_refused_until_one_is_given(tmp_path):
    root = folder(tmp_path, a=1.0, b=2.0)
    message = r"voxels of 'ill/b.nii.gz' are 2 x 2 x 2 mm, and those of 'well/a.nii.gz' 1 x 1 x 1 mm; give the size to resample"
    with pytest.raises(DataError, match=message):
        scan_folder(root, AS_IN_FILE)
    [batch] = read_batches(scan_folder(root, ScanPreprocessing("file", size=(4, 5, 6), spacing=1.0)).loader(2))
    assert batch.images.shape == (2, 1, 4, 5, 6)
    scan_folder(folder(tmp_path / "near", a=1.0, b=1.001), AS_IN_FILE)


def test_files_that_cannot_be_read_are_rows_with_the_reason(tmp_path):
    good = save(tmp_path / "a.nii.gz", scan())
    (tmp_path / "b.nii.gz").write_bytes(good.read_bytes()[:200])
    (tmp_path / "c.nii").write_bytes(b"no scan")
    nibabel.Nifti1Image(np.zeros((2, 2, 2, 1, 3), dtype=np.float32), np.eye(4)).to_filename(tmp_path / "d.nii")
    lost = nibabel.Nifti1Image(scan(), None)
    lost.header["sform_code"], lost.header["qform_code"] = 0, 0
    lost.to_filename(tmp_path / "e.nii")
    huge = nibabel.Nifti1Image(np.zeros((1, 1, 1), dtype=np.uint8), np.eye(4))
    huge.to_filename(tmp_path / "f.nii")
    head = bytearray((tmp_path / "f.nii").read_bytes())
    head[42:48] = np.array([30000, 30000, 30000], dtype="<i2").tobytes()  # dim[1] to dim[3]
    (tmp_path / "f.nii").write_bytes(head)
    [batch] = read_batches(scan_folder(tmp_path, AS_IN_FILE).loader(6))
    assert batch.ids == ["a.nii.gz"]
    reasons = {name[0]: reason for name, _, reason in batch.failed}
    assert list(reasons) == ["b", "c", "d", "e", "f"]
    assert "2 x 2 x 2 x 1 x 3 voxels" in reasons["d"]
    assert "does not say where its axes lead" in reasons["e"]
    assert "30000 x 30000 x 30000 voxels" in reasons["f"]


def test_a_mask_that_lies_elsewhere_makes_its_scan_unreadable(tmp_path):
    save(tmp_path / "scans" / "a.nii", scan())
    save(tmp_path / "masks" / "a.nii", np.ones(SIZE, dtype=np.uint8), spacing=2.0)
    [batch] = read_batches(scan_folder(tmp_path / "scans", AS_IN_FILE, masks=tmp_path / "masks").loader(1))
    assert "its mask 'a.nii' has another size, spacing or place in the body" in batch.failed[0][2]
    save(tmp_path / "scans" / "b.nii", scan())
    with pytest.raises(DataError, match=r"no mask for 1 of 2 scans; the first, 'b.nii', needs"):
        scan_folder(tmp_path / "scans", AS_IN_FILE, masks=tmp_path / "masks")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"intensity": "z-score"}, r"no intensity 'z-score'; did you mean 'zscore'"),
        ({"intensity": (400, -100)}, r"a window \(low, high\), or one of file, zscore, zscore-nonzero; got \(400, -100\)"),
        ({"intensity": "file", "size": (4, 5)}, r"size is one positive number or three; got \(4, 5\)"),
        ({"intensity": "file", "spacing": 0}, r"spacing is one positive number or three; got 0"),
    ],
)
def test_choices_out_of_range_are_refused(choices, message):
    with pytest.raises(DataError, match=message):
        ScanPreprocessing(**choices)


def test_scans_and_pictures_are_not_mixed_up(tmp_path):
    folder(tmp_path, a=1.0)
    with pytest.raises(DataError, match=r"by a ScanPreprocessing.* which says how .*; got a Preprocessing"):
        load_data(f"nifti:{tmp_path}", Preprocessing(8, 8), 1)
    with pytest.raises(DataError, match=r"a ScanPreprocessing is for 'nifti:DIR', but the data is 'scenes'"):
        load_data("scenes", AS_IN_FILE, 1)
    with pytest.raises(DataError, match=r"mosaics are made of images, not of scans; the data is 'mosaics:nifti:x'"):
        load_data("mosaics:nifti:x", AS_IN_FILE, 1)
    with pytest.raises(DataError, match="boxes and annotations are for images"):
        load_data(f"nifti:{tmp_path}", AS_IN_FILE, 1, boxes="boxes.json")


def test_black_is_known_of_a_window_alone():
    assert (ScanPreprocessing((-100, 300)).mean, ScanPreprocessing("zscore").mean) == ((0.0,), None)


MODEL = """
import torch
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool3d(1),
                               torch.nn.Flatten(), torch.nn.Linear(4, 2))
"""


def test_the_command_line_scores_a_folder_of_scans_and_reports_on_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_scans.py").write_text(MODEL)
    folder(tmp_path / "scans", a=1.0, b=1.0, c=1.0)
    for path in (tmp_path / "scans").rglob("*.nii.gz"):
        save(tmp_path / "masks" / path.relative_to(tmp_path / "scans"), np.eye(4, 5)[..., None] * np.ones(6, dtype=np.float32))
    words = ["--model", "of_scans:network", "--data", "nifti:scans", "--masks", "masks", "--layers", "0", "--no-progress"]
    prepared = ["--scan-args.intensity=-1000,1000", "--scan-args.size", "8"]
    main(["score", *words, *prepared, "--metrics", "average_drop,pointing_game", "--out", "run"])
    rows = pd.read_parquet(tmp_path / "run" / "rows.parquet")
    assert rows["image_id"].tolist() == ["ill/b.nii.gz", "well/a.nii.gz", "well/c.nii.gz"]
    assert rows[["average_drop", "pointing_game"]].notna().all(axis=None)
    assert (tmp_path / "run" / "maps.png").is_file()
    main(["report", "run", "--import-code"])
    assert 'class="kinds strips"' in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    for wrong, message in (
        (["--scan-args.intensity", "zscore", "--mean", "0"], "--mean is for images"),
        (["--scan-args.size", "8"], "scans are prepared as --scan-args.intensity says, .*; it is missing"),
        (["--scan-args.windows", "8"], "no --scan-args.windows; "),
    ):
        with pytest.raises(SystemExit):
            main(["score", *words, *wrong, "--out", "other"])
        assert re.search(message, " ".join(capsys.readouterr().err.split()))


def _all_codes() -> list[str]:
    return ["".join(codes) for order in itertools.permutations(("RL", "AP", "SI")) for codes in itertools.product(*order)]


def test_all_48_orientations_are_read_as_one(tmp_path):
    found: list[Tensor] = [read_scan(save(tmp_path / f"{codes}.nii", scan(), codes)) for codes in _all_codes()]
    assert len(found) == 48
    assert all(torch.equal(one, found[0]) for one in found)
