"""Rows written piece by piece are read back as if they had been one data frame all the time."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xaieval.errors import OutputError
from xaieval.results.part_files import read_description, read_part, write_part
from xaieval.results.row_file import RowFile, RowWriter, merge_parts
from xaieval.results.row_tables import frame_of
from xaieval.results.rows import failed_rows
from xaieval.results.validation import read_rows


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


CODED = ("image_id", "layer", "method", "group", "status")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBER = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 100.0])
CLASS = st.none() | st.integers(-(2**63), 2**63 - 1)
CURVE = st.none() | st.lists(st.floats(0, 1), min_size=1, max_size=3)
ROW = st.tuples(TEXT, TEXT, TEXT, st.none() | TEXT, CLASS, NUMBER, CURVE, st.sampled_from(["ok", "constant_map"]))


def _frame(rows: list[tuple]) -> pd.DataFrame:
    """Rows with the types that a run has; a curve is an array or missing."""
    image, layer, method, group, label, drop, curve, status = zip(*rows, strict=True)
    text = {"image_id": image, "layer": layer, "method": method, "group": group}
    frame = pd.DataFrame({name: pd.Series(values, dtype="str") for name, values in text.items()})
    frame["label"] = pd.array(label, dtype="Int64")
    frame["average_drop"] = np.array(drop)
    frame["deletion_curve"] = pd.Series([None if one is None else np.array(one) for one in curve], dtype=object)
    return frame.assign(status=pd.Series(status, dtype="str"))


@given(st.lists(st.lists(ROW, min_size=1, max_size=6), min_size=1, max_size=4), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_parts_merged_in_row_groups_of_any_size_are_one_frame(tmp_path_factory, parts, group_rows):
    folder = tmp_path_factory.mktemp("parts")
    frames = [_frame(rows) for rows in parts]
    for number, frame in enumerate(frames):
        write_part(folder / str(number), frame, {"number": number})
    with RowWriter(folder / "rows.parquet", group_rows) as writer:
        for number in range(len(frames)):
            assert read_description(folder / str(number)) == {"number": number}
            writer.write(read_part(folder / str(number)))
    whole = pd.concat(frames, ignore_index=True)
    whole.to_parquet(folder / "at_once.parquet", index=False)
    assert writer.count == len(whole)
    if whole["deletion_curve"].notna().any():  # pandas writes another type for a column without any value
        expected = pd.read_parquet(folder / "at_once.parquet")
        if whole["group"].isna().all():
            expected["group"] = expected["group"].astype("str")
        pd.testing.assert_frame_equal(pd.read_parquet(folder / "rows.parquet"), expected)
    file = RowFile(folder / "rows.parquet")
    read = file.read()
    pd.testing.assert_frame_equal(read, frame_of(read_part(folder / "0")) if len(frames) == 1 else read)
    for name in ("image_id", "layer", "method", "group", "label", "average_drop", "status"):
        pd.testing.assert_series_equal(read[name], whole[name])
    for one, other in zip(read["deletion_curve"], whole["deletion_curve"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or one.tolist() == other.tolist()
    assert file.pairs == list(whole[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))
    groups = [frame.astype(dict.fromkeys(CODED, "str")) for frame in file.frames()]
    pd.testing.assert_frame_equal(pd.concat(groups, ignore_index=True), read)
    start, stop = group_rows // 2, len(whole) - group_rows // 3
    pd.testing.assert_frame_equal(file.slice(start, stop), read[start:stop].reset_index(drop=True))


def _rows(images: int = 4) -> pd.DataFrame:
    rows = [
        (f"{image}", layer, method) for image in range(images) for layer in ("p4", "p5") for method in ("gradcam", "eigencam")
    ]
    frame = pd.DataFrame(rows, columns=["image_id", "layer", "method"])
    return frame.assign(label=pd.array([1] * len(frame), dtype="Int64"), average_drop=np.arange(len(frame)) / 7, status="ok")


def test_columns_layers_and_methods_are_chosen_in_every_row_group(tmp_path):
    rows = _rows()
    with RowWriter(tmp_path / "rows.parquet", group_rows=3) as writer:
        writer.write(rows)
    file = RowFile(tmp_path / "rows.parquet")
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 6
    assert (len(file), file.columns) == (16, list(rows))
    expected = rows[(rows["layer"] == "p5") & (rows["method"] == "gradcam")]
    pd.testing.assert_frame_equal(
        file.read(["average_drop", "image_id"], ["p5"], ["gradcam"]),
        expected[["average_drop", "image_id"]].reset_index(drop=True),
    )
    coded = file.read(["layer", "image_id"], methods=["eigencam"], categorical=True)
    assert coded.dtypes.eq("category").all()
    assert coded["layer"].tolist() == ["p4", "p5"] * 4
    assert not len(file.slice(5, 5))
    for ask, message in (
        ({"columns": ["drop"]}, r"no column 'drop'; known: image_id, "),
        ({"layers": ["p3"]}, "no layer 'p3'; known: p4, p5"),
        ({"methods": ["gradcm"]}, "no method 'gradcm'; did you mean 'gradcam'"),
    ):
        with pytest.raises(OutputError, match=message):
            file.read(**ask)


def test_rows_of_unreadable_images_have_no_group_and_no_curve(tmp_path):
    rows = _rows(1).assign(group="lake", deletion_curve=[np.array([1.0, 0.5])] * 4)
    failed = failed_rows([("b", 3, "no image"), ("c", None, "no image")], [("p4", "gradcam")], ["average_drop"])
    merge_parts([rows, failed[["image_id", "layer", "method", "label", "average_drop", "status"]]], tmp_path / "rows.parquet")
    read = RowFile(tmp_path / "rows.parquet").read()
    assert read["status"].tolist() == ["ok"] * 4 + ["unreadable"] * 2
    assert read["group"].isna().tolist() == read["deletion_curve"].isna().tolist() == [False] * 4 + [True] * 2
    assert read["label"].tolist() == [1, 1, 1, 1, 3, pd.NA]


def test_rows_of_other_columns_or_types_are_refused_and_leave_the_file_as_it_was(tmp_path):
    path = tmp_path / "rows.parquet"
    merge_parts([_rows()], path)
    before = path.read_bytes()
    for odd, message in (
        (_rows().assign(size=1.0), "have the column 'size', which rows before them have not"),
        (
            _rows().assign(average_drop="high"),
            "have dictionary.* in the column 'average_drop', where rows before them have double",
        ),
    ):
        with pytest.raises(OutputError, match=message):
            merge_parts([_rows(), odd], path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_file_that_was_replaced_is_not_read_as_if_it_were_the_same(tmp_path):
    merge_parts([_rows()], tmp_path / "rows.parquet")
    file = RowFile(tmp_path / "rows.parquet")
    merge_parts([_rows(3)], tmp_path / "rows.parquet")
    with pytest.raises(OutputError, match="was replaced after its run was loaded"):
        file.read()


def test_every_damaged_byte_and_every_cut_of_a_part_is_noticed(tmp_path):
    path = tmp_path / "part"
    write_part(path, _rows(1), {"check": "1:00000000"})
    whole = path.read_bytes()
    cuts = [whole[:end] for end in range(0, len(whole), 37)]
    flips = [
        whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in (*range(20), *range(20, len(whole), 11))
    ]
    for content in (*cuts, *flips, whole + b"\0"):
        path.write_bytes(content)
        for read in (read_part, read_description):
            with pytest.raises(OutputError, match="is damaged: "):
                read(path)
    with pytest.raises(FileNotFoundError):
        read_part(tmp_path / "none")


def test_damaged_and_cut_files_of_rows_are_noticed(tmp_path):
    path = tmp_path / "rows.parquet"
    merge_parts([_rows(400)], path)
    whole = path.read_bytes()
    expected = read_rows(path)
    noticed = 0
    footer = (
        len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    )  # has no checksum; check_rows sees that columns are missing
    for place in range(4, footer, 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            found = RowFile(path).read()
        except OutputError:
            noticed += 1
        else:
            pd.testing.assert_frame_equal(found, expected)  # what the byte says is not used
    assert noticed > 20
    for end in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(OutputError, match="cannot be read as Parquet"):
            RowFile(path)
