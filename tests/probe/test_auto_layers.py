"""The layers that `layers="auto"` chooses, in real networks and in small unusual ones."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.wired_model import Wired
from xaieval import explain, score
from xaieval.cli import main
from xaieval.errors import AddressError
from xaieval.evaluation.scores import Scores
from xaieval.models import fpn_scenes
from xaieval.probe.addresses import Layer, expand, trace
from xaieval.probe.auto_layers import choose, evenly, shortlist
from xaieval.probe.hooks import locate, probe

BLOCKS = ["blocks.2", "blocks.5", "blocks.8", "blocks.10"]


def _chosen(model, size=(64, 96), silent=()):
    traced = trace(model.eval(), torch.rand(1, 3, *size))
    return [layer.address for layer in choose(shortlist(traced), silent)]


def _auto(model, size=(64, 64)):
    """The layers that a run would use."""
    return list(explain(model, torch.rand(2, 3, *size), "auto"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"]),
        ("resnet26d", ["layer1", "layer2", "layer3", "layer4"]),  # whose stem is a block of its own size
        ("mobilenetv2_050", ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]),
        ("mobilenetv4_conv_small", ["blocks.0", "blocks.1", "blocks.2", "blocks.4"]),
        ("convnext_atto", ["stages.0", "stages.1", "stages.2", "stages.3"]),
        ("regnetx_002", ["s1", "s2", "s3", "s4"]),
    ],
)
def test_the_last_block_before_each_change_of_size(name, expected):
    assert _chosen(timm.create_model(name)) == expected


def test_the_same_of_torchvision():
    mobilenet = torchvision.models.mobilenet_v2(weights=None)
    assert _chosen(mobilenet) == ["features.3", "features.6", "features.13", "features.18"]


class _HandsOn(nn.Module):
    """A stage of two blocks, as in EfficientViM: it returns its own maps, and smaller ones for the next stage."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.down = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2))

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x * 2, self.down(x)


class _SmallerOnes(nn.Module):
    """A classifier that goes on with the smaller maps of each stage, so that the others lead nowhere."""

    def __init__(self):
        super().__init__()
        self.stem, self.stages = nn.Conv2d(3, 4, 4, 4), nn.ModuleList(_HandsOn() for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            _, x = stage(x)
        return x.mean((2, 3))


def test_the_last_block_of_a_stage_whose_own_maps_lead_nowhere():
    torch.manual_seed(0)
    assert _auto(_SmallerOnes(), (128, 128)) == [f"stages.{stage}.blocks.1" for stage in range(3)]


def test_a_plain_sequence_of_layers_is_cut_where_the_size_changes():
    conv = nn.Sequential(
        *[nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()],
        *[nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)],
    )
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert _chosen(model, (16, 24)) == ["0.1", "0.4", "0.7", "0.8"]


def test_the_coarsest_sizes_are_taken_where_there_are_many():
    deep = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, padding=1), nn.ReLU()) for _ in range(6)])
    model = nn.Sequential(deep, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert _chosen(model, (128, 128)) == ["0.2", "0.3", "0.4", "0.5"]


def test_windows_with_channels_last():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=2)
    assert _chosen(model, (64, 64)) == ["layers.0", "layers.1", "layers.2", "layers.3"]


def test_a_pyramid_is_taken_with_all_its_levels():
    assert _auto(fpn_scenes()) == ["fpn[p2]", "fpn[p3]", "fpn[p4]", "fpn[p5]"]


# ---- class tokens


def test_blocks_whose_cells_nobody_reads_are_left_out():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    assert _auto(model) == BLOCKS
    # The reason, by hand: of the last block only the class token is read.
    gradients = probe(model, torch.rand(1, 3, 64, 64), ["blocks.10", "blocks.11"], score=lambda logits: logits[:, 0]).gradients
    assert gradients["blocks.10"].any()
    assert not gradients["blocks.11"].any()


def test_the_last_block_counts_where_all_tokens_are_read():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, global_pool="avg")
    assert _auto(model) == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]


def test_distilled_models_and_serial_blocks():
    assert _auto(timm.create_model("deit_tiny_distilled_patch16_224", img_size=64)) == BLOCKS
    coat = timm.create_model("coat_lite_tiny", img_size=64)
    assert _auto(coat) == ["serial_blocks1.1", "serial_blocks2.1", "serial_blocks3.1", "serial_blocks4.0"]


def test_a_head_of_zeros_tells_nothing_of_blocks():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    nn.init.zeros_(model.head.weight)
    assert _auto(model) == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]


# ---- models made to be awkward


def _block(into=3, out=3, stride=1):
    return nn.Sequential(nn.Conv2d(into, out, 3, stride=stride, padding=1), nn.ReLU())


def test_a_backbone_that_returns_stages_of_which_the_last_is_read():
    backbone = timm.create_model("resnet18", features_only=True)
    model = Wired(lambda model, images: model.backbone(images)[-1].mean((2, 3)), backbone=backbone)
    # The other outputs lead nowhere, so that the stages are taken where the network goes on.
    assert _auto(model, (64, 96)) == [f"backbone.layer{i}" for i in (1, 2, 3, 4)]


