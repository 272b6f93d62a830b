"""The folder of a run: its files, and whether it holds a run and which."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xaieval.errors import OutputError

__all__ = ["MANIFEST", "RANKS", "ROWS", "SUMMARY", "check_folder", "is_complete", "write_file"]

ROWS, SUMMARY, MANIFEST = "rows.parquet", "summary.csv", "manifest.json"
RANKS = "ranks"  # folder in that of a run of several processes: a run of each


def check_folder(path: str | Path, run: Mapping[str, Any]) -> None:
    """Refuse an output folder that cannot be written, or holds a run other than `run`.

    Args:
        path: of the folder; it need not exist.
        run: the part of the manifest that says what a run is.

    Raises:
        OutputError: with the first difference named.
    """
    folder = Path(path)
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise OutputError(f"'{nearest}' is a file; choose another folder")
    if not os.access(nearest, os.W_OK):
        raise OutputError(f"cannot write into '{nearest}'; choose another folder")
    if folder.parent.name == RANKS and folder.name.startswith("0000-"):  # the process that sees the run's first image
        check_folder(folder.parent.parent, run)
    if not (folder / MANIFEST).exists():
        return
    try:
        there = json.loads((folder / MANIFEST).read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"'{path}' holds a {MANIFEST} that cannot be read; choose another folder") from error
    here = json.loads(json.dumps(run))
    for key in [*here, *(there.keys() - here.keys())]:
        if here.get(key) != there.get(key):
            raise OutputError(
                f"'{path}' holds another run: its {key} is {_short(there.get(key))}, this run's is {_short(here.get(key))}; "
                "choose another folder, or remove that one"
            )


def is_complete(path: str | Path) -> bool:
    """Whether a folder holds a finished run."""
    try:
        return bool(json.loads((Path(path) / MANIFEST).read_text())["complete"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Have a file written under another name, and renamed when it is whole: it is either the old or the new one."""
    part = path.with_name(f".{path.name}.part")
    write(part)
    part.replace(path)


def _short(value: Any, most: int = 120) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[:most] + "..."
