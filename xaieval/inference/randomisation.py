"""A borrowed model with some of its parameters drawn anew; its own tensors are put aside meanwhile, and never written to."""

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
from xaieval.inference.reproducibility import ONE_AT_A_TIME, seed_from

__all__ = ["Part", "Swap", "draw_anew", "find_parts", "swapped"]

Swap = tuple[Tensor, Tensor]  # a tensor of the model, and what stands in for its values

# What a BatchNorm begins with, for one that is frozen and has buffers alone.
BEGINNING = {"running_mean": 0.0, "running_var": 1.0, "weight": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class Part:
    """What is randomised in one step.

    Attributes:
        name: path of a module.
        holders: paths of the modules in it that hold parameters or statistics of their own.
    """

    name: str
    holders: tuple[str, ...]


def find_parts(
    model: nn.Module, images: Tensor, call: Callable[[Tensor], Any], patterns: str | Sequence[str] | None = None
) -> list[Part]:
    """The parts of a model from its output down to its input.

    The order is that in which modules begin to work, in a pass over these images. A module that is not called itself, since
    the one around it uses its weights, has the place of that one.

    Args:
        model: borrowed.
        images: one or two are enough.
        call: runs the model on images.
        patterns: paths of modules, each a part with all that it contains; `*` and `?` stand for anything but a dot. Every
            module that holds parameters or statistics itself is a part, unless told.

    Raises:
        AddressError: a pattern fits no module with parameters.
        ModelError: the model has no parameters.
    """
    holders = _holders(model)
    if not holders:
        raise ModelError(f"{type(model).__name__} has no parameters to randomise")
    begun = _begin(model, images, call)
    order = sorted(holders, key=lambda path: _place(path, begun))  # stable: else as they were defined
    if patterns is None:
        return [Part(path, (path,)) for path in reversed(order)]
    wanted = [patterns] if isinstance(patterns, str) else patterns
    paths = [path for path, _ in model.named_modules() if path]
    found = dict.fromkeys(chain.from_iterable(_fitting(pattern, paths, order) for pattern in wanted))
    return sorted(found, key=lambda part: order.index(part.holders[-1]), reverse=True)


def draw_anew(model: nn.Module, paths: Iterable[str], seed: int) -> dict[str, list[Swap]]:
    """New values for what each of these modules holds itself; the model and the global random numbers stay as they are.

    They are drawn by the module's own `reset_parameters`, which also gives a BatchNorm the statistics that it began with; of
    a module without it, from a normal distribution around 0 with each parameter's own root mean square. The seed and the
    module's path decide them, whatever the device and whichever others are drawn.

    Args:
        model: borrowed.
        paths: of modules.
        seed: of the draw.
    """
    return {path: _drawn(model.get_submodule(path), seed_from(seed, path)) for path in paths}


@contextmanager
def swapped(swaps: Iterable[Swap]) -> Iterator[None]:
    """Have other values in place of tensors; afterwards they hold what they held, in the same memory, come what may."""
    with ExitStack() as undo:
        for tensor, values in swaps:
            undo.callback(setattr, tensor, "data", tensor.data)
            tensor.data = values
        yield


def _own(module: nn.Module, recurse: bool = False) -> list[Tensor]:
    return [*module.parameters(recurse), *module.buffers(recurse)]


def _holders(model: nn.Module) -> list[str]:
    """Modules with parameters, or with the statistics of a BatchNorm; other buffers are tables, not learned."""
    return [
        path
        for path, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None or "running_mean" in module._buffers
    ]


def _begin(model: nn.Module, images: Tensor, call: Callable[[Tensor], Any]) -> dict[str, int]:
    """By path of a module, the place of its first call among those of all modules."""
    begun: dict[str, int] = {}

    def note(path: str, module: nn.Module, inputs: Any) -> None:
        begun.setdefault(path, len(begun))

    with ExitStack() as undo, torch.no_grad():
        for path, module in model.named_modules():
            undo.callback(module.register_forward_pre_hook(partial(note, path)).remove)
        call(images[:2])
    return begun


def _place(path: str, begun: Mapping[str, int]) -> int:
    while path and path not in begun:
        path = path.rpartition(".")[0]
    return begun.get(path, 0)


def _fitting(pattern: str, paths: Sequence[str], order: Sequence[str]) -> list[Part]:
    """The parts that a pattern names, their holders in order."""
    words = pattern.split(".")
    found = []
    for path in paths:
        names = path.split(".")
        if len(names) == len(words) and all(map(fnmatchcase, names, words)):
            inside = tuple(holder for holder in order if holder == path or holder.startswith(f"{path}."))
            found += [Part(path, inside)] if inside else []
    if not found:
        raise AddressError(f"no module with parameters fits {pattern!r}; {choose_from(pattern, order)}")
    return found


def _drawn(module: nn.Module, seed: int) -> list[Swap]:
    own = _own(module)
    # A module's reset may reach into the modules in it. On the CPU, so that every device gets the same numbers.
    trial = [(tensor, tensor.detach().cpu().clone()) for tensor in _own(module, recurse=True)]
    with swapped(trial), _registered(module), ONE_AT_A_TIME, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)  # that of the CPU alone, which is put back
        _reset(module)
        values = [tensor.data for tensor in _own(module)]
    return [(tensor, drawn.to(tensor.device)) for tensor, drawn in zip(own, values, strict=True)]


@contextmanager
def _registered(module: nn.Module) -> Iterator[None]:
    """Afterwards the modules hold the tensors that they held, also if a reset made new ones in place of filling them."""
    before = [(part, dict(part._parameters), dict(part._buffers)) for part in module.modules()]
    try:
        yield
    finally:
        for part, parameters, buffers in before:
            part._parameters.update(parameters)
            part._buffers.update(buffers)


def _reset(module: nn.Module) -> None:
    before = [(parameter, parameter.clone()) for parameter in module.parameters(recurse=False)]
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
    for parameter, earlier in before:
        # One of ones or zeros may begin as that. Any other that a reset left alone was not drawn, as with weight_norm.
        begins_so = callable(reset) and bool((earlier == earlier.flatten()[:1]).all())
        if torch.equal(parameter, earlier) and not begins_so:
            parameter.normal_().mul_(earlier.square().mean().sqrt())
    if not callable(reset) and "running_mean" in module._buffers:
        for name, tensor in module.named_buffers(recurse=False):
            if name in BEGINNING:
                tensor.fill_(BEGINNING[name])
