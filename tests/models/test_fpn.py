"""Pyramids on trained backbones: whose weights they take, and which they refuse."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from tests.models.attended import shuffled, some_images
from xaieval.errors import ModelError, WeightsError
from xaieval.models import FAL, ABNClassifier, FPNClassifier
from xaieval.models.fpn import stages


def _source(weights, kind, tmp_path):
    if kind == "mapping":
        return weights
    save_file(weights, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors" if kind == "path" else str(tmp_path / "weights.safetensors")


def _body(plain):
    """The weights but for the classifier's."""
    classifier = plain.pretrained_cfg["classifier"]
    return {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith(f"{classifier}.")}


@pytest.mark.parametrize("make", [FPNClassifier, FAL])
@pytest.mark.parametrize(
    ("backbone", "kind", "head"),
    [
        ("test_resnet", "mapping", "mean"),
        ("test_resnet", "path", "concat"),
        ("test_resnet", "text", "mean"),
        ("convnext_atto", "mapping", "concat"),  # the names of its feature extractor are others
        ("convnext_atto", "path", "mean"),
        ("test_mambaout", "mapping", "mean"),
    ],
)
@torch.no_grad()
def test_a_pyramid_on_a_trained_backbone_has_its_features_and_a_head_of_zeros(make, backbone, kind, head, tmp_path):
    plain, images = shuffled(timm.create_model(backbone, num_classes=7)).eval(), some_images()
    weights = _body(plain) if kind == "mapping" else timm.create_model(backbone).state_dict() | _body(plain)
    model = make(backbone, 10, channels=16, head=head, pretrained=_source(weights, kind, tmp_path)).eval()
    expected = plain.forward_intermediates(images, intermediates_only=True)[-4:]
    for ours, theirs in zip(stages(model.backbone, images).values(), expected, strict=True):
        assert_close(ours, theirs)
    assert (model(images) == 0).all()
    assert (make(backbone, 10, channels=16, head=head).eval()(images) != 0).all()


@pytest.mark.parametrize("kind", ["mapping", "path"])
@pytest.mark.parametrize("make", [FPNClassifier, FAL, ABNClassifier])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"layer1.0.conv1.weight": None}, "missing: layer1.0.conv1.weight"),
        ({"layer5.weight": torch.ones(1)}, "left over: layer5.weight"),
        ({"bn1.weight": torch.ones(3)}, "of another shape: bn1.weight [3] instead of [32]"),
    ],
)
def test_weights_of_another_backbone_are_refused(make, change, fault, kind, tmp_path):
    weights = {**timm.create_model("test_resnet").state_dict(), **change}
    source = _source({name: tensor for name, tensor in weights.items() if tensor is not None}, kind, tmp_path)
    with pytest.raises(WeightsError) as caught:
        make("test_resnet", 10, pretrained=source)
    place = "the mapping" if kind == "mapping" else "'weights.safetensors'"
    assert str(caught.value) == f"{place} does not fit backbone 'test_resnet': {fault}"


@pytest.mark.parametrize("pretrained", [False, {}])
@pytest.mark.parametrize("make", [FPNClassifier, FAL, ABNClassifier])
def test_arguments_that_a_backbone_does_not_take_are_named(make, pretrained):
    with pytest.raises(ModelError, match=r"backbone 'test_resnet' cannot be built with \{'depht': 3.*unexpected.* 'depht'"):
        make("test_resnet", 10, pretrained=pretrained, backbone_args={"depht": 3})


@pytest.mark.shared
@torch.no_grad()
def test_real_weights_give_the_features_of_timm_s_own_extractor(imagenet_weights):
    images = torch.rand(2, 3, 96, 96) * 2 - 1
    timms = timm.create_model("mobilenetv2_100", pad_type="same", features_only=True).eval()
    assert timms.load_state_dict(load_file(imagenet_weights), strict=False).missing_keys == []
    options = {"channels": 8, "pretrained": imagenet_weights}
    model = FPNClassifier("mobilenetv2_100", 21, **options, backbone_args={"pad_type": "same"}).eval()
    other = FPNClassifier("mobilenetv2_100", 21, **options).eval()  # padded otherwise, with the same weights
    for ours, unlike, theirs in zip(model.backbone(images), other.backbone(images), timms(images)[1:], strict=True):
        assert_close(ours, theirs)
        assert not torch.allclose(unlike, theirs, atol=1e-2)
    assert (model(images) == 0).all()
