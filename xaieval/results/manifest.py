"""The manifest of a run: its schema, the versions and images that it names, and digests."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd

from xaieval.config.version import package_version
from xaieval.results.rows import GROUP, RowsInFile, in_pieces

if TYPE_CHECKING:
    from xaieval.data.batches import Failure

__all__ = [
    "SCHEMA",
    "completed",
    "count_groups",
    "describe_data",
    "digest",
    "measured_text",
    "now",
    "versions",
]

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas")


def versions() -> dict[str, str]:
    """The versions of this package, of Python, and of the packages that numbers depend on."""
    known = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"xaieval": package_version(), "python": platform.python_version(), **known}


def now() -> str:
    """Date and time in UTC, as ISO 8601 writes them."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def completed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's entries of a run that ends: that it is complete, and its dates, which are no part of what it is.

    Args:
        manifest: Of the run, whose `dates` have its start.

    Example:
        >>> entries = completed({"dates": {"started": "2026-01-02T03:04:05Z"}})
        >>> entries["complete"], [*entries["dates"]]
        (True, ['started', 'ended'])
    """
    return {"complete": True, "dates": {**manifest.get("dates", {}), "ended": now()}}


def measured_text(manifest: Mapping[str, Any]) -> str:
    """When a run was measured, to the minute, and with what; "" if the manifest does not say when.

    Example:
        >>> dates = {"started": "2026-01-02T23:58:05Z", "ended": "2026-01-03T00:04:59Z"}
        >>> measured_text({"dates": dates, "versions": {"xaieval": "0.1.0"}})
        'measured 2026-01-02 23:58 to 2026-01-03 00:04 UTC, xaieval 0.1.0'
        >>> measured_text({"dates": {"started": "2026-01-02T23:58:05Z", "ended": "2026-01-02T23:58:59Z"}})
        'measured 2026-01-02 23:58 UTC'
    """
    written = [str(text) for text in (manifest.get("dates") or {}).values()]
    # Minutes, each once, and no day twice.
    minutes = list(dict.fromkeys(text[:16].replace("T", " ") for text in written))
    if not minutes:
        return ""
    last = [text.removeprefix(minutes[0][:11]) for text in minutes[1:]]
    version = (manifest.get("versions") or {}).get("xaieval")
    return f"measured {' to '.join([minutes[0], *last])} UTC{f', xaieval {version}' if version else ''}"


def describe_data(rows: pd.DataFrame | RowsInFile, failures: Sequence[Failure], batches: Sequence[str]) -> dict[str, Any]:
    """The manifest's entries on the images, made when all are measured.

    Args:
        rows: The rows of the run, in memory or in a file.
        failures: Images that could not be read.
        batches: The checksum of each batch, by which a run that resumes recognises it.
    """
    ids = dict.fromkeys(name for piece in in_pieces(rows, ["image_id"]) for name in piece["image_id"].unique())
    data = {"images": len(ids), "fingerprint": digest(f"{image_id}\n".encode() for image_id in ids)}
    return {
        "data": {**data, **({"batches": list(batches)} if batches else {})},
        "unreadable": [{"id": name, "reason": reason} for name, _, reason in failures],
    }


def count_groups(manifest: Mapping[str, Any], rows: pd.DataFrame | RowsInFile) -> dict[str, Any]:
    """The manifest's entry on groups with their number; empty for a run without groups."""
    if "groups" not in manifest:
        return {}
    names = {name for piece in in_pieces(rows, [GROUP]) for name in piece[GROUP].dropna().unique()}
    return {"groups": {**manifest["groups"], "count": len(names)}}


def digest(content: Iterable[bytes]) -> str:
    """The first 16 hexadecimal digits of the SHA-256."""
    sha256 = hashlib.sha256()
    for part in content:
        sha256.update(part)
    return sha256.hexdigest()[:16]
