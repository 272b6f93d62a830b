"""Maps of the adapter equal those of torch-cam, at any layer, and the model is not changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torchcam.methods
import torchvision
from torch import Tensor, nn

import xaieval
from tests.borrowing import context_of, unchanged
from xaieval.errors import ExplainerError
from xaieval.explainers import TorchCam, resolve_methods
from xaieval.explainers.adapters.base import seeded
from xaieval.explainers.adapters.torch_cam import KINDS, LIBRARY
from xaieval.inference.tasks import Segmentation
from xaieval.probe.layouts import Layout

TORCH_CAM = LIBRARY.methods
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
TARGETS = [4, 0, 2]
MAPS = sorted(set(TORCH_CAM) - {"torch-cam:LeGrad"})


def small(inplace: bool = True) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def context(model: nn.Module, **options: object):
    return replace(context_of(model, IMAGES, TARGETS, **options), layer="3", layout=Layout("channels_first", (16, 16)))


def directly(name: str, images: Tensor, targets: list[int], model: nn.Module) -> Tensor:
    """torch-cam, called as its documentation does."""
    words = {"fc_layer": "7"} if name == "CAM" else {}
    with getattr(torchcam.methods, name)(model, "3", **words) as extractor:
        scores = model(images.clone().requires_grad_())
        return extractor(class_idx=targets, scores=scores, normalized=False)[0]


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_those_that_the_library_gives_when_it_is_called_directly(name):
    word = name.removeprefix("torch-cam:")
    found = TORCH_CAM[name](context(small(), seed=4))
    model = small(inplace=False)  # or what the library has kept of the layer is overwritten
    if KINDS[word].one_by_one:
        expected = []
        for number in range(3):
            with seeded(4, str(number), torch.device("cpu")):
                expected.append(directly(word, IMAGES[number : number + 1], TARGETS[number : number + 1], model))
        expected = torch.cat(expected)
    else:
        expected = directly(word, IMAGES, TARGETS, model)
    scale = expected.abs().amax()
    assert scale > 0, "maps of zeros would be equal too"
    torch.testing.assert_close(found / scale, expected / scale, **CLOSE)


@pytest.mark.parametrize("name", MAPS)
def test_a_map_does_not_depend_on_the_batch_or_on_the_callers_random_numbers(name):
    model = small()
    whole, one = context(model, seed=7, size=2), context(model, seed=7, size=5)
    maps = TORCH_CAM[name](whole)
    torch.manual_seed(11)
    for number in range(3):
        here = slice(number, number + 1)
        alone = replace(one, images=IMAGES[here], targets=one.targets[here], logits=one.logits[here], ids=[str(number)])
        torch.testing.assert_close(TORCH_CAM[name](alone)[0], maps[number], **CLOSE)


@pytest.mark.parametrize("name", MAPS)
def test_the_model_comes_back_as_it_was_and_nothing_is_printed(name, capfd):
    model = small()
    given = context(model)
    with unchanged(model):
        TORCH_CAM[name](given)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", MAPS)
def test_the_model_comes_back_as_it_was_after_an_error(name):
    model = small()

    def raising(images: Tensor) -> Tensor:
        model(images)
        raise ValueError("not these images")

    given = replace(context(model), call=raising)
    with unchanged(model), pytest.raises(ExplainerError, match="ValueError: not these images; torch-cam names the reason"):
        TORCH_CAM[name](given)


def test_every_extractor_of_the_library_is_offered_or_left_out_for_a_reason():
    exported = {name for module in ("activation", "gradient") for name in getattr(torchcam.methods, module).__all__}
    assert exported - {"RefineCAM"} == set(KINDS)  # which joins several layers


def test_le_grad_reads_the_attention_of_a_transformer():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it with zeros
    layer = "encoder.layers.encoder_layer_1"
    found = xaieval.explain(model, IMAGES, layer, "torch-cam:LeGrad", target=1)[layer]
    with torchcam.methods.LeGrad(model, layer) as extractor:
        scores = model(IMAGES.clone().requires_grad_())
        (expected,) = extractor(class_idx=[1, 1, 1], scores=scores)
    assert found.shape == (3, 32, 32)
    at_layer = xaieval.Protocol(normalise_at="layer")
    torch.manual_seed(0)
    coarse = xaieval.explain(model, IMAGES, layer, "torch-cam:LeGrad", target=1, protocol=at_layer)[layer]
    scaled = nn.functional.interpolate(expected[:, None], (32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(coarse, scaled, atol=1e-4, rtol=0)


def test_layers_of_tokens_are_maps_to_the_library():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5).eval()
    images = torch.rand(2, 3, *model.patch_embed.img_size)
    for theirs, ours in (("torch-cam:GradCAM", "gradcam"), ("torch-cam:LayerCAM", "layercam")):
        found, expected = (xaieval.explain(model, images, "blocks.0", name, target=1)["blocks.0"] for name in (theirs, ours))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM"])
def test_segmentation_networks_are_explained(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    found = xaieval.explain(model, IMAGES, "0", f"torch-cam:{name}", task=Segmentation())["0"]
    assert found.shape == (3, 32, 32)
    if name == "GradCAM":
        expected = xaieval.explain(model, IMAGES, "0", "gradcam", task=Segmentation())["0"]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_methods_of_a_class_explain_classifiers_alone():
    with pytest.raises(ExplainerError, match="explains only classifiers, and the task is segmentation"):
        xaieval.explain(nn.Sequential(nn.Conv2d(3, 4, 1)), IMAGES, "0", "torch-cam:CAM", task=Segmentation())


@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM", "FinerCAM", "SmoothGradCAMpp", "RefineCAM"])
def test_extractors_are_taken_as_they_are(name):
    model = small(inplace=False)
    layers = ["0", "3"] if name == "RefineCAM" else "3"
    with getattr(torchcam.methods, name)(model, layers) as extractor:
        (method,) = resolve_methods(extractor)
        assert method.name == f"torch-cam:{name}({'0+3' if name == 'RefineCAM' else '3'})"
        scores = xaieval.score(model, [IMAGES], methods=[extractor], progress=False)
        assert set(scores.rows["status"]) <= {"ok", "constant_map"}
        found = method(context(model))
    if name in ("GradCAM", "ScoreCAM"):
        torch.testing.assert_close(found, directly(name, IMAGES, TARGETS, small(inplace=False)), **CLOSE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TorchCam("GradCam"), "torch-cam: no method 'GradCam'; did you mean 'GradCAM'"),
        (lambda: resolve_methods("torch-cam:RefineCAM"), "no method 'torch-cam:RefineCAM'; did you mean 'FinerCAM'"),
        (
            lambda: xaieval.explain(nn.Sequential(small(), nn.Linear(5, 5)), IMAGES, "0.3", "torch-cam:CAM"),
            "ValueError: This CAM method does not support multiple fully connected layers; torch-cam names the reason",
        ),
        (lambda: xaieval.explain(small(), IMAGES, method="torch-cam:GradCAM"), "needs layers=, and none were given"),
    ],
)
def test_wrong_use_is_named(make, message):
    with pytest.raises(ExplainerError) as caught:
        make()
    assert message in str(caught.value)


def test_objects_that_cannot_be_scored_are_refused():
    model, other = small(), small()
    with (
        torchcam.methods.LayerCAM(model, ["0", "3"]) as several,
        pytest.raises(ExplainerError, match="it gave maps of 2 layers, and one is expected: make an extractor for each"),
    ):
        xaieval.explain(model, IMAGES, method=several)
    with torchcam.methods.GradCAM(other, "3") as foreign, pytest.raises(ExplainerError, match="was made for another model"):
        xaieval.explain(model, IMAGES, method=foreign)
    transformer = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    with (
        torchcam.methods.LeGrad(transformer, "encoder.layers.encoder_layer_1") as extractor,
        pytest.raises(ExplainerError, match="a LeGrad object breaks passes without gradients"),
    ):
        resolve_methods(extractor)


def test_a_missing_library_is_named_with_the_extra(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "torchcam")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExplainerError, match=r"torchcam, which is missing: pip install 'xaieval\[torchcam\]'"):
        resolve_methods("torch-cam:GradCAM")
