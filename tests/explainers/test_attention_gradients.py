"""Maps from attention and its gradients equal slow loops after the papers, and torch-cam's LeGrad."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import timm
import torch
import torchcam.methods
import torchvision
from torch import Tensor, nn

import xaieval
from tests.borrowing import context_of
from tests.explainers.test_attention_relevance import gradients_by_hand
from tests.explainers.tiny_vit import TinyViT, relevance_by_hand
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS
from xaieval.explainers.attention_gradients import AttentionGradient, LeGrad, generic_attention
from xaieval.explainers.eager_attention import EagerAttention
from xaieval.models import ZeroShot

SMALL = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
TARGETS = [1, 4, 0]
NAMES = ["generic-attention", "gradient-rollout", "legrad"]


@pytest.fixture(scope="module")
def by_hand() -> tuple[TinyViT, list[list[np.ndarray]], list[np.ndarray]]:
    """A network, the attention weights of each image's blocks in order, and the gradients of each block."""
    model = TinyViT()
    weights = []
    for image, target in zip(SMALL, TARGETS, strict=True):
        rules = keep = _Keeping()
        relevance_by_hand(model, image.numpy(), target, 1.0, rules)
        weights.append(keep.weights[::-1])
    return model, weights, gradients_by_hand(model, SMALL, TARGETS)


class _Keeping:
    """Rules that pass on nothing."""

    def __init__(self) -> None:
        self.weights: list[np.ndarray] = []
        self.of_weights: list[np.ndarray] = []
        self.linear = lambda relevance, x, weight, bias: np.zeros_like(x)
        self.add = lambda relevance, one, other: (relevance, relevance)
        self.matmul = lambda relevance, one, other: (np.zeros_like(one), np.zeros_like(other))
        self.softmax = lambda relevance, x, s: relevance
        self.norm = lambda relevance, x, output, weight: relevance


def test_generic_attention_is_the_papers_loop(by_hand):
    model, weights, gradients = by_hand
    found = METHODS["generic-attention"](context_of(model, SMALL, TARGETS)).numpy()
    for image in range(3):
        relevance = np.eye(5)
        for block in range(2):
            step = np.zeros((5, 5))
            for head in range(2):
                step += np.maximum(weights[image][block][head] * gradients[block][image, head], 0) / 2
            relevance = relevance + step @ relevance
        np.testing.assert_allclose(found[image], relevance[0, 1:].reshape(2, 2), rtol=1e-5, atol=1e-9)


def test_gradient_rollout_is_the_rollout_of_weighted_attention(by_hand):
    model, weights, gradients = by_hand
    found = METHODS["gradient-rollout"](context_of(model, SMALL, TARGETS)).numpy()
    for image in range(3):
        product = np.eye(5)
        for block in range(2):
            fused = np.maximum((weights[image][block] * gradients[block][image]).mean(axis=0), 0)
            step = (fused + np.eye(5)) / 2
            product = (step / step.sum(axis=1, keepdims=True)) @ product
        np.testing.assert_allclose(found[image], product[0, 1:].reshape(2, 2), rtol=1e-5, atol=1e-9)


@cache
def _torchvision() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it with zeros
    for layer in model.encoder.layers:
        nn.init.normal_(layer.self_attention.in_proj_weight, std=0.3)
    return model


@pytest.mark.parametrize("layers", [None, 1, 2])
def test_legrad_is_that_of_torch_cam(layers):
    model = _torchvision()
    found = LeGrad(layers=layers)(context_of(model, IMAGES, TARGETS))
    with torchcam.methods.LeGrad(model, list(model.encoder.layers)[-(layers or 0) :]) as extractor:
        (expected,) = extractor(class_idx=TARGETS, scores=model(IMAGES.clone().requires_grad_()), normalized=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.amax() - expected.amin()))


