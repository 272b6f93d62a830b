"""All rows of a run in one Parquet file, which is written and read piece by piece, so that it may be larger than the memory.

A piece is a row group of about half a million rows. Every page has a checksum, so that a damaged file is noticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xaieval.errors import OutputError, choose_from
from xaieval.results.files import whole_file
from xaieval.results.part_files import read_part
from xaieval.results.row_tables import as_columns_of, frame_of, is_text, joined_tables, table_of, with_dictionaries
from xaieval.results.rows import Pair

__all__ = ["RowFile", "RowWriter", "merge_parts"]

GROUP_ROWS, GROUP_BYTES = 2**19, 2**26  # of a row group; curves make rows large
FEW_VALUES = 0.1  # share of different values up to which a column of numbers is smaller by a dictionary
SAMPLE = 2**16  # rows by which that is decided
DICTIONARY_BYTES = 2**23  # of a column in a row group; above it, text is written as it is
MEND = "score it again, into another folder"


class RowWriter:
    """Writes rows into a Parquet file, piece by piece; in a `with` block, at whose end the file appears under its name.

    If the block raises, or the process dies, there is no file, or the one that was there before. `pandas.read_parquet` gives
    the same columns, types and values as for a file that `DataFrame.to_parquet` wrote from all rows at once.

    Args:
        path: The file, which is replaced if it exists; its folder exists.
        group_rows: Rows after which a row group is written; fewer if they take much memory.

    Attributes:
        count: The number of rows so far.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.parquet"
        >>> with RowWriter(path) as writer:
        ...     for name in "ab":
        ...         writer.write(pd.DataFrame({"image_id": [name], "layer": "p5", "method": "gradcam", "average_drop": 20.0}))
        >>> pd.read_parquet(path)["image_id"].tolist()
        ['a', 'b']
    """

    def __init__(self, path: str | Path, group_rows: int = GROUP_ROWS) -> None:
        self.count = 0
        self._group_rows = group_rows
        self._whole = whole_file(Path(path))
        self._file: Any = None
        self._parquet: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None
        self._waiting: list[pa.Table] = []
        self._rows_waiting = self._bytes_waiting = 0

    def __enter__(self) -> Self:
        self._file = self._whole.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is not None:
            with suppress(Exception):  # the first error is the one to report
                self._close()
            return self._whole.__exit__(*error)
        with ExitStack() as stack:
            stack.push(self._whole)
            self._flush()
            self._close()
        return None

    def write(self, rows: pa.Table | pd.DataFrame) -> None:
        """Add rows. The first ones decide on the columns, and their types; what later ones lack of them is missing.

        Args:
            rows: A data frame, or a table as `read_part` and `RowFile.tables` give it.

        Raises:
            OutputError: The rows have a column that the first ones have not, or one of another type.
            OSError: The file cannot be written.
        """
        table = table_of(rows) if isinstance(rows, pd.DataFrame) else with_dictionaries(rows)
        if self._schema is None:
            self._schema = table.schema
        self._waiting.append(as_columns_of(self._schema, table))
        self.count += len(table)
        self._rows_waiting += len(table)
        self._bytes_waiting += table.nbytes
        if self._rows_waiting >= self._group_rows or self._bytes_waiting >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write a row group of what waits, or several of a large table."""
        if not self._waiting:
            return
        table = joined_tables(self._waiting)
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(
                self._file,
                table.schema,
                compression="zstd",
                store_schema=False,  # which would say that text is in dictionaries, and pandas would make categories of it
                write_statistics=False,  # every layer is in every row group
                write_page_checksum=True,
                dictionary_pagesize_limit=DICTIONARY_BYTES,
                **_encodings(table),
            )
            # Tables that were read from a file say nothing to pandas.
            described = table if table.schema.pandas_metadata else table_of(frame_of(table.slice(length=0)))
            self._parquet.add_key_value_metadata(described.schema.metadata)
        self._parquet.write_table(table, row_group_size=self._group_rows)
        self._waiting, self._rows_waiting, self._bytes_waiting = [], 0, 0

    def _close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()


