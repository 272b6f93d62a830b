"""Maps of the adapter equal those of pytorch-grad-cam, at any layer, and the model is not changed."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import pytorch_grad_cam
import timm
import torch
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import xaieval
from tests.borrowing import context_of, unchanged
from xaieval.errors import ExplainerError
from xaieval.explainers import PytorchGradCam, resolve_methods
from xaieval.explainers.adapters.base import seeded
from xaieval.explainers.adapters.pytorch_grad_cam import KINDS, LIBRARY
from xaieval.inference.tasks import Detection, Segmentation
from xaieval.probe.layouts import Layout

GRAD_CAM = LIBRARY.methods
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
TARGETS = [4, 0, 2]
LAYER = "3"


def small(inplace: bool = True) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).eval()


def context(model: nn.Module, **options: object):
    return replace(context_of(model, IMAGES, TARGETS, **options), layer=LAYER, layout=Layout("channels_first", (16, 16)))


def directly(name: str, model: nn.Module, images: Tensor, targets: list[int], layer: str = LAYER, reshape=None) -> Tensor:
    layers = [] if name == "FullGrad" else [model.get_submodule(layer)]
    with getattr(pytorch_grad_cam, name)(model, layers, reshape_transform=reshape) as cam:
        return torch.from_numpy(cam(images, [ClassifierOutputTarget(target) for target in targets]))


def finer(model: nn.Module) -> Tensor:
    """Finer-CAM of each image for its own target, which the library takes one at a time."""
    with pytorch_grad_cam.FinerCAM(model, [model.get_submodule(LAYER)]) as cam:
        return torch.cat([torch.from_numpy(cam(IMAGES[i : i + 1], target_idx=TARGETS[i])) for i in range(3)])


@pytest.mark.parametrize("name", [name for name in KINDS if name != "RandomCAM"])
def test_maps_are_those_that_the_library_gives_when_it_is_called_directly(name):
    model = small(inplace=False)  # or the library overwrites what it has kept of the layer
    expected = finer(model) if name == "FinerCAM" else directly(name, model, IMAGES, TARGETS)
    found = GRAD_CAM[f"pytorch-grad-cam:{name}"](context(small()))
    assert expected.amax() > 0.5, "maps of zeros would be equal too"
    torch.testing.assert_close(found, expected, **CLOSE)


def test_random_cam_is_the_librarys_from_the_image_s_own_seed():
    found = GRAD_CAM["pytorch-grad-cam:RandomCAM"](context(small(), seed=4))
    for number in range(3):
        with seeded(4, str(number), torch.device("cpu")):
            expected = directly("RandomCAM", small(inplace=False), IMAGES[number : number + 1], TARGETS[number : number + 1])
        torch.testing.assert_close(found[number], expected[0], **CLOSE)


@pytest.mark.parametrize("name", sorted(GRAD_CAM))
def test_a_map_does_not_depend_on_the_batch(name):
    model = small()
    whole, one = context(model, seed=7, size=2), context(model, seed=7, size=5)
    maps = GRAD_CAM[name](whole)
    np.random.seed(11)  # noqa: NPY002  # the library draws from it
    for number in range(3):
        here = slice(number, number + 1)
        alone = replace(one, images=IMAGES[here], targets=one.targets[here], logits=one.logits[here], ids=[str(number)])
        torch.testing.assert_close(GRAD_CAM[name](alone)[0], maps[number], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(GRAD_CAM))
def test_the_model_comes_back_as_it_was_and_nothing_is_printed(name, capfd):
    model = small()
    given = context(model)
    bars = sys.modules["pytorch_grad_cam.score_cam"].tqdm
    with unchanged(model):
        GRAD_CAM[name](given)
    assert capfd.readouterr() == ("", "")
    assert sys.modules["pytorch_grad_cam.score_cam"].tqdm is bars


@pytest.mark.parametrize("name", sorted(GRAD_CAM))
def test_the_model_comes_back_as_it_was_after_an_error(name):
    model, passes = small(), []

    def raising(images: Tensor) -> Tensor:
        passes.append(images)
        found = model(images)
        if len(passes) > 2 * (name in ("pytorch-grad-cam:ScoreCAM", "pytorch-grad-cam:AblationCAM")):
            raise ValueError("not these images")
        return found

    given = replace(context(model, size=4), call=raising)
    with (
        unchanged(model),
        pytest.raises(ExplainerError, match="ValueError: not these images; pytorch-grad-cam names the reason"),
    ):
        GRAD_CAM[name](given)


def test_every_cam_of_the_library_is_offered_or_left_out_for_a_reason():
    exported = {name for name, value in vars(pytorch_grad_cam).items() if isinstance(value, type) and "CAM" in name.upper()}
    # These join several layers or many crops of an image; only their objects can be used.
    assert exported - {"RefineCAM", "SESS"} <= set(KINDS)
    assert set(KINDS) <= exported | {"FEM", "FullGrad"}


# ---- other libraries, layouts and tasks


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_four_sources_of_grad_cam_agree(layer):
    torch.manual_seed(0)
    model, images = torchvision.models.resnet18(num_classes=6), torch.rand(2, 3, 64, 64)
    methods = ["gradcam", "captum:LayerGradCam", "torch-cam:GradCAM", "pytorch-grad-cam:GradCAM"]
    at_layer = xaieval.Protocol(normalise_at="layer")
    ours, *others = (xaieval.explain(model, images, layer, name, protocol=at_layer)[layer] for name in methods[:3])
    for other in others:
        torch.testing.assert_close(other, ours, atol=1e-4, rtol=0)
    # This library upsamples before it normalises.
    ours, theirs = (xaieval.explain(model, images, layer, name)[layer] for name in (methods[0], methods[3]))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    assert (ours.amax(dim=(1, 2)) == 1).all()


def test_a_layer_whose_output_is_added_to_in_place_is_read_before_the_addition():
    torch.manual_seed(0)
    model, images = torchvision.models.resnet18(num_classes=6).eval(), torch.rand(2, 3, 64, 64)
    layer = "layer3.1.bn2"  # followed by `out += identity`
    ours, theirs = (xaieval.explain(model, images, layer, name)[layer] for name in ("gradcam", "pytorch-grad-cam:GradCAM"))
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM", "AblationCAM", "EigenCAM"])
@pytest.mark.parametrize(("network", "layer"), [("test_vit", "blocks.0"), ("test_convnext", "stages.0")])
def test_layers_of_tokens_are_maps_to_the_library(name, network, layer):
    torch.manual_seed(0)
    model = timm.create_model(network, num_classes=5).eval()
    images = torch.rand(2, 3, 64, 64) if network != "test_vit" else torch.rand(2, 3, *model.patch_embed.img_size)
    found = xaieval.explain(model, images, layer, f"pytorch-grad-cam:{name}", target=1)[layer]
    assert found.shape == (2, *images.shape[2:])
    assert found.isfinite().all()
    if name == "GradCAM":
        expected = xaieval.explain(model, images, layer, "gradcam", target=1)[layer]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_shapley_cam_reads_a_layer_behind_which_all_is_linear():
    torch.manual_seed(0)
    model, images = torchvision.models.resnet18(num_classes=6).eval(), torch.rand(2, 3, 64, 64)
    expected = directly("ShapleyCAM", model, images, [1, 3], "layer4")
    given = replace(context_of(model, images, [1, 3]), layer="layer4", layout=Layout("channels_first", (2, 2)))
    with unchanged(model):
        found = GRAD_CAM["pytorch-grad-cam:ShapleyCAM"](given)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_shapley_cam_cannot_read_tokens_and_says_so():
    model = timm.create_model("test_vit", num_classes=5).eval()
    images = torch.rand(1, 3, *model.patch_embed.img_size)
    with pytest.raises(ExplainerError, match="'pytorch-grad-cam:ShapleyCAM' does not work here: "):
        xaieval.explain(model, images, "blocks.0", "pytorch-grad-cam:ShapleyCAM")


class Finder(nn.Module):
    """A detector: one box whose score is the mean of a positive map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        box, one = torch.tensor([[0.0, 0, 4, 4]]), torch.ones(1, dtype=torch.long)
        scores = self.conv(images).square().mean(dim=(1, 2, 3))
        return [{"boxes": box, "labels": one, "scores": score[None]} for score in scores]


