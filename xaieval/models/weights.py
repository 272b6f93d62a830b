"""Weights files, read without running code that may be in them."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from threading import RLock
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xaieval.errors import WeightsError

__all__ = ["check_fit", "load_weights", "read_weights", "tensors_only"]

# What torch.load heeds beside its own arguments: the first overrules whatever a library asks for, the second contradicts it.
SAFE, UNSAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_environment = RLock()  # which all threads share


def load_weights(model: nn.Module, path: str | Path, name: str = "the model") -> None:
    """Load a weights file into a model, exactly: every key must be there, none left over.

    Args:
        model: gets the weights.
        path: .safetensors, or a file of `torch.save` that holds tensors alone (read with `weights_only=True`, so that no code
            in it can run); a state dict inside it under "state_dict" or "model" is found.
        name: of the model, for messages.

    Raises:
        WeightsError: the file is missing, cannot be read, or does not fit.
    """
    path = Path(path)
    found, wanted = read_weights(path), model.state_dict()
    if found and all(name.startswith("module.") for name in found) and not found.keys() & wanted.keys():
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}  # saved from DataParallel
    check_fit(found, wanted, f"'{path.name}'", name)
    model.load_state_dict(found)


def check_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, name: str) -> None:
    """Refuse weights whose names or shapes are not those of a model.

    Args:
        found: the weights.
        wanted: the model's.
        source: of the weights, for messages.
        name: of the model, for messages.

    Raises:
        WeightsError: with what is missing, left over, or of another shape.
    """
    shapes = [k for k in wanted if k in found and wanted[k].shape != found[k].shape]
    faults = [
        _list_keys("missing", [k for k in wanted if k not in found]),
        _list_keys("left over", [k for k in found if k not in wanted]),
        _list_keys("of another shape", [f"{k} {list(found[k].shape)} instead of {list(wanted[k].shape)}" for k in shapes]),
    ]
    if any(faults):
        raise WeightsError(f"{source} does not fit {name}: " + "; ".join(fault for fault in faults if fault))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors in a weights file, by name.

    Raises:
        WeightsError: the file is missing, or cannot be read without running code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file '{path}'")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_size(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # either it can be read, or the error says so
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise anything
        raise WeightsError(
            f"cannot read '{path.name}': it is damaged, or holds more than tensors, which would take code to load; "
            ".safetensors, or a .pth file of tensors alone, is expected"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not (isinstance(content, Mapping) and all(isinstance(k, str) and _is_plain(v) for k, v in content.items())):
        raise WeightsError(f"'{path.name}' holds no state dict (a mapping from names to tensors)")
    return dict(content)


@contextmanager
def tensors_only(name: str) -> Iterator[None]:
    """Have other libraries read weights as `read_weights` does, whatever they ask torch.load for.

    That holds for the whole process meanwhile. Other threads that enter wait.

    Args:
        name: of the model that is made, for the message.

    Raises:
        WeightsError: a file that a library reads holds more than tensors.
    """
    with _environment:
        before = {key: os.environ.pop(key, None) for key in (SAFE, UNSAFE)}
        os.environ[SAFE] = "1"
        try:
            yield
        except Exception as error:
            if not _is_refusal(error):
                raise
            raise WeightsError(
                f"{name} takes weights from a file that is damaged, or holds more than tensors, which would take code to load; "
                "give a file of tensors alone by --weights"
            ) from error
        finally:
            del os.environ[SAFE]
            os.environ.update({key: value for key, value in before.items() if value is not None})


def _is_refusal(error: BaseException | None) -> bool:
    """Whether an error comes from what torch.load refuses, under whatever a library makes of it."""
    if isinstance(error, WeightsError):  # which says that already
        return False
    while error is not None and not isinstance(error, UnpicklingError):
        error = error.__cause__ or error.__context__
    return error is not None


def _check_size(path: Path) -> None:
    """Refuse an archive that holds more than its own size: torch.save does not compress, and a small file could fill memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("the archive is compressed")


def _is_plain(value: Any) -> bool:
    """Whether this is a tensor with its numbers in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _list_keys(what: str, keys: list[str], most: int = 3) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{what}: {', '.join(keys[:most])}{rest}" if keys else ""
