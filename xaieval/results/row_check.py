"""The rows of a large run, which may come from anyone, checked piece by piece to be those of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xaieval.results.row_file import RowFile
from xaieval.results.rows import GROUP, KEYS
from xaieval.results.validation import check_column, check_columns, check_groups, check_once, checked_columns

__all__ = ["check_row_file"]


def check_row_file(file: RowFile, manifest: Mapping[str, Any], source: str | Path, keys: Sequence[str] = KEYS) -> None:
    """Check that the rows in a file are those of a run; see `xaieval.results.validation.check_rows`.

    Args:
        file: The rows.
        manifest: The manifest of the run.
        source: Their origin, for messages.
        keys: The columns that identify a row.

    Raises:
        OutputError: As `check_rows`.
    """
    metrics = check_columns(file.columns, len(file), manifest, source, keys)
    names = checked_columns(file.columns, metrics, keys)
    groups = [GROUP] if GROUP in file.columns else []
    seen: set[int] = set()
    again: set[str] = set()
    for piece in file.frames([*names, *groups]):
        for name in names:
            check_column(_words(piece[name]), metrics.get(name), source)
        check_once(piece, source, keys)
        if groups:
            check_groups(_text(piece[["image_id", GROUP, "status"]].drop_duplicates()), source)
        images = {hash(name): name for name in piece["image_id"].cat.categories}
        again |= {name for key, name in images.items() if key in seen}  # in several pieces, as at their ends
        seen |= images.keys()
    if again:
        columns = list(dict.fromkeys([*keys, *groups, "status"]))
        rows = _text(pd.concat([_text(piece[piece["image_id"].isin(list(again))]) for piece in file.frames(columns)]))
        check_once(rows, source, keys)
        if groups:
            check_groups(rows, source)


def _words(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column with each word once, and a missing one if any is; a column of numbers as it is."""
    if column.dtype != "category":
        return column
    words = column.cat.categories.to_series(name=column.name)
    return words if not column.isna().any() else pd.concat([words, words[:1].reindex([None])]).rename(column.name)


def _text(rows: pd.DataFrame) -> pd.DataFrame:
    """Categories as the text that they stand for."""
    return rows.astype({name: rows[name].cat.categories.dtype for name in rows if rows[name].dtype == "category"})
