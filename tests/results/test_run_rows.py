"""A run whose rows stay in their file says the same as one whose rows are in memory."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xaieval import Groups, Scores
from xaieval.analysis.predictions import predictions_of
from xaieval.analysis.summary import summarise
from xaieval.analysis.warnings import find_warnings
from xaieval.cli.tables import print_summary
from xaieval.errors import DataError, OutputError
from xaieval.results import record, row_pieces, run_rows
from xaieval.results.manifest import count_groups, describe_data
from xaieval.results.record import RunRecord
from xaieval.results.row_file import RowFile, RowWriter

METRICS = [
    {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"},
    {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson", "label": "IC %"},
    {"name": "insertion", "higher_is_better": True, "interval": "mean", "label": "insertion"},
]
PAIRS = [("p4", "gradcam"), ("p5", "gradcam"), ("p5", "eigencam"), ("input", "random")]
STATUSES = ["ok", "constant_map", "zero_confidence", "nan_map", "excluded", "unreadable"]


@pytest.fixture(scope="module", autouse=True)
def _every_run_is_large():
    """Rows are read in row groups of a few, pair by pair, and tests take a sample of some images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        for module in (run_rows, record):
            patch.setattr(module, "MOST_ROWS", 0)
        patch.setattr(row_pieces, "PIECE_BYTES", 700)
        yield


