"""Rows and manifests that come from files, which anybody may have written: read, and refused unless they are those of a run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype, is_string_dtype

from xaieval.errors import OutputError
from xaieval.results.manifest import SCHEMA

__all__ = ["check_made_of", "check_manifest", "check_rows", "read_manifest", "read_rows"]

MEND = "score it again, into another folder"
KEYS = ["image_id", "layer", "method"]  # that no two rows share
INTEGERS, NUMBERS = ("label", "predicted", "target"), ("confidence", "masked_confidence", "mask_area")

# What each entry of a manifest is, if it is there, and in words.
ENTRIES: dict[str, tuple[type, str]] = {
    "complete": (bool, "true or false"),
    "controls": (list, "a list of methods"),
    "data": (dict, "a table"),
    "metrics": (list, "a list of metrics"),
    "model": (dict, "a table"),
    "options": (dict, "a table"),
    "run": (dict, "a table"),
    "schema": (int, "a whole number of at least 0"),
    "seed": (int, "a whole number of at least 0"),
    "stop": (dict, "a table"),
    "unreadable": (list, "a list of images"),
    "versions": (dict, "a table"),
}


def read_manifest(file: str | Path) -> dict[str, Any]:
    """The manifest in a file.

    Args:
        file: JSON.

    Raises:
        FileNotFoundError: there is none.
        OutputError: it is no manifest; with what came and what was expected.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"'{file}' cannot be read as JSON: {error}; {MEND}") from error
    return check_manifest(content, file)


def check_manifest(manifest: Any, source: str | Path) -> dict[str, Any]:
    """The same manifest, if it is one.

    Args:
        manifest: whatever JSON can hold.
        source: where it comes from, for messages.

    Raises:
        OutputError: an entry is of another kind than a run has.

    Example:
        >>> check_manifest({"seed": "zero"}, "manifest.json")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        xaieval.errors.OutputError: 'manifest.json' is no manifest: seed is a whole number of at least 0, got 'zero'; ...
    """
    if not isinstance(manifest, dict):
        raise _no_manifest(source, "it", "a table", manifest)
    for name, (kind, words) in ENTRIES.items():
        value: Any = manifest.get(name, kind())
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise _no_manifest(source, name, words, value)
    if manifest.get("schema", SCHEMA) > SCHEMA:
        raise OutputError(
            f"'{source}' is of a newer version of xaieval (schema {manifest['schema']}); update this one to read it"
        )
    for metric in manifest.get("metrics", []):
        _check_metric(metric, source)
    names = Counter(metric["name"] for metric in manifest.get("metrics", []))
    batches = _list(manifest.get("data", {}).get("batches", []))
    for name, words, odd in (
        ("metrics", "a list with each metric once", [name for name, count in names.items() if count > 1]),
        ("controls", "a list of names", [name for name in manifest.get("controls", []) if not isinstance(name, str)]),
        ("data.batches", "a list of checks, such as '32:1f0a5b9c'", [check for check in batches if not _is_check(check)]),
    ):
        if odd:
            raise _no_manifest(source, name, words, odd[0])
    return manifest


def check_made_of(made_of: Any, source: str | Path) -> dict[str, Any]:
    """What a part says that it was made of, if it says so as a part does.

    Args:
        made_of: whatever JSON can hold.
        source: where it comes from, for messages.

    Raises:
        OutputError: an entry is missing or of another kind.
    """
    if not isinstance(made_of, dict) or not _is_check(made_of.get("check")):
        raise OutputError(f"'{source}' does not say which batch it was made of")
    if not all(isinstance(name, str) for name in _list(made_of.get("ids"))):
        raise OutputError(f"'{source}' does not say which images it was made of")
    for failure in [*_list(made_of.get("failed")), *_list(made_of.get("missed"))]:
        kinds = [type(item) for item in _list(failure)]
        if kinds not in ([str, int, str], [str, type(None), str]):
            raise OutputError(f"'{source}' does not say which images could not be read")
    return made_of


def _is_check(check: Any) -> bool:
    return isinstance(check, str) and re.fullmatch(r"\d{1,9}:[0-9a-f]{8}", check, re.ASCII) is not None


def _list(value: Any) -> list[Any]:
    """The value, if it is a list; else a list of what is in no list that is looked for here."""
    return value if isinstance(value, list) else [None]


