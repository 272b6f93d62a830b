"""The whole job: rows equal to a slow loop and to numbers computed by hand, statuses, loaders, folders, errors."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import xaieval
from tests.documented import ROW_COLUMNS
from xaieval.analysis.stats.intervals import bootstrap_interval, mean_interval
from xaieval.data import Preprocessing, scenes
from xaieval.errors import DataError, ExplainerError, MetricError, OutputError, ProtocolError, RunError, TargetError, UsageError
from xaieval.evaluation.scores import Scores
from xaieval.explainers import Context
from xaieval.models.builtin import fpn_scenes


def score(*arguments: object, **options: object) -> Scores:
    return xaieval.score(*arguments, progress=False, **options)


# A slow loop, written without the package: one image at a time, own hooks, own softmax, own min-max.


@dataclass(frozen=True)
class Case:
    """A network, images, and the layers to look at: our address -> the module that makes the tensor."""

    model: nn.Module
    images: Tensor
    layers: dict[str, str]


@cache
def _scenes_case() -> Case:
    """The built-in model in float64: its confidences are so near to 1 that float32 cannot tell them apart."""
    pictures = scenes(Preprocessing(128, 128, mean=(0.5,) * 3, std=(0.5,) * 3))
    images = torch.stack([pictures[index]["image"] for index in range(8)]).double()
    layers = {"backbone.layer2": "backbone.layer2", "fpn[p3]": "fpn.layer_blocks.1", "fpn[p5]": "fpn.layer_blocks.3"}
    return Case(fpn_scenes().double().eval(), images, layers)


@cache
def _resnet_case() -> Case:
    """A network in float32 with random weights."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=7).eval()
    return Case(model, torch.randn(8, 3, 64, 64), {"layer2": "layer2", "layer3": "layer3"})


CASES = {"fpn_scenes": _scenes_case, "resnet18": _resnet_case}


def _slow_gradcam(a: Tensor, g: Tensor) -> Tensor:
    total = torch.zeros(a.shape[1:], dtype=torch.float64)
    for k in range(len(a)):
        total += float(g[k].sum()) / g[k].numel() * a[k]
    return total.clamp(min=0)


def _slow_layercam(a: Tensor, g: Tensor) -> Tensor:
    total = torch.zeros(a.shape[1:], dtype=torch.float64)
    for k in range(len(a)):
        total += g[k].clamp(min=0) * a[k]
    return total.clamp(min=0)


def _slow_hirescam(a: Tensor, g: Tensor) -> Tensor:
    total = torch.zeros(a.shape[1:], dtype=torch.float64)
    for k in range(len(a)):
        total += g[k] * a[k]
    return total.clamp(min=0)


SLOW = {"gradcam": _slow_gradcam, "layercam": _slow_layercam, "hirescam": _slow_hirescam}


def _softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    return [power / sum(powers) for power in powers]


