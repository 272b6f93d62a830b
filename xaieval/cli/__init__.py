"""The command `xaieval-bench`. Only this room prints and exits.

The commands import torch when they run, so that `--help` answers at once.
"""

# Each adds its commands to the app.
from xaieval.cli import agreement, check, compare, cross, explain, fal, list, report, score, search, table  # noqa: F401
from xaieval.cli.app import app, main

__all__ = ["app", "main"]
