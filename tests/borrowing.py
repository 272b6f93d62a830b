"""What tests of several adapters ask of a borrowed model: that nothing of it has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.explainers import Context


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything of a model's modules that a library may change, shallowly, and their values."""
    state: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            state[f"{path}|{name}"] = {key: id(item) for key, item in value.items()} if isinstance(value, dict) else value
        state[f"{path}|order"] = list(module._modules)
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"{path}|value"] = (tensor.double().sum().item(), tensor.requires_grad, id(tensor.grad))
    return state


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Check that a model comes back as it was, also where something raises; with gradients, which are somebody's."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = state_of(model)
    random = torch.random.get_rng_state()
    try:
        yield
    finally:
        after = state_of(model)
        assert after == before
        assert torch.equal(torch.random.get_rng_state(), random)
        for parameter in model.parameters():
            parameter.grad = None


def context_of(model: nn.Module, images: Tensor, targets: list[int], **options: Any) -> Context:
    """What an explainer is given, its model frozen as in a run."""
    model.eval().requires_grad_(False)
    with torch.no_grad():
        logits = model(images)
    return Context(model, images, torch.tensor(targets), logits, [str(number) for number in range(len(images))], **options)
