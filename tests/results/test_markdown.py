"""Tables in Markdown."""

from __future__ import annotations

import pandas as pd

from xaieval.results.markdown import markdown_table


def test_a_table_without_rows_has_its_titles():
    assert markdown_table(["level", "n"], []) == "| level | n |\n| --- | --- |"


def test_every_cell_is_written_as_text():
    frame = pd.DataFrame({"level": ["p2"], "AD": [1.5], "n": [3]})
    assert markdown_table(frame.columns, frame.itertuples(index=False)).splitlines()[-1] == "| p2 | 1.5 | 3 |"
