"""The report of any run states the numbers of the run, loads nothing from elsewhere, and executes no code from names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import xaieval
from xaieval import CrossScores
from xaieval.cli import main
from xaieval.cli.app import app
from xaieval.cli.remake_maps import remake_maps
from xaieval.cli.report import _names
from xaieval.config import protocol as protocols
from xaieval.config.options import to_settings
from xaieval.config.protocol import PROTOCOLS, Protocol
from xaieval.errors import DataError, MetricError, OutputError, ProtocolError
from xaieval.evaluation.scores import Scores
from xaieval.report import Maps, ReportOptions, images_to_show, render_report
from xaieval.report.html.image_choice import choose_images
from xaieval.report.html.interval_chart import Interval, draw_panel
from xaieval.report.html.protocol_text import preset_of, protocol_sentences
from xaieval.report.html.provenance import command_of
from xaieval.report.html.row_table import list_rows
from xaieval.results.matched import excess_entry

AD = {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"}
IC = {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson", "label": "IC %"}
LIMIT = 10_000_000  # bytes of a page of 10,000 images
EVIL = "</script><img src=x onerror=alert(1)>"


class Result(NamedTuple):
    status: int
    out: str
    err: str


def _rows(count: int = 60, layers: tuple[str, ...] = ("p4", "p5"), methods: tuple[str, ...] = ("gradcam",)) -> pd.DataFrame:
    """Rows image by image; on average each layer loses less confidence than the one before."""
    rng = np.random.default_rng(0)
    pairs = [(layer, method) for layer in layers for method in methods]
    confidence = np.repeat(rng.uniform(0.5, 1, count), len(pairs))
    share = np.tile([1 - number / len(pairs) for number in range(len(pairs))], count)
    masked = confidence * (1 - share * rng.uniform(-0.1, 1, len(confidence)))
    label = pd.array(np.repeat(np.arange(count) % 3, len(pairs)), dtype="Int64")
    return pd.DataFrame(
        {
            "image_id": np.repeat([f"class {number % 3}/{number:05d}.png" for number in range(count)], len(pairs)),
            "layer": [layer for layer, _ in pairs] * count,
            "method": [method for _, method in pairs] * count,
            "label": label,
            "predicted": label,
            "target": label,
            "confidence": confidence,
            "masked_confidence": masked,
            "mask_area": rng.uniform(0, 1, len(confidence)),
            "average_drop": 100 * np.maximum(0, confidence - masked) / confidence,
            "increase_in_confidence": 100.0 * (masked > confidence),
            "status": "ok",
        }
    )


def _scores(rows: pd.DataFrame | None = None, **manifest: Any) -> Scores:
    return Scores(_rows() if rows is None else rows, {"metrics": [AD, IC], "seed": 0, "complete": True} | manifest)


def _failed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(status="nan_map", **dict.fromkeys(("average_drop", "increase_in_confidence"), np.nan))


def _maps(ids: list[str], layers: tuple[str, ...] = ("p4", "p5"), side: int = 200) -> Maps:
    """Noise, which compresses worst."""
    return Maps(
        ids, torch.rand(len(ids), 3, side, side), {"gradcam": {one: torch.rand(len(ids), side, side) for one in layers}}
    )


def _page(scores: Scores, **options: Any) -> str:
    return render_report(scores, ReportOptions(**options))


def _text(page: str) -> str:
    """The visible text of a page, approximately."""
    page = page.replace("<wbr>", "")
    words = re.sub(r"<(style|script)[^>]*>.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(words.split())


def _json(page: str) -> dict[str, Any]:
    """What the scripts of the page read."""
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def _data(page: str) -> list[dict[str, Any]]:
    return _json(page)["rows"]["columns"]


# ---- the numbers


def test_the_table_is_the_summary_with_its_intervals():
    scores = _scores()
    text = _text(_page(scores))
    for (layer, method), row in scores.summary().iterrows():
        cells = [
            f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"
            for name in ("average_drop", "increase_in_confidence")
        ]
        area = scores.rows.loc[scores.rows["layer"] == layer, "mask_area"].mean()
        assert f"{layer} {method} {' '.join(cells)} {100 * area:.1f} 60 0" in text


def test_the_first_screen_says_what_was_scored_and_what_came_out():
    scores = _scores(options={"model": "timm:resnet18", "data": "folder:photos"})
    text = _text(_page(scores))
    best = scores.summary().loc[("p5", "gradcam")]
    confidence = scores.rows.drop_duplicates("image_id")["confidence"].mean()
    assert "Explanation scores of timm:resnet18 on folder:photos images 60 layers 2 method 1 accuracy 100.0 % 60 of" in text
    assert f"mean confidence {confidence:.3g}" in text
    assert "Best layer and method p5 gradcam in AD %; p4 gradcam in IC % Significantly better than all others in" in text
    interval = f"[{best['average_drop_low']:.1f}, {best['average_drop_high']:.1f}]"
    assert f"AD % lower is better p5 gradcam {best['average_drop']:.1f} {interval} none IC %" in text
    assert "No reasons to doubt the numbers" in text


def test_layers_that_need_attention_are_named_only_when_they_are_asked_for():
    text = _text(_page(_scores(), attention=True))
    assert "Layers that need attention: 1 ( p4 , worst first, by gradcam)" in text
    assert "p4, average_drop: " in text
    assert "attention" not in _text(_page(_scores())).lower()


def test_methods_that_do_not_differ_from_the_best_are_named():
    rows = _rows(60)
    rows.loc[rows["layer"] == "p4", "average_drop"] = rows.loc[rows["layer"] == "p5", "average_drop"].to_numpy()[::-1]
    assert re.search(
        r"AD % lower is better (?:p[45] gradcam )?[\d.]+ \[[^]]+\] p[45] gradcam IC %", _text(_page(_scores(rows)))
    )


def test_reasons_for_doubt_are_those_of_the_run_and_too_few_images():
    rows = _rows(20)
    rows.loc[rows.index[:4], "status"] = "constant_map"
    scores = _scores(rows)
    [own] = scores.warnings()
    text = _text(_page(scores))
    found = f"{own[0].upper()}{own[1:]} Only 20 images count for a layer and method; with fewer than 50,"
    assert f"2 reasons to doubt the numbers {found}" in text
    assert "Rows by status: ok 36, constant_map 4." in text
    constant = rows.assign(layer="input", method="uniform", status="constant_map")
    whole = _scores(pd.concat([_rows(20), constant], ignore_index=True), controls=["uniform"])
    assert "Rows by status" not in _text(_page(whole)), "a control that is meant to be constant"


def test_controls_are_told_from_methods_and_those_beaten_are_counted():
    rows = pd.concat([_rows(), _rows(layers=("input",), methods=("random", "fake-cam"))], ignore_index=True)
    rows.loc[rows["method"] == "random", "average_drop"] = 100.0
    rows.loc[rows["method"] == "fake-cam", "average_drop"] = 0.0
    text = _text(_page(_scores(rows, controls=["random", "fake-cam"])))
    assert "images 60 layers 2 method 1 and 2 control maps" in text
    assert "random (control)" in text
    assert "p5 gradcam 1 of 1" in text
    assert "IC %: no method has a better mean than the control map random" in text
    assert "AD %: no method has a better mean" not in text
    assert text.count("this metric can be fooled: fake-cam, ones except for one pixel, has 0.0, the best method") == 1
    assert "lower is better can be fooled" in text, "the heading of the metric"
    assert "AD % lower is better can be fooled 0.0" not in text, "a control is never the best"


def test_numbers_over_all_images_have_a_table_and_charts_of_their_own():
    rows = _rows(methods=("gradcam", "random"))
    rows["mean_iou"] = 50.0
    rows["mean_iou_curve"] = list(np.random.default_rng(1).dirichlet([2, 1, 1, 4], size=len(rows)))
    rows.loc[rows["image_id"] == rows["image_id"][0], "mean_iou_curve"] = None  # an image without an object
    entry = {"name": "mean_iou", "higher_is_better": True, "interval": "mean", "label": "mean IoU %"}
    scores = _scores(rows, metrics=[AD, entry | {"settings": {"pooled": "mean_iou"}}], controls=["random"])
    page = _page(scores)
    text = _text(page)
    start = text.index("Over all images at once")
    table = text[start : text.index("Control maps that each method beats", start)]
    assert "mIoU % higher is better, n = 59" in table
    for (layer, method), row in scores.pooled().iterrows():
        name = f"{layer} {method}{' (control)' * (method == 'random')}"
        assert f"{name} {row['mean_iou']:.1f} [{row['mean_iou_low']:.1f}, {row['mean_iou_high']:.1f}]" in table
    assert "Mean iou (mIoU %) higher is better" in table
    ids = re.findall(r'id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "[&ndash;]: no interval: a percentile bootstrap" in _text(_page(_scores(rows[:40], **scores.manifest)))
    assert "Over all images at once" not in _text(_page(_scores()))


def test_maps_stand_beside_others_of_their_size():
    rows = _rows()
    rows = rows.assign(average_drop_shifted=rows["average_drop"] + 40, average_drop_dimmed=rows["average_drop"] - 1)
    scores = _scores(rows.assign(average_drop_excess=-40.0), matched_controls=["shifted", "dimmed"])
    scores.manifest["metrics"] = [*scores.metrics, excess_entry(scores.metrics[0], "shifted")]
    text = _text(_page(scores))
    assert "Is it the map, or its size?" in text
    assert "shifted : the same map, moved to another place; dimmed : the whole image" in text
    assert "AD minus that of shifted maps" in text
    assert "1 of 2 not dimmed" in text
    assert "Is it the map, or its size?" not in _text(_page(_scores()))


def test_an_unfinished_run_says_so_and_a_finished_one_does_not():
    assert "This run is unfinished." in _text(_page(_scores(complete=False)))
    assert "unfinished" not in _text(_page(_scores()))


@pytest.mark.parametrize(
    "rows",
    [
        _failed(_rows()),
        _rows(1, layers=("p5",)),
        _rows(2),
        _rows().drop(columns=["label", "predicted", "target", "mask_area", "confidence", "masked_confidence"]),
        _rows().assign(label=pd.array([pd.NA] * 120, dtype="Int64")),
        _rows(layers=("input",)),
    ],
    ids=["all failed", "one row", "two images", "few columns", "no labels", "no layers"],
)
def test_any_run_has_a_page(rows):
    page = _page(_scores(rows), maps=_maps(list(rows["image_id"].unique()[:3]), side=8))
    text = _text(page)
    assert "nan" not in re.sub(r"nan_map|nan_\w+|Nan", "", text).lower().split()
    assert len(_data(page)[0]["values"]) == len(rows)


def test_a_run_of_failures_alone_has_no_best_and_no_maps():
    rows = _failed(_rows())
    text = _text(_page(_scores(rows), maps=_maps(list(rows["image_id"].unique()[:3]), side=8)))
    assert "No result: no row has a value" in text
    assert "No maps are shown: none of the given maps" in text
    assert "100% of the rows failed (nan_map 60)" in text


def test_images_that_could_not_be_read_are_listed_with_their_reasons():
    unreadable = [{"id": f"broken {number}", "reason": "UnidentifiedImageError"} for number in range(13)]
    text = _text(_page(_scores(unreadable=unreadable)))
    assert "broken 9 : UnidentifiedImageError" in text
    assert "broken 10" not in text
    assert "3 more in the manifest." in text


def test_two_runs_stand_side_by_side_as_compare_says():
    rows = _rows()
    other = _scores(rows.assign(average_drop=rows["average_drop"] + 30), run={"seed": 1, "model": "b"})
    scores = _scores(rows, run={"seed": 1, "model": "a"})
    text = _text(_page(scores, other=other, names=("first", "second")))
    row = scores.compare(other).loc[("p4", "gradcam", "average_drop")]
    shown = f"{row['mean']:.1f} {row['other_mean']:.1f} {row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
    assert f"p4 gradcam AD % {shown} {row['p_holm']:.2g} 60 first" in text
    verdict = "Of 4 comparisons, 2 are significantly better in first and 0 are significantly better in second"
    assert text.count(verdict) == 2, "at the top, and in its section"
    assert f"Compared with second ( a model ): {verdict}" in text.replace("(a model)", "( a model )")
    assert "Settings that differ setting first second model a b" in text


def test_runs_that_cannot_be_compared_are_an_error():
    one, other = (_scores(run={"protocol.fill": fill}) for fill in ("zero", "blur"))
    with pytest.raises(ProtocolError, match=r"protocol\.fill is 'zero' in this run and 'blur' in the other"):
        _page(one, other=other)
    assert "Comparison" in _text(_page(one, other=other, across_protocols=True))


def test_an_unknown_method_and_a_manifest_without_metrics_are_errors():
    with pytest.raises(MetricError, match=r"^no method 'gradcm' in this run; did you mean 'gradcam'"):
        _page(_scores(), methods=["gradcm"])
    with pytest.raises(OutputError, match=r"^the manifest lists no metrics"):
        _page(Scores(_rows(), {}))


def _cross(names: tuple[str, str] = ("plain", "fal")) -> CrossScores:
    """The maps of both models on both, and a control map; the second model loses half as much."""
    rows = _rows(layers=("p4",)).assign(group=lambda rows: rows["label"].astype(str))
    cells = [(one, on, "p4", "gradcam") for one in names for on in names] + [("center", on, "input", "center") for on in names]
    parts = [
        rows.assign(
            masks_of=one, model=on, layer=layer, method=method, average_drop=rows["average_drop"] / (1 + (on == names[1]))
        )
        for one, on, layer, method in cells
    ]
    groups = {"by": "class", "count": 3, "weights": "images"}
    manifest = {"metrics": [AD], "controls": ["center"], "cross": {"models": list(names)}, "groups": groups, "seed": 0}
    return CrossScores(pd.concat(parts, ignore_index=True), manifest)


def test_cross_scores_are_a_table_and_charts_of_both_parts():
    cross = _cross()
    cross.rows.loc[cross.rows["image_id"] == cross.rows["image_id"][0], "status"] = "models_disagree"
    text = _text(_page(_scores(), cross=cross))
    table, parts = cross.table()["mean"], cross.split().droplevel(["layer", "method", "metric", "first", "second"])
    assert "Whose maps on which model" in text
    assert "shown to every model (n = 60 in 3 groups, weighted by images)" in text
    assert "1 of 60 images does not count, because the models predict different classes on it" in text
    for maps in ("plain", "fal"):
        means = [f"{table['p4', 'gradcam', 'average_drop', maps, model]:.1f}" for model in ("plain", "fal")]
        assert re.search(rf"p4 gradcam AD % {maps} {means[0]} \S+ {means[1]} \S+ 59", text), (
            "of three groups there is no interval"
        )
    assert re.search(r"input center AD % center \(control\) [\d.]+ \S+ [\d.]+ \S+ 59", text)
    assert "AD %, plain minus fal differences; lower is better" in text
    for part, words in (("difference", "gradcam"), ("map", "gradcam: maps"), ("model", "gradcam: models")):
        assert f"p4, {words}: {parts.loc[part, 'value']:+.1f}".replace("+0.0", "0.0") in text
    assert "(3 tests, corrected by Holm)" in text
    assert "Whose maps" not in _text(_page(_scores()))


def test_names_of_models_are_text():
    page = _page(_scores(), cross=_cross((EVIL, "fal")))
    assert EVIL not in page


# ---- the protocol in words


def test_every_choice_of_the_protocol_changes_its_sentence():
    default = [sentence.text for sentence in protocol_sentences({})]
    choices = {name: options for name, options in protocols._CHOICES.items() if name != "space"}
    choices |= {"confidence": ("softmax", "sigmoid", "identity", "my:function"), "target": ("predicted", "label", 0, "my:rule")}
    for name, options in choices.items():
        texts = {tuple(sentence.text for sentence in protocol_sentences({name: option})) for option in options}
        assert len(texts) == len(options), name
        assert tuple(default) in texts
    for change in (
        {"space": "pixels"},
        {"absolute": True},
        {"inverse": True},
        {"minimum_confidence": 0.5},
        {"epsilon": 1e-7},
        {"map_epsilon": 1e-8},
        {"against": "similar"},
        {"against": [7, 8]},
    ):
        assert [sentence.text for sentence in protocol_sentences(change)] != default, change
    assert get_args(protocols.Masking) == ("soft", "top", "top_binary", "threshold", "otsu")
    fills = [protocol_sentences({"fill": fill})[5].text for fill in (*get_args(protocols.Fill), "own:function")]
    assert len(set(fills)) == len(fills)


def test_only_what_differs_from_the_default_is_marked():
    marked = [sentence.title for sentence in protocol_sentences(Protocol(masking="otsu", ties="increase").to_dict())]
    differing = [one.title for one in protocol_sentences(Protocol(masking="otsu", ties="increase").to_dict()) if one.differs]
    assert differing == ["Mask", "Increase"]
    assert len(marked) == 11
    assert not any(sentence.differs for sentence in protocol_sentences(json.loads(json.dumps(Protocol().to_dict()))))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_named_protocols_are_recognised(name):
    found = preset_of(json.loads(json.dumps(PROTOCOLS[name].to_dict())))
    assert found
    assert PROTOCOLS[found[0]].to_dict() | {"target": 0} == PROTOCOLS[name].to_dict() | {"target": 0}


def test_the_protocol_of_the_manifest_is_in_the_page():
    run = {f"protocol.{name}": value for name, value in PROTOCOLS["tame-15"].to_dict().items()}
    text = _text(_page(_scores(run=run)))
    assert "the protocol tame-15" in text
    assert "The mask is the map in the 15 % of the pixels with the largest map values, and 0 elsewhere. not the default" in text
    assert "What the mask hides is replaced by black pixels. not the default" in text
    assert "The manifest does not contain the protocol" in _text(_page(_scores()))


# ---- the origin of the numbers


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--model", "timm:resnet18", "--data", "folder:my photos", "--layers", "layer3,layer4", "--controls", "--no-progress"],
        ["--stop", "best", "--stop-args.k", "2", "--mean", "0.5,0.5,0.5", "--max-images", "8", "--no-fast", "--absolute"],
        ["--pretrained", "--model-args.pad_type", "same", "--protocol", "score-cam", "--keep-percent", "15", "--grid", "14,14"],
    ],
)
def test_the_command_of_a_run_is_the_command(words):
    def settings(tokens: list[str]) -> dict[str, Any]:
        _, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        return {
            name: value for part in bound.arguments.values() if part is not None for name, value in to_settings(part).items()
        }

    given = settings(["score", *words])
    command = command_of({"options": json.loads(json.dumps(given or {"model": "xaieval:fpn-scenes"}))})
    assert command.startswith("xaieval-bench score")
    assert settings(shlex.split(command)[1:]) == given


def test_versions_seed_fingerprints_and_command_are_in_the_page():
    manifest = {
        "options": {"model": "timm:resnet18", "seed": 7},
        "model": {"class": "timm.models.resnet.ResNet", "parameters": 11689512, "fingerprint": "0123456789abcdef"},
        "data": {"images": 60, "fingerprint": "fedcba9876543210"},
        "versions": {"xaieval": "0.1.0", "torch": "2.14.1"},
        "seed": 7,
    }
    text = _text(_page(_scores(**manifest)))
    for words in ("xaieval-bench score --model timm:resnet18 --seed 7", "11,689,512", "0123456789abcdef", "fedcba9876543210"):
        assert words in text
    assert "seed 7 versions xaieval 0.1.0, torch 2.14.1" in text
    assert "made from Python, so there is no command" in _text(_page(_scores()))


# ---- the rows


def test_the_page_holds_the_rows_as_they_are():
    rows = _rows()
    rows.loc[3, ["average_drop", "status"]] = [np.nan, "nan_map"]
    columns = {column["label"]: column for column in _data(_page(_scores(rows), classes=["cat", "dog", "</script>"]))}
    read = {
        name: [column["words"][place] for place in column["values"]] if column["words"] else column["values"]
        for name, column in columns.items()
    }
    for label, name in {"image": "image_id", "layer": "layer", "method": "method", "status": "status"}.items():
        assert read[label] == list(rows[name])
    assert read["label"] == [["cat", "dog", "</script>"][label] for label in rows["label"]]
    assert read["AD %"][3] is None
    for label, name, digits in (("AD %", "average_drop", 1), ("confidence", "confidence", 4), ("mask area", "mask_area", 3)):
        kept = [number for number in range(len(rows)) if number != 3]
        np.testing.assert_allclose(
            np.array(read[label], dtype=float)[kept], rows[name].to_numpy(dtype=float)[kept], atol=0.51 * 10**-digits
        )


def test_without_javascript_the_worst_rows_are_there_but_no_controls():
    rows = pd.concat([_rows(), _rows(layers=("input",), methods=("random",)).assign(average_drop=100.0)], ignore_index=True)
    listing = list_rows(rows, [AD, IC], ["random"])
    worst = rows[rows["method"] == "gradcam"].sort_values("average_drop", ascending=False, kind="stable")
    assert listing.worst == list(worst.index[:20])
    assert listing.by == "AD %"
    page = _page(_scores(rows, controls=["random"]))
    assert f"<td>{worst['image_id'].iloc[0].replace('/', '/<wbr>')}</td>" in page
    assert "The 20 worst rows by AD % (without controls), of 180 in total" in _text(page)


def test_rows_that_do_not_fit_are_left_out_by_whole_images_and_the_page_says_so():
    rows = _rows(300)
    listing = list_rows(rows, [AD, IC], most_bytes=15_000)
    assert 100 < listing.images < 290
    assert len(json.dumps(listing.data, separators=(",", ":"))) < 15_500
    images = listing.columns[0]
    assert len(images.values) == 2 * listing.images
    assert len(images.words) == listing.images
    first = [rows["image_id"].unique().tolist().index(word) for word in images.words]
    assert np.corrcoef(first, range(len(first)))[0, 1] > 0.99, "in the order of the run"
    assert min(first) < 30, "from all of it"
    assert max(first) > 270


@pytest.mark.slow
def test_a_page_of_ten_thousand_images_and_sixty_four_pairs_stays_below_ten_megabytes():
    rows = _rows(10_000, layers=("layer1", "layer2", "layer3", "layer4"))
    many = pd.concat([rows.assign(method=f"method {number}") for number in range(16)], ignore_index=True)
    scores = _scores(many)
    ids, layers = images_to_show(scores), tuple(rows["layer"].unique())
    noise = _maps(ids, layers)
    masked = {layer: torch.randint(256, (len(ids), 3, 200, 200), dtype=torch.uint8) for layer in layers}
    methods = list(many["method"].unique())
    maps = Maps(ids, noise.pixels, dict.fromkeys(methods, noise.maps["gradcam"]), masked=dict.fromkeys(methods, masked))
    page = _page(scores, maps=maps)
    assert 5_000_000 < len(page.encode()) < LIMIT
    text = _text(page)
    assert re.search(
        r"this file contains the rows of [\d,]+ of 10,000 images, those with maps and others drawn at random", text
    )
    assert f"of the {len(ids)} images with maps in this view" in text
    data = _json(page)
    shown = {image["id"] for image in data["explorer"]["images"]}
    assert shown
    assert shown <= set(data["rows"]["columns"][0]["words"]), "the pictures have their numbers"
    assert all(len(image["maps"]) == len(image["masked"]) == 64 for image in data["explorer"]["images"])


# ---- maps


def test_best_and_worst_images_are_those_of_the_rows_layer_by_layer():
    scores = _scores()
    choice = choose_images(scores, [("p4", "gradcam"), ("p5", "gradcam")])
    for layer in ("p4", "p5"):
        rows = scores.rows[scores.rows["layer"] == layer].set_index("image_id")
        worst = choice.worst[layer, "gradcam"]
        assert worst == list(rows["average_drop"].sort_values(ascending=False).index[:3])
        best = choice.best[layer, "gradcam"]
        kept = (rows["masked_confidence"] / rows["confidence"]).sort_values(ascending=False)
        assert best == list(kept.index[:3]), "of those that lose nothing, those that gain most"
    assert len(choice.others) == 3
    assert not set(choice.others) & {one for kinds in (choice.best, choice.worst) for ids in kinds.values() for one in ids}
    assert choose_images(scores, [("p4", "gradcam"), ("p5", "gradcam")], among=choice.ids).ids == choice.ids
    assert choose_images(_scores(seed=1), [("p4", "gradcam")]).others != choice.others


def test_maps_are_shown_for_the_images_that_the_report_asks_for():
    scores = _scores()
    maps = _maps(images_to_show(scores))
    page = _page(scores, maps=maps)
    assert page.count("<figure>") == 2 * 9
    assert set(re.findall(r'alt="Image ([^"]+)"', page)) == set(maps.ids)
    assert 'alt="Map of gradcam at p4 over image' in page
    assert "among the" not in _text(page)
    first = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert first
    assert Image.open(BytesIO(base64.b64decode(first[1]))).size == (128, 128)


def test_of_other_images_the_best_and_worst_of_them_are_shown():
    ids = [f"class {number % 3}/{number:05d}.png" for number in range(9, 14)]
    page = _page(_scores(), maps=_maps([*ids, "unknown"]))
    assert "among the 5 whose maps were given" in _text(page)
    assert set(re.findall(r'alt="Image ([^"]+)"', page)) == set(ids)


def test_an_overlay_is_the_map_in_colour_over_the_image_in_grey():
    maps = Maps(["a"], torch.full((1, 1, 4, 4), 0.5), {"m": {"p5": torch.zeros(1, 4, 4)}})
    np.testing.assert_allclose(maps.picture(0), 0.5)
    np.testing.assert_allclose(maps.map_over(0, "p5", "m"), 0.175, atol=0.02)
    maps = Maps(["a"], torch.zeros(1, 3, 4, 4), {"m": {"p5": torch.ones(1, 4, 4)}})
    assert (maps.map_over(0, "p5", "m") > 0.4).all()


def test_the_shape_of_maps_is_checked():
    with pytest.raises(
        DataError, match=r"^pixels of 2 ids are \[2, 3, H, W\] in \[0, 1\], or volumes \[2, C, D, H, W\]; got \[1, 3, 8, 8\]$"
    ):
        Maps(["a", "b"], torch.rand(1, 3, 8, 8), {})
    with pytest.raises(DataError, match=r"^maps of gradcam at p5 are \[1, 8, 8\]; got \[1, 4, 4\]$"):
        Maps(["a"], torch.rand(1, 3, 8, 8), {"gradcam": {"p5": torch.rand(1, 4, 4)}})
    with pytest.raises(DataError, match=r"got \[1, 8, 8\]$"):
        Maps(["a"], torch.rand(1, 8, 8), {})


def test_slices_of_volumes_take_the_whole_width():
    scores = _scores()
    ids = images_to_show(scores)
    maps = {"gradcam": {layer: torch.rand(len(ids), 4, 6, 8) for layer in scores.rows["layer"].unique()}}
    page = _page(scores, maps=Maps(ids, torch.rand(len(ids), 1, 4, 6, 8), maps))
    assert "the same slices or frames are shown for every layer" in _text(page)
    assert '<div class="kinds strips">' in page
    assert '<div class="kinds strips">' not in _page(scores, maps=_maps(ids))


def test_not_more_than_twelve_layers_have_maps():
    layers = tuple(f"layer{number}" for number in range(14))
    scores = _scores(_rows(8, layers=layers))
    page = _page(scores, maps=_maps(images_to_show(scores), layers, side=8))
    assert len(re.findall('<div class="kinds">', page)) == 12
    assert "2 more layers not shown." in _text(page)


# ---- charts


def test_places_in_a_chart_are_those_of_the_axis():
    rows = [Interval("p4", "m", 20.0, 10.0, 40.0, ""), Interval("p5", "m", float("nan"), float("nan"), float("nan"), "")]
    panel = draw_panel("AD %", "", rows, True)
    places = {words: x for x, words in panel.ticks}
    assert list(places) == ["0", "10", "20", "30", "40"]
    assert (panel.marks[0].low, panel.marks[0].x, panel.marks[0].high) == (places["10"], places["20"], places["40"])
    assert (panel.marks[1].low, panel.marks[1].x, panel.marks[1].high) == (None, None, None)
    assert panel.zero is None
    signed = draw_panel("d", "", [Interval("p4", "m", 0.0, -5.0, 5.0, "")], False)
    assert signed.zero == 170.0
    assert draw_panel("d", "", [Interval("p4", "m", 3.0, 3.0, 3.0, "")], False).ticks[0][1] != ""
    assert draw_panel("d", "", rows * 30, True).left_out == 20


# ---- nothing from elsewhere, nothing executed


def _hostile() -> Scores:
    """Every name that a user can choose is an injection attempt."""
    rows = _rows(60, layers=("<script>alert(1)</script>", f"'\"{EVIL}"), methods=(f"m{EVIL}",))
    rows["image_id"] = [f"{one}{EVIL}" for one in rows["image_id"]]
    rows.loc[rows.index[:2], "status"] = f"status{EVIL}"
    return _scores(
        rows,
        options={"model": EVIL, "data": f"folder:{EVIL}"},
        unreadable=[{"id": EVIL, "reason": EVIL}],
        versions={EVIL: EVIL},
        stop={"reason": EVIL},
        run={"protocol.confidence": EVIL, "protocol.target": EVIL, EVIL: EVIL},
        metrics=[AD | {"label": f"AD{EVIL} %"}, IC],
    )


def test_names_are_written_as_text_wherever_they_stand():
    scores = _hostile()
    layers = tuple(scores.rows["layer"].unique())
    maps = Maps(
        images_to_show(scores),
        torch.rand(len(images_to_show(scores)), 3, 8, 8),
        {f"m{EVIL}": {layer: torch.rand(len(images_to_show(scores)), 8, 8) for layer in layers}},
    )
    other = Scores(scores.rows, scores.manifest | {"run": scores.manifest["run"] | {EVIL: "other"}})
    page = _page(scores, maps=maps, classes=[EVIL] * 3, other=other, names=(EVIL, f"other{EVIL}"))
    assert "onerror=alert(1)&gt;" in page
    assert not re.search(r"<img src=x|<script>alert", page)
    tags = re.findall(r"<(/?[a-zA-Z]+)", page)
    assert tags.count("script") == 2
    assert tags.count("/script") == 2
    assert set(re.findall(r"<img ([a-z]+)=", page)) == {"src"}


def test_nothing_is_loaded_from_anywhere():
    scores = _scores()
    page = _page(scores, maps=_maps(images_to_show(scores), side=8))
    for address in re.findall(r'(?:src|href|action|data|poster|srcset)="([^"]*)"', page):
        assert address.startswith(("data:image/jpeg;base64,", "#")), address
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|<link|<iframe|<object|<embed", re.sub(r"base64,[^\"]+", "", page))


def test_the_policy_lets_pass_only_the_styles_and_the_script_of_the_page():
    page = _page(_scores())
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    for kind, text in (("style", re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0]), ("script", _script(page))):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert not re.search(r"\s(style|on[a-z]+)=", re.sub(r"<script.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL))


def _script(page: str) -> str:
    return re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]


# ---- the command, and what it does with a manifest


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command line in an empty working directory, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: str) -> Result:
        status = 0
        try:
            main(list(arguments))
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight scenes at two levels."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    words = ["--layers", "fpn[p4],fpn[p5]", "--max-images", "8", "--batch-size", "3", "--methods", "gradcam,random"]
    main(["score", *words, "--no-progress", "--out", str(folder)])
    return folder


@pytest.mark.slow
def test_the_command_makes_the_maps_again(bench, scored):
    result = bench("report", str(scored), "--out", "page.html")
    assert (result.status, result.err) == (0, "")
    assert re.fullmatch(r"written to page\.html \(0\.\d MB\)\n", result.out)
    page = Path("page.html").read_text()
    shown = images_to_show(Scores.load(scored))
    assert set(re.findall(r'alt="Image ([^"]+)"', page)) == set(shown)
    assert '"words":["disc"' in page.replace(", ", ",").replace(": ", ":"), "labels by their names"


@pytest.mark.slow
def test_maps_made_again_are_those_that_were_scored(scored):
    scores = Scores.load(scored)
    maps = remake_maps(scores, ("gradcam", "random"), None, False).maps
    assert sorted(maps.ids) == sorted(images_to_show(scores, ["gradcam", "random"]))
    for layer, method in (("fpn[p4]", "gradcam"), ("fpn[p5]", "gradcam"), ("input", "random")):
        rows = scores.rows[(scores.rows["layer"] == layer) & (scores.rows["method"] == method)].set_index("image_id")
        areas = maps.maps[method][layer].mean(dim=(1, 2)).tolist()
        assert areas == pytest.approx(rows.loc[maps.ids, "mask_area"].tolist(), abs=1e-4)
        # Mean and standard deviation are 0.5: what is masked becomes grey.
        masked = 0.5 + (maps.pixels - 0.5) * maps.maps[method][layer].unsqueeze(1)
        torch.testing.assert_close(maps.masked[method][layer] / 255, masked, atol=0.6 / 255, rtol=0)


@pytest.mark.slow
def test_kept_maps_need_neither_model_nor_data(bench, scored):
    words = ("--layers", "fpn[p5]", "--max-images", "4", "--no-progress", "--keep-maps", "3", "--out", "run")
    assert "manifest.json, maps.safetensors, maps.png" in bench("score", *words).out
    changed = json.loads(Path("run/manifest.json").read_text())
    changed["options"] |= {"model": "timm:nothing", "data": "folder:gone"}
    Path("run/manifest.json").write_text(json.dumps(changed))
    result = bench("report", "run")
    assert (result.status, result.err) == (0, "")
    assert "no maps" not in result.out
    page = Path("run/report.html").read_text()
    assert set(re.findall(r'alt="Image ([^"]+)"', page)) == set(Maps.load("run").ids)
    assert '"words":["disc"' in page.replace(", ", ",").replace(": ", ":"), "labels by their names"
    bench("report", "run", "--no-maps")
    assert "No maps are shown: --no-maps was given." in _text(Path("run/report.html").read_text())


def test_the_page_lies_in_the_folder_of_the_run_and_can_do_without_maps(bench, scored):
    result = bench("report", str(scored), "--no-maps")
    assert result.status == 0
    assert "no maps" not in result.out
    page = (scored / "report.html").read_text()
    assert "No maps are shown: --no-maps was given." in _text(page)
    (scored / "report.html").unlink()


def test_two_folders_are_compared(bench, scored):
    assert bench("report", str(scored), str(scored), "--no-maps", "--out", "both.html").status == 0
    assert "None of the 6 comparisons is significant." in _text(Path("both.html").read_text())


def test_two_folders_have_the_table_of_whose_maps_on_which_model(bench, scored):
    cross = _cross()
    fingerprint = Scores.load(scored).manifest["model"]["fingerprint"]
    cross.manifest["models"] = {"plain": {"fingerprint": fingerprint}, "fal": {"fingerprint": "other"}}
    cross.save("cross")
    words = ("--no-maps", "--attention", "--out", "both.html")
    assert bench("report", str(scored), str(scored), "--cross", "cross", *words).status == 0
    text = _text(Path("both.html").read_text())
    assert "Whose maps on which model" in text
    assert "Layers that need attention" in text
    cross.manifest["models"] = {"plain": {"fingerprint": "another"}, "fal": {"fingerprint": "other"}}
    cross.save("cross")
    result = bench("report", str(scored), "--cross", "cross", "--no-maps")
    assert result.status == 2
    assert "'cross' has the cross scores of other models (plain, fal), not those of xaieval.models" in result.err
    assert "missing" in bench("report", str(scored), "--cross", str(scored), "--no-maps").err


def test_two_runs_are_named_by_as_many_folders_as_it_takes(tmp_path):
    names = [tmp_path / name for name in ("a/run", "b/run", "c")]
    assert _names(names[0], names[1]) == ("a/run", "b/run")
    assert _names(names[0], names[2]) == ("run", "c")
    assert _names(names[0], None) == _names(names[0], names[0]) == ("run", "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing"], "'missing' holds no run: there is no"),
        (["{run}", "missing", "--no-maps"], "'missing' holds no run: there is no"),
        (["{run}", "--methods", "gradcm"], "no method 'gradcm' in this run; did you mean 'gradcam'"),
        (["{run}", "--level", "2", "--no-maps"], "level"),
        (["{run}", "--no-maps", "--out", "no/folder/page.html"], "cannot write 'no/folder/page.html': No such file"),
    ],
)
def test_wrong_use_is_one_clear_line(bench, scored, words, message):
    result = bench("report", *(word.format(run=scored) for word in words))
    assert result.status == 2
    assert message in result.err
    assert result.err.count("\n") == 1


def _altered(scored: Path, **options: Any) -> Path:
    """The run with other options in its manifest."""
    scores = Scores.load(scored)
    changed = scores.manifest | {"options": scores.manifest["options"] | options}
    Scores(scores.rows, changed).save("altered")
    return Path("altered")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": "timm:nothing"}, "timm has no model 'nothing'"),
        ({"weights": "gone.safetensors"}, "no weights file 'gone.safetensors'"),
        ({"model": "timm:test_resnet.r160_in1k"}, "is not the one that was scored: its fingerprint differs"),
        ({"data": "folder:gone"}, "no folder 'gone'"),
    ],
)
def test_a_model_or_data_that_is_gone_leaves_a_page_that_says_so(bench, scored, options, reason):
    result = bench("report", str(_altered(scored, **options)))
    assert result.status == 0
    assert result.out.startswith("no maps: ")
    assert reason in result.out
    assert reason.replace("'", "&#39;") in Path("altered/report.html").read_text()


def test_other_images_than_those_of_the_run_make_no_maps(bench, scored):
    Path("photos/cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save("photos/cat/0.png")
    assert (
        "none of the images is in 'folder:photos' any more" in bench("report", str(_altered(scored, data="folder:photos"))).out
    )


def test_a_run_from_python_has_only_the_maps_that_are_given(bench):
    _scores().save("python")
    assert (
        "made from Python, where score(keep_maps=24, output_dir=...) keeps them in the folder" in bench("report", "python").out
    )


@pytest.mark.parametrize(
    ("option", "name"),  # each test has a folder of its own, and a module is imported once
    [("model", "evil_model"), ("data", "evil_data"), ("data", "scenes")],  # the last is also the name of a source
)
def test_code_that_a_manifest_names_is_not_imported_unasked(bench, scored, monkeypatch, option, name):
    monkeypatch.setitem(sys.modules, name, None)  # so that the import below is undone after the test
    del sys.modules[name]
    Path(f"{name}.py").write_text("open('executed', 'w').close()\ndef make():\n    raise OSError('made')\n")
    folder = str(_altered(scored, **{option: f"{name}:make"}))
    assert f"they need code from '{name}:make', which is imported only with --import-code" in bench("report", folder).out
    assert not Path("executed").exists()
    assert "no maps: made" in bench("report", folder, "--import-code").out
    assert Path("executed").exists()


FACTORIES = """
import torch
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool3d(1),
                               torch.nn.Flatten(), torch.nn.Linear(4, 3))