def _slow_rows(case: Case) -> list[tuple[str, str, str, int, float, float, float]]:
    """Image id, layer, method, predicted class, Y, O and mean of the map, for each row."""
    rows = []
    for index in range(len(case.images)):
        image = case.images[index : index + 1]
        kept: dict[str, Tensor] = {}

        def keep(address: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
                output.retain_grad()
                kept[address] = output  # noqa: B023  # the hook is gone before the next image

            return hook

        handles = [case.model.get_submodule(path).register_forward_hook(keep(at)) for at, path in case.layers.items()]
        logits = case.model(image)[0]
        for handle in handles:
            handle.remove()
        numbers = [float(logit) for logit in logits.detach()]
        predicted = numbers.index(max(numbers))
        case.model.zero_grad()
        logits[predicted].backward()
        for address in case.layers:
            activation = kept[address]
            for method, function in SLOW.items():
                raw = function(activation[0].detach().double(), activation.grad[0].double())
                size = tuple(image.shape[2:])
                large = functional.interpolate(raw[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
                lowest, highest = float(large.min()), float(large.max())
                mask = (large - lowest) / (highest - lowest) if highest > lowest else torch.zeros_like(large)
                with torch.no_grad():
                    masked = case.model((image.double() * mask).to(image.dtype))[0]
                o = _softmax([float(logit) for logit in masked])[predicted]
                rows.append((str(index), address, method, predicted, _softmax(numbers)[predicted], o, float(mask.mean())))
        case.model.zero_grad()
    return rows


@cache
def _slow(name: str) -> list[tuple[str, str, str, int, float, float, float]]:
    return _slow_rows(CASES[name]())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "batch_size"),
    [([8], None), ([8], 1), ([8], 3), ([8], 8), ([2, 2, 2, 2], 5), ([3, 3, 2], None)],
    ids=str,
)
@pytest.mark.parametrize("name", CASES)
def test_rows_and_numbers_equal_a_slow_loop_whatever_the_batches(name, sizes, batch_size):
    case = CASES[name]()
    scores = score(case.model, case.images.split(sizes), list(case.layers), list(SLOW), batch_size=batch_size)
    rows, slow = scores.rows, _slow(name)
    assert list(rows.columns) == ROW_COLUMNS
    assert [*zip(rows["image_id"], rows["layer"], rows["method"], strict=True)] == [row[:3] for row in slow]
    assert list(rows["predicted"]) == list(rows["target"]) == [row[3] for row in slow]
    assert rows["label"].isna().all()
    y, o, area = (np.array([row[column] for row in slow]) for column in (4, 5, 6))
    assert list(rows["status"]) == ["ok" if mean > 0 else "constant_map" for mean in area]
    assert np.mean(rows["status"] == "ok") > 0.9
    np.testing.assert_allclose(rows["confidence"], y, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rows["masked_confidence"], o, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rows["mask_area"], area, rtol=0, atol=1e-6)
    # Both metrics from the loop's own confidences, summed one by one. A drop is in percent, so that 1e-6 of Y and O (of
    # which the smallest here is 0.1) becomes 1e-4 / 0.1 at most.
    summary = scores.summary()
    assert [*summary.index] == [(layer, method) for layer in case.layers for method in SLOW]
    for layer, method in summary.index:
        pairs = [(row[4], row[5]) for row in slow if row[1:3] == (layer, method)]
        drop = increase = 0.0
        for before, after in pairs:
            drop += max(0.0, before - after) / before
            increase += 1.0 if after > before else 0.0
        assert summary.loc[(layer, method), "average_drop"] == pytest.approx(100 * drop / len(pairs), abs=1e-3)
        assert summary.loc[(layer, method), "increase_in_confidence"] == 100 * increase / len(pairs)
    assert (summary["n_images"] == 8).all()
    assert (summary["n_failed"] == 0).all()


@pytest.mark.slow
def test_the_slow_loop_has_drops_and_increases():
    gains = [row[5] - row[4] for name in CASES for row in _slow(name)]
    assert min(gains) < -0.5
    assert max(gains) > 0.001


def test_summary_does_not_depend_on_the_order_of_images():
    case = _resnet_case()
    there = score(case.model, [case.images], "layer3").summary()
    back = score(case.model, [case.images.flip(0)], "layer3").summary()
    np.testing.assert_allclose(there["average_drop"], back["average_drop"], rtol=1e-5)


# A model whose confidences are known: the score of class 0 is the image's mean, that of class 1 the rest up to 1.


class Dial(nn.Module):
    """Logits (p, 1 - p), p the mean of the image; with `confidence="identity"` they are the confidences, to the last bit."""

    def forward(self, images: Tensor) -> Tensor:
        share = images.mean(dim=(1, 2, 3))
        return torch.stack([share, 1 - share], dim=1)


def dial(*values: float) -> Tensor:
    """Images of one grey each, 4 x 4 pixels."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 4, 4).clone()


@dataclass(frozen=True)
class Keep:
    """A map of 1 in an image's first pixels, as many as its id says, and 0 elsewhere; NaN for None."""

    pixels: dict[str, int | None]
    name: str = "keep"
    needs_layer: bool = False
    needs_gradient: bool = False

    def __call__(self, context: Context) -> Tensor:
        maps = torch.zeros(len(context.ids), 16)
        for image, name in zip(maps, context.ids, strict=True):
            kept = self.pixels[name]
            image[: 16 if kept is None else kept] = math.nan if kept is None else 1
        return maps.view(-1, 4, 4)


# Without normalisation a map of ones keeps the whole image.
EXACT = xaieval.Protocol(confidence="identity", normalisation="none")

# By hand: Y and O of the predicted class; the third image is of class 1, whose score rises when pixels become 0.
VALUES = (0.75, 0.625, 0.25, 0.875)
PIXELS = {"0": 8, "1": 4, "2": 8, "3": 16}
Y = [0.75, 0.625, 0.75, 0.875]
O = [0.375, 0.15625, 0.875, 0.875]  # noqa: E741  # the name that the paper gives it
DROPS = [50.0, 75.0, 0.0, 0.0]
INCREASES = [0.0, 0.0, 100.0, 0.0]


@pytest.fixture
def by_hand() -> Scores:
    return score(Dial(), [dial(*VALUES)], methods=Keep(PIXELS), protocol=EXACT)


def test_numbers_computed_by_hand(by_hand):
    assert list(by_hand.rows["confidence"]) == Y
    assert list(by_hand.rows["masked_confidence"]) == O
    assert list(by_hand.rows["mask_area"]) == [0.5, 0.25, 0.5, 1]
    assert list(by_hand.rows["average_drop"]) == DROPS
    assert list(by_hand.rows["increase_in_confidence"]) == INCREASES
    assert by_hand.summary().iloc[0][["average_drop", "increase_in_confidence"]].tolist() == [31.25, 25]


# The mistakes of public code, one by one: each test shows what the mistake would have given.


def test_mistake_drop_not_divided_by_y(by_hand):
    undivided = [100 * max(0, y - o) for y, o in zip(Y, O, strict=True)]
    assert undivided != DROPS
    assert list(by_hand.rows["average_drop"]) == DROPS


@pytest.mark.parametrize("sizes", [[4], [1, 3], [2, 2], [1, 1, 1, 1]], ids=str)
def test_mistake_drops_summed_over_a_batch_instead_of_averaged(sizes):
    # A sum over a batch, averaged over batches, is 125 here for one batch and 62.5 for two.
    summary = score(Dial(), dial(*VALUES).split(sizes), methods=Keep(PIXELS), protocol=EXACT).summary()
    assert summary["average_drop"].tolist() == [31.25]
    assert summary["increase_in_confidence"].tolist() == [25]


def test_mistake_batches_of_different_size_weigh_the_same():
    # The mean of the batches' means would be (50 + 25) / 2 for the first image alone and the three others.
    scores = score(Dial(), dial(*VALUES).split([1, 3]), methods=Keep(PIXELS), protocol=EXACT)
    assert scores.summary()["average_drop"].tolist() == [31.25]


def test_mistake_ic_always_0_because_of_assignment_order(by_hand):
    # Y overwritten by O before the two are compared.
    assert by_hand.summary()["increase_in_confidence"].tolist() == [25]
    assert list(by_hand.rows["confidence"]) != list(by_hand.rows["masked_confidence"])


@pytest.mark.parametrize(
    "target", [0, lambda logits, labels: torch.zeros(len(logits), dtype=torch.long)], ids=["0", "callable"]
)
def test_mistake_class_idx_or_argmax_losing_class_0(target):
    # The image is of class 1; `target or argmax` would follow that.
    for options in ({"target": target, "protocol": EXACT}, {"protocol": replace(EXACT, target=target)}):
        rows = score(Dial(), [dial(0.25)], methods=Keep({"0": 8}), **options).rows
        assert list(rows["predicted"]) == [1]
        assert list(rows["target"]) == [0]
        assert list(rows["confidence"]) == [0.25]
        assert list(rows["masked_confidence"]) == [0.125]


def test_mistake_a_minus_min_over_max_minus_min_without_brackets():
    # `a - min / max - min` of 1, 2, 5 is -0.2, 0.8, 3.8.
    def steps(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor([[1.0, 2.0], [5.0, 5.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1).expand(len(images), 4, 4)

    protocol = xaieval.Protocol(confidence="identity")
    maps = xaieval.explain(Dial(), dial(0.75), method=steps, protocol=protocol)["input"]
    assert maps[0, ::2, ::2].tolist() == [[0, 0.25], [1, 1]]
    rows = score(Dial(), [dial(0.75)], methods=steps, protocol=protocol).rows
    assert list(rows["masked_confidence"]) == [0.75 * (0 + 0.25 + 1 + 1) / 4]


def test_mistake_y_taken_for_another_class_than_o(by_hand):
    # The second image is of class 0, and of class 1 once it is masked: the score of that class would be an increase.
    masked = dial(0.625) * (torch.arange(16) < 4).view(4, 4)
    assert int(Dial()(masked).argmax()) == 1
    second = by_hand.rows.iloc[1]
    assert second["target"] == second["predicted"] == 0
    assert second["masked_confidence"] == 0.15625
    assert second["increase_in_confidence"] == 0


def test_mistake_samples_with_nan_maps_dropped_so_that_n_differs_between_methods():
    broken = Keep(PIXELS | {"1": None}, name="broken")
    scores = score(Dial(), [dial(*VALUES)], methods=[Keep(PIXELS), broken], protocol=EXACT)
    assert len(scores.rows) == 8
    summary = scores.summary().xs("input")
    assert (summary["n_images"] + summary["n_failed"]).tolist() == [4, 4]
    assert summary["n_failed"].tolist() == [0, 1]
    bad = scores.rows.query("method == 'broken' and image_id == '1'").iloc[0]
    assert bad["status"] == "nan_map"
    assert bad["confidence"] == 0.625  # the image itself was looked at
    values = bad[["masked_confidence", "mask_area", "average_drop", "increase_in_confidence"]]
    assert values.isna().all()
    assert summary.loc["broken", "average_drop"] == pytest.approx(50 / 3)


def test_mistake_ties_counted_as_increase(by_hand):
    last = by_hand.rows.iloc[3]
    assert last["confidence"] == last["masked_confidence"]
    assert last["increase_in_confidence"] == 0
    assert last["average_drop"] == 0


def test_mistake_ad_averaged_over_dropping_images_only(by_hand):
    # (50 + 75) / 2 is what that would give.
    assert by_hand.summary()["average_drop"].tolist() == [31.25]


# Targets.


def test_target_label_and_functions_are_followed():
    images, labels = dial(0.75, 0.25, 0.625), torch.tensor([1, 0, 0])
    keep = Keep({"0": 8, "1": 8, "2": 8})
    rows = score(Dial(), [(images, labels)], methods=keep, target="label", protocol=EXACT).rows
    assert list(rows["label"]) == list(rows["target"]) == [1, 0, 0]
    assert list(rows["predicted"]) == [0, 1, 0]
    assert list(rows["confidence"]) == [0.25, 0.25, 0.625]
    assert list(rows["masked_confidence"]) == [0.625, 0.125, 0.3125]

    def second(logits: Tensor, labels: Tensor) -> Tensor:
        assert logits.shape == (3, 2)
        assert labels.tolist() == [1, 0, 0]
        return logits.argmin(dim=1)

    rows = score(Dial(), [(images, labels)], methods=keep, target=second, protocol=EXACT).rows
    assert list(rows["target"]) == [1, 0, 1]
    assert list(rows["confidence"]) == [0.25, 0.25, 0.375]


def test_the_callers_target_wins_over_the_protocols():
    rows = score(Dial(), [dial(0.25)], methods=Keep({"0": 8}), target=0, protocol=replace(EXACT, target=1)).rows
    assert list(rows["target"]) == [0]


@pytest.mark.parametrize("target", ["predicted", 0, 6])
def test_gradients_are_those_of_the_target(target):
    # Another class has another map; a gradient of the predicted class would give one for all.
    case = _resnet_case()
    maps = xaieval.explain(case.model, case.images[:2], "layer3", target=target)["layer3"]
    chosen = case.model(case.images[:2]).argmax(dim=1).tolist() if target == "predicted" else [target] * 2
    by_function = xaieval.explain(case.model, case.images[:2], "layer3", target=lambda *_: torch.tensor(chosen))["layer3"]
    assert torch.equal(maps, by_function)
    others = [xaieval.explain(case.model, case.images[:2], "layer3", target=k)["layer3"] for k in range(7) if k not in chosen]
    assert all((maps - other).abs().max() > 0.1 for other in others)


@pytest.mark.parametrize(
    ("target", "labels", "message"),
    [
        ("label", None, "target 'label' needs labels, but the data has none; use target='predicted' or a class index"),
        ("label", [0, 2], "the data has label 2, but the model has 2 classes, 0 to 1"),
        (
            "label",
            [-1, 255],
            "target 'label' needs labels, but no image has one: a label that is negative, NaN, None or 255 is none; use "
            "target='predicted' or a class index",
        ),
        (
            "label",
            [0.5, 1],
            "target 'label' needs one class per image: integers [2], such as [3, 0]; the labels are {}, and zeros and ones for "
            "each class, [2, K], would name several; give target= as a class index, or as a function of logits and labels",
        ),
        (2, None, "no class 2; the model has 2 classes, 0 to 1"),
        (-1, None, "no class -1; the model has 2 classes, 0 to 1"),
        (True, None, "target True is not 'predicted', 'label', a class index or a function"),
        (
            lambda logits, labels: logits.argmax(dim=1) + 5,
            None,
            "the target function returned class 5, but the model has 2 classes, 0 to 1",
        ),
        (
            lambda logits, labels: logits,
            None,
            "a target function returns one class index per image, got torch.float32 [2, 2]",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, str | int) else "",
)
def test_wrong_targets_are_refused_word_for_word(target, labels, message):
    images = dial(0.75, 0.75)
    for call in (
        lambda: score(Dial(), [(images, labels)], methods="center", target=target),
        lambda: xaieval.explain(Dial(), images, (), "center", target, labels=None if labels is None else torch.tensor(labels)),
    ):
        with pytest.raises(TargetError) as caught:
            call()
        assert str(caught.value) in (message, message.format("a list of float"), message.format("float32 [2]"))


def test_an_unknown_target_is_refused_with_near_matches():
    with pytest.raises(ProtocolError) as caught:
        score(Dial(), [dial(0.5)], methods="center", target="labels")
    assert str(caught.value) == (
        "target='labels' is not a choice of a protocol; did you mean 'label'? known: predicted, label, each"
    )


# Protocol.


def test_protocol_choices_reach_the_masks():
    # 4 x 4 pixels of value 0.75; the map keeps one half of a quarter of them and three quarters of another.
    def soft(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor([[0.5, 0.75], [0.0, 0.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1).expand(len(images), 4, 4)

    def masked(**choices: object) -> float:
        return score(Dial(), [dial(0.75)], methods=soft, protocol=replace(EXACT, **choices)).rows["masked_confidence"][0]

    assert masked() == 0.75 * 1.25 / 4
    assert masked(inverse=True) == 0.75 * 2.75 / 4
    assert masked(masking="threshold", threshold=0.6) == 0.75 / 4
    assert masked(masking="top_binary", keep_percent=50) == 0.75 / 2
    assert masked(masking="top", keep_percent=25) == 0.75 * 0.75 / 4
    assert masked(fill="mean") == 0.75
    assert masked(normalisation="max") == 0.75 * (0.5 / 0.75 + 1) / 4
    # p of a black image in the normalised space is -0.5 / 0.25.
    assert masked(fill="black", mean=(0.5,), std=(0.25,)) == 0.75 * 1.25 / 4 - 2 * 2.75 / 4


@pytest.mark.parametrize(
    ("choices", "area"),
    [({"inverse": True}, 0.75), ({"masking": "top_binary", "keep_percent": 50}, 0.5), ({"masking": "threshold"}, 0.25)],
    ids=["inverse", "top_binary", "threshold"],
)
def test_mask_area_is_the_mean_of_the_mask_and_not_of_the_map(choices, area):
    rows = score(Dial(), [dial(0.75)], methods=Keep({"0": 4}), protocol=replace(EXACT, **choices)).rows
    assert list(rows["mask_area"]) == [area]


def test_zero_in_pixel_space_is_black():
    case = _resnet_case()
    numbers = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    black, zero, default = (
        score(case.model, [case.images[:3]], "layer3", protocol=xaieval.Protocol(**choices)).rows["masked_confidence"]
        for choices in ({"fill": "black"} | numbers, {"space": "pixels"} | numbers, {})
    )
    assert list(black) == list(zero)
    assert (abs(black - default) > 1e-6).all()
    mask = xaieval.explain(case.model, case.images[:3], "layer3")["layer3"][:, None]
    pixels = torch.tensor([-mean / std for mean, std in zip(numbers["mean"], numbers["std"], strict=True)])[:, None, None]
    logits = case.model(case.images[:3] * mask + pixels * (1 - mask)).detach()
    expected = logits.softmax(dim=1)[range(3), case.model(case.images[:3]).argmax(dim=1)]
    np.testing.assert_allclose(black, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("choices", "shown"), [({"fill": "black"}, "'black' in space='model'"), ({"space": "pixels"}, "'zero' in space='pixels'")]
)
def test_black_needs_the_numbers_of_the_normalisation(choices, shown):
    with pytest.raises(ProtocolError) as caught:
        score(Dial(), [dial(0.75)], methods="center", protocol=xaieval.Protocol(**choices))
    assert str(caught.value) == (
        f"fill={shown} means black pixels, which needs the mean and std that the images were normalised with: "
        "give Protocol(mean=(...), std=(...))"
    )


def test_models_of_timm_know_the_numbers_of_the_normalisation():
    model = timm.create_model("test_resnet").eval()
    images = torch.randn(2, 3, 64, 64)
    known = score(model, [images], "layer3", protocol=xaieval.Protocol(fill="black"))
    config = model.pretrained_cfg
    told = score(model, [images], "layer3", protocol=xaieval.Protocol(fill="black", mean=config["mean"], std=config["std"]))
    assert known.manifest["run"]["protocol.mean"] == list(config["mean"])
    assert list(known.rows["masked_confidence"]) == list(told.rows["masked_confidence"])
    own = score(model, [images], "layer3", protocol=xaieval.Protocol(fill="black", mean=(0,) * 3, std=(1,) * 3))
    assert own.manifest["run"]["protocol.mean"] == [0, 0, 0]
    assert (own.rows["masked_confidence"] != told.rows["masked_confidence"]).all()


@pytest.mark.parametrize(
    ("confidence", "expected"),
    [
        ("softmax", lambda logits: logits.softmax(dim=1)),
        ("sigmoid", torch.sigmoid),
        ("identity", lambda logits: logits),
        (lambda logits: logits.exp(), torch.exp),
    ],
    ids=["softmax", "sigmoid", "identity", "callable"],
)
def test_confidence_is_the_protocols_on_both_images(confidence, expected):
    protocol = xaieval.Protocol(confidence=confidence, normalisation="none")
    rows = score(Dial(), [dial(0.75)], methods=Keep({"0": 8}), protocol=protocol).rows
    y, o = (float(expected(torch.tensor([[p, 1 - p]]))[0, 0]) for p in (0.75, 0.375))
    assert rows["confidence"][0] == pytest.approx(y, rel=1e-6)
    assert rows["masked_confidence"][0] == pytest.approx(o, rel=1e-6)


def test_gradient_of_the_confidence_differs_from_that_of_the_logit():
    case = _resnet_case()
    logit, confidence = (
        xaieval.explain(case.model, case.images[:2], "layer3", protocol=xaieval.Protocol(gradient=gradient))["layer3"]
        for gradient in ("logit", "confidence")
    )
    assert (logit - confidence).abs().max() > 0.01


# Statuses.


class Poisoned(nn.Module):
    """A dial that answers NaN to images brighter than a limit, or darker than another."""

    def __init__(self, above: float = math.inf, below: float = -math.inf) -> None:
        super().__init__()
        self.above = above
        self.below = below

    def forward(self, images: Tensor) -> Tensor:
        logits = Dial()(images)
        bad = (logits[:, 0] > self.above) | (logits[:, 0] < self.below)
        return logits.masked_fill(bad[:, None], math.nan)


def _statuses(scores: Scores) -> list[str]:
    return list(scores.rows["status"])


def _failed_but_counted(scores: Scores, failed: int, counted: int) -> None:
    summary = scores.summary()
    assert summary["n_failed"].tolist() == [failed]
    assert summary["n_images"].tolist() == [counted]
    bad = ~scores.rows["status"].isin(["ok", "constant_map"])
    assert scores.rows.loc[bad, ["average_drop", "increase_in_confidence"]].isna().all(axis=None)
    assert scores.rows.loc[~bad, ["average_drop", "increase_in_confidence"]].notna().all(axis=None)


def test_nan_logits_of_one_image_are_a_status_and_leave_the_others_alone():
    scores = score(Poisoned(above=0.7), [dial(*VALUES)], methods=Keep(PIXELS), protocol=EXACT)
    assert _statuses(scores) == ["nan_confidence", "ok", "ok", "nan_confidence"]
    _failed_but_counted(scores, 2, 2)
    assert scores.summary()["average_drop"].tolist() == [37.5]


@pytest.mark.parametrize("label", [0, 1])
def test_nan_logits_are_a_failure_whatever_the_label_says_of_them(label):
    # Whether an image without logits is classified correctly cannot be said; the argmax of NaN, an accident, must not decide
    # whether the summary counts the image as failed.
    protocol = replace(EXACT, images="correct")
    batch = (dial(0.625, 0.875), torch.tensor([0, label]))
    scores = score(Poisoned(above=0.7), [batch], methods=Keep({"0": 8, "1": 8}), protocol=protocol)
    assert _statuses(scores) == ["ok", "nan_confidence"]
    _failed_but_counted(scores, 1, 1)


def test_nan_in_a_gradient_method_is_a_status_and_leaves_the_others_alone():
    case = _resnet_case()
    images = case.images[:3].clone()
    images[1, 0, 0, 0] = math.nan
    rows = score(case.model, [images], ["layer2", "layer3"], list(SLOW)).rows
    clean = score(case.model, [case.images[:3]], ["layer2", "layer3"], list(SLOW)).rows
    bad = rows["image_id"] == "1"
    assert set(rows.loc[bad, "status"]) == {"nan_confidence"}
    assert set(rows.loc[~bad, "status"]) == {"ok"}
    np.testing.assert_allclose(rows.loc[~bad, "masked_confidence"], clean.loc[~bad, "masked_confidence"], rtol=1e-5)


def test_nan_confidence_on_a_masked_image_is_a_status():
    scores = score(Poisoned(below=0.2), [dial(*VALUES)], methods=Keep(PIXELS), protocol=EXACT)
    assert _statuses(scores) == ["ok", "nan_masked_confidence", "nan_masked_confidence", "ok"]
    _failed_but_counted(scores, 2, 2)


def test_infinite_maps_are_a_status():
    def endless(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        maps = images.mean(dim=1).clone()
        maps[0, 0, 0] = math.inf
        maps[1, 0, 0] = 0  # an ordinary map
        return maps

    assert _statuses(score(Dial(), [dial(0.75, 0.75)], methods=endless)) == ["nan_map", "ok"]


def test_a_constant_map_masks_everything_and_counts():
    scores = score(
        Dial(), [dial(0.75, 0.75)], methods=Keep({"0": 8, "1": 16}), protocol=xaieval.Protocol(confidence="identity")
    )
    assert _statuses(scores) == ["ok", "constant_map"]
    assert list(scores.rows["mask_area"]) == [0.5, 0]
    assert list(scores.rows["average_drop"]) == [50, 100]
    _failed_but_counted(scores, 0, 2)


def test_constant_maps_can_be_left_out_and_are_counted_then():
    protocol = xaieval.Protocol(confidence="identity", constant_map="leave_out")
    scores = score(Dial(), [dial(0.75, 0.75)], methods=Keep({"0": 8, "1": 16}), protocol=protocol)
    assert _statuses(scores) == ["ok", "constant_map_left_out"]
    _failed_but_counted(scores, 1, 1)
    assert scores.summary()["average_drop"].tolist() == [50]


def test_zero_confidence_is_a_status_and_no_number():
    scores = score(Dial(), [dial(0.75, 0.0)], methods=Keep({"0": 8, "1": 8}), target=0, protocol=EXACT)
    assert _statuses(scores) == ["ok", "zero_confidence"]
    _only_compared(scores)

    def loud(images: Tensor) -> Tensor:  # whose softmax underflows to 0 exactly
        return 10000 * Dial()(images)

    rows = score(Loud(loud), [dial(0.25)], methods=Keep({"0": 8}), target=0).rows
    assert list(rows["confidence"]) == [0]
    assert list(rows["status"]) == ["zero_confidence"]


class Loud(nn.Module):
    """A module around a function."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> object:
        return self.function(images)


def test_negative_confidence_under_identity_is_a_status():
    # The drop of a negative number would turn the metric around: (Y - O) / Y of Y = -0.5 and O = -1 is -1.
    scores = score(Dial(), [dial(0.75, -0.5)], methods=Keep({"0": 8, "1": 8}), target=0, protocol=EXACT)
    assert _statuses(scores) == ["ok", "negative_confidence"]
    _only_compared(scores)


def _only_compared(scores: Scores) -> None:
    """The second image has no Average Drop, but its confidences can be compared."""
    assert scores.rows["average_drop"].isna().tolist() == [False, True]
    assert scores.rows["increase_in_confidence"].notna().all()
    [summary] = scores.summary().to_dict("records")
    assert {"n_images": 1, "n_failed": 1, "increase_in_confidence_n": 2}.items() <= summary.items()
    assert summary["average_drop"] == scores.rows["average_drop"].iloc[0]


def test_negative_confidence_on_a_masked_image_is_a_drop_of_more_than_100_percent():
    protocol = replace(EXACT, fill="black", mean=(0.5,), std=(0.25,))
    rows = score(Dial(), [dial(0.75)], methods=Keep({"0": 8}), protocol=protocol).rows
    assert list(rows["masked_confidence"]) == [0.375 - 1]
    assert rows["average_drop"][0] == pytest.approx(100 * (0.75 + 0.625) / 0.75)
    assert list(rows["status"]) == ["ok"]


def test_unreadable_images_keep_rows_for_every_layer_and_method():
    batches = [
        {"image": dial(0.75), "label": torch.tensor([0]), "id": ["a"], "failed": [("b", 1, "OSError: truncated")]},
        {"failed": [("c", None, "gone")], "id": [], "label": torch.tensor([], dtype=torch.long)},
        {"image": dial(0.25), "label": torch.tensor([1]), "id": ["d"], "failed": []},
    ]
    keep = {"a": 8, "d": 8}
    scores = score(Dial(), batches, methods=[Keep(keep), Keep(keep, name="again")], protocol=EXACT)
    rows = scores.rows
    assert [*zip(rows["image_id"], rows["method"], strict=True)] == [(i, m) for i in "adbc" for m in ("keep", "again")]
    assert list(rows["status"]) == ["ok"] * 4 + ["unreadable"] * 4
    assert rows["label"].tolist()[:6] == [0, 0, 1, 1, 1, 1]
    assert rows["label"].tolist()[6:] == [pd.NA, pd.NA]
    lost = rows.iloc[4:]
    assert lost[["predicted", "target", *ROW_COLUMNS[6:11]]].isna().all(axis=None)
    assert list(rows.columns) == ROW_COLUMNS
    assert scores.summary()["n_images"].tolist() == [2, 2]
    assert scores.summary()["n_failed"].tolist() == [2, 2]
    assert scores.manifest["unreadable"] == [{"id": "b", "reason": "OSError: truncated"}, {"id": "c", "reason": "gone"}]
    assert scores.manifest["data"]["images"] == 4


def test_a_batch_without_a_readable_image_may_have_an_empty_list_of_labels():
    batches = [
        {"image": dial(0.75), "label": [0], "id": ["a"], "failed": []},
        {"label": [], "id": [], "failed": [("b", 1, "gone")]},
        {"image": dial(), "label": [], "id": [], "failed": [("c", 1, "gone")]},
    ]
    scores = score(Dial(), batches, methods=Keep({"a": 8}), protocol=EXACT)
    assert _statuses(scores) == ["ok", "unreadable", "unreadable"]


def test_a_run_without_a_single_readable_image_is_an_error():
    with pytest.raises(RunError) as caught:
        score(Dial(), [{"failed": [("a.png", 0, "OSError: broken"), ("b.png", 1, "gone")]}], methods="center")
    assert str(caught.value) == "none of the 2 images could be read; the first, 'a.png': OSError: broken"


def test_correct_images_only():
    images, labels = dial(*VALUES), torch.tensor([0, 1, 1, 1])
    scores = score(Dial(), [(images, labels)], methods=Keep(PIXELS), protocol=replace(EXACT, images="correct"))
    assert _statuses(scores) == ["ok", "excluded", "ok", "excluded"]
    # Left out on purpose is no failure.
    _failed_but_counted(scores, 0, 2)
    assert scores.summary()["average_drop"].tolist() == [25]


def test_correct_images_need_labels():
    with pytest.raises(TargetError) as caught:
        score(Dial(), [dial(0.75)], methods="center", protocol=xaieval.Protocol(images="correct"))
    assert str(caught.value) == "images='correct' needs labels, but the data has none; use images='all'"


def test_minimum_confidence_leaves_out_images_below_it():
    scores = score(Dial(), [dial(*VALUES)], methods=Keep(PIXELS), protocol=replace(EXACT, minimum_confidence=0.75))
    assert _statuses(scores) == ["ok", "excluded", "ok", "ok"]
    _failed_but_counted(scores, 0, 3)


@pytest.mark.parametrize(
    ("choices", "keep", "status"),
    [
        ({"invalid": "error"}, None, "nan_map"),
        ({"constant_map": "error", "normalisation": "minmax"}, 16, "constant_map"),
    ],
)
def test_a_protocol_can_refuse_a_status(choices, keep, status):
    pixels = Keep({"x": 8, "y": keep, "z": keep})
    batch = {"image": dial(0.75, 0.75, 0.75), "id": ["x", "y", "z"]}
    with pytest.raises(RunError) as caught:
        score(Dial(), [batch], methods=pixels, protocol=replace(EXACT, **choices))
    assert str(caught.value) == f"image 'y' has the status {status}, which the protocol refuses (invalid=, constant_map=)"


# Maps.


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "eigencam", "random"])
def test_explain_gives_the_maps_that_score_uses(method):
    case = _resnet_case()
    batch = {"image": case.images[:4], "id": ["0", "1", "2", "3"]}
    rows = score(case.model, [batch], "layer3", method, seed=3, fast=False).rows
    (mask,) = xaieval.explain(case.model, case.images[:4], "layer3", method, seed=3).values()
    assert mask.shape == (4, 64, 64)
    assert mask.min() == 0
    assert mask.max() <= 1
    np.testing.assert_allclose(rows["mask_area"], mask.mean(dim=(1, 2)), rtol=1e-6)
    with torch.no_grad():
        masked = case.model(case.images[:4] * mask[:, None]).softmax(dim=1)
    np.testing.assert_allclose(rows["masked_confidence"], masked[range(4), list(rows["target"])], rtol=1e-5)


def test_explain_gives_several_layers_from_one_forward_and_one_backward_pass():
    case = _resnet_case()
    calls = []
    handle = case.model.register_forward_hook(lambda *_: calls.append(1))
    maps = xaieval.explain(case.model, case.images[:2], ["layer2", "layer3"])
    handle.remove()
    assert list(maps) == ["layer2", "layer3"]
    assert len(calls) == 2  # the search for the layers is the other one
    for layer, together in maps.items():
        alone = xaieval.explain(case.model, case.images[:2], layer)[layer]
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_explain_gives_zeros_for_a_map_of_nan_and_for_a_constant_one():
    keep = Keep({"0": 8, "1": None, "2": 16})
    maps = xaieval.explain(Dial(), dial(0.75, 0.75, 0.75), method=keep)["input"]
    assert maps.mean(dim=(1, 2)).tolist() == [0.5, 0, 0]


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
def test_score_and_explain_work_under_any_outer_mode(outer):
    case = _resnet_case()
    expected = score(case.model, [case.images[:2]], "layer3").rows
    with outer():
        rows = score(case.model, [case.images[:2]], "layer3").rows
        maps = xaieval.explain(case.model, case.images[:2], "layer3")["layer3"]
    np.testing.assert_allclose(rows["masked_confidence"], expected["masked_confidence"], rtol=1e-6)
    np.testing.assert_allclose(maps.mean(dim=(1, 2)), expected["mask_area"], rtol=1e-5)  # score folds BatchNorms


@pytest.mark.parametrize("target", ["label", lambda logits, labels: labels], ids=["label", "callable"])
def test_labels_that_were_made_in_inference_mode_can_be_targets(target):
    case = _resnet_case()
    with torch.inference_mode():
        labels = torch.tensor([0, 3])
        rows = score(case.model, [(case.images[:2], labels)], "layer3", target=target).rows
    assert list(rows["target"]) == [0, 3]
    assert set(rows["status"]) == {"ok"}


def test_batches_may_differ_in_image_size():
    case = _resnet_case()
    small = torch.randn(2, 3, 48, 80)
    rows = score(case.model, [case.images[:2], small], ["layer2", "layer3"]).rows
    alone = score(case.model, [{"image": small, "id": ["2", "3"]}], ["layer2", "layer3"]).rows
    pd.testing.assert_frame_equal(rows.iloc[4:].reset_index(drop=True), alone, rtol=1e-5)


def test_each_map_costs_one_masked_image_and_small_batches_share_passes():
    sizes: list[int] = []

    class Counting(Dial):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return super().forward(images)

    methods = [Keep(dict.fromkeys("012", 8), name=f"keep{number}") for number in range(4)]
    score(Counting(), dial(0.75, 0.75, 0.75).split([2, 1]), methods=methods, batch_size=5)
    # The first batch shows how the output is read, and is checked as a whole and in halves. Then 2 images and 4 x 2 masked
    # ones, and 1 image and 4 x 1; as many a pass as the batch size lets in.
    assert sizes == [2, *[2, 1, 1], 2, 5, 3, 1, 4]


# Loaders.


def _gen(items: list[object]) -> Iterator[object]:
    yield from items


LABELS = [0, 1, 0]


@pytest.mark.parametrize(
    ("batches", "labelled"),
    [
        (lambda images: [images], False),
        (lambda images: [(images,)], False),
        (lambda images: [(images, torch.tensor(LABELS))], True),
        (lambda images: [[images, LABELS]], True),
        (lambda images: [(images, None)], False),
        (lambda images: _gen([(images[:2], LABELS[:2]), (images[2:], LABELS[2:])]), True),
        (lambda images: [{"image": images}], False),
        (lambda images: [{"images": images, "labels": LABELS}], True),
        (lambda images: [{"pixel_values": images, "label": torch.tensor(LABELS, dtype=torch.int32)}], True),
        (lambda images: [OrderedDict(image=images, label=np.array(LABELS), id=[0, 1, 2])], True),
        (lambda images: [{"image": images, "label": LABELS, "ids": ("0", "1", "2"), "failed": []}], True),
        (lambda images: DataLoader(TensorDataset(images, torch.tensor(LABELS)), batch_size=2), True),
    ],
    ids=[
        "tensor",
        "tuple of one",
        "tuple",
        "list with list of labels",
        "tuple with None",
        "generator",
        "image",
        "images, labels",
        "pixel_values, label",
        "numpy labels, integer ids",
        "ids",
        "DataLoader",
    ],
)
def test_every_form_of_loader_gives_the_same_rows(batches, labelled):
    images = dial(*VALUES[:3])
    expected = score(Dial(), [images], methods=Keep(PIXELS), protocol=EXACT).rows
    rows = score(Dial(), batches(images), methods=Keep(PIXELS), protocol=EXACT).rows
    pd.testing.assert_frame_equal(rows.drop(columns="label"), expected.drop(columns="label"))
    assert list(rows["label"]) == (LABELS if labelled else [pd.NA] * 3)
    assert str(rows["label"].dtype) == "Int64"


@pytest.mark.parametrize("sizes", [[4], [2, 2], [1, 3]], ids=str)
@pytest.mark.parametrize("most", [1, 2, 3, 4, 9])
def test_max_images_stops_after_so_many(sizes, most):
    scores = score(Dial(), dial(*VALUES).split(sizes), methods=Keep(PIXELS), protocol=EXACT, max_images=most)
    assert list(scores.rows["image_id"]) == ["0", "1", "2", "3"][:most]
    assert scores.summary()["average_drop"].tolist() == [sum(DROPS[:most]) / len(DROPS[:most])]


def test_max_images_reads_no_further_batch():
    def endless() -> Iterator[Tensor]:
        yield dial(0.75, 0.75)
        yield dial(0.75)
        raise AssertionError("read too far")

    rows = score(Dial(), endless(), methods=Keep(dict.fromkeys("012", 8)), max_images=3).rows
    assert len(rows) == 3


def test_an_output_is_found_in_what_the_model_returns():
    expected = list(score(Dial(), [dial(*VALUES)], methods=Keep(PIXELS), protocol=EXACT).rows["masked_confidence"])
    for wrap, where in [
        (lambda logits: {"logits": logits, "features": None}, None),
        (lambda logits: SimpleNamespace(logits=logits), None),
        (lambda logits: (logits, "more"), None),
        (lambda logits: {"a": 0, "b": logits}, "b"),
        (lambda logits: [None, logits], 1),
        (lambda logits: {"deep": {"er": logits}}, lambda output: output["deep"]["er"]),
    ]:
        model = Loud(lambda images, wrap=wrap: wrap(Dial()(images)))
        rows = score(model, [dial(*VALUES)], methods=Keep(PIXELS), protocol=EXACT, output=where).rows
        assert list(rows["masked_confidence"]) == expected


FORM = "images are a floating-point tensor [N, C, H, W], normalised as the model expects; got "


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "the loader is empty: it yielded no images; an iterator can be read only once, so create a new one"),
        (
            [torch.zeros(3, 8, 8)],
            FORM + "float32 [3, 8, 8]; a loader yields batches: for one batch use [images], for a single image images[None]",
        ),
        (
            [torch.zeros(2, 3, 8, 8, dtype=torch.uint8)],
            FORM + "uint8 [2, 3, 8, 8]; scale and normalise the bytes, as in (images / 255 - mean) / std",
        ),
        ([torch.zeros(2, 3, 0, 8)], FORM + "float32 [2, 3, 0, 8]"),
        (
            [np.zeros((2, 3, 8, 8), np.int64)],
            FORM
            + "int64 [2, 3, 8, 8]; make them floats and normalise each channel, as in (images - mean) / std, in the unit of "
            "mean and std",
        ),
        (["cat.png"], FORM + "str"),
        ([(dial(0.5), [0], ["id"])], "a batch is a tuple of 3; images, (images, labels) or a mapping is expected"),
        (
            [{"img": dial(0.5), "label": [0]}],
            "a batch has the keys img, label; one of image, images, pixel_values is expected: rename the key in the data set, "
            "or let the loader's collate function return (images, labels)",
        ),
        ([{"image": dial(0.5, 0.5), "id": ["a"]}], "a batch has 2 images but 1 ids; one id per image is expected"),
        (
            [{"image": dial(0.5, 0.5), "id": ["a", "a"]}],
            "two images have the id 'a'; rows are identified by id, so each image needs its own",
        ),
        (
            [{"image": dial(0.5), "id": ["a"]}, {"image": dial(0.5), "id": ["a"]}],
            "two images have the id 'a'; rows are identified by id, so each image needs its own",
        ),
        (
            [{"image": dial(0.5), "id": ["a"], "failed": [("a", 0, "gone")]}],
            "two images have the id 'a'; rows are identified by id, so each image needs its own",
        ),
    ],
    ids=range(12),
)
def test_wrong_data_is_refused_word_for_word(loader, message):
    with pytest.raises(DataError) as caught:
        score(Dial(), loader, methods="center")
    assert str(caught.value) == message


@pytest.mark.parametrize("metrics", [[], ()], ids=["list", "tuple"])
def test_a_run_without_metrics_is_refused(metrics):
    with pytest.raises(MetricError, match=r"^metrics are one or more, each once; got \[\]$"):
        score(Dial(), [dial(0.5)], methods="center", metrics=metrics)


def test_an_iterator_that_was_read_before_is_refused():
    batches = iter([dial(0.5)])
    score(Dial(), batches, methods="center")
    with pytest.raises(DataError, match="an iterator can be read only once, so create a new one"):
        score(Dial(), batches, methods="center")


@pytest.mark.parametrize("name", ["batch_size", "max_images"])
def test_sizes_below_one_are_refused_word_for_word(name):
    with pytest.raises(UsageError) as caught:
        score(Dial(), [dial(0.5)], methods="center", **{name: 0})
    assert str(caught.value) == f"{name} is at least 1, got 0"


# The model is given back.


class Fragile(nn.Module):
    """A small network with modules in both modes that raises at one of its calls, counted from 1."""

    def __init__(self, raises_at: int | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
        self.raises_at = raises_at
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.raises_at:
            raise RuntimeError("the model broke")
        return self.head(self.body(images).mean(dim=(2, 3)))


def _fragile(raises_at: int | None = None) -> Fragile:
    torch.manual_seed(0)
    model = Fragile(raises_at)
    model.train()
    model.body[1].eval()
    model.body[0].weight.requires_grad_(False)
    model.head[1].weight.grad = torch.full_like(model.head[1].weight, 3)
    return model


def _state(model: nn.Module) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "tensors": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        "leaves": [parameter.is_leaf for parameter in model.parameters()],
        "layouts": [tensor.stride() for tensor in model.state_dict().values()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


# Call 1 finds the layers, calls 2 to 4 check the first batch, calls 5 and 6 try what makes the model faster; call 7 is the look
# at the originals, call 8 the first masked pass, call 10 the next batch's.
@pytest.mark.parametrize("raises_at", [None, 1, 7, 8, 10])
def test_score_gives_the_model_back_unchanged(raises_at):
    model = _fragile(raises_at)
    before = deepcopy(_state(model))
    assert before["modes"].count(True) > 1
    assert False in before["modes"]
    loader = [torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)]
    if raises_at is None:
        score(model, loader, "body")
    else:
        with pytest.raises(RuntimeError, match="the model broke"):
            score(model, loader, "body")
        assert model.calls == raises_at + (raises_at == 1)  # again without hooks: does it take the images?
    assert _state(model) == before


@pytest.mark.parametrize("raises_at", [2, 3, 4, 5, 6])
def test_a_model_that_cannot_be_checked_or_made_faster_is_scored_as_it_is_and_given_back(raises_at):
    model, images = _fragile(raises_at), torch.rand(2, 1, 8, 8)
    before = deepcopy(_state(model))
    rows = score(model, [images], "body").rows
    assert model.calls > raises_at
    assert _state(model) == before
    plain = score(_fragile(), [images], "body", fast=False).rows
    pd.testing.assert_frame_equal(rows, plain, check_exact=False, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("raises_at", [None, 1, 2])
def test_explain_gives_the_model_back_unchanged(raises_at):
    model = _fragile(raises_at)
    before = deepcopy(_state(model))
    if raises_at is None:
        xaieval.explain(model, torch.rand(2, 1, 8, 8), "body")
    else:
        with pytest.raises(RuntimeError, match="the model broke"):
            xaieval.explain(model, torch.rand(2, 1, 8, 8), "body")
    assert _state(model) == before


def test_the_model_is_given_back_when_a_method_or_the_loader_raises():
    model = _fragile()
    before = deepcopy(_state(model))

    def broken(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    def loader() -> Iterator[Tensor]:
        yield torch.rand(2, 1, 8, 8)
        raise KeyboardInterrupt

    with pytest.raises(ZeroDivisionError):
        score(model, [torch.rand(2, 1, 8, 8)], "body", ["gradcam", broken])
    assert _state(model) == before
    with pytest.raises(KeyboardInterrupt):
        score(model, loader(), "body")
    assert _state(model) == before


def test_the_callers_images_and_labels_are_left_alone():
    images, labels = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 1])
    before = images.clone()
    score(_fragile(), [(images, labels)], "body", ["gradcam", "edges"], target="label")
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert labels.tolist() == [0, 1, 1]


def test_layers_of_an_in_place_activation_are_seen_as_they_were():
    # The ReLU after the norm works in place: a stored output of the norm would lose its negative part.
    model = _fragile().eval()
    seen: list[Tensor] = []

    @dataclass(frozen=True)
    class Look:
        name: str = "look"
        needs_layer: bool = True
        needs_gradient: bool = False

        def __call__(self, context: Context) -> Tensor:
            seen.append(context.activation.clone())
            return context.activation.mean(dim=1)

    images = torch.rand(2, 1, 8, 8)
    score(model, [images], "body.1", Look())
    with torch.no_grad():
        expected = model.body[1](model.body[0](images))
    assert (expected < 0).any()
    torch.testing.assert_close(seen[0], expected)


# Folders.


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def _batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 1, 8, 8, generator=generator) for _ in range(count)]


def test_rows_so_far_are_saved_when_a_run_breaks_off(tmp_path):
    # Calls: six before the first batch, then two a batch; the eleventh is the look at the third batch.
    with pytest.raises(RuntimeError, match="the model broke"):
        score(_fragile(11), _batches(), "body", output_dir=tmp_path)
    part = Scores.load(tmp_path)
    assert part.manifest["complete"] is False
    assert list(part.rows["image_id"]) == ["0", "1", "2", "3"]
    whole = score(_fragile(), _batches(), "body", output_dir=tmp_path)
    assert whole.manifest["complete"] is True
    loaded = Scores.load(tmp_path)
    assert loaded.manifest["complete"] is True
    assert list(loaded.rows["image_id"]) == ["0", "1", "2", "3", "4", "5"]
    pd.testing.assert_frame_equal(part.rows, loaded.rows.iloc[:4])


def test_rows_so_far_are_saved_when_the_user_interrupts(tmp_path):
    def interrupted() -> Iterator[Tensor]:
        yield from _batches(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(_fragile(), interrupted(), "body", output_dir=tmp_path)
    part = Scores.load(tmp_path)
    assert (len(part.rows), part.manifest["complete"]) == (2, False)
    assert part.summary()["n_images"].tolist() == [2]


def test_nothing_is_written_by_a_run_that_breaks_before_its_first_rows(tmp_path):
    with pytest.raises(RuntimeError, match="the model broke"):
        score(_fragile(7), _batches(), "body", output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_complete_run_is_not_overwritten_by_a_broken_one(tmp_path):
    score(_fragile(), _batches(), "body", output_dir=tmp_path)
    before = _bytes(tmp_path)
    assert set(before) == {"manifest.json", "rows.parquet", "summary.csv"}
    with pytest.raises(RuntimeError, match="the model broke"):
        score(_fragile(11), _batches(), "body", output_dir=tmp_path, resume=False)
    assert _bytes(tmp_path) == before


def test_the_same_run_is_allowed_into_its_folder(tmp_path):
    first = score(_fragile(), _batches(), "body", output_dir=tmp_path)
    # Batches, device and the form of an address make no other run.
    second = score(_fragile(), [torch.cat(_batches())], ["bod?"], batch_size=4, output_dir=str(tmp_path), device="cpu")
    assert first.manifest["run"] == second.manifest["run"]
    assert json.loads((tmp_path / "manifest.json").read_text())["complete"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"layers": ["body.0", "body"]}, 'its layers is ["body"], this run\'s is ["body.0", "body"]'),
        ({"methods": "layercam"}, 'its methods is ["gradcam"], this run\'s is ["layercam"]'),
        (
            {"metrics": "average_drop"},
            'its metrics is ["average_drop", "increase_in_confidence"], this run\'s is ["average_drop"]',
        ),
        ({"seed": 1}, "its seed is 0, this run's is 1"),
        ({"max_images": 4}, "its max_images is null, this run's is 4"),
        ({"target": 0}, 'its protocol.target is "predicted", this run\'s is 0'),
        ({"protocol": xaieval.Protocol(fill="mean")}, 'its protocol.fill is "zero", this run\'s is "mean"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_in_the_folder_is_refused_and_the_difference_named(tmp_path, change, difference):
    score(_fragile(), _batches(), "body", output_dir=tmp_path)
    before = _bytes(tmp_path)
    with pytest.raises(OutputError) as caught:
        score(_fragile(), _batches(), **({"layers": "body"} | change), output_dir=tmp_path)
    assert str(caught.value) == (f"'{tmp_path}' holds another run: {difference}; choose another folder, or remove that one")
    assert _bytes(tmp_path) == before


def test_another_model_or_other_images_are_another_run(tmp_path):
    score(_fragile(), _batches(), "body", output_dir=tmp_path)
    other = _fragile()
    other.head[1].bias.data[0] += 1
    with pytest.raises(OutputError, match="holds another run: its model is"):
        score(other, _batches(), "body", output_dir=tmp_path)
    with pytest.raises(OutputError, match="holds another run: its first image is"):
        score(_fragile(), [batch + 1 for batch in _batches()], "body", output_dir=tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError) as caught:
        score(_fragile(), _batches(), "body", output_dir=tmp_path / "run")
    assert str(caught.value) == f"'{tmp_path / 'run'}' is a file; choose another folder"
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_manifest_that_cannot_be_read_is_left_alone(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(OutputError) as caught:
        score(_fragile(), _batches(), "body", output_dir=tmp_path)
    assert str(caught.value) == f"'{tmp_path}' holds a manifest.json that cannot be read; choose another folder"
    assert (tmp_path / "manifest.json").read_text() == content


def test_scores_survive_saving_and_loading(tmp_path):
    keep = Keep(PIXELS | {"1": None, "3": 16})
    batch = {"image": dial(*VALUES), "label": torch.tensor([0, 0, 1, 1]), "failed": [("lost", None, "gone")]}
    scores = score(Dial(), [batch], methods=[keep, "uniform"], protocol=replace(EXACT, images="correct"), seed=5)
    scores.save(tmp_path / "deep" / "run")
    loaded = Scores.load(tmp_path / "deep" / "run")
    pd.testing.assert_frame_equal(loaded.rows, scores.rows)
    assert loaded.manifest == scores.manifest
    pd.testing.assert_frame_equal(loaded.summary(), scores.summary())
    table = pd.read_csv(tmp_path / "deep" / "run" / "summary.csv")
    assert list(table.columns) == [
        "layer",
        "method",
        "average_drop",
        "average_drop_low",
        "average_drop_high",
        "increase_in_confidence",
        "increase_in_confidence_low",
        "increase_in_confidence_high",
        "mask_area",
        "n_images",
        "n_failed",
    ]
    pd.testing.assert_frame_equal(table.set_index(["layer", "method"]), scores.summary())


def test_loading_from_a_folder_without_a_run_says_what_is_missing(tmp_path):
    with pytest.raises(OutputError) as caught:
        Scores.load(tmp_path)
    assert str(caught.value) == f"'{tmp_path}' holds no run: there is no rows.parquet"


# Intervals of the summary.


def test_summary_intervals_are_those_of_skewed_means_for_drops_and_wilson_for_increases():
    images = dial(*np.linspace(0.05, 0.95, 20))
    keep = Keep({str(index): (5 * index) % 16 for index in range(20)})
    scores = score(Dial(), [images], methods=keep, protocol=EXACT, seed=9)
    summary = scores.summary(level=0.9).iloc[0]
    drops = scores.rows["average_drop"].to_numpy()
    assert (summary["average_drop_low"], summary["average_drop_high"]) == mean_interval(drops, 0.9)
    resampled = scores.summary(level=0.9, resamples=1000).iloc[0]
    assert (resampled["average_drop_low"], resampled["average_drop_high"]) == bootstrap_interval(drops, 0.9, 1000, 9)
    assert summary["average_drop_low"] < summary["average_drop"] < summary["average_drop_high"]
    # Wilson's closed form, with the 95 % quantile of the normal distribution.
    n, z = 20, 1.6448536269514722
    p = (scores.rows["increase_in_confidence"] > 0).sum() / n
    assert 0 < p < 1
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert summary["increase_in_confidence_low"] == pytest.approx(100 * (middle - half))
    assert summary["increase_in_confidence_high"] == pytest.approx(100 * (middle + half))


def test_summary_intervals_repeat_and_grow_with_the_level(by_hand):
    pd.testing.assert_frame_equal(by_hand.summary(), by_hand.summary())
    widths = [
        (summary["average_drop_high"] - summary["average_drop_low"]).iloc[0]
        for summary in (by_hand.summary(level=level) for level in (0.5, 0.8, 0.99))
    ]
    assert widths[0] < widths[1] < widths[2]


def test_intervals_of_a_method_without_a_valid_row_are_nan():
    scores = score(Dial(), [dial(0.75, 0.75)], methods=Keep({"0": None, "1": None}), protocol=EXACT)
    summary = scores.summary()
    assert summary.drop(columns=["n_images", "n_failed"]).isna().all(axis=None)
    assert summary[["n_images", "n_failed"]].to_numpy().tolist() == [[0, 2]]


def test_metrics_of_ones_own_get_a_column_and_an_interval():
    gain = xaieval.metrics.Metric("gain", lambda y, o: 100 * (o - y).clamp(min=0), higher_is_better=True)
    scores = score(Dial(), [dial(*VALUES)], methods=Keep(PIXELS), metrics=[gain, "average_drop"], protocol=EXACT)
    assert list(scores.rows.columns) == [*ROW_COLUMNS[:9], "gain", "average_drop", "status"]
    assert list(scores.rows["gain"]) == [0, 0, 12.5, 0]
    assert scores.summary()["gain"].tolist() == [3.125]
    assert scores.summary()["gain_high"].iloc[0] > 3.125


def test_a_missing_layer_is_no_run(tmp_path):
    with pytest.raises(ExplainerError, match="needs layers="):
        score(_fragile(), _batches(), output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    # Permissions do not bind an administrator, so the answer of the operating system is given here.
    monkeypatch.setattr("xaieval.results.files.os.access", lambda path, mode: False)
    case = _resnet_case()
    calls = []
    case.model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(OutputError, match=r"cannot write into '.*'; choose another folder"):
        score(case.model, [case.images[:2]], "layer3", output_dir=tmp_path / "run")
    assert len(calls) == 1  # the pass that finds the layers
    assert not (tmp_path / "run").exists()
