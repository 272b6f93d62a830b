"""The page on troubleshooting quotes messages that the code has."""

from __future__ import annotations

import re

import pytest

from tests import ROOT

QUOTED = re.findall(r"^\| (`[^|]+)(?: \|[^|]*){2} \|$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
JOINT = re.compile(r'"\s*\n\s*f?"')  # between two lines of one string
FIELD = re.compile(r"\{[^{}]*\}")  # of an f-string


@pytest.fixture(scope="module")
def source() -> str:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "xaieval").rglob("*.py")))
    return FIELD.sub("…", JOINT.sub("", text))


@pytest.mark.parametrize("cell", [cell for cell in QUOTED if "(of torch)" not in cell and "`nan`" not in cell])
def test_a_quoted_message_is_one_of_the_package(cell, source):
    for message in re.findall(r"`([^`]+)`", cell):
        for part in message.split("…"):
            assert part.strip(" '") in source, part


def test_messages_are_found():
    assert len(QUOTED) > 18
