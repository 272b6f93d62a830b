"""Maps from attention weights equal an explicit slow computation, for transformers of several libraries."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS, Context
from xaieval.explainers.rollout import ROLLOUT, AttentionMap, last_block, rollout

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _context(model: nn.Module, images: Tensor = IMAGES, **options: object) -> Context:
    zeros = torch.zeros(len(images), dtype=torch.long)
    return Context(model, images, zeros, None, [str(number) for number in range(len(images))], **options)


# ---- the weights, computed by hand for each library


@cache
def _timm(name: str = "test_vit", fused: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=64, num_classes=10).eval()
    for block in model.blocks:
        block.attn.fused_attn = fused
        nn.init.normal_(block.attn.qkv.weight, std=0.2)  # attention that is not even
    return model


def _timm_weights(model: nn.Module) -> list[np.ndarray]:
    """Softmax of the scaled products of queries and keys, from the inputs of each block's attention, by head."""
    inputs: list[Tensor] = []
    handles = [
        block.attn.register_forward_hook(lambda module, given, output: inputs.append(given[0])) for block in model.blocks
    ]
    with torch.no_grad():
        model(IMAGES)
    for handle in handles:
        handle.remove()
    return [
        _by_heads(x, block.attn.qkv.weight, block.attn.qkv.bias, block.attn.num_heads)
        for x, block in zip(inputs, model.blocks, strict=True)
    ]


@cache
def _torchvision() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(64, 8, 3, 4, 32, 64, num_classes=10).eval()
    for layer in model.encoder.layers:
        nn.init.normal_(layer.self_attention.in_proj_weight, std=0.3)
    return model


def _torchvision_weights(model: nn.Module) -> list[np.ndarray]:
    inputs: list[Tensor] = []
    layers = list(model.encoder.layers)
    handles = [layer.ln_1.register_forward_hook(lambda module, given, output: inputs.append(output)) for layer in layers]
    with torch.no_grad():
        model(IMAGES)
    for handle in handles:
        handle.remove()
    own = [layer.self_attention for layer in layers]
    return [_by_heads(x, a.in_proj_weight, a.in_proj_bias, a.num_heads) for x, a in zip(inputs, own, strict=True)]


