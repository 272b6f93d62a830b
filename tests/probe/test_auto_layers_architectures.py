"""The layers that `layers="auto"` chooses in transformers' models, video networks, detectors and siamese networks."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from tests.wired_model import Wired
from xaieval import explain
from xaieval.errors import AddressError
from xaieval.models import ZeroShot
from xaieval.probe.addresses import trace
from xaieval.probe.auto_layers import choose, shortlist

transformers = pytest.importorskip("transformers")

VIT = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64}
PATCHES = VIT | {"patch_size": 16}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [2] * 4}
HEADS = {"num_attention_heads": [1, 2, 2, 2]}
TEXT = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
ALL = (2, 5, 8, 11)


def _auto(model, *shape, **options):
    return list(explain(model.eval(), torch.rand(*(shape or (2, 3, 64, 64))), "auto", **options))


def _build(name, config, **settings):
    settings = settings | {"num_labels": 3}
    return getattr(transformers, name)(getattr(transformers, config)(**settings))


@pytest.mark.parametrize(
    ("name", "config", "settings", "row", "which"),
    [
        ("ViTForImageClassification", "ViTConfig", VIT, "vit.layers.{}", (2, 5, 8, 10)),
        ("Dinov2ForImageClassification", "Dinov2Config", PATCHES, "dinov2.encoder.layer.{}", ALL),
        ("BeitForImageClassification", "BeitConfig", VIT, "beit.layers.{}", ALL),
        ("Data2VecVisionForImageClassification", "Data2VecVisionConfig", VIT, "data2vec_vision.encoder.layer.{}[0]", ALL),
        ("CLIPForImageClassification", "CLIPConfig", {"vision_config": PATCHES}, "vision_model.encoder.layers.{}", ALL),
        ("SiglipForImageClassification", "SiglipConfig", {"vision_config": PATCHES}, "vision_model.encoder.layers.{}", ALL),
    ],
)
def test_blocks_of_a_plain_transformer_whose_encoder_returns_the_last_state(name, config, settings, row, which):
    assert _auto(_build(name, config, **settings)) == [row.format(block) for block in which]


def test_the_vision_tower_of_a_zero_shot_classifier():
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=PATCHES, text_config=TEXT | {"max_position_embeddings": 8, "eos_token_id": 1}, projection_dim=8
        )
    )
    model = ZeroShot(clip.eval(), ["a", "b"], torch.tensor([[2, 3, 1], [4, 5, 1]]))
    # Only the class token of the last block is read.
    assert _auto(model) == [f"model.vision_model.encoder.layers.{block}" for block in (2, 5, 8, 10)]


@pytest.mark.parametrize(
    ("name", "config", "settings", "row"),
    [
        ("PvtForImageClassification", "PvtConfig", HEADS | {"image_size": 128}, "pvt.encoder.block.{}.1[0]"),
        ("PoolFormerForImageClassification", "PoolFormerConfig", {}, "poolformer.encoder.block.{}.1[0]"),
        ("SegformerForImageClassification", "SegformerConfig", HEADS, "segformer.stages.{}"),
        ("RegNetForImageClassification", "RegNetConfig", {"embedding_size": 8, "groups_width": 8}, "regnet.encoder.stages.{}"),
    ],
)
def test_the_last_module_of_each_size_that_runs(name, config, settings, row):
    settings = STAGES | settings
    size = settings.get("image_size", 64)
    traced = trace(_build(name, config, **settings).eval(), torch.rand(2, 3, size, size))
    assert [layer.address for layer in choose(shortlist(traced))] == [row.format(stage) for stage in range(4)]


def test_a_layer_inside_a_block_that_downsamples_is_no_stage():
    model = _build("MobileNetV2ForImageClassification", "MobileNetV2Config")
    assert _auto(model, 2, 3, 128, 128) == [f"mobilenet_v2.{name}" for name in ("layer.1", "layer.4", "layer.11", "conv_1x1")]


def _backbone():
    stages = [f"stage{stage}" for stage in (1, 2, 3, 4)]
    settings = {"embed_dim": 12, "depths": [1] * 4, "num_heads": [1, 2, 3, 4], "window_size": 4, "out_features": stages}
    return transformers.SwinConfig(image_size=64, **settings)


def test_a_segmentation_head_that_reads_all_stages_leaves_the_stages():
    settings = STAGES | HEADS | {"decoder_hidden_size": 16}
    model = _build("SegformerForSemanticSegmentation", "SegformerConfig", **settings)
    assert _auto(model, task="segmentation") == [f"segformer.stages.{stage}" for stage in range(4)]


def test_the_levels_of_a_pixel_decoder():
    widths = ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward")
    layers = {"encoder_layers": 1, "decoder_layers": 4, "num_attention_heads": 2, "num_queries": 10, "num_labels": 3}
    config = transformers.Mask2FormerConfig(backbone_config=_backbone(), **dict.fromkeys(widths, 32), **layers)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    layers = _auto(model, 2, 3, 128, 128, output=lambda output: output.class_queries_logits.mean(1))
    assert layers == [f"model.pixel_level_module.decoder[multi_scale_features][{level}]" for level in (0, 1, 2)]


# ---- video and volumes


@pytest.mark.parametrize(
    "name", ["r3d_18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mc3_18", "r2plus1d_18"))]
)
def test_stages_of_video_networks(name):
    model = getattr(torchvision.models.video, name)(num_classes=3)
    assert _auto(model, 1, 3, 8, 32, 32) == ["layer1", "layer2", "layer3", "layer4"]


def test_stages_of_a_video_transformer_with_channels_last():
    assert _auto(torchvision.models.video.swin3d_t(num_classes=3), 1, 3, 8, 64, 64) == [f"features.{i}" for i in (0, 2, 4, 6)]


@pytest.mark.parametrize("strides", [(1, 2, 2), (2, 2, 1)])
def test_a_volume_whose_slices_lie_further_apart(strides):
    shape = [4 * stride * stride for stride in strides]
    blocks = [nn.Sequential(nn.Conv3d(a, b, 3, strides, 1), nn.ReLU()) for a, b in ((1, 4), (4, 8))]
    model = nn.Sequential(nn.Sequential(*blocks), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    assert _auto(model, 2, 1, *shape) == ["0.0", "0.1"]


# ---- a detector wired as YOLOv8: numbered modules, a neck that fuses three sizes, a head with DFL


def _conv(given, gives, size=3, stride=1):
    return nn.Sequential(nn.Conv2d(given, gives, size, stride, size // 2), nn.SiLU())


class _Split(nn.Module):
    """A C2f block."""

    def __init__(self, given, gives):
        super().__init__()
        self.cv1, self.cv2 = _conv(given, gives, 1), _conv(gives + gives // 2, gives, 1)
        self.m = nn.ModuleList([_conv(gives // 2, gives // 2)])

    def forward(self, images):
        parts = list(self.cv1(images).chunk(2, dim=1))
        return self.cv2(torch.cat([*parts, self.m[0](parts[-1])], dim=1))


class _Detect(nn.Module):
    """Boxes as distributions over 16 distances, and classes, at each of three levels."""

    def __init__(self, classes, channels):
        super().__init__()
        self.cv2 = nn.ModuleList(nn.Sequential(_conv(c, 16), nn.Conv2d(16, 64, 1)) for c in channels)
        self.cv3 = nn.ModuleList(nn.Sequential(_conv(c, classes), nn.Conv2d(classes, classes, 1)) for c in channels)
        self.dfl = Wired(lambda module, boxes: module.conv(boxes.unflatten(1, (4, 16)).transpose(2, 1).softmax(1)).squeeze(1))
        self.dfl.conv = nn.Conv2d(16, 1, 1, bias=False)

    def forward(self, levels):
        raw = [torch.cat([b(x), c(x)], dim=1) for b, c, x in zip(self.cv2, self.cv3, levels, strict=True)]
        flat = torch.cat([level.flatten(2) for level in raw], dim=2)
        return torch.cat([self.dfl(flat[:, :64]), flat[:, 64:].sigmoid()], dim=1), raw


def _yolo():
    def run(model, x):
        m = model.model
        p2 = m[1](m[0](x))
        p3 = m[3](m[2](p2))
        p4 = m[5](m[4](p3))
        p5 = m[7](m[6](p4))
        up4 = m[9](torch.cat([m[8](p5), p4], dim=1))
        up3 = m[11](torch.cat([m[10](up4), p3], dim=1))
        down4 = m[13](torch.cat([m[12](up3), up4], dim=1))
        down5 = m[15](torch.cat([m[14](down4), p5], dim=1))
        return m[16]([up3, down4, down5])

    stages = [part for a, b in ((3, 8), (8, 16), (16, 32), (32, 64)) for part in (_conv(a, b, 3, 2), _Split(b, b))]
    neck = [nn.Upsample(scale_factor=2), _Split(96, 32), nn.Upsample(scale_factor=2), _Split(48, 16)]
    neck += [_conv(16, 16, 3, 2), _Split(48, 32), _conv(32, 32, 3, 2), _Split(96, 64)]
    return Wired(run, model=nn.Sequential(*stages, *neck, _Detect(5, (16, 32, 64))))


def test_the_neck_of_a_detector_and_not_its_heads():
    layers = _auto(_yolo(), 2, 3, 64, 96, output=lambda output: output[0][:, 4:].amax(dim=2))
    assert layers == ["model.11", "model.13", "model.15"]


def test_stages_whose_sides_are_numbers_of_tokens_elsewhere():
    # 16 x 16 cells in the first stage and 16 tokens in the third: maps, not weights of attention.
    torch.manual_seed(0)
    pvt = _build("PvtForImageClassification", "PvtConfig", image_size=64, mlp_ratios=[2] * 4, **(STAGES | HEADS))
    assert _auto(pvt)[:3] == [f"pvt.encoder.block.{stage}.1[0]" for stage in (0, 1, 2)]
    widths = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}
    mobile = _build("MobileViTForImageClassification", "MobileViTConfig", image_size=64, **widths)
    assert _auto(mobile, method="eigencam")[:3] == [f"mobilevit.encoder.layer.{stage}" for stage in (1, 2, 3)]


# ---- modules that run several times


def test_a_siamese_network_is_refused_with_the_addresses_to_choose_from():
    net = torchvision.models.resnet18(num_classes=4)
    model = Wired(lambda module, images: module.net(images) + module.net(images.flip(3)), net=net)
    with pytest.raises(AddressError, match="as in a siamese network") as caught:
        _auto(model)
    named = [f"net.layer{stage}#0" for stage in (1, 2, 3, 4)]
    assert str(named) in str(caught.value)
    assert list(explain(model, torch.rand(2, 3, 64, 64), named)) == named
