"""The parts of a run on the disk: a file for each batch, with its rows and a description of what they were made of.

A part is small, often some thousand rows, and a large run has tens of thousands of them. So a part is a stream of Arrow with
each name once, compressed as a whole: it is smaller than a Parquet file of these rows, and read in a fifth of the time. A
checksum tells a damaged file from a whole one.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from xaieval.errors import OutputError
from xaieval.results.files import write_file
from xaieval.results.row_tables import table_of

__all__ = ["SUFFIX", "read_description", "read_part", "write_part"]

SUFFIX = ".part.arrow"  # of the names of files
MAGIC = b"xaipart1"
HEAD = struct.Struct("<8sI")  # the magic number, and the CRC-32 of all that follows: the size below, then what is compressed
SIZE = struct.Struct("<Q")  # of the stream before compression
KEY = b"xaieval"  # of the description, in the metadata of the schema
CODEC, LEVEL = "zstd", 1


def write_part(path: str | Path, rows: pd.DataFrame | pa.Table, description: Mapping[str, Any]) -> None:
    """Write a part. The file is there completely or not at all, whenever the process dies.

    Args:
        path: The file, which is replaced if it exists; its folder exists.
        rows: Rows of a run, as a data frame or as `read_part` gives them.
        description: What can be written as JSON: for example the checksum of the batch and the ids of its images.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / f"00000000{SUFFIX}"
        >>> write_part(path, pd.DataFrame({"image_id": ["a", "b"], "average_drop": [20.0, 30.0]}), {"check": "2:00c0ffee"})
        >>> read_part(path).num_rows, read_description(path)
        (2, {'check': '2:00c0ffee'})
    """
    table = table_of(rows) if isinstance(rows, pd.DataFrame) else rows
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(description).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = sink.getvalue()
    body = SIZE.pack(content.size) + pa.Codec(CODEC, LEVEL).compress(content, asbytes=True)
    write_file(Path(path), lambda file: file.write(HEAD.pack(MAGIC, zlib.crc32(body)) + body))


def read_part(path: str | Path) -> pa.Table:
    """Read the rows of a part, with text in dictionaries; see `xaieval.results.row_tables.frame_of` for a data frame.

    Raises:
        FileNotFoundError: The file does not exist.
        OutputError: The file is damaged, cut off, or no part.
    """
    try:
        table = _stream(path).read_all()
    except pa.ArrowException as error:
        raise _damaged(path, str(error)) from error
    return table.replace_schema_metadata({key: value for key, value in table.schema.metadata.items() if key != KEY})


def read_description(path: str | Path) -> Any:
    """Read the description of a part, which was checked to be whole.

    Raises:
        FileNotFoundError: The file does not exist.
        OutputError: The file is damaged, cut off, or no part.
    """
    try:
        return json.loads(_stream(path).schema.metadata[KEY])
    except (pa.ArrowException, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def _stream(path: str | Path) -> Any:
    """The stream in a file, whose checksum was checked.

    Raises:
        FileNotFoundError: The file does not exist.
        OutputError: The file is damaged, cut off, or no part.
        ArrowException: It holds no stream.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    if len(content) < HEAD.size + SIZE.size or not content.startswith(MAGIC):
        raise _damaged(path, "it is cut off, or no part of a run")
    body = memoryview(content)[HEAD.size :]
    if zlib.crc32(body) != HEAD.unpack_from(content)[1]:
        raise _damaged(path, "its checksum is another one")
    (size,) = SIZE.unpack_from(body)
    stream = pa.Codec(CODEC).decompress(pa.py_buffer(body[SIZE.size :]), size)
    return pa.ipc.open_stream(stream, options=pa.ipc.IpcReadOptions(use_threads=False))  # small: threads would cost more


def _damaged(path: str | Path, reason: str) -> OutputError:
    return OutputError(f"'{path}' is damaged: {reason}")