@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM", "LayerCAM"])
def test_detectors_and_segmentation_networks_are_explained(name):
    for model, task in ((Finder(), Detection()), (nn.Sequential(nn.Conv2d(3, 4, 1)), Segmentation())):
        layer = "conv" if isinstance(model, Finder) else "0"
        found = xaieval.explain(model, IMAGES, layer, f"pytorch-grad-cam:{name}", task=task)[layer]
        if name != "ScoreCAM":
            expected = xaieval.explain(model, IMAGES, layer, name.lower(), task=task)[layer]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert found.shape == (3, 32, 32)


def test_finer_cam_explains_classifiers_alone():
    with pytest.raises(ExplainerError, match="explains only classifiers, and the task is detection; 'gradcam' takes any model"):
        xaieval.explain(Finder(), IMAGES, "conv", "pytorch-grad-cam:FinerCAM", task="detection")


# ---- objects


@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM", "FullGrad", "FinerCAM", "SESS", "RefineCAM"])
def test_objects_are_taken_as_they_are(name):
    model = small(inplace=False)
    layers = [] if name == "FullGrad" else [model[0], model[3]] if name == "RefineCAM" else [model[3]]
    cam = getattr(pytorch_grad_cam, name)(model, layers, **({"num_scales": 2} if name == "SESS" else {}))
    (method,) = resolve_methods(cam)
    assert method.name == f"pytorch-grad-cam:{name}" + {"FullGrad": "", "RefineCAM": "(0+3)"}.get(name, "(3)")
    scores = xaieval.score(model, [IMAGES], methods=[cam], progress=False)
    assert set(scores.rows["status"]) <= {"ok", "constant_map"}
    assert scores.manifest["run"]["method settings"][method.name]["class"].endswith(f":{name}")
    found = method(context(model))
    if name in ("GradCAM", "ScoreCAM", "FullGrad"):
        torch.testing.assert_close(found, directly(name, small(inplace=False), IMAGES, TARGETS), **CLOSE)


