"""What xaieval and each of its extras weigh, from the files that are installed here.

    python benchmarks/install_sizes.py

prints a Markdown table: for the core and each extra, the packages that it brings beyond the core, and their size on the disk in
MiB. Extras that are not installed completely are named. docs/quickstart.md has the table.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

CORE = "xaieval"
PROJECT = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILDS = re.compile(r"^(nvidia|cuda|triton)")  # what a CPU build of torch does without


def main() -> None:
    """Print the table."""
    core = closure(CORE, "")
    gpu = {name for name in core if BUILDS.match(name)}
    print("| install | packages | MiB | the largest |\n|---|---|---|---|")
    print(row("`xaieval`, with the CUDA builds of torch", core))
    print(row("`xaieval`, without the packages of CUDA", core - gpu))
    for extra in sorted(PROJECT["optional-dependencies"].keys() - {"dev", "docs"}):
        print(row(f"`xaieval[{extra}]`, beyond that", closure(CORE, extra) - core))


def closure(name: str, extra: str) -> set[str]:
    """The names of a package and of all that it needs; those that are missing here are in it too."""
    found, open_ = set[str](), [(normal(name), extra)]
    seen = set(open_)
    while open_:
        name, extra = open_.pop()
        found.add(name)
        for text in needs(name, extra):
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                new = {(normal(need.name), one) for one in ("", *need.extras)} - seen
                seen |= new
                open_ += new
    return found


def needs(name: str, extra: str) -> Sequence[str]:
    """What a package says that it needs: xaieval in the checkout, all others where they are installed."""
    if name == CORE:
        return [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, ())]
    package = installed(name)
    return (package.requires or []) if package else []


def row(label: str, names: set[str]) -> str:
    """A line of the table."""
    sizes = {name: size(name) for name in names if installed(name) and name != CORE}
    missing = sorted(names - sizes.keys() - {CORE})
    largest = ", ".join(f"{name} {sizes[name]:.0f}" for name in sorted(sizes, key=sizes.__getitem__, reverse=True)[:3])
    note = f"; not installed here: {', '.join(missing)}" if missing else ""
    return f"| {label} | {len(names)} | {sum(sizes.values()):.0f} | {largest}{note} |"


@cache
def size(name: str) -> float:
    """MiB of the installed files of a package, without compiled Python files."""
    package = installed(name)
    paths = [Path(str(path.locate())) for path in (package.files or []) if path.suffix != ".pyc"] if package else []
    return sum(path.stat().st_size for path in paths if path.exists()) / 2**20


@cache
def installed(name: str) -> Distribution | None:
    """A package, if it is installed."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def normal(name: str) -> str:
    """The name of a package in the spelling that compares equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
