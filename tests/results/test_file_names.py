"""Names of files hold on every system, and no two texts get the same one."""

from __future__ import annotations

import pytest

from xaieval.results.file_names import LONGEST, FileNames, safe_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cat/1 a.jpg", "cat--1_a.jpg"),
        ("../../etc/passwd", "_.--..--etc--passwd"),
        (".hidden", "_hidden"),
        ("-rf", "_-rf"),
        ("a:b*?<>|\"'\n\0", "a_b" + "_" * 9),
        ("C:\\x", "C__x"),
        ("trailing...", "trailing"),
        ("...", "_"),
        ("", "_"),
        ("con", "_con"),
        ("NUL.png", "_NUL.png"),
        ("console", "console"),
        ("caf\u00e9 \u732b", "caf\u00e9_\u732b"),
        ("fpn[p2]+fpn[p3]", "fpn[p2]+fpn[p3]"),
    ],
)
def test_what_systems_do_not_take_is_replaced(text, name):
    assert safe_name(text) == name
    assert "/" not in name
    assert not name.startswith((".", "-"))


def test_names_that_are_too_long_or_alike_stay_apart_and_the_same():
    names = FileNames()
    texts = ["x" * 500, "x" * 501, "X" * 500, "a/b", "a--b", "a?b", "a:b"]
    given = [names.of(text) for text in texts]
    assert len({name.casefold() for name in given}) == len(texts)
    assert max(len(name.encode()) for name in given) <= LONGEST + 7
    assert [names.of(text) for text in texts] == given
    assert names.of("a.jpg", shown="a") == "a"
    assert names.of("a.png", shown="a") not in ("a", names.of("a.gif", shown="a"))
    assert names.of("a", "b") not in given  # two texts together are not one that looks like them
    assert len(("\U00020000" * LONGEST).encode()) < 255
