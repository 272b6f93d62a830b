"""What metrics are given: each need against a slow way to the same thing, and a metric of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.config.protocol import Protocol
from xaieval.data.truth import inside_boxes
from xaieval.errors import MetricError
from xaieval.evaluation.scores import Scores
from xaieval.metrics import NEEDS, MeanOverImages, Metric

LAYERS = ["0", "2"]
METHODS = ("gradcam", "random")


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()


def batch(count: int = 5, start: int = 0) -> dict[str, Any]:
    images = torch.stack(
        [torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(index)) for index in range(start, start + count)]
    )
    masks = torch.zeros(count, 12, 12, dtype=torch.bool)
    masks[:, 2:6, 3:8] = True
    return {"images": images, "ids": [f"image {index}" for index in range(start, start + count)], "masks": masks}


def score(metrics: Any, loader: Any = None, **choices: Any) -> Scores:
    settings: dict[str, Any] = {"layers": LAYERS, "methods": METHODS, "progress": False} | choices
    return xaieval.score(tiny(), [batch()] if loader is None else loader, metrics=metrics, **settings)


def column(scores: Scores, name: str, method: str = "gradcam", layer: str = "2") -> Tensor:
    rows = scores.rows
    return torch.tensor(rows.loc[(rows["method"] == method) & (rows["layer"] == layer), name].to_numpy(dtype=float))


def mean(values: Tensor) -> Tensor:
    return values.flatten(1).double().mean(dim=1)


def test_every_need_is_documented_and_can_be_asked_for():
    seen: dict[str, Any] = {}

    def keep(*given: Any) -> Tensor:
        seen.update(zip(NEEDS, given, strict=True))
        return torch.zeros(5)

    score(Metric("all", keep, None, needs=tuple(NEEDS)), methods=("gradcam",), layers=["2"])
    assert seen.keys() == NEEDS.keys()
    shapes = {name: list(value.shape) for name, value in seen.items() if isinstance(value, Tensor)}
    numbers, maps = [5], [5, 12, 12]
    assert shapes == {
        "confidence": numbers,
        "masked_confidence": numbers,
        "inverse_confidence": numbers,
        "maps": maps,
        "attributions": maps,
        "masked_maps": maps,
        "masks": maps,
        "images": [5, 3, 12, 12],
        "targets": numbers,
        "logits": [5, 5],
    }
    assert [list(boxes.shape) for boxes in seen["boxes"]] == [[1, 4]] * 5
    assert isinstance(seen["protocol"], Protocol)


def test_maps_and_attributions_are_those_of_explain():
    for needs, protocol in (("maps", "default"), ("attributions", Protocol(normalisation="none"))):
        scores = score(Metric("mean", lambda maps: mean(maps), None, needs=(needs,)))
        found = xaieval.explain(tiny(), batch()["images"], "2", "gradcam", protocol=protocol)["2"]
        if needs == "maps":
            torch.testing.assert_close(column(scores, "mean"), mean(found), rtol=1e-5, atol=1e-6)
        else:  # explain clips what is not normalised to [0, 1], Grad-CAM's maps are never below 0
            assert (column(scores, "mean") >= mean(found) - 1e-6).all()


def test_confidences_under_the_inverted_mask_are_those_of_the_inverse_protocol():
    scores = score(Metric("left", lambda o: o, None, needs=("inverse_confidence",)))
    inverse = score("average_drop", protocol=Protocol(inverse=True))
    for method in METHODS:
        layer = "2" if method == "gradcam" else "input"
        torch.testing.assert_close(
            column(scores, "left", method, layer), column(inverse, "masked_confidence", method, layer), rtol=1e-5, atol=1e-7
        )
        assert (column(scores, "left", method, layer) != column(scores, "masked_confidence", method, layer)).any()


def test_maps_of_masked_images_are_those_of_explain_for_the_first_target():
    scores = score(Metric("mean", lambda maps: mean(maps), None, needs=("masked_maps",)))
    images = batch()["images"]
    predicted = tiny()(images).argmax(dim=1)
    masked = images * xaieval.explain(tiny(), images, "2")["2"][:, None]
    expected = [
        xaieval.explain(tiny(), one[None], "2", target=int(target))["2"] for one, target in zip(masked, predicted, strict=True)
    ]
    torch.testing.assert_close(column(scores, "mean"), mean(torch.cat(expected)), rtol=1e-4, atol=1e-5)


def test_any_images_can_be_explained_and_asked_about():
    def flipped(images: Tensor, explain: Any, attribute: Any, ask: Any) -> Tensor:
        turned = images.flip(-1)
        maps, raw = explain(turned), attribute(turned)
        assert ((maps >= 0) & (maps <= 1)).all()
        assert not raw.requires_grad
        of = torch.arange(len(images))
        return ask([(turned, of), (images, of)])[: len(images)] + mean(maps)

    scores = score(Metric("flipped", flipped, None, needs=("images", "explain", "attribute", "ask")))
    images = batch()["images"]
    with torch.no_grad():
        targets = tiny()(images).argmax(dim=1)
        confidence = tiny()(images.flip(-1)).double().softmax(dim=1)[range(5), targets]
    maps = xaieval.explain(tiny(), images.flip(-1), "2", target=lambda logits, labels: targets)["2"]
    torch.testing.assert_close(column(scores, "flipped"), confidence + mean(maps), rtol=1e-4, atol=1e-5)


def test_an_inspection_is_what_the_model_and_the_method_say_of_changed_images():
    seen: dict[str, Any] = {}

    def look(images: Tensor, inspect: Any, inspect_layer: Any, explain: Any, attribute: Any) -> Tensor:
        turned = images.flip(-1)
        found = inspect_layer(turned)
        assert torch.equal(found.maps, inspect(turned).maps)
        assert torch.equal(found.maps, explain(turned))
        assert torch.equal(found.attributions, attribute(turned))
        seen.update(logits=found.logits, predicted=found.predicted, activation=found.activation)
        return mean(found.maps)

    needs = ("images", "inspect", "inspect_layer", "explain", "attribute")
    score(Metric("look", look, None, needs=needs), methods=["gradcam"], layers=["2"])
    turned = batch()["images"].flip(-1)
    with torch.no_grad():
        torch.testing.assert_close(seen["logits"], tiny()(turned))
        torch.testing.assert_close(seen["activation"], tiny()[:3](turned))
    assert torch.equal(seen["predicted"], seen["logits"].argmax(dim=1))
    assert not seen["activation"].requires_grad


def test_what_the_model_says_is_kept_only_where_it_is_asked_for():
    def look(images: Tensor, inspect_maps: Any) -> Tensor:
        return inspect_maps(images).predicted

    with pytest.raises(MetricError, match="let it need 'inspect'"):
        score(Metric("look", look, None, needs=("images", "inspect_maps")), methods=["captum:Saliency"], layers=())


def test_a_method_without_logits_compares_the_classes_that_the_model_gives_to_altered_images():
    protocol = Protocol(against="similar")

    def look(explain_class: Any) -> Tensor:
        seen.append(explain_class(torch.tensor([4, 0, 1, 2, 3])))
        return torch.zeros(5)

    seen: list[Tensor] = []
    score(Metric("look", look, None, needs=("explain_class",)), methods=["captum:Saliency"], layers=(), protocol=protocol)
    alone = xaieval.explain(
        tiny(), batch()["images"], (), "captum:Saliency", protocol=protocol, target=lambda *_: torch.tensor([4, 0, 1, 2, 3])
    )
    torch.testing.assert_close(seen[0], alone["input"])


def test_a_map_with_nan_is_nan_in_an_inspection_and_zeros_in_explain():
    def odd(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return images[:, 0].masked_fill(images[:, 0] > 1000, torch.nan)

    def look(images: Tensor, inspect: Any, explain: Any) -> Tensor:
        bright = images + 2000 * (torch.arange(5) == 3).view(-1, 1, 1, 1)
        assert inspect(bright).maps.isnan().flatten(1).all(dim=1).tolist() == [False, False, False, True, False]
        assert not explain(bright)[3].any()
        return torch.zeros(5)

    score(Metric("look", look, None, needs=("images", "inspect", "explain")), methods=odd, layers=())


def test_maps_of_other_classes_and_methods_are_those_of_explain():
    def look(explain_class: Any, explain_by: Any) -> Tensor:
        seen.append((explain_class(torch.tensor([4, 0, 1, 2, 3])), explain_by("gradcam++"), explain_by("edges")))
        return torch.zeros(5)

    seen: list[Any] = []
    score(Metric("look", look, None, needs=("explain_class", "explain_by")), methods=["layercam"], layers=["0"])
    [(other, plus, edges)] = seen
    images, protocol = batch()["images"], Protocol(normalisation="none")
    expected = xaieval.explain(tiny(), images, "0", "layercam", target=[4, 0, 1, 2, 3])["0"]
    torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)
    expected = xaieval.explain(tiny(), images, "0", "gradcam++", protocol=protocol)["0"]
    torch.testing.assert_close(plus.clamp(0, 1), expected, rtol=1e-4, atol=1e-5)
    assert edges.shape == plus.shape
    assert edges.any()


def test_random_numbers_depend_on_seed_image_and_name_and_on_no_batch():
    metric = Metric("drawn", lambda draw: mean(draw((3, 4), "noise")), None, needs=("draw",))
    other = Metric("other", lambda draw: mean(draw((3, 4), "other")), None, needs=("draw",))
    whole = score([metric, other])
    parts = score([metric, other], [batch(2), batch(3, 2)])
    pd.testing.assert_frame_equal(whole.rows[["drawn", "other"]], parts.rows[["drawn", "other"]])
    assert len(column(whole, "drawn").unique()) == 5
    assert (column(whole, "drawn") != column(whole, "other")).all()
    assert (column(whole, "drawn") != column(score(metric, seed=1), "drawn")).all()


def test_masks_come_from_masks_or_boxes():
    metric = Metric("area", lambda masks: mean(masks), None, needs=("masks",))
    boxed = batch() | {"masks": None, "boxes": [[[3, 2, 8, 6]]] * 4 + [torch.zeros(0, 4)]}
    assert column(score(metric), "area").tolist() == [20 / 144] * 5
    assert column(score(metric, [boxed]), "area").tolist() == [20 / 144] * 4 + [0.0]
    with pytest.raises(MetricError, match="the data has neither masks nor boxes: give batches as mappings with 'masks'"):
        score(metric, [batch()["images"]])


def test_pixels_inside_of_boxes():
    boxes = torch.tensor([[0.6, 0.0, 2.5, 1.5], [3.0, 2.0, 4.0, 9.0]])
    expected = torch.zeros(3, 4, dtype=torch.bool)
    for row in range(3):
        for place in range(4):
            y, x = row + 0.5, place + 0.5
            expected[row, place] = any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in boxes.tolist())
    assert torch.equal(inside_boxes(boxes, (3, 4)), expected)
    assert expected.sum() == 2
    assert not inside_boxes(torch.zeros(0, 4), (3, 4)).any()


def test_values_that_are_missing_are_left_out_and_counted():
    def some(maps: Tensor) -> Tensor:
        return torch.tensor([1.0, torch.nan, 3.0, torch.nan, 8.0])

    summary = score(["average_drop", Metric("some", some, True, needs=("maps",))]).summary().loc["2", "gradcam"]
    assert (summary["some"], summary["some_n"], summary["n_images"], summary["n_failed"]) == (4.0, 3, 5, 0)
    assert "average_drop_n" not in summary
    assert np.isnan([summary["some_low"], summary["some_high"]]).all(), "three values have no interval"


def test_curves_are_kept_in_the_rows_and_in_files(tmp_path):
    def steps(maps: Tensor) -> tuple[Tensor, Tensor]:
        curve = maps.flatten(1)[:, :7].double().cumsum(dim=1)
        return curve.mean(dim=1), curve

    scores = score(["average_drop", Metric("steps", steps, True, needs=("maps",))], output_dir=tmp_path / "run")
    for rows in (scores.rows, Scores.load(tmp_path / "run").rows):
        assert list(rows.columns)[-4:] == ["average_drop", "steps", "steps_curve", "status"]
        for value, curve in zip(rows["steps"], rows["steps_curve"], strict=True):
            assert np.shape(curve) == (7,)
            assert value == pytest.approx(np.mean(curve))


def test_rows_that_do_not_count_have_neither_value_nor_curve():
    def broken(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = torch.rand(len(images), 12, 12)
        maps[1] = torch.nan
        return maps

    metric = Metric("both", lambda maps: (mean(maps), maps.flatten(1)[:, :3]), None, needs=("maps",))
    rows = score(metric, methods=broken).rows
    assert list(rows["status"]) == ["ok", "nan_map", "ok", "ok", "ok"]
    assert rows["both"].isna().tolist() == rows["both_curve"].isna().tolist() == [False, True, False, False, False]


def test_metrics_are_in_the_manifest_with_their_settings():
    metric = Metric("own", lambda maps: mean(maps), None, needs=("maps",), settings={"radius": 3}, label="Own")
    manifest = score(["average_drop", metric]).manifest
    assert manifest["metrics"][1] == {
        "name": "own",
        "higher_is_better": None,
        "interval": "mean",
        "label": "Own",
        "needs": ["maps"],
        "settings": {"radius": 3},
        "bounds": [0.0, 100.0],
    }
    assert manifest["run"]["metric settings"] == {"own": {"radius": 3}}
    assert "metric settings" not in score("average_drop").manifest["run"]


def test_layers_are_not_selected_by_a_mere_description():
    scores = score([Metric("own", lambda maps: mean(maps), None, needs=("maps",))], methods=("gradcam",))
    with pytest.raises(MetricError, match="no metric 'own' to select layers by"):
        scores.select_layers(by=["own"])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Metric("own", mean, None, needs="maps"), "needs is a sequence of names, such as \\('maps',\\); got a string"),
        (lambda: Metric("own", mean, None, needs=("mapps",)), "needs 'mapps', which is not an input; did you mean 'maps'"),
        (
            lambda: score(Metric("own", lambda maps: maps, None, needs=("maps",))),
            r"gave \[5, 12, 12\] for 5 images; values \[5\]",
        ),
        (lambda: score(Metric("own", lambda maps: 3, None, needs=("maps",))), r"gave int for 5 images; values \[5\]"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(made, message):
    with pytest.raises(MetricError, match=message):
        made()


def test_the_mean_over_batches_is_that_over_all_images():
    metric = MeanOverImages(Metric("own", lambda maps, masks: (maps * masks).flatten(1).sum(1), None, needs=("maps", "masks")))
    maps, masks = torch.rand(6, 4, 4), torch.rand(6, 4, 4) > 0.5
    maps[2] = torch.nan
    for part in (slice(0, 4), slice(4, 6)):
        metric.update(maps[part], masks[part])
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(metric.compute(), (maps * masks)[kept].flatten(1).sum(1).double().mean())
    assert int(metric.own_failed) == 1


def test_the_model_is_the_same_after_metrics_that_explain_again():
    model = tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metric = Metric("again", lambda maps: mean(maps), None, needs=("masked_maps",))
    xaieval.score(model, [batch()], layers=LAYERS, metrics=metric, progress=False)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
