"""A part of a run: some columns, layers and methods of it, and what its manifest then says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from xaieval.errors import OutputError
from xaieval.results.files import MANIFEST, ROWS
from xaieval.results.matched import control_columns
from xaieval.results.row_file import RowFile
from xaieval.results.rows import GROUP
from xaieval.results.validation import read_manifest

__all__ = ["PartOfRun", "check_not_whole"]

ENTRY = "part_of_run"  # of the manifest of a part


@dataclass(frozen=True)
class PartOfRun:
    """What is read of a run.

    Attributes:
        columns: Columns, in addition to those that identify a row, `group` and `status`; None for all.
        layers: Layers; None for all.
        methods: Methods; None for all.
    """

    columns: Sequence[str] | None = None
    layers: Sequence[str] | None = None
    methods: Sequence[str] | None = None

    @classmethod
    def of(cls, **given: str | Sequence[str] | None) -> PartOfRun:
        """The part with these names; a single name stands for a list of it."""
        return cls(**{key: [names] if isinstance(names, str) else names for key, names in given.items()})

    @property
    def is_all(self) -> bool:
        """Whether it is the whole run."""
        return self.columns is self.layers is self.methods is None

    def read(self, file: RowFile, manifest: Mapping[str, Any], keys: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The rows of the part and its manifest, without the metrics and controls that it lacks.

        Args:
            file: All rows.
            manifest: That of the run.
            keys: The columns that identify a row.

        Raises:
            OutputError: The run has no such column, layer or method, or its file cannot be read.
        """
        matched, metrics = manifest.get("matched_controls", []), manifest.get("metrics", [])
        names = file.columns if self.columns is None else [*keys, GROUP, "status", *self.columns]
        able = [entry["excess_of"] for entry in metrics if entry["name"] in names and "excess_of" in entry]
        names = [*names, *able, *control_columns(able, matched)]
        rows = file.read(self._in_order(file, names, keys), self.layers, self.methods)
        present = set(rows["method"].unique())
        part = {
            ENTRY: {key: None if value is None else list(value) for key, value in vars(self).items()},
            "metrics": [entry for entry in metrics if entry["name"] in names],
            "controls": [name for name in manifest.get("controls", []) if name in present],
            "matched_controls": matched if able else [],
        }
        return rows, {**manifest, **{key: value for key, value in part.items() if key == ENTRY or key in manifest}}

    def _in_order(self, file: RowFile, names: Sequence[str], keys: Sequence[str]) -> list[str]:
        """The columns as in the file, with those that it lacks at the end, except what only some runs have."""
        optional = {GROUP, "status", *keys}
        known = [name for name in file.columns if name in names]
        return [*known, *(name for name in dict.fromkeys(names) if name not in file.columns and name not in optional)]


def check_not_whole(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise an error if a part of a run would replace the whole run.

    Raises:
        OutputError: The folder holds a run, and the manifest is that of a part.
    """
    if ENTRY not in manifest or not all((folder / name).exists() for name in (ROWS, MANIFEST)):
        return
    if read_manifest(folder / MANIFEST).get(ENTRY) != manifest[ENTRY]:
        raise OutputError(f"'{folder}' holds a run, which a part of one would replace; save it into another folder")
