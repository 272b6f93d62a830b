"""Time of `score` compared with the passes that it needs at least: N (F + B + L M F) for N images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from compare import Setting
from networks import METHODS, Batches, Network, Scale
from peer_loops import ours
from record import replace_rows
from timing import alternate, spread
from torch import Tensor, nn

from xaieval.inference.batch_limit import BatchLimit
from xaieval.inference.borrowing import borrow
from xaieval.inference.forward_passes import Runner, sped_up

__all__ = ["efficiency", "prepared"]

# Layers x methods, and the number of images for ResNet-50: a call takes about five seconds, so that its fixed cost counts for
# little. Faster networks get the same images several times.
SETTINGS = {Setting(1, 1): 64, Setting(4, 1): 64, Setting(4, 4): 24, Setting(8, 4): 16}
FASTER = {"resnet50": 1, "mobilenetv2": 3, "vit_small": 1}
SIZE = 8
KEYS = ("model", "layers", "methods")


BASELINES = {"as given": False, "as score runs it": True}


@contextmanager
def prepared(model: nn.Module, images: Tensor, layers: Sequence[str], fast: bool) -> Iterator[Runner]:
    """A copy of the model without parameter gradients: unchanged, or as `score` runs it."""
    model = deepcopy(model)
    with borrow(model), sped_up(model, images, layers, BatchLimit(len(images)), fast=fast) as runner:
        yield runner


def efficiency(
    network: Network, scale: Scale, rounds: int | None, out: Path, only: Sequence[Setting] = tuple(SETTINGS)
) -> None:
    """Time of the bare passes over the time of `score`, measured in turn, for both baselines."""
    rounds = rounds or (3 if scale.quick else 7)
    size = 2 if scale.quick else SIZE
    for setting in only:
        images = SETTINGS[setting]
        batches = network.batches(4 if scale.quick else images, size) * FASTER[network.name] * scale.more
        rows = _measure(network, batches, setting, rounds)
        replace_rows(out / "limit.csv", rows, KEYS)
        print(*(f"{row['model']} {setting} {row['baseline']}: {row['efficiency']:.3f}" for row in rows), sep="\n", flush=True)


def _measure(network: Network, batches: Batches, setting: Setting, rounds: int) -> list[dict[str, Any]]:
    layers = network.layers(setting.layers)
    contestants: dict[str, Callable[[], object]] = {
        "score": partial(ours, network, batches, layers, METHODS[: setting.methods])
    }
    with ExitStack() as undo:
        for name, fast in BASELINES.items():
            runner = undo.enter_context(prepared(network.model, batches[0][0], layers, fast))
            contestants[name] = partial(bare, runner, batches, layers[0], setting.maps)
        for work in contestants.values():
            work()  # the first pass of a shape is slower
        seconds = alternate(contestants, rounds)
    count = sum(len(images) for images, _ in batches)
    return [
        {
            "model": network.name,
            "layers": setting.layers,
            "methods": setting.methods,
            "maps": setting.maps,
            "baseline": name,
            "batch_size": len(batches[0][0]),
            "n_images": count,
            "rounds": rounds,
            **spread(seconds[name] / seconds["score"], "efficiency"),
            **spread(seconds["score"], "score_seconds"),
            **spread(seconds[name], "bare_seconds"),
        }
        for name in BASELINES
    ]


def bare(runner: Runner, batches: Batches, shallowest: str, maps: int) -> None:
    """For each batch: a forward pass, a backward pass to the shallowest layer, and `maps` forward passes."""
    leaves: list[Tensor] = []

    def start_graph(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # the next module may work in place

    for images, targets in batches:
        images = runner.lay_out(images)
        handle = runner.model.get_submodule(shallowest).register_forward_hook(start_graph)
        logits = runner.model(images)
        handle.remove()
        torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), [leaves.pop()])
        with torch.inference_mode():
            for _ in range(maps):
                runner.model(images)
