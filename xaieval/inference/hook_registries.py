"""Tell the hooks that a model registers in its own passes from those that other code leaves on it.

Models of transformers install recording hooks in a pass, and remember that they did. These hooks have to stay. A method that
explains a model registers its hooks outside of passes, and those have to go. Every hook has a number, given out in order by
torch, so the numbers given out during a pass say which hooks are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["HookRegistries", "in_pass", "watched"]

_spans: dict[int, list[range]] = {}  # by id of a borrowed model: numbers given out during its passes


@contextmanager
def watched(model: nn.Module) -> Iterator[None]:
    """Keep account of the hooks that a model registers in its passes, until this context ends."""
    if id(model) in _spans:  # borrowed once more by the same thread
        yield
        return
    _spans[id(model)] = []
    try:
        yield
    finally:
        del _spans[id(model)]


@contextmanager
def in_pass(model: nn.Module) -> Iterator[None]:
    """Make a pass of a watched model: hooks that are registered inside this context are the model's own."""
    first = RemovableHandle.next_id
    try:
        yield
    finally:
        if RemovableHandle.next_id > first and id(model) in _spans:
            _spans[id(model)].append(range(first, RemovableHandle.next_id))


class HookRegistries:
    """The hooks of a module at one moment.

    Args:
        module: The module.
        model: The borrowed model that it belongs to.
    """

    def __init__(self, module: nn.Module, model: nn.Module) -> None:
        self.module = module
        self.model = model
        attributes = vars(module)
        self.hooks = {name: dict(value) for name, value in attributes.items() if "_hooks" in name and isinstance(value, dict)}
        self.is_full = attributes.get("_is_full_backward_hook")

    def restore(self) -> None:
        """Remove hooks that others have added since, and put back those that they have removed."""
        attributes = vars(self.module)
        for name, before in self.hooks.items():
            registry = attributes[name]
            for number in [number for number in registry if number not in before and not self._is_own(number)]:
                del registry[number]
            if any(number not in registry for number in before):
                wanted = {**before, **registry}
                registry.clear()
                registry.update(wanted)
        if "_backward_hooks" in attributes and attributes["_backward_hooks"].keys() == self.hooks["_backward_hooks"].keys():
            attributes["_is_full_backward_hook"] = self.is_full

    def _is_own(self, number: Any) -> bool:
        return any(number in span for span in _spans.get(id(self.model), ()))
