"""What is asked of all rows of a large run, in passes over its file that hold only a piece of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from xaieval.results.row_file import RowFile
from xaieval.results.row_tables import frame_of, is_text
from xaieval.results.rows import Pair

__all__ = ["MOST_ROWS", "SAMPLE_ROWS", "first_rows", "rows_by_pair", "sampled_rows"]

MOST_ROWS = 5_000_000  # of a run that is held in memory as a whole: some GB with all copies that tests make
SAMPLE_ROWS = 2_000_000  # of a larger run, on which tests are made
PIECE_BYTES = 420_000_000  # of the values that are held at a time


def rows_by_pair(file: RowFile, columns: Sequence[str]) -> Iterator[tuple[Pair, pd.DataFrame]]:
    """The rows of each pair of layer and method, in the order in which the pairs first occur.

    The file is read once for as many pairs as fit into 420 MB, so that fewer columns take fewer passes.

    Args:
        file: The rows of a run.
        columns: Columns of text or of numbers; text becomes categories.

    Raises:
        OutputError: The file cannot be read, or has no such column.
    """
    pairs = file.pairs
    per_row = sum(2 if name in file.text else 8 for name in columns)
    per_pair = max(per_row, 1) * len(file) / max(len(pairs), 1)
    step = max(1, int(PIECE_BYTES / max(per_pair, 1)))
    for start in range(0, len(pairs), step):
        yield from _read_pairs(file, pairs[start : start + step], columns)


def sampled_rows(file: RowFile, most: int = SAMPLE_ROWS) -> pd.DataFrame:
    """All rows of images that are drawn at random, as many images as give at most so many rows; in their order.

    They are drawn by their ids alone, so that two runs of the same images have the same ones.
    """
    keys = pd.unique(
        np.concatenate([_hashes(table.column("image_id").chunk(0).dictionary) for table in file.tables(["image_id"])])
    )
    count = max(1, int(len(keys) * most / max(len(file), 1)))
    last = np.sort(keys)[min(count, len(keys)) - 1]
    kept = []
    for table in file.tables():
        ids = table.column("image_id").chunk(0)
        drawn = _hashes(ids.dictionary) <= last
        kept.append(table.filter(pa.array(drawn[ids.indices.to_numpy()])))
    return frame_of(pa.concat_tables(kept))


def first_rows(frames: Iterable[pd.DataFrame], columns: Sequence[str] = ()) -> pd.DataFrame:
    """The first row of each image.

    Args:
        frames: The rows in pieces, with the column `image_id` and those that are asked for.
        columns: Other columns.
    """
    names = ["image_id", *columns]
    firsts = [_plain(frame[names].drop_duplicates("image_id")) for frame in frames]
    return pd.concat(firsts, ignore_index=True).drop_duplicates("image_id", ignore_index=True)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Categories as the text that they stand for."""
    coded = [name for name in frame if frame[name].dtype == "category"]
    return frame.astype({name: frame[name].cat.categories.dtype for name in coded})


def _read_pairs(file: RowFile, pairs: Sequence[Pair], columns: Sequence[str]) -> Iterator[tuple[Pair, pd.DataFrame]]:
    """The rows of some pairs, in one pass."""
    words: dict[str, dict[Any, int]] = {}
    parts: list[dict[str, list[Any]]] = [{name: [] for name in columns} for _ in pairs]
    for table in file.tables(["layer", "method", *columns]):
        place = _places(table, pairs)
        here = np.flatnonzero(place < len(pairs))
        order = here[np.argsort(place[here], kind="stable")]
        ends = np.cumsum(np.bincount(place[here], minlength=len(pairs)))
        for name in columns:
            values = _numbers(table.column(name), words.setdefault(name, {}))[order]
            for part, own in zip(parts, np.split(values, ends[:-1]), strict=True):
                part[name].append(own)
    for pair, part in zip(pairs, parts, strict=True):
        yield pair, pd.DataFrame({name: _series(part.pop(name), words[name]) for name in columns})


def _places(table: pa.Table, pairs: Sequence[Pair]) -> Any:
    """The number of the pair of each row; that after the last for rows of other pairs."""
    layers, methods = (table.column(name).chunk(0) for name in ("layer", "method"))
    known = {pair: place for place, pair in enumerate(pairs)}
    names = [chunk.dictionary.to_pylist() for chunk in (layers, methods)]
    grid = np.array([[known.get((layer, method), len(pairs)) for method in names[1]] for layer in names[0]], dtype=np.int16)
    return grid[layers.indices.to_numpy(), methods.indices.to_numpy()]


def _numbers(column: pa.ChunkedArray, words: dict[Any, int]) -> Any:
    """The values of a column; of text, the numbers of its words, to which new ones are added, and -1 where it is missing."""
    if not is_text(column.type):
        return column.to_numpy()
    [chunk] = column.chunks
    codes = [words.setdefault(word, len(words)) for word in chunk.dictionary.to_pylist()]
    places = (chunk.indices.fill_null(len(codes)) if chunk.null_count else chunk.indices).to_numpy()
    return np.array([*codes, -1], dtype=np.min_scalar_type(-len(words) - 1))[places]


def _series(parts: Sequence[Any], words: dict[Any, int]) -> Any:
    values = np.concatenate(parts)
    return pd.Categorical.from_codes(values, pd.Index(list(words))) if words else values


def _hashes(names: pa.Array) -> Any:
    """A number for each name, as if it were random."""
    return pd.util.hash_array(np.asarray(names.to_pylist(), dtype=object), categorize=False)
