"""The origin of a run is readable, and does not say where things are on one machine."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from xaieval.data import Preprocessing
from xaieval.report.html.provenance import command_of, facts_of, preprocessing_text, subject_of, without_folders


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("folder:/home/me/my photos", "folder:my photos"),
        ("folder:/home/me/photos/", "folder:photos"),
        ("onnx:C:\\Users\\me\\net.onnx", "onnx:net.onnx"),
        ("/home/me/net.onnx", "net.onnx"),
        ("folder:~/photos", "folder:photos"),
        ("folder:photos/2026", "folder:photos/2026"),
        ("folder:../photos", "folder:../photos"),
        ("timm:resnet18", "timm:resnet18"),
        ("hf:org/model", "hf:org/model"),
        ("mine.package:factory", "mine.package:factory"),
    ],
)
def test_subjects_have_names_instead_of_absolute_paths(given, shown):
    assert subject_of({"options": {"model": given, "data": given}}) == (shown, shown)


def test_the_command_has_names_instead_of_absolute_paths_but_keeps_its_patterns():
    options = {"model": "timm:resnet18", "weights": "/home/me/net.safetensors", "out": "/tmp/run", "groups": "/(\\w+)/"}
    words = "--weights net.safetensors --out run --groups '/(\\w+)/'"
    assert command_of({"options": options}) == f"xaieval-bench score --model timm:resnet18 {words}"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("cannot read '/data/a/b.png'", "cannot read 'b.png'"),
        ("/data/a/b.png is truncated", "b.png is truncated"),
        ("none of the images is in 'folder:/data/photos' any more", "none of the images is in 'folder:photos' any more"),
        ("a/b and 1/2/3 stay, as does fpn[a/b]", "a/b and 1/2/3 stay, as does fpn[a/b]"),
        (r"no C:\data\photos", "no photos"),
    ],
)
def test_sentences_have_names_instead_of_absolute_paths(given, shown):
    assert without_folders(given) == shown


@pytest.mark.parametrize(
    ("preprocessing", "shown"),
    [
        (Preprocessing(), "resized to 256 pixels (bilinear), centre of 224 x 224 pixels, mean 0.485, 0.456, 0.406, standard"),
        (
            Preprocessing(224, 224, (0.5,) * 3, (0.2,) * 3),
            "resized to 224 pixels (bilinear), mean 0.5, standard deviation 0.2",
        ),
        (Preprocessing((96, 128), (96, 128), squash=True), "squeezed to 96 x 128 pixels (bilinear), mean 0.485"),
        (Preprocessing(border=True), "resized to 256 pixels (bilinear), filled up with a border, centre of 224 x 224 pixels,"),
    ],
)
def test_preprocessing_is_said_in_words(preprocessing, shown):
    text = preprocessing_text(asdict(preprocessing))
    assert text.startswith(shown)
    assert "None" not in text
    assert "False" not in text


def test_an_unknown_setting_is_named_and_how_the_model_was_run_is_said_in_words():
    assert preprocessing_text({"spacing_mm": 1.5, "fill": None}) == "spacing mm 1.5"
    speed = {"batch_size": 14, "folded_batch_norms": 0, "channels_last": True, "compiled": False, "autocast": "bf16"}
    assert dict(facts_of({"speed": speed})) == {"forward passes": "batches of 14, channels last in memory, autocast to bf16"}
