"""Fill the tables of a page of the documentation from results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["filled"]


def filled(text: str, made: Mapping[str, Callable[[], list[str]]]) -> str:
    """The text of a page with a new table below each `<!-- from NAME -->`; names that are not known stay.

    Args:
        text: The page, in Markdown.
        made: By name, a function that makes the lines of the table.
    """
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        inside = inside and line.startswith("|")
        if not inside:
            lines.append(line)
        name = line.removeprefix("<!-- from ").removesuffix(" -->")
        if line == f"<!-- from {name} -->" and name in made:
            lines += made[name]()
            inside = True
    return "\n".join(lines) + "\n"
