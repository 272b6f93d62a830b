"""Rows and manifests read from files, which may come from anyone, and checked to be those of a run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype, is_string_dtype

from xaieval.config.groups import Weights
from xaieval.errors import OutputError
from xaieval.results.manifest import SCHEMA
from xaieval.results.matched import control_columns
from xaieval.results.rows import CROSS_KEYS, GROUP, KEYS, UNREADABLE

__all__ = [
    "check_column",
    "check_columns",
    "check_groups",
    "check_made_of",
    "check_manifest",
    "check_once",
    "check_rows",
    "checked_columns",
    "read_manifest",
    "read_rows",
    "shortened",
]

MEND = "score it again, into another folder"
GROUP_KEYS = {"by": str, "count": int, "weights": str}  # of the entry on groups
INTEGERS, NUMBERS = ("label", "predicted", "target"), ("confidence", "masked_confidence", "mask_area")

# The type of each entry of a manifest, and its name in messages. All entries are optional.
ENTRIES: dict[str, tuple[type, str]] = {
    "complete": (bool, "true or false"),
    "controls": (list, "a list of methods"),
    "cross": (dict, "a table"),
    "data": (dict, "a table"),
    "dates": (dict, "a table"),
    "findings": (list, "a list of findings"),
    "first_image": (dict, "a table"),
    "groups": (dict, "a table"),
    "ids_by_chance": (bool, "true or false"),
    "matched_controls": (list, "a list of names"),
    "metrics": (list, "a list of metrics"),
    "model": (dict, "a table"),
    "models": (dict, "a table"),
    "options": (dict, "a table"),
    "preprocessing": (dict, "a table"),
    "run": (dict, "a table"),
    "schema": (int, "a whole number of at least 0"),
    "seed": (int, "a whole number of at least 0"),
    "stop": (dict, "a table"),
    "unreadable": (list, "a list of images"),
    "versions": (dict, "a table"),
}


def read_manifest(file: str | Path) -> dict[str, Any]:
    """Read and check a manifest.

    Args:
        file: A JSON file.

    Raises:
        FileNotFoundError: The file does not exist.
        OutputError: The file is not a manifest.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"'{file}' cannot be read as JSON: {error}; {MEND}") from error
    return check_manifest(content, file)


def check_manifest(manifest: Any, source: str | Path) -> dict[str, Any]:
    """Check a manifest, and return it unchanged.

    Args:
        manifest: The content of a JSON file.
        source: Its origin, for messages.

    Raises:
        OutputError: An entry has the wrong type.

    Example:
        >>> check_manifest({"seed": "zero"}, "manifest.json")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        xaieval.errors.OutputError: 'manifest.json' is not a manifest: seed is a whole number of at least 0, got 'zero'; ...
    """
    if not isinstance(manifest, dict):
        raise _no_manifest(source, "it", "a table", manifest)
    for name, (kind, words) in ENTRIES.items():
        value: Any = manifest.get(name, kind())
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise _no_manifest(source, name, words, value)
    if manifest.get("schema", SCHEMA) > SCHEMA:
        raise OutputError(
            f"'{source}' was written by a newer version of xaieval (schema {manifest['schema']}); update xaieval to read it"
        )
    for metric in manifest.get("metrics", []):
        _check_metric(metric, source)
    names = Counter(metric["name"] for metric in manifest.get("metrics", []))
    images = [manifest["first_image"]] if manifest.get("first_image") else []
    batches = _list(manifest.get("data", {}).get("batches", []))
    for name, words, odd in (
        ("metrics", "a list with each metric once", [name for name, count in names.items() if count > 1]),
        (
            "findings",
            "a list of names, texts and evidence",
            [one for one in manifest.get("findings", []) if not _is_finding(one)],
        ),
        *(
            (key, "a list of names", [name for name in manifest.get(key, []) if not isinstance(name, str)])
            for key in ("controls", "matched_controls")
        ),
        ("first_image", "the id, shape and channels of an image", [image for image in images if not _is_described(image)]),
        ("groups", "a table of by, count and weights (images or groups)", _odd_groups(manifest.get("groups"))),
        ("data.batches", "a list of checks, such as '32:1f0a5b9c'", [check for check in batches if not _is_check(check)]),
    ):
        if odd:
            raise _no_manifest(source, name, words, odd[0])
    return manifest


def check_made_of(made_of: Any, source: str | Path) -> dict[str, Any]:
    """Check the description of the batch that a checkpoint was made of, and return it unchanged.

    Args:
        made_of: The content of the metadata, parsed as JSON.
        source: Its origin, for messages.

    Raises:
        OutputError: An entry is missing or has the wrong type.
    """
    if not isinstance(made_of, dict) or not _is_check(made_of.get("check")):
        raise OutputError(f"'{source}' does not say which batch it was made of")
    if not all(isinstance(name, str) for name in _list(made_of.get("ids"))):
        raise OutputError(f"'{source}' does not say which images it was made of")
    for failure in _list(made_of.get("failed")):
        kinds = [type(item) for item in _list(failure)]
        if kinds not in ([str, int, str], [str, type(None), str]):
            raise OutputError(f"'{source}' does not say which images could not be read")
    return made_of


