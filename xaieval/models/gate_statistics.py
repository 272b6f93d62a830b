"""What the attention maps of a model do: their values, and how many predictions depend on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xaieval.errors import ModelError
from xaieval.models.attention import AttentionBranch

__all__ = ["GateStatistics", "gate_statistics"]

QUANTILES = {"low": 0.05, "median": 0.5, "high": 0.95}
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GateStatistics:
    """Statistics of a model's attention maps over some images.

    Attributes:
        values: By branch, the 5 %, 50 % and 95 % quantiles `low`, `median` and `high` of the maps, in [0, 1], and `contrast`, the
            standard deviation within a map relative to its mean, averaged over the images.
        changed_without: The share of predictions that change if the maps do nothing, in [0, 1].
        changed_shuffled: The share of predictions that change if the cells of each map are shuffled, in [0, 1].
        n_images: The number of images.
    """

    values: dict[str, dict[str, float]]
    changed_without: float
    changed_shuffled: float
    n_images: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


@torch.inference_mode()
def gate_statistics(model: nn.Module, batches: Iterable[Tensor], seed: int = 0) -> GateStatistics:
    """Measure what the attention maps of an `FAL` or an `ABNClassifier` do, in eval mode.

    Args:
        model: The model. It is given back as it was.
        batches: Batches of images `[N, 3, H, W]` on its device.
        seed: Seed of the shuffling.

    Raises:
        ModelError: The model has no attention branch, or there are no images.

    Example:
        >>> from xaieval.models import FAL
        >>> model = FAL("test_resnet", num_classes=10, attention_levels=["p3"], channels=32)
        >>> found = gate_statistics(model, [torch.rand(2, 3, 64, 64)])
        >>> found.n_images, list(found.values["p3"])
        (2, ['low', 'median', 'high', 'contrast'])
    """
    branches = _branches(model)
    generator = torch.Generator().manual_seed(seed)
    changes: dict[str, Change] = {"without": _neutral(model), "shuffled": lambda maps: _shuffled(maps, generator)}
    maps: dict[str, list[Tensor]] = {name: [] for name in branches}
    contrasts: dict[str, list[Tensor]] = {name: [] for name in branches}
    changed, count = dict.fromkeys(changes, 0), 0
    with _evaluating(model):
        for images in batches:
            output = model(images, details=True)
            predicted = output.logits.argmax(dim=1)
            count += len(images)
            for name, found in output.attention_maps.items():
                flat = found.float().flatten(1).cpu()
                maps[name].append(flat.flatten())
                contrasts[name].append(flat.std(dim=1, correction=0) / flat.mean(dim=1))
            for name, change in changes.items():
                with _changed(branches.values(), change):
                    changed[name] += int((model(images).argmax(dim=1) != predicted).sum())
    if not count:
        raise ModelError("statistics of attention maps need at least one image, got none")
    values = {name: _values(torch.cat(maps[name]), torch.cat(contrasts[name])) for name in branches}
    return GateStatistics(values, changed["without"] / count, changed["shuffled"] / count, count)


def _branches(model: nn.Module) -> dict[str, AttentionBranch]:
    """The attention branches of a model, by the names that its output gives them."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, AttentionBranch)}
    if not found:
        raise ModelError(f"{type(model).__name__} has no attention branch; give an FAL or an ABNClassifier")
    return {path.removeprefix("attention."): module for path, module in found.items()}


def _neutral(model: nn.Module) -> Change:
    """The change that makes maps do nothing: 0 everywhere, or 1 if the model takes them relative to their mean."""
    value = float(getattr(getattr(model, "design", None), "gate", "amplify") == "focus")
    return lambda maps: torch.full_like(maps, value)


def _shuffled(maps: Tensor, generator: torch.Generator) -> Tensor:
    """The maps `[N, 1, h, w]` with their cells in another order, each map in its own."""
    order = torch.rand(maps.shape[0], maps[0].numel(), generator=generator).argsort(dim=1).to(maps.device)
    return maps.flatten(1).gather(1, order).view_as(maps)


def _values(maps: Tensor, contrasts: Tensor) -> dict[str, float]:
    quantiles = {name: float(np.quantile(maps.numpy(), share)) for name, share in QUANTILES.items()}
    return quantiles | {"contrast": float(contrasts.mean())}


@contextmanager
def _changed(branches: Iterable[AttentionBranch], change: Change) -> Iterator[None]:
    """Let the branches give changed maps."""

    def hook(module: nn.Module, inputs: Any, output: dict[str, Tensor]) -> dict[str, Tensor]:
        return output | {"map": change(output["map"])}

    with ExitStack() as stack:
        for branch in branches:
            stack.enter_context(branch.register_forward_hook(hook))
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
