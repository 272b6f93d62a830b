"""What a metric of a run is given, for images of one channel and a model that is known: linear in the pixels, or tiny."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import xaieval
from xaieval.config.protocol import Protocol

SIDE = 8


def tiny(channels: int = 1, side: int = SIDE) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * (side // 2) ** 2, 5)
    ).eval()


def pictures(count: int = 4, channels: int = 1, side: int = SIDE, start: int = 0) -> Tensor:
    each = (torch.Generator().manual_seed(number) for number in range(start, start + count))
    return torch.stack([torch.randn(channels, side, side, generator=one) for one in each])


def maps_of(images: Tensor) -> Tensor:
    """Maps with signs and without ties."""
    return torch.randn(len(images), *images.shape[2:], generator=torch.Generator().manual_seed(99))


def drawn(count: int) -> Callable[[Sequence[int], str], Tensor]:
    """Random numbers by image and name, as a run draws them."""

    def draw(shape: Sequence[int], name: str) -> Tensor:
        seeds = [hashlib.sha256(f"{number}:{name}".encode()).digest()[:6] for number in range(count)]
        each = [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]
        return torch.stack([torch.rand(tuple(shape), generator=one) for one in each])

    return draw


def asker(model: nn.Module, images: Tensor) -> Callable[[Any], Tensor]:
    """Confidences of the classes predicted on the images, on any images."""
    with torch.no_grad():
        targets = model(images).argmax(dim=1)

    def ask(blocks: Any) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(some).double().softmax(dim=1)[range(len(of)), targets[of]] for some, of in blocks])

    return ask


def linear(weights: Tensor) -> Callable[[Any], Tensor]:
    """A confidence that is linear in the pixels."""
    return lambda blocks: torch.cat([(some.double() * weights).flatten(1).sum(dim=1) for some, _ in blocks])


def evidence(ask: Callable[[Any], Tensor], images: Tensor, maps: Tensor, **others: Any) -> dict[str, Any]:
    confidence = ask([(images, torch.arange(len(images)))])
    known = {"confidence": confidence, "attributions": maps, "maps": maps, "images": images, "ask": ask}
    return known | {"protocol": Protocol(), "draw": drawn(len(images))} | others


def run_in_batches(metrics: Sequence[Any], **choices: Any) -> xaieval.Scores:
    """The metrics have columns with intervals, whose rows do not depend on the batch."""

    def run(*counts: int, batch_size: int = 64) -> xaieval.Scores:
        starts = np.cumsum((0, *counts))
        loader = [
            {"images": pictures(count, 3, start=int(start)), "ids": [f"{start + number}" for number in range(count)]}
            for start, count in zip(starts, counts, strict=False)
        ]
        given = {"layers": ["1"], "methods": ("gradcam", "random"), "progress": False, "batch_size": batch_size} | choices
        return xaieval.score(tiny(3), loader, metrics=metrics, **given)

    whole, parts = run(5), run(3, 2, batch_size=7)
    names = [metric if isinstance(metric, str) else metric.name for metric in metrics]
    summary = whole.summary()
    for name in names:
        np.testing.assert_allclose(whole.rows[name], parts.rows[name], rtol=1e-4, atol=1e-5)
        assert whole.rows[name].notna().any()
        known = summary[f"{name}_low"].notna()  # equal values have no interval
        assert known.any()
        assert (summary[f"{name}_low"] <= summary[name])[known].all()
    return whole
