"""Grad-ECLIP equals the paper's formula with queries, keys and values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import xaieval
from tests.borrowing import context_of
from tests.explainers.test_attention_gradients import IMAGES, TARGETS, _clip
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=5).eval()
    for block in model.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.2)
    return model


@pytest.mark.parametrize("fused", [True, False])
def test_maps_are_the_papers_formula(model, fused):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    attention = model.blocks[-1].attn
    for block in model.blocks:
        block.attn.fused_attn = fused
    found = METHODS["grad-eclip"](context_of(model, images, TARGETS)).numpy()
    given: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    handles = [
        attention.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0])),
        attention.proj.register_forward_pre_hook(lambda module, inputs: outputs.append(inputs[0])),
    ]
    score = model(images.clone().requires_grad_())[range(3), TARGETS].sum()
    for handle in handles:
        handle.remove()
    (gradient,) = torch.autograd.grad(score, outputs)
    with torch.no_grad():
        query, key, value = attention.qkv(given[0]).chunk(3, dim=2)
    for image in range(3):
        likeness, contributions = np.zeros(16), np.zeros(16)
        for cell in range(16):
            one, other = query[image, 0], key[image, cell + 1]
            likeness[cell] = float(one @ other / (one.norm() * other.norm()))
            contributions[cell] = float((gradient[image, 0] * value[image, cell + 1]).sum())
        scaled = (likeness - likeness.min()) / (likeness.max() - likeness.min())
        expected = np.maximum(contributions * scaled, 0).reshape(4, 4)
        np.testing.assert_allclose(found[image], expected, rtol=0, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_prompts_are_explained(kind):
    one, other = (METHODS["grad-eclip"](context_of(_clip(kind), IMAGES, [prompt] * 3)) for prompt in (0, 1))
    assert one.shape == (3, 4, 4)
    assert (one.flatten(1).std(dim=1) > 0).all()
    assert not torch.allclose(one, other, rtol=1e-2)


def test_models_without_a_query_to_read_are_refused():
    averaging = timm.create_model("test_vit2", img_size=32, num_classes=5)
    with pytest.raises(ExplainerError, match="this model averages its tokens; 'generic-attention' explains it"):
        xaieval.explain(averaging, IMAGES, method="grad-eclip")
    with pytest.raises(ExplainerError, match="saw no attention over tokens in this model"):
        xaieval.explain(torchvision.models.resnet18(), IMAGES, method="grad-eclip")
