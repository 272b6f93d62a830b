"""Video networks of torchvision and transformers: which way up, and in time, the maps of the layers that `auto` takes are."""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

import xaieval
from xaieval.inference.borrowing import borrow
from xaieval.inference.tasks import Classification, predicted_score
from xaieval.probe.fits import best_fit
from xaieval.probe.hooks import locate, run
from xaieval.probe.layouts import Layout

OCTANTS = list(product((0, 1), repeat=3))
SMALL = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, "num_labels": 5}


def frames_first(model: nn.Module, clips: Tensor) -> Any:
    return model(clips.transpose(1, 2))


def timesformer() -> nn.Module:
    choices = transformers.TimesformerConfig(image_size=48, patch_size=8, num_frames=4, num_hidden_layers=3, **SMALL)
    return transformers.TimesformerForVideoClassification(choices)


def vivit() -> nn.Module:
    choices = transformers.VivitConfig(image_size=48, num_frames=8, tubelet_size=[2, 8, 8], num_hidden_layers=3, **SMALL)
    return transformers.VivitForVideoClassification(choices)


def videomae() -> nn.Module:
    choices = transformers.VideoMAEConfig(image_size=48, patch_size=8, num_frames=8, num_hidden_layers=2, **SMALL)
    return transformers.VideoMAEForVideoClassification(choices)


def mvit() -> nn.Module:
    """The first version's blocks, in small: a stage ends with the block before the one that pools."""
    widths, pooled = [(1, 12, 24), (2, 24, 24), (2, 24, 24), (2, 24, 24)], [[], [1, 2, 2], [], []]
    blocks = [
        MSBlockConfig(heads, into, out, [3, 3, 3] if pool else [], [3, 3, 3], pool, [1, 2, 2])
        for (heads, into, out), pool in zip(widths, pooled, strict=True)
    ]
    options = {"residual_pool": False, "residual_with_cls_embed": True, "rel_pos_embed": False, "proj_after_attn": False}
    return MViT(spatial_size=(32, 48), temporal_size=8, block_setting=blocks, num_classes=5, **options)


CASES = {
    # place by place behind a class token, where transformers' other models go frame by frame
    "TimeSformer": (
        timesformer,
        frames_first,
        (4, 48, 48),
        {"timesformer.encoder.layer.1[0]": Layout("N h*w*d C", (4, 6, 6), 1)},
    ),
    "ViViT": (vivit, frames_first, (8, 48, 48), {"vivit.layers.1": Layout("tokens", (4, 6, 6), 1)}),
    "VideoMAE": (videomae, frames_first, (8, 48, 48), {"videomae.encoder.layer.1": Layout("tokens", (4, 6, 6), 0)}),
    "MViT": (
        mvit,
        None,
        (8, 32, 48),
        {"blocks.0[0]": Layout("tokens", (4, 8, 12), 1), "blocks.2[0]": Layout("tokens", (4, 4, 6), 1)},
    ),
}


