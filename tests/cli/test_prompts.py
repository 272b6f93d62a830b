"""Prompts of the command line: templates, files and run files, held against the classes of the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.models.tiny_clip import save_clip
from xaieval.cli import main
from xaieval.cli.prompts import class_prompts
from xaieval.errors import UsageError

NAMES = ["cat", "polar_bear"]


def test_templates_take_class_names_as_words():
    expected = ("a photo of a cat.", "a photo of a polar bear.")
    assert class_prompts(["a photo of a {}."], NAMES, "folder:x", labelled=True) == expected
    assert class_prompts(expected, NAMES, "folder:x", labelled=True) == expected
    assert class_prompts(["Cats", "dogs", "{"], NAMES, "folder:x", labelled=False) == ("Cats", "dogs", "{")
    assert class_prompts(["a", "b"], [], "mine:make", labelled=True) == ("a", "b")
    assert class_prompts(["left", "right"], NAMES, "folder:x", labelled=True) == ("left", "right")


@pytest.mark.parametrize(
    ("prompts", "names", "message"),
    [
        (["a {}", "the {}"], NAMES, r"takes one text with \{\} for the names of all classes"),
        (["a {}"], [], r"'folder:x' does not name classes to fill in 'a \{\}'; give one prompt for each class"),
        (["a {}"], ["cat", "n01440764"], r"by codes or numbers, such as 'n01440764'.* a \.txt file with one on each line"),
        (["a {}"], ["0", "1"], "such as '0'"),
        (["a {}"], ["big_cat", "Big cat"], "class names that are the same words"),
        (["a cat"], NAMES, "'folder:x' has 2 classes and --prompts 1; the label of an image is the place of its prompt"),
        (
            ["the polar bear", "the cat"],
            NAMES,
            r"class 0 of 'folder:x' is 'cat'.* in the order of the classes: cat, polar bear",
        ),
    ],
)
def test_prompts_that_are_not_the_classes_are_refused(prompts, names, message):
    with pytest.raises(UsageError, match=message):
        class_prompts(prompts, names, "folder:x", labelled=True)


def test_where_the_prediction_is_explained_the_prompts_may_be_fewer_but_not_in_another_order():
    assert class_prompts(["a cat"], NAMES, "folder:x", labelled=False) == ("a cat",)
    with pytest.raises(UsageError, match="in the order of the classes"):
        class_prompts(["the polar bear", "the cat"], NAMES, "folder:x", labelled=False)


def test_a_name_inside_another_word_is_no_other_class():
    names = ["car", "carpet"]
    assert class_prompts(["an automobile", "a carpet"], names, "folder:x", labelled=True) == ("an automobile", "a carpet")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny CLIP and pictures of two classes."""
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder / "clip")
    values = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), dtype=np.uint8)
    for name, value in zip(NAMES, values, strict=True):
        (folder / "photos" / name).mkdir(parents=True)
        Image.fromarray(value).save(folder / "photos" / name / "1.png")
    return folder


def _run(*arguments: str) -> int:
    try:
        main([*arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _prompts(run: Path) -> list[str]:
    return json.loads((run / "manifest.json").read_text())["model"]["settings"]["prompts"]


def test_the_command_takes_a_template_words_a_file_and_a_run_file(place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    common = ("--model", f"hf:{place / 'clip'}", "--data", f"folder:{place / 'photos'}", "--no-progress", "--methods", "center")
    label = ("--target", "label")
    assert _run("score", *common, "--prompts", "a photo of a {}", *label, "--out", "template") == 0
    assert _prompts(Path("template")) == ["a photo of a cat", "a photo of a polar bear"]
    assert _run("score", *common, "--prompts", "a cat, a dog", "the bus", "--out", "words") == 0
    assert _prompts(Path("words")) == ["a cat, a dog", "the bus"]
    Path("prompts.txt").write_text("the cat\n\n a polar bear \n")
    assert _run("score", *common, "--prompts", "prompts.txt", *label, "--out", "file") == 0
    assert _prompts(Path("file")) == ["the cat", "a polar bear"]
    assert json.loads(Path("file/manifest.json").read_text())["options"]["prompts"] == ["the cat", "a polar bear"]
    Path("run.toml").write_text('prompts = ["a cat, a dog", "a polar bear"]\n')
    assert _run("score", "run.toml", *common, "--out", "toml") == 0
    assert _prompts(Path("toml")) == ["a cat, a dog", "a polar bear"]
    assert _run("report", "template") == 0  # loads the model again
    assert "no maps" not in capsys.readouterr().err
    assert _run("score", *common, "--prompts", "a photo of the {}", *label, "--out", "template") == 2
    assert "its prompts is" in capsys.readouterr().err


def test_the_command_says_what_is_wrong_with_prompts(place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    common = ("score", "--model", f"hf:{place / 'clip'}", "--data", f"folder:{place / 'photos'}", "--no-progress")
    for arguments, message in (
        (common, "has no classes of its own; name them by --prompts"),
        (
            (*common, "--prompts", "the polar bear", "the cat", "--target", "label"),
            "in the order of the classes: cat, polar bear",
        ),
        ((*common, "--prompts", "nowhere.txt"), "cannot read 'nowhere.txt'"),
        ((*common, "--prompts", "a {}", "run.toml"), "no run file 'run.toml'"),
        (("score", "--prompts", "a cat", "--max-images", "2"), "xaieval:fpn-scenes has classes of its own"),
    ):
        assert _run(*arguments) == 2
        assert message in capsys.readouterr().err


def test_layers_are_those_that_see_the_images(place, capsys):
    assert _run("layers", f"hf:{place / 'clip'}", "--prompts", "a photo of a {}", "--json") == 0
    addresses = [layer["address"] for layer in json.loads(capsys.readouterr().out)["layers"]]
    assert "model.vision_model.encoder.layers.0" in addresses
    assert not [address for address in addresses if "text" in address]
