"""Reading of weights files without running code that they may contain."""

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

__all__ = ["check_fit", "check_size", "load_weights", "read_weights", "tensors_only"]

# Environment variables that torch.load obeys: the first overrides the argument weights_only, the second contradicts the first.
SAFE, UNSAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_environment = RLock()  # the environment is shared by all threads


def load_weights(model: nn.Module, path: str | Path, name: str = "the model") -> None:
    """Load a weights file into a model. Keys and shapes must match exactly.

    Args:
        model: The model to load into.
        path: A .safetensors file, or a file of `torch.save` that contains only tensors (read with `weights_only=True`, so that
            no code in it can run). The state dict may be nested under "state_dict" or "model".
        name: The name of the model, for error messages.

    Raises:
        WeightsError: The file is missing, cannot be read, or does not fit.
    """
    path = Path(path)
    found, wanted = read_weights(path), model.state_dict()
    if found and all(name.startswith("module.") for name in found) and not found.keys() & wanted.keys():
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}  # saved from DataParallel
    check_fit(found, wanted, f"'{path.name}'", name)
    model.load_state_dict(found)


def check_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, name: str) -> None:
    """Refuse weights whose names or shapes differ from those of a model.

    Args:
        found: The weights.
        wanted: The state dict of the model.
        source: The name of the weights, for error messages.
        name: The name of the model, for error messages.

    Raises:
        WeightsError: Keys are missing, left over, or of another shape; the message lists them.
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
    """Read the tensors of a weights file, by name.

    Raises:
        WeightsError: The file is missing, or cannot be read without running code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file '{path}'")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        check_size(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # if the file cannot be read, the error below says so
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
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
    """Make torch.load in other libraries read only tensors, whatever arguments they pass.

    Applies to the whole process while the context is active. Other threads that enter it wait.

    Args:
        name: The name of the model to build, for the error message.

    Raises:
        WeightsError: A file that a library reads contains more than tensors.
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
    """Whether an error was caused by a refusal of torch.load, also if a library raised another error from it."""
    if isinstance(error, WeightsError):  # its message already says so
        return False
    while error is not None and not isinstance(error, UnpicklingError):
        error = error.__cause__ or error.__context__
    return error is not None


def check_size(path: Path) -> None:
    """Refuse a compressed archive: torch.save does not compress, and a small file could expand to fill the memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("the archive is compressed")


def _is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor with its data in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _list_keys(what: str, keys: list[str], most: int = 3) -> str:
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{what}: {', '.join(keys[:most])}{rest}" if keys else ""
