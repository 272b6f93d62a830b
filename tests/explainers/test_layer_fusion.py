"""Methods that join layers: the fusion of torch-cam, Poly-CAM as loops, and the rows of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchcam.methods
from torch import Tensor, nn
from torch.nn.functional import interpolate

import xaieval
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS, describe_method
from xaieval.explainers.layer_fusion import Fusion, PolyCAM, fuse

LAYERS = ["first", "second"]
IMAGES = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(5, 6, 4, stride=4), nn.ReLU())
        self.head = nn.Linear(6, 4)
        self.head.weight.data *= 20

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images)).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return Net().eval()


def raw() -> xaieval.Protocol:
    """Maps as they are, but clipped to [0, 1]."""
    return xaieval.Protocol(normalisation="none")


def test_the_fusion_of_maps_is_that_of_torch_cam():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(3, side, side + 1, generator=generator) * scale for side, scale in ((2, 5), (4, 0.1), (9, 1))]
    for one in maps:
        one[:, 0, 0] = 0  # torch-cam scales to [0, 1], the paper divides by the maximum: the same for maps with a zero
    method = torchcam.methods.LayerCAM
    torch.testing.assert_close(fuse(maps), method.fuse_cams([method._normalize(one.clone()) for one in maps]))


def test_a_map_of_zeros_adds_nothing_and_nan_stays_with_its_image():
    maps = torch.rand(2, 4, 4)
    torch.testing.assert_close(fuse([torch.zeros(2, 2, 2), maps]), fuse([maps]))
    broken = torch.rand(2, 2, 2)
    broken[0, 0, 0] = torch.nan
    assert fuse([broken, maps])[0].isnan().all()
    assert fuse([broken, maps])[1].isfinite().all()


@pytest.mark.parametrize("name", ["layercam", "gradcam", "eigencam"])
def test_a_fusion_is_that_of_the_maps_of_the_method(model, name):
    single = xaieval.explain(model, IMAGES, LAYERS, name, protocol=raw())
    joined = xaieval.explain(model, IMAGES, LAYERS, Fusion(METHODS[name], gamma=1.5), protocol=raw())["first+second"]
    # The layer "first" has the size of the images, so that its map is not resized.
    first = single["first"] / single["first"].amax(dim=(1, 2), keepdim=True)
    assert (joined >= torch.tanh(1.5 * first) - 1e-5).all()
    assert (joined > torch.tanh(1.5 * first) + 1e-3).any()
    assert joined.max() <= math.tanh(1.5) + 1e-6


def slow_poly(model: Net, image: Tensor, target: int, sides: str) -> Tensor:
    def confidence(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model(images).softmax(dim=1)[:, target]

    whole, maps = confidence(image[None])[0], {}
    with torch.no_grad():
        first = model.first(image[None])
        activations = {"first": first[0], "second": model.second(first)[0]}
    for layer, channels in activations.items():
        total = torch.zeros(channels.shape[1:])
        for channel in channels:
            span = channel.max() - channel.min()
            small = (channel - channel.min()) / (span if span > 0 else 1)
            mask = interpolate(small[None, None], image.shape[1:], mode="bilinear")[0, 0]
            weight = 0.0
            if "+" in sides:
                weight += confidence((image * mask)[None])[0]
            if "-" in sides:
                weight += whole - confidence((image * (1 - mask))[None])[0]
            total += max(weight, 0) * channel
        maps[layer] = total.clamp(min=0)
    # The cells of "second" are 4 x 4 pixels.
    blocks = maps["first"].reshape(4, 4, 6, 4).mean(dim=(1, 3))
    means = interpolate(blocks[None, None], (16, 24), mode="bilinear")[0, 0]
    refined = torch.where(means > 0, maps["first"] / means, 0)
    return refined * interpolate(maps["second"][None, None], (16, 24), mode="bilinear")[0, 0]


@pytest.mark.parametrize("sides", ["+", "-", "+-"])
def test_poly_cam_equals_loops_over_channels(model, sides):
    with torch.no_grad():
        targets = model(IMAGES).argmax(dim=1).tolist()  # the confidence in it falls where something is masked away
    expected = torch.stack([slow_poly(model, image, target, sides) for image, target in zip(IMAGES, targets, strict=True)])
    spread = expected.amax(dim=(1, 2), keepdim=True)
    assert (spread > 0).all()
    protocol = xaieval.Protocol(normalisation="max")
    for layers in (LAYERS, LAYERS[::-1]):  # from the deepest one in any case
        (maps,) = xaieval.explain(model, IMAGES, layers, PolyCAM(sides), targets, protocol=protocol).values()
        torch.testing.assert_close(maps, expected / spread, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["poly-cam", "layercam-fusion"])
def test_one_layer_alone_is_refused_in_one_line(model, name):
    with pytest.raises(ExplainerError, match=f"^method '{name}' joins several layers, and the run has first alone; name more"):
        xaieval.explain(model, IMAGES, "first", name)


def test_bad_settings_are_refused():
    with pytest.raises(ExplainerError, match=r"sides is one of \+, -, \+-, got '\*'"):
        PolyCAM("*")
    with pytest.raises(ExplainerError, match="a fusion takes a method that explains layers, and a gamma above 0"):
        Fusion(METHODS["rise"])
    with pytest.raises(ExplainerError, match="gamma=0"):
        Fusion(METHODS["gradcam"], gamma=0)


def test_a_run_has_one_row_of_all_layers_after_those_of_single_layers(model):
    methods = ["edges", "layercam-fusion", "layercam"]
    metrics = ["average_drop", "max_sensitivity", "relative_representation_stability"]
    scores = xaieval.score(model, [IMAGES], LAYERS, methods, metrics=metrics, progress=False)
    pairs = [("first", "layercam"), ("second", "layercam"), ("first+second", "layercam-fusion"), ("input", "edges")]
    assert list(scores.summary().index) == pairs
    rows = scores.rows[scores.rows["method"] == "layercam-fusion"]
    assert (rows["status"] == "ok").all()
    assert rows["average_drop"].notna().all()
    assert rows["max_sensitivity"].notna().all()
    assert rows["relative_representation_stability"].isna().all()  # there is no single activation that changes
    joined = xaieval.score(model, [IMAGES], LAYERS, "layercam-fusion", metrics=metrics[:1], progress=False).rows
    np.testing.assert_allclose(rows["average_drop"], joined["average_drop"])


def test_the_settings_of_both_methods_are_in_the_manifest():
    assert describe_method(Fusion(METHODS["score-cam"], gamma=3)) == {
        "method": "score-cam",
        "align_corners": False,
        "normalise_at": "image",
        "wanted": "score",
        "gamma": 3,
    }
    assert describe_method(PolyCAM("-")) == {"sides": "-"}
