"""The gallery shows every example under its own title."""

from __future__ import annotations

import re

from tests import ROOT

SECTION = re.compile(r"^## (.+)\n\n`python examples/(\w+)\.py`", re.MULTILINE)


def test_sections_of_the_gallery_have_the_titles_of_the_examples():
    titles = {path.stem: path.read_text().splitlines()[0].removeprefix('"""') for path in (ROOT / "examples").glob("*.py")}
    shown = {name: title for title, name in SECTION.findall((ROOT / "docs/gallery.md").read_text())}
    assert shown == titles
