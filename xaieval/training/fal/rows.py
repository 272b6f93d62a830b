"""The results of all runs in few small files, from which all tables are made: for each seed one of rows and one of records.

Percentages are rounded to 0.01, confidences and areas to 0.0001, and stored as integers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from xaieval.errors import OutputError
from xaieval.models import LEVELS
from xaieval.results.files import write_file, write_json
from xaieval.results.rows import COUNTED
from xaieval.training.fal.arms import FPN
from xaieval.training.fal.choice import CHOICE
from xaieval.training.fal.runs import METHODS, RECORD, ROWS

__all__ = ["pack", "read_methods", "read_records", "read_rows"]

KEYS = ["arm", "fold", "seed", "image_id", "level"]  # identify a row
UNITS = {  # what an integer in the file counts
    "confidence": 1e-4,
    "average_drop": 0.01,
    "increase_in_confidence": 1.0,
    "average_drop_shifted": 0.01,
    "mask_area": 1e-4,
}
INTEGERS = {"fold": "Int16", "seed": "Int32", "label": "Int16", "predicted": "Int16"}
CATEGORIES = ["arm", "image_id", "group", "level", "method"]
COLUMNS = ["arm", "fold", "seed", "image_id", "group", "label", "predicted", "level", *UNITS]


def pack(folder: Path, groups: Mapping[str, str]) -> None:
    """Write the results of all finished runs of an experiment into its folder.

    Args:
        folder: The folder of the experiment, with one folder per run.
        groups: The block of each image, by its id.
    """
    by_seed: dict[int, list[Path]] = {}
    for path in sorted(folder.glob(f"fold*-seed*/*/{RECORD}")):
        by_seed.setdefault(json.loads(path.read_text())["seed"], []).append(path.parent)
    for seed, places in by_seed.items():
        records = [_record(place) for place in places]
        tables = [_rows(place / ROWS, record, groups) for place, record in zip(places, records, strict=True)]
        _write(folder / f"rows-seed{seed}.parquet", pd.concat(tables)[COLUMNS])
        _pack_methods(folder / f"methods-seed{seed}.parquet", places, groups)
        write_json(folder / f"runs-seed{seed}.json", records)


def read_rows(folder: str | Path) -> pd.DataFrame:
    """The rows of all runs of an experiment: one per arm, fold, seed, test image and level.

    Args:
        folder: The folder of the experiment.

    Returns:
        Columns `arm`, `fold`, `seed`, `image_id`, `group` (the block of the image), `label`, `predicted`, `level` (p2 to p5,
        where the map was made), `confidence` and `mask_area` in [0, 1], and in percent `average_drop`,
        `increase_in_confidence`, `average_drop_shifted` (of the same map, shifted) and `average_drop_excess`, the difference
        of the two drops. Values that do not count are NaN.

    Raises:
        OutputError: The folder holds no such rows.
    """
    paths = _paths(Path(folder), "rows-seed*.parquet")
    if not paths:
        raise OutputError(f"'{folder}' holds no rows of an experiment; 'xaieval-bench fal --out FOLDER' makes them")
    return pd.concat([_read(path) for path in paths], ignore_index=True)


def read_methods(folder: str | Path) -> pd.DataFrame:
    """The rows of the FPN by the other methods, as `read_rows` has them, with the column `method`; empty if there are none."""
    paths = _paths(Path(folder), "methods-seed*.parquet")
    return pd.concat([_read(path) for path in paths], ignore_index=True) if paths else pd.DataFrame()


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """The records of all runs: `arm`, `fold`, `seed`, `gates`, `seconds`; those of the FPN with the `choice` of arms."""
    paths = _paths(Path(folder), "runs-seed*.json")
    return [record for path in paths for record in json.loads(path.read_text())]


def _paths(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda path: int("".join(filter(str.isdigit, path.name))))


def _record(place: Path) -> dict[str, Any]:
    record = json.loads((place / RECORD).read_text())
    kept = {name: record[name] for name in ("arm", "fold", "seed", "gates", "seconds", "versions")}
    return kept | ({"choice": json.loads((place / CHOICE).read_text())} if (place / CHOICE).exists() else {})


def _rows(path: Path, record: Mapping[str, Any], groups: Mapping[str, str]) -> pd.DataFrame:
    """The rows of a run, with the columns that name the run; values that do not count are NaN."""
    rows = pd.read_parquet(path)
    named = {name: record[name] for name in ("arm", "fold", "seed")}
    rows = rows.assign(**named, level=_levels(rows["layer"]), group=rows["image_id"].map(groups))
    values = list(UNITS)
    rows[values] = rows[values].where(rows["status"].isin(COUNTED))
    return rows


def _levels(layers: pd.Series[Any]) -> pd.Series[Any]:
    """The level of each layer: as in its address or, for a plain backbone, by the order of execution."""
    names = list(layers.unique())
    levels = {name: next((level for level in LEVELS if f"[{level}]" in name), None) for name in names}
    if None in levels.values():
        levels = dict(zip(names, list(LEVELS)[-len(names) :], strict=True))
    return layers.map(levels)


def _pack_methods(path: Path, places: Iterable[Path], groups: Mapping[str, str]) -> None:
    records = [(place, _record(place)) for place in places if place.name == FPN and (place / METHODS).exists()]
    tables = [_rows(place / METHODS, record, groups) for place, record in records]
    if sum(map(len, tables)):
        _write(path, pd.concat(tables)[[*COLUMNS, "method"]])


def _write(path: Path, rows: pd.DataFrame) -> None:
    rows = rows.sort_values(KEYS, kind="stable")
    integers = {name: (rows[name] / unit).round() for name, unit in UNITS.items()}
    kinds = INTEGERS | dict.fromkeys(UNITS, "Int16") | {name: "category" for name in CATEGORIES if name in rows}
    table = rows.assign(**integers).astype(kinds)
    write_file(path, lambda file: table.to_parquet(file, index=False, compression="zstd"))


def _read(path: Path) -> pd.DataFrame:
    rows = pd.read_parquet(path)
    texts = {name: rows[name].astype(str) for name in CATEGORIES if name in rows}
    values = {name: rows[name].astype(float) * unit for name, unit in UNITS.items()}
    rows = rows.assign(**texts, **values)
    return rows.assign(average_drop_excess=rows["average_drop"] - rows["average_drop_shifted"])
