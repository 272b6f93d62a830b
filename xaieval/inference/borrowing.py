"""Borrow a model, and give it back unchanged.

Everything is restored that xaieval, or other code that it runs on the model, may change. State that the model itself updates in
its forward passes, such as a counter or a table for an image size, is kept.
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
_borrowers: dict[int, int] = {}  # by id of a borrowed module or tensor: the thread that has it


@contextmanager
def borrow(model: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """Put the model in eval mode on a device, without parameter gradients, and restore it on exit, also after an error.

    Modes, hooks, flags, gradients, parameters and buffers are restored, in their original memory, and so is the global random
    state. Only buffers, and parameters of modules that override `train`, are copied. The thread that has borrowed a model can
    borrow it again.

    Args:
        model: Any module.
        device: The device to use. Default: the model's device.

    Yields:
        The device of the model inside this context.

    Raises:
        ModelError: Another thread has borrowed the model or a part of it, or parameters have no shape yet.
        UsageError: The device is not available.
    """
    check_ready(model)
    home = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    used_device = home if device is None else _usable(device)
    with ExitStack() as undo:
        undo.enter_context(_by_one_thread(model))
        undo.enter_context(same_random_numbers())
        # Gradients are needed, whichever mode the caller is in.
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # Python cannot reach its tensors
            undo.callback(_restore_tensors, module._parameters, dict(module._parameters))
            undo.callback(_restore_tensors, module._buffers, dict(module._buffers))
        _replace_inference_tensors(model)
        _restore_later(undo, model)
        _prepare(model)
        if used_device != home:
            _move(undo, model, home, used_device)
        yield used_device


def check_ready(model: nn.Module) -> None:
    """Check that lazy modules are initialised.

    Raises:
        ModelError: A lazy module has no shape yet; the message says what to do.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    lazy = next((name for name, tensor in named if is_lazy(tensor)), None)
    if lazy is not None:
        raise ModelError(f"'{lazy}' of the model has no shape before its first pass; run the model on a batch of images first")


def check_open(model: nn.Module) -> None:
    """Check that the layers of a model can be probed. TorchScript does not run Python hooks.

    Raises:
        ModelError: The model contains TorchScript; the message says what to do.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ModelError(
            "the layers of a TorchScript model cannot be probed; give the nn.Module that it was made from, or use methods that "
            "need no layer ('xaieval-bench methods')"
        )


@contextmanager
def _by_one_thread(model: nn.Module) -> Iterator[None]:
    """Refuse a model of which another thread uses a part: its weights may be folded, and its mode will change back."""
    thread = threading.get_ident()
    parts = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    with _register:
        if any(_borrowers.get(part, thread) != thread for part in parts):
            raise ModelError(
                "another thread is using this model, or one that shares parts with it; wait for it, or give each thread a "
                "copy: copy.deepcopy(model)"
            )
        new = parts - _borrowers.keys()
        _borrowers.update(dict.fromkeys(new, thread))
    try:
        yield
    finally:
        with _register:
            for part in new:
                del _borrowers[part]


def _prepare(model: nn.Module) -> None:
    if any(module.training for module in model.modules()):
        model.eval()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None  # set aside, because a method may clear or fill it


def _replace_inference_tensors(model: nn.Module) -> None:
    """Replace tensors created in inference mode by clones, because autograd cannot use them."""
    clones: dict[int, Tensor] = {}  # modules may share tensors
    for module in model.modules():
        for registry in (module._parameters, module._buffers):
            for name, tensor in registry.items():
                if tensor is not None and _is_of_inference(tensor):
                    clone = nn.Parameter(tensor.clone(), False) if isinstance(tensor, nn.Parameter) else tensor.clone()
                    registry[name] = clones.setdefault(id(tensor), clone)  # type: ignore[assignment]  # of the same kind


def _is_of_inference(tensor: Tensor) -> bool:
    """Whether a tensor was created in inference mode. `is_inference` is lost when such a tensor changes its type or layout."""
    try:
        return tensor._version < 0
    except RuntimeError:  # inference tensors have no version
        return True


def _move(undo: ExitStack, model: nn.Module, home: torch.device, device: torch.device) -> None:
    """Move the model to another device; on exit its parameters get their original memory back."""
    for parameter in model.parameters():
        undo.callback(setattr, parameter, "data", parameter.data)
    undo.callback(model.to, home)  # for tensors that the model has created since
    model.to(device)


def _restore_later(undo: ExitStack, model: nn.Module) -> None:
    """Register the callbacks that restore the model; the last one registered runs first."""
    with_own_train = [module for module in model.modules() if module.training and _has_own_train(module)]
    for module in model.modules():
        undo.callback(_restore_flags_and_hooks, module, *_flags_and_hooks(module))
    for parameter in model.parameters():
        undo.callback(_restore_gradient, parameter, parameter.requires_grad, parameter.grad)
    copied = [parameter for module in with_own_train for parameter in module.parameters(recurse=False)]
    for tensor in (*model.buffers(), *copied):
        undo.callback(_restore_values, tensor, tensor.detach().clone())
    for module in with_own_train:  # its train() may merge weights or fill a cache for evaluation, and has to undo that
        undo.callback(module.train)


def _has_own_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or "train" in vars(module)


def _flags_and_hooks(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[Any, Any]]]:
    """The flags of a module and its hook registries."""
    attributes = vars(module)
    hooks = {name: dict(content) for name, content in attributes.items() if "_hooks" in name and isinstance(content, dict)}
    return {"training": module.training, "_is_full_backward_hook": attributes.get("_is_full_backward_hook")}, hooks


def _restore_flags_and_hooks(module: nn.Module, flags: dict[str, Any], hooks: dict[str, dict[Any, Any]]) -> None:
    for name, flag in flags.items():
        setattr(module, name, flag)
    for name, content in hooks.items():
        registry = vars(module)[name]
        if list(registry) != list(content):
            registry.clear()
            registry.update(content)


def _restore_tensors(registry: dict[str, Any], before: dict[str, Any]) -> None:
    """Restore tensors that were replaced or removed. A table that the model has enlarged stays."""
    for name, tensor in before.items():
        now = registry.get(name)
        if tensor is not None and now is not tensor and (now is None or now.shape == tensor.shape):
            registry[name] = tensor


def _restore_values(tensor: Tensor, before: Tensor) -> None:
    if not torch.equal(tensor, before):
        with torch.inference_mode():  # which allows writing to all kinds of tensors
            tensor.copy_(before)


def _restore_gradient(parameter: nn.Parameter, requires_grad: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(requires_grad)
    parameter.grad = gradient


def _usable(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {str(device)!r} cannot be used: {reason}") from error
