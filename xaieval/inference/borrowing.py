"""Borrow a model, and give it back unchanged.

Everything is restored that xaieval, or other code that it runs on the model, may change. State that the model itself updates in
its forward passes, such as a counter, a table for an image size or a hook, is kept. No method of the model's classes is called
but `forward`: `train` may do anything, from merging weights to starting a training, so modes are set on the modules.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xaieval.errors import ALL_METHODS, ModelError, UsageError, XaievalError, advice
from xaieval.inference.hook_registries import HookRegistries, watched
from xaieval.inference.plain_passes import plain_passes
from xaieval.inference.reproducibility import same_random_numbers

__all__ = [
    "borrow",
    "check_open",
    "check_ready",
    "is_exported",
    "python_modules",
    "replace_cached_inference_tensors",
    "stored_parts",
]

_register = threading.Lock()
_borrowers: dict[int, int] = {}  # by id of a borrowed module or tensor: the thread that has it


@contextmanager
def borrow(model: nn.Module, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """Put the model in eval mode on a device, without parameter gradients, and restore it on exit, also after an error.

    Modes, hooks, flags, gradients, parameters and buffers are restored, in their original memory, and so is the global random
    state. Only buffers are copied. Every pass inside this context gets a copy of its images, and runs outside the caller's
    autocast, uncompiled and without activation checkpointing. The thread that has borrowed a model can borrow it again.

    Args:
        model: Any module.
        device: The device to use. Default: the model's device.

    Yields:
        The device of the model inside this context.

    Raises:
        ModelError: Another thread has borrowed the model or a part of it, or parameters have no shape or no values here.
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
        for module in python_modules(model):
            undo.callback(_restore_tensors, module._parameters, dict(module._parameters))
            undo.callback(_restore_tensors, module._buffers, dict(module._buffers))
        undo.enter_context(_hint_at_train(model))
        _replace_inference_tensors(model)
        undo.enter_context(watched(model))
        _restore_later(undo, model)
        undo.enter_context(plain_passes(model, used_device))
        _prepare(model)
        _prepare_recurrent(undo, model, used_device)
        if used_device != home:
            _move(undo, model, home, used_device)
        yield used_device


def check_ready(model: nn.Module) -> None:
    """Check that all parameters and buffers have their shapes and values in this process.

    Raises:
        ModelError: A lazy module has no shape yet, a tensor is on the meta device, or FSDP has sharded it; the message says
            what to do.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"'{name}' of the model has no shape before its first pass; run the model on a batch of images first"
            )
        if tensor.is_meta:
            raise ModelError(f"'{name}' of the model is on the meta device and has no values; load the weights first")
        if type(tensor).__name__ == "DTensor":
            raise ModelError(
                f"'{name}' of the model is a DTensor, as FSDP makes them; give a model with whole weights: load the result of "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True into one"
            )


def check_open(model: nn.Module, path: str = "") -> None:
    """Check that layers of a model can be probed. TorchScript and exported programs run no Python hooks inside.

    Args:
        model: The model. One that has no layers says by its attribute `without_layers` what it is.
        path: The module to be probed. Default: the model.

    Raises:
        ModelError: The model has no layers; or it, or the part of it that contains the module, is TorchScript or an exported
            program. The message says what to do.
    """
    without_layers = getattr(model, "without_layers", "")
    if without_layers:
        raise ModelError(
            f"the model is {without_layers}, which has no layers to look into; give the nn.Module that it was made from, or "
            f"use methods that look at the input ({advice(*ALL_METHODS)})"
        )
    names = path.split(".") if path else []
    module: Any = model
    for depth in range(len(names) + 1):
        kind = "TorchScript" if isinstance(module, torch.jit.ScriptModule) else "torch.export" if is_exported(module) else ""
        if kind:
            part = f"layer '{path}' is in a part of {kind}, and " if depth else ""
            raise ModelError(
                f"{part}the layers of a {kind} model cannot be probed; give the nn.Module that it was made from, or use "
                f"methods that need no layer ({advice(*ALL_METHODS)})"
            )
        module = dict(module.named_children()).get(names[depth]) if depth < len(names) else None
        if module is None:
            return


def is_exported(model: nn.Module) -> bool:
    """Whether a module is an exported program, or one with a fixed batch size inside `ExportedModel`; it calls no modules."""
    inner = dict(model.named_children()).get("program", model)
    return isinstance(inner, torch.fx.GraphModule) and hasattr(inner, "range_constraints")


def python_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model without those of TorchScript, whose tensors and hooks Python cannot reach."""
    return [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]


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
    for module in model.modules():
        if getattr(module, "training", False):  # frozen TorchScript has no mode
            module.training = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # set aside, because a method may clear or fill it


def _prepare_recurrent(undo: ExitStack, model: nn.Module, device: torch.device) -> None:
    """Let cuDNN differentiate RNN, LSTM and GRU, which it does only in training mode; without dropout the output stays."""
    if device.type != "cuda":
        return
    for module in python_modules(model):
        if isinstance(module, nn.RNNBase):
            undo.callback(setattr, module, "dropout", module.dropout)
            module.training, module.dropout = True, 0.0


