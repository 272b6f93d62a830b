"""Groups of images: what batches carry, and groups by class, by expression, from a file and from a mapping."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xaieval.config.groups import Groups, resolve_groups
from xaieval.data.batches import Batch, grouped, read_batches
from xaieval.data.groups import group_lookup, group_source, read_groups
from xaieval.errors import ConfigError, DataError

IDS = ["lake1", "lake2", "road1"]


def batch(group: Any = None, key: str = "group", **more: Any) -> dict[str, Any]:
    given = {} if group is None else {key: group}
    return {"image": torch.zeros(3, 3, 4, 4), "id": IDS, **given, **more}


def read(loader: list[Any], groups: Groups | None = None, batch_size: int | None = None) -> list[Batch]:
    return list(grouped(read_batches(loader, batch_size), groups or Groups()))


# ---- what batches carry


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a", "a", "b"], ["a", "a", "b"]),
        (("a", "a", "b"), ["a", "a", "b"]),
        ([7, 7.0, "7"], ["7", "7", "7"]),
        ([0, 1.5, True], ["0", "1.5", "True"]),
        (np.array(["a", "a", "b"]), ["a", "a", "b"]),
        (np.array([1, 1, 2]), ["1", "1", "2"]),
        (np.array([1.0, 1.0, 2.5]), ["1", "1", "2.5"]),
        (np.array(["a", 1, 2.0], dtype=object), ["a", "1", "2"]),
        (torch.tensor([3, 3, 4]), ["3", "3", "4"]),
        ([torch.tensor(3), np.int64(3), np.str_("x")], ["3", "3", "x"]),
    ],
)
@pytest.mark.parametrize("key", ["group", "groups"])
def test_a_batch_carries_groups_of_any_form(given, names, key):
    [one] = read([batch(given, key)])
    assert one.group == names
    assert [name for part in read([batch(given, key)], batch_size=2) for name in part.group or ()] == names
    [again] = read([one.to_mapping()])
    assert again.group == names
    assert one.copied().group == names
    assert one.part(1, 3, []).group == names[1:]


def test_batches_without_groups_have_none():
    assert read([batch()])[0].group is None
    assert read([torch.zeros(2, 3, 4, 4)])[0].group is None


MEND = "give every image a group, and one that belongs to no other a group of its own, such as its id"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", None, "b"], f"image 'lake2' has no group: its value is None; {MEND}"),
        (["a", "b", ""], f"image 'road1' has no group: its value is ''; {MEND}"),
        ([1.0, float("nan"), 2.0], f"image 'lake2' has no group: its value is nan; {MEND}"),
        (torch.tensor([float("nan"), 1.0, 2.0]), f"image 'lake1' has no group: its value is nan; {MEND}"),
        (["a", "b"], "a batch has 3 images but 2 groups; one group per image is expected"),
        ("abc", "the groups of a batch are one value per image, [N]; got 'abc'"),
        (7, "the groups of a batch are one value per image, [N]; got 7"),
        (torch.zeros(3, 2), "the groups of a batch are one value per image, [N]; got shape [3, 2]"),
        (["a", pd.NA, "b"], "the group of image 'lake2' is a NAType; a text or a number is expected"),
        ([["a"], ["a"], ["b"]], "the group of image 'lake1' is a list; a text or a number is expected"),
        (["a\n", "a", "b"], "the group 'a\\n' of image 'lake1' has characters that cannot be printed; give it another name"),
    ],
)
def test_groups_that_cannot_be_used_are_refused_word_for_word(given, message):
    with pytest.raises(DataError) as caught:
        read([batch(given)])
    assert str(caught.value) == message


def test_a_run_in_which_only_some_images_have_groups_is_refused():
    other = {"image": torch.zeros(1, 3, 4, 4), "id": ["sea1"]}
    message = (
        "image 'sea1' has no group, but image 'lake1' has one; give 'group' in every batch, and an image that belongs to no "
        "other a group of its own, such as its id"
    )
    for loader in ([batch(["a", "a", "b"]), other], [other, batch(["a", "a", "b"])]):
        with pytest.raises(DataError) as caught:
            read(loader)
        assert str(caught.value) == message


def test_batches_in_which_no_image_could_be_read_need_no_groups():
    broken = [{"failed": [(name, None, "broken")]} for name in ("sea1", "sea2")]
    assert [one.group for one in read([broken[0], batch(["a", "a", "b"]), broken[1]])] == [None, ["a", "a", "b"], None]


def test_means_cannot_be_weighted_by_groups_that_are_not_there():
    with pytest.raises(DataError) as caught:
        read([batch()], Groups(weights="groups"))
    assert str(caught.value) == (
        "means are to be weighted by groups, but the images have none; give 'group' in the loader's batches, or "
        "groups='class', a regular expression, a CSV file or a mapping"
    )


# ---- groups by class, expression, mapping


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("class", ["4", "4", "0"]),
        ("[a-z]+", ["lake", "lake", "road"]),
        (r"^(.)", ["l", "l", "r"]),
        (r"(?:lake|road)(\d)", ["1", "2", "1"]),
        ({"lake1": 1, "lake2": "1", "road1": 2.5, "more": "x"}, ["1", "1", "2.5"]),
    ],
)
def test_groups_are_found_and_win_over_those_of_the_batches(by, names):
    [one] = read([batch(["a", "b", "c"], label=torch.tensor([4, 4, 0]))], Groups(by))
    assert one.group == names


NO_MATCH = "finds no group in the id 'lake1'; change it so that it matches the id of every image"
NO_LABELS = (
    "groups='class' takes one label per image, but image 'lake1' has none; give labels in the loader's batches, or other groups"
)


@pytest.mark.parametrize(
    ("by", "label", "message"),
    [
        ("[a-z]+2", None, f"the expression '[a-z]+2' of groups= {NO_MATCH}"),
        ("lake(3)?", None, f"the expression 'lake(3)?' of groups= {NO_MATCH}"),
        ("class", None, NO_LABELS),
        (
            "class",
            torch.tensor([1, -1, 2]),
            "groups='class' takes one label per image, but image 'lake2' has none; leave out images without a label, or give "
            "other groups",
        ),
        ("class", torch.tensor([[0, 1], [1, 1], [0, 0]]), NO_LABELS),
        (
            {"lake1": "a", "x": "b"},
            None,
            "the mapping of groups= has no group of image 'lake2'; it has those of 2 ids, such as 'lake1'; add one for every "
            "image",
        ),
        ({"lake1": None}, None, f"image 'lake1' has no group: its value is None; {MEND}"),
        ({}, None, "the mapping of groups= has no group of image 'lake1'; it has those of 0 ids; add one for every image"),
    ],
)
def test_images_without_a_group_are_refused_word_for_word(by, label, message):
    with pytest.raises(DataError) as caught:
        read([batch(**({} if label is None else {"label": label}))], Groups(by))
    assert str(caught.value) == message


# ---- files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "places.csv"


@pytest.mark.parametrize(
    "text",
    [
        "id,group\nlake1,lake\nlake2,lake\nroad1,road\n",
        "image_id,group\nlake1,lake\nlake2,lake\nroad1,road\nmore,sea\n",
        "\ufeffgroup,id\r\nlake,lake1\r\nlake,lake2\r\nroad,road1\r\nroad,road1\r\n",
        'taken,id,group\n1999,lake1,"lake"\n,"lake2",lake\n2001,road1,road\n',
    ],
)
def test_a_file_gives_groups(file, text):
    file.write_text(text, encoding="utf-8")
    for by in (file, str(file)):
        [one] = read([batch()], Groups(by))
        assert one.group == ["lake", "lake", "road"]


def test_numbers_and_words_in_a_file_stay_as_they_are(file):
    file.write_text("id,group\n007,NA\n7,null\n")
    assert group_lookup(file)(["007", "7"], None) == ["NA", "null"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,place\nlake1,a\n",
            "'{}' has the columns 'id', 'place'; id (or image_id) and group are expected, each once, "
            "separated by a comma without a space",
        ),
        (
            "",
            "'{}' has the columns none; id (or image_id) and group are expected, each once, "
            "separated by a comma without a space",
        ),
        (
            "id,image_id,group\na,a,1\n",
            "'{}' has the columns 'id', 'image_id', 'group'; id (or image_id) and group are expected, each once, "
            "separated by a comma without a space",
        ),
        (
            "id,group,group\na,1,2\n",
            "'{}' has the columns 'id', 'group', 'group'; id (or image_id) and group are expected, each once, "
            "separated by a comma without a space",
        ),
        ("id,group\nlake1,a\nlake1,b\n", "'{}' has image 'lake1' in two groups, 'a' and 'b'; it belongs to one"),
        ("id,group\n,a\n", "'{}' has the group 'a' without an id; give every row an id and a group"),
        ("id,group\nlake1,\n", f"image 'lake1' has no group: its value is ''; {MEND}"),
        ("id,group\nlake1\n", f"image 'lake1' has no group: its value is None; {MEND}"),
        (
            "id,group\nlake1,a\n",
            "'{}' has no group of image 'lake2'; it has those of 1 ids, such as 'lake1'; add one for every image",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_word_for_word(file, text, message):
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read([batch()], Groups(file))
    assert str(caught.value) == message.format(file)


def test_a_file_that_is_not_there_or_is_no_text_is_refused(file):
    with pytest.raises(DataError) as caught:
        read([batch()], Groups(str(file)))
    assert str(caught.value) == (
        f"no file '{file}'; groups= that end in .csv are a file with the columns id and group, one row per image"
    )
    file.write_bytes(b"id,group\n\xff\xfe,a\n")
    with pytest.raises(
        DataError, match=f"^'{re.escape(str(file))}' cannot be read as CSV: .*; it takes the columns id and group$"
    ):
        read([batch()], Groups(file))
    with pytest.raises(DataError, match=r"cannot be read as CSV: .*Is a directory"):
        read([batch()], Groups(file.parent))


# ---- the choice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "image"}, "no weights 'image' of groups; did you mean 'images'? known: images, groups"),
        (
            {"by": 3},
            "groups= takes 'class', a regular expression, a CSV file or a mapping from ids to groups, such as a dict; got int",
        ),
        ({"by": ""}, "groups='' is an empty expression; give 'class', a regular expression or a CSV file"),
        (
            {"by": "("},
            "groups='(' is not a regular expression: missing ), unterminated subpattern at position 0; a file ends in .csv",
        ),
    ],
)
def test_choices_that_cannot_be_made_are_refused_word_for_word(arguments, message):
    with pytest.raises(ConfigError) as caught:
        Groups(**arguments)
    assert str(caught.value) == message


def test_an_argument_is_a_choice_or_what_it_says_of_by():
    chosen = Groups("class", "groups")
    assert resolve_groups(chosen) is chosen
    assert resolve_groups(None) == Groups()
    assert resolve_groups("x+") == Groups("x+")
    sources = [group_source(Groups(by)) for by in (None, "class", "x+", "a.csv", Path("b.csv"), {"a": 1})]
    assert sources == ["batch", "class", "x+", "a.csv", "b.csv", "mapping"]


def test_no_groups_stay_no_groups():
    assert read_groups(None, IDS) is None
