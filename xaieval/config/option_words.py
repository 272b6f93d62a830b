"""From the words of the command line and of run files to the values of options. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts import Token

from xaieval.errors import ConfigError

__all__ = ["joined", "to_controls", "to_integers", "to_numbers", "to_prompts", "to_side", "to_words"]


def to_words(_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """The items of an option that takes a list separated by commas.

    Raises:
        ConfigError: There is none.
    """
    words = tuple(word.strip() for token in tokens for word in token.value.split(",") if word.strip())
    if not words:
        raise ConfigError(f"{tokens[0].keyword or 'an option'} takes one or more words separated by commas, got none")
    return words


def to_numbers(kind: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    """The items as numbers.

    Raises:
        ConfigError: One is no number, or there is none.
    """
    words = to_words(kind, tokens)
    try:
        return tuple(float(word) for word in words)
    except ValueError as error:
        raise ConfigError(f"{tokens[0].keyword or 'an option'} takes numbers separated by commas, got {words}") from error


def to_integers(kind: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    """The items as whole numbers.

    Raises:
        ConfigError: One is no whole number, or there is none.
    """
    words = to_words(kind, tokens)
    if not all(word.isdigit() for word in words):
        raise ConfigError(f"{tokens[0].keyword or 'an option'} takes whole numbers separated by commas, got {words}")
    return tuple(int(word) for word in words)


def to_side(kind: Any, tokens: Sequence[Token]) -> int | tuple[int, ...]:
    """One side, or height and width.

    Raises:
        ConfigError: They are no whole numbers, or more than two.
    """
    sides = to_integers(kind, tokens)
    if len(sides) > 2:
        raise ConfigError(
            f"{tokens[0].keyword or 'an option'} takes one side, or height and width, such as 96,128; got {sides}"
        )
    return sides[0] if len(sides) == 1 else sides


def to_prompts(_: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Prompts, one word each, or those of a text file, one on each line.

    Raises:
        ConfigError: There is none, or no such file.
    """
    words = [token.value.strip() for token in tokens]
    if len(words) == 1 and words[0].endswith(".txt"):
        try:
            words = [line.strip() for line in Path(words[0]).read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--prompts takes texts, or a text file with one on each line; cannot read {words[0]!r}"
            ) from error
    prompts = tuple(word for word in words if word)
    if not prompts or any(prompt.endswith(".toml") for prompt in prompts):
        raise ConfigError(
            f"--prompts takes one or more texts, such as 'a photo of a cat' 'a photo of a dog', got {list(prompts)}; a run "
            "file stands before it"
        )
    return prompts


def to_controls(kind: Any, tokens: Sequence[Token]) -> bool | tuple[str, ...]:
    """A switch, or names of controls.

    Raises:
        ConfigError: There is none.
    """
    words = to_words(kind, tokens)
    switch = {"true": True, "false": False}
    return switch.get(words[0].lower(), words) if len(words) == 1 else words


def joined(items: Sequence[object] | None) -> Any:
    """The default of a list as it is typed on the command line; None for an empty one, which help does not show."""
    return ",".join(str(item) for item in items or ()) or None
