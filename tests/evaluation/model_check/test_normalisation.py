"""The wrong normalisation is found by the BatchNorms of a trained network, and by how sure one without them is."""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import xaieval
from xaieval.data import Preprocessing, scenes, ucmerced
from xaieval.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from xaieval.evaluation.model_check.normalisation import known_normalisations, normalisation_of
from xaieval.models import fpn_scenes

ONES = (1.0, 1.0, 1.0)
WAYS = {
    "plain": ((0.0, 0.0, 0.0), ONES),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "bytes": ((0.0, 0.0, 0.0), (1 / 255,) * 3),
}


@cache
def pixels() -> Tensor:
    """Scenes in [0, 1]."""
    prepared = Preprocessing(128, 128, mean=WAYS["plain"][0], std=ONES)
    return next(iter(scenes(prepared, size=16).loader(16)))["image"]


def normalised(way: str) -> Tensor:
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in WAYS[way])
    return (pixels() - mean) / std


def names(model: nn.Module, images: Tensor, **options) -> dict[str, dict]:
    found = xaieval.check(model, [images], **options).findings()
    return {finding.name: dict(finding.evidence) for finding in found}


@pytest.mark.parametrize("way", WAYS)
def test_the_normalisation_of_images_is_recognised(way):
    mean, std = WAYS[way]
    found = normalisation_of(normalised(way))
    torch.testing.assert_close(found.to_pixels(normalised(way)), pixels(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.of_pixels(pixels()), normalised(way), atol=1e-3, rtol=1e-5)
    assert torch.tensor(mean).allclose(torch.tensor(found.mean).expand(3), atol=1e-6)
    assert torch.tensor(std).allclose(torch.tensor(found.std).expand(3), atol=1e-6)


def test_images_without_whole_grey_levels_are_taken_for_the_narrowest_way():
    torch.manual_seed(0)
    assert normalisation_of(torch.rand(2, 3, 16, 16)).std == (1.0,)
    assert normalisation_of(torch.rand(2, 3, 16, 16) * 2 - 1).std == (0.5,)
    assert normalisation_of(torch.randn(2, 3, 16, 16) * 100) is None


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_every_known_way_comes_back(channels):
    torch.manual_seed(0)
    grey = torch.randint(0, 256, (2, channels, 16, 16)) / 255
    for way in known_normalisations(channels):
        torch.testing.assert_close(way.to_pixels(way.of_pixels(grey)), grey, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "half"])
def test_a_trained_network_tells_the_wrong_normalisation(way):
    found = names(fpn_scenes(), normalised(way))
    assert found["wrong_normalisation"]["best"] == "mean 0.5 and std 0.5"
    assert 0.7 < found["wrong_normalisation"]["best_variance_ratio"] < 1.4
    ratio = found["wrong_normalisation"]["variance_ratio"]
    assert ratio > 2 or ratio < 0.5


def in_training(images: Tensor, last: nn.Module) -> nn.Module:
    """A network whose BatchNorm has the statistics of these images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, momentum=None), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4), last
    )
    model(images)
    nn.init.uniform_(model[1].weight, 0.5, 1)
    return model.eval()


def test_another_scale_is_said_though_no_common_normalisation_explains_it():
    caffe = (255 * pixels() - torch.tensor([103.9, 116.8, 123.7]).view(3, 1, 1))[:, :, ::4, ::4]
    model = in_training(caffe.flip(1), nn.Identity())
    evidence = names(model, normalised("imagenet")[:, :, ::4, ::4])["wrong_normalisation"]
    assert evidence["variance_ratio"] < 1 / 30
    assert "wrong_normalisation" not in names(model, caffe.flip(1))
    assert "wrong_normalisation" not in names(model, torch.full((4, 3, 32, 32), 0.5))  # blank


def test_a_network_that_ends_in_a_softmax_is_looked_at_too():
    model = in_training(normalised("half")[:, :, ::4, ::4], nn.Softmax(1))
    assert {*names(model, normalised("plain")[:, :, ::4, ::4])} >= {"probabilities_for_logits", "wrong_normalisation"}


def test_nothing_is_said_of_the_right_normalisation():
    assert not names(fpn_scenes(), normalised("half"))


def test_the_message_names_both_ways_and_the_remedy():
    [text] = xaieval.check(fpn_scenes(), [normalised("imagenet")]).warnings()
    for words in ("mean and std of ImageNet", "mean 0.5 and std 0.5", "mean confidence", "mean= and std= of Preprocessing"):
        assert words in text


def test_blue_before_red_is_found():
    found = names(fpn_scenes(), normalised("half").flip(1))
    if found:  # the scenes are nearly as often blue as red
        assert found["wrong_normalisation"]["best"] == "mean 0.5 and std 0.5, blue first"


def test_statistics_that_fit_no_normalisation_accuse_none():
    torch.manual_seed(0)
    model = fpn_scenes()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(1e-3, 1e3)
    for way in WAYS:
        assert "wrong_normalisation" not in names(model, normalised(way))


class Bright(nn.Module):
    """No BatchNorms. Sure of a class where the images have mean 0 and a spread near 1."""

    def forward(self, images: Tensor) -> Tensor:
        spread = images.flatten(1).std(dim=1)
        near = 6 * torch.exp(-(((spread - 1.0) / 0.25) ** 2))
        return torch.stack([near, torch.ones_like(near), -torch.ones_like(near)], dim=1)


def test_without_batch_norms_a_surer_model_tells_it():
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (32, 3, 16, 16)) / 255  # a spread of 0.29, of 1.28 with ImageNet's std, 0.58 with 0.5
    sure = (noise - 0.45) / 0.29

    class Sure(Bright):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images * 0.78)

    found = names(Sure(), noise)
    assert found["wrong_normalisation"]["best"] == "the mean and std of ImageNet"
    assert "wrong_normalisation" not in names(Bright(), sure)


def test_few_images_without_batch_norms_prove_nothing():
    torch.manual_seed(0)
    assert "wrong_normalisation" not in names(Bright(), torch.rand(8, 3, 16, 16))


@pytest.mark.slow
def test_real_weights_and_real_photographs(imagenet_weights, ucmerced_folder):
    model = timm.create_model("mobilenetv2_100", pad_type="same")
    model.load_state_dict(load_file(imagenet_weights))
    for way, (mean, std) in WAYS.items():
        data = ucmerced(ucmerced_folder, Preprocessing(128, 146, mean=mean, std=std)).spread(16)
        found = names(model, next(iter(data.loader(16)))["image"])
        if way == "half":
            assert not found
        else:
            assert found["wrong_normalisation"]["best"] == "mean 0.5 and std 0.5"
