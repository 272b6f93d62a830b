"""Every command in README and documentation is one that the command line understands, and the quick ones run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests import ROOT
from xaieval.cli import app, main

READ = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")] + sorted((ROOT / "docs").glob("*.md"))
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`(xaieval-bench [^`]+)`")
SCRIPT = re.compile(r"(?<![\w/])((?:examples|benchmarks|docs|tests)/[\w/]+\.(?:py|toml))\b")
# What needs neither files nor minutes.
QUICK = ("layers timm:", "methods", "metrics", "protocols", "score --layers 'fpn[p4]' --max-images 20")


def _commands(path: Path) -> list[str]:
    """What stands behind `xaieval-bench` in blocks of shell and in spans of code."""
    text = path.read_text()
    lines = [line for block in SHELL.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in SPAN.findall(text)]
    found = []
    for line in lines:
        for part in re.split(r"&&| \| ", line):
            started = re.search(r"(?:^|\s)(?:xaieval-bench|-m xaieval\.cli) (.*)", part)
            if started:
                found.append(started.group(1).split(" #")[0].replace("...", "").strip())
    return found


COMMANDS = sorted({command for path in READ for command in _commands(path)})


def test_commands_are_found():
    assert len(COMMANDS) > 25
    assert {shlex.split(command)[0] for command in COMMANDS} >= {"score", "layers", "fal", "compare", "methods", "metrics"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_is_understood(command, tmp_path, monkeypatch):
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "run.toml").write_text('layers = "layer4"\n')
    monkeypatch.chdir(tmp_path)
    words = [word for word in shlex.split(command) if word not in ("COMMAND", "--help")]
    app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith(QUICK)])
def test_a_quick_command_runs(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(shlex.split(command))
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.parametrize("path", READ, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_and_run_files_that_are_named_exist(path):
    assert not [name for name in SCRIPT.findall(path.read_text()) if not (ROOT / name).exists()]


def test_modules_of_the_benchmarks_have_names_of_their_own():
    """They import each other by name, so that one would be taken for another in a process that runs both."""
    names = [path.name for path in (ROOT / "benchmarks").rglob("*.py") if path.name != "__main__.py"]
    assert len(names) == len(set(names))
