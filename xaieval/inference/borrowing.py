"""A model is borrowed, and given back as it was.

What is put back is what xaieval, or somebody whom it lets at the model, may change. What a model notes down in its passes is
its own, such as a count of them or a table for a size of images.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xaieval.errors import ModelError, UsageError
from xaieval.inference.reproducibility import same_random_numbers

__all__ = ["borrow", "check_open", "check_ready"]

_register = threading.Lock()
_borrowers: dict[int, int] = {}  # by id of a module or tensor that is borrowed: the thread that has it


@contextmanager
def borrow(model: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """Have the model in eval mode, on a device, without gradients of parameters; give it back as it was, come what may.

    Modes, hooks, flags, gradients, parameters and buffers come back, in the memory where they were, and so do the global random
    numbers. Copied are the buffers alone, and parameters of modules that have a `train` of their own. The thread that has the
    model may borrow it once more.

    Args:
        model: any module.
        device: where it works meanwhile; its own device unless told.

    Yields:
        The device that the model is on.

    Raises:
        ModelError: another thread has the model or a part of it, or parts of it have no shape yet.
        UsageError: there is no such device.
    """
    check_ready(model)
    home = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    there = home if device is None else _usable(device)
    with ExitStack() as undo:
        undo.enter_context(_by_one_thread(model))
        undo.enter_context(same_random_numbers())
        # Gradients are taken whatever mode the caller is in.
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its tensors are out of Python's reach
            undo.callback(_put_back_tensors, module._parameters, dict(module._parameters))
            undo.callback(_put_back_tensors, module._buffers, dict(module._buffers))
        _have_no_inference_tensors(model)
        _put_back_later(undo, model)
        _prepare(model)
        if there != home:
            _move(undo, model, home, there)
        yield there


def check_ready(model: nn.Module) -> None:
    """Refuse a model with lazy modules that have not seen an image.

    Raises:
        ModelError: with what to do instead.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    lazy = next((name for name, tensor in named if is_lazy(tensor)), None)
    if lazy is not None:
        raise ModelError(f"'{lazy}' of the model has no shape before its first pass; run the model on a batch of images first")


def check_open(model: nn.Module) -> None:
    """Refuse a model that nobody can look inside of: TorchScript keeps hooks from running.

    Raises:
        ModelError: with what to do instead.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ModelError(
            "nobody can look inside a model of TorchScript; give the nn.Module that it was made of, or methods that need no "
            "layer ('xaieval-bench methods')"
        )


@contextmanager
def _by_one_thread(model: nn.Module) -> Iterator[None]:
    """Refuse a model of which another thread has a part: its weights may be folded, and its mode is about to change back."""
    me = threading.get_ident()
    parts = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    with _register:
        if any(_borrowers.get(part, me) != me for part in parts):
            raise ModelError(
                "another thread is at work on this model, or on one that shares parts with it; wait for it, or give each "
                "thread a copy: copy.deepcopy(model)"
            )
        mine = parts - _borrowers.keys()
        _borrowers.update(dict.fromkeys(mine, me))
    try:
        yield
    finally:
        with _register:
            for part in mine:
                del _borrowers[part]


def _prepare(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        model.eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None  # put aside, since somebody's method may clear or fill them


def _have_no_inference_tensors(model: nn.Module) -> None:
    """Have clones in place of tensors that were made in inference mode, through which nothing can be differentiated."""
    clones: dict[int, Tensor] = {}  # modules may share them
    for module in model.modules():
        for registry in (module._parameters, module._buffers):
            for name, tensor in registry.items():
                if tensor is not None and _is_of_inference(tensor):
                    clone = nn.Parameter(tensor.clone(), False) if isinstance(tensor, nn.Parameter) else tensor.clone()
                    registry[name] = clones.setdefault(id(tensor), clone)  # type: ignore[assignment]  # of the same kind


def _is_of_inference(tensor: Tensor) -> bool:
    """Whether it was made in inference mode; to another type or layout, it no longer says so itself."""
    try:
        return tensor._version < 0
    except RuntimeError:  # it has none
        return True


def _move(undo: ExitStack, model: nn.Module, home: torch.device, there: torch.device) -> None:
    """Have the model on another device; afterwards its parameters have the memory that they had."""
    for parameter in model.parameters():
        undo.callback(setattr, parameter, "data", parameter.data)
    undo.callback(model.to, home)  # what the model has made meanwhile
    model.to(there)


def _put_back_later(undo: ExitStack, model: nn.Module) -> None:
    """Register what puts the model back; the last one registered is the first one done."""
    own = [module for module in model.modules() if module.training and _has_own_train(module)]
    for module in model.modules():
        undo.callback(_put_back_marks, module, *_marks(module))
    for parameter in model.parameters():
        undo.callback(_put_back_gradient, parameter, parameter.requires_grad, parameter.grad)
    for tensor in (*model.buffers(), *(parameter for module in own for parameter in module.parameters(recurse=False))):
        undo.callback(_put_back_values, tensor, tensor.detach().clone())
    for module in own:  # it may merge weights or fill a cache for evaluation, and has to be told that this is over
        undo.callback(module.train)


def _has_own_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or "train" in vars(module)


def _marks(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[Any, Any]]]:
    """The flags of a module, and its registries of hooks."""
    own = vars(module)
    hooks = {name: dict(content) for name, content in own.items() if "_hooks" in name and isinstance(content, dict)}
    return {"training": module.training, "_is_full_backward_hook": own.get("_is_full_backward_hook")}, hooks


def _put_back_marks(module: nn.Module, flags: dict[str, Any], hooks: dict[str, dict[Any, Any]]) -> None:
    for name, flag in flags.items():
        setattr(module, name, flag)
    for name, content in hooks.items():
        registry = vars(module)[name]
        if list(registry) != list(content):
            registry.clear()
            registry.update(content)


def _put_back_tensors(registry: dict[str, Any], before: dict[str, Any]) -> None:
    """Those that were put in place of others; a table that the model has made larger is its own, with notes of its size."""
    for name, tensor in before.items():
        now = registry.get(name)
        if tensor is not None and now is not tensor and (now is None or now.shape == tensor.shape):
            registry[name] = tensor


def _put_back_values(tensor: Tensor, before: Tensor) -> None:
    if not torch.equal(tensor, before):
        with torch.inference_mode():  # in which all kinds of tensors can be written to
            tensor.copy_(before)


def _put_back_gradient(parameter: nn.Parameter, wanted: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(wanted)
    parameter.grad = gradient


def _usable(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {str(device)!r} cannot be used: {reason}") from error
