"""Settings of methods and metrics by name: whether what they are given for exists, and the full names of settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from xaieval.config.spelling import full_name
from xaieval.errors import XaievalError, choose_from

__all__ = ["check_owners", "full_setting"]


def check_owners(owners: Iterable[str], names: Sequence[str], kinds: str, error: type[XaievalError]) -> None:
    """Refuse settings of what does not take part.

    Args:
        owners: What there are settings for.
        names: The names of what takes part.
        kinds: What these are, such as "methods".
        error: The kind of error.

    Raises:
        XaievalError: One of them does not take part.
    """
    for name in owners:
        if name not in names:
            raise error(f"there are settings for {name!r}, which is none of the {kinds}; {choose_from(name, names)}")


def full_setting(given: str, known: Collection[str], owner: str, error: type[XaievalError]) -> str:
    """The full name of a setting.

    Args:
        given: The name as it was given; see `full_name`.
        known: The names of all settings.
        owner: What has them, such as "method 'rise'".
        error: The kind of error.

    Raises:
        XaievalError: There is no such setting.

    Example:
        >>> full_setting("masks", ["grid", "n_masks"], "method 'rise'", XaievalError)
        'n_masks'
    """
    name = full_name(given, known)
    if name is None:
        raise error(f"{owner} has no setting {given!r}; {choose_from(given, known)}")
    return name
