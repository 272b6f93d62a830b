"""The rows of a run, in memory or in its file, from which they are read when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Self, overload

import pandas as pd

from xaieval.results.row_file import RowFile
from xaieval.results.row_pieces import MOST_ROWS, SAMPLE_ROWS, first_rows, rows_by_pair, sampled_rows
from xaieval.results.rows import GROUP, Pair

__all__ = ["RowsOrFile", "RunRows"]


class RowsOrFile:
    """A field of a frozen dataclass that is given a data frame or a `RowFile`, and is a data frame when it is read."""

    @overload
    def __get__(self, record: None, owner: type) -> Self: ...
    @overload
    def __get__(self, record: object, owner: type) -> pd.DataFrame: ...
    def __get__(self, record: object | None, owner: type) -> Self | pd.DataFrame:
        if record is None:
            raise AttributeError("rows have no default")
        given = record.__dict__["rows"]
        if not isinstance(given, RowFile):
            frame: pd.DataFrame = given
            return frame
        if "_read" not in record.__dict__:
            record.__dict__["_read"] = given.read()
        read: pd.DataFrame = record.__dict__["_read"]
        return read

    def __set__(self, record: object, value: pd.DataFrame | RowFile) -> None:
        record.__dict__["rows"] = value
        record.__dict__.pop("_read", None)


class RunRows:
    """What a `RunRecord` tells of its rows without holding all of them in memory."""

    rows: Any
    manifest: Any

    @property
    def file(self) -> RowFile | None:
        """The file of the rows, if they were not given as a data frame."""
        given = self.__dict__["rows"]
        return given if isinstance(given, RowFile) else None

    @property
    def is_large(self) -> bool:
        """Whether the rows are in a file and too many to be held in memory together: more than 5 million."""
        return self.file is not None and len(self.file) > MOST_ROWS

    @property
    def handed_out(self) -> bool:
        """Whether `rows` is a data frame that was read or given, which its owner may have changed."""
        return self.file is None or "_read" in self.__dict__

    @property
    def column_names(self) -> list[str]:
        """The names of the columns of `rows`."""
        return list(self.rows) if self.file is None else list(self.file.columns)

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return len(self.rows) if self.file is None else len(self.file)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs of layer and method, in the order in which they first occur."""
        if self.file is not None:
            return self.file.pairs
        return list(self.rows[["layer", "method"]].drop_duplicates().itertuples(index=False, name=None))

    @property
    def n_images(self) -> int:
        """The number of images, also those that could not be read."""
        return self._images_in_file if self.is_large else int(self.rows["image_id"].nunique())

    @cached_property
    def _images_in_file(self) -> int:
        return len(self.images())

    @property
    def n_groups(self) -> int | None:
        """The number of groups that the images belong to; None for a run without groups."""
        if GROUP not in self.column_names:
            return None
        return len({name for part in self.parts([GROUP]) for name in part[GROUP].dropna().unique()})

    def parts(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Some columns of all rows, in pieces that fit into the memory, in order; a single one if all rows do.

        The pieces of a large run have text as categories, which differ from one to the next.
        """
        if self.is_large and self.file is not None:
            return self.file.frames(list(columns))
        return iter([self.rows[list(columns)]])

    def by_pair(self, columns: Sequence[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
        """The rows of each pair of layer and method, with at least these columns, of text or of numbers.

        Text is in categories for a large run.
        """
        if self.is_large and self.file is not None:
            return rows_by_pair(self.file, columns)
        return iter(self.rows.groupby(["layer", "method"], sort=False))

    def images(self, columns: Sequence[str] = ()) -> pd.DataFrame:
        """The first row of each image: its id, and these columns, of which those that the run lacks are missing."""
        known = [name for name in columns if name in self.column_names]
        return first_rows(self.parts(["image_id", *known]), known).reindex(columns=["image_id", *columns])

    def count_statuses(self) -> dict[Pair, dict[str, int]]:
        """By layer and method, the number of rows of each status, in the order in which they occur."""
        counts: dict[Pair, dict[str, int]] = {}
        for part in self.parts(["layer", "method", "status"]):
            sizes: Any = part.groupby(["layer", "method", "status"], sort=False, observed=True).size()
            for (layer, method, status), count in sizes.items():
                known = counts.setdefault((layer, method), {})
                known[status] = known.get(status, 0) + int(count)
        return counts

    @property
    def statuses(self) -> dict[str, int]:
        """The number of rows of each status, the most frequent first."""
        counts: Counter[str] = Counter()
        for known in self.count_statuses().values():
            counts.update(known)
        return dict(counts.most_common())

    @cached_property
    def sample(self) -> Self:
        """This run; of a large one, the rows of images drawn at random (by their ids), at most 2 million rows.

        It is what tests, rankings, figures and the lists of a report take, which need all values at once; `sample_note` says
        so.
        """
        if not self.is_large or self.file is None:
            return self
        return type(self)(sampled_rows(self.file, SAMPLE_ROWS), self.manifest)  # type: ignore[call-arg]

    @property
    def sample_note(self) -> str:
        """Which images tests and figures take, as a sentence; "" if they take all of them."""
        if not self.is_large:
            return ""
        return (
            f"means, intervals and counts are over all {self.n_images:,} images; tests, rankings, figures and lists take "
            f"{self.sample.n_images:,} of them, drawn at random, since tests take all rows in memory"
        )
