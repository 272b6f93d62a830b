"""Run files: options of a command in TOML, under the same names as on the command line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from xaieval.errors import ConfigError

__all__ = ["read_toml"]


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read the settings of a run file.

    Raises:
        ConfigError: The file is missing or is not TOML.
    """
    try:
        settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"no run file '{path}'; give a TOML file with the same words as the options") from error
    except (ValueError, RecursionError) as error:  # also for bytes that are not text, and numbers that are too long
        raise ConfigError(f"'{path}' is not TOML: {error}") from error
    for name, value in settings.items():
        _check_setting(name, value, path)
    settings = {name: _with_literals(value) if isinstance(value, dict) else value for name, value in settings.items()}
    # "no-progress = true" means what --no-progress means on the command line.
    return {
        **{name: value for name, value in settings.items() if not _is_negative(name, value)},
        **{name[3:]: not value for name, value in settings.items() if _is_negative(name, value)},
    }


def _check_setting(name: str, value: Any, path: str | Path) -> None:
    """Refuse values of types that no option has, since each value stands for words of the command line."""
    if not name or not all(isinstance(word, str | bool | int | float) for word in _words(value)):
        raise ConfigError(
            f"'{path}' has the setting {name!r} = {value!r}; text, a number, true or false, or a list or table of these is "
            "expected, under the name of an option"
        )


def _words(value: Any, tables: int = 2) -> list[Any]:
    """The values in a setting: one, those of a list, or those of a table, which may contain tables (`[method-args.rise]`)."""
    if isinstance(value, dict) and tables:
        return [word for one in value.values() for word in _words(one, tables - 1)]
    return value if isinstance(value, list) else [value]


def _with_literals(table: Any) -> Any:
    """A table of settings with its lists as Python literals, which is how the command line reads its values.

    Example:
        >>> _with_literals({"road": {"fractions": [0.2, 0.5]}})
        {'road': {'fractions': '(0.2, 0.5)'}}
    """
    if isinstance(table, dict):
        return {name: _with_literals(one) for name, one in table.items()}
    return str(tuple(table)) if isinstance(table, list) else table


def _is_negative(name: str, value: Any) -> bool:
    return name.startswith(("no-", "no_")) and isinstance(value, bool)