def _by_heads(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> np.ndarray:
    found = np.zeros((len(x), heads, x.shape[1], x.shape[1]))
    with torch.no_grad():
        projected = functional.linear(x, weight, bias).double().numpy()
    width = projected.shape[2] // 3
    size = width // heads
    for image in range(len(x)):
        for head in range(heads):
            query = projected[image, :, head * size : (head + 1) * size]
            key = projected[image, :, width + head * size : width + (head + 1) * size]
            scores = query @ key.T / math.sqrt(size)
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            found[image, head] = scores / scores.sum(axis=1, keepdims=True)
    return found


def _slow_rollout(weights: list[np.ndarray]) -> np.ndarray:
    """Section 3 of the paper, image by image."""
    maps = []
    for image in range(len(weights[0])):
        joint = np.eye(weights[0].shape[-1])
        for block in weights:
            step = 0.5 * block[image].mean(axis=0) + 0.5 * np.eye(len(joint))
            joint = (step / step.sum(axis=1, keepdims=True)) @ joint
        maps.append(joint)
    return np.stack(maps)


def _grid(row: np.ndarray, prefix: int) -> np.ndarray:
    side = math.isqrt(row.shape[1] - prefix)
    return row[:, prefix:].reshape(len(row), side, side)


MODELS = {
    "timm": (_timm, _timm_weights),
    "timm, not fused": (lambda: _timm(fused=False), _timm_weights),
    "torchvision": (_torchvision, _torchvision_weights),
}


@pytest.mark.slow
@pytest.mark.parametrize("library", MODELS)
def test_rollout_equals_the_product_of_all_blocks(library):
    make, weights = MODELS[library]
    model = make()
    expected = _grid(_slow_rollout(weights(model))[:, 0], 1)
    assert expected.std() > 1e-4  # not even, so that it could be wrong
    maps = METHODS["attention-rollout"](_context(model))
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("library", MODELS)
def test_raw_attention_is_the_last_block_alone(library):
    make, weights = MODELS[library]
    model = make()
    expected = _grid(weights(model)[-1].mean(axis=1)[:, 0], 1)
    maps = METHODS["raw-attention"](_context(model))
    np.testing.assert_allclose(maps.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_models_that_average_their_tokens_are_read_in_all_rows():
    model = _timm("test_vit2")
    assert model.global_pool == "avg"
    weights = _timm_weights(model)
    expected = _grid(_slow_rollout(weights)[:, 1:].mean(axis=1), 1)
    np.testing.assert_allclose(METHODS["attention-rollout"](_context(model)).numpy(), expected, rtol=1e-3, atol=1e-6)
    by_class = AttentionMap("other", rollout, "", rows="class")(_context(model))
    np.testing.assert_allclose(by_class.numpy(), _grid(_slow_rollout(weights)[:, 0], 1), rtol=1e-3, atol=1e-6)


def test_models_that_pool_by_a_query_are_read_through_it():
    model = _timm("test_vit3")
    assert model.global_pool == "map"
    pool = model.attn_pool
    seen: list[Tensor] = []
    handle = pool.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    weights = _timm_weights(model)
    handle.remove()
    with torch.no_grad():
        tokens = seen[0]
        query = pool.q(pool.latent.expand(2, -1, -1)).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        key = pool.kv(tokens).chunk(2, dim=2)[0].unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        scores = (pool.q_norm(query) @ pool.k_norm(key).transpose(2, 3) * pool.scale).softmax(dim=3)
    pooled = scores.mean(dim=1).double().numpy()
    raw = METHODS["raw-attention"](_context(model))
    np.testing.assert_allclose(raw.numpy(), _grid(pooled[:, 0], 1), rtol=1e-3, atol=1e-6)
    expected = _grid((pooled @ _slow_rollout(weights))[:, 0], 1)
    np.testing.assert_allclose(METHODS["attention-rollout"](_context(model)).numpy(), expected, rtol=1e-3, atol=1e-6)


class Block(nn.Module):
    """Attention in several common implementations; the values are the tokens themselves."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.query = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x)[:, None]
        if self.kind == "fused, scaled and masked":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(3)
            return functional.scaled_dot_product_attention(query, x[:, None], x[:, None], mask, scale=0.2)[:, 0]
        if self.kind == "fused, biased":
            bias = torch.linspace(-1, 1, x.shape[1]).expand(x.shape[1], -1)
            return functional.scaled_dot_product_attention(query, x[:, None], x[:, None], attn_mask=bias)[:, 0]
        if self.kind == "fused, causal":
            return functional.scaled_dot_product_attention(query, x[:, None], x[:, None], is_causal=True)[:, 0]
        if self.kind == "fused, shared keys":
            many = query.expand(-1, 4, -1, -1) * torch.arange(1.0, 5)[:, None, None]
            key = x[:, None].expand(-1, 2, -1, -1)
            return functional.scaled_dot_product_attention(many, key, key, enable_gqa=True).mean(dim=1)
        scores = query @ x[:, None].transpose(2, 3)
        by_kind = {
            "function": lambda: functional.softmax(scores, dim=-1),
            "method": lambda: scores.softmax(3),
            "module": lambda: nn.Softmax(dim=-1)(scores),
            "torch": lambda: torch.softmax(scores, -1),
        }
        return (by_kind[self.kind]() @ x[:, None])[:, 0]


KINDS = [
    "fused, scaled and masked",
    "fused, biased",
    "fused, causal",
    "fused, shared keys",
    "function",
    "method",
    "module",
    "torch",
]


class Plain(nn.Module):
    """Sixteen tokens without a class token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.block = Block(kind)
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.block(self.patches(images).flatten(2).transpose(1, 2)).mean(dim=1))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_make_the_output(kind):
    torch.manual_seed(0)
    model = Plain(kind).eval()
    with torch.no_grad():
        tokens = model.patches(IMAGES).flatten(2).transpose(1, 2)
        output = model.block(tokens)
        # What the weights are is solved from the tokens that come out: 16 tokens of 8 numbers leave that open, so the check is
        # the other way round, that the weights found make this output.
        seen: list[Tensor] = []
        keep = AttentionMap("keep", lambda blocks: seen.extend(blocks) or last_block(blocks), "")
        maps = keep(_context(model))
    torch.testing.assert_close(seen[0] @ tokens, output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps, seen[0].mean(dim=1).view(2, 4, 4))


def test_what_the_model_gives_is_the_same_while_it_is_watched():
    model = _torchvision()
    seen: list[Tensor] = []

    def call(images: Tensor) -> Tensor:
        seen.append(model(images))
        return seen[0]

    METHODS["attention-rollout"](_context(model, call=call))
    with torch.no_grad():
        torch.testing.assert_close(seen[0], model(IMAGES), rtol=1e-4, atol=1e-5)


def test_attention_modules_give_the_weights_that_their_callers_ask_for():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    asked: list[Tensor | None] = []

    class Asking(Plain):
        def forward(self, images: Tensor) -> Tensor:
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            for options in ({}, {"average_attn_weights": False}, {"need_weights": False}):
                output, weights = attention(tokens, tokens, tokens, **options)
                asked.append(weights)
            return self.head(output.mean(dim=1))

    model = Asking("function")
    METHODS["raw-attention"](_context(model))
    watched, asked = asked, []
    with torch.no_grad():
        model(IMAGES)
    assert [None if weights is None else tuple(weights.shape) for weights in watched] == [(2, 16, 16), (2, 2, 16, 16), None]
    for one, other in zip(watched[:2], asked[:2], strict=True):
        torch.testing.assert_close(one, other)


def test_the_grid_is_found_in_images_that_are_not_square():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=(32, 96), num_classes=4).eval()
    maps = METHODS["attention-rollout"](_context(model, torch.randn(3, 3, 32, 96)))
    assert maps.shape == (3, 2, 6)