def _check_metric(metric: Any, source: str | Path) -> None:
    if not isinstance(metric, dict) or not {"name", "interval", "higher_is_better"} <= metric.keys():
        raise _no_manifest(source, "a metric", "a table with name, interval and higher_is_better", metric)
    for key in ("name", "label"):
        text = metric.get(key, "")
        if not (isinstance(text, str) and text.isprintable()):
            raise _no_manifest(source, f"a metric's {key}", "text that can be printed", text)
    if metric["interval"] not in ("mean", "wilson"):
        raise _no_manifest(source, "a metric's interval", "mean or wilson", metric["interval"])
    if not isinstance(metric["higher_is_better"], bool | None):
        raise _no_manifest(source, "a metric's higher_is_better", "true, false or null", metric["higher_is_better"])


def _no_manifest(source: str | Path, name: str, words: str, value: Any) -> OutputError:
    text = repr(value)
    came = text if len(text) <= 60 else f"{text[:60]}..."
    return OutputError(f"'{source}' is no manifest: {name} is {words}, got {came}; {MEND}")


def read_rows(file: str | Path) -> pd.DataFrame:
    """The rows in a Parquet file. Of what it says about itself only the types of Parquet count, not what pandas wrote there.

    Raises:
        FileNotFoundError: there is none.
        OutputError: it is no such file, or torn.
    """
    try:
        with pq.ParquetFile(file) as parquet:
            table = parquet.read().replace_schema_metadata()
        names = Counter(table.column_names)
        if names and max(names.values()) > 1:
            raise OutputError(f"'{file}' holds the column {names.most_common(1)[0][0]!r} twice; {MEND}")
        return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise OutputError(f"'{file}' cannot be read as Parquet: {error}; {MEND}") from error


def check_rows(rows: pd.DataFrame, manifest: Mapping[str, Any], source: str | Path) -> pd.DataFrame:
    """The same rows, if they are those of a run with such a manifest.

    Args:
        rows: from `read_rows`.
        manifest: from `read_manifest`, which says which metrics there are.
        source: where they come from, for messages.

    Raises:
        OutputError: a column is missing or of another type, a value is missing or impossible, a row comes twice, or there is
            none.
    """
    if "metrics" not in manifest:
        raise OutputError(f"'{source}' holds no rows of a run: its manifest does not say which metrics there are; {MEND}")
    metrics = {metric["name"]: metric["interval"] for metric in manifest["metrics"]}
    for name in [*KEYS, "status", *metrics]:
        if name not in rows.columns:
            raise OutputError(f"'{source}' holds no rows of a run: the column {name!r} is missing; {MEND}")
    if not len(rows):
        raise OutputError(f"'{source}' holds a run without rows; {MEND}")
    for name in rows.columns.intersection([*KEYS, "status", *INTEGERS, *NUMBERS, *metrics]):
        _check_column(rows[name], metrics.get(name), source)
    if rows.duplicated(KEYS).any():
        image, layer, method = rows.loc[rows.duplicated(KEYS), KEYS].iloc[0]
        raise OutputError(f"'{source}' holds the row of {image!r}, {layer!r} and {method!r} twice; {MEND}")
    return rows.astype(dict.fromkeys(metrics, "float64"))


def _check_column(column: pd.Series[Any], interval: str | None, source: str | Path) -> None:
    name = str(column.name)
    if name in (*KEYS, "status"):
        good, words = (
            is_string_dtype(column) and column.dtype != "category" and not column.isna().any(),
            "text, and nowhere missing",
        )
        if good and name != "image_id":  # they stand in tables
            good, words = all(map(str.isprintable, column.unique())), "text that can be printed"
    elif name in INTEGERS:
        good, words = is_integer_dtype(column) or bool(column.isna().all()), "whole numbers"
    else:
        good, words = is_numeric_dtype(column) and not is_bool_dtype(column) and column.dtype.kind != "c", "numbers"
    if good and interval == "wilson":
        good, words = bool(column.dropna().isin([0, 100]).all()), "0 or 100"
    if not good:
        raise OutputError(f"'{source}' holds no rows of a run: the column {name!r} is {words}, got {column.dtype}; {MEND}")
