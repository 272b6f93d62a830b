"""A vision transformer that is small enough to be computed by hand, and a pass of it in NumPy, forward and back by rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor, nn
from torch.nn import functional

Array = np.ndarray
HEADS, WIDTH, CELLS = 2, 8, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class TinyViT(nn.Module):
    """Two blocks on four patches of 4 x 4 pixels and a class token, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, CELLS + 1, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.6)
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


@dataclass
class Rules:
    """What relevance becomes on the way back, for each kind of step."""

    linear: Callable[[Array, Array, Array, Array], Array]
    add: Callable[[Array, Array, Array], tuple[Array, Array]]
    matmul: Callable[[Array, Array, Array], tuple[Array, Array]]
    softmax: Callable[[Array, Array, Array], Array]
    norm: Callable[[Array, Array, Array, Array], Array]
    weights: list[Array] = field(default_factory=list)  # of attention, `[heads, T, T]`, the last block first
    of_weights: list[Array] = field(default_factory=list)  # the relevance of these


def _of(module: nn.Module) -> tuple[Array, Array]:
    return module.weight.detach().numpy(), module.bias.detach().numpy()


def _norm(module: nn.Module, x: Array) -> Array:
    weight, bias = _of(module)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + module.eps) * weight + bias


def _gelu(x: Array) -> Array:
    return x * scipy.special.ndtr(x)


def relevance_by_hand(model: TinyViT, image: Array, target: int, start: Any, rules: Rules) -> Array:
    """The relevance `[T, WIDTH]` of the tokens that enter the first block, for one image.

    Args:
        model: The network.
        image: `[3, 8, 8]`.
        target: The class.
        start: The relevance of its logit, or None for the logit itself.
        rules: The rules, which get the attention weights and their relevance.
    """
    kernel, offset = _of(model.patches)
    corners = [(row, column) for row in (0, 4) for column in (0, 4)]
    cells = [[(image[:, r : r + 4, c : c + 4] * one).sum() for one in kernel] for r, c in corners]
    x = np.vstack([model.token.detach().numpy()[0], np.array(cells) + offset]) + model.places.detach().numpy()[0]
    tapes = []
    for block in model.blocks:
        tape: dict[str, Array] = {"x": x, "n1": _norm(block.norm1, x)}
        weight, bias = _of(block.qkv)
        qkv = (tape["n1"] @ weight.T + bias).reshape(len(x), 3, HEADS, -1).transpose(1, 2, 0, 3)
        tape["q"], tape["k"], tape["v"] = qkv
        tape["raw"] = tape["q"] @ tape["k"].transpose(0, 2, 1)
        tape["scores"] = tape["raw"] / np.sqrt(qkv.shape[-1])
        tape["a"] = np.exp(tape["scores"]) / np.exp(tape["scores"]).sum(-1, keepdims=True)
        tape["o"] = (tape["a"] @ tape["v"]).transpose(1, 0, 2).reshape(len(x), -1)
        tape["p"] = tape["o"] @ _of(block.proj)[0].T + _of(block.proj)[1]
        tape["y"] = x + tape["p"]
        tape["n2"] = _norm(block.norm2, tape["y"])
        tape["h"] = tape["n2"] @ _of(block.fc1)[0].T + _of(block.fc1)[1]
        tape["g"] = _gelu(tape["h"])
        tape["m"] = tape["g"] @ _of(block.fc2)[0].T + _of(block.fc2)[1]
        x = tape["y"] + tape["m"]
        tapes.append(tape)
    normed = _norm(model.norm, x)
    logits = normed[0] @ _of(model.head)[0].T + _of(model.head)[1]
    relevance = np.zeros(5)
    relevance[target] = logits[target] if start is None else start
    back = np.zeros_like(normed)
    back[0] = rules.linear(relevance[None], normed[:1], *_of(model.head))[0]
    back = rules.norm(back, x, normed, _of(model.norm)[0])
    for block, tape in zip(reversed(model.blocks), reversed(tapes), strict=True):
        skipped, inner = rules.add(back, tape["y"], tape["m"])
        inner = rules.linear(inner, tape["g"], *_of(block.fc2))
        inner = rules.linear(inner, tape["n2"], *_of(block.fc1))  # the activation hands on what it gets
        back = skipped + rules.norm(inner, tape["y"], tape["n2"], _of(block.norm2)[0])
        skipped, inner = rules.add(back, tape["x"], tape["p"])
        inner = rules.linear(inner, tape["o"], *_of(block.proj))
        inner = inner.reshape(len(x), HEADS, -1).transpose(1, 0, 2)
        of_weights, of_values = rules.matmul(inner, tape["a"], tape["v"])
        rules.weights.append(tape["a"])
        rules.of_weights.append(of_weights)
        scores = rules.softmax(of_weights, tape["scores"], tape["a"])
        of_query, of_key = rules.matmul(scores, tape["q"], tape["k"].transpose(0, 2, 1))
        both = np.stack([of_query, of_key.transpose(0, 2, 1), of_values]).transpose(2, 0, 1, 3).reshape(len(x), -1)
        inner = rules.linear(both, tape["n1"], *_of(block.qkv))
        back = skipped + rules.norm(inner, tape["x"], tape["n1"], _of(block.norm1)[0])
    return back
