"""The program itself: what all commands share, and how an error becomes one line and an exit status."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, redirect_stdout
from contextvars import ContextVar
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from xaieval import __version__
from xaieval.cli.documents import render
from xaieval.config import read_toml
from xaieval.errors import UsageError, XaievalError
from xaieval.ranks import is_rank, is_spoken_for, report_failure

__all__ = ["FLAT", "app", "given", "main"]


FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
PROGRAM = "xaieval-bench"

# What the command line said, for the processes that say it again.
given: ContextVar[list[str]] = ContextVar("given")

# The options of several dataclasses stand side by side on the command line, under their own names.
FLAT = Parameter(name="*")


def _read_run_file(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Take what the command line does not say from the run file, if one is given."""
    for argument in arguments:
        if argument.field_info.name == "run_file" and argument.tokens:
            settings = read_toml(argument.tokens[0].value)
            # Under the command's name, or a setting that is also the name of a command ("layers") would be passed over.
            Dict({commands[0]: settings}, source=argument.tokens[0].value)(app, commands, arguments)


app = App(
    name=PROGRAM,
    help="Measure how good the visual explanations of an image model are, layer by layer.",
    version=__version__,
    config=_read_run_file,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and exit with 0, 1 (the run failed), 2 (wrong use) or 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given.set(arguments)
    try:
        # What a model or a data set of the user's own prints is no part of the document.
        with redirect_stdout(sys.stderr) if "--json" in arguments else nullcontext():
            document = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        if document is not None:
            print(render(document))
    except CycloptsError as error:
        _stop(WRONG_USE, str(error), arguments)
    except UsageError as error:
        _stop(WRONG_USE, str(error), arguments)
    except XaievalError as error:
        _stop(FAILED, str(error), arguments)
    except KeyboardInterrupt:
        _stop(INTERRUPTED, "interrupted; rows of finished batches, if there are any, are kept", arguments)
    except Exception as error:
        _stop(FAILED, f"{type(error).__name__}: {error} (--debug shows where)", arguments)


def _stop(status: int, message: str, arguments: list[str]) -> None:
    line = " ".join(message.split())
    if status != INTERRUPTED:
        report_failure(line)
    if "--debug" in arguments:
        raise
    if not is_spoken_for():
        rank = f"rank {os.environ['RANK']}: " if is_rank() else ""
        print(f"{PROGRAM}: {rank}{line}", file=sys.stderr)
    sys.exit(status)
