"""The exceptions of xaieval: one class per problem that a user can fix.

Every message says what came, what was expected, and how to fix it. `UsageError` and its subclasses mean that the call was wrong
and nothing was computed (exit status 2 on the command line). The others mean that a run failed (status 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = [
    "ALL_LAYERS",
    "ALL_METHODS",
    "AddressError",
    "CheckError",
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
    "advice",
    "choose_from",
    "for_command_line",
    "printable",
]

# What lists all layers and all methods, for `advice`.
ALL_LAYERS = ("xaieval.list_layers(model, images) lists all", "'xaieval-bench layers' lists all")
ALL_METHODS = ("xaieval.explainers.METHODS", "'xaieval-bench methods'")

_on_command_line: ContextVar[bool] = ContextVar("on_command_line", default=False)


class XaievalError(Exception):
    """The base class of all errors that xaieval raises."""


class RunError(XaievalError):
    """A correct call could not be completed."""


class CheckError(RunError):
    """A strict run has a finding: a reason not to trust its numbers.

    Attributes:
        findings: The findings (`xaieval.results.findings.Finding`).
        scores: The scores, if the run has finished (`xaieval.Scores`); else None.
    """

    def __init__(self, findings: Sequence[Any], scores: Any = None) -> None:
        self.findings = list(findings)
        self.scores = scores
        reasons = "; ".join(f"{finding.text} [{finding.name}]" for finding in findings)
        when = "before the first image was scored" if scores is None else "in the finished run, whose rows are kept"
        super().__init__(f"strict: {len(findings)} {'finding' if len(findings) == 1 else 'findings'} {when}: {reasons}")


class UsageError(XaievalError, ValueError):
    """The call or the command cannot work with these arguments."""


class AddressError(UsageError):
    """A layer address is malformed, matches nothing, matches several tensors, or names a tensor that is not a map."""


class ConfigError(UsageError):
    """A run file or an option is invalid."""


class ConformanceError(UsageError):
    """An explainer breaks the contract of explainers."""


class DataError(UsageError):
    """Images, labels or a data set cannot be used."""


class ExplainerError(UsageError):
    """A method is unknown, or cannot explain this model at this layer."""


class MetricError(UsageError):
    """A metric is unknown, or cannot be computed from these values."""


class ModelError(UsageError):
    """A model is unknown, or its output is not understood."""


class OutputError(UsageError):
    """An output folder cannot be written, or contains something else."""


class ProtocolError(UsageError):
    """A protocol is unknown, or contradicts itself."""


class TargetError(UsageError):
    """The model or the data does not have the target class."""


class WeightsError(UsageError):
    """A weights file cannot be read, or does not fit the model."""


def advice(python: str, command: str) -> str:
    """What a message recommends: Python code in Python, a command or an option on the command line.

    Args:
        python: Code, such as "xaieval.list_layers(model, images)" or "mean=".
        command: The same on the command line, such as "'xaieval-bench layers MODEL'" or "--mean".

    Example:
        >>> advice("strict=True", "--strict")
        'strict=True'
        >>> with for_command_line():
        ...     advice("strict=True", "--strict")
        '--strict'
    """
    return command if _on_command_line.get() else python


@contextmanager
def for_command_line() -> Iterator[None]:
    """Make messages recommend commands and options, in this thread."""
    token = _on_command_line.set(True)
    try:
        yield
    finally:
        _on_command_line.reset(token)


def printable(text: str) -> str:
    r"""Return a text as one line that is safe to print in a terminal: non-printable characters are escaped.

    Example:
        >>> print(printable("a\n  b\x1b[2J"))
        a b\x1b[2J
    """
    line = " ".join(text.split())
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in line)


def choose_from(given: object, known: Iterable[str]) -> str:
    """Return the end of an error message: near matches of `given`, and all known names.

    Example:
        >>> choose_from("gradcm", ["gradcam", "layercam"])
        "did you mean 'gradcam'? known: gradcam, layercam"
    """
    known = list(known)
    near = difflib.get_close_matches(str(given), known, n=3)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
    return f"{hint}known: {', '.join(known)}"
