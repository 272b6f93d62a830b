"""Maps of each model on each model: against a slow loop and against `score`, targets, pairs of layers, controls, errors."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from tests.borrowing import state_of
from xaieval import CrossScores
from xaieval.errors import (
    AddressError,
    ExplainerError,
    MetricError,
    ModelError,
    OutputError,
    ProtocolError,
    TargetError,
    UsageError,
)
from xaieval.explainers import Context

AD, IC = "average_drop", "increase_in_confidence"


class Small(nn.Module):
    """Two convolutions and a linear layer, in float64, with weights that a seed decides."""

    def __init__(self, seed: int = 0, classes: int = 3, names: tuple[str, str] = ("one", "two")):
        super().__init__()
        torch.manual_seed(seed)
        self.names = names
        for name, (given, made) in zip(names, ((3, 6), (6, 8)), strict=True):
            self.add_module(name, nn.Conv2d(given, made, 3, padding=1))
        self.head = nn.Linear(8, classes)
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        for name in self.names:
            images = getattr(self, name)(functional.max_pool2d(images, 2)).relu()
        return 8 * self.head(images.mean(dim=(2, 3)))


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def cross(*models: nn.Module, loader: Any = None, layers: Any = ("one", "two"), **options: Any) -> CrossScores:
    """The cross scores of models a, b, ..., whose targets are class 1."""
    named = dict(zip("abc", models, strict=False))
    given = [images()] if loader is None else loader
    return xaieval.cross_score(named, given, layers, progress=False, **{"target": 1} | options)


def cell(scores: CrossScores, masks_of: str, model: str, layer: str = "two", column: str = AD) -> np.ndarray:
    rows = scores.rows
    chosen = (rows["masks_of"] == masks_of) & (rows["model"] == model) & (rows["layer"] == layer)
    return rows.loc[chosen, column].to_numpy()


# ---- a slow loop, written without the package: own hooks, own Grad-CAM, own mask


def slow_map(model: nn.Module, image: Tensor, layer: str, target: int) -> Tensor:
    kept: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda module, given, output: kept.append(output))
    score = model(image[None])[0, target]
    hook.remove()
    [gradient] = torch.autograd.grad(score, kept[0])
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1, keepdim=True).relu()
    large = functional.interpolate(cam, image.shape[1:], mode="bilinear", align_corners=False)[0, 0].detach()
    return (large - large.min()) / (large.max() - large.min())


def slow_drop(model: nn.Module, image: Tensor, mask: Tensor, target: int) -> float:
    with torch.no_grad():
        y, o = (model(one[None]).softmax(dim=1)[0, target].item() for one in (image, image * mask))
    return 100 * max(0.0, y - o) / y


@pytest.mark.parametrize("layer", ["one", "two"])
def test_every_cell_is_that_of_a_slow_loop(layer):
    models = {"a": Small(0), "b": Small(1), "c": Small(2)}
    scores = cross(*models.values(), target=2)
    for masks_of, model in itertools.product(models, models):
        masks = [slow_map(models[masks_of], image, layer, 2) for image in images()]
        expected = [slow_drop(models[model], image, mask, 2) for image, mask in zip(images(), masks, strict=True)]
        np.testing.assert_allclose(cell(scores, masks_of, model, layer), expected, rtol=1e-6)
        areas = [mask.mean().item() for mask in masks]
        np.testing.assert_allclose(cell(scores, masks_of, model, layer, "mask_area"), areas, rtol=1e-5)


def test_own_cells_are_the_scores_of_each_model():
    models = {"a": Small(0), "b": Small(1)}
    metrics = [AD, IC, "drop_in_deletion", "insertion", "complexity"]
    scores = cross(*models.values(), methods=["gradcam", "layercam"], metrics=metrics)
    for name, model in models.items():
        own = xaieval.score(
            model, [images()], ["one", "two"], ["gradcam", "layercam"], metrics=metrics, target=1, progress=False
        ).rows
        rows = scores.rows[(scores.rows["masks_of"] == name) & (scores.rows["model"] == name)]
        pd.testing.assert_frame_equal(rows[own.columns].reset_index(drop=True), own)


def test_a_curve_is_that_of_the_other_model():
    scores = cross(Small(0), Small(1), layers="two", metrics="insertion")
    maps = xaieval.explain(Small(0), images(), "two", target=1)["two"]

    def given(context: Context) -> Tensor:
        return maps

    given.name, given.needs_layer, given.needs_gradient = "given", False, False
    other = xaieval.score(Small(1), [images()], methods=given, metrics="insertion", target=1, progress=False)
    np.testing.assert_allclose(cell(scores, "a", "b", column="insertion"), other.rows["insertion"], rtol=1e-6)


def test_a_row_for_each_image_map_and_model():
    scores = cross(Small(0), Small(1), methods=["gradcam", "layercam"], controls=["center"])
    rows = scores.rows
    assert list(rows.columns[:5]) == ["image_id", "layer", "method", "masks_of", "model"]
    assert len(rows) == 6 * (2 * 2 * 2 + 1) * 2
    assert not rows.duplicated(["image_id", "layer", "method", "masks_of", "model"]).any()
    assert list(rows["image_id"]) == sorted(rows["image_id"]), "image by image"
    assert rows.head(2)["model"].tolist() == ["a", "b"]
    confidences = rows.groupby(["image_id", "model"])["confidence"]
    assert (confidences.min() == confidences.max()).all()


def test_equal_models_have_equal_cells_and_no_parts():
    model = Small(0)
    for other in (model, copy.deepcopy(model)):
        scores = cross(model, other)
        cells = scores.table()["mean"].groupby(["layer", "method", "metric"])
        assert (cells.min() == cells.max()).all()
        found = scores.split()
        assert (found["value"] == 0).all()
        assert (found["p_value"] == 1).all()


def test_batches_do_not_matter():
    one, three = (cross(Small(0), Small(1), loader=images().split(size)) for size in (6, 2))
    numbers = ["confidence", "masked_confidence", "mask_area", AD, IC]
    np.testing.assert_allclose(one.rows[numbers], three.rows[numbers], rtol=1e-9)
    assert one.rows["image_id"].tolist() == three.rows["image_id"].tolist()
    alone = cross(Small(0), Small(1), batch_size=1).rows
    np.testing.assert_allclose(one.rows[numbers], alone[numbers], rtol=1e-9)


# ---- targets


def test_images_on_which_the_models_predict_different_classes_do_not_count():
    models = Small(0), Small(3)
    with torch.no_grad():
        predicted = [model(images()).argmax(dim=1) for model in models]
    apart = (predicted[0] != predicted[1]).numpy()
    assert 0 < apart.sum() < 6, "otherwise the test shows nothing"
    scores = cross(*models, target="predicted")
    by_image = scores.rows.groupby("image_id")["status"].unique()
    assert [list(status) for status in by_image] == [["models_disagree"] if one else ["ok"] for one in apart]
    different = scores.rows["status"] == "models_disagree"
    assert scores.rows.loc[different, [AD, IC, "target"]].isna().all(axis=None)
    assert scores.rows.loc[~different, "target"].tolist() == scores.rows.loc[~different, "predicted"].tolist()
    assert scores.notes[0].startswith(f"{apart.sum()} of 6 images ")
    assert scores.notes[0] in repr(scores)
    assert set(scores.table()["n_images"]) == {6 - apart.sum()}


def test_labels_are_the_same_class_for_all_models():
    loader = [(images(), torch.tensor([0, 1, 2, 0, 1, -1]))]
    scores = cross(Small(0), Small(3), loader=loader, target="label")
    rows = scores.rows[scores.rows["image_id"] != "5"]
    assert rows["target"].tolist() == rows["label"].tolist()
    assert set(scores.rows.loc[scores.rows["image_id"] == "5", "status"]) == {"no_target"}
    with pytest.raises(TargetError, match="target 'label' needs labels, but no image has one"):
        cross(Small(0), Small(1), loader=[(images(), torch.full((6,), -1))], target="label")


# ---- layers, methods, controls


def test_layers_of_other_names_are_paired_by_their_order():
    one, other = Small(0), Small(1, names=("first", "second"))
    scores = cross(one, other, layers={"a": ["one", "two"], "b": ["first", "second"]})
    assert list(dict.fromkeys(scores.rows["layer"])) == ["one / first", "two / second"]
    assert scores.manifest["cross"] == {"models": ["a", "b"], "layers": {"a": ["one", "two"], "b": ["first", "second"]}}
    same = cross(one, Small(1))
    np.testing.assert_allclose(scores.rows[AD], same.rows[AD])
    turned = cross(one, other, layers={"b": ["second", "first"], "a": ["two", "one"]})
    np.testing.assert_allclose(cell(turned, "b", "a", "two / second"), cell(same, "b", "a", "two"))


def test_control_maps_belong_to_no_model():
    scores = cross(Small(0), Small(1), layers="two", methods=["gradcam", "center"], controls=["random", "center"])
    controls = scores.rows[scores.rows["layer"] == "input"]
    assert list(dict.fromkeys(zip(controls["method"], controls["masks_of"], strict=True))) == [
        ("random", "random"),
        ("center", "center"),
    ]
    assert scores.controls == ["random", "center"]
    for name, model in (("a", Small(0)), ("b", Small(1))):
        own = xaieval.score(model, [images()], methods=["center", "random"], target=1, progress=False).rows
        expected = own[own["method"] == "center"][AD]
        np.testing.assert_allclose(cell(scores, "center", name, "input"), expected)
    assert "\ncenter " in repr(scores)


def test_methods_without_layers_explain_each_model():
    def brightness(model: nn.Module, given: Tensor, targets: Tensor) -> Tensor:
        return given[:, int(model.head.weight.argmax()) % 3]

    scores = cross(Small(0), Small(1), layers=(), methods=brightness)
    assert set(scores.rows["layer"]) == {"input"}
    on_b = [cell(scores, name, "b", "input", "masked_confidence") for name in "ab"]
    assert not np.allclose(*on_b)


# ---- data


def test_groups_are_a_column_and_count():
    scores = cross(Small(0), Small(1), groups={str(image): f"place {image // 2}" for image in range(6)})
    assert list(scores.rows.columns[:6]) == ["image_id", "layer", "method", "group", "masks_of", "model"]
    assert scores.manifest["groups"]["count"] == 3
    assert scores.table()["low"].isna().all(), "of three groups"
    by_image = scores.with_groups({str(image): str(image) for image in range(6)})
    assert by_image.manifest["groups"]["count"] == 6
    assert isinstance(by_image, CrossScores)
    assert by_image.table(AD)["low"].notna().any()


def test_images_that_cannot_be_read_have_rows():
    batch = {"image": images(), "id": list("uvwxyz"), "failed": [("broken", 2, "it is a text file")]}
    scores = cross(Small(0), Small(1), loader=[batch], controls="center")
    lost = scores.rows[scores.rows["image_id"] == "broken"]
    assert len(lost) == 5 * 2
    assert set(lost["status"]) == {"unreadable"}
    assert scores.notes == ["1 of 7 images do not count for some map on some model (rows by status: unreadable 10)"]
    assert scores.manifest["unreadable"] == [{"id": "broken", "reason": "it is a text file"}]


def test_a_map_that_is_nan_takes_its_image_out_of_all_cells():
    def odd(model: nn.Module, given: Tensor, targets: Tensor) -> Tensor:
        maps = given[:, 0].clone()
        if model.names == ("first", "second"):
            maps[2] = torch.nan
        return maps

    scores = cross(Small(0), Small(1, names=("first", "second")), layers=(), methods=odd)
    wrong = scores.rows[scores.rows["status"] == "nan_map"]
    assert set(zip(wrong["image_id"], wrong["masks_of"], wrong["model"], strict=True)) == {("2", "b", "a"), ("2", "b", "b")}
    assert set(scores.table()["n_images"]) == {5}


def test_max_images_stops_the_run():
    assert cross(Small(0), Small(1), max_images=4).rows["image_id"].nunique() == 4


# ---- the models


def test_the_models_are_given_back_unchanged_also_after_an_error():
    models = Small(0).train(), Small(1).requires_grad_(False)
    models[0].head.weight.grad = torch.ones_like(models[0].head.weight)
    before = [state_of(model) for model in models]
    cross(*models, metrics=[AD, "insertion"])
    assert [state_of(model) for model in models] == before

    def fails(model: nn.Module, given: Tensor, targets: Tensor) -> Tensor:
        raise KeyError("no map")

    with pytest.raises(KeyError, match="no map"):
        cross(*models, methods=fails)
    assert [state_of(model) for model in models] == before


def test_models_that_share_a_part_are_folded_and_restored():
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    body[1].running_mean.normal_()
    heads = [nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval() for _ in range(2)]
    before = [state_of(model, versions=False) for model in heads]
    scores = cross(*heads, loader=[images().float()], layers="0")
    slow = cross(*heads, loader=[images().float()], layers="0", fast=False)
    np.testing.assert_allclose(scores.rows[AD], slow.rows[AD], atol=1e-3)
    assert [state_of(model, versions=False) for model in heads] == before


def test_each_image_gets_the_same_bits_in_any_batch():
    one, two = (cross(Small(0), Small(1), loader=images().split(size), deterministic=True) for size in (6, 4))
    pd.testing.assert_frame_equal(one.rows, two.rows, check_exact=True)


def test_findings_say_whose_they_are():
    untrained = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    models = {"plain": Small(0).float(), "untrained": untrained.eval()}
    layers = {"plain": ["two"], "untrained": ["0"]}
    scores = xaieval.cross_score(models, [images().float()], layers, target=1, progress=False)
    [random_weights] = [finding for finding in scores.findings if finding.name == "random_weights"]
    assert random_weights.text.startswith("untrained: the model has random weights")
    twice = xaieval.cross_score({"one": untrained, "two": untrained}, [images().float()], "0", target=1, progress=False)
    assert any(finding.text.startswith("the model has random weights") for finding in twice.findings), "said once for both"


# ---- the result


def test_a_result_is_saved_and_loaded(tmp_path):
    scores = cross(Small(0), Small(1), controls="center", groups={str(image): str(image) for image in range(6)})
    scores.save(tmp_path / "cross")
    again = CrossScores.load(tmp_path / "cross")
    assert repr(again) == repr(scores)
    assert again.models == ["a", "b"]
    pd.testing.assert_frame_equal(again.rows, scores.rows, check_dtype=False)
    table = pd.read_csv(tmp_path / "cross/summary.csv", index_col=[0, 1, 2, 3, 4])
    pd.testing.assert_frame_equal(table, scores.table(), check_exact=False)
    with pytest.raises(OutputError, match=r"holds cross scores of several models; read them with xaieval.CrossScores.load$"):
        xaieval.Scores.load(tmp_path / "cross")


def test_other_runs_are_no_cross_scores(tmp_path):
    xaieval.score(Small(0), [images()], "two", target=1, progress=False).save(tmp_path / "run")
    with pytest.raises(OutputError, match=r"holds no rows of a run: the column 'masks_of' is missing"):
        CrossScores.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross": {}}, "holds no cross scores: its manifest does not list the models"),
        ({"cross": {"models": ["a"]}}, "holds no cross scores: the column 'model' has 'b', and its manifest lists a"),
        ({"controls": []}, "holds no cross scores: the column 'masks_of' has 'center', and its manifest lists a, b"),
    ],
)
def test_a_manifest_that_does_not_fit_the_rows_is_refused(tmp_path, change, message):
    scores = cross(Small(0), Small(1), controls="center")
    CrossScores(scores.rows, scores.manifest | change).save(tmp_path, summary=scores.table())
    with pytest.raises(OutputError, match=message):
        CrossScores.load(tmp_path)


def test_the_text_of_a_result_has_cells_and_parts():
    scores = cross(Small(0), Small(1), layers="two", metrics=AD)
    lines = repr(scores).splitlines()
    table, parts = scores.table()["mean"], scores.split()["value"]
    assert lines[0].startswith("cross scores of 6 images: maps of (rows) on models (columns); differences between models")
    assert lines[1] == "AD %, gradcam at two"
    assert lines[2].split() == ["a", "b"]
    assert lines[3].split()[:2] == ["a", f"{table[('two', 'gradcam', AD, 'a', 'a')]:.1f}"]
    values = [f"{parts[('two', 'gradcam', AD, 'a', 'b', part)]:+.1f}" for part in ("difference", "map", "model")]
    assert lines[5].startswith(f"  a - b: {values[0]} [")
    assert f"] = maps {values[1]} [" in lines[5]
    assert f"] + models {values[2]} [" in lines[5]


def test_a_long_result_says_how_much_more_there_is():
    metrics = [AD, IC, "average_gain", "confidence_ratio", "complexity", "sparseness", "entropy"]
    text = repr(cross(Small(0), Small(1), metrics=metrics))
    assert text.endswith("and 2 more, see table() and split()")


def test_a_picture_has_a_point_for_each_map_on_each_model():
    scores = cross(Small(0), Small(1), controls="center")
    axes = scores.plot().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one, on a", "one, on b", "two, on a", "two, on b"]
    table = scores.table(AD)["mean"].droplevel(["method", "metric"])
    for name, bar in zip(["a", "b"], axes.containers, strict=False):
        expected = [table[(layer, name, model)] for layer in ("one", "two") for model in ("a", "b")]
        assert bar[0].get_xdata().tolist() == expected
    center = axes.containers[2][0].get_xdata().tolist()
    assert center == [table[("input", "center", model)] for _ in range(2) for model in ("a", "b")], "at every layer"
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["maps of a", "maps of b", "center"]
    with pytest.raises(MetricError, match="the run has no metric 'gd' to draw"):
        scores.plot("gd")
    with pytest.raises(MetricError, match=r"the cross scores have no method 'layercam'; known: gradcam"):
        scores.plot(method="layercam")
    with pytest.raises(MetricError, match=r"the figure shows one method; choose one by method=; known: gradcam, layercam"):
        cross(Small(0), Small(1), methods=["gradcam", "layercam"]).plot()


# ---- errors


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"models": Small()}, UsageError, r"cross_score takes two or more models by name, such as .*; got Small"),
        ({"models": {"a": Small()}}, UsageError, r"cross_score takes two or more models by name, such as .*; got 1 model"),
        ({"models": {"a": Small(), 1: Small()}}, UsageError, r"the name of a model is text that can be printed, got 1"),
        (
            {"models": {"a": Small(), "b\n": Small()}},
            UsageError,
            r"the name of a model is text that can be printed, got 'b\\n'",
        ),
        (
            {"models": {"a": Small(), "center": Small()}, "controls": ["center"]},
            UsageError,
            r"'center' is the name of a control map and of a model; give the model another name",
        ),
        (
            {"models": {"a": Small(), "b": Small(classes=4)}},
            ModelError,
            r"cross_score needs models of the same classes: a has 3, b has 4 classes",
        ),
        (
            {"layers": {"a": ["one"]}},
            AddressError,
            r"layers= has no layers of the model 'b'; give those of every model, or one list for all",
        ),
        (
            {"layers": {"a": ["one"], "b": ["one"], "bb": []}},
            AddressError,
            r"layers= has layers of 'bb', which is none of the models; did you mean 'b'\? known: a, b",
        ),
        (
            {"layers": {"a": ["one", "two"], "b": ["one"]}},
            AddressError,
            r"layers are paired by their order, so each model needs as many as the others; got one, two of a; one of b",
        ),
        (
            {"metrics": ["average_drop", "stability_flip"]},
            MetricError,
            r"metric 'stability_flip' runs the method on altered images \(explain\), and no method of one model explains "
            r"another; take metrics of confidences and curves, such as average_drop or insertion",
        ),
        ({"metrics": "adcc"}, MetricError, r"metric 'adcc' runs the method on altered images \(masked_maps\), .*"),
        (
            {"methods": ["center", "random"]},
            ExplainerError,
            r"cross_score compares the maps of models, and these methods do not use a model: center, random; give one that "
            r"does, such as gradcam",
        ),
        (
            {"controls": "matched"},
            ExplainerError,
            r"cross_score has no matched controls \(shifted, swapped, dimmed, blurred\): a map is compared with those of the "
            r"other models; name control maps: random, uniform, center, edges, fake-cam",
        ),
        (
            {"task": "segmentation"},
            UsageError,
            r"cross_score compares classifiers, got .*: there is no box or region of one model that is that of another",
        ),
        ({"target": (0, 1)}, TargetError, r"target= has 2 classes, one per image, which cannot be matched .*"),
        ({"max_images": 0}, UsageError, r"max_images is at least 1, got 0"),
        ({"contrls": True}, UsageError, r"cross_score\(\) takes no 'contrls'; did you mean 'controls'\?.*"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, kind, message):
    arguments = {"models": {"a": Small(), "b": Small(1)}, "layers": "two", "target": 1} | change
    with pytest.raises(kind, match=f"^{message}$"):
        xaieval.cross_score(arguments.pop("models"), [images()], progress=False, **arguments)


def test_models_of_another_kind_of_output_are_refused():
    with pytest.raises(
        ProtocolError, match=r"^the models are measured differently: confidence is 'softmax' in a and 'sigmoid' in b"
    ):
        cross(Small(), Small(1, classes=1))
