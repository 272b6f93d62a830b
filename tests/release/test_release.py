"""What is released: the wheel and the sdist hold what they should, and all places tell the same version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import xaieval
from tests import ROOT

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"xaieval-{xaieval.__version__}"
HEADING = re.compile(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)


def _build(source: Path, folder: Path, kind: str) -> Path:
    """A wheel or an sdist, as `python -m build` makes it."""
    program = f"import sys; from hatchling.build import build_{kind}; print(build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], cwd=source, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


def _files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(_build(ROOT, folder, "sdist")) as archive:
        archive.extractall(folder, filter="data")
    return folder / NAME


def _source_files() -> set[str]:
    """What there is of the package in this folder, without what running it leaves."""
    return {str(path.relative_to(ROOT)) for path in (ROOT / "xaieval").rglob("*") if path.is_file() and path.suffix != ".pyc"}


# ---- the files


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    info = f"{NAME}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert _files(wheel).keys() == _source_files() | about
    data = {"xaieval/models/weights/fpn_scenes.safetensors", "xaieval/analysis/published_tables/opti-cam.csv"}
    assert {"xaieval/py.typed", *data} <= _files(wheel).keys()
    assert wheel.stat().st_size < 5_000_000


def test_no_file_of_the_wheel_names_a_folder_of_the_machine_that_built_it(wheel):
    for name, content in _files(wheel).items():
        for folder in (ROOT, Path.home()):
            assert f"{folder}/".encode() not in content, name


def test_the_sdist_makes_the_same_wheel(wheel, unpacked, tmp_path):
    again = _build(unpacked, tmp_path, "wheel")
    assert again.name == wheel.name
    assert _files(again) == _files(wheel)


def test_the_sdist_has_what_its_tests_and_pages_need_and_nothing_that_running_leaves(unpacked):
    for path in (
        "tests/release/test_release.py",
        "docs/first_run.png",
        "examples",
        "benchmarks",
        ".ci/run",
        "CITATION.cff",
        "LICENSE",
    ):
        assert (unpacked / path).exists(), path
    names = {part for path in unpacked.rglob("*") for part in path.relative_to(unpacked).parts}
    assert not names & {"__pycache__", ".git", ".venv", ".venv-ci", ".coverage", "xaieval-runs", "dist"}


def test_the_installed_wheel_scores_outside_the_checkout(wheel, tmp_path):
    place, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    command = [str(place / "bin/xaieval-bench"), "score", "--max-images", "2", "--layers", "fpn[p5]", "--out", "run"]
    program = os.environ | {"PYTHONPATH": str(place)}
    done = subprocess.run(command, cwd=elsewhere, env=program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (elsewhere / "run/rows.parquet").exists()
    where = subprocess.run(
        [sys.executable, "-c", "import xaieval; print(xaieval.__file__)"],
        cwd=elsewhere,
        env=program,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(place), "or this would have tried the checkout"


def test_what_the_wheel_says_of_itself(wheel):
    about = Parser().parsestr(_files(wheel)[f"{NAME}.dist-info/METADATA"].decode())
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("xaieval", xaieval.__version__, "Apache-2.0")
    assert about["Requires-Python"] == PROJECT["requires-python"]
    needed = about.get_all("Requires-Dist")
    assert [line for line in needed if "extra ==" not in line] == sorted(PROJECT["dependencies"], key=str.lower)
    assert set(about.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    assert about.get_payload().startswith("# xaieval\n")


def test_every_dependency_has_a_lower_bound():
    for requirement in [
        *PROJECT["dependencies"],
        *(line for group in PROJECT["optional-dependencies"].values() for line in group),
    ]:
        assert ">=" in requirement or requirement.startswith("xaieval["), requirement


# ---- the version


def _differences(version: str, tags: list[str], changelog: str, citation: dict[str, object]) -> list[str]:
    """Where a release would not say the same everywhere; without a tag on the commit it is none, and needs no date."""
    entries = dict(HEADING.findall(changelog))
    found = [] if citation["version"] == version else [f"CITATION.cff has version {citation['version']}"]
    for tag in tags:
        found += [] if tag == f"v{version}" else [f"the tag is {tag}"]
        found += [] if entries.get(version) else [f"CHANGELOG.md has no dated entry for {version}"]
        found += [] if citation.get("date-released") else ["CITATION.cff has no date-released"]
    if not tags and not entries.keys() & {version, "Unreleased"}:
        found.append(f"CHANGELOG.md has no entry for {version}, nor what is unreleased")
    return found


def _tags() -> list[str]:
    """The version tags of this commit; none outside git."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return []
    command = ["git", "tag", "--points-at", "HEAD", "v*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()


def test_tag_changelog_and_citation_tell_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert not _differences(xaieval.__version__, _tags(), (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), citation)


@pytest.mark.parametrize(
    ("version", "tags", "changelog", "citation", "message"),
    [
        ("0.2.0", [], "## [Unreleased]\n", {"version": "0.1.0"}, "CITATION.cff has version 0.1.0"),
        ("0.2.0", [], "## [0.1.0] - 2026-12-01\n", {"version": "0.2.0"}, "CHANGELOG.md has no entry for 0.2.0"),
        ("0.2.0", ["v0.1.0"], "## [0.2.0] - 2026-12-01\n", {"version": "0.2.0", "date-released": "x"}, "the tag is v0.1.0"),
        ("0.2.0", ["v0.2.0"], "## [0.2.0]\n", {"version": "0.2.0", "date-released": "x"}, "no dated entry for 0.2.0"),
        ("0.2.0", ["v0.2.0"], "## [0.2.0] - 2026-12-01\n", {"version": "0.2.0"}, "CITATION.cff has no date-released"),
    ],
)
def test_a_release_that_does_not_say_the_same_everywhere_is_found(version, tags, changelog, citation, message):
    (found,) = _differences(version, tags, changelog, citation)
    assert message in found


def test_a_release_that_says_the_same_everywhere_is_fine():
    text = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n"
    assert not _differences("0.2.0", ["v0.2.0"], text, {"version": "0.2.0", "date-released": "2026-12-01"})


def test_the_changelog_has_the_parts_of_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    entries = HEADING.findall(text)
    assert entries[0][0] == "Unreleased"
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == len(entries)
    parts = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert set(parts) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_has_what_its_form_asks_for_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]
    for reference in citation["references"]:
        assert {"type", "title", "authors", "doi", "year"} <= reference.keys()
        assert re.fullmatch(r"10\.\d{4,}/\S+", reference["doi"])
    papers = {reference["url"].removeprefix("https://arxiv.org/abs/") for reference in citation["references"]}
    assert papers == {"1710.11063", "1610.02391", "1612.03144", "1812.10025", "2104.10252"}
