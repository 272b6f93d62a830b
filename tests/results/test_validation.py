"""Rows and manifests of a run are read unchanged; other files are refused with one clear line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import xaieval
from xaieval.data.batches import read_batch
from xaieval.errors import DataError, OutputError
from xaieval.results.validation import MEND, check_made_of, check_manifest, check_rows, read_manifest, read_rows

METRIC = {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"}
INCREASE = {"name": "increase", "higher_is_better": True, "interval": "wilson"}
MANIFEST = {"metrics": [METRIC, INCREASE]}


def _rows(**columns):
    rows = pd.DataFrame(
        {"image_id": ["a", "b"], "layer": "p5", "method": "gradcam", "label": pd.array([1, None], dtype="Int64")}
    )
    return rows.assign(**{"average_drop": [1.5, np.nan], "increase": [0.0, 100.0], "status": "ok"} | columns)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with curves, controls and an image that could not be read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    batch = {"image": torch.rand(3, 3, 8, 8), "label": torch.tensor([0, 1, 2]), "failed": [("lost", None, "gone")]}
    path = tmp_path_factory.mktemp("run")
    metrics = ["average_drop", xaieval.metrics.insertion(keep_curve=True)]
    xaieval.score(model, [batch], "0", metrics=metrics, controls=True, output_dir=path, progress=False)
    return path


def test_rows_come_back_as_pandas_itself_reads_them(run):
    pd.testing.assert_frame_equal(read_rows(run / "rows.parquet"), pd.read_parquet(run / "rows.parquet"))
    manifest = read_manifest(run / "manifest.json")
    assert manifest == json.loads((run / "manifest.json").read_text())
    pd.testing.assert_frame_equal(check_rows(read_rows(run / "rows.parquet"), manifest, run), read_rows(run / "rows.parquet"))


def test_metadata_of_pandas_is_ignored(run, tmp_path):
    table = pq.read_table(run / "rows.parquet").replace_schema_metadata({b"pandas": b'{"columns": 3, "index_columns": [{}]}'})
    pq.write_table(table, tmp_path / "rows.parquet")
    shutil.copy(run / "manifest.json", tmp_path)
    pd.testing.assert_frame_equal(xaieval.Scores.load(tmp_path).rows, xaieval.Scores.load(run).rows)


MANIFESTS = [
    ("[]", "it is a table, got []"),
    ('{"seed": -1}', "seed is a whole number of at least 0, got -1"),
    ('{"seed": true}', "seed is a whole number of at least 0, got True"),
    ('{"seed": 1.0}', "seed is a whole number of at least 0, got 1.0"),
    ('{"run": null}', "run is a table, got None"),
    ('{"complete": 1}', "complete is true or false, got 1"),
    ('{"metrics": {}}', "metrics is a list of metrics, got {}"),
    ('{"metrics": [3]}', "a metric is a table with name, interval and higher_is_better, got 3"),
    ('{"metrics": [{"name": "a"}]}', "a metric is a table with name, interval and higher_is_better, got {'name': 'a'}"),
    (json.dumps({"metrics": [METRIC | {"name": 3}]}), "a metric's name is text that can be printed, got 3"),
    (json.dumps({"metrics": [METRIC | {"label": "\x1b[2J"}]}), r"a metric's label is text that can be printed, got '\x1b[2J'"),
    (json.dumps({"metrics": [METRIC | {"interval": "median"}]}), "a metric's interval is mean or wilson, got 'median'"),
    (json.dumps({"metrics": [METRIC | {"bounds": [0]}]}), "a metric's bounds is two numbers, got [0]"),
    (json.dumps({"metrics": [METRIC | {"bounds": [0, "1"]}]}), "a metric's bounds is two numbers, got [0, '1']"),
    (
        json.dumps({"metrics": [METRIC | {"higher_is_better": 1}]}),
        "a metric's higher_is_better is true, false or null, got 1",
    ),
    (json.dumps({"metrics": [METRIC | {"higher_is_better": "no"}]}), "higher_is_better is true, false or null, got 'no'"),
    (json.dumps({"metrics": [METRIC, METRIC]}), "metrics is a list with each metric once, got 'average_drop'"),
    ('{"controls": [1]}', "controls is a list of names, got 1"),
    ('{"data": {"batches": ["x"]}}', "data.batches is a list of checks, such as '32:1f0a5b9c', got 'x'"),
    ('{"data": {"batches": 3}}', "data.batches is a list of checks, such as '32:1f0a5b9c', got None"),
    (json.dumps({"run": "x" * 99}), f"run is a table, got '{'x' * 59}..."),
]


@pytest.mark.parametrize(("text", "message"), MANIFESTS)
def test_a_manifest_of_another_form_is_refused_with_what_came(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(OutputError) as caught:
        read_manifest(tmp_path / "manifest.json")
    assert str(caught.value).startswith(f"'{tmp_path / 'manifest.json'}' is not a manifest: ")
    assert str(caught.value).endswith(f"{message}; {MEND}")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"seed": ' + b"1" * 5000 + b"}", b'{"seed"'])
def test_a_manifest_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"manifest\.json' cannot be read as JSON: .*; score it again, into another folder$"):
        read_manifest(tmp_path / "manifest.json")


def test_a_manifest_of_a_newer_version_is_refused():
    with pytest.raises(
        OutputError, match=r"^'here' was written by a newer version of xaieval \(schema 99\); update xaieval to read it$"
    ):
        check_manifest({"schema": 99}, "here")


@pytest.mark.parametrize("manifest", [{}, MANIFEST, MANIFEST | {"seed": 3, "controls": ["random"], "author": "A. Nonymous"}])
def test_a_manifest_may_say_less_and_more(manifest):
    assert check_manifest(manifest, "here") is manifest


ROWS = [
    ({"status": None}, "column 'status' is text without missing values, got "),
    ({"image_id": ["a", None]}, "column 'image_id' is text without missing values, got "),
    ({"layer": [1, 2]}, "column 'layer' is text without missing values, got int64"),
    ({"layer": pd.Categorical(["p5", "p5"])}, "column 'layer' is text without missing values, got category"),
    ({"method": "a\x1b[2J"}, "column 'method' is text that can be printed, got "),
    ({"label": [0.5, 1.0]}, "column 'label' is whole numbers, got float64"),
    ({"average_drop": ["1", "2"]}, "column 'average_drop' is numbers, got "),
    ({"average_drop": [True, False]}, "column 'average_drop' is numbers, got bool"),
    ({"average_drop": [1j, 2j]}, "column 'average_drop' is numbers, got complex128"),
    ({"increase": [0.0, 50.0]}, "column 'increase' is 0 or 100, got float64"),
]


@pytest.mark.parametrize(("columns", "message"), ROWS)
def test_rows_of_another_form_are_refused_with_what_came(columns, message):
    with pytest.raises(OutputError) as caught:
        check_rows(_rows(**columns), MANIFEST, "here")
    assert str(caught.value).startswith(f"'here' holds no rows of a run: the {message}")


def test_rows_that_are_missing_or_duplicated_are_refused():
    with pytest.raises(OutputError, match=r"^'here' holds no rows of a run: the column 'increase' is missing; "):
        check_rows(_rows().drop(columns="increase"), MANIFEST, "here")
    with pytest.raises(OutputError, match=r"^'here' holds a run without rows; "):
        check_rows(_rows()[:0], MANIFEST, "here")
    with pytest.raises(OutputError, match=r"^'here' holds the row of 'a', 'p5' and 'gradcam' twice; "):
        check_rows(_rows(image_id="a"), MANIFEST, "here")
    with pytest.raises(OutputError, match=r"its manifest does not list the metrics; "):
        check_rows(_rows(), {}, "here")


def test_missing_numbers_of_any_type_are_nan():
    found = check_rows(_rows(average_drop=pd.array([1, None], dtype="Int64"), increase=[100, 0], label=None), MANIFEST, "here")
    assert found[["average_drop", "increase"]].dtypes.unique().tolist() == [np.dtype("float64")]
    assert found["average_drop"].isna().tolist() == [False, True]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"nothing at all", b"PAR1" + bytes(40) + b"PAR1"])
def test_a_file_that_is_not_parquet_is_refused(tmp_path, content):
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(OutputError, match=r"rows\.parquet' cannot be read as Parquet: "):
        read_rows(tmp_path / "rows.parquet")


def test_a_torn_file_is_refused_wherever_it_is_torn(run, tmp_path):
    whole = (run / "rows.parquet").read_bytes()
    for length in range(0, len(whole), 997):
        (tmp_path / "rows.parquet").write_bytes(whole[:length])
        with pytest.raises(OutputError, match=r"rows\.parquet' cannot be read as Parquet: "):
            read_rows(tmp_path / "rows.parquet")


def test_a_duplicated_column_is_refused(tmp_path):
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["layer", "layer"]), tmp_path / "rows.parquet")
    with pytest.raises(OutputError, match=r"rows\.parquet' holds the column 'layer' twice; "):
        read_rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize("name", ["a\0b", "\udcff"])
def test_ids_that_rows_cannot_hold_are_refused_where_they_come_in(name):
    with pytest.raises(DataError, match=r"^the id '.*' (contains a NUL|cannot be encoded as UTF-8)"):
        read_batch({"image": torch.zeros(1, 3, 4, 4), "id": [name]}, start=0)
    with pytest.raises(DataError, match=r"^the id '.*' (contains a NUL|cannot be encoded as UTF-8)"):
        read_batch({"failed": [(name, None, "gone")]}, start=0)


MADE_OF = {"check": "2:0000abcd", "ids": ["a"], "failed": [["b", None, "gone"]]}


@pytest.mark.parametrize(
    "change",
    [
        {"check": 3},
        {"check": "x:y"},
        {"ids": None},
        {"ids": [1]},
        {"failed": [["b", "1", "gone"]]},
    ],
)
def test_the_description_of_a_checkpoint_is_checked(change):
    assert check_made_of(MADE_OF, "here") is MADE_OF
    with pytest.raises(OutputError, match=r"^'here' does not say which "):
        check_made_of(MADE_OF | change, "here")
    with pytest.raises(OutputError, match=r"^'here' does not say which "):
        check_made_of([MADE_OF], "here")
