"""Paths in the options of a run, without the folders, which say where things are on one machine."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["last_name"]

ARGUMENT = re.compile(r"^([\w-]{2,}:)?((?:[A-Za-z]:[\\/]|[\\/~]).*[\\/])([^\\/]+)[\\/]*$")  # source, folders, name


def last_name(value: Any) -> Any:
    """An absolute path as its last name, with its source; everything else unchanged.

    Example:
        >>> last_name("folder:/home/me/photos"), last_name("hf:me/photos"), last_name(None)
        ('folder:photos', 'hf:me/photos', None)
    """
    if isinstance(value, list | tuple):
        return [last_name(one) for one in value]
    found = ARGUMENT.match(value) if isinstance(value, str) else None
    return value if found is None else f"{found[1] or ''}{found[3]}"
