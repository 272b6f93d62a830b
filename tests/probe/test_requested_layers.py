"""Modules given as layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from tests.wired_model import Wired
from xaieval import explain, list_layers, score
from xaieval.errors import AddressError, ExplainerError, ModelError
from xaieval.probe import probe
from xaieval.probe.requested_layers import to_addresses


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=4).eval()


IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_module_gives_the_map_of_its_address(model):
    by_address = explain(model, IMAGES, ["layer3", "layer4.1"])
    for layers in ([model.layer3, model.layer4[-1]], ["layer3", model.layer4[1]], iter([model.layer3, "layer4.1"])):
        by_module = explain(model, IMAGES, layers)
        assert list(by_module) == ["layer3", "layer4.1"]
        assert all(torch.equal(by_module[address], by_address[address]) for address in by_address)


def test_a_single_module_is_one_layer_although_a_sequential_can_be_iterated(model):
    assert list(explain(model, IMAGES, model.layer4)) == ["layer4"]
    assert list(score(model, [IMAGES], model.layer4, progress=False).rows["layer"].unique()) == ["layer4"]
    assert list(probe(model, IMAGES, model.layer4).activations) == ["layer4"]


def test_a_module_list_stands_for_its_modules():
    blocks = nn.ModuleList(nn.Conv2d(3, 3, 3) for _ in range(3))
    model = Wired(lambda module, images: module.blocks[1](images), blocks=blocks)
    assert to_addresses(model.blocks, model) == ["blocks.0", "blocks.1", "blocks.2"]
    assert to_addresses([model.blocks[1:], "x"], model) == ["blocks.1", "blocks.2", "x"]


def test_a_module_that_the_model_contains_twice_has_its_first_path():
    conv = nn.Conv2d(3, 4, 3)
    model = Wired(lambda module, images: module.b(images).mean((2, 3)), a=conv, b=conv)
    assert list(explain(model, IMAGES, model.b)) == ["a"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (lambda model: copy.deepcopy(model).layer4, "has a Sequential that is not a module of this model"),
        (lambda model: [model.layer4[:1]], "not a slice"),
        (lambda model: model, r"has the model itself \(ResNet\)"),
        (lambda model: ["layer4", 3], "got 3 of type int"),
        (lambda model: None, "got None of type NoneType"),
        (lambda model: model.layer4[0].relu, r"runs several times: layer4\.0\.relu#0 .* or all with 'layer4\.0\.relu#\*'"),
    ],
)
def test_what_cannot_be_a_layer_is_refused_with_the_reason(model, layers, message):
    with pytest.raises(AddressError, match=message):
        explain(model, IMAGES, layers(model))


def _in_a_tuple():
    def run(model, images):
        return model.head(model.block(images)[0].mean((2, 3)))

    return Wired(run, block=Wired(lambda module, x: (module.conv(x), 7), conv=nn.Conv2d(3, 4, 3)), head=nn.Linear(4, 2))


def test_a_key_may_be_left_out_where_a_module_returns_a_single_tensor():
    model = _in_a_tuple()
    for layers in (model.block, "block", "bl*"):
        assert list(explain(model, IMAGES, layers)) == ["block[0]"]


def test_such_a_layer_counts_as_given_by_name():
    model = _in_a_tuple()
    with pytest.raises(AddressError, match="does not depend on layer 'block\\[0\\]'"):
        probe(model, IMAGES, [model.block, "head"][:1], score=lambda output: torch.zeros(2, requires_grad=True) * 1)


# ---- models that take more than images, and methods


def test_forward_runs_a_model_of_several_inputs():
    net = nn.Conv2d(3, 4, 3)
    model = Wired(lambda module, images: module.net(images[0] + images[1]).mean((2, 3)), net=net)

    def forward(module, images):
        return module((images, images.flip(3)))

    assert list_layers(model, IMAGES, forward=forward)["address"].tolist() == ["net"]
    found = probe(model, IMAGES, "net", lambda output: output[:, 0], forward=forward)
    assert torch.equal(found.activations["net"], net(IMAGES + IMAGES.flip(3)))


def test_the_stride_in_a_list_of_layers_follows_the_grid():
    model = Wired(lambda module, x: module.net(x.new_ones(len(x), 15, 4)).mean(1), net=nn.Linear(4, 4))
    strides = list_layers(model, torch.rand(1, 3, 30, 60), grid=(3, 5))["stride"]
    assert strides.tolist() == [10.0]


def test_explain_takes_several_methods(model):
    several = explain(model, IMAGES, ["layer3", "layer4"], method=["edges", "gradcam", "eigencam"])
    pairs = [(layer, method) for layer in ("layer3", "layer4") for method in ("gradcam", "eigencam")]
    assert list(several) == [*pairs, ("input", "edges")]
    for (layer, method), maps in several.items():
        torch.testing.assert_close(maps, explain(model, IMAGES, layer, method)[layer] if layer != "input" else maps)
    assert list(explain(model, IMAGES, "layer4", method=("eigencam",))) == [("layer4", "eigencam")]
    assert list(explain(model, IMAGES, "layer4", method="eigencam")) == ["layer4"]
    with pytest.raises(ExplainerError, match="methods are one or more, each name once; got \\['eigencam', 'eigencam'\\]"):
        explain(model, IMAGES, "layer4", method=["eigencam", "eigencam"])


def test_a_module_dict_stands_for_its_modules():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleDict({"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 3)})

        def forward(self, images):
            return self.stages["b"](self.stages["a"](images)).mean((2, 3))

    model = Branches()
    assert list(explain(model, IMAGES, model.stages)) == ["stages.a", "stages.b"]


def test_functions_and_exported_programs_have_no_layers():
    program = torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 3)), (IMAGES,))
    for model in (program, lambda images: images.mean((2, 3))):
        for find in (list_layers, lambda model, images: probe(model, images, "0")):
            with pytest.raises(ModelError, match=r"a model with layers is a torch.nn.Module, got a "):
                find(model, IMAGES)
