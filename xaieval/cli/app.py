"""The program itself: what all commands share, and how an error becomes one line and an exit status."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from xaieval.cli.json_output import render
from xaieval.cli.loading import names_code
from xaieval.config.options import read_toml
from xaieval.config.version import package_version
from xaieval.errors import ConfigError, UsageError, XaievalError, printable
from xaieval.evaluation.distributed.rank import is_rank, is_spoken_for, report_failure

__all__ = ["FLAT", "app", "given", "main"]


FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
PROGRAM = "xaieval-bench"
SIGTERM = signal.SIGTERM.name

# What the command line said, for the processes that say it again.
given: ContextVar[list[str]] = ContextVar("given")

# The options of several dataclasses stand side by side on the command line, under their own names.
FLAT = Parameter(name="*")


def _read_run_file(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Take what the command line does not say from the run file, if one is given; no other file is ever looked for.

    Raises:
        ConfigError: it cannot be read, or would have code imported.
    """
    said = {argument.field_info.name for argument in arguments if argument.tokens}
    for argument in arguments:
        if argument.field_info.name == "run_file" and argument.tokens:
            settings = read_toml(argument.tokens[0].value)
            # Under the command's name, or a setting that is also the name of a command ("layers") would be passed over.
            Dict({commands[0]: settings}, source=argument.tokens[0].value)(app, commands, arguments)
            _refuse_code(argument.tokens[0].value, [other for other in arguments if other.field_info.name not in said])


def _refuse_code(run_file: str, arguments: Any) -> None:
    """Refuse a factory in a run file, which people pass on as data: `subprocess:run` with arguments would be any command."""
    for argument in arguments:
        name = argument.field_info.name
        for token in argument.tokens:
            if names_code(name, token.value):
                raise ConfigError(
                    f"'{run_file}' names the {name} {token.value!r}, which would import and run code; a run file does not do "
                    f"that, the command line does: --{name} {token.value}"
                )


app = App(
    name=PROGRAM,
    help="Measure how good the visual explanations of an image model are, layer by layer.",
    version=package_version,
    config=_read_run_file,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and exit with 0, 1 (the run failed), 2 (wrong use), 130 (interrupted) or 143 (told to end)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given.set(arguments)
    _print_anything()
    try:
        # What a model or a data set of the user's own prints is no part of the document.
        with _sigterm_interrupts(), redirect_stdout(sys.stderr) if "--json" in arguments else nullcontext():
            document = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        if document is not None:
            print(render(document))
    except CycloptsError as error:
        _stop(WRONG_USE, str(error), arguments)
    except UsageError as error:
        _stop(WRONG_USE, str(error), arguments)
    except XaievalError as error:
        _stop(FAILED, str(error), arguments)
    except KeyboardInterrupt as error:
        told = SIGTERM in error.args
        what = "told to end" if told else "interrupted"
        kept = "rows of finished batches, if there are any, are kept, and the same command goes on from there"
        _stop(TERMINATED if told else INTERRUPTED, f"{what}; {kept}", arguments)
    except Exception as error:
        _stop(FAILED, f"{type(error).__name__}: {error} (--debug shows where)", arguments)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM end the program as Ctrl-C does, with its rows kept; not a rank, which may wait where Python cannot act."""
    if is_rank() or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt(SIGTERM)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_anything() -> None:
    """Names in tables are what files and models call them: what the terminal's encoding lacks is written out, no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _stop(status: int, message: str, arguments: list[str]) -> None:
    line = printable(message)
    if status not in (INTERRUPTED, TERMINATED):
        report_failure(line)
    if "--debug" in arguments:
        raise
    if not is_spoken_for():
        rank = f"rank {os.environ['RANK']}: " if is_rank() else ""
        print(f"{PROGRAM}: {rank}{line}", file=sys.stderr)
    sys.exit(status)
