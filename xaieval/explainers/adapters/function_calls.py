"""Functions that a model calls, such as `F.relu`, as modules, for libraries that change what modules pass back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from xaieval.inference.borrowing import python_modules

__all__ = ["ACTIVATIONS", "ADDITIONS", "POOLINGS", "PRODUCTS", "RELUS", "functions_as_modules"]

# The class of modules that does the same as a function. Arguments behind the tensors are those of the class.
RELUS: dict[Any, type[nn.Module]] = dict.fromkeys((F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_), nn.ReLU)
ACTIVATIONS: dict[Any, type[nn.Module]] = {
    **RELUS,
    **dict.fromkeys((F.sigmoid, torch.sigmoid, Tensor.sigmoid, torch.sigmoid_, Tensor.sigmoid_), nn.Sigmoid),
    **dict.fromkeys((F.tanh, torch.tanh, Tensor.tanh, torch.tanh_, Tensor.tanh_), nn.Tanh),
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.softplus: nn.Softplus,
    F.max_pool2d: nn.MaxPool2d,
}
POOLINGS: dict[Any, type[nn.Module]] = {
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}
ADDITIONS = (torch.add, Tensor.add, Tensor.add_)  # what +, += and sum() call
PRODUCTS = (torch.mul, Tensor.mul, Tensor.mul_)
IN_PLACE = {torch.relu_, Tensor.relu_, Tensor.add_, Tensor.mul_, torch.sigmoid_, Tensor.sigmoid_, torch.tanh_, Tensor.tanh_}


def functions_as_modules(
    model: nn.Module, classes: Mapping[Any, type[nn.Module]], run: Callable[..., Any], *first: Any
) -> tuple[nn.ModuleList, Callable[..., Any]]:
    """Let passes of a model call modules in place of functions, each call its own.

    A library that changes what modules pass back, as for guided backpropagation, does not see functions. The library has to
    find the modules, so make them sub-modules of what it is given.

    Args:
        model: A model that is lent.
        classes: The class of modules for each function.
        run: Makes one pass.
        first: Its arguments in a first pass, in which the calls are counted; they need gradients.

    Returns:
        The modules in order of their calls, and a function that does the same as `run` with them.

    Raises:
        ValueError: The model relies on a function that writes in place; when called: it calls other functions.
    """
    if not classes:
        return nn.ModuleList(), run
    calls = _FunctionCalls(classes)
    own = [module for module in python_modules(model) if isinstance(module, tuple(classes.values()))]

    def replaced(*inputs: Any) -> Any:
        calls.next = 0
        with _running(own, calls.running), calls:
            return run(*inputs)

    with torch.enable_grad():
        expected = replaced(*first)
        calls.recording = False
        if calls.in_place:
            _check_same(replaced(*first), expected)
    return calls.modules, replaced


class _FunctionCalls(TorchFunctionMode):
    """Records the calls of functions, then gives each to its module.

    Calls on tensors that need no gradient do not count: nothing is passed back there.
    """

    def __init__(self, classes: Mapping[Any, type[nn.Module]]) -> None:
        super().__init__()
        self.classes = classes
        self.running: set[nn.Module] = set()  # modules of these classes, whose calls are theirs
        self.modules = nn.ModuleList()
        self.recording = True
        self.in_place = False
        self.next = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        settings = dict(kwargs or {})
        if func not in self.classes or self.running or not _pass_back(func, args):
            return func(*args, **settings)
        in_place = bool(settings.pop("inplace", False)) or func in IN_PLACE
        inputs = [value for value in args if isinstance(value, Tensor)]
        module = self.classes[func](*args[len(inputs) :], **settings).eval()
        if self.recording:
            self.modules.append(module)
            self.in_place |= in_place
            return func(*args, **(kwargs or {}))
        return self._next(module)(*inputs)

    def _next(self, module: nn.Module) -> nn.Module:
        """The module that stands for this call, which has to be like `module`."""
        found = self.modules[self.next] if self.next < len(self.modules) else None
        if found is None or repr(found) != repr(module):
            raise ValueError(f"the model calls other functions than in its first pass: {module} for {found}")
        self.next += 1
        return found


def _pass_back(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a function has inputs that need a gradient: both for an addition, one of them for a product."""
    if func in PRODUCTS:
        return any(isinstance(value, Tensor) and value.requires_grad for value in args)
    inputs = args[:2] if func in ADDITIONS else args[:1]
    return bool(inputs) and all(isinstance(value, Tensor) and value.requires_grad for value in inputs)


@contextmanager
def _running(modules: Iterable[nn.Module], running: set[nn.Module]) -> Iterator[None]:
    """Keep in `running` those of the modules that are running."""
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(lambda module, _: running.add(module)))
        handles.append(module.register_forward_hook(lambda module, *_: running.discard(module), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_same(found: Any, expected: Any) -> None:
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    tensors = [(one, other) for one, other in pairs if isinstance(one, Tensor)]
    if not all(torch.allclose(one, other, 1e-3, 1e-5, equal_nan=True) for one, other in tensors):
        raise ValueError("the model relies on a function that writes in place, such as x.relu_(); write x = x.relu()")