def test_an_object_of_another_model_is_refused():
    other = small()
    with (
        pytorch_grad_cam.GradCAM(other, [other[3]]) as cam,
        pytest.raises(ExplainerError, match=r"'pytorch-grad-cam:GradCAM\(3\)' was made for another model"),
    ):
        xaieval.explain(small(), IMAGES, method=cam)


# ---- wrong use, and settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PytorchGradCam("GradCam"), "pytorch-grad-cam: no method 'GradCam'; did you mean 'GradCAM'"),
        (lambda: resolve_methods("pytorch-grad-cam:SESS"), "no method 'pytorch-grad-cam:SESS'; known: GradCAM"),
        (
            lambda: xaieval.explain(small(), IMAGES, "3", PytorchGradCam("GradCAM", settings={"alpha": 1})),
            "method 'pytorch-grad-cam:GradCAM' does not work here: TypeError: got an unexpected keyword argument 'alpha'",
        ),
        (lambda: xaieval.explain(small(), IMAGES, method="pytorch-grad-cam:GradCAM"), "needs layers=, and none were given"),
    ],
)
def test_wrong_use_is_named(make, message):
    with pytest.raises(ExplainerError) as caught:
        make()
    assert message in str(caught.value)


def test_settings_are_in_the_manifest():
    methods = [
        "pytorch-grad-cam:GradCAM",
        PytorchGradCam("FEM", settings={"k": 1}, smooth={"aug_smooth": False}, label="fem-1"),
    ]
    run = xaieval.score(small(), [IMAGES], "3", methods, progress=False).manifest["run"]
    assert run["method settings"] == {"fem-1": {"settings": {"k": 1}, "smooth": {"aug_smooth": False}}}


def test_full_gradients_of_a_transformer_are_refused_instead_of_leaving_its_biases_out():
    model = timm.create_model("test_vit", img_size=64, num_classes=5)
    message = "this model has a LayerNorm at 'blocks.0.norm1', for which that sum is not defined; 'guided-ig'"
    with pytest.raises(ExplainerError, match=message):
        xaieval.explain(model, torch.rand(1, 3, 64, 64), method="pytorch-grad-cam:FullGrad")