def planted(size: tuple[int, ...]) -> Tensor:
    """A clip of faint noise, and copies with a textured cube in the middle of each octant, `[9, 3, T, H, W]`."""
    generator = torch.Generator().manual_seed(1)
    clips = 0.1 * torch.randn(1, 3, *size, generator=generator).repeat(9, 1, 1, 1, 1)
    texture = 1 + 2 * torch.randn(3, *(max(1, side // 4) for side in size), generator=generator)
    for clip, octant in zip(clips[1:], OCTANTS, strict=True):
        where = [
            slice(s * (1 + 4 * late) // 8, s * (1 + 4 * late) // 8 + max(1, s // 4))
            for s, late in zip(size, octant, strict=True)
        ]
        clip[:, *where] += texture
    return clips


def leans(activation: Tensor) -> list[float]:
    """For time, height and width: how much more the later half changes if the cube is in it, than if it is in the earlier."""
    moved = (activation[1:] - activation[:1]).square().sum(dim=1)
    halves = nn.functional.adaptive_avg_pool3d(moved[:, None], 2)[:, 0].log()
    late = torch.tensor(OCTANTS, dtype=torch.bool)
    found = []
    for axis in range(3):
        lean = halves.movedim(1 + axis, -1).flatten(1, 2).mean(dim=1) @ torch.tensor([-1.0, 1.0])
        found.append(float(lean[late[:, axis]].mean() - lean[~late[:, axis]].mean()))
    return found


@pytest.mark.parametrize("name", CASES)
def test_maps_of_video_networks_are_the_right_way_up_in_time_too(name):
    make, forward, size, expected = CASES[name]
    torch.manual_seed(0)
    model, clips = make().eval(), planted(size)
    call = None if forward is None else partial(forward, model)
    with borrow(model):
        located = locate(model, clips[:2], ["auto"], score=partial(predicted_score, Classification()), forward=call)
        with torch.no_grad():
            outputs = run(model, clips, located, differentiable=False, forward=call).activations
    layouts = {at.layer.address: at.layout for at in located}
    assert expected.items() <= layouts.items()
    for address, activation in outputs.items():
        assert min(leans(activation)) > 0, (address, leans(activation))
    maps = xaieval.explain(model, clips[:2], list(expected), forward=forward)
    assert all(one.shape == (2, *size) for one in maps.values())


@pytest.mark.parametrize("method", ["ablation-cam", "recipro-cam"])
def test_methods_that_change_outputs_take_tokens_place_by_place(method):
    class Frames(nn.Module):
        """The mean of each place of each frame, as tokens in the one order or the other."""

        def __init__(self, order: tuple[int, ...]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.order, self.patches, self.mix, self.head = (
                order,
                nn.Conv3d(3, 6, (1, 8, 8), (1, 8, 8)),
                nn.Linear(6, 6),
                nn.Linear(6, 4),
            )

        def forward(self, clips: Tensor) -> Tensor:
            return self.head(self.mix(self.patches(clips).permute(self.order).flatten(1, 3)).tanh().mean(dim=1))

    clips = planted((4, 32, 48))[:2]
    found = [xaieval.explain(Frames(order), clips, "mix", method)["mix"] for order in ((0, 2, 3, 4, 1), (0, 3, 4, 2, 1))]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)


def as_maps(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].unflatten(1, (6, 6, 4)).permute(0, 4, 3, 1, 2)


def test_tokens_place_by_place_become_the_maps_that_they_are():
    tokens = torch.randn(2, 1 + 6 * 6 * 4, 5)
    layout = Layout("N h*w*d C", (4, 6, 6), 1)
    assert torch.equal(layout.to_maps(tokens), as_maps(tokens))
    cells = torch.arange(4 * 2 * 3)
    grid = cells.view(4, 2, 3)
    by_hand = [int(grid[t, y, x]) for y in range(2) for x in range(3) for t in range(4)]
    assert Layout("N h*w*d C", (4, 2, 3)).in_token_order(cells).tolist() == by_hand
    assert torch.equal(Layout("tokens", (4, 2, 3)).in_token_order(cells), cells)


@pytest.mark.parametrize("kind", ["tokens", "N h*w*d C"])
def test_the_order_of_tokens_is_that_in_which_they_follow_the_patch(kind):
    """Of 8 positions of a patch, each changes the tokens that overlap it, in the one order or in the other."""
    size, grid = (8, 32, 48), (4, 4, 6)
    positions = [(2, 6, 3), (5, 1, 6), (7, 4, 1), (0, 3, 4), (4, 0, 7), (1, 7, 2), (6, 2, 0), (3, 5, 5)]
    shares = tuple(tuple((at / 8, (at + 1) / 8) for at in position) for position in positions)
    change = torch.full((8, *grid), 1e-3)
    for row, position in zip(change, positions, strict=True):
        row[tuple(math.floor(at / 8 * side) for at, side in zip(position, grid, strict=True))] = 1
    tokens = Layout(kind, grid).in_token_order(change.flatten(1))
    noise = 1e-3 * torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
    fit = best_fit({"tokens": torch.cat([noise, tokens], dim=1)}, (2, 98, 24), size, shares)
    assert fit is not None
    assert fit.layout == Layout(kind, grid, 2)
    assert fit.follows