def flat():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                               torch.nn.Flatten(), torch.nn.Linear(4, 3))
def volumes():
    torch.manual_seed(1)
    return [torch.rand(4, 1, 6, 8, 8)]
def images():
    torch.manual_seed(1)
    while True:
        yield torch.rand(4, 3, 8, 8)
class Endless:
    def __iter__(self):
        return images()
endless = Endless
"""


@pytest.mark.parametrize(("model", "data", "strips"), [("model", "volumes", True), ("flat", "endless", False)])
def test_factories_of_a_user_make_maps(bench, model, data, strips):
    name = f"factories_of_{data}"  # each test has its own folder, but a module is imported only once
    Path(f"{name}.py").write_text(FACTORIES)
    words = ["--model", f"{name}:{model}", "--data", f"{name}:{data}", "--layers", "1", "--max-images", "10"]
    assert bench("score", *words, "--no-progress", "--out", "run").status == 0
    result = bench("report", "run", "--import-code")
    assert (result.status, result.err) == (0, "")
    assert "no maps" not in result.out
    page = Path("run/report.html").read_text()
    assert "<figure>" in page
    assert ('class="kinds strips"' in page) == strips


def test_python_writes_the_same_page(tmp_path):
    scores = _scores()
    maps = _maps(images_to_show(scores), side=8)
    scores.to_html(tmp_path / "page.html", maps, classes=["a", "b", "c"], level=0.9)
    assert (tmp_path / "page.html").read_text() == _page(scores, maps=maps, classes=["a", "b", "c"], level=0.9)
    assert "90%" in (tmp_path / "page.html").read_text()
    assert xaieval.Scores.to_html.__doc__
