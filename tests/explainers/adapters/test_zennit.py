"""Maps of the adapter equal those of zennit, relevance is conserved, and what has no rule is refused."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import zennit.composites
from torch import Tensor, nn
from zennit.torchvision import ResNetCanonizer, VGGCanonizer

from tests.borrowing import context_of, unchanged
from xaieval.errors import ExplainerError
from xaieval.explainers import Zennit, resolve_methods
from xaieval.explainers.adapters.zennit import KINDS, LIBRARY
from xaieval.inference.tasks import Classification

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
TARGETS = [1, 2]
WITHOUT_BIAS = {"zero_params": "bias"}


def settled(model: nn.Module) -> nn.Module:
    """A network whose batch norms have the statistics of some images, so that its activations are near 1."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 32, 32))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # zennit forgets it when it merges
    return model.eval()


@cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, kind = name.partition(":")
    if library == "timm":
        return settled(timm.create_model(kind, num_classes=5))
    small = {"resnet": lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5)}
    vgg = [8, "M", 8, "M"]
    small["vgg"] = lambda: nn.Sequential(
        torchvision.models.vgg.make_layers(vgg, batch_norm=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    return settled(small[kind]() if kind in small else torchvision.models.get_model(kind, num_classes=5, weights=None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "canonizer"), [("torchvision:resnet", ResNetCanonizer), ("torchvision:vgg", VGGCanonizer)])
def test_maps_are_those_of_zennit_with_its_own_canonizer(name, canonizer, kind):
    model = network(name)
    found = LIBRARY.methods[f"zennit:{kind}"](context_of(model, IMAGES, TARGETS))
    sides = {"keepdim": True, "dim": (2, 3)}
    box = {"low": IMAGES.amin(**sides), "high": IMAGES.amax(**sides)} if KINDS[kind].box else {}
    in_place = [module for module in model.modules() if getattr(module, "inplace", False)]
    for module in in_place:
        module.inplace = False
    images = IMAGES.clone().requires_grad_()
    with getattr(zennit.composites, kind)(canonizers=[canonizer()], **box).context(model):
        output = model(images)
        start = torch.zeros_like(output)
        start[range(2), TARGETS] = 1.0 if KINDS[kind].share else output.detach()[range(2), TARGETS]
        (expected,) = torch.autograd.grad(output, images, start)
    for module in in_place:
        module.inplace = True
    expected = expected.sum(dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.amax() - expected.amin()))


CONSERVED = ["torchvision:resnet", "torchvision:vgg", "timm:test_resnet", "timm:seresnet18", "timm:test_efficientnet"]


@pytest.mark.parametrize("name", CONSERVED)
def test_without_biases_the_map_adds_up_to_the_score(name):
    model = network(name)
    given = context_of(model, IMAGES, TARGETS)
    found = Zennit("EpsilonPlus", settings=WITHOUT_BIAS)(given).flatten(1).sum(dim=1)
    share = 0.15 if "efficientnet" in name else 1e-3  # below 0, its activations are not 0, but have no positive contributions
    torch.testing.assert_close(found, given.logits[range(2), TARGETS], rtol=share, atol=0)


def test_a_flat_first_layer_and_excitation_are_conserved_too():
    given = context_of(network("torchvision:resnet"), IMAGES, TARGETS)
    flat = Zennit("EpsilonAlpha2Beta1Flat", settings=WITHOUT_BIAS)(given).flatten(1).sum(dim=1)
    torch.testing.assert_close(flat, given.logits[range(2), TARGETS], rtol=1e-2, atol=0)
    whole = Zennit("ExcitationBackprop", settings=WITHOUT_BIAS)(given)
    torch.testing.assert_close(whole.flatten(1).sum(dim=1), torch.ones(2), rtol=1e-3, atol=0)


class Functional(nn.Module):
    """The functions that a network may call in place of modules, or the modules."""

    def __init__(self, functions: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.gate, self.head = nn.BatchNorm2d(8, eps=1e-3), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
        self.relu, self.pool, self.functions = nn.ReLU(), nn.AvgPool2d(32), functions

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.first(images)) if self.functions else self.relu(self.first(images))
        inner = self.norm(self.second(x))
        gate = self.gate(inner.mean((2, 3), keepdim=True)).sigmoid()
        x = x + inner * gate * 0.5
        return self.head(x.mean((2, 3)) if self.functions else self.pool(x).flatten(1))


def test_functions_have_the_rules_of_modules():
    maps = [
        LIBRARY.methods["zennit:EpsilonPlus"](context_of(Functional(kind).eval(), IMAGES, TARGETS)) for kind in (True, False)
    ]
    torch.testing.assert_close(*maps)


def test_gates_and_constant_factors_take_no_relevance():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 1, 1, bias=False)

        def forward(self, images: Tensor) -> Tensor:
            x = self.layer(images)
            return (x * x.mean((2, 3), keepdim=True).sigmoid() * 3).flatten(1)

    model = Gated().eval()
    images = torch.rand(1, 3, 2, 2) + 0.5
    nn.init.constant_(model.layer.weight, 1.0)
    given = context_of(model, images, [2])
    found = LIBRARY.methods["zennit:EpsilonPlus"](given)
    expected = torch.zeros(1, 2, 2)
    expected[0, 1, 0] = given.logits[0, 2]  # all of it at the pixel that the logit is read from
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["EpsilonPlus", "EpsilonGammaBox"])
def test_the_model_comes_back_as_it_was(kind):
    model = network("torchvision:resnet")
    given = context_of(model, IMAGES, TARGETS)
    with unchanged(model):
        Zennit(kind)(given)


