"""Lend a model to another library, and undo everything that the library does to it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from xaieval.inference.borrowing import python_modules
from xaieval.inference.hook_registries import HookRegistries

__all__ = ["lent", "needs_in_place", "outputs_copied", "split_repeated_calls"]

# Attributes that captum sets on modules. It leaves them behind when it raises, and deletes a module's own ones.
CAPTUM_ATTRIBUTES = ("activation", "activations", "input", "input_ref", "output", "rule")


@contextmanager
def lent(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Lend a model: its modules work out of place, and hooks, sub-modules and gradients are restored afterwards.

    Yields the modules that work in place otherwise.

    In-place modules make backward hooks fail, and they overwrite what a library has stored of the layer before.
    """
    modules = python_modules(model)
    states = [_ModuleState(module, model) for module in modules]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        in_place = [module for module in modules if getattr(module, "inplace", False) is True]
        for module in in_place:
            module.inplace = False  # type: ignore[assignment]  # mypy takes attributes of modules for tensors or modules
        yield in_place
    finally:
        for state in states:
            state.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient


_needing: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def needs_in_place(model: nn.Module, changed: Sequence[nn.Module], run: Callable[[], Any]) -> bool:
    """Whether a lent model gives another output than in place, because it does not use what in-place modules return.

    Args:
        model: A model that is lent.
        changed: Its modules that work in place otherwise.
        run: Makes one pass; called twice, the first time that a model is lent.
    """
    if changed and model not in _needing:
        with torch.no_grad():
            expected = tree_leaves(run())
            for module in changed:
                module.inplace = True  # type: ignore[assignment]  # mypy takes attributes of modules for tensors or modules
            found = tree_leaves(run())
            for module in changed:
                module.inplace = False  # type: ignore[assignment]
        pairs = zip(expected, found, strict=True)
        tensors = [(one, other) for one, other in pairs if isinstance(one, Tensor)]
        _needing[model] = not all(torch.allclose(one, other, 1e-3, 1e-5, equal_nan=True) for one, other in tensors)
    return bool(changed) and _needing[model]


class _ModuleState:
    """Everything that a library may change of one module."""

    def __init__(self, module: nn.Module, model: nn.Module) -> None:
        self.module = module
        self.hooks = HookRegistries(module, model)
        attributes = vars(module)
        self.values = {name: attributes[name] for name in ("inplace", *CAPTUM_ATTRIBUTES) if name in attributes}
        self.registries = {
            name: dict(attributes[name])
            for name in ("_modules", "_parameters", "_buffers")
            if isinstance(attributes[name], dict)
        }

    def restore(self) -> None:
        attributes = vars(self.module)
        for name in CAPTUM_ATTRIBUTES:
            attributes.pop(name, None)
        attributes.update(self.values)
        self.hooks.restore()
        for name, content in self.registries.items():
            attributes[name].clear()
            attributes[name].update(content)


class _CopyPerCall(nn.Module):
    """A module that runs several times in a pass, as one copy for each call."""

    def __init__(self, module: nn.Module, count: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(module) for _ in range(count))
        self.next = 0

    def forward(self, *inputs: Tensor) -> Any:
        number, self.next = self.next, (self.next + 1) % len(self.copies)
        return self.copies[number](*inputs)


def split_repeated_calls(model: nn.Module, run: Callable[[], Any]) -> None:
    """Replace modules without parameters that run several times in a pass, such as the ReLU of a block, by a copy per call.

    A library that stores tensors on modules then finds a module of its own for each call. Call this within `lent`, which puts
    the original modules back.

    Args:
        model: A model that is lent.
        run: Makes one pass.
    """
    stateless = [
        module for module in python_modules(model) if not [*module.children(), *module.parameters(), *module.buffers()]
    ]
    calls: Counter[nn.Module] = Counter()
    handles = [module.register_forward_pre_hook(lambda module, _: calls.update([module])) for module in stateless]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    copies = {module: _CopyPerCall(module, count) for module, count in calls.items() if count > 1}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in copies:
                parent._modules[name] = copies[child]


@contextmanager
def outputs_copied(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Hand on copies of these modules' outputs, so that an in-place operation does not overwrite what a library has stored.

    Enter it after the library has registered its hooks, which then see the output itself.
    """
    handles = [module.register_forward_hook(lambda module, inputs, output: _copied(output)) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output
