"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(titles: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Write a table in Markdown, without a line break at its end.

    Args:
        titles: The title of each column.
        rows: The cells of each row, as text or anything with a text.

    Example:
        >>> print(markdown_table(["level", "AD %"], [["p2", 23.5], ["p3", 31.0]]))
        | level | AD % |
        | --- | --- |
        | p2 | 23.5 |
        | p3 | 31.0 |
    """
    heads = [*titles]
    lines: Sequence[Iterable[object]] = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)
