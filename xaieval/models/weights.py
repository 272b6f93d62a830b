"""Reading of weights files without running code that they may contain."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from threading import RLock
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xaieval.errors import WeightsError, advice

__all__ = ["below_prefix", "check_fit", "check_size", "load_weights", "read_weights", "tensors_only", "without_wrappers"]

# Environment variables that torch.load obeys: the first overrides the argument weights_only, the second contradicts the first.
SAFE, UNSAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
NESTED = ("state_dict", "model_state_dict", "model")  # where training scripts keep a state dict in a file
COMPILED = "_orig_mod."  # in the names of what torch.compile wraps
_environment = RLock()  # the environment is shared by all threads


def load_weights(model: nn.Module, path: str | Path, name: str = "the model") -> None:
    """Load a weights file into a model. Keys and shapes must match exactly, below a prefix if the names have one.

    Args:
        model: The model to load into.
        path: A .safetensors file, or a file of `torch.save` that contains only tensors (read with `weights_only=True`, so that
            no code in it can run). The state dict may be nested under "state_dict" or "model".
        name: The name of the model, for error messages.

    Raises:
        WeightsError: The file is missing, cannot be read, or does not fit.
    """
    path = Path(path)
    wanted = model.state_dict()
    found, prefix = below_prefix(read_weights(path), wanted, f"'{path.name}'")
    check_fit(found, wanted, f"'{path.name}'" + (f" (below '{prefix}')" if prefix else ""), name)
    model.load_state_dict(found)


def below_prefix(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str]:
    """The weights of a model in those of what it was trained in, whose names have a prefix, such as "model." or "module.".

    Lightning, DataParallel, torch.compile and most wrappers save a network under the name of one of their attributes. The
    prefix is the one below which most names of the model are found, if none are found without one. Where all of them are, what
    stands beside it, such as the weights of a loss, is no part of the model.

    Args:
        found: The weights of a file.
        wanted: The state dict of the model.
        source: The name of the file, for error messages.

    Returns:
        The weights without the prefix, and the prefix; "" for none.

    Raises:
        WeightsError: The whole model is found below several prefixes, such as that of its average over steps.

    Example:
        >>> found = {"net._orig_mod.weight": torch.ones(1), "net._orig_mod.bias": torch.ones(1), "loss.weight": torch.ones(3)}
        >>> wanted = {"weight": torch.zeros(1), "bias": torch.zeros(1)}
        >>> weights, prefix = below_prefix(found, wanted, "the file")
        >>> sorted(weights), prefix
        (['bias', 'weight'], 'net.')
    """
    compiled = any(COMPILED in name for name in wanted)
    plain = dict(found) if compiled else {name.replace(COMPILED, ""): tensor for name, tensor in found.items()}
    times = Counter(prefix for name in plain for prefix in _prefixes(name) if name.removeprefix(prefix) in wanted)
    if not times or times[""]:
        return plain, ""
    whole = [prefix for prefix, count in times.items() if count == len(wanted)]
    if len(whole) > 1:
        raise WeightsError(
            f"{source} holds the whole model below each of {', '.join(repr(prefix) for prefix in whole)}; save the one that is "
            "meant, without the others"
        )
    [(prefix, _)] = times.most_common(1)
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}, prefix


def without_wrappers(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model whose names are not known yet, without a prefix that all of them have.

    Example:
        >>> [*without_wrappers({"module.model.vit.bias": torch.ones(1), "module.model.head.bias": torch.ones(1)})]
        ['vit.bias', 'head.bias']
    """
    names = {name: name.replace(COMPILED, "") for name in found}
    while all("." in name for name in names.values()) and len({name.split(".")[0] for name in names.values()}) == 1:
        names = {name: short.partition(".")[2] for name, short in names.items()}
    return {names[name]: tensor for name, tensor in found.items()}


def _prefixes(name: str) -> Iterator[str]:
    """All beginnings of a name that end before one of its parts."""
    yield ""
    for place, sign in enumerate(name):
        if sign == ".":
            yield name[: place + 1]


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
        told = "; ".join(fault for fault in faults if fault)
        raise WeightsError(f"{source} does not fit {name}: {told}{_other_classes(found, wanted, shapes)}")


def _other_classes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], shapes: Sequence[str]) -> str:
    """The way to mend weights that only have another number of classes, as the end of a message."""
    rows = {(tuple(found[key].shape[:1]), tuple(wanted[key].shape[:1])) for key in shapes}
    alike = all(found[key].shape[1:] == wanted[key].shape[1:] for key in shapes)
    heads = {key.rpartition(".")[0] for key in shapes}
    whole = all(key in shapes for key in wanted if key.rpartition(".")[0] in heads)
    if len(rows) != 1 or not alike or not whole or found.keys() != wanted.keys():
        return ""
    [((count, *_), _)] = rows
    return f"; if it was trained on {count} classes, say so by {advice(f'num_classes={count}', f'--num-classes {count}')}"


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
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not _is_state(content):
        known = content if isinstance(content, Mapping) else {}
        inside = [key for key, value in known.items() if _is_state(value) and len(value)]
        several = f"; it has several, {', '.join(map(repr, inside))}: save the one that is meant" if len(inside) > 1 else ""
        if len(inside) != 1:
            raise WeightsError(f"'{path.name}' holds no state dict (a mapping from names to tensors){several}")
        content = content[inside[0]]
    return dict(content)


def _is_state(content: Any) -> bool:
    """Whether something is a mapping from names to tensors."""
    return isinstance(content, Mapping) and all(isinstance(key, str) and _is_plain(value) for key, value in content.items())


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
                f"give a file of tensors alone by {advice('weights=', '--weights')}"
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
