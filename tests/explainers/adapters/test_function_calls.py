"""Functions that a model calls are modules for the library: the same maps as those of a model written with modules."""

from __future__ import annotations

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchvision
from captum.attr._utils.custom_modules import Addition_Module
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import xaieval
from xaieval.errors import ExplainerError
from xaieval.explainers.adapters.function_calls import ACTIVATIONS, RELUS, functions_as_modules

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
METHODS = ["captum:GuidedBackprop", "captum:Deconvolution", "captum:DeepLift", "captum:LRP"]


class Block(nn.Module):
    """A residual network whose activations, addition and pooling are modules, or what `functions` names."""

    def __init__(self, functions: str = "") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 8, 3, 2)
        self.second, self.third = (nn.Conv2d(8, 8, 3, 1, 1) for _ in range(2))
        self.head = nn.Linear(8, 4)
        self.functions = functions
        if not functions:
            self.relus = nn.ModuleList(nn.ReLU() for _ in range(3))
            self.add, self.pool = Addition_Module(), nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor) -> Tensor:
        relu = {"function": F.relu, "new modules": lambda x: nn.ReLU()(x), "methods": Tensor.relu_, "": None}[self.functions]
        relus = self.relus if relu is None else [relu] * 3
        before = relus[0](self.first(images))
        after = self.third(relus[1](self.second(before)))
        if relu is None:
            after = self.add(after, before)
        else:
            after += before
        after = relus[2](after)
        return self.head((F.adaptive_avg_pool2d(after, 1) if relu else self.pool(after)).flatten(1))


def explained(model: nn.Module, method: str) -> Tensor:
    return xaieval.explain(model.eval(), IMAGES, method=method)["input"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("functions", ["function", "new modules", "methods"])
def test_maps_are_those_of_the_model_written_with_modules(method, functions):
    torch.testing.assert_close(explained(Block(functions), method), explained(Block(), method))


@pytest.mark.filterwarnings("ignore:.*Setting (forward, )?backward hooks:UserWarning")  # captum's notes
@pytest.mark.parametrize("method", METHODS)
def test_they_are_not_those_of_captum_called_on_the_functions(method):
    word = getattr(captum.attr, method.removeprefix("captum:"))
    targets = Block()(IMAGES).argmax(dim=1)
    images = IMAGES.clone().requires_grad_()
    theirs = [word(Block(functions).eval()).attribute(images, target=targets) for functions in ("", "function")]
    assert (theirs[0] - theirs[1]).abs().max() > 0.01 * theirs[0].abs().max()


def test_relevance_of_a_residual_network_is_that_of_additions_as_modules():
    class Added(BasicBlock):
        def forward(self, x: Tensor) -> Tensor:
            before = x if self.downsample is None else self.downsample(x)
            return self.last(self.add(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))), before))

    torch.manual_seed(0)
    model, theirs = (torchvision.models.resnet18(num_classes=4).eval() for _ in range(2))
    theirs.load_state_dict(model.state_dict())
    for module in list(theirs.modules()):
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if isinstance(module, BasicBlock):
            module.__class__ = Added
            module.add, module.last = Addition_Module(), nn.ReLU()
    relevance = (
        captum.attr.LRP(theirs)
        .attribute(IMAGES.clone().requires_grad_(), target=theirs(IMAGES).argmax(dim=1))
        .sum(dim=1)
        .detach()
    )
    low, high = relevance.amin((1, 2), keepdim=True), relevance.amax((1, 2), keepdim=True)
    torch.testing.assert_close(explained(model, "captum:LRP"), (relevance - low) / (high - low), atol=1e-4, rtol=0)


def test_the_model_is_as_before():
    model = Block("function").eval()
    names, before = [name for name, _ in model.named_modules()], model(IMAGES)
    for method in METHODS:
        explained(model, method)
    assert [name for name, _ in model.named_modules()] == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(IMAGES), before)


def test_an_object_of_captum_cannot_have_them():
    model = Block("function").eval()
    with pytest.raises(ExplainerError, match=r"calls functions \(3, the first one as ReLU\(\)\).*'captum:GuidedBackprop'"):
        xaieval.explain(model, IMAGES, method=captum.attr.GuidedBackprop(model))


def test_calls_in_modules_and_without_gradients_are_left_alone():
    class Mixed(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                scale = images.mean().relu()
            return super().forward(images * scale).tanh()

    images = IMAGES.clone().requires_grad_()
    model = Mixed(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sigmoid())
    modules, run = functions_as_modules(model, ACTIVATIONS, model, images)
    assert [type(module) for module in modules] == [nn.Tanh]
    torch.testing.assert_close(run(images), model(images))


def test_settings_of_functions_are_those_of_the_modules():
    def run(x: Tensor) -> Tensor:
        return F.max_pool2d(F.softplus(F.elu(F.leaky_relu(x, 0.3), alpha=0.5), 2), 3, stride=1, padding=1)

    images = IMAGES.clone().requires_grad_()
    modules, replaced = functions_as_modules(nn.Identity(), ACTIVATIONS, run, images)
    assert [type(module) for module in modules] == [nn.LeakyReLU, nn.ELU, nn.Softplus, nn.MaxPool2d]
    torch.testing.assert_close(replaced(images), run(images))


def test_what_cannot_be_replaced_is_named():
    def in_place(x: Tensor) -> Tensor:
        y = x * 1 - 0.5
        y.relu_()
        return y.sum()

    images = IMAGES.clone().requires_grad_()
    with pytest.raises(ValueError, match="writes in place"):
        functions_as_modules(nn.Identity(), RELUS, in_place, images)
    times = iter([1, 2])

    def more(x: Tensor) -> list[Tensor]:
        return [F.relu(x) for _ in range(next(times))]

    _, run = functions_as_modules(nn.Identity(), RELUS, more, images)
    with pytest.raises(ValueError, match="other functions"):
        run(images)