def test_one_output_has_two_sides():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1, bias=False)
    ).eval()
    nn.init.zeros_(model[0].bias)
    task = Classification(single="binary")
    given = context_of(model, IMAGES, [0, 1], task=task)
    found = Zennit("EpsilonPlus")(given).flatten(1).sum(dim=1)
    torch.testing.assert_close(found, given.logits.flatten() * torch.tensor([-1.0, 1.0]), rtol=1e-3, atol=0)


# ---- what has no rule


class Own(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight.abs(), self.bias)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.layer(images)).mean((2, 3))


class Product(Shared):
    def forward(self, images: Tensor) -> Tensor:
        x = self.layer(images)
        return (x * x).mean((2, 3))


class LaterFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem = nn.Conv2d(4, 5, 1), nn.Conv2d(3, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images)).mean((2, 3))


class LogNorm(Shared):
    def forward(self, images: Tensor) -> Tensor:
        return F.layer_norm(self.layer(images).mean((2, 3)), (3,))


REFUSED = {
    "own weights": (
        lambda: nn.Sequential(Own(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "no rule for the Own 'model.0'",
    ),
    "two calls": (Shared, "needs layers that run once, and 'model.layer' runs 2 times"),
    "two activations": (Product, "multiplies two activations of one size"),
    "another function": (LogNorm, r"no rule for the function layer_norm of this model.*'attn-lrp' explains transformers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_without_a_rule_is_refused(name):
    make, message = REFUSED[name]
    torch.manual_seed(0)
    with pytest.raises(ExplainerError, match=message):
        Zennit("EpsilonPlus")(context_of(make().eval(), IMAGES, TARGETS))


def test_a_rule_for_the_first_layer_needs_the_layer_that_runs_first():
    given = context_of(LaterFirst().eval(), IMAGES, TARGETS)
    assert Zennit("EpsilonPlus")(given).shape == (2, 32, 32)
    with pytest.raises(ExplainerError, match="takes 'head' for it, but 'stem' runs first; take 'zennit:EpsilonPlus'"):
        Zennit("EpsilonGammaBox")(given)


def test_relevance_that_biases_take_is_said():
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    given = context_of(model, IMAGES, TARGETS)
    nn.init.constant_(model[0].bias, 1e4)
    with torch.no_grad():
        given = context_of(model, IMAGES, TARGETS)
    with pytest.raises(
        ExplainerError, match=r"does not conserve relevance in this model: .* of the score arrives at the pixels"
    ):
        Zennit("EpsilonPlus")(given)
    mixed = IMAGES.clone()
    mixed[0] *= 1e5
    maps = Zennit("EpsilonPlus")(context_of(model, mixed, TARGETS))
    assert maps.isnan().flatten(1).all(dim=1).tolist() == [False, True]


def test_names_and_settings_are_checked():
    with pytest.raises(ExplainerError, match=r"zennit: no method 'EpsilonPlusFlatt'; did you mean 'EpsilonPlusFlat'"):
        Zennit("EpsilonPlusFlatt")
    with pytest.raises(ExplainerError, match=r"method 'zennit:EpsilonPlus' does not work here: TypeError: .*'gama'"):
        Zennit("EpsilonPlus", settings={"gama": 1})(context_of(network("torchvision:vgg"), IMAGES, TARGETS))
    assert Zennit("EpsilonPlus", settings=WITHOUT_BIAS).to_dict() == {"settings": WITHOUT_BIAS}


def test_a_composite_object_is_refused_with_the_form_that_works():
    message = r"^a EpsilonPlus of zennit does not say its settings; give 'zennit:EpsilonPlus', or .*Zennit\('EpsilonPlus', "
    with pytest.raises(ExplainerError, match=message):
        resolve_methods([zennit.composites.EpsilonPlus(epsilon=0.1)])
    with pytest.raises(ExplainerError, match=r"^no method of zennit's GuidedBackprop; the composites with a method are "):
        resolve_methods(zennit.composites.GuidedBackprop())
