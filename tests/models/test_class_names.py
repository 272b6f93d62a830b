"""Names of classes, from models that know them."""

from __future__ import annotations

import pytest
import timm
import torchvision
import transformers
from torch import nn

from xaieval.data.cues import CUES
from xaieval.models.class_names import class_names
from xaieval.models.zeroshot import ZeroShot


def _resnet(**settings: object) -> transformers.ResNetForImageClassification:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], **settings)
    )


def test_a_model_of_transformers_names_its_classes_unless_they_are_its_defaults():
    assert class_names(_resnet(id2label={1: "dog", 0: "cat"})) == ["cat", "dog"]
    assert class_names(_resnet(num_labels=2)) == []


def test_names_that_leave_a_class_out_are_none():
    model = nn.Linear(2, 3)
    model.names = {0: "cat", 2: "dog"}
    assert class_names(model) == []


def test_pretrained_weights_of_libraries_have_the_names_of_imagenet():
    torchvisions = class_names(torchvision.models.resnet18(), "torchvision:resnet18", pretrained=True)
    assert (len(torchvisions), torchvisions[281]) == (1000, "tabby")
    model = timm.create_model("test_resnet")
    named = class_names(model, "timm:test_resnet", pretrained=True)
    assert len(named) == 1000
    assert named[281].startswith("tabby")
    assert class_names(model, "timm:test_resnet") == []
    assert class_names(timm.create_model("test_resnet", num_classes=7), "timm:test_resnet", pretrained=True) == []
    model.pretrained_cfg = {"label_names": ["cat", "dog"]}
    assert class_names(model, "timm:test_resnet", pretrained=True) == ["cat", "dog"]


def test_prompts_are_the_classes_of_a_zero_shot_classifier():
    model = ZeroShot.__new__(ZeroShot)
    nn.Module.__init__(model)
    model.prompts = ["a photo of a cat"]
    assert class_names(model) == ["a photo of a cat"]


def test_the_built_in_models_know_their_scenes():
    assert class_names(nn.Identity(), "xaieval:fpn-scenes")[0] == "disc"
    for cue, classes in CUES.items():
        assert class_names(nn.Identity(), f"xaieval:scenes-{cue}") == list(classes)


def test_imagenet_has_names_only_for_weights_that_were_trained_on_it():
    model = timm.create_model("test_resnet.r160_in1k")
    names = class_names(model, pretrained=True)
    assert len(names) == 1000
    assert names[0] == "tench, Tinca tinca"
    assert names[410] == "apiary, bee house"
    assert class_names(model) == [], "another thousand classes"
    assert class_names(timm.create_model("test_resnet.r160_in1k", num_classes=5), pretrained=True) == []


@pytest.mark.parametrize("names", [["cat", "dog"], {1: "dog"}, {"cat": 0}, {}, None])
def test_other_attributes_are_no_names(names):
    model = nn.Linear(2, 2)
    model.names = names
    assert class_names(model) == []
