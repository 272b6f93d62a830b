"""Words for the axes of a tensor, such as "T N C": the option `layout=` where a layer's layout cannot be inferred."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from xaieval.errors import UsageError

__all__ = ["FORMS", "Axes", "check_layout", "parse_axes"]

Axes = tuple[tuple[str, ...], ...]  # for each axis of a tensor, the names whose product is its length

FORMS = (
    "'N C h w' and 'N h w C' for maps, 'N T C' and 'T N C' for tokens, 'N*V C h w' for V views or frames of each image, "
    "'N d*h*w C' for tokens of a volume"
)

_PLACES = {"d", "h", "w"}
_SAME = {"H": "h", "W": "w", "D": "d", "t": "d"}  # time is the depth of a video


def parse_axes(words: str) -> Axes:
    """Parse words for the axes of a layer's output.

    The names are N (images), C (channels), T (tokens, row by row), V (views or frames of an image), and h, w and d (or t) for
    places. Axes are separated by spaces, and an axis that is a product is written with `*` or in brackets. Without products the
    spaces can be left out.

    Raises:
        UsageError: The words are no layout; the message has the known forms.

    Example:
        >>> parse_axes("TNC") == parse_axes("T N C") == (("T",), ("N",), ("C",))
        True
        >>> parse_axes("N*V C h w") == parse_axes("(N V) C H W")
        True
    """
    text = re.sub(r"\(([^()]*)\)", lambda match: "*".join(match[1].split()), words.strip())
    parts = text.replace(",", " ").split()
    if len(parts) == 1 and "*" not in parts[0]:
        parts = list(parts[0])
    axes = tuple(tuple(_SAME.get(name, name) for name in part.split("*")) for part in parts)
    if not _is_layout(axes):
        raise UsageError(f"layout={words!r} does not name the axes of a layer's output; known forms are {FORMS}")
    return axes


def check_layout(layout: Any) -> None:
    """Check the option `layout=`: words, a function, or a mapping from layer addresses to these.

    Raises:
        UsageError: It is something else, or the words are no layout.
    """
    for one in layout.values() if isinstance(layout, Mapping) else [] if layout is None else [layout]:
        if isinstance(one, str):
            parse_axes(one)
        elif not isinstance(one, Callable):  # type: ignore[arg-type]
            raise UsageError(
                "layout takes words for the axes, a function from a layer's output to [N, C, h, w], or a mapping from layer "
                f"addresses to these; got {type(one).__name__}. Known forms of words are {FORMS}"
            )


def _is_layout(axes: Axes) -> bool:
    names = [name for axis in axes for name in axis]
    places = _PLACES.intersection(names)
    return (
        len(set(names)) == len(names)
        and {"N", "C"} <= set(names) <= {"N", "C", "T", "V", *_PLACES}
        and (not places if "T" in names else {"h", "w"} <= places)
        and all(len(axis) == 1 or set(axis) <= {"N", "V"} or set(axis) <= _PLACES for axis in axes)
        and sum(len(axis) > 1 and set(axis) <= _PLACES for axis in axes) <= 1
    )
