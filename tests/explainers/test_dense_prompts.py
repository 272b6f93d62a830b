"""MaskCLIP and CLIP Surgery equal slow loops over tokens, heads and prompts by the papers' formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import xaieval
from tests.borrowing import context_of, state_of
from tests.explainers.test_attention_gradients import IMAGES, _clip
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS
from xaieval.explainers.dense_prompts import CLIPSurgery, without_redundant
from xaieval.models import ZeroShot

TARGETS = [2, 0, 1]
KINDS = ["CLIP", "Siglip"]


def inputs_of_blocks(model: ZeroShot) -> list[Tensor]:
    """The tokens before each block, and after the last, `[N, T, C]`."""
    tower: Any = model.model.vision_model
    kept: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda _, given, output: kept.extend((given[0], output))) for block in tower.encoder.layers
    ]
    with torch.no_grad():
        model(IMAGES)
    for handle in handles:
        handle.remove()
    return [*kept[::2], kept[-1]]


def read_alone(model: ZeroShot, token: Tensor) -> Tensor:
    """The cosines of one token `[C]` to the prompts, as the model reads its image."""
    tower: Any = model.model.vision_model
    token = tower.post_layernorm(token)
    if hasattr(tower, "head"):  # the query weighs the only token by 1
        weight, bias = tower.head.attention.in_proj_weight, tower.head.attention.in_proj_bias
        width = len(token)
        token = tower.head.attention.out_proj(weight[2 * width :] @ token + bias[2 * width :])
        token = token + tower.head.mlp(tower.head.layernorm(token))
    else:
        token = model.model.visual_projection(token)
    return torch.stack([token @ text / token.norm() for text in model.text_features])


@pytest.mark.parametrize("kind", KINDS)
def test_maskclip_reads_the_value_of_each_token_alone(kind):
    model = _clip(kind)
    found = METHODS["maskclip"](context_of(model, IMAGES, TARGETS)).numpy()
    tokens = inputs_of_blocks(model)
    block = model.model.vision_model.encoder.layers[-1]
    for number, target in enumerate(TARGETS):
        expected = []
        with torch.no_grad():
            for place in range(tokens[0].shape[1] - 16, tokens[0].shape[1]):
                token = tokens[-1][number, place]
                if kind == "CLIP":  # the last attention is that of the last block
                    token = tokens[-2][number, place]
                    token = token + block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(token)))
                    token = token + block.mlp(block.layer_norm2(token))
                cosine = read_alone(model, token)[target]
                expected.append(float(cosine * model.model.logit_scale.exp() + getattr(model.model, "logit_bias", 0)))
        np.testing.assert_allclose(found[number].ravel(), expected, rtol=0, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("layers", [1, 2, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_clip_surgery_adds_up_attention_of_values_to_values_and_removes_what_prompts_share(kind, layers):
    model = _clip(kind)
    given = context_of(model, IMAGES, TARGETS)
    found = CLIPSurgery(layers)(given).numpy()
    tokens = inputs_of_blocks(model)[:-1]
    blocks = model.model.vision_model.encoder.layers
    first = max(0, 2 - layers)
    with torch.no_grad():
        features = nn.functional.normalize(model.model.get_image_features(IMAGES).pooler_output, dim=1)
        for number, target in enumerate(TARGETS):
            second = tokens[first][number].clone()
            for block, before in list(zip(blocks, tokens, strict=True))[first:]:
                values = block.self_attn.v_proj(block.layer_norm1(before[number]))
                mixed = torch.zeros_like(values)
                for head in (slice(0, 8), slice(8, 16)):
                    for place in range(len(values)):
                        likeness = torch.stack([values[place, head] @ other / 8**0.5 for other in values[:, head]])
                        mixed[place, head] = likeness.softmax(dim=0) @ values[:, head]
                second += block.self_attn.out_proj(mixed)
            chances = np.exp(2 * (features[number] @ model.text_features.T).double().numpy())
            weights = chances / chances.mean()
            expected = []
            for token in second[-16:]:
                weighted = [weight * float(cosine) for weight, cosine in zip(weights, read_alone(model, token), strict=True)]
                expected.append(weighted[target] - sum(weighted) / 3)
            np.testing.assert_allclose(found[number].ravel(), expected, rtol=0, atol=1e-4 * np.ptp(expected))


def test_feature_surgery_is_that_of_products_of_features():
    generator = torch.Generator().manual_seed(1)
    image, text = (nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1) for shape in ((2, 5, 8), (3, 8)))
    chances = (2 * image[:, 0] @ text.T).softmax(dim=1)
    products = image[:, :, None] * text * (chances / chances.mean(dim=1, keepdim=True))[:, None, :, None]
    expected = (products - products.mean(dim=2, keepdim=True)).sum(dim=3)
    torch.testing.assert_close(without_redundant(image @ text.T, image[:, 0] @ text.T), expected)


@pytest.mark.parametrize("name", ["maskclip", "clip-surgery"])
def test_maps_do_not_depend_on_the_batch_and_the_model_stays_as_it_was(name):
    model = _clip("CLIP")
    given = context_of(model, IMAGES, TARGETS)
    before = state_of(model)
    together = METHODS[name](given)
    assert state_of(model) == before
    torch.testing.assert_close(METHODS[name](context_of(model, IMAGES[1:], TARGETS[1:])), together[1:])


@pytest.mark.parametrize("name", ["maskclip", "clip-surgery"])
def test_models_without_prompts_are_refused(name):
    said = r"compares tokens with prompts, .* it explains xaieval\.models\.ZeroShot of CLIP"
    for model in (timm.create_model("test_vit", img_size=32, num_classes=5), torchvision.models.resnet18()):
        with pytest.raises(ExplainerError, match=said):
            xaieval.explain(model, IMAGES, method=name)


def test_what_clip_surgery_cannot_do_is_refused():
    alone = ZeroShot(_clip("CLIP").model, ["a"], torch.tensor([[0, 3, 4, 19, 1, 1]])).eval()
    with pytest.raises(ExplainerError, match="takes away what all prompts share, and needs two or more; add one such as"):
        xaieval.explain(alone, IMAGES, target=0, method="clip-surgery")
    with pytest.raises(ExplainerError, match="layers is a number of blocks, 1 or more, got 0"):
        CLIPSurgery(layers=0)