def test_a_grid_can_be_given_where_none_fits():
    torch.manual_seed(0)

    class Odd(Plain):
        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.block(self.patches(images).flatten(2).transpose(1, 2)[:, :15]).mean(dim=1))

    model = Odd("function").eval()
    with pytest.raises(ExplainerError, match=r"over 15 tokens, which fit no grid of a 64 x 64 image; give grid="):
        AttentionMap("x", rollout, "", prefix_tokens=0)(_context(model))
    assert AttentionMap("x", rollout, "", grid=(3, 5))(_context(model)).shape == (2, 3, 5)


def test_rows_sum_to_one_also_after_many_blocks():
    weights = [torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(seed)).softmax(dim=2) for seed in range(12)]
    torch.testing.assert_close(rollout(weights).sum(dim=2), torch.ones(2, 5))


def test_they_are_scored_like_any_method():
    scores = xaieval.score(_timm(), [IMAGES], methods=["attention-rollout", "raw-attention", "random"], progress=False)
    assert list(scores.summary().index) == [("input", "attention-rollout"), ("input", "raw-attention"), ("input", "random")]
    assert (scores.rows["status"] == "ok").all()
    assert all(explainer.passes == "1" and explainer.paper for explainer in ROLLOUT)


@pytest.mark.parametrize("name", ["attention-rollout", "raw-attention"])
def test_models_without_such_attention_are_refused(name):
    with pytest.raises(ExplainerError, match=f"method '{name}' saw no attention over tokens in this model"):
        xaieval.explain(torchvision.models.resnet18(), IMAGES, method=name)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, embed_dim=16, depths=(1, 1), num_heads=(2, 2))
    with pytest.raises(ExplainerError, match=r"needs attention of all tokens to all tokens.*as with windows or stages"):
        xaieval.explain(swin, IMAGES, method=name)


def test_wrong_rows_are_refused():
    with pytest.raises(ExplainerError, match="rows is one of auto, class, mean, got 'all'"):
        AttentionMap("x", rollout, "", rows="all")
    with pytest.raises(ExplainerError, match="needs a token before the grid, and there is none"):
        AttentionMap("x", rollout, "", rows="class")(_context(Plain("function").eval()))
