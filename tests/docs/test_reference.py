"""The reference lists every public name, and nothing else; what pages and examples import is in it."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

import xaieval
from tests import ROOT

PAGES = sorted((ROOT / "docs/reference").glob("*.md"))
READ = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.py"))]
BLOCK = re.compile(r"^```\{eval-rst\}\n\.\. currentmodule:: (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SUMMARY = re.compile(r"^\.\. autosummary::\n((?:   .*\n|\n)+)", re.MULTILINE)
DATA = re.compile(r"^\.\. py:data:: (\w+)$", re.MULTILINE)
IMPORT = re.compile(r"from (xaieval(?:\.\w+)*) import ([\w, ]+)")


def _documented() -> dict[str, list[str]]:
    """By module, the names that the pages of the reference list."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for module, text in BLOCK.findall(page.read_text()):
            listed = [line.strip() for part in SUMMARY.findall(text) for line in part.splitlines()]
            found.setdefault(module, []).extend([name for name in listed if name and name[0] != ":"] + DATA.findall(text))
    return found


DOCUMENTED = _documented()


def test_the_reference_has_the_modules_that_the_package_gives():
    modules = {name for name in xaieval.__all__ if inspect.ismodule(getattr(xaieval, name))}
    assert modules
    assert {f"xaieval.{name}" for name in modules} | {"xaieval"} <= DOCUMENTED.keys()


@pytest.mark.parametrize("module", DOCUMENTED)
def test_the_reference_lists_the_public_names_of_a_module(module):
    found = importlib.import_module(module)
    public = [name for name in found.__all__ if not inspect.ismodule(getattr(found, name))]
    page = next(page.name for page in PAGES if f"currentmodule:: {module}\n" in page.read_text())
    missing, unknown = set(public) - set(DOCUMENTED[module]), set(DOCUMENTED[module]) - set(public)
    assert not missing, f"list them in docs/reference/{page}"
    assert not unknown, f"docs/reference/{page} lists what {module}.__all__ has not"
    assert len(DOCUMENTED[module]) == len(public), "a name stands there twice"


@pytest.mark.parametrize("module", DOCUMENTED)
def test_what_the_reference_takes_from_docstrings_has_one(module):
    found = importlib.import_module(module)
    names = [
        name for name in DOCUMENTED[module] if inspect.isclass(getattr(found, name)) or inspect.isfunction(getattr(found, name))
    ]
    assert not [name for name in names if not inspect.getdoc(getattr(found, name))]


def test_every_page_of_the_reference_is_in_its_table_of_contents():
    contents = (ROOT / "docs/reference/index.md").read_text().split()
    assert not [page.stem for page in PAGES if page.stem not in (*contents, "index")]


def test_every_page_is_in_the_table_of_contents():
    contents = (ROOT / "docs/index.md").read_text().split()
    pages = [page.stem for page in (ROOT / "docs").glob("*.md")]
    assert not [page for page in pages if page not in (*contents, "index", "gallery")], "a line in docs/index.md"


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_what_pages_and_examples_import_is_in_the_reference(path):
    for module, names in IMPORT.findall(path.read_text()):
        for name in names.replace(" ", "").split(","):
            known = name in DOCUMENTED.get(module, ()) or f"{module}.{name}" in DOCUMENTED
            assert known, (
                f"{path.name} imports {name} from {module}: list it in docs/reference, or import it from where it is listed"
            )
