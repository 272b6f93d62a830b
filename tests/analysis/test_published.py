"""Published tables: what they hold, which of their rows belong to a run, and what still differs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from xaieval import Scores
from xaieval.analysis.published import PUBLISHED, beside_published, published_table
from xaieval.analysis.published_order import order_notes
from xaieval.config.protocol import PROTOCOLS
from xaieval.errors import MetricError
from xaieval.explainers import resolve_methods
from xaieval.report import published_beside

METRICS = [
    {"name": "average_drop", "label": "AD %", "higher_is_better": False, "interval": "mean"},
    {"name": "increase_in_confidence", "label": "IC %", "higher_is_better": True, "interval": "wilson"},
    {"name": "insertion", "label": "insertion", "higher_is_better": True, "interval": "mean"},
]


def run(pairs: list[tuple[str, str]], protocol: str = "opti-cam", **options: Any) -> Scores:
    rows = pd.concat([pd.DataFrame({"image_id": range(12), "layer": layer, "method": method}) for layer, method in pairs])
    values = {
        "average_drop": 30.0 + rows["image_id"],
        "increase_in_confidence": 100.0 * (rows["image_id"] < 4),
        "insertion": 0.5,
    }
    choices = {f"protocol.{name}": value for name, value in PROTOCOLS[protocol].to_dict().items()}
    manifest = {"metrics": METRICS, "run": choices | {"protocol.mean": [0.5, 0.5, 0.5]}, "options": options}
    return Scores(rows.assign(status="ok", **values).reset_index(drop=True), manifest)


RESNET = {"model": "torchvision:resnet50", "data": "folder:val", "pretrained": True}


def test_every_table_is_of_a_protocol_and_names_methods_as_rows_do():
    assert {table.name for table in PUBLISHED} <= PROTOCOLS.keys()
    for table in PUBLISHED:
        again = table.rows["rerun"].dropna()
        assert [method.name for method in resolve_methods(sorted(set(again)))] == sorted(set(again))
        assert table.preset.name == table.name


@pytest.mark.parametrize(
    ("name", "network", "method", "drop", "increase"),  # copied by hand from the sources
    [
        ("grad-cam++", "VGG-16 (Caffe)", "Grad-CAM++", 36.84, 17.05),
        ("score-cam", "VGG-16", "Score-CAM", 31.5, 30.6),
        ("opti-cam", "ResNet50", "Grad-CAM", 36.4, 27.0),
        ("opti-cam-normalised", "ResNet50", "Grad-CAM", 12.2, 44.4),
        ("torch-cam", "resnet18", "LayerCAM", 17.12, 28.19),
    ],
)
def test_numbers_are_the_printed_ones_in_percent(name, network, method, drop, increase):
    rows = published_table(name).rows.query("network == @network and method == @method")
    assert rows[["average_drop", "increase_in_confidence"]].to_numpy().tolist() == [[drop, increase]]


def test_printed_numbers_stand_at_the_layer_and_method_they_are_of():
    scores = run([("layer3", "gradcam"), ("layer4", "gradcam"), ("layer4", "score-cam"), ("layer4", "rise")], **RESNET)
    numbers, notes = beside_published(scores, published_table("opti-cam"))
    assert numbers["average_drop"].to_dict() == {("layer4", "gradcam"): 36.4, ("layer4", "score-cam"): 28.8}
    assert numbers["average_gain"].to_dict() == {("layer4", "gradcam"): 5.5, ("layer4", "score-cam"): 8.8}
    assert notes[:4] == [
        'published: Zhang et al., "Opti-CAM", CVIU 248, 2024 (arXiv 2301.07002), Table A.14, appendix H, ResNet50',
        "the images: ImageNet val (50,000) in print, folder:val (12) here",
        "the weights: those of the library here; that they are those of the source is not known",
        "open: its VGG16 is the one with BatchNorm, whose layer 42 is the last ReLU",
    ]
    assert any(note.startswith("the run lacks: gradcam++ at layer4, ") for note in notes)
    assert any(note.startswith("in print, and not measured again: Fake-CAM") for note in notes)


def test_another_protocol_and_another_network_are_said():
    scores = run([("layer4", "gradcam")], "default", **RESNET | {"model": "timm:resnet50", "weights": "mine.pth"})
    _, notes = beside_published(scores, published_table("opti-cam"), "ResNet50")
    assert notes[1].startswith("the protocols differ: target is 'label' in print and 'predicted' in this run; ")
    assert "the networks differ: ResNet50 in print, timm:resnet50 here" in notes
    assert "the weights: mine.pth here; that they are those of the source is not known" in notes
    _, plain = beside_published(Scores(scores.rows, {"metrics": METRICS}), published_table("opti-cam"), "ResNet50")
    assert "the protocol of the run is not known" in plain


def test_another_network_is_matched_at_its_layers_and_the_same_at_its_own_alone():
    one = run([("blocks.6", "gradcam")], "score-cam", model="timm:vgg")
    numbers, notes = beside_published(one, published_table("score-cam"))
    assert numbers["average_drop"].to_dict() == {("blocks.6", "gradcam"): 47.8}
    assert "the layers: the table is measured again at features.29; here blocks.6" in notes
    two = run([("blocks.5", "gradcam"), ("blocks.6", "gradcam"), ("input", "rise")], "score-cam", model="timm:vgg")
    numbers, notes = beside_published(two, published_table("score-cam"))
    drops = {("blocks.5", "gradcam"): 47.8, ("blocks.6", "gradcam"): 47.8, ("input", "rise"): 47.0}
    assert numbers["average_drop"].to_dict() == drops
    assert (
        "the layers: the table is measured again at features.29; here blocks.5, blocks.6, so a printed number stands beside "
        "each of them" in notes
    )
    same = run([("features.28", "gradcam")], "score-cam", model="torchvision:vgg16")
    with pytest.raises(MetricError, match=r"no row of score-cam: for VGG-16 it needs rise, gradcam at features\.29, "):
        beside_published(same, published_table("score-cam"))
    exact = run([("features.29", "gradcam"), ("features.28", "gradcam")], "score-cam", model="torchvision:vgg16")
    numbers, notes = beside_published(exact, published_table("score-cam"))
    assert list(numbers.index) == [("features.29", "gradcam")]
    assert not any(note.startswith("the layers") for note in notes)


def test_folders_of_the_machine_are_not_in_the_notes():
    scores = run([("a", "gradcam")], "score-cam", model="timm:vgg", data="folder:/home/me/val", weights="/home/me/w.pth")
    notes = beside_published(scores, published_table("score-cam"))[1]
    assert "the images: ImageNet val (2,000) in print, folder:val (12) here" in notes
    assert "the weights: w.pth here; that they are those of the source is not known" in notes


def _frame(drops: list[float], letters: list[str]) -> pd.DataFrame:
    pairs = [("p5", "gradcam"), ("p5", "gradcam++"), ("input", "rise"), ("p4", "gradcam")]
    index = pd.MultiIndex.from_tuples(pairs[: len(drops)], names=["layer", "method"])
    return pd.DataFrame({"average_drop": drops, "average_drop_letters": letters}, index)


@pytest.mark.parametrize(
    ("drops", "letters", "expected"),  # in print: gradcam 40, gradcam++ 30
    [
        ([50.0, 20.0], ["b", "a"], ["AD %: the methods are in the order of print"]),
        (
            [50.0, 20.0],
            ["a", "a"],
            ["AD %: the methods are in the order of print, but not all of the differences are significant"],
        ),
        ([50.0, 20.0], ["", ""], ["AD %: the methods are in the order of print, which was not tested"]),
        (
            [20.0, 50.0],
            ["a", "b"],
            ["AD %: at p5, gradcam++ is better than gradcam in print (30.0, 40.0), but worse here (50.0, 20.0; significantly)"],
        ),
        (
            [20.0, 21.0],
            ["ab", "b"],
            [
                "AD %: at p5, gradcam++ is better than gradcam in print (30.0, 40.0), but worse here (21.0, 20.0; "
                "not significantly)"
            ],
        ),
        ([np.nan, 21.0], ["", "a"], []),
    ],
)
def test_methods_in_another_order_than_in_print_are_named_with_what_the_test_says(drops, letters, expected):
    frame = _frame(drops, letters)
    printed = pd.DataFrame({"average_drop": [40.0, 30.0]}, frame.index)
    assert order_notes(frame, printed, METRICS) == expected
    assert order_notes(frame, printed.iloc[:0], METRICS) == [], "nothing is in print"


def test_methods_are_compared_at_their_layer_and_those_without_one_with_all():
    frame = _frame([10.0, 20.0, 30.0, 40.0], ["a", "b", "c", "d"])
    printed = pd.DataFrame({"average_drop": [40.0, 30.0, 35.0, 40.0]}, frame.index)
    assert order_notes(frame, printed, METRICS) == [
        "AD %: at p5, gradcam++ is better than gradcam in print (30.0, 40.0), but worse here (20.0, 10.0; significantly)",
        "AD %: at p5, rise is better than gradcam in print (35.0, 40.0), but worse here (30.0, 10.0; significantly)",
    ]


def test_a_method_without_a_layer_is_matched_where_it_stands():
    numbers, _ = beside_published(
        run([("input", "rise")], "score-cam", model="torchvision:vgg16"), published_table("score-cam")
    )
    assert numbers["increase_in_confidence"].to_dict() == {("input", "rise"): 14.0}


def test_the_table_has_a_column_more_for_each_metric_in_print():
    table = published_beside(run([("layer4", "gradcam"), ("layer4", "rise")], **RESNET), "opti-cam")
    text = table.lines()
    assert text[0][2:7] == ["AD % ↓", "AD % published", "IC % ↑", "IC % published", "insertion ↑"]
    assert [row[3] for row in text[1:]] == ["36.4", "-"]
    assert [row[5] for row in text[1:]] == ["27.0", "-"]
    assert table.frame["average_drop_published"].tolist() == pytest.approx([36.4, np.nan], nan_ok=True)
    plain = run([("layer4", "gradcam"), ("layer4", "rise")], **RESNET).table()
    pd.testing.assert_frame_equal(table.frame[plain.frame.columns], plain.frame)
    vgg = published_beside(run([("features.29", "gradcam++")], "grad-cam++", model="torchvision:vgg16"), "grad-cam++")
    assert vgg.lines()[1][3] == "36.84", "all printed digits"


def test_wrong_names_are_refused():
    with pytest.raises(MetricError, match=r"no published table 'optikam'; did you mean 'opti-cam'"):
        published_table("optikam")
    scores = run([("layer4", "gradcam")], model="timm:resnet50")
    assert published_table("Grad-CAM++").name == "grad-cam++"
    assert len(beside_published(run([("layer4", "gradcam")]), published_table("Opti CAM"), "resnet-50")[0]) == 1
    with pytest.raises(MetricError, match=r"no network 'ResNet' in opti-cam; did you mean 'ResNet50'"):
        beside_published(scores, published_table("opti-cam"), "ResNet")
    with pytest.raises(MetricError, match=r"opti-cam has the networks ResNet50, VGG16, and the run's model is timm"):
        beside_published(scores, published_table("opti-cam"))