def test_a_backbone_of_which_all_stages_are_read():
    backbone = timm.create_model("resnet18", features_only=True)
    model = Wired(lambda model, x: torch.cat([m.mean((2, 3)) for m in model.backbone(x)], 1), backbone=backbone)
    assert _auto(model) == [f"backbone[{i}]" for i in range(5)]


def test_the_outputs_of_the_model_itself_have_addresses():
    model = timm.create_model("resnet18", features_only=True).eval()
    images = torch.rand(2, 3, 64, 64)
    maps = explain(model, images, ["[3]", "[4]"], output=lambda out: sum(one.mean((2, 3))[:, :64] for one in out))
    assert list(maps) == ["[3]", "[4]"]
    assert _chosen(model) == [f"[{i}]" for i in range(5)]


def test_the_image_itself_and_single_cells_are_no_levels():
    def pyramid(model, images):
        return {"image": images, "big": model.a(images), "small": model.b(images), "cell": images.mean((2, 3), keepdim=True)}

    inner = Wired(pyramid, a=_block(3, 4, 2), b=_block(3, 4, 4))
    model = Wired(lambda model, images: sum(one.mean() for one in model.inner(images).values())[None, None], inner=inner)
    assert _chosen(model, (16, 16)) == ["inner[big]", "inner[small]"]


def test_a_pyramid_that_is_handed_on_keeps_its_innermost_name():
    fpn = Wired(lambda model, x: [model.a(x), model.a(x)[..., ::2, ::2]], a=_block(3, 4, 2))
    outer = Wired(lambda model, x: model.fpn(x), fpn=fpn)
    assert _chosen(Wired(lambda model, x: model.outer(x)[0].mean((2, 3)), outer=outer), (16, 16)) == [
        "outer.fpn[0]",
        "outer.fpn[1]",
    ]


def test_the_prediction_of_a_segmentation_network_is_no_layer():
    head = Wired(lambda model, x: model.conv(x), conv=nn.Conv2d(4, 7, 1))
    up = nn.Upsample(scale_factor=4)
    model = Wired(lambda model, x: up(model.head(model.b(model.a(x)))), a=_block(3, 4, 2), b=_block(4, 4, 2), head=head)
    assert _chosen(model, (16, 16)) == ["a", "b"]


def test_modules_that_run_several_times_are_passed_over():
    model = Wired(lambda m, x: m.b(m.a(m.shared(m.shared(x)))).mean((2, 3)), shared=_block(), a=_block(3, 4), b=_block(4, 4, 2))
    assert _chosen(model, (16, 16)) == ["a", "b"]


def test_a_model_without_maps_is_an_error_that_says_what_to_do():
    with pytest.raises(
        AddressError, match=r"layers='auto' found no layer .* name the layers: xaieval\.list_layers\(model, images\) lists all"
    ):
        score(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), [torch.rand(2, 3, 4, 4)], "auto", progress=False)


# ---- as part of a run


def test_auto_stands_beside_other_addresses_and_each_layer_is_there_once():
    model = torchvision.models.resnet18(num_classes=5)
    maps = explain(model, torch.rand(2, 3, 64, 64), ["conv1", "auto", "layer4"])
    assert list(maps) == ["conv1", "layer1", "layer2", "layer3", "layer4"]


def test_the_manifest_has_the_layers_that_were_taken_and_the_rows_are_theirs():
    torch.manual_seed(0)
    model, images = torchvision.models.resnet18(num_classes=5), torch.rand(2, 3, 64, 64)
    found = score(model, [images], "auto", progress=False)
    named = score(model, [images], [f"layer{i}" for i in (1, 2, 3, 4)], progress=False)
    assert found.manifest["run"]["layers"] == [f"layer{i}" for i in (1, 2, 3, 4)]
    assert found.rows.equals(named.rows)


@pytest.mark.slow
def test_the_command_line_takes_auto(tmp_path):
    main(["score", "--layers", "auto", "--max-images", "4", "--out", str(tmp_path), "--no-progress"])
    assert set(Scores.load(tmp_path).rows["layer"]) == {"fpn[p2]", "fpn[p3]", "fpn[p4]", "fpn[p5]"}


def test_without_a_score_nothing_is_left_out():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    assert [at.address for at in locate(model, torch.rand(1, 3, 64, 64), ["auto"])][-1] == "blocks.11"


def test_the_choice_holds_addresses_that_can_be_named():
    traced = trace(timm.create_model("resnet18").eval(), torch.rand(1, 3, 64, 64))
    chosen = choose(shortlist(traced))
    assert expand([layer.address for layer in chosen], traced) == chosen


@given(st.integers(1, 60), st.integers(1, 8))
def test_an_even_choice_ends_with_the_last_and_has_no_gaps_that_differ_by_more_than_one(count, most):
    row = [Layer(str(i), str(i), (), 0, "Block", (1, 4, 2, 2), 1) for i in range(count)]
    taken = [int(layer.address) for layer in evenly(row, most)]
    gaps = [second - first for first, second in zip([-1, *taken], taken, strict=False)]
    assert taken[-1] == count - 1
    assert len(taken) == min(count, most)
    assert max(gaps) - min(gaps) <= 1
