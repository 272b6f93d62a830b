"""Classifiers on features equal loops over images and references, and take the features that the models stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import xaieval
from xaieval.cli import main
from xaieval.errors import ExplainerError, ModelError, TargetError, WeightsError
from xaieval.models import FewShot, LinearHead, load_model

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
TIMM = {"img_size": 64, "num_classes": 0, "depth": 3, "embed_dim": 24, "num_heads": 2}


def _class_token(model: Any) -> Tensor:
    return model(IMAGES).last_hidden_state[:, 0]


# How each is made, and its feature by hand, after the papers and the models' documentation.
FEATURES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor], str]] = {
    "DINOv2 of transformers": (
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)),
        _class_token,
        "model.encoder.layer",
    ),
    "DINOv3 of transformers": (
        lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**SMALL, intermediate_size=32, num_register_tokens=2, layerscale_value=1.0)
        ),
        _class_token,
        "model.model.layer",
    ),
    "DINOv2 of timm": (
        lambda: timm.create_model("vit_small_patch14_reg4_dinov2", **TIMM | {"patch_size": 16, "init_values": 1.0}),
        lambda model: model.forward_features(IMAGES)[:, 0],
        "model.blocks",
    ),
    "DINOv3 of timm": (
        lambda: timm.create_model("vit_small_patch16_dinov3", **TIMM, init_values=1.0),
        lambda model: model.forward_features(IMAGES)[:, 5:].mean(dim=1),  # after a class token and four registers
        "model.blocks",
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_scores_are_cosines_to_the_mean_of_the_references_by_hand(name):
    torch.manual_seed(0)
    make, feature, blocks = FEATURES[name]
    model = make().eval()
    classifier = FewShot(model, {"one": IMAGES[:1], "more": IMAGES[1:4]}, batch_size=2).eval()
    with torch.no_grad():
        vectors = [vector / vector.norm() for vector in feature(model)]
        middle = (vectors[1] + vectors[2] + vectors[3]) / 3
        expected = [[float(vector @ vectors[0]), float(vector @ middle / middle.norm())] for vector in vectors]
        found = classifier(IMAGES)
    torch.testing.assert_close(found, torch.tensor(expected) / 0.07, rtol=1e-4, atol=1e-4)
    layers = list(xaieval.explain(classifier, IMAGES, "auto"))
    assert layers[0] == f"{blocks}.0"
    assert all(layer.startswith(blocks) for layer in layers)


def test_a_transformer_that_averages_its_tokens_is_known_inside_a_classifier():
    make, _, _ = FEATURES["DINOv3 of timm"]
    classifier = FewShot(make().eval(), [IMAGES[:1], IMAGES[1:]])
    with pytest.raises(ExplainerError, match=r"^method 'grad-eclip' needs a class token .* this model averages its tokens"):
        xaieval.explain(classifier, IMAGES, method="grad-eclip")


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def test_references_have_names_or_numbers_and_are_targets(backbone):
    named = FewShot(backbone, {"dark": torch.zeros(1, 3, 8, 8), "bright": torch.ones(2, 3, 8, 8)})
    assert named.index("bright") == 1
    with pytest.raises(TargetError, match=r"no class 'brigth'; did you mean 'bright'"):
        named.index("brigth")
    assert FewShot(backbone, [torch.zeros(1, 3, 8, 8)] * 2).classes == ["0", "1"]
    assert not named.references.requires_grad
    assert "references" in named.state_dict()


def test_one_reference_is_explained_by_its_cosine(backbone):
    alone = FewShot(backbone, [IMAGES[:1]], temperature=1.0)
    protocol = xaieval.Protocol(confidence="identity")
    rows = xaieval.score(alone, [IMAGES], "model.1", protocol=protocol, progress=False).rows
    with torch.no_grad():
        features = backbone(IMAGES)
    expected = torch.cosine_similarity(features, features[:1]).tolist()
    assert rows["confidence"].tolist() == pytest.approx(expected, abs=1e-6)


def test_another_temperature_is_another_run(backbone, tmp_path):
    settings = {"methods": "center", "progress": False, "output_dir": tmp_path}
    first = xaieval.score(FewShot(backbone, [IMAGES[:1], IMAGES[1:2]]), [IMAGES], **settings)
    assert first.manifest["model"]["settings"] == {"classes": ["0", "1"], "temperature": 0.07, "features": None}
    with pytest.raises(xaieval.XaievalError, match=r"its temperature is 0\.07, this run's is 0\.1"):
        xaieval.score(FewShot(backbone, [IMAGES[:1], IMAGES[1:2]], temperature=0.1), [IMAGES], **settings)


def test_a_linear_head_is_a_product_by_hand(backbone):
    weight, bias = torch.rand(5, 6), torch.rand(5)
    with torch.no_grad():
        features = backbone(IMAGES)
        for given in (bias, None):
            found = LinearHead(backbone, weight, given)(IMAGES)
            expected = [[float(row @ feature) for row in weight] for feature in features]
            torch.testing.assert_close(found, torch.tensor(expected) + (0 if given is None else bias))


def test_features_elsewhere_are_named_by_output():
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)).eval()
    both = LinearHead(
        model,
        torch.eye(32),
        output=lambda out: torch.cat([out.last_hidden_state[:, 0], out.last_hidden_state[:, 1:].mean(dim=1)], dim=1),
    )
    with torch.no_grad():
        tokens = model(IMAGES).last_hidden_state
        torch.testing.assert_close(both(IMAGES), torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))


def test_a_head_from_a_file_goes_on_models_by_name(tmp_path):
    torch.manual_seed(0)
    save_file({"linear.weight": torch.rand(5, 16), "linear.bias": torch.rand(5)}, tmp_path / "head.safetensors")
    head = load_file(tmp_path / "head.safetensors")
    whole = transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)).eval()
    whole.save_pretrained(tmp_path / "dino")
    loaded = load_model(f"hf:{tmp_path / 'dino'}", head=tmp_path / "head.safetensors")
    with torch.no_grad():
        expected = whole(IMAGES).last_hidden_state[:, 0] @ head["linear.weight"].T + head["linear.bias"]
        torch.testing.assert_close(loaded.model(IMAGES), expected, rtol=1e-4, atol=1e-5)
    assert not loaded.random

    backbone = timm.create_model("test_vit", num_classes=0)
    save_file(backbone.state_dict(), tmp_path / "backbone.safetensors")
    save_file({"weight": torch.rand(3, backbone.num_features)}, tmp_path / "other.safetensors")
    found = load_model("timm:test_vit", tmp_path / "backbone.safetensors", head=tmp_path / "other.safetensors")
    images = torch.rand(2, 3, *found.preprocessing.input_shape[1:])
    with torch.no_grad():
        features = backbone.eval()(images)
        expected = features @ load_file(tmp_path / "other.safetensors")["weight"].T
        torch.testing.assert_close(found.model(images), expected, rtol=1e-4, atol=1e-5)
    assert not found.random


def test_the_command_takes_a_head(tmp_path, capsys):
    save_file({"weight": torch.rand(3, 64), "bias": torch.rand(3)}, tmp_path / "head.safetensors")
    main(["layers", "timm:test_vit", "--head", str(tmp_path / "head.safetensors"), "--json"])
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert {layer["address"].partition(".")[0].partition("[")[0] for layer in layers} == {"model", "head"}
    assert layers[-1]["output_shape"] == [1, 3]


def test_what_is_no_head_and_models_that_take_none_are_refused(tmp_path):
    save_file({"a": torch.rand(5, 4)}, tmp_path / "head.safetensors")
    with pytest.raises(
        WeightsError, match=r"'head\.safetensors' holds a; a linear head has a weight \[K, C\] and a bias \[K\]"
    ):
        load_model("timm:test_vit", head=tmp_path / "head.safetensors")
    with pytest.raises(
        ModelError, match=r"xaieval:fpn-scenes has a head of its own; a head can be put on timm:NAME and hf:NAME"
    ):
        load_model("xaieval:fpn-scenes", head=tmp_path / "head.safetensors")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda net: FewShot(net, []), TargetError, "there are no references; give images"),
        (
            lambda net: FewShot(net, [IMAGES[0]]),
            TargetError,
            r"class '0' are images \[n, C, H, W\], one or more; got \[3, 64, 64\]",
        ),
        (lambda net: FewShot(net, [IMAGES[:0]]), TargetError, r"one or more; got \[0, 3, 64, 64\]"),
        (lambda net: FewShot(net, [IMAGES], temperature=0), ModelError, "temperature is a positive number, got 0"),
        (
            lambda net: FewShot(net[:2], [IMAGES]),
            ModelError,
            r"gives no features \[N, C\]: got .* say where they are with output=",
        ),
        (
            lambda _: FewShot(timm.create_model("test_resnet", num_classes=7), [IMAGES]),
            ModelError,
            "gives 7 logits, and features are expected; create it with num_classes=0",
        ),
        (lambda net: LinearHead(net, torch.rand(6)), ModelError, r"weight \[K, C\] and a bias \[K\]; got a weight \[6\]$"),
        (lambda net: LinearHead(net, torch.rand(5, 6), torch.rand(6)), ModelError, r"a weight \[5, 6\] and a bias \[6\]$"),
        (lambda net: LinearHead(net, torch.rand(5, 4))(IMAGES), ModelError, "features of 6 numbers, and the head takes 4"),
    ],
)
def test_what_does_not_fit_is_refused(backbone, make, error, message):
    with pytest.raises(error, match=message):
        make(backbone)
