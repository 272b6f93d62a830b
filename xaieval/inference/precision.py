"""The arithmetic of the passes that only need the model's output: its own type, or a faster one of fewer digits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from xaieval.errors import UsageError, choose_from

__all__ = [
    "AUTO",
    "FLOAT32",
    "PRECISIONS",
    "Precision",
    "candidates",
    "check_precision",
    "precision_on",
    "tf32_by_default",
]

FLOAT32 = "float32"
AUTO = "auto"  # a trial on the first batch chooses; see `xaieval.evaluation.precision_trial`


@dataclass(frozen=True)
class Precision:
    """How passes that only need the output compute.

    Attributes:
        autocast: The dtype of the operations for which torch's autocast finds it safe; None for the model's own type.
        tf32: Whether convolutions and matrix products of float32 numbers round their inputs to TF32, on GPUs that have it.
        tolerance: By how much, relative to the largest logit, a compiled model may differ, since it sums in a different order.
    """

    autocast: torch.dtype | None = None
    tf32: bool = False
    tolerance: float = 1e-3

    @property
    def is_reduced(self) -> bool:
        """Whether outputs differ from those of the model's own type by more than the order of sums."""
        return self != Precision()

    def computing(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of such passes on a device."""
        if self.autocast is not None:
            return torch.autocast(device.type, self.autocast)
        return _tf32() if self.tf32 else nullcontext()


PRECISIONS = {
    FLOAT32: Precision(),
    "bf16": Precision(torch.bfloat16, tolerance=5e-2),
    "fp16": Precision(torch.float16, tolerance=1e-2),
    "tf32": Precision(tf32=True, tolerance=1e-2),
}


def candidates(device: torch.device) -> tuple[str, ...]:
    """The precisions that can be faster than float32 on a device. No processor computes fp16 faster than bf16."""
    return {"cpu": ("bf16",), "cuda": ("tf32", "bf16", "fp16")}.get(device.type, ("bf16", "fp16"))


def check_precision(precision: str, known: tuple[str, ...] = (*PRECISIONS, AUTO)) -> None:
    """Check that a precision exists.

    Raises:
        UsageError: It does not; the message lists the known ones.
    """
    if precision not in known:
        raise UsageError(f"no precision {precision!r}; {choose_from(precision, known)}")


def precision_on(device: torch.device, precision: str) -> str:
    """The precision of passes on a device; "auto" is float32 where no trial has chosen another one.

    Raises:
        UsageError: The device does not have it.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"precision 'tf32' needs an NVIDIA GPU, and the device is {device.type}; use bf16, or leave it out")
    return FLOAT32 if precision == AUTO else precision


def tf32_by_default(device: torch.device) -> dict[str, Any]:
    """Where torch itself rounds float32 numbers to TF32 on a GPU: for convolutions it does so unless it is told not to."""
    if device.type != "cuda":
        return {}
    return {"tf32": [name for name, switch in _switches().items() if switch.fp32_precision == "tf32"]}


@contextmanager
def _tf32() -> Iterator[None]:
    before = {name: switch.fp32_precision for name, switch in _switches().items()}
    try:
        for switch in _switches().values():
            switch.fp32_precision = "tf32"
        yield
    finally:
        for name, switch in _switches().items():
            switch.fp32_precision = before[name]


def _switches() -> dict[str, Any]:
    cudnn: Any = torch.backends.cudnn  # whose `conv` mypy does not see
    return {"convolutions": cudnn.conv, "matrix products": torch.backends.cuda.matmul}
