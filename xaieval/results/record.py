"""A run as data: its rows and its manifest, and the folder that keeps them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import pandas as pd

from xaieval.config.groups import GroupsOf, Weights, resolve_groups
from xaieval.errors import DataError, OutputError
from xaieval.results.checkpoints import read_unfinished
from xaieval.results.files import MANIFEST, POOLED, ROWS, SUMMARY, whole_file, write_file, write_json, writing
from xaieval.results.manifest import count_groups
from xaieval.results.part_of_run import PartOfRun, check_not_whole
from xaieval.results.row_check import check_row_file
from xaieval.results.row_file import RowFile, RowWriter
from xaieval.results.row_pieces import MOST_ROWS, first_rows
from xaieval.results.rows import CONSTANT_MAP, GROUP, KEYS, UNREADABLE, with_group_column
from xaieval.results.run_rows import RowsOrFile, RunRows
from xaieval.results.validation import check_rows, read_manifest

__all__ = ["RunRecord"]


@dataclass(frozen=True, repr=False)
class RunRecord(RunRows):
    """The rows of a run and its manifest, from which every table, figure and page is made.

    Attributes:
        rows: One row per image, layer and method. See `of_file` for rows that are read only when they are asked for.
        manifest: Versions, protocol, seed, metrics, and fingerprints of model and data.
        maps: Images with their maps (`xaieval.report.Maps`), kept for the report.

    Example:
        >>> record = RunRecord(pd.DataFrame({"image_id": ["a"]}), {"seed": 7, "controls": ["random"]})
        >>> record.seed, record.controls, record.metrics, record.complete
        (7, ['random'], [], True)
    """

    if TYPE_CHECKING:
        rows: pd.DataFrame
    else:
        rows: pd.DataFrame = RowsOrFile()
    manifest: dict[str, Any] = field(default_factory=dict)
    maps: Any = field(default=None, compare=False)

    keys: ClassVar[Sequence[str]] = KEYS  # the columns that identify a row

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The manifest's entries of the metrics: name, direction, kind of interval, settings."""
        return list(self.manifest.get("metrics", []))

    @property
    def controls(self) -> list[str]:
        """The methods that are control maps; empty for a run without controls."""
        return list(self.manifest.get("controls", []))

    @property
    def notable_statuses(self) -> dict[str, int]:
        """`statuses` without the constant maps of controls such as `uniform`, which are meant to be constant."""
        counts: Counter[str] = Counter()
        for (_, method), known in self.count_statuses().items():
            counts.update({one: n for one, n in known.items() if one != CONSTANT_MAP or method not in self.controls})
        return dict(counts.most_common())

    @property
    def matched_controls(self) -> list[str]:
        """The matched controls of each map; empty for a run without them."""
        return list(self.manifest.get("matched_controls", []))

    @property
    def seed(self) -> int:
        """The seed of the run; resampling and random choices of images use it too."""
        return int(self.manifest.get("seed", 0))

    @property
    def group_weights(self) -> Weights:
        """What a mean counts: "images", or "groups" if every group of images counts the same."""
        weights: Weights = self.manifest.get("groups", {}).get("weights", "images")
        return weights

    @property
    def complete(self) -> bool:
        """Whether the run has finished."""
        return bool(self.manifest.get("complete", True))

    @classmethod
    def of_file(cls, file: RowFile, manifest: dict[str, Any]) -> Self:
        """A run whose rows are in a file, from which they are read when they are asked for.

        Of a run of more than 5 million rows, `summary`, `predictions` and counts are found in passes over the file, which hold
        a part of the rows at a time; what takes all values at once (tests, rankings, figures) takes the `sample`.

        Args:
            file: The rows, which are not checked.
            manifest: That of the run.
        """
        return cls(cast(Any, file), manifest)

    def with_maps(self, maps: Any) -> Self:
        """The same run with images and their maps (`xaieval.report.Maps`) for its report; None leaves it as it is."""
        return self if maps is None else type(self)(cast(Any, self.file or self.rows), self.manifest, maps)

    def with_groups(self, groups: GroupsOf) -> Self:
        """The same run with its images in groups, so that a finished run can be analysed by other groups; nothing is measured.

        Args:
            groups: As for `xaieval.score`. `Groups(weights="groups")` keeps the groups, and changes what means count.

        Returns:
            A run with the column `group` and the manifest's entry `groups`; this one stays unchanged.

        Raises:
            DataError: An image has no group.

        Example:
            >>> rows = pd.DataFrame({"image_id": ["lake1", "lake2"], "layer": "p5", "method": "gradcam", "status": "ok"})
            >>> run = RunRecord(rows).with_groups("lake|road")
            >>> run.rows["group"].tolist(), run.manifest["groups"]
            (['lake', 'lake'], {'by': 'lake|road', 'weights': 'images', 'count': 1})
        """
        from xaieval.data.groups import check_weights, find_groups, group_source  # with torch, which reading a run does without

        chosen = resolve_groups(groups)
        known = [name for name in ("image_id", "status", "label") if name in self.column_names]
        images = first_rows([part[part["status"] != UNREADABLE] for part in self.parts(known)], known[1:])
        ids = [str(name) for name in images["image_id"]]
        found = find_groups(ids, _labels(images), chosen)
        if found is None:
            check_weights(GROUP in self.column_names, chosen)
            if GROUP not in self.column_names:
                return self
            entry, rows = self.manifest.get("groups", {"by": group_source(chosen)}), self.file or self.rows
        elif self.is_large:
            raise DataError(f"other groups take all {self.n_rows:,} rows in memory; load some layers, methods or columns")
        else:
            entry = {"by": group_source(chosen)}
            rows = with_group_column(self.rows, self.rows["image_id"].map(dict(zip(images["image_id"], found, strict=True))))
        manifest = self.manifest | {"groups": {**entry, "weights": chosen.weights}}
        return type(self)(cast(Any, rows), manifest | count_groups(manifest, rows), self.maps)

    def _write(self, path: str | Path, summary: pd.DataFrame, pooled: pd.DataFrame | None = None) -> None:
        """Write `rows.parquet`, `summary.csv` and `manifest.json` into a folder. Each file is replaced as a whole.

        Args:
            path: The folder; created if it does not exist.
            summary: The table for `summary.csv`.
            pooled: The table for `pooled.csv` (default: none, and no such file).

        Raises:
            OutputError: The folder cannot be written.
        """
        folder = Path(path)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            check_not_whole(folder, self.manifest)
            self._write_rows(folder / ROWS)
            write_file(folder / SUMMARY, lambda file: file.write(summary.to_csv().encode()))
            if pooled is not None:
                write_file(folder / POOLED, lambda file: file.write(pooled.to_csv().encode()))
            write_json(folder / MANIFEST, self.manifest)

    def _write_rows(self, path: Path) -> None:
        """Write the rows, unless it is their own file."""
        if self.file is None or self.handed_out:
            with RowWriter(path) as writer:
                writer.write(self.rows)
        elif not (path.exists() and path.samefile(self.file.path)):
            with self.file.path.open("rb") as source, whole_file(path) as file:
                shutil.copyfileobj(source, file)

    @classmethod
    def load(
        cls,
        path: str | Path,
        columns: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
    ) -> Self:
        """Read a run from its folder. Of an unfinished run, read the batches measured so far; `complete` is then False.

        The rows of a run of more than 5 million rows are checked, but read only when they are asked for.

        Args:
            path: The folder.
            columns: Columns to read, such as the names of some metrics (default: all). Those that identify a row, `group` and
                `status` are always read. Metrics that are left out are not in the manifest of the result either.
            layers: The layers to read (default: all); that of control maps is "input".
            methods: The methods to read (default: all).

        Raises:
            OutputError: The folder holds no run, or a damaged one; or the run has no such column, layer or method.
        """
        folder, part = Path(path), PartOfRun.of(columns=columns, layers=layers, methods=methods)
        try:
            if not (folder / MANIFEST).exists():
                if not part.is_all:
                    raise OutputError(f"'{path}' holds no finished run, and an unfinished one is read as a whole")
                rows, manifest = read_unfinished(folder)
                return cls(check_rows(rows, manifest, path, cls.keys), manifest)
            manifest, file = read_manifest(folder / MANIFEST), RowFile(folder / ROWS)
        except FileNotFoundError as error:
            raise OutputError(f"'{path}' holds no run: there is no {Path(error.filename or ROWS).name}") from error
        if part.is_all and len(file) > MOST_ROWS:
            check_row_file(file, manifest, path, cls.keys)
            return cls.of_file(file, manifest)
        rows, manifest = (file.read(), manifest) if part.is_all else part.read(file, manifest, cls.keys)
        return cls(check_rows(rows, manifest, path, cls.keys), manifest)


def _labels(images: pd.DataFrame) -> list[int | None] | None:
    """The class of each image, None where there is none; None for rows without labels."""
    if "label" not in images:
        return None
    return [None if pd.isna(label) else int(label) for label in images["label"]]