def _is_check(check: Any) -> bool:
    """Whether a value is a size and a checksum of a batch, such as "32:1f0a5b9c"."""
    return isinstance(check, str) and re.fullmatch(r"\d{1,9}:[0-9a-f]{8}", check, re.ASCII) is not None


def _odd_groups(groups: Mapping[str, Any] | None) -> list[Any]:
    """The entry on groups in a list if it is not what a run writes; a run under way has no count yet."""
    if not groups:
        return []
    known = all(type(groups.get(name, kind())) is kind for name, kind in GROUP_KEYS.items()) and groups.get("count", 0) >= 0
    return [] if known and groups.get("weights") in get_args(Weights) else [groups]


def _is_finding(entry: Any) -> bool:
    """Whether a value is what `Finding.to_dict` writes."""
    kinds = {"name": str, "text": str, "evidence": dict}
    return isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in kinds.items())


def _is_described(image: Mapping[str, Any]) -> bool:
    """Whether a value is what `describe_image` writes: as many channels as the shape has, in each statistic."""
    columns = [_list(image.get(name)) for name in ("minimum", "maximum", "mean", "std")]
    numbers = all(type(value) in (int, float) for column in columns for value in column)
    shape = _list(image.get("shape"))
    return numbers and isinstance(image.get("id"), str) and {len(column) for column in columns} == set(shape[:1])


def _list(value: Any) -> list[Any]:
    """The value if it is a list, else `[None]`, which no check of the elements accepts."""
    return value if isinstance(value, list) else [None]


def _check_metric(metric: Any, source: str | Path) -> None:
    """Raise an OutputError unless a value is a manifest's entry of a metric."""
    if not isinstance(metric, dict) or not {"name", "interval", "higher_is_better"} <= metric.keys():
        raise _no_manifest(source, "a metric", "a table with name, interval and higher_is_better", metric)
    for key in ("name", "label", "excess_of", "control"):
        text = metric.get(key, "")
        if not (isinstance(text, str) and text.isprintable()):
            raise _no_manifest(source, f"a metric's {key}", "text that can be printed", text)
    if metric["interval"] not in ("mean", "wilson"):
        raise _no_manifest(source, "a metric's interval", "mean or wilson", metric["interval"])
    bounds = metric.get("bounds", [0, 1])
    if not (isinstance(bounds, list) and [isinstance(each, int | float) for each in bounds] == [True, True]):
        raise _no_manifest(source, "a metric's bounds", "two numbers", bounds)
    if not isinstance(metric["higher_is_better"], bool | None):
        raise _no_manifest(source, "a metric's higher_is_better", "true, false or null", metric["higher_is_better"])


def _no_manifest(source: str | Path, name: str, words: str, value: Any) -> OutputError:
    return OutputError(f"'{source}' is not a manifest: {name} is {words}, got {shortened(repr(value), 60)}; {MEND}")


def shortened(text: str, most: int) -> str:
    """The text, or its first `most` characters and an ellipsis.

    Example:
        >>> shortened("abcdef", 4)
        'abcd...'
    """
    return text if len(text) <= most else f"{text[:most]}..."


