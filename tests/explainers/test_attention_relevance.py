"""Relevance through attention equals the papers' rules, step by step in NumPy, and is refused where there is no rule."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import xaieval
from tests.borrowing import context_of
from tests.explainers.tiny_vit import Rules, TinyViT, relevance_by_hand
from xaieval.errors import ExplainerError
from xaieval.explainers import METHODS
from xaieval.explainers.attention_relevance import TransformerAttribution
from xaieval.explainers.eager_attention import EagerAttention
from xaieval.explainers.relevance_rules import ATTN_LRP, alpha_beta, ruled

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
TARGETS = [1, 4, 0]
Array = np.ndarray


def _attn_lrp() -> Rules:
    """Equations 8 to 15 of Achtibat et al.; a layer norm is linear, its standard deviation a constant."""

    def linear(relevance: Array, x: Array, weight: Array, bias: Array) -> Array:
        output = x @ weight.T + bias
        return np.array(
            [
                [
                    sum(x[t, i] * weight[j, i] / output[t, j] * relevance[t, j] for j in range(len(weight)))
                    for i in range(x.shape[1])
                ]
                for t in range(len(x))
            ]
        )

    def norm(relevance: Array, x: Array, output: Array, weight: Array) -> Array:
        ratio = relevance / output * weight / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * (ratio - ratio.mean(-1, keepdims=True))

    def matmul(relevance: Array, one: Array, other: Array) -> tuple[Array, Array]:
        share = relevance / (2 * (one @ other))
        return one * (share @ other.swapaxes(1, 2)), other * (one.swapaxes(1, 2) @ share)

    return Rules(
        linear=linear,
        add=lambda relevance, one, other: (one / (one + other) * relevance, other / (one + other) * relevance),
        matmul=matmul,
        softmax=lambda relevance, x, s: x * (relevance - s * relevance.sum(-1, keepdims=True)),
        norm=norm,
    )


def _chefer() -> Rules:
    """Equations 4 to 10 of Chefer et al. 2021."""

    def linear(relevance: Array, x: Array, weight: Array, bias: Array) -> Array:
        found = np.zeros_like(x)
        for t in range(len(x)):
            for j in range(len(weight)):
                positive = np.clip(x[t] * weight[j], 0, None)
                found[t] += positive / (positive.sum() or 1) * relevance[t, j]
        return found

    def scaled(relevance: Array, parts: tuple[Array, Array]) -> tuple[Array, Array]:
        sums = [part.sum() for part in parts]
        whole = relevance.sum() / (abs(sums[0]) + abs(sums[1]))
        return tuple(part * abs(one) * whole / one for part, one in zip(parts, sums, strict=True))

    def matmul(relevance: Array, one: Array, other: Array) -> tuple[Array, Array]:
        share = relevance / (one @ other)
        return scaled(relevance, (one * (share @ other.swapaxes(1, 2)), other * (one.swapaxes(1, 2) @ share)))

    return Rules(
        linear=linear,
        add=lambda relevance, one, other: scaled(
            relevance, (one / (one + other) * relevance, other / (one + other) * relevance)
        ),
        matmul=matmul,
        softmax=lambda relevance, x, s: relevance,
        norm=lambda relevance, x, output, weight: relevance,
    )


@pytest.fixture(scope="module")
def model() -> TinyViT:
    return TinyViT()


def test_attn_lrp_is_what_the_rules_give_step_by_step(model):
    maps = METHODS["attn-lrp"](context_of(model, IMAGES, TARGETS)).numpy()
    kernel, offset = (one.detach().numpy() for one in (model.patches.weight, model.patches.bias))
    places = model.places.detach().numpy()[0]
    for number, target in enumerate(TARGETS):
        image = IMAGES[number].numpy()
        tokens = relevance_by_hand(model, image, target, None, _attn_lrp())[1:]
        expected = np.zeros((8, 8))
        for cell, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
            patch = image[:, row : row + 4, column : column + 4]
            for channel in range(len(kernel)):
                whole = (patch * kernel[channel]).sum() + offset[channel] + places[cell + 1, channel]
                shares = patch * kernel[channel] / whole * tokens[cell, channel]
                expected[row : row + 4, column : column + 4] += shares.sum(axis=0)
        np.testing.assert_allclose(maps[number], expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_transformer_attribution_is_what_the_rules_give_step_by_step(model):
    maps = METHODS["transformer-attribution"](context_of(model, IMAGES, TARGETS)).numpy()
    gradients = gradients_by_hand(model, IMAGES, TARGETS)
    for number, target in enumerate(TARGETS):
        rules = _chefer()
        relevance_by_hand(model, IMAGES[number].numpy(), target, 1.0, rules)
        product = np.eye(5)
        for relevance, gradient in zip(reversed(rules.of_weights), gradients, strict=True):
            step = np.eye(5) + np.clip(relevance * gradient[number], 0, None).mean(axis=0)
            product = step @ product
        np.testing.assert_allclose(maps[number], product[0, 1:].reshape(2, 2), rtol=1e-6)


def gradients_by_hand(model: TinyViT, images: Tensor, targets: list[int], step: float = 1e-6) -> list[Array]:
    """The gradient of each image's score at the weights of each block, as a quotient of differences."""
    found = [np.zeros((len(images), 2, 5, 5)) for _ in model.blocks]
    for block, here in enumerate(found):
        for place in np.ndindex(2, 5, 5):
            scores = [_score_with(model, images, targets, block, place, sign * step) for sign in (1, -1)]
            here[(slice(None), *place)] = (scores[0] - scores[1]) / (2 * step)
    return found


