"""What of a model can be left changed, read off and put back; and random numbers from a start."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["dead", "equal", "model_state", "put_back", "seed_everything"]


def model_state(model: nn.Module) -> dict[str, Any]:
    """All of a model that an explainer can leave changed, by a name for each."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        at = path or "the model"
        found[f"{at}: kind"] = type(module)
        for name, value in vars(module).items():
            if name.endswith("_hooks"):
                found[f"{at}: {name}"] = tuple(value)
            elif not name.startswith("_") and (isinstance(value, bool | int | float | str) or callable(value)):
                found[f"{at}: {name}"] = value
    for name, parameter in model.named_parameters():
        found[f"{name}: value"] = parameter.detach().clone()
        found[f"{name}: requires_grad"] = parameter.requires_grad
        found[f"{name}: grad"] = None if parameter.grad is None else parameter.grad.clone()
    return found | {f"{name}: value": buffer.detach().clone() for name, buffer in model.named_buffers()}


def put_back(model: nn.Module, before: dict[str, Any]) -> None:
    """The numbers of parameters and buffers, so that later checks and the caller find them."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            earlier = before.get(f"{name}: value")
            if earlier is not None and not equal(tensor, earlier):
                tensor.copy_(earlier)


@contextmanager
def dead(model: nn.Module) -> Iterator[None]:
    """The model with weights of zero, which gives the same for all images."""
    own = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in own:
            parameter.data = torch.zeros_like(data)
        yield
    finally:
        for parameter, data in own:
            parameter.data = data


def seed_everything(seed: int) -> None:
    """Start all global random numbers, a few of them drawn, so that seeding them again makes a difference."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # these are the ones to start
    torch.rand(3), random.getrandbits(8), np.random.bytes(3)  # noqa: NPY002  # likewise


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same to the last bit; NaN is NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return bool(((one == other) | (one != one) & (other != other)).all())
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)