def read_rows(file: str | Path) -> pd.DataFrame:
    """Read rows from a Parquet file. Only the types of Parquet count; metadata written by pandas is ignored.

    Raises:
        FileNotFoundError: The file does not exist.
        OutputError: The file is not Parquet, or it is incomplete.
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


def check_rows(rows: pd.DataFrame, manifest: Mapping[str, Any], source: str | Path, keys: Sequence[str] = KEYS) -> pd.DataFrame:
    """Check that rows are those of a run, and return them with metrics as float64.

    Args:
        rows: The result of `read_rows`.
        manifest: The result of `read_manifest`, which lists the metrics.
        source: Their origin, for messages.
        keys: The columns that identify a row.

    Raises:
        OutputError: A column is missing or has the wrong type, a value is missing or impossible, a row occurs twice, or there
            are no rows.
    """
    metrics = check_columns(rows.columns, len(rows), manifest, source, keys)
    for name in checked_columns(rows.columns, metrics, keys):
        check_column(rows[name], metrics.get(name), source)
    check_once(rows, source, keys)
    if GROUP in rows:
        check_groups(rows, source)
    if "masks_of" in keys:
        _check_models(rows, manifest, source)
    return rows.astype(dict.fromkeys(metrics, "float64"))


def check_columns(
    columns: Iterable[str], count: int, manifest: Mapping[str, Any], source: str | Path, keys: Sequence[str]
) -> dict[str, str]:
    """The kind of interval of each column that holds values of a metric, of rows that have the columns of a run.

    Raises:
        OutputError: The manifest lists no metrics, a column is missing, or there are no rows.
    """
    if "metrics" not in manifest:
        raise OutputError(f"'{source}' holds no rows of a run: its manifest does not list the metrics; {MEND}")
    metrics = _value_columns(manifest)
    _check_names(columns, [*keys, *([GROUP] if "groups" in manifest else []), "status", *metrics], source)
    if not count:
        raise OutputError(f"'{source}' holds a run without rows; {MEND}")
    return metrics


def checked_columns(columns: Iterable[str], metrics: Iterable[str], keys: Sequence[str]) -> list[str]:
    """Those columns whose type and values are known."""
    known = {*keys, "status", *INTEGERS, *NUMBERS, *metrics}
    return [name for name in columns if name in known]


def check_once(rows: pd.DataFrame, source: str | Path, keys: Sequence[str]) -> None:
    """Raise an OutputError if a row occurs twice."""
    again = rows.duplicated(list(keys))
    if again.any():
        *names, last = map(repr, rows.loc[again, list(keys)].iloc[0])
        raise OutputError(f"'{source}' holds the row of {', '.join(names)} and {last} twice; {MEND}")


def _value_columns(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The kind of interval of each column that holds values of a metric, also those for matched controls."""
    able = [entry["excess_of"] for entry in manifest["metrics"] if "excess_of" in entry]
    kinds = dict.fromkeys(control_columns(able, manifest.get("matched_controls", [])), "mean")
    return {metric["name"]: metric["interval"] for metric in manifest["metrics"]} | kinds


def _check_names(columns: Iterable[str], wanted: Sequence[str], source: str | Path) -> None:
    """Raise an OutputError unless the columns are those of a run, or of cross scores if these are wanted."""
    columns = set(columns)
    if set(CROSS_KEYS) <= columns and not set(CROSS_KEYS) <= set(wanted):
        raise OutputError(f"'{source}' holds cross scores of several models; read them with xaieval.CrossScores.load")
    for name in wanted:
        if name not in columns:
            raise OutputError(f"'{source}' holds no rows of a run: the column {name!r} is missing; {MEND}")


def _check_models(rows: pd.DataFrame, manifest: Mapping[str, Any], source: str | Path) -> None:
    """Raise an OutputError unless the manifest of cross scores names the models of the rows."""
    models = _list(manifest.get("cross", {}).get("models"))
    if not all(isinstance(name, str) for name in models):
        raise OutputError(f"'{source}' holds no cross scores: its manifest does not list the models; {MEND}")
    for column, known in (("model", models), ("masks_of", [*models, *manifest.get("controls", [])])):
        odd = [name for name in rows[column].unique() if name not in known]
        if odd:
            raise OutputError(
                f"'{source}' holds no cross scores: the column {column!r} has {odd[0]!r}, and its manifest lists "
                f"{', '.join(known)}; {MEND}"
            )


def check_groups(rows: pd.DataFrame, source: str | Path) -> None:
    """Raise an OutputError unless every image that could be read has one group."""
    column, readable = rows[GROUP], rows["status"] != UNREADABLE
    if not is_string_dtype(column.dropna()) or not all(map(str.isprintable, column.dropna().unique())):
        raise OutputError(f"'{source}' holds no rows of a run: the column 'group' is text that can be printed; {MEND}")
    for images, problem in (
        (rows.loc[column.isna() & readable, "image_id"], "has no group"),
        (rows.loc[rows["image_id"].map(rows.groupby("image_id")[GROUP].nunique()) > 1, "image_id"], "is in several groups"),
    ):
        if len(images):
            raise OutputError(f"'{source}' holds no rows of a run: image {images.iloc[0]!r} {problem}; {MEND}")


def check_column(column: pd.Series[Any], interval: str | None, source: str | Path) -> None:
    """Raise an OutputError unless a column has the type, and a metric the values, of a run."""
    name = str(column.name)
    if name in (*CROSS_KEYS, "status"):
        good, words = (
            is_string_dtype(column) and column.dtype != "category" and not column.isna().any(),
            "text without missing values",
        )
        if good and name != "image_id":  # they are printed in tables
            good, words = all(map(str.isprintable, column.unique())), "text that can be printed"
    elif name in INTEGERS:
        good, words = is_integer_dtype(column) or bool(column.isna().all()), "whole numbers"
    else:
        good, words = is_numeric_dtype(column) and not is_bool_dtype(column) and column.dtype.kind != "c", "numbers"
    if good and interval == "wilson":
        good, words = bool(column.dropna().isin([0, 100]).all()), "0 or 100"
    if not good:
        raise OutputError(f"'{source}' holds no rows of a run: the column {name!r} is {words}, got {column.dtype}; {MEND}")
