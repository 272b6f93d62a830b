"""Names of the controls of a run: maps that ignore the model, and matched controls of each map. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xaieval.errors import ExplainerError, choose_from

__all__ = ["FOOLING", "MAPS", "MATCHED", "ControlNames", "Controls", "resolve_controls"]

MAPS = ("random", "uniform", "center", "edges", "fake-cam")  # controls that are methods
MATCHED = ("shifted", "swapped", "dimmed", "blurred")  # controls of each single map
FOOLING = "fake-cam"  # a check of metrics: better than every method where a metric can be fooled

Controls = bool | str | Sequence[str]


@dataclass(frozen=True)
class ControlNames:
    """The names of the controls of a run, by kind.

    Attributes:
        maps: Control maps, which are scored like methods.
        matched: Matched controls of each map; excess metrics subtract the first one.
    """

    maps: Sequence[str] = ()
    matched: Sequence[str] = ()


def resolve_controls(controls: Controls) -> ControlNames:
    """Convert the argument `controls=` to names, by kind.

    Args:
        controls: False for none, True for the five control maps, "matched" for the four matched controls; or names of both
            kinds.

    Raises:
        ExplainerError: A name is unknown or given twice, or the argument is of another type.

    Example:
        >>> resolve_controls("matched").matched
        ('shifted', 'swapped', 'dimmed', 'blurred')
        >>> resolve_controls(["random", "dimmed"])
        ControlNames(maps=('random',), matched=('dimmed',))
    """
    if isinstance(controls, bool):
        return ControlNames(MAPS if controls else ())
    if not isinstance(controls, Iterable):
        raise ExplainerError(f"controls= takes True, False, 'matched', or names of controls; got {controls!r}")
    words = [controls] if isinstance(controls, str) else list(controls)
    names = [name for word in words for name in (MATCHED if word == "matched" else (word,))]
    for name in names:
        if name not in (*MAPS, *MATCHED):
            raise ExplainerError(
                f"no control {name!r}; {choose_from(name, ('matched', *MATCHED, *MAPS))}; True takes the control maps "
                f"{', '.join(MAPS)}"
            )
    if len(set(names)) < len(names):
        raise ExplainerError(f"controls are names, each once; got {names}")
    return ControlNames(tuple(name for name in names if name in MAPS), tuple(name for name in names if name in MATCHED))
