"""Version of the installed package, for the command line and for manifests."""

from __future__ import annotations

import importlib.metadata

__all__ = ["NOT_INSTALLED", "package_version"]

NOT_INSTALLED = "0+unknown"  # a valid version (PEP 440) that no release has


def package_version() -> str:
    """Version of xaieval as its installer recorded it, or "0+unknown" for a source tree that was never installed."""
    try:
        return importlib.metadata.version("xaieval")
    except importlib.metadata.PackageNotFoundError:
        return NOT_INSTALLED
