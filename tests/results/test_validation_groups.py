"""Rows and manifests of runs in groups: read as they were written, or refused with one clear line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from xaieval.errors import OutputError
from xaieval.results.validation import MEND, check_manifest, check_rows

METRIC = {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"}
ENTRY = {"by": "class", "count": 2, "weights": "images"}


def rows(group: Any, status: str = "ok") -> pd.DataFrame:
    """Two images with two layers each."""
    table = pd.DataFrame({"image_id": ["a", "a", "b", "b"], "layer": ["p2", "p5"] * 2, "method": "gradcam", "group": group})
    return table.assign(average_drop=[1.0, 2.0, np.nan, np.nan], status=["ok", "ok", status, status])


@pytest.mark.parametrize(
    ("group", "status"), [(["x", "x", "y", "y"], "ok"), (["x", "x", None, None], "unreadable"), ([None] * 4, "unreadable")]
)
def test_groups_of_a_run_are_accepted(group, status):
    table = rows(group, status)
    if group[0] is None:
        table["status"] = "unreadable"
    pd.testing.assert_series_equal(check_rows(table, {"metrics": [METRIC], "groups": ENTRY}, "run")["group"], table["group"])


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        (["x", "x", None, None], "image 'b' has no group"),
        (["x", "y", "y", "y"], "image 'a' is in several groups"),
        ([1, 1, 2, 2], "the column 'group' is text that can be printed"),
        (["x", "x", "y\n", "y\n"], "the column 'group' is text that can be printed"),
    ],
)
def test_groups_that_no_run_writes_are_refused_word_for_word(group, problem):
    with pytest.raises(OutputError) as caught:
        check_rows(rows(group), {"metrics": [METRIC]}, "run")
    assert str(caught.value) == f"'run' holds no rows of a run: {problem}; {MEND}"


def test_rows_without_the_column_that_the_manifest_speaks_of_are_refused():
    with pytest.raises(OutputError) as caught:
        check_rows(rows("x").drop(columns="group"), {"metrics": [METRIC], "groups": ENTRY}, "run")
    assert str(caught.value) == f"'run' holds no rows of a run: the column 'group' is missing; {MEND}"


def test_an_entry_on_groups_is_accepted_with_and_without_a_count():
    for entry in (ENTRY, {"by": "x+", "weights": "groups"}):
        assert check_manifest({"groups": entry}, "m") == {"groups": entry}


@pytest.mark.parametrize(
    "entry",
    [
        {"by": "class", "count": 2, "weights": "image"},
        {"by": 3, "weights": "images"},
        {"by": "class", "count": -1, "weights": "images"},
        {"by": "class", "count": "two", "weights": "images"},
        {"by": "class"},
    ],
)
def test_another_entry_on_groups_is_refused_word_for_word(entry):
    with pytest.raises(OutputError) as caught:
        check_manifest({"groups": entry}, "m")
    said = "'m' is not a manifest: groups is a table of by, count and weights (images or groups), got "
    assert str(caught.value).startswith(said + repr(entry)[:60])
    with pytest.raises(OutputError, match=r"^'m' is not a manifest: groups is a table, got 'class'"):
        check_manifest({"groups": "class"}, "m")
