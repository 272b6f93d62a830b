"""The command `xaieval-bench`: the only part that prints and exits.

torch is imported inside the commands, so that `--help` answers at once.
"""

from xaieval.cli import compare, fal, list, report, score  # noqa: F401  # each adds its commands to the program
from xaieval.cli.app import app, main

__all__ = ["app", "main"]
