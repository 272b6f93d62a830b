"""Which operation made a model's output: a softmax or sigmoid makes probabilities, however few values there are to judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["LastOperations"]

KINDS = {
    "probabilities": ("_softmax", "softmax", "sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_"),
    "log_softmax": ("_log_softmax", "log_softmax"),
    "log_sigmoid": ("log_sigmoid_forward", "log_sigmoid"),
    "logits": ("addmm", "mm", "bmm", "baddbmm", "linear", "convolution", "logit"),
}
OF_OPERATION = {operation: kind for kind, operations in KINDS.items() for operation in operations}
COPIES = ("_to_copy", "clone", "clamp", "cat", "stack")  # which keep the kind of what they copy


class LastOperations(TorchDispatchMode):
    """Notes the operations inside the context, by the memory that they wrote last.

    Example:
        >>> import torch
        >>> with LastOperations() as operations:
        ...     output = torch.randn(2, 5).softmax(dim=1)[:, :1]
        >>> operations.kind_of(output)
        'probabilities'
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[int, str | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        kind = self._common(args) if name in COPIES else OF_OPERATION.get(name)
        before = {*_places(args)}
        for place in _places(result):
            if place not in before or name.endswith("_"):  # not a view
                self._kinds[place] = kind
        return result

    def kind_of(self, output: Any) -> str | None:
        """One of `KINDS`: what the last operation makes; None if that tells nothing."""
        return self._common(output)

    def _common(self, values: Any) -> str | None:
        """The kind of all tensors, if they have the same."""
        kinds = {self._kinds.get(place) for place in _places(values)}
        return kinds.pop() if len(kinds) == 1 else None


def _places(values: Any) -> Iterator[int]:
    """The addresses of the memory of tensors."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.numel():
            yield leaf.untyped_storage().data_ptr()
