"""Checks of counts: `max_images=10.0` and `batch_size="8"` raise an error of one line."""

from __future__ import annotations

from numbers import Integral

from xaieval.errors import UsageError

__all__ = ["check_count"]


def check_count(name: str, value: object, least: int = 1, optional: bool = False, kind: type[UsageError] = UsageError) -> None:
    """Raise an error unless a count is a whole number and large enough.

    Args:
        name: Of the argument.
        value: What was given for it; integers of numpy are fine, and True and False are none.
        least: The smallest number that works.
        optional: Whether None works too.
        kind: Class of the error.

    Raises:
        UsageError: With the name and the value.

    Example:
        >>> check_count("max_images", 10.0)
        Traceback (most recent call last):
        xaieval.errors.UsageError: max_images is a whole number of at least 1; got 10.0
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise kind(f"{name} is a whole number of at least {least}{', or None' if optional else ''}; got {value!r}")
    if int(value) < least:
        raise kind(f"{name} is at least {least}, got {value}")
