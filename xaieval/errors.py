"""The exceptions a user can meet: one class per thing that a user can fix.

Every message says what came, what was expected, and how to mend it. `UsageError` and what derives from it mean that the
call was wrong and nothing was computed (exit status 2 on the command line); the others mean that a run failed (status 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AddressError",
    "ConfigError",
    "ConformanceError",
    "DataError",
    "ExplainerError",
    "MetricError",
    "ModelError",
    "OutputError",
    "ProtocolError",
    "RunError",
    "TargetError",
    "UsageError",
    "WeightsError",
    "XaievalError",
    "choose_from",
    "printable",
]


class XaievalError(Exception):
    """Anything that xaieval raises on purpose."""


class RunError(XaievalError):
    """A run could not give numbers, although it was asked for correctly."""


class UsageError(XaievalError, ValueError):
    """A call or a command that cannot work as given."""


class AddressError(UsageError):
    """A layer address that is malformed, names nothing, names several tensors, or names one without a map."""


class ConfigError(UsageError):
    """A run file or option that cannot be understood."""


class ConformanceError(UsageError):
    """An explainer that does not keep what all explainers promise."""


class DataError(UsageError):
    """Images, labels or a data set that cannot be used."""


class ExplainerError(UsageError):
    """A method that is unknown, or that cannot explain this model at this layer."""


class MetricError(UsageError):
    """A metric that is unknown, or values that it cannot be computed from."""


class ModelError(UsageError):
    """A model that is unknown, or whose output is not understood."""


class OutputError(UsageError):
    """An output folder that cannot be written, or holds something else."""


class ProtocolError(UsageError):
    """A protocol that is unknown or contradicts itself."""


class TargetError(UsageError):
    """A class to explain that the model or the data does not have."""


class WeightsError(UsageError):
    """A weights file that cannot be read or does not fit the model."""


def printable(text: str) -> str:
    r"""A text in one line that any terminal shows and none obeys: whatever is no character to be seen is written out.

    Example:
        >>> print(printable("a\n  b\x1b[2J"))
        a b\x1b[2J
    """
    line = " ".join(text.split())
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in line)


def choose_from(given: object, known: Iterable[str]) -> str:
    """The end of an error message: near matches of `given`, and everything that is known.

    Example:
        >>> choose_from("gradcm", ["gradcam", "layercam"])
        "did you mean 'gradcam'? known: gradcam, layercam"
    """
    known = list(known)
    near = difflib.get_close_matches(str(given), known, n=3)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return f"{hint}known: {', '.join(known)}"
