"""A run as data: its rows and its manifest, and the folder that keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd

from xaieval.config.groups import GroupsOf, Weights, resolve_groups
from xaieval.data.groups import check_weights, find_groups, group_source
from xaieval.errors import OutputError
from xaieval.results.checkpoints import read_unfinished
from xaieval.results.files import MANIFEST, POOLED, ROWS, SUMMARY, write_file, write_json, writing
from xaieval.results.manifest import count_groups
from xaieval.results.rows import GROUP, KEYS, UNREADABLE, with_group_column
from xaieval.results.validation import check_rows, read_manifest, read_rows

__all__ = ["RunRecord"]


@dataclass(frozen=True, repr=False)
class RunRecord:
    """The rows of a run and its manifest, from which every table, figure and page is made.

    Attributes:
        rows: One row per image, layer and method.
        manifest: Versions, protocol, seed, metrics, and fingerprints of model and data.
        maps: Images with their maps (`xaieval.report.Maps`), kept for the report and not written to the folder.

    Example:
        >>> record = RunRecord(pd.DataFrame({"image_id": ["a"]}), {"seed": 7, "controls": ["random"]})
        >>> record.seed, record.controls, record.metrics, record.complete
        (7, ['random'], [], True)
    """

    rows: pd.DataFrame
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
    def n_groups(self) -> int | None:
        """The number of groups that the images belong to; None for a run without groups."""
        return int(self.rows[GROUP].nunique()) if GROUP in self.rows else None

    @property
    def complete(self) -> bool:
        """Whether the run has finished."""
        return bool(self.manifest.get("complete", True))

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
        chosen = resolve_groups(groups)
        images = self.rows[self.rows["status"] != UNREADABLE].drop_duplicates("image_id")
        ids = [str(name) for name in images["image_id"]]
        found = find_groups(ids, _labels(images), chosen)
        if found is None:
            check_weights(GROUP in self.rows, chosen)
            entry, rows = self.manifest.get("groups", {"by": group_source(chosen)}), self.rows
            if GROUP not in rows:
                return self
        else:
            entry = {"by": group_source(chosen)}
            rows = with_group_column(self.rows, self.rows["image_id"].map(dict(zip(images["image_id"], found, strict=True))))
        manifest = self.manifest | {"groups": {**entry, "weights": chosen.weights}}
        return replace(self, rows=rows, manifest=manifest | count_groups(manifest, rows))

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
            write_file(folder / ROWS, lambda file: self.rows.to_parquet(file, index=False))
            write_file(folder / SUMMARY, lambda file: file.write(summary.to_csv().encode()))
            if pooled is not None:
                write_file(folder / POOLED, lambda file: file.write(pooled.to_csv().encode()))
            write_json(folder / MANIFEST, self.manifest)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a run from its folder. Of an unfinished run, read the batches measured so far; `complete` is then False.

        Raises:
            OutputError: The folder holds no run, or a damaged one.
        """
        folder = Path(path)
        try:
            if not (folder / MANIFEST).exists():
                rows, manifest = read_unfinished(folder)
            else:
                rows, manifest = read_rows(folder / ROWS), read_manifest(folder / MANIFEST)
        except FileNotFoundError as error:
            raise OutputError(f"'{path}' holds no run: there is no {Path(error.filename or ROWS).name}") from error
        return cls(check_rows(rows, manifest, path, cls.keys), manifest)


def _labels(images: pd.DataFrame) -> list[int | None] | None:
    """The class of each image, None where there is none; None for rows without labels."""
    if "label" not in images:
        return None
    return [None if pd.isna(label) else int(label) for label in images["label"]]
