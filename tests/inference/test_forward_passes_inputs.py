"""How a model is given its images: by position, by name, or by a function; and models that compute gradients inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.errors import ModelError, UsageError
from xaieval.inference.forward_passes import called

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
METHODS = ("gradcam", "score-cam", "occlusion", "captum:Saliency", "pytorch-grad-cam:GradCAM", "torch-cam:GradCAM")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def logits(self, images: Tensor) -> Tensor:
        return self.head(self.b(self.a(images)).mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images)


class OnlyByName(Network):
    def forward(self, *, pixel_values: Tensor, labels: Tensor | None = None):
        return {"logits": self.logits(pixel_values)}


class AfterText(Network):
    def forward(self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **options):
        return {"logits": self.logits(pixel_values)}


class OtherName(Network):
    def forward(self, *args: Tensor, image: Tensor, flip: bool = False):
        return self.logits(image)


class Energy(Network):
    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            force = torch.autograd.grad(self.a(leaf).sum(), leaf)[0]
        return self.logits(images) + 0 * force.mean()


def numbers(model, methods=METHODS, **options):
    rows = xaieval.score(model, [IMAGES.clone()], ["b"], methods, progress=False, **options).rows
    return rows[["confidence", "masked_confidence", "mask_area"]].to_numpy()


@pytest.mark.parametrize("kind", [OnlyByName, AfterText, OtherName, Energy])
def test_models_that_take_images_by_name_or_gradients_inside_have_the_rows_of_a_plain_one(kind):
    np.testing.assert_allclose(numbers(kind()), numbers(Network()), atol=1e-5)


def test_listing_probing_and_the_check_give_images_by_name_too():
    expected = xaieval.list_layers(Network(), IMAGES)
    assert list(xaieval.list_layers(OnlyByName(), IMAGES)["address"])[: len(expected)] == list(expected["address"])
    assert torch.equal(xaieval.explain(AfterText(), IMAGES, "auto")["b"], xaieval.explain(Network(), IMAGES, "auto")["b"])
    xaieval.check(OnlyByName(), [IMAGES])


class Parts(nn.Module):
    """As a Lightning module that only trains."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Network()


class Two(Network):
    def forward(self, images: Tensor, age: Tensor, scale: float = 1.0) -> Tensor:
        return self.logits(images) + age


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Parts(), r"a Parts has no forward\(images\); give the network inside it \(net\), or how to run it: forward="),
        (nn.ModuleDict({"net": Network()}), r"a ModuleDict has no forward\(images\); give the network inside it \(net\)"),
        (Two(), r"a Two needs more than images: forward\(images, age\); say how to run it: forward="),
    ],
)
def test_models_that_images_alone_do_not_run_are_refused_by_name(model, message):
    for run in (
        numbers,
        lambda model: xaieval.list_layers(model, IMAGES),
        lambda model: xaieval.explain(model, IMAGES, "auto"),
    ):
        with pytest.raises(ModelError, match=message):
            run(model)


def test_a_function_runs_them():
    expected = xaieval.explain(Network(), IMAGES, "b")["b"]
    assert torch.equal(xaieval.explain(Parts(), IMAGES, "net.b", forward=lambda model, x: model.net(x))["net.b"], expected)
    assert torch.equal(xaieval.explain(Two(), IMAGES, "b", forward=lambda model, x: model(x, 0.0))["b"], expected)


def test_a_lightning_module_without_forward_is_refused_by_name():
    lightning = pytest.importorskip("lightning", reason="an extra")

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Network()

    with pytest.raises(ModelError, match=r"a Lit has no forward\(images\); give the network inside it \(net\)"):
        numbers(Lit())


def test_forward_is_a_function():
    with pytest.raises(UsageError, match=r"forward is a function \(model, images\) -> output, got 'predict'"):
        numbers(Network(), forward="predict")


def test_plain_models_and_wrappers_are_called_as_they_are():
    for model in (Network(), nn.DataParallel(Network()), nn.Sequential(Network()), torch.fx.symbolic_trace(Network())):
        assert called(model, None) is model


def test_an_error_of_the_model_itself_is_named_beside_what_it_was_given():
    class Wrong(Network):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no such table")

    with pytest.raises(ModelError, match=r"fails on images of the shape \[.*\] \(RuntimeError: no such table\)") as caught:
        numbers(Wrong(), methods="occlusion")
    assert str(caught.value.__cause__) == "no such table"
