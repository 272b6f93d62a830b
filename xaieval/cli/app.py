"""The app that all commands belong to: run files, errors as one line, and exit statuses."""

from __future__ import annotations

import io
import signal
import sys
from contextlib import nullcontext, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Dict

from xaieval.cli.json_output import render
from xaieval.cli.loading import names_code
from xaieval.config.run_files import read_toml
from xaieval.config.version import package_version
from xaieval.errors import ConfigError, UsageError, XaievalError, for_command_line, printable
from xaieval.evaluation.distributed.rank import Rank, is_rank, is_spoken_for, report_failure, sigterm_interrupts

__all__ = ["MODEL_OPTIONS", "NO_PREFIX", "PROTOCOL_OPTIONS", "app", "command_line", "main", "note"]


FAILED, WRONG_USE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
PROGRAM = "xaieval-bench"
SIGTERM = signal.SIGTERM.name

# The arguments of the command line, which the processes that --nproc starts are started with too.
command_line: ContextVar[list[str]] = ContextVar("command_line")

# The fields of a dataclass are options without a prefix: --weights, not --model-options.weights.
NO_PREFIX = Parameter(name="*")
MODEL_OPTIONS = Parameter(name="*", group=Group("Model", sort_key=1))
PROTOCOL_OPTIONS = Parameter(name="*", group=Group("Protocol", sort_key=2))


def _read_run_file(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Fill in options from the run file, if the command line names one. Options on the command line win; no other file is read.

    Raises:
        ConfigError: The run file cannot be read, or names code to import.
    """
    on_command_line = {argument.field_info.name for argument in arguments if argument.tokens}
    for argument in arguments:
        if argument.field_info.name == "run_file" and argument.tokens:
            settings = read_toml(argument.tokens[0].value)
            # Settings go under the command's name: cyclopts would skip one that is also the name of a command ("layers").
            Dict({commands[0]: settings}, source=argument.tokens[0].value)(app, commands, arguments)
            from_file = [other for other in arguments if other.field_info.name not in on_command_line]
            _refuse_code(argument.tokens[0].value, from_file)


def _refuse_code(run_file: str, arguments: Any) -> None:
    """Refuse a factory in a run file: people share run files as data, and `subprocess:run` with arguments is any command."""
    for argument in arguments:
        name = argument.field_info.name
        for token in argument.tokens:
            if names_code(name, token.value):
                raise ConfigError(
                    f"'{run_file}' names the {name} {token.value!r}, which would import and run code; run files must not do "
                    f"that, so give it on the command line: --{name} {token.value}"
                )


app = App(
    name=PROGRAM,
    help="Measure how good the visual explanations of an image model are, layer by layer.",
    version=package_version,
    config=_read_run_file,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Install completion of commands and options by Tab for your shell, and exit.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit status: 0, 1 (the run failed), 2 (wrong use), 130 (interrupted) or 143 (terminated)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command_line.set(arguments)
    _print_anything()
    try:
        # Output of the user's own model or data set must not end up in the JSON document.
        with for_command_line(), sigterm_interrupts(), redirect_stdout(sys.stderr) if "--json" in arguments else nullcontext():
            words = _files_first(_with_value(arguments, "--controls"))
            document = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if document is not None:
            print(render(document))
    except CycloptsError as error:
        _stop(WRONG_USE, str(error), arguments)
    except UsageError as error:
        _stop(WRONG_USE, str(error), arguments)
    except XaievalError as error:
        _stop(FAILED, str(error), arguments)
    except KeyboardInterrupt as error:
        terminated = SIGTERM in error.args
        what = "terminated" if terminated else "interrupted"
        kept = "rows of finished batches, if any, are kept, and the same command continues from there"
        _stop(TERMINATED if terminated else INTERRUPTED, f"{what}; {kept}", arguments)
    except Exception as error:
        _stop(FAILED, f"{type(error).__name__}: {error} (--debug shows where)", arguments)


def note(text: str) -> None:
    """One line beside the results."""
    print(f"{PROGRAM}: {printable(text)}", file=sys.stderr)


def _with_value(arguments: list[str], switch: str) -> list[str]:
    """The arguments, with the value "true" for an option that stands alone although it can take words.

    Example:
        >>> _with_value(["score", "--controls", "run.toml"], "--controls")
        ['score', '--controls=true', 'run.toml']
        >>> _with_value(["score", "--controls", "matched"], "--controls")
        ['score', '--controls', 'matched']
    """
    following = [*arguments[1:], "-"]
    return [
        f"{switch}=true" if word == switch and (after.startswith("-") or _is_run_file(after)) else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _files_first(arguments: list[str]) -> list[str]:
    """The arguments, with run files and folders of runs that follow an option and its first value moved to the front.

    There they are what the command is about, which may also stand last; an option that takes several words would take them.

    Example:
        >>> _files_first(["score", "--methods", "gradcam", "rise", "run.toml", "--seed", "1"])
        ['score', 'run.toml', '--methods', 'gradcam', 'rise', '--seed', '1']
        >>> _files_first(["score", "--methods", "run.toml"])
        ['score', '--methods', 'run.toml']
    """
    command, rest = arguments[:1], arguments[1:]
    options = [place for place, word in enumerate(rest) if word.startswith("--")]
    start = options[0] if options else len(rest)
    moved = [
        place
        for place in range(start, len(rest))
        if not rest[place].startswith("-") and not rest[place - 1].startswith("--") and _is_run(rest[place])
    ]
    kept = [word for place, word in enumerate(rest) if place >= start and place not in moved]
    return [*command, *rest[:start], *(rest[place] for place in moved), *kept]


def _is_run(word: str) -> bool:
    """Whether a word is a run file or the folder of a run; other folders may be named like a class or a method."""
    return _is_run_file(word) or any((Path(word) / name).exists() for name in ("manifest.json", "parts", "ranks"))


def _is_run_file(word: str) -> bool:
    return word.endswith(".toml") or Path(word).is_file()


def _print_anything() -> None:
    """Escape characters that the terminal's encoding lacks, since file and model names may contain any."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _stop(status: int, message: str, arguments: list[str]) -> None:
    line = printable(message)
    if status not in (INTERRUPTED, TERMINATED):
        report_failure(line)
    if "--debug" in arguments:
        raise
    if not is_spoken_for():
        rank = f"rank {Rank.from_environment().rank}: " if is_rank() else ""
        print(f"{PROGRAM}: {rank}{line}", file=sys.stderr)
    sys.exit(status)
