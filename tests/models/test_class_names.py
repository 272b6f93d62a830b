"""Classes have the names that a model states, and no others."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from xaieval.models.class_names import class_names


def test_the_configuration_of_a_transformer_has_the_names():
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 16}
    named = transformers.ViTConfig(**size, patch_size=8, id2label={1: "dog", 0: "cat"})
    assert class_names(transformers.ViTForImageClassification(named)) == ["cat", "dog"]
    unnamed = transformers.ViTConfig(**size, patch_size=8, num_labels=3)
    assert class_names(transformers.ViTForImageClassification(unnamed)) == []


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