def test_legrad_of_tokens_that_a_query_pools_is_that_of_its_weights():
    torch.manual_seed(0)
    model = timm.create_model("test_vit3", img_size=32, num_classes=5).eval()
    for block in model.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.2)
    found = METHODS["legrad"](context_of(model, IMAGES, TARGETS))
    pool, expected = model.attn_pool, torch.zeros(3, model.pos_embed.shape[1])
    tokens: list[Tensor] = []
    handles = [block.register_forward_hook(lambda module, given, output: tokens.append(output)) for block in model.blocks]
    model(IMAGES)
    for handle in handles:
        handle.remove()
    for x in tokens:  # what follows the blocks, written out with weights that are a leaf
        x = model.norm(x.detach())
        query = pool.q(pool.latent.expand(3, -1, -1)).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        key, value = pool.kv(x).unflatten(2, (2, pool.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (pool.q_norm(query) @ pool.k_norm(key).mT * pool.scale).softmax(-1).detach().requires_grad_()
        pooled = pool.proj((weights @ value).transpose(1, 2).flatten(2))
        pooled = (pooled + pool.mlp(pool.norm(pooled)))[:, 0]
        logits = model.head(model.fc_norm(pooled))
        (gradient,) = torch.autograd.grad(logits[range(3), TARGETS].sum(), weights)
        expected += gradient.clamp(min=0).mean(dim=1)[:, 0] / len(model.blocks)
    torch.testing.assert_close(found, expected[:, -4:].view(3, 2, 2), rtol=1e-3, atol=1e-5 * float(expected.amax()))


# ---- models of several libraries


@cache
def _clip(kind: str) -> ZeroShot:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 32}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    special = {"bos_token_id": 0, "eos_token_id": 19, "pad_token_id": 1, "max_position_embeddings": 6}
    config = getattr(transformers, f"{kind}Config")(vision_config={**vision, "patch_size": 8}, text_config={**text, **special})
    model = getattr(transformers, f"{kind}Model")(config).eval()
    return ZeroShot(
        model, ["a", "b", "c"], torch.tensor([[0, 3, 4, 19, 1, 1], [0, 5, 6, 19, 1, 1], [0, 7, 8, 19, 1, 1]])
    ).eval()


@pytest.mark.parametrize("name", [*NAMES, "transformer-attribution", "attn-lrp"])
@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_prompts_are_explained(kind, name):
    model = _clip(kind)
    one, other = (METHODS[name](context_of(model, IMAGES, [prompt] * 3)) for prompt in (0, 1))
    assert one.shape == ((3, 32, 32) if name == "attn-lrp" else (3, 4, 4))
    assert (one.flatten(1).std(dim=1) > 0).all()
    assert not torch.allclose(one, other, rtol=1e-2), "another prompt, another map"


def test_models_that_average_their_tokens_are_read_in_all_rows():
    torch.manual_seed(0)
    model = timm.create_model("test_vit2", img_size=32, num_classes=5).eval()
    given = context_of(model, IMAGES, TARGETS)
    found = METHODS["generic-attention"](given)
    assert (found.flatten(1).std(dim=1) > 0).all(), "beside the identity, small values are not lost"
    kept: list[Tensor] = []
    AttentionGradient("keep", lambda *both: kept.append(generic_attention(*both)) or kept[0], "")(given)
    torch.testing.assert_close(found.flatten(1), kept[0][:, 1:].mean(dim=1)[:, -4:])


@pytest.mark.parametrize("name", NAMES)
def test_models_without_such_attention_are_refused(name):
    with pytest.raises(ExplainerError, match=f"method '{name}' saw no attention over tokens in this model"):
        xaieval.explain(torchvision.models.resnet18(), IMAGES, method=name)
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, embed_dim=16, depths=(1, 1), num_heads=(2, 2))
    with pytest.raises(ExplainerError, match=r"needs attention of all tokens to all tokens.*as with windows or stages"):
        xaieval.explain(swin, torch.rand(1, 3, 64, 64), method=name)


class Twice(nn.Module):
    """Two attentions in one block, which has no module of its own for each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 8, 8, 8), nn.ModuleList([nn.MultiheadAttention(8, 2, batch_first=True)])
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        for _ in range(2):
            x = self.blocks[0](x, x, x)[0]
        return self.head(x.mean(dim=1))


def test_legrad_needs_blocks():
    given = context_of(Twice().eval(), IMAGES, TARGETS)
    assert METHODS["generic-attention"](given).shape == (3, 4, 4)
    with pytest.raises(ExplainerError, match="needs blocks that are items of a ModuleList or Sequential"):
        METHODS["legrad"](given)
    with pytest.raises(ExplainerError, match="layers is a number of blocks, 1 or more, got 0"):
        LeGrad(layers=0)


def test_a_score_that_does_not_depend_on_the_attention_is_refused():
    class Blind(Twice):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).detach()

    with pytest.raises(ExplainerError, match="needs a score that depends on the attention"):
        METHODS["generic-attention"](context_of(Blind().eval(), IMAGES, TARGETS))


# ---- attention as single steps


def _plain(function, args, kwargs):
    return function(*args, **kwargs)


@pytest.mark.parametrize("mask", ["none", "left out", "added", "by heads"])
@pytest.mark.parametrize("asked", [{}, {"average_attn_weights": False}, {"need_weights": False}])
def test_attention_of_modules_in_single_steps_is_that_of_torch(mask, asked):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    masks = {"none": None, "left out": torch.eye(6) > 0, "added": torch.randn(6, 6), "by heads": torch.randn(6, 6, 6)}
    tokens, others = torch.randn(3, 6, 8), torch.randn(3, 6, 8)
    for given in ((tokens, tokens, tokens), (tokens, others, others)):
        expected = module(*given, attn_mask=masks[mask], **asked)
        with EagerAttention(_plain):
            found = module(*given, attn_mask=masks[mask], **asked)
        torch.testing.assert_close(found, expected)


def test_arguments_of_sequence_models_are_refused():
    module = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True).eval()
    tokens = torch.randn(3, 6, 8)
    with EagerAttention(_plain), pytest.raises(ExplainerError, match="this model's attention has bias_k, which is not watched"):
        module(tokens, tokens, tokens)


def test_they_are_scored_like_any_method():
    scores = xaieval.score(_torchvision(), [IMAGES], methods=[*NAMES, "transformer-attribution", "attn-lrp"], progress=False)
    assert (scores.rows["status"] == "ok").all()
