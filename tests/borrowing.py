"""What tests ask of a borrowed model, and of the process around it: that nothing of them has changed."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from xaieval.explainers import Context


def state_of(model: nn.Module, versions: bool = True) -> dict[str, Any]:
    """Everything of a model that a library may change: modules shallowly, tensors with their memory and their bits.

    A tensor's version also tells who has written the same values again, as captum's LRP does by `load_state_dict`.
    """
    state: dict[str, Any] = {"mode": model.training}
    for path, module in model.named_modules(remove_duplicate=False):
        state[f"{path}|type"] = type(module)
        for name, value in vars(module).items():
            held = {key: id(item) for key, item in value.items()} if isinstance(value, dict) else value
            state[f"{path}|{name}"] = (id(held), _tensor(held, versions)) if isinstance(held, Tensor) else held
            if isinstance(value, dict):
                state[f"{path}|{name}|order"] = (id(value), list(value))
    for path, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        state[f"{path}|tensor"] = (id(tensor), _tensor(tensor, versions))
        state[f"{path}|grad"] = None if tensor.grad is None else (id(tensor.grad), _tensor(tensor.grad, versions))
    return state


def version(tensor: Tensor) -> int | None:
    """Rises with each time that it is written to."""
    try:
        return tensor._version
    except RuntimeError:  # it was made in inference mode
        return None


def _numpy_state() -> Any:
    return np.random.get_state()  # noqa: NPY002  # it is the one to watch


def _tensor(tensor: Tensor, versions: bool) -> tuple[Any, ...]:
    with torch.no_grad():
        flat = tensor.clone().contiguous().reshape(-1)  # also of what was made in inference mode, which cannot be detached
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
        tensor.is_leaf,
        tensor.is_inference(),
        version(tensor) if versions else None,
        list(tensor._backward_hooks or ()),
        flat.view(torch.uint8).numpy().tobytes(),
    )


def process_state() -> dict[str, Any]:
    """Everything of the process that a library may change, as far as there is a way to read it off."""
    return {
        "torch random": torch.get_rng_state().numpy().tobytes(),
        "NumPy random": [part.tobytes() if isinstance(part, np.ndarray) else part for part in _numpy_state()],
        "Python random": random.getstate(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "default type": (torch.get_default_dtype(), torch.get_default_device()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "cudnn": [getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")],
        "products": (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32),
        "mkldnn": torch.backends.mkldnn.enabled,
        "attention": [
            getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math", "cudnn")
        ],
        "autocast": [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
        + [torch.is_autocast_cache_enabled()],
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "hooks of all modules": {
            name: list(value)
            for name, value in vars(torch_module).items()
            if name.startswith("_global_") and isinstance(value, dict)
        },
        "warnings": (id(warnings.showwarning), list(warnings.filters)),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "matplotlib": dict.copy(mpl.rcParams),
        "NumPy errors": (np.geterr(), str(np.get_printoptions())),
        "streams": (id(sys.stdout), id(sys.stderr), id(sys.excepthook)),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "folder": Path.cwd(),
        "environment": dict(os.environ),
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What has changed, by name."""
    names = [name for name in before | after if before.get(name) != after.get(name)]
    return {name: (before.get(name), after.get(name)) for name in names}


@contextmanager
def all_unchanged(*models: nn.Module, versions: bool = True) -> Iterator[None]:
    """Check that models and process come back as they were, also where something raises; with what gradients there are."""
    before, around = [state_of(model, versions) for model in models], process_state()
    try:
        yield
    finally:
        assert [*differences(around, process_state())] == []
        for model, state in zip(models, before, strict=True):
            assert [*differences(state, state_of(model, versions))] == []


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Check that a model is given back unchanged, also after an error; with gradients set beforehand."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = state_of(model, versions=False)
    random_numbers = torch.random.get_rng_state()
    try:
        yield
    finally:
        assert [*differences(before, state_of(model, versions=False))] == []
        assert torch.equal(torch.random.get_rng_state(), random_numbers)
        for parameter in model.parameters():
            parameter.grad = None


def context_of(model: nn.Module, images: Tensor, targets: list[int], **options: Any) -> Context:
    """What an explainer is given, its model frozen as in a run."""
    model.eval().requires_grad_(False)
    with torch.no_grad():
        logits = model(images)
    return Context(model, images, torch.tensor(targets), logits, [str(number) for number in range(len(images))], **options)
