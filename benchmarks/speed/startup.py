"""Start-up time of new processes, compared with the time to import torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from record import replace_rows
from timing import alternate, spread

__all__ = ["start"]

PYTHON = sys.executable
PROGRAM = str(Path(sys.executable).with_name("xaieval-bench"))


def start(quick: bool, rounds: int | None, out: Path) -> None:
    """Time each command in turn for several rounds, after one round that fills the file cache."""
    rounds = rounds or (2 if quick else 7)
    with tempfile.TemporaryDirectory() as folder:
        contestants = _contestants(folder)
        alternate(contestants, 1)
        seconds = alternate(contestants, rounds)
    idle = seconds["python -c pass"]
    rows = [
        {
            "command": name,
            "rounds": rounds,
            **spread(taken, "seconds"),
            **spread(taken - idle, "beyond_python"),
            **spread(taken / seconds["python -c 'import torch'"], "of_import_torch"),
        }
        for name, taken in seconds.items()
    ]
    replace_rows(out / "startup.csv", rows, ("command",))


def _contestants(folder: str) -> dict[str, Callable[[], object]]:
    commands = {
        "python -c pass": [PYTHON, "-c", "pass"],
        "python -c 'import xaieval'": [PYTHON, "-c", "import xaieval"],
        "python -c 'import torch'": [PYTHON, "-c", "import torch"],
        "xaieval-bench --help": [PROGRAM, "--help"],
    }
    contestants: dict[str, Callable[[], object]] = {name: partial(_run, command) for name, command in commands.items()}
    contestants["xaieval-bench score --max-images 8"] = partial(_first_result, folder)
    return contestants


def _first_result(folder: str) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        _run([PROGRAM, "score", "--max-images", "8", "--out", f"{out}/run"])


def _run(command: list[str]) -> None:
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}  # an installed package has its byte code
    done = subprocess.run(command, capture_output=True, text=True, env=env)  # noqa: S603  # no outside input
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
