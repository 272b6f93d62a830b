"""A small model, images of noise, random numbers as a run draws them, and Quantus with the same noise."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import xaieval
from xaieval.metrics.changes import NOISE

Explain = Callable[[Tensor], Tensor]


def tiny(classes: int = 5) -> nn.Module:
    """A network that predicts several classes on images of noise."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, classes),
    ).eval()
    with torch.no_grad():
        model[-1].bias.sub_(model(pictures(20)).mean(dim=0))
    return model


def pictures(count: int = 5, start: int = 0, side: int = 12) -> Tensor:
    return torch.stack(
        [torch.randn(3, side, side, generator=torch.Generator().manual_seed(index)) for index in range(start, start + count)]
    )


def drawn(count: int) -> Callable[[Sequence[int], str], Tensor]:
    """Random numbers by image and name, as a run draws them for its images "0", "1", ..."""

    def draw(shape: Sequence[int], name: str) -> Tensor:
        found = []
        for number in range(count):
            digest = hashlib.sha256(f"0:{number}:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            found.append(torch.rand(tuple(shape), generator=generator))
        return torch.stack(found)

    return draw


def noises(name: str, samples: int, size: float, noise: str, images: Tensor) -> list[Tensor]:
    """The noises that a metric adds to the images, one after the other."""
    draw = drawn(len(images))
    return [(size * NOISE[noise](draw(images.shape[1:], f"{name} {number}"))).to(images.dtype) for number in range(samples)]


class Look(NamedTuple):
    """What a metric is told about images; `maps` may be those before normalisation."""

    maps: Tensor
    attributions: Tensor
    predicted: Tensor
    logits: Tensor
    activation: Tensor | None


def looking(explain: Explain, model: nn.Module | None = None, layer: int = 2) -> Callable[[Tensor], Look]:
    """An `inspect` for a function from images to maps."""
    model = tiny() if model is None else model

    def inspect(images: Tensor) -> Look:
        maps = explain(images)
        with torch.no_grad():
            logits, activation = model(images), model[: layer + 1](images)
        return Look(maps, maps, logits.argmax(dim=1), logits, activation)

    return inspect


def quantus_scores(name: str, images: Tensor, explain: Explain, added: Sequence[Tensor] = (), **settings: Any) -> np.ndarray:
    """A metric of Quantus, with this explanation and this noise instead of its own."""
    waiting = iter(added)

    def perturb(arr: np.ndarray, indices: Any, **_: Any) -> np.ndarray:
        return arr + next(waiting).numpy().reshape(arr.shape)

    def explained(model: Any, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        given = torch.as_tensor(np.asarray(inputs), dtype=images.dtype)
        return explain(given.view(-1, *images.shape[1:])).detach().numpy()[:, None]

    if added:
        settings |= {"perturb_func": perturb, "nr_samples": len(added)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Quantus' own imports and remarks
        quantus = pytest.importorskip("quantus", reason="a tool to compare with, which the package does not need")
        metric = getattr(quantus, name)(disable_warnings=True, display_progressbar=False, **settings)
        model = tiny()
        with torch.no_grad():
            labels = model(images).argmax(dim=1).numpy()
        found = metric(model=model, x_batch=images.numpy(), y_batch=labels, explain_func=explained, channel_first=True)
    return np.asarray(found)


def rows_do_not_depend_on_the_batch(metrics: Any, *names: str, rtol: float = 1e-4, **options: Any) -> Any:
    """Check a run of five images against one in two batches, and return it."""
    given: dict[str, Any] = {"layers": ["2"], "methods": ("gradcam", "center"), "metrics": metrics, "progress": False} | options
    whole = xaieval.score(tiny(), [pictures()], **given)
    parts = xaieval.score(tiny(), [pictures(2), pictures(3, 2)], **given)
    for name in names:
        np.testing.assert_allclose(whole.rows[name], parts.rows[name], rtol=rtol, atol=1e-6)
        summary = whole.summary().loc[("2", given["methods"][0])]
        assert summary[f"{name}_low"] <= summary[name] <= summary[f"{name}_high"]
    return whole