def _rows(images: int = 40, groups: int = 0, seed: int = 0, missing: float = 0.1) -> pd.DataFrame:
    """Rows with all statuses, images without a value, and groups of different sizes."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        [(f"n{image % 7}/{image}", *pair) for image in range(images) for pair in PAIRS], columns=["image_id", "layer", "method"]
    )
    of_image = np.arange(len(frame)) // len(PAIRS)
    if groups:
        frame["group"] = pd.Series([f"place {int(np.sqrt(image)) % groups}" for image in of_image], dtype="str")
    frame["label"] = pd.array(rng.integers(0, 9, images)[of_image], dtype="Int64")
    frame["predicted"] = frame["label"].where(rng.random(images)[of_image] < 0.7, 3)
    frame["target"] = frame["predicted"]
    frame["confidence"] = rng.random(images)[of_image]
    frame["masked_confidence"], frame["mask_area"] = rng.random((2, len(frame)))
    frame["average_drop"] = 100 * rng.random(len(frame)) ** 2
    frame["increase_in_confidence"] = 100.0 * (rng.random(len(frame)) < 0.4)
    frame["insertion"] = np.where(rng.random(len(frame)) < missing, np.nan, rng.random(len(frame)))
    frame["status"] = rng.choice(STATUSES, len(frame), p=[0.7, 0.1, 0.05, 0.05, 0.05, 0.05])
    valued = frame["status"].isin(STATUSES[:3])
    frame.loc[~valued, ["average_drop", "increase_in_confidence", "insertion"]] = np.nan
    return frame


def _manifest(rows: pd.DataFrame, **more) -> dict:
    groups = {"groups": {"by": "class", "weights": "images"}} if "group" in rows else {}
    return {"metrics": METRICS, "seed": 3, "controls": ["random"], "complete": True, **groups, **more}


def _in_file(rows: pd.DataFrame, folder, group_rows: int = 13, **more) -> Scores:
    manifest = _manifest(rows, **more)
    with RowWriter(folder / "rows.parquet", group_rows) as writer:
        for start in range(0, len(rows), 9):
            writer.write(rows[start : start + 9])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    scores = Scores.of_file(RowFile(folder / "rows.parquet"), manifest)
    assert scores.is_large
    return scores


@given(
    st.integers(0, 60), st.integers(0, 5), st.integers(0, 99), st.sampled_from(["images", "groups"]), st.booleans(), st.data()
)
@settings(max_examples=25, deadline=None)
def test_the_summary_is_that_of_all_rows(tmp_path_factory, images, groups, seed, weights, resampled, data):
    rows = _rows(images + 1, groups, seed, data.draw(st.sampled_from([0.0, 0.3, 1.0])))
    resamples = data.draw(st.sampled_from([None, 50]))
    scores = _in_file(rows, tmp_path_factory.mktemp("run"), data.draw(st.integers(9, 50)))
    if groups:
        scores.manifest["groups"]["weights"] = weights
    level = data.draw(st.sampled_from([0.5, 0.95]))
    tests = pd.DataFrame({name: [] for name in ("layer", "method", "metric", "beats")})
    expected = summarise(rows, METRICS, ["random"], level, resamples, 3, tests, weights)
    pd.testing.assert_frame_equal(scores.summary(level, resamples, tests=tests), expected, check_exact=True)
    assert not scores.handed_out


def test_counts_predictions_and_images_are_those_of_all_rows(tmp_path):
    rows = _rows(30, groups=4)
    scores, memory = _in_file(rows, tmp_path), RunRecord(rows, _manifest(rows))
    assert (scores.n_rows, scores.n_images, scores.n_groups) == (120, 30, 4)
    assert scores.pairs == memory.pairs == PAIRS
    assert scores.count_statuses() == memory.count_statuses()
    assert scores.statuses == rows["status"].value_counts().to_dict()
    assert str(scores.predictions) == str(predictions_of(rows))
    assert scores.images(["label", "colour"])["label"].tolist() == rows["label"][::4].tolist()
    assert scores.images(["colour"])["colour"].isna().all()
    data = describe_data(RowFile(tmp_path / "rows.parquet"), [], [])
    assert data == describe_data(rows, [], [])
    assert count_groups(scores.manifest, scores.file) == count_groups(scores.manifest, rows)
    assert not scores.handed_out
    pd.testing.assert_frame_equal(scores.rows, rows, check_dtype=False)
    assert scores.rows is scores.rows


def test_tests_take_a_sample_of_whole_images_which_is_said(tmp_path, monkeypatch, capsys):
    rows = _rows(50)
    monkeypatch.setattr(run_rows, "SAMPLE_ROWS", 80)
    one = _in_file(rows, tmp_path, group_rows=7)
    ids = one.sample.rows["image_id"].unique()
    assert len(ids) == 20
    expected = rows[rows["image_id"].isin(ids)].reset_index(drop=True)
    pd.testing.assert_frame_equal(one.sample.rows, expected, check_dtype=False)
    assert not (np.diff([int(name.partition("/")[2]) for name in ids]) == 1).all()  # drawn, not the first ones
    (tmp_path / "other").mkdir()
    other = _in_file(rows.sample(frac=1, random_state=1), tmp_path / "other", group_rows=50)
    assert set(other.sample.rows["image_id"]) == set(ids)
    memory = Scores(expected, _manifest(rows))
    pd.testing.assert_frame_equal(one.controls_table(), memory.controls_table())
    told = "are over all 50 images; tests, rankings, figures and lists take 20 of them, drawn at random"
    assert told in repr(one)
    assert told in one.table().caption
    print_summary(one, one.summary(), None, 0.95)
    assert told in " ".join(capsys.readouterr().out.split())
    page = tmp_path / "report.html"
    one.to_html(page)
    assert told in page.read_text()
    assert "50 images" in page.read_text()
    assert not one.handed_out
    assert memory.sample is memory
    assert memory.sample_note == ""


def test_findings_count_all_rows(tmp_path):
    rows = _rows(40)
    rows.loc[rows["layer"] == "p4", "status"] = "nan_map"
    rows["insertion"] = np.nan
    found = find_warnings(_in_file(rows, tmp_path))
    assert found == find_warnings(RunRecord(rows, _manifest(rows)))
    assert {"failed_rows", "metric_without_values"} <= {finding.name for finding in found}


def test_a_run_is_saved_without_rewriting_its_own_rows(tmp_path):
    rows = _rows()
    scores = _in_file(rows, tmp_path)
    before = (tmp_path / "rows.parquet").stat()
    scores.save(tmp_path)
    assert (tmp_path / "rows.parquet").stat().st_mtime_ns == before.st_mtime_ns
    assert (tmp_path / "summary.csv").read_text() == scores.summary().to_csv()
    scores.save(tmp_path / "copy")
    assert (tmp_path / "copy/rows.parquet").read_bytes() == (tmp_path / "rows.parquet").read_bytes()
    scores.rows["mask_area"] = 0.5  # a change of the frame that was handed out is not lost
    scores.save(tmp_path / "changed")
    assert (RowFile(tmp_path / "changed/rows.parquet").read(["mask_area"]) == 0.5).all(axis=None)


def test_a_part_of_a_run_is_read(tmp_path):
    rows = _rows()
    _in_file(rows, tmp_path).save(tmp_path)
    part = Scores.load(tmp_path, columns="average_drop", layers=["p5", "input"], methods=["eigencam", "random"])
    expected = rows[rows["layer"].isin(["p5", "input"]) & rows["method"].isin(["eigencam", "random"])]
    columns = ["image_id", "layer", "method", "average_drop", "status"]
    pd.testing.assert_frame_equal(part.rows, expected[columns].reset_index(drop=True), check_dtype=False)
    assert [entry["name"] for entry in part.metrics] == ["average_drop"]
    assert part.controls == ["random"]
    assert Scores.load(tmp_path, layers="p4").controls == []
    for ask, message in (
        ({"columns": ["drop"]}, "no column 'drop'"),
        ({"layers": ["p6"]}, "no layer 'p6'; known: p4, p5, input"),
        ({"methods": ["cam"]}, "no method 'cam'"),
    ):
        with pytest.raises(OutputError, match=message):
            Scores.load(tmp_path, **ask)
    with pytest.raises(OutputError, match="a part of one would replace"):
        part.save(tmp_path)
    part.save(tmp_path / "part")
    Scores.load(tmp_path / "part", columns=["average_drop"]).rows.equals(part.rows)
    part.save(tmp_path / "part")


def test_a_part_with_an_excess_has_what_it_is_made_of(tmp_path):
    excess = {**METRICS[0], "name": "average_drop_excess", "excess_of": "average_drop", "control": "shifted"}
    rows = _rows().assign(average_drop_shifted=50.0, average_drop_excess=1.0)
    _in_file(rows, tmp_path, metrics=[*METRICS, excess], matched_controls=["shifted"]).save(tmp_path)
    part = Scores.load(tmp_path, columns=["average_drop_excess"])
    assert len(part.matched_table()) == 3
    assert Scores.load(tmp_path, columns=["average_drop"]).matched_controls == []


def test_other_groups_of_a_large_run_take_its_rows(tmp_path):
    scores = _in_file(_rows(groups=3), tmp_path)
    weighted = scores.with_groups(Groups(weights="groups"))
    assert weighted.group_weights == "groups"
    assert weighted.file is scores.file
    with pytest.raises(DataError, match="other groups take all 160 rows in memory; load some"):
        scores.with_groups("class")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": None}, "the column 'layer' is text without missing values"),
        ({"layer": "\x1b"}, "the column 'layer' is text that can be printed"),
        ({"average_drop": "high"}, "the column 'average_drop' is numbers"),
        ({"increase_in_confidence": 50.0}, "the column 'increase_in_confidence' is 0 or 100"),
        ({"label": 0.5}, "the column 'label' is whole numbers"),
        ({"layer": "p4", "method": "gradcam"}, "holds the row of 'n6/27', 'p4' and 'gradcam' twice"),
        ({"image_id": "n0/0", "layer": "p5"}, "holds the row of 'n0/0', 'p5' and 'eigencam' twice"),
        ({"group": None, "status": "ok"}, "image 'n6/27' has no group"),
        ({"group": "elsewhere"}, "image 'n6/27' is in several groups"),
    ],
)
def test_a_large_file_is_checked_piece_by_piece(tmp_path, changes, message):
    rows = _rows(groups=3)
    place = 27 * 4 + 2  # in the middle, so that other row groups are as they should be
    for name, value in changes.items():
        if isinstance(value, str) and rows[name].dtype.kind == "f":
            rows[name] = rows[name].astype(object).map(str)
        elif name == "label":
            rows[name] = rows[name].astype(float)
        rows.loc[place, name] = value
    _in_file(rows, tmp_path)
    with pytest.raises(OutputError, match=message):
        Scores.load(tmp_path)


def test_a_large_file_that_is_as_it_should_be_is_opened(tmp_path):
    _in_file(_rows(groups=3), tmp_path)
    scores = Scores.load(tmp_path)
    assert scores.is_large
    assert not scores.handed_out
