"""Segmentation networks of torchvision from end to end, with random weights: rows beside those of a slow loop."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torchvision.models import segmentation

from xaieval import explain, score
from xaieval.inference.tasks import Segmentation

pytestmark = pytest.mark.slow

NETWORKS = {
    "deeplabv3_mobilenet_v3_large": {"aux_loss": True},
    "lraspp_mobilenet_v3_large": {},
    "fcn_resnet50": {"aux_loss": True},
}
LAYERS = {
    "deeplabv3_mobilenet_v3_large": "backbone[out]",
    "lraspp_mobilenet_v3_large": "backbone[high]",
    "fcn_resnet50": "backbone.layer4",
}


@cache  # every test gives it back as it was
def _network(name):
    torch.manual_seed(0)
    model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5, **NETWORKS[name])
    return model.eval()


def _images(count=2):
    return torch.randn(count, 3, 64, 96, generator=torch.Generator().manual_seed(5))


def _follow(logits: Tensor) -> tuple[int, list[tuple[int, int]]]:
    """Of one image `[K, h, w]`: the class of most pixels that are not background, and its pixels."""
    pixels: dict[int, list[tuple[int, int]]] = {}
    for y in range(logits.shape[1]):
        for x in range(logits.shape[2]):
            pixels.setdefault(int(logits[:, y, x].argmax()), []).append((y, x))
    pixels.pop(0, None)
    label = max(pixels, key=lambda one: (len(pixels[one]), -one))
    return label, pixels[label]


def _confidence(logits: Tensor, label: int, region: list[tuple[int, int]]) -> float:
    """The mean probability of a class over a region."""
    return sum(logits[:, y, x].double().softmax(0)[label].item() for y, x in region) / len(region)


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_those_of_a_loop_over_single_pixels(name):
    model, images, layer = _network(name), _images(), LAYERS[name]
    rows = score(model, [images], layer, task="segmentation", fast=False, progress=False).rows
    maps = explain(model, images, layer, task="segmentation")[layer]
    assert len(rows) == 2
    for index, row in rows.iterrows():
        with torch.no_grad():
            seen = model(images[index][None])["out"][0]
            masked = model((images[index] * maps[index])[None])["out"][0]
        label, region = _follow(seen)
        whole, occluded = _confidence(seen, label, region), _confidence(masked, label, region)
        assert row["status"] == "ok"
        assert row["target"] == label
        assert row["confidence"] == pytest.approx(whole, abs=1e-5)
        assert row["masked_confidence"] == pytest.approx(occluded, abs=1e-4)
        assert row["average_drop"] == pytest.approx(100 * max(0, whole - occluded) / whole, abs=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_grad_cam_of_the_mean_logit_over_the_region(name):
    model, images, layer = _network(name), _images(1), LAYERS[name]
    kept: list[Tensor] = []
    module = {"backbone[out]": "backbone.16", "backbone[high]": "backbone.16", "backbone.layer4": "backbone.layer4"}[layer]
    handle = model.get_submodule(module).register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(images)["out"][0]
    handle.remove()
    label, region = _follow(logits.detach())
    mean = torch.stack([logits[label, y, x] for y, x in region]).mean()
    (gradient,) = torch.autograd.grad(mean, kept[0])
    raw = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(dim=1).clamp(min=0).detach()
    expected = torch.nn.functional.interpolate(raw[None], (64, 96), mode="bilinear", align_corners=False)[0, 0]
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    found = explain(model, images, layer, task="segmentation")[layer][0]
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deeplabv3_mobilenet_v3_large", ["backbone.1", "backbone.3", "backbone.6", "classifier.0"]),
        ("lraspp_mobilenet_v3_large", ["backbone[low]", "backbone[high]"]),
        ("fcn_resnet50", ["backbone.layer1", "backbone.layer4"]),
    ],
)
def test_auto_takes_what_the_prediction_is_made_of_and_not_the_prediction(name, expected):
    assert list(explain(_network(name), _images(), "auto", task="segmentation")) == expected


def test_a_class_can_be_named_and_followed_everywhere():
    model, images = _network("lraspp_mobilenet_v3_large"), _images()
    rows = score(model, [images], "backbone[high]", task=Segmentation(region="all"), target=2, progress=False).rows
    with torch.no_grad():
        expected = model(images)["out"].double().softmax(1)[:, 2].mean(dim=(1, 2))
    assert rows["target"].tolist() == [2, 2]
    assert rows["confidence"].to_numpy() == pytest.approx(expected.numpy(), abs=1e-4)
