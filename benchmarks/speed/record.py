"""Results as CSV files that can be extended in parts, and their manifest."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

__all__ = ["processor", "read", "replace_rows", "write_manifest"]

PACKAGES = (
    "xaieval",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "grad-cam",
    "torchcam",
    "captum",
    "quantus",
    "scipy",
    "scikit-image",
    "opencv-python-headless",
)


def replace_rows(path: Path, rows: Sequence[Mapping[str, Any]] | pd.DataFrame, keys: Sequence[str]) -> None:
    """Write rows to a file: rows with the same `keys` are replaced, all others stay.

    `keys` identify a configuration, not a row, so rows that were timed together are replaced together.
    """
    new = pd.DataFrame(rows)
    if new.empty:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    old = read(path)
    if not old.empty:
        made = set(new[list(keys)].itertuples(index=False, name=None))
        kept = [key not in made for key in old[list(keys)].itertuples(index=False, name=None)]
        new = pd.concat([old[kept], new], ignore_index=True) if any(kept) else new
    new.sort_values(list(keys), kind="stable").to_csv(path, index=False, float_format="%.6g")


def read(path: Path) -> pd.DataFrame:
    """The rows of a file; an empty table if there is no file."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def write_manifest(out: Path, command: str, options: Mapping[str, Any]) -> None:
    """Add a command with its options, versions and hardware to the manifest.

    A command that is run several times with different options has an entry for each run, since the machines may differ.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "manifest.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    entry = {"command": command, "options": json.loads(json.dumps(dict(options), default=str)), **_circumstances()}
    same = (entry["command"], entry["options"])
    entries = [old for old in entries if (old["command"], old["options"]) != same] + [entry]
    path.write_text(json.dumps(entries, indent=2) + "\n")


def processor() -> str:
    """The processor and the number of threads, for rows that may come from several machines."""
    count = torch.get_num_threads()
    return f"{_cpu()}, {count} thread{'s' * (count > 1)}"


def _circumstances() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **_versions()},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