class RowFile:
    """The rows of a run in a Parquet file, read piece by piece, with the columns, layers and methods that are needed.

    The file may be of any origin; only the types of Parquet count, not what pandas wrote about them. It is opened for each
    reading, and has to stay as it is.

    Args:
        path: The file.

    Attributes:
        path: The file.
        columns: The names of its columns.
        text: The names of those that hold text.

    Raises:
        FileNotFoundError: The file does not exist.
        OutputError: The file is not Parquet, cut off, or has two columns of the same name. Reading raises it for a file that is
            damaged, or that was replaced since.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "rows.parquet"
        >>> rows = pd.DataFrame({"image_id": ["a", "a"], "layer": ["p4", "p5"], "method": "gradcam", "mask_area": 0.5})
        >>> merge_parts([rows], path)
        2
        >>> file = RowFile(path)
        >>> len(file), file.pairs
        (2, [('p4', 'gradcam'), ('p5', 'gradcam')])
        >>> file.read(["image_id", "mask_area"], layers=["p5"])
          image_id  mask_area
        0        a        0.5
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._state = _state(self.path)
        self.text: list[str] = []
        with self._opened() as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
        self._starts = [0, *accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))]
        self.columns: list[str] = schema.names
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice:
            raise OutputError(f"'{path}' holds the column {twice[0]!r} twice; {MEND}")
        self.text = [one.name for one in schema if is_text(one.type)]
        self._last: tuple[int, pa.Table] | None = None  # the row group that was read last, for `slice`

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs of layer and method, in the order in which they first occur."""
        found: dict[Pair, None] = {}
        for frame in self.frames(["layer", "method"]):
            layers, methods = frame["layer"].cat, frame["method"].cat
            codes = layers.codes.to_numpy(dtype=np.int64) * len(methods.categories) + methods.codes.to_numpy()
            for layer, method in (divmod(int(code), len(methods.categories)) for code in pd.unique(codes)):
                found[layers.categories[layer], methods.categories[method]] = None
        return list(found)

    def frames(
        self,
        columns: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Iterator[pd.DataFrame]:
        """The rows in order, as one data frame per row group; text as categories, which differ from one to the next.

        Args:
            columns: The columns to read (default: all).
            layers: The layers to read (default: all).
            methods: The methods to read (default: all).

        Raises:
            OutputError: A column, layer or method is not in the file, or the file cannot be read.
        """
        return (frame_of(table, categorical=True) for table in self.tables(columns, layers, methods))

    def tables(
        self,
        columns: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Iterator[pa.Table]:
        """As `frames`, as Arrow tables; of a file without rows, one table without rows."""
        names = self.columns if columns is None else list(columns)
        chosen = {name: list(values) for name, values in (("layer", layers), ("method", methods)) if values is not None}
        self._check_known("column", [*names, *chosen], self.columns)
        for name, values in chosen.items():
            self._check_known(name, values, dict.fromkeys(pair[name == "method"] for pair in self.pairs))
        return self._tables(names, chosen)

    def read(
        self,
        columns: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        *,
        categorical: bool = False,
    ) -> pd.DataFrame:
        """All rows, or those of some layers and methods, as one data frame.

        Args:
            columns: The columns to read (default: all), in this order.
            layers: The layers to read (default: all).
            methods: The methods to read (default: all).
            categorical: Read text as categories, which take 4 bytes per row.

        Raises:
            OutputError: A column, layer or method is not in the file, or the file cannot be read.
        """
        tables = list(self.tables(columns, layers, methods))
        table = pa.concat_tables(tables)
        return frame_of(table.unify_dictionaries() if categorical else table, categorical)

    def slice(self, start: int, stop: int) -> pd.DataFrame:
        """The rows `start` to `stop`, without the last. The row group of the last call is kept, for the batch after it.

        Raises:
            OutputError: The file cannot be read.
        """
        parts = []
        for group, (first, end) in enumerate(pairwise(self._starts)):
            if first < stop and end > start:
                here = max(start, first) - first
                parts.append(self._group(group).slice(here, min(stop, end) - first - here))
        return frame_of(pa.concat_tables(parts)) if parts else self.read().iloc[:0]

    def _group(self, group: int) -> pa.Table:
        if self._last is None or self._last[0] != group:
            with self._opened() as parquet:
                self._last = group, with_dictionaries(parquet.read_row_group(group))
        return self._last[1]

    def _tables(self, names: Sequence[str], chosen: Mapping[str, Sequence[str]]) -> Iterator[pa.Table]:
        needed = list(dict.fromkeys([*names, *chosen]))
        with self._opened() as parquet:
            if len(self._starts) == 1:
                yield with_dictionaries(parquet.read(needed)).select(names)
            for group in range(len(self._starts) - 1):
                table = with_dictionaries(parquet.read_row_group(group, needed).combine_chunks())
                for name, values in chosen.items():
                    table = table.filter(_is_one_of(table.column(name), values))
                yield table.select(names).replace_schema_metadata()

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        """The open file.

        Raises:
            FileNotFoundError: It does not exist.
            OutputError: It is another one than before, or cannot be read.
        """
        try:
            if _state(self.path) != self._state:
                raise OutputError(f"'{self.path}' was replaced after its run was loaded; load it again")
            with pq.ParquetFile(self.path, read_dictionary=self.text, page_checksum_verification=True) as parquet:
                yield parquet
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"'{self.path}' cannot be read as Parquet: {error}; {MEND}") from error

    def _check_known(self, kind: str, given: Iterable[str], known: Iterable[str]) -> None:
        """Raise an OutputError for a name that the file does not have."""
        names = dict.fromkeys(known)
        odd = [name for name in given if name not in names]
        if odd:
            raise OutputError(f"'{self.path}' has no {kind} {odd[0]!r}; {choose_from(odd[0], names)}")


def merge_parts(parts: Iterable[str | Path | pa.Table | pd.DataFrame], path: str | Path) -> int:
    """Write parts into one file, in the order in which they come; only one row group at a time is in memory.

    Args:
        parts: Files that `write_part` wrote, or rows.
        path: The file, which is there completely or not at all.

    Returns:
        The number of rows.

    Raises:
        FileNotFoundError: A part does not exist.
        OutputError: A part is damaged, or has other columns than the first one.
        OSError: The file cannot be written.
    """
    with RowWriter(path) as writer:
        for part in parts:
            writer.write(read_part(part) if isinstance(part, str | Path) else part)
    return writer.count


def _state(path: Path) -> tuple[int, int, int]:
    """By which a file that was replaced is known."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _encodings(table: pa.Table) -> dict[str, list[str]]:
    """How each column is written: by a dictionary if it has few values, and numbers of many values byte by byte."""
    coded, split = [], []
    for field in table.schema:
        if is_text(field.type) or _has_few_values(table.column(field.name).slice(length=SAMPLE)):
            coded.append(field.name)
        elif pa.types.is_floating(field.type):
            split.append(field.name)
    return {"use_dictionary": coded, "use_byte_stream_split": split}


def _has_few_values(column: pa.ChunkedArray) -> bool:
    """Whether a column of numbers has few different ones: classes, proportions, what is the same for all maps of an image."""
    return bool(pa.types.is_primitive(column.type) and pc.count_distinct(column).as_py() <= FEW_VALUES * len(column))


def _is_one_of(column: pa.ChunkedArray, names: Sequence[str]) -> pa.Array:
    """Whether each row of a column in dictionaries has one of these names."""
    masks = []
    for chunk in column.chunks:
        known = np.isin(np.asarray(chunk.dictionary.to_pylist(), dtype=object), list(names))
        masks.append(np.append(known, False)[chunk.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)])
    return pa.array(np.concatenate(masks))
