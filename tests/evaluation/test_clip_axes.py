"""Frames before channels are refused with the way to say it; volumes, and clips with the channels first, are not."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn

import xaieval
from xaieval.errors import DataError


class Recurrent(nn.Module):
    """A 2D network on each frame of `[N, T, C, H, W]`, and attention over the frames."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.weight, self.head = nn.Linear(8, 1), nn.Linear(8, 4)

    def forward(self, clips: Tensor) -> Tensor:
        features = self.net(clips.flatten(0, 1)).mean((2, 3)).unflatten(0, (len(clips), -1))
        return self.head((features * self.weight(features).softmax(1)).sum(1))


def video() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    configuration = transformers.VideoMAEConfig(image_size=32, patch_size=16, num_frames=8, num_labels=5, **sizes)
    return transformers.VideoMAEForVideoClassification(configuration).eval()


def channels_first(model: nn.Module, clips: Tensor) -> object:
    return model(clips.transpose(1, 2))


CLIPS = torch.rand(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [Recurrent, video])
def test_frames_before_channels_are_refused_with_the_way_to_say_it(make):
    for run in (
        lambda model, clips: xaieval.explain(model, clips, method="captum:Saliency"),
        lambda model, clips: xaieval.score(model, [clips], methods="random", progress=False),
        lambda model, clips: xaieval.check(model, [clips]),
    ):
        with pytest.raises(DataError, match=r"images are \[\d, 8, 3, 32, 32\].*3 channels.*axis 2.*clips.transpose\(1, 2\)"):
            run(make(), CLIPS.transpose(1, 2))


@pytest.mark.parametrize("make", [Recurrent, video])
def test_with_the_channels_first_the_map_has_the_frames(make):
    model = make()
    [found] = xaieval.explain(model, CLIPS, method="captum:Saliency", forward=channels_first, target=1).values()
    clips = CLIPS.clone().requires_grad_()
    output = channels_first(model, clips)
    score = (output if isinstance(output, Tensor) else output.logits)[:, 1].sum()
    right = torch.autograd.grad(score, clips)[0].abs().amax(1)
    low, high = right.amin((1, 2, 3), keepdim=True), right.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, (right - low) / (high - low), atol=1e-4, rtol=0)


def test_three_frames_of_three_channels_are_told_apart_by_what_reaches_the_convolution():
    clips = CLIPS[:, :, :3]
    with pytest.raises(DataError, match=r"images are \[1, 3, 3, 32, 32\].*those of axis 2: frames come before channels"):
        xaieval.explain(Recurrent(), clips, method="captum:Saliency")
    found = xaieval.explain(Recurrent(), clips, method="captum:Saliency", forward=channels_first)
    assert found["input"].shape == (2, 3, 32, 32)
    volumes = nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    assert xaieval.explain(volumes, clips, method="captum:Saliency")["input"].shape == (2, 3, 32, 32)


def test_frames_of_one_channel_before_it_are_refused():
    frames = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(frames, nn.Unflatten(0, (-1, 8)), nn.AvgPool2d((8, 1)), nn.Flatten())
    with pytest.raises(DataError, match=r"the 1 channels of the model's first convolution are those of axis 2"):
        xaieval.explain(network, CLIPS[:, :1].transpose(1, 2), method="random")


def test_maps_of_frames_in_the_batch_are_given_back_to_their_clips():
    def frames(output: Tensor) -> Tensor:
        return output.unflatten(0, (-1, 8)).transpose(1, 2)

    model = Recurrent()
    found = xaieval.explain(model, CLIPS, "net.3", method="eigencam", forward=channels_first, layout=frames)["net.3"]
    assert found.shape == (2, 8, 32, 32)


def test_volumes_are_left_alone():
    network = nn.Sequential(nn.Conv3d(2, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    volumes = torch.rand(2, 2, 4, 16, 16)
    assert xaieval.explain(network, volumes, method="captum:Saliency")["input"].shape == (2, 4, 16, 16)


def test_slices_of_one_channel_may_be_the_channels_of_a_2d_network():
    network = nn.Sequential(nn.Flatten(1, 2), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert xaieval.explain(network, torch.rand(2, 1, 6, 16, 16), method="captum:Saliency")["input"].shape == (2, 6, 16, 16)
