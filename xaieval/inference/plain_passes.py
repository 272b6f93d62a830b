"""The conditions of every pass of a borrowed model.

A pass has images of its own, in the model's type. It runs outside autocast, without compilation and without checkpointing, so
that hooks see each tensor once, in the graph that the gradient is taken of.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint
from torch.utils._pytree import tree_map

from xaieval.inference.hook_registries import in_pass
from xaieval.inference.reproducibility import ONE_AT_A_TIME

__all__ = ["compiled", "floating_type", "network_of", "own_images", "plain_passes"]

Copy = Callable[[Any], Any]

IMAGE_TYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
FILES = {"source", "sources", "path", "paths", "file", "files", "filename", "filenames"}


@contextmanager
def plain_passes(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Make all passes of a model under the conditions above, until this context ends.

    Every pass gets a copy of its images, because models may write into their input. Floating-point images are converted to the
    model's type, if it has only one.
    """
    with ExitStack() as undo:
        for kind in {device.type, "cpu"}:
            undo.enter_context(torch.autocast(kind, enabled=False))
        undo.enter_context(_shared_switch(_without_compilation))
        undo.enter_context(_shared_switch(_without_checkpoints))
        undo.enter_context(_here())
        _replace_compiled_parts(undo, model)
        _wrap_passes(undo, model)
        yield


def own_images(model: nn.Module) -> Copy:
    """Return a function that copies all tensors of any structure, for one pass, and converts images to the model's type."""
    dtype = floating_type(model)

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(dtype, copy=True) if dtype is not None and leaf.is_floating_point() else leaf.clone()

    return lambda values: tree_map(copied, values)


def floating_type(model: nn.Module) -> torch.dtype | None:
    """The one floating type of a model's parameters, or None if there are several or none.

    Example:
        >>> floating_type(nn.Linear(2, 2).half())
        torch.float16
    """
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return types.pop() if len(types) == 1 and types <= IMAGE_TYPES else None


def network_of(model: Any) -> Any:
    """The network inside a model compiled by `torch.compile`, or a wrapper such as ultralytics' YOLO; or the model itself.

    A wrapper is a module that holds the network as `model`, has `predict`, and takes no images itself: it has its own
    `__call__`, which runs no hooks, or its `forward` is missing or takes files.
    """
    while True:
        inner = getattr(model, "_orig_mod", None) if isinstance(model, nn.Module) else None
        inner = model.model if inner is None and _is_wrapper(model) else inner
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def compiled() -> Iterator[None]:
    """Let compiled code run inside this context; elsewhere in a borrowed model it runs uncompiled."""
    with torch.compiler.set_stance("default"):
        yield


def _is_wrapper(model: Any) -> bool:
    kind = type(model)
    if not (isinstance(model, nn.Module) and callable(getattr(model, "predict", None))):
        return False
    if not isinstance(model._modules.get("model"), nn.Module):
        return False
    if kind.__call__ is not nn.Module.__call__ or kind.forward is nn.Module.forward:
        return True
    names = kind.forward.__code__.co_varnames
    return len(names) > 1 and (names[1] in FILES or (names[1] == "args" and "mode" not in kind.train.__code__.co_varnames))


def _replace_compiled_parts(undo: ExitStack, model: nn.Module) -> None:
    """Replace compiled modules inside the model by the originals, whose hooks run, with the plain model's addresses."""
    for module in list(model.modules()):
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, child in module._modules.items():
            original = getattr(child, "_orig_mod", None)
            if isinstance(original, nn.Module):
                undo.callback(module._modules.__setitem__, name, child)
                module._modules[name] = original


def _wrap_passes(undo: ExitStack, model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):  # takes no Python hooks; `forward_passes.called` copies its images
        return
    copy = own_images(model)
    passes: list[Any] = []

    def begin(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # such passes copy their images before
            return None
        passes.append(in_pass(model))
        passes[-1].__enter__()
        return copy(args), copy(kwargs)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and passes:
            passes.pop().__exit__(None, None, None)

    undo.callback(model.register_forward_pre_hook(begin, prepend=True, with_kwargs=True).remove)
    undo.callback(model.register_forward_hook(end, always_call=True).remove)


# ---- switches of the process

_local = threading.local()
_users: dict[Callable[[], Any], int] = {}
_entered: dict[Callable[[], Any], Any] = {}


@contextmanager
def _here() -> Iterator[None]:
    """Mark this thread as one that uses a borrowed model."""
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        yield
    finally:
        _local.depth -= 1


@contextmanager
def _shared_switch(switch: Callable[[], Any]) -> Iterator[None]:
    """Enter a context that holds for all threads; the first user enters it, the last one leaves it."""
    with ONE_AT_A_TIME:
        _users[switch] = _users.get(switch, 0) + 1
        if _users[switch] == 1:
            _entered[switch] = switch()
            _entered[switch].__enter__()
    try:
        yield
    finally:
        with ONE_AT_A_TIME:
            _users[switch] -= 1
            if not _users[switch]:
                _entered.pop(switch).__exit__(None, None, None)


@contextmanager
def _without_compilation() -> Iterator[None]:
    """Run compiled functions and modules uncompiled, since compiled code skips hooks or holds those of another pass."""
    if "torch._dynamo" not in sys.modules:  # which takes seconds to import, and without which nothing is compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class _Unchecked(checkpoint._checkpoint_hook):
    """In a borrowed model, keep the tensors of a checkpointed part instead of computing them again."""

    def __init__(self, frame: Any) -> None:
        if not _in_use():
            super().__init__(frame)

    def __enter__(self) -> Any:
        return self if _in_use() else super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        return None if _in_use() else super().__exit__(*error)


class _Once(checkpoint.CheckpointFunction):
    """In a borrowed model, run a checkpointed part once, in the graph."""

    @classmethod
    def apply(cls, function: Any, preserve: Any, *args: Any) -> Any:
        return function(*args) if _in_use() else _CHECKPOINT.apply(function, preserve, *args)


_CHECKPOINT, _HOOK = checkpoint.CheckpointFunction, checkpoint._checkpoint_hook


def _in_use() -> bool:
    return getattr(_local, "depth", 0) > 0


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Switch activation checkpointing off for the threads that use a borrowed model.

    A part that is computed again in the backward pass would run its hooks again, and reentrant checkpointing keeps no graph.
    """
    checkpoint.CheckpointFunction, checkpoint._checkpoint_hook = _Once, _Unchecked  # type: ignore[misc]  # restored below
    try:
        yield
    finally:
        checkpoint.CheckpointFunction, checkpoint._checkpoint_hook = _CHECKPOINT, _HOOK  # type: ignore[misc]
