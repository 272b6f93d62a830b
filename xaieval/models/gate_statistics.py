"""What the attention maps of a model do: their values, and how many predictions depend on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xaieval.data.batches import read_batches
from xaieval.errors import DataError, ModelError
from xaieval.models.abn import ABNClassifier
from xaieval.models.fal import FAL
from xaieval.models.modes import evaluating

__all__ = ["GateStatistics", "gate_statistics"]

QUANTILES = {"low": 0.05, "median": 0.5, "high": 0.95}
Change = Callable[[str, Tensor], Tensor]  # of the maps of a branch


@dataclass(frozen=True)
class GateStatistics:
    """Statistics of a model's attention maps over some images.

    Attributes:
        values: By branch, the 5 %, 50 % and 95 % quantiles `low`, `median` and `high` of all values of the maps, in [0, 1], and
            `contrast`, the standard deviation within a map relative to its mean, averaged over the images.
        changed_without: The share of predictions that change if the maps do nothing, in [0, 1].
        changed_shuffled: The share of predictions that change if the cells of each map are shuffled, in [0, 1].
        n_images: The number of images; those that could not be read do not count.
    """

    values: dict[str, dict[str, float]]
    changed_without: float
    changed_shuffled: float
    n_images: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


@torch.inference_mode()
def gate_statistics(model: nn.Module, loader: Iterable[Any], seed: int = 0) -> GateStatistics:
    """Measure in eval mode what the attention maps of an `FAL` or an `ABNClassifier` do.

    A map does nothing in `(1 + M) * g` if it is 0, and in `M / mean(M) * g` if it is constant. A twin does not use its maps, so
    its predictions stay.

    Args:
        model: The model. It is given back as it was.
        loader: Batches of images in any form that `xaieval.score` reads. They are brought to the model's device and dtype.
        seed: Seed of the shuffling. The shuffled maps do not depend on how the images are batched.

    Raises:
        ModelError: The model is no `FAL` or `ABNClassifier`.
        DataError: There are no images, none of them can be read, or a batch has an unknown form.

    Example:
        >>> model = FAL("test_resnet", num_classes=10, attention_levels=["p3"], channels=32)
        >>> found = gate_statistics(model, [torch.rand(2, 3, 64, 64)])
        >>> found.n_images, list(found.values["p3"])
        (2, ['low', 'median', 'high', 'contrast'])
    """
    branches, like = _branches(model), next(model.parameters())
    changes = {"without": _without(model), "shuffled": _shuffled(branches, seed)}
    seen, changed = {name: _Values() for name in branches}, dict.fromkeys(changes, 0)
    count = 0
    with evaluating(model):
        for images in (batch.images.to(like) for batch in read_batches(loader) if len(batch)):
            output = model(images, details=True)
            for name, maps in output.attention_maps.items():
                seen[name].add(maps)
            for name, change in changes.items():
                with _changed(branches, change):
                    changed[name] += int((model(images).argmax(dim=1) != output.logits.argmax(dim=1)).sum())
            count += len(images)
    if not count:
        raise DataError("statistics of attention maps need an image, but none of the loader's images could be read")
    values = {name: found.summary() for name, found in seen.items()}
    return GateStatistics(values, changed["without"] / count, changed["shuffled"] / count, count)


def _branches(model: nn.Module) -> dict[str, nn.Module]:
    """The attention branches of a model, by the names that its output gives them."""
    if isinstance(model, ABNClassifier):
        return {"attention": model.attention}
    if isinstance(model, FAL):
        return dict(model.attention.items())
    raise ModelError(f"attention maps are those of an FAL or an ABNClassifier, got {type(model).__name__}")


def _without(model: nn.Module) -> Change:
    """Maps that do nothing."""
    neutral = 1.0 if isinstance(model, FAL) and model.design.gate == "focus" else 0.0
    return lambda name, maps: torch.full_like(maps, neutral)


def _shuffled(branches: Iterable[str], seed: int) -> Change:
    """Maps `[N, 1, h, w]` with their cells in another order, each map in its own."""
    generators = {name: torch.Generator().manual_seed(seed) for name in branches}

    def shuffle(name: str, maps: Tensor) -> Tensor:
        order = torch.rand(len(maps), maps[0].numel(), generator=generators[name]).argsort(dim=1)
        return maps.flatten(1).gather(1, order.to(maps.device)).view_as(maps)

    return shuffle


@dataclass
class _Values:
    """The values of the maps of a branch, collected over batches."""

    cells: list[Tensor] = field(default_factory=list)
    contrasts: list[Tensor] = field(default_factory=list)

    def add(self, maps: Tensor) -> None:
        flat = maps.float().flatten(1).cpu()
        self.cells.append(flat.flatten())
        # A map of 0 everywhere has no contrast.
        self.contrasts.append(flat.std(dim=1, correction=0) / flat.mean(dim=1).clamp_min(torch.finfo(flat.dtype).tiny))

    def summary(self) -> dict[str, float]:
        cells = torch.cat(self.cells).numpy()
        quantiles = {name: float(np.quantile(cells, share)) for name, share in QUANTILES.items()}
        return quantiles | {"contrast": float(torch.cat(self.contrasts).mean())}


@contextmanager
def _changed(branches: Mapping[str, nn.Module], change: Change) -> Iterator[None]:
    """Let the branches give changed maps."""

    def hook(name: str) -> Callable[..., dict[str, Tensor]]:
        return lambda module, inputs, output: output | {"map": change(name, output["map"])}

    with ExitStack() as stack:
        for name, branch in branches.items():
            stack.enter_context(branch.register_forward_hook(hook(name)))
        yield
