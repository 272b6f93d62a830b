"""Rows as Arrow tables, in which names take little space, and back as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from xaieval.errors import OutputError
from xaieval.results.rows import CROSS_KEYS, GROUP

__all__ = ["as_columns_of", "frame_of", "is_text", "joined_tables", "table_of", "with_dictionaries"]

CURVE = "_curve"  # at the end of the names of columns that hold a list of numbers in each row
NAMES = (*CROSS_KEYS, GROUP, "status")
TEXT = pa.dictionary(pa.int32(), pa.string())  # the type of every column of text: as what is read from Parquet


def table_of(rows: pd.DataFrame) -> pa.Table:
    """Rows as a table whose text is in dictionaries: each name once, and a number per row.

    A column without any value gets the type that it has in other tables of the same run. The metadata of pandas are kept, by
    which `pandas.read_parquet` finds the types of the columns.

    Example:
        >>> table = table_of(pd.DataFrame({"layer": ["p5", "p5"], "group": [None, None]}))
        >>> table.schema.field("layer").type == table.schema.field("group").type == TEXT
        True
    """
    plain = {name: rows[name].cat.categories.dtype for name in rows if rows[name].dtype == "category"}
    table = pa.Table.from_pandas(rows.astype(plain), preserve_index=False)
    for place, field in enumerate(table.schema):
        if pa.types.is_null(field.type):
            table = table.set_column(place, field.name, pa.chunked_array([pa.nulls(len(table), _type_of(field.name))]))
    return with_dictionaries(table)


def with_dictionaries(table: pa.Table) -> pa.Table:
    """A table with its columns of text in dictionaries, whichever of Arrow's types for text they have."""
    for place, field in enumerate(table.schema):
        if is_text(field.type) and field.type != TEXT:
            chunks = [_with_dictionary(chunk) for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, TEXT))
    return table


def is_text(kind: pa.DataType) -> bool:
    """Whether a type of Arrow is text, in a dictionary or not."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _with_dictionary(chunk: pa.Array) -> pa.Array:
    coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
    return pa.DictionaryArray.from_arrays(coded.indices.cast(TEXT.index_type), coded.dictionary.cast(TEXT.value_type))


def frame_of(table: pa.Table, categorical: bool = False) -> pd.DataFrame:
    """The rows of a table as a data frame, with integers that may be missing as `Int64`. Metadata are ignored.

    Args:
        table: Any table.
        categorical: Keep columns with dictionaries as categories, which take a tenth of the memory of text.
    """
    if not categorical:
        table = _dense(table)
    return table.replace_schema_metadata().to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def as_columns_of(schema: pa.Schema, table: pa.Table) -> pa.Table:
    """A table with the columns and types of a schema, in its order; values of a column that the table lacks are missing.

    Raises:
        OutputError: The table has another column, or one that is not of this type.
    """
    if table.schema.equals(schema):
        return table
    others = [name for name in table.column_names if name not in schema.names]
    if others:
        raise OutputError(f"rows have the column {others[0]!r}, which rows before them have not")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.chunked_array([pa.nulls(len(table), field.type)]))
            continue
        column = table.column(field.name)
        if column.type != field.type:
            if not (pa.types.is_null(column.type) or column.null_count == len(column)):
                raise OutputError(
                    f"rows have {column.type} in the column {field.name!r}, where rows before them have {field.type}"
                )
            column = pa.chunked_array([pa.nulls(len(column), field.type)])
        columns.append(column)
    return pa.table(columns, schema=schema)


def joined_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of the same schema one below the other, with one dictionary for each column of text."""
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _dense(table: pa.Table) -> pa.Table:
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table


def _type_of(name: str) -> Any:
    """The type of a column that has no value."""
    if name in NAMES:
        return TEXT
    return pa.list_(pa.float64()) if name.endswith(CURVE) else pa.float64()
