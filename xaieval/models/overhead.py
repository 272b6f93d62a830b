"""Cost of a model relative to another: parameters, multiply-adds, time and memory of a forward pass."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from xaieval.errors import ModelError
from xaieval.models.modes import evaluating

__all__ = ["Overhead", "overhead"]


@dataclass(frozen=True)
class Overhead:
    """Costs of a model, and their ratios to the costs of a reference on the same images.

    Attributes:
        parameters: The number of parameters.
        multiply_adds: The multiply-adds of a forward pass per image (convolutions and matrix products, counted by torch).
        parameters_ratio: The ratio of the numbers of parameters.
        multiply_adds_ratio: The ratio of the multiply-adds.
        latency_ratio: The median of the ratios of alternating forward passes.
        latency_low: The smallest of these ratios.
        latency_high: The largest of these ratios.
        memory_ratio: The ratio of the peak memory of a forward pass: tensors alive at a time, without images and weights.
    """

    parameters: int
    multiply_adds: int
    parameters_ratio: float
    multiply_adds_ratio: float
    latency_ratio: float
    latency_low: float
    latency_high: float
    memory_ratio: float

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


def overhead(model: nn.Module, reference: nn.Module, images: Tensor, repeats: int = 9) -> Overhead:
    """Measure the costs of a model and of a reference in eval mode, side by side.

    Args:
        model: The model, from images to logits.
        reference: The model to compare with, on the same device.
        images: A batch `[N, C, H, W]` on that device.
        repeats: The number of timed forward passes of each model, in alternation, after one for warm-up.

    Raises:
        ModelError: `repeats` is less than 1, there are no images, or the reference has no multiply-adds.

    Example:
        >>> from xaieval.models import FAL, FPNClassifier
        >>> fpn = FPNClassifier("test_resnet", num_classes=10, channels=32)
        >>> cost = overhead(FAL.from_fpn(fpn, ["p2"]), fpn, torch.rand(2, 3, 64, 64), repeats=1)
        >>> cost.parameters_ratio > 1, cost.multiply_adds_ratio > 1
        (True, True)
    """
    if repeats < 1 or not len(images):
        raise ModelError(f"costs are measured on at least one image in at least one repeat, got {len(images)} and {repeats}")
    with torch.inference_mode(), evaluating(model, reference):
        ours, theirs = (_multiply_adds(each, images) for each in (model, reference))
        memory = _peak(model, images) / _peak(reference, images)
        ratios = [_seconds(model, images) / _seconds(reference, images) for _ in range(repeats + 1)][1:]
    if not theirs:
        raise ModelError("the reference has no multiply-adds to compare with")
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, reference)]
    return Overhead(
        parameters=sizes[0],
        multiply_adds=ours,
        parameters_ratio=sizes[0] / sizes[1],
        multiply_adds_ratio=ours / theirs,
        latency_ratio=median(ratios),
        latency_low=min(ratios),
        latency_high=max(ratios),
        memory_ratio=memory,
    )


def _multiply_adds(model: nn.Module, images: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(images)
    return int(counter.get_total_flops() // 2 // len(images))


def _seconds(model: nn.Module, images: Tensor) -> float:
    wait: Callable[[], Any] = torch.cuda.synchronize if images.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    model(images)
    wait()
    return time.perf_counter() - start


def _peak(model: nn.Module, images: Tensor) -> int:
    """Peak memory of the tensors that a forward pass allocates, in bytes."""
    with _Alive() as alive:
        model(images)
    return alive.most


class _Alive(TorchDispatchMode):
    """Track the storages that operations allocate, on any device, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and (storage := _storage(leaf)) not in inputs and storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
