"""Stages of a backbone: their paths, their outputs, copies of them, and hooks on them."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from tests.models.attended import shuffled
from xaieval.errors import ModelError
from xaieval.models.branch_stages import (
    check_features,
    example_image,
    hooked,
    module_path,
    outputs_of,
    resized,
    stage_between,
)


class Chain(nn.Module):
    """Three modules in a row; gives the outputs of the last two, as an extractor does."""

    def __init__(self, first=None, second=None, third=None):
        super().__init__()
        self.first = first or nn.Conv2d(3, 4, 3, padding=1)
        self.second = second or nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.third = third or nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, images):
        middle = self.second(self.first(images))
        return [middle, self.third(middle)]


def _images():
    return torch.rand(1, 3, 8, 8)


# Trials


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (None, (1, 3, 160, 160)),
        ({"in_chans": 5, "drop_rate": 0.1}, (1, 5, 160, 160)),
        ({"img_size": 64}, (1, 3, 64, 64)),
        ({"img_size": (96, 64)}, (1, 3, 96, 64)),
    ],
)
def test_the_example_image_suits_the_backbone(arguments, shape):
    backbone = timm.create_model("test_resnet").double()
    image = example_image(backbone, arguments)
    assert image.shape == shape
    assert image.dtype == torch.float64
    assert -1 <= image.min() < -0.9 < 0.9 < image.max() <= 1
    assert torch.equal(image, example_image(backbone, arguments))


def test_a_trial_leaves_the_seed_and_the_modes_alone():
    model = Chain(second=nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Dropout()))
    model.second[1].eval()
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    images = torch.ones(1, 3, 8, 8)
    outputs_of(model, ["first"], images), check_features(model, "chain", ["second"], images)
    stage_between(model, "first", "third", images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, True, True, False, True, True]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("backbone", "options", "path", "found"),
    [
        ("test_resnet", {}, "layer3", "layer3"),
        ("mobilenetv2_035", {"features_only": True}, "blocks.4", "blocks.4"),
        ("convnext_atto", {"features_only": True}, "stages.2", "stages_2"),
        ("test_resnet", {"features_only": True, "feature_cls": "getter"}, "layer3", "model.layer3"),
        ("test_resnet", {}, "layer9", "layer9"),
    ],
)
def test_a_module_is_found_in_the_extractors_of_timm(backbone, options, path, found):
    assert module_path(timm.create_model(backbone, **options), path) == found


def test_outputs_are_those_of_each_call_before_others_change_them():
    convolution = nn.Conv2d(3, 3, 1)
    model, images = nn.Sequential(convolution, nn.ReLU(inplace=True), convolution), _images()
    found = outputs_of(model, ["0", "missing"], images)
    with torch.no_grad():
        first = convolution(images)
        assert_close(found["0"], [first, convolution(first.relu())])
    assert found["missing"] == []


def test_hooks_are_gone_after_a_run_that_fails():
    module = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        hooked(module, torch.rand(1, 3), {module: lambda *_: None})
    assert not module._forward_hooks
    assert torch.equal(hooked(module, torch.rand(1, 2), {module: lambda *_: torch.ones(1)}), torch.ones(1))


def test_features_that_are_outputs_of_modules_pass():
    check_features(Chain(), "chain", ["second", "third"], _images())
    check_features(Chain(), "chain", ["third"], _images())


class Permuted(Chain):
    def forward(self, images):
        return [maps.permute(0, 2, 3, 1) for maps in super().forward(images)]


class Normed(Chain):
    def forward(self, images):
        return [maps / maps.norm() for maps in super().forward(images)]


class Twice(Chain):
    def forward(self, images):
        middle = self.second(self.first(images))
        return [middle, self.third(self.third(middle))]


class Tokens(nn.Module):
    def forward(self, images):
        return images.flatten(2)


def test_features_may_be_the_outputs_in_another_order_of_axes():
    check_features(Permuted(), "permuted", ["second", "third"], _images())


@pytest.mark.parametrize(
    ("model", "paths"),
    [
        (Normed(), ["second", "third"]),
        (Twice(), ["second", "third"]),
        (Chain(), ["first", "third"]),
        (Chain(), ["second", "fourth"]),
        (Chain(third=Tokens()), ["second", "third"]),
    ],
)
def test_features_that_a_hook_cannot_change_are_refused(model, paths):
    message = (
        f"attention cannot act within backbone 'mine', whose features are not the outputs of {', '.join(paths)}; "
        "take another place, such as 'features'"
    )
    with pytest.raises(ModelError, match=re.escape(message)):
        check_features(model, "mine", paths, _images())


# Copies


def test_a_copied_stage_has_stride_1_and_its_own_weights():
    second = nn.Sequential(
        nn.AvgPool2d(2, 2, ceil_mode=True), nn.MaxPool2d((2, 2), (2, 2)), nn.MaxPool2d(3, stride=2, padding=1)
    )
    third = nn.Conv2d(4, 6, 3, stride=(2, 2), padding=1)
    model, maps = Chain(second=second, third=third), torch.rand(1, 4, 16, 16)
    stage = stage_between(model, "first", "third", torch.rand(1, 3, 32, 32))
    expected = functional.conv2d(functional.max_pool2d(maps, 3, stride=1, padding=1), third.weight, third.bias, padding=1)
    assert torch.equal(stage(maps), expected)
    nn.init.zeros_(next(stage.parameters()))
    assert third.weight.abs().sum() > 0
    assert third.stride == (2, 2)
    assert second[0].kernel_size == 2


def test_a_stage_with_even_kernels_loses_pixels():
    stage = stage_between(Chain(second=nn.Conv2d(4, 6, 2, stride=2)), "first", "third", _images())
    assert stage(torch.rand(1, 4, 8, 8)).shape == (1, 6, 7, 7)


class Skipping(Chain):
    def forward(self, images):
        first = self.first(images)
        return [first, self.second(first) + 1]


class Backwards(Chain):
    def forward(self, images):
        return [self.second(self.third(self.first(images)))]


class Moved(nn.Module):
    """Space to channels: halves the maps without a stride."""

    def forward(self, maps):
        return functional.pixel_unshuffle(maps, 2)[:, :6]


SEQUENCE, STRIDE = "they do not follow each other in a sequence", "they cannot run with stride 1 on maps [N, C, H, W]"


@pytest.mark.parametrize(
    ("model", "before", "last", "reason"),
    [
        (Skipping(), "first", "third", SEQUENCE),  # the last one never runs
        (Backwards(first=nn.Conv2d(3, 6, 1), second=nn.Conv2d(6, 6, 3)), "first", "second", SEQUENCE),
        (Chain(), "first", "fourth", SEQUENCE),
        (Chain(), "zeroth", "third", SEQUENCE),
        (Chain(first=nn.Sequential(nn.Conv2d(3, 4, 1))), "first.0", "third", SEQUENCE),
        (Chain(), "third", "second", SEQUENCE),
        (Chain(second=Moved()), "first", "third", STRIDE),
    ],
)
def test_stages_that_cannot_be_copied_are_refused(model, before, last, reason):
    message = f"the modules after '{before}' up to '{last}' cannot be the stage of a branch: {reason}; take branch='block'"
    with pytest.raises(ModelError, match=re.escape(message)):
        stage_between(model, before, last, _images())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["densenet121", "regnetx_002", "efficientnet_b0", "resnet26d", "repvit_m0_9"])
@torch.no_grad()
def test_stages_of_common_backbones_keep_the_size_of_maps(backbone):
    model = shuffled(timm.create_model(backbone, features_only=True, out_indices=(-3, -2, -1))).eval()
    paths = [module_path(model, path) for path in model.feature_info.module_name()]
    image = example_image(model)
    check_features(model, backbone, paths, image)
    features = model(image)
    for before, last, maps, expected in zip(paths, paths[1:], features, features[1:], strict=False):
        found = stage_between(model, before, last, image).eval()(maps)
        assert found.shape == (1, expected.shape[1], *maps.shape[2:])


def test_maps_are_resized_only_if_they_have_to_be():
    maps = torch.rand(2, 1, 3, 5)
    assert resized(maps, torch.rand(2, 7, 3, 5)) is maps
    large = resized(torch.tensor([[[[0.0, 1.0]]]]), torch.rand(1, 7, 1, 4))
    assert_close(large, torch.tensor([[[[0.0, 0.25, 0.75, 1.0]]]]))
