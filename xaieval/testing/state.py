"""The state of a model that an explainer may change: read, compared and restored; and seeds for all random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["equal", "model_state", "restore", "seed_everything", "zero_weights"]


def model_state(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that an explainer may change, by name."""
    state: dict[str, Any] = {}
    for path, module in model.named_modules():
        at = path or "the model"
        state[f"{at}: kind"] = type(module)
        for name, value in vars(module).items():
            if name.endswith("_hooks"):
                state[f"{at}: {name}"] = tuple(value)
            elif not name.startswith("_") and (isinstance(value, bool | int | float | str) or callable(value)):
                state[f"{at}: {name}"] = value
    for name, parameter in model.named_parameters():
        state[f"{name}: value"] = parameter.detach().clone()
        state[f"{name}: requires_grad"] = parameter.requires_grad
        state[f"{name}: grad"] = None if parameter.grad is None else parameter.grad.clone()
    return state | {f"{name}: value": buffer.detach().clone() for name, buffer in model.named_buffers()}


def restore(model: nn.Module, before: dict[str, Any]) -> None:
    """Restore the values of parameters and buffers, for later checks and for the caller."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            earlier = before.get(f"{name}: value")
            if earlier is not None and not equal(tensor, earlier):
                tensor.copy_(earlier)


@contextmanager
def zero_weights(model: nn.Module) -> Iterator[None]:
    """Set all weights to zero, so that the model's output is the same for all images, and restore them afterwards."""
    weights = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in weights:
            parameter.data = torch.zeros_like(data)
        yield
    finally:
        for parameter, data in weights:
            parameter.data = data


def seed_everything(seed: int) -> None:
    """Seed all global random numbers and draw a few, so that an explainer that seeds them again changes their state."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # explainers may draw from it
    torch.rand(3), random.getrandbits(8), np.random.bytes(3)  # noqa: NPY002  # explainers may draw from it


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal bit by bit, where NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(((one == other) | (one != one) & (other != other)).all())
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)
