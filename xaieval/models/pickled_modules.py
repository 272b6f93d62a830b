"""Weights of a file that holds a pickled module, read without running the code that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from xaieval.errors import WeightsError
from xaieval.models.weights import check_size

__all__ = ["PickledModule", "read_pickled_modules", "state_of"]

_one_at_a_time = Lock()  # torch keeps the classes that a file may name for the whole process


class PickledModule:
    """Stands for an object of any class in a file: it keeps what the file says of it, and runs nothing."""

    def __new__(cls, *args: Any) -> PickledModule:
        """An empty object; what its class would be called with is ignored."""
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            vars(self).update({name: value for name, value in state.items() if isinstance(name, str)})


def read_pickled_modules(path: Path) -> Any:
    """Read a file of `torch.save` in which every object that is not a tensor, number, text or container is a `PickledModule`.

    torch's restricted unpickler reads it (`weights_only=True`), and is given an empty class for every name in the file that it
    does not know. So no class or function of the file is imported or called.

    Raises:
        WeightsError: The file is damaged, or of another form.
    """
    try:
        check_size(path)
        with _one_at_a_time:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            empty: list[Any] = [(type(name, (PickledModule,), {}), name) for name in names]
            with torch.serialization.safe_globals(empty):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise WeightsError(
            f"cannot read '{path.name}': it is damaged, or no file that torch.save wrote as a zip archive"
        ) from error


def state_of(module: PickledModule) -> dict[str, Tensor]:
    """The state dict that the module would have.

    Raises:
        WeightsError: The object is no module.
    """
    if not isinstance(module, PickledModule) or "_modules" not in vars(module):
        raise WeightsError("the file holds no torch.nn.Module")
    return dict(_tensors(module, ""))


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    held = vars(module)
    passing = held.get("_non_persistent_buffers_set", ())
    for name, tensor in {**held.get("_parameters", {}), **held.get("_buffers", {})}.items():
        if isinstance(tensor, Tensor) and name not in passing:
            yield f"{prefix}{name}", tensor.detach()
    for name, child in held.get("_modules", {}).items():
        if isinstance(child, PickledModule):
            yield from _tensors(child, f"{prefix}{name}.")
