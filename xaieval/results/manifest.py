"""What a run was: versions, seed, fingerprints of model and data, and the choices that make two runs the same run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from xaieval.config.version import package_version
from xaieval.data.batches import Failure
from xaieval.inference.borrowing import check_ready
from xaieval.metrics import Metric
from xaieval.models.blackbox import BlackBox

__all__ = ["SCHEMA", "describe_data", "digest", "fingerprint", "new_manifest", "tensor_bytes"]

SCHEMA = 1
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas")


def new_manifest(model: nn.Module, seed: int, metrics: Sequence[Metric]) -> dict[str, Any]:
    """The manifest of a run that begins."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "schema": SCHEMA,
        "complete": False,
        "versions": {"xaieval": package_version(), "python": platform.python_version(), **versions},
        "seed": seed,
        "model": _model(model),
        "metrics": [metric.to_dict() for metric in metrics],
    }


def _model(model: nn.Module) -> dict[str, Any]:
    """Which model it is; of a function there is only the name to know."""
    entry = {"class": f"{type(model).__module__}.{type(model).__qualname__}"}
    if isinstance(model, BlackBox):
        return {**entry, "function": model.function_name, "parameters": None, "fingerprint": None}
    known = fingerprint(model)  # first, since it looks whether the parameters can be read
    return {**entry, "parameters": sum(parameter.numel() for parameter in model.parameters()), "fingerprint": known}


def describe_data(rows: pd.DataFrame, failures: Sequence[Failure], batches: Sequence[str]) -> dict[str, Any]:
    """What the manifest says of the images, once they are measured.

    Args:
        rows: of the run.
        failures: images that could not be read.
        batches: what tells whether each batch is the same again.
    """
    ids = rows["image_id"].unique()
    data = {"images": len(ids), "fingerprint": digest(f"{image_id}\n".encode() for image_id in ids)}
    return {
        "data": {**data, **({"batches": list(batches)} if batches else {})},
        "unreadable": [{"id": name, "reason": reason} for name, _, reason in failures],
    }


def fingerprint(model: nn.Module) -> str:
    """A hash of all parameters and buffers with their names.

    Raises:
        ModelError: some of them have no shape yet.
    """
    check_ready(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    return digest(_content(state.items()))


def digest(content: Iterable[bytes]) -> str:
    """The first 16 hexadecimal digits of the SHA-256."""
    found = hashlib.sha256()
    for part in content:
        found.update(part)
    return found.hexdigest()[:16]


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's values as bytes, whatever its device and dtype."""
    with torch.no_grad():
        flat = tensor.clone().cpu().contiguous().reshape(-1)  # what was made in inference mode cannot always be detached
    return flat.view(torch.uint8).numpy().tobytes()


def _content(named: Iterable[tuple[str, Tensor]]) -> Iterable[bytes]:
    for name, tensor in named:
        yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        yield tensor_bytes(tensor)
