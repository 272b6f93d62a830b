"""What messages and pages tell people to install is there to be installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = SETTINGS["optional-dependencies"]
READ = [
    *sorted((ROOT / "xaieval").rglob("*.py")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "CHANGELOG.md")),
]
NAMED = re.compile(r"(?:xaieval|['\"\s]\.)\[([a-z, ]+)\]['\"]|[eE]xtras? (?:`?\[([a-z]+)\]`?)")


def _named(path: Path) -> set[str]:
    """The extras that a file names."""
    found = NAMED.findall(path.read_text(encoding="utf-8"))
    return {word.strip() for words in found for part in words for word in part.split(",") if word.strip()}


def test_extras_are_found_in_each_form(tmp_path):
    (tmp_path / "page.md").write_text("pip install 'xaieval[hf]' or pip install -e \".[dev]\"; the extra `[onnx]`, extra [fal]")
    assert _named(tmp_path / "page.md") == {"hf", "dev", "onnx", "fal"}
    assert {"segments", "hf", "excel", "datasets"} <= {name for path in READ for name in _named(path)}


@pytest.mark.parametrize("path", [path for path in READ if _named(path)], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_extra_that_is_named_exists(path):
    assert _named(path) <= EXTRAS.keys()


def test_extras_contain_extras_that_exist_and_dev_contains_all():
    inside = {
        name: {word for entry in entries for word in re.findall(r"^xaieval\[(.*)\]$", entry)}
        for name, entries in EXTRAS.items()
    }
    for words in inside.values():
        assert {word for part in words for word in part.split(",")} <= EXTRAS.keys()
    [everything] = inside["dev"]
    assert {*everything.split(",")} == EXTRAS.keys() - {"dev"}


def test_every_extra_is_named_somewhere_with_what_it_is_for():
    assert EXTRAS.keys() - {"dev", "docs"} <= {name for path in READ for name in _named(path)}


def test_other_packages_that_messages_name_are_known():
    """`pip install NAME` without an extra: of a dependency that was removed by hand, or of a package that we never import."""
    told = {word for path in READ for word in re.findall(r"pip install ([a-z][\w-]+)", path.read_text(encoding="utf-8"))}
    assert told <= {"captum", "grad-cam", "tifffile", "build", "atheris", "openvino"}