def _score_with(model: TinyViT, images: Tensor, targets: list[int], block: int, place: tuple[int, ...], change: float) -> Array:
    """Scores where one weight of one block is changed."""
    seen: list[Tensor] = []

    def call(function, args, kwargs):
        result = function(*args, **kwargs)
        if function is Tensor.softmax:
            seen.append(result)
            if len(seen) == block + 1:
                result = result.clone()
                result[(slice(None), *place)] += change
        return result

    with torch.no_grad(), EagerAttention(call):
        return model(images)[range(len(images)), targets].numpy()


# ---- single rules


def _passed_back(rules, run, *values: Tensor, relevance: Tensor) -> list[Tensor]:
    leaves = [value.clone().requires_grad_() for value in values]
    with EagerAttention(ruled(rules, "m")):
        output = run(*leaves)
    torch.testing.assert_close(output, run(*values))
    return list(torch.autograd.grad(output, leaves, relevance))


STEPS = {
    "linear": lambda x: functional.linear(x, torch.linspace(-9, 9, 16).double().sin().view(2, 8)),
    "matrices": lambda x: (x @ x.mT).flatten(1),
    "gelu": lambda x: functional.gelu(x),
    "silu": lambda x: functional.silu(x),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "layer norm": lambda x: functional.layer_norm(x, (8,), torch.linspace(1, 2, 8).double()),
    "mean": lambda x: x.mean(dim=1),
    "moves": lambda x: torch.cat([x[:, 1:], x[:, :1]], dim=1).transpose(1, 2).reshape(2, 24),
    "residual": lambda x: x + functional.gelu(x),
    "scale": lambda x: x * torch.linspace(1, 2, 8).double() / 3,
    "normalised": lambda x: functional.normalize(x, dim=-1),
}


@pytest.mark.parametrize("name", STEPS)
def test_relevance_is_conserved_by_each_rule(name):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    relevance = torch.rand(STEPS[name](x).shape, dtype=torch.float64)
    (gradient,) = _passed_back(ATTN_LRP, STEPS[name], x, relevance=relevance / STEPS[name](x))
    torch.testing.assert_close((gradient * x).flatten(1).sum(1), relevance.flatten(1).sum(1))
    (found,) = _passed_back(alpha_beta(), STEPS[name], x, relevance=relevance)
    torch.testing.assert_close(found.flatten(1).sum(1), relevance.flatten(1).sum(1), rtol=1e-6, atol=0)


def test_a_function_without_a_rule_is_refused():
    value = torch.ones(2, requires_grad=True)
    for rules in (ATTN_LRP, alpha_beta()):
        with EagerAttention(ruled(rules, "m")), pytest.raises(ExplainerError, match="'m' has no rule for the function exp of"):
            torch.exp(value)
        with EagerAttention(ruled(rules, "m")):
            assert torch.exp(torch.zeros(1)) == 1  # of constants, it needs none


# ---- models of several libraries


def test_windows_are_explained_by_attn_lrp_alone():
    torch.manual_seed(0)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 2)
    )
    images = torch.rand(2, 3, 32, 32)
    found = METHODS["attn-lrp"](context_of(swin.eval(), images, [1, 2]))
    assert found.shape == (2, 32, 32)
    assert (found.std(dim=(1, 2)) > 0).all()
    with pytest.raises(ExplainerError, match="needs attention of all tokens to all tokens"):
        xaieval.explain(swin, images, method="transformer-attribution")


@pytest.mark.parametrize("name", ["attn-lrp", "transformer-attribution"])
def test_networks_without_attention_are_refused_with_what_fits(name):
    with pytest.raises(ExplainerError, match=r"it explains vision transformers.*'gradcam' any model"):
        xaieval.explain(torchvision.models.resnet18(), torch.rand(1, 3, 32, 32), method=name)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(ExplainerError, match="saw no attention"):
        xaieval.explain(flat, torch.rand(1, 3, 2, 2), method=name)


class Writing(TinyViT):
    """Relies on an operation that writes in place."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        functional.relu(logits, inplace=True)
        return logits


@pytest.mark.parametrize("name", ["attn-lrp", "transformer-attribution"])
def test_a_pass_that_gives_another_output_by_rules_is_refused(name):
    with pytest.raises(ExplainerError, match="would explain another output than the model's"):
        METHODS[name](context_of(Writing(), IMAGES, TARGETS))


def test_rows_are_checked_at_once():
    with pytest.raises(ExplainerError, match="rows is one of auto, class, mean"):
        TransformerAttribution(rows="all")
