"""Randomise parameters of a borrowed model. The model's own tensors are set aside and never written to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from xaieval.errors import AddressError, ModelError, choose_from
from xaieval.inference.borrowing import python_modules, stored_parts
from xaieval.inference.reproducibility import ONE_AT_A_TIME, seed_from

__all__ = ["ModelPart", "Swap", "draw_anew", "find_parts", "swapped"]

Swap = tuple[Tensor, Tensor]  # a tensor of the model, and the values that replace its own

# The initial values of a BatchNorm, for a frozen one that holds only buffers.
INITIAL = {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class ModelPart:
    """A module that is randomised in one step.

    Attributes:
        name: Path of the module.
        holders: Paths of the modules inside it that hold parameters or statistics themselves.
    """

    name: str
    holders: tuple[str, ...]


def find_parts(
    model: nn.Module, images: Tensor, call: Callable[[Tensor], Any], patterns: str | Sequence[str] | None = None
) -> list[ModelPart]:
    """List the parts of a model from its output to its input.

    Modules are ordered by the start of their first call in a forward pass. A module that is never called, because its parent
    uses its weights directly, takes the place of the parent.

    Args:
        model: The borrowed model.
        images: Images for the pass; one or two are enough.
        call: Runs the model on images.
        patterns: Paths of modules, each one part with everything inside it; `*` and `?` match anything but a dot. Default: each
            module that holds parameters or statistics itself is a part.

    Raises:
        AddressError: A pattern matches no module with parameters.
        ModelError: The model has no parameters.
    """
    holders = _holders(model)
    if not holders:
        raise ModelError(f"{type(model).__name__} has no parameters to randomise")
    first_calls = _first_calls(model, images, call)
    order = sorted(holders, key=lambda path: _position(path, first_calls))  # stable: ties stay in order of definition
    if patterns is None:
        return [ModelPart(path, (path,)) for path in reversed(order)]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    paths = [path for path, _ in model.named_modules() if path]
    parts = dict.fromkeys(chain.from_iterable(_matching_parts(pattern, paths, order) for pattern in patterns))
    return sorted(parts, key=lambda part: order.index(part.holders[-1]), reverse=True)


def draw_anew(model: nn.Module, paths: Iterable[str], seed: int) -> dict[str, list[Swap]]:
    """Draw new values for the tensors that each module holds itself, without changing the model or the global random state.

    Values come from the module's own `reset_parameters`, which also resets the statistics of a BatchNorm. For a module without
    that method they are drawn from a normal distribution with mean 0 and the root mean square of each parameter; integers,
    such as quantised weights, are shuffled. They depend only on the seed and the module's path, not on the device or on the
    other modules.

    Args:
        model: The borrowed model.
        paths: Paths of the modules.
        seed: The random seed.
    """
    modules = dict(model.named_modules())  # not get_submodule, which TorchScript does not have
    return {path: _drawn(modules[path], seed_from(seed, path)) for path in paths}


@contextmanager
def swapped(swaps: Iterable[Swap]) -> Iterator[None]:
    """Replace the values of tensors. On exit, also after an error, they have their own values back, in the same memory."""
    with ExitStack() as undo:
        for tensor, values in swaps:
            undo.callback(setattr, tensor, "data", tensor.data)
            tensor.data = values
        yield


def _own(module: nn.Module, recurse: bool = False) -> list[Tensor]:
    return [*module.parameters(recurse), *module.buffers(recurse)]


def _holders(model: nn.Module) -> list[str]:
    """Paths of modules with parameters or BatchNorm statistics. Other buffers are constant tables, not learned."""
    return [
        path
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None or "running_mean" in module._buffers
    ]


def _first_calls(model: nn.Module, images: Tensor, call: Callable[[Tensor], Any]) -> dict[str, int]:
    """The rank of each module's first call among the first calls of all modules, by path."""
    ranks: dict[str, int] = {}

    def note(path: str, module: nn.Module, inputs: Any) -> None:
        ranks.setdefault(path, len(ranks))

    with ExitStack() as undo, torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no Python hooks
                continue
            undo.callback(module.register_forward_pre_hook(partial(note, path)).remove)
        call(images[:2])
    return ranks


def _position(path: str, first_calls: Mapping[str, int]) -> int:
    while path and path not in first_calls:
        path = path.rpartition(".")[0]
    return first_calls.get(path, 0)


def _matching_parts(pattern: str, paths: Sequence[str], order: Sequence[str]) -> list[ModelPart]:
    """The parts that a pattern matches, with their holders in order."""
    words = pattern.split(".")
    parts = []
    for path in paths:
        names = path.split(".")
        if len(names) == len(words) and all(map(fnmatchcase, names, words)):
            inside = tuple(holder for holder in order if holder == path or holder.startswith(f"{path}."))
            parts += [ModelPart(path, inside)] if inside else []
    if not parts:
        raise AddressError(f"no module with parameters matches {pattern!r}; {choose_from(pattern, order)}")
    return parts


def _drawn(module: nn.Module, seed: int) -> list[Swap]:
    own = _own(module)
    # A module's reset may change its submodules. Draw on the CPU, so that every device gets the same numbers.
    trial = [(tensor, tensor.detach().cpu().clone()) for tensor in _own(module, recurse=True)]
    with swapped(trial), _registered(module), ONE_AT_A_TIME, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # only the CPU's generator, which is restored
        _reset(module)
        values = [tensor.data for tensor in _own(module)]
    return [(tensor, drawn.to(tensor.device)) for tensor, drawn in zip(own, values, strict=True)]


@contextmanager
def _registered(module: nn.Module) -> Iterator[None]:
    """Restore the modules' own tensors, also if a reset created new ones instead of filling them."""
    before = [(part, dict(part._parameters), dict(part._buffers)) for part in python_modules(module)]
    try:
        yield
    finally:
        for part, parameters, buffers in before:
            part._parameters.update(parameters)
            part._buffers.update(buffers)


def _values(parameter: Tensor) -> Tensor:
    """The tensor that holds the values of a parameter, which may be sparse."""
    return stored_parts(parameter)[-1]


def _reset(module: nn.Module) -> None:
    before = [(parameter, parameter.clone()) for parameter in map(_values, module.parameters(recurse=False))]
    reset = getattr(module, "reset_parameters", None) if all(_is_drawable(parameter) for parameter, _ in before) else None
    if callable(reset):
        reset()
    for parameter, earlier in before:
        # A constant parameter may have its initial value. Any other that the reset left unchanged (weight_norm) was not drawn.
        is_initial = callable(reset) and bool((earlier == earlier.flatten()[:1]).all())
        if torch.equal(parameter, earlier) and not is_initial:
            _redraw(parameter, earlier)
    if not callable(reset) and "running_mean" in module._buffers:
        for name, tensor in module.named_buffers(recurse=False):
            if name in INITIAL:
                tensor.fill_(INITIAL[name])


def _is_drawable(parameter: Tensor) -> bool:
    """Whether random numbers can be drawn in a parameter's type, unlike in integers and floats of 8 bits."""
    return parameter.is_complex() or (parameter.is_floating_point() and parameter.element_size() > 1)


def _redraw(parameter: Tensor, earlier: Tensor) -> None:
    """Draw normal numbers for a parameter, or shuffle its values where its type has no such numbers."""
    if _is_drawable(parameter):
        parameter.normal_().mul_(earlier.square().mean().sqrt())
        return
    numbers = earlier.contiguous().view(torch.uint8).view(-1, earlier.element_size())  # some types cannot be indexed
    parameter.copy_(numbers[torch.randperm(len(numbers))].view(earlier.dtype).view_as(earlier))