@contextmanager
def _hint_at_train(model: nn.Module) -> Iterator[None]:
    """Add a hint to errors of a model in training with a `train` of its own, which may have to prepare it for evaluation."""
    kinds = {type(module).__name__ for module in model.modules() if _has_own_train(module) and module.training}
    try:
        yield
    except Exception as error:
        kind = type(model)
        if _has_own_train(model) and hasattr(kind, "predict") and isinstance(model._modules.get("model"), nn.Module):
            raise ModelError(
                f"a {kind.__name__} seems to be no network ({type(error).__name__}); give the network inside it, its "
                "attribute 'model'"
            ) from error
        if kinds and not isinstance(error, XaievalError):
            error.add_note(
                f"xaieval does not call train() of {', '.join(sorted(kinds))}; if it has to, call model.eval() first"
            )
        raise


def _replace_inference_tensors(model: nn.Module) -> None:
    """Replace tensors created in inference mode by clones, because autograd cannot use them."""
    clones: dict[int, Tensor] = {}  # modules may share tensors
    for module in model.modules():
        for registry in (module._parameters, module._buffers):
            for name, tensor in registry.items():
                if tensor is not None and _is_of_inference(tensor):
                    clone = nn.Parameter(tensor.clone(), False) if isinstance(tensor, nn.Parameter) else tensor.clone()
                    registry[name] = clones.setdefault(id(tensor), clone)  # type: ignore[assignment]  # of the same kind


def replace_cached_inference_tensors(model: nn.Module) -> None:
    """Replace tensors that modules hold as attributes and made in inference mode by clones, as above.

    Detectors cache the centres of their cells for the size of the images. The next pass may need gradients.
    """
    for module in python_modules(model):
        held = vars(module)
        for name, value in held.items():
            if isinstance(value, Tensor) and _is_of_inference(value):
                held[name] = value.clone()


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
    for module in model.modules():
        if hasattr(module, "training"):  # frozen TorchScript has no mode
            undo.callback(setattr, module, "training", module.training)
    for module in python_modules(model):
        undo.callback(HookRegistries(module, model).restore)
        if module.training and _has_own_train(module):
            undo.callback(_restore_caches, module, _caches(module))
    for parameter in model.parameters():
        undo.callback(_restore_gradient, parameter, parameter.requires_grad, parameter.grad)
    for tensor in model.buffers():
        undo.callback(_restore_values, tensor, tensor.detach().clone())


def _has_own_train(module: nn.Module) -> bool:
    return type(module).train is not nn.Module.train or "train" in vars(module)


def _caches(module: nn.Module) -> dict[str, Any]:
    """Attributes that may hold values computed for evaluation, which the module's `train` would clear."""
    return {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in vars(module).items()
        if name not in vars(_PLAIN) and (value is None or isinstance(value, Tensor | dict))
    }


_PLAIN = nn.Module()


def _restore_caches(module: nn.Module, before: dict[str, Any]) -> None:
    attributes = vars(module)
    for name in _caches(module).keys() | before.keys():
        now = attributes.get(name)
        if name not in before:
            del attributes[name]
        elif isinstance(now, dict) and isinstance(before[name], dict):
            if list(now) != list(before[name]):
                now.clear()
                now.update(before[name])
        else:
            attributes[name] = before[name]


def _restore_tensors(registry: dict[str, Any], before: dict[str, Any]) -> None:
    """Restore tensors that were replaced or removed. A table that the model has enlarged stays."""
    for name, tensor in before.items():
        now = registry.get(name)
        if tensor is not None and now is not tensor and (now is None or now.shape == tensor.shape):
            registry[name] = tensor


def _restore_values(tensor: Tensor, before: Tensor) -> None:
    now, earlier = stored_parts(tensor), stored_parts(before)
    if len(now) != len(earlier) or not all(map(torch.equal, now, earlier)):
        with torch.inference_mode():  # which allows writing to all kinds of tensors
            tensor.copy_(before)


def stored_parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that hold the content of a tensor: itself, or the indices and values of a sparse or nested one.

    Example:
        >>> [part.tolist() for part in stored_parts(torch.eye(2).to_sparse())]
        [[[0, 1], [0, 1]], [1.0, 1.0]]
    """
    tensor = tensor.detach()
    if tensor.is_nested:
        jagged: Any = tensor  # whose methods the stubs do not know
        return [jagged.offsets() if tensor.layout == torch.jagged else tensor._nested_tensor_size(), tensor.values()]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.layout != torch.strided:  # of oneDNN
        return [tensor.to_dense()]
    return [tensor.int_repr(), tensor.dequantize()] if tensor.is_quantized else [tensor]


def _restore_gradient(parameter: nn.Parameter, requires_grad: bool, gradient: Tensor | None) -> None:
    parameter.requires_grad_(requires_grad)
    parameter.grad = gradient


def _usable(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {str(device)!r} cannot be used: {reason}") from error
